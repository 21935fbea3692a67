"""Split the code of a single cell in two: biology in ``z_bio``, the batch in ``z_nio``."""

import logging
from importlib.metadata import version

from rich.logging import RichHandler

from . import data, objectives, pl, pp, tl
from ._errors import InputError, NonFiniteError
from ._model import DisentangleModel
from ._module import DisentangleModule
from ._training import default_max_epochs
from ._training_plan import DisentangleTrainingPlan

logger = logging.getLogger(__name__)
if not logger.hasHandlers():
    logger.setLevel(logging.INFO)
    logger.addHandler(RichHandler(show_time=False, show_path=False))

__version__ = version("scdisentangle")
__all__ = [
    "DisentangleModel",
    "DisentangleModule",
    "DisentangleTrainingPlan",
    "InputError",
    "NonFiniteError",
    "data",
    "default_max_epochs",
    "objectives",
    "pl",
    "pp",
    "tl",
]
