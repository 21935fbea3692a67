"""Objectives that separate the two codes of a cell, each by name."""

from ._base import Codes, Objective
from ._registry import (
    OBJECTIVES,
    DisentanglementLoss,
    ObjectiveSpec,
    build_objectives,
)
from .classification import batch_cross_entropy
from .reconstruction import calibrated, squared_error

__all__ = [
    "OBJECTIVES",
    "Codes",
    "DisentanglementLoss",
    "Objective",
    "ObjectiveSpec",
    "batch_cross_entropy",
    "build_objectives",
    "calibrated",
    "squared_error",
]
