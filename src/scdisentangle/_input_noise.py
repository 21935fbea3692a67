"""What the encoders' input goes through in training: noise, and genes that are hidden."""

from __future__ import annotations

from functools import cache, lru_cache

import torch
from torch import Tensor

LEVELS = 2**16
"""Values of a random 16-bit integer, of which a share is below the dropout's threshold."""


def add_noise(x: Tensor, level: float, hidden: float = 0.0) -> Tensor:
    """Add Gaussian noise of a standard deviation, then hide genes; at levels 0, ``x`` itself.

    On a CPU, each value draws one of :data:`LEVELS` quantiles of the normal distribution, which
    reach 4.3 standard deviations: its distribution function is right to :math:`2^{-17}`, in half
    the time of normal numbers. Hidden genes take their share of the quantiles, so that the others
    have so many less, and one draw tells both.
    """
    if level == 0:
        return hide_genes(x, hidden)
    if x.device.type != "cpu":
        return hide_genes(x.new_empty(x.shape).normal_(0.0, level).add_(x), hidden)
    lots, n_hidden = _lots(x), round(hidden * LEVELS)
    noise = _noise(level, n_hidden, x.dtype).index_select(0, lots.view(torch.uint16).int())
    return _hide(noise.view(x.shape).add_(x), lots, n_hidden)


def hide_genes(x: Tensor, rate: float) -> Tensor:
    """Set values to 0, each with a probability; at rate 0, ``x`` itself.

    The probability is that of the nearest multiple of :math:`2^{-16}`.
    """
    return x if rate == 0 else _hide(x, _lots(x), round(rate * LEVELS))


def _hide(x: Tensor, lots: Tensor, n_hidden: int) -> Tensor:
    """Set the values of the lowest lots to 0."""
    if n_hidden == 0:
        return x
    kept = torch.ge(lots.view(x.shape), n_hidden - LEVELS // 2, out=x.new_empty(x.shape))
    return kept.mul_(x)


def _lots(x: Tensor) -> Tensor:
    """A random 16-bit integer for each value: four come of one of 64 bits, which are dear."""
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    return drawn.random_(-(2**63), None).view(torch.int16)[: x.numel()]


@lru_cache(8)
def _noise(level: float, n_hidden: int, dtype: torch.dtype) -> Tensor:
    """What each lot, read without a sign, adds to a value."""
    of_signed = torch.cat([torch.zeros(n_hidden), level * _normal_quantiles(LEVELS - n_hidden)])
    return of_signed.roll(LEVELS // 2).to(dtype)


@cache
def _normal_quantiles(n: int) -> Tensor:
    """Quantiles in the middle of equal shares, scaled to variance 1."""
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    quantiles = torch.special.ndtri(middles)
    return (quantiles / quantiles.square().mean().sqrt()).float()
