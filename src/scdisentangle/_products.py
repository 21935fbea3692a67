"""The largest products, which a CPU that is not Intel's takes through oneDNN.

PyTorch takes Intel's MKL, which on some CPUs of others runs at less than half of their speed.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

LARGE = 2**16
"""Weights from which a product is worth the way there."""


class Linear(nn.Linear):
    """That of PyTorch, by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of each cell, ``(..., n_out)``."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`, up to rounding.

    Whatever oneDNN's operator is not for, or a PyTorch that lacks it, which is none of its public
    ones, goes through PyTorch's own. ``torch.backends.mkldnn.flags(enabled=False)`` turns it off.
    """
    takes_onednn = (
        weight.numel() >= LARGE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 2
        and len(x) > 0
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _mkl_may_be_slow()
        and forward_ad.unpack_dual(x).tangent is None
        and _is_offered()
    )
    return (_Product.apply if takes_onednn else nn.functional.linear)(x, weight, bias)


@cache
def _mkl_may_be_slow() -> bool:
    """Told by the maker and not by the clock: a seed gives the same weights whatever else runs."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkl.is_available() and "Intel" not in capabilities.get("cpu_name", "")


@cache
def _is_offered() -> bool:
    x = torch.eye(2)
    try:
        return _product(x, x, None).equal(x)
    except (AttributeError, TypeError, RuntimeError):
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _Product.apply(g, weight.T, None) if of_x else None,
            _Product.apply(g.T, x.T, None) if of_weight else None,
            g.sum(dim=0) if of_bias else None,
        )
