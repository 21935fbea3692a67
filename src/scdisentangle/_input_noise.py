"""What the encoders' input goes through in training: noise, and genes that are hidden.

On a CPU random numbers are dear, a tenth of a step. There, they are drawn once, and each cell takes
a stretch of them from a random place.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

POOL = 2**20
"""Numbers that are drawn once."""


def add_noise(x: Tensor, level: float, hidden: float = 0.0) -> Tensor:
    """Add Gaussian noise of a standard deviation, then hide genes; at levels 0, ``x`` itself.

    Parameters
    ----------
    x
        Values, ``(n_cells, n_genes)``.
    level
        Standard deviation.
    hidden
        As for :func:`hide_genes`.
    """
    if level > 0:
        if _takes_from_pool(x):
            noise = _stretches(_normal_quantiles(x.dtype), x)
        else:
            noise = torch.randn_like(x)
        x = noise.mul_(level).add_(x)
    return hide_genes(x, hidden)


def hide_genes(x: Tensor, rate: float) -> Tensor:
    """Set values to 0, each with a probability; at rate 0, ``x`` itself."""
    if rate == 0:
        return x
    if _takes_from_pool(x):
        return x * _stretches(_kept(rate, x.dtype), x)
    return x * torch.empty_like(x).bernoulli_(1 - rate)


def _takes_from_pool(x: Tensor) -> bool:
    return x.device.type == "cpu" and 2 * x.shape[1] <= POOL


def _stretches(pool: Tensor, x: Tensor) -> Tensor:
    """For each cell, as many numbers as it has genes, which stand in a row from a random place."""
    stretches = pool.unfold(0, x.shape[1], 1)
    return stretches.index_select(0, torch.randint(len(stretches), (len(x),)))


@lru_cache(2)
def _normal_quantiles(dtype: torch.dtype) -> Tensor:
    """Those in the middle of equal shares, scaled to variance 1, in random order."""
    middles = (_shuffled(1).double() + 0.5) / POOL
    quantiles = torch.special.ndtri(middles)
    return (quantiles / quantiles.square().mean().sqrt()).to(dtype)


@lru_cache(4)
def _kept(rate: float, dtype: torch.dtype) -> Tensor:
    """A share of zeros among ones, in random order."""
    return (_shuffled(2) >= round(rate * POOL)).to(dtype)


def _shuffled(seed: int) -> Tensor:
    return torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))
