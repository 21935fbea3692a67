"""Pictures: the codes side by side, the losses, what leaks, and what the batch does to genes."""

from ._batch_effect import batch_effect
from ._latents import latents
from ._leakage import leakage
from ._losses import losses
from ._report import report

__all__ = ["batch_effect", "latents", "leakage", "losses", "report"]
