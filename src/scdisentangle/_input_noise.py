"""What the encoders' input goes through in training: noise, and genes that are hidden."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 2**16
"""Values of a random 16-bit integer, of which a share is below the dropout's threshold."""


def add_noise(x: Tensor, level: float) -> Tensor:
    """Add Gaussian noise of a standard deviation; at level 0, ``x`` itself."""
    return x.new_empty(x.shape).normal_(0.0, level).add_(x) if level > 0 else x


def hide_genes(x: Tensor, rate: float) -> Tensor:
    """Set values to 0, each with a probability; at rate 0, ``x`` itself.

    Random numbers are a large part of a training step: one of 64 bits decides for four values, so
    that the probability is that of the nearest multiple of :math:`2^{-16}`.
    """
    if rate == 0:
        return x
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    lots = drawn.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(lots, round(rate * LEVELS) - LEVELS // 2, out=x.new_empty(x.shape))
    return kept.mul_(x)
