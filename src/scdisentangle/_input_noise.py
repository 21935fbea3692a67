"""What the encoders' input goes through in training: noise, and genes that are hidden.

On a CPU random numbers are dear, a tenth of a step. There, they are drawn once, and a minibatch
takes a stretch of them from a random place.
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
            noise = _stretch(_normal_quantiles(x.dtype), x.shape)
        else:
            noise = torch.randn_like(x)
        x = torch.add(x, noise, alpha=level)
    return hide_genes(x, hidden)


def hide_genes(x: Tensor, rate: float) -> Tensor:
    """Set values to 0, each with a probability; at rate 0, ``x`` itself."""
    if rate == 0:
        return x
    if _takes_from_pool(x):
        return x * _stretch(_kept(rate, x.dtype), x.shape)
    return x * torch.empty_like(x).bernoulli_(1 - rate)


def _takes_from_pool(x: Tensor) -> bool:
    return x.device.type == "cpu" and 2 * x.shape[1] <= POOL


def _stretch(pool: Tensor, shape: torch.Size) -> Tensor:
    """Numbers of a shape that stand in a row from a random place; many cells, from several."""
    n_cells, n_genes = shape
    in_a_row = POOL // (2 * n_genes)
    sizes = [min(in_a_row, n_cells - first) for first in range(0, n_cells or 1, in_a_row)]
    starts = torch.randint(POOL, (len(sizes),)).tolist()
    stretches = [
        pool[start : start + size * n_genes].view(size, n_genes)
        for start, size in zip(starts, sizes, strict=True)
    ]
    return stretches[0] if len(stretches) == 1 else torch.cat(stretches)


@lru_cache(2)
def _normal_quantiles(dtype: torch.dtype) -> Tensor:
    """Those in the middle of equal shares, scaled to variance 1, in random order."""
    with torch.inference_mode(False):  # the pool outlives the call that makes it
        middles = (_shuffled(1).double() + 0.5) / POOL
        quantiles = torch.special.ndtri(middles)
        return _ring((quantiles / quantiles.square().mean().sqrt()).to(dtype))


@lru_cache(4)
def _kept(rate: float, dtype: torch.dtype) -> Tensor:
    """A share of zeros among ones, in random order."""
    with torch.inference_mode(False):
        return _ring((_shuffled(2) >= round(rate * POOL)).to(dtype))


def _ring(pool: Tensor) -> Tensor:
    """A pool whose stretches may run over its end, so that each number is as likely as any."""
    return torch.cat([pool, pool[: POOL // 2]])


def _shuffled(seed: int) -> Tensor:
    return torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))
