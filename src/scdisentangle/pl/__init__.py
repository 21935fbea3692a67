"""Pictures: the codes side by side, the course of the losses."""

from ._latents import latents
from ._losses import losses

__all__ = ["latents", "losses"]
