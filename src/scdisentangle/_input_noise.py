"""What the encoders' input goes through in training: noise, and genes that are hidden."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LEVELS = 2**16
"""Values of a random 16-bit integer, of which a share is below the dropout's threshold."""


def add_noise(x: Tensor, level: float) -> Tensor:
    """Add Gaussian noise of a standard deviation; at level 0, ``x`` itself.

    On a CPU, each value draws one of :data:`LEVELS` quantiles of the normal distribution, which
    reach 4.3 standard deviations: its distribution function is right to :math:`2^{-17}`, in half
    the time of normal numbers.
    """
    if level == 0:
        return x
    if x.device.type != "cpu":
        return x.new_empty(x.shape).normal_(0.0, level).add_(x)
    quantiles = (level * _normal_quantiles()).to(x.dtype)
    lots = _lots(x).view(torch.uint16).to(torch.int32)
    return quantiles.index_select(0, lots).view(x.shape).add_(x)


def hide_genes(x: Tensor, rate: float) -> Tensor:
    """Set values to 0, each with a probability; at rate 0, ``x`` itself.

    The probability is that of the nearest multiple of :math:`2^{-16}`.
    """
    if rate == 0:
        return x
    lots = _lots(x).view(x.shape)
    kept = torch.ge(lots, round(rate * LEVELS) - LEVELS // 2, out=x.new_empty(x.shape))
    return kept.mul_(x)


def _lots(x: Tensor) -> Tensor:
    """A random 16-bit integer for each value: four come of one of 64 bits, which are dear."""
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    return drawn.random_(-(2**63), None).view(torch.int16)[: x.numel()]


@cache
def _normal_quantiles() -> Tensor:
    """Quantiles in the middle of :data:`LEVELS` equal shares, scaled to variance 1."""
    middles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    quantiles = torch.special.ndtri(middles)
    return (quantiles / quantiles.square().mean().sqrt()).float()
