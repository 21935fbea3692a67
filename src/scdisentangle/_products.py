"""Linear layers whose large products a CPU takes through oneDNN.

What PyTorch takes by default, Intel's MKL, may run at half of a CPU's speed where that is not
Intel's.
``torch.backends.mkldnn.flags(enabled=False)`` switches it off.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

LARGE = 2**16
"""Weights of a layer from which its products are worth the way there."""


class Linear(nn.Linear):
    """That of PyTorch; results differ by rounding."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """The same layer, with the parameters that it has."""
        own = cls.__new__(cls)
        own.__dict__.update(layer.__dict__)
        return own

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of each cell, ``(n_cells, n_out)``."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, of the shape ``(n_cells, n_out)``."""
    if weight.numel() < LARGE or not _is_for_onednn(x):
        return nn.functional.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


def _is_for_onednn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 2
        and len(x) > 0
        and torch.backends.mkldnn.enabled
        and _is_offered()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and forward_ad.unpack_dual(x).tangent is None
    )


@cache
def _is_offered() -> bool:
    """Whether this PyTorch has the operator, a private one of its own, as it is used here."""
    x = torch.eye(2)
    try:
        return _product(x, x, None).equal(x)
    except (AttributeError, TypeError, RuntimeError):
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _Linear.apply(g, weight.T, None) if of_x else None,
            _of_weight(g, x) if of_weight else None,
            g.sum(dim=0) if of_bias else None,
        )


def _of_weight(g: Tensor, x: Tensor) -> Tensor:
    """``g.T @ x``; oneDNN copies its first operand, and gains nothing where that is the larger."""
    if g.shape[1] <= x.shape[1]:
        return _Linear.apply(g.T, x.T, None)
    return g.T @ x
