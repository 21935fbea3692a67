from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TINY = 1e-12


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Squared Euclidean distances :math:`\|x_i\|^2 + \|y_j\|^2 - 2 x_i^\top y_j`.

    The Gram matrix avoids the ``(n, m, d)`` tensor of differences, and there is no square root,
    so that the gradient is finite at identical points.

    Parameters
    ----------
    x
        Shape ``(n, d)``.
    y
        Shape ``(m, d)``; ``x`` itself if ``None``, and then the diagonal is exactly 0.

    Returns
    -------
    Non-negative tensor of shape ``(n, m)``, of single precision where codes are of half.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        y = None if y is None else y.to(x.dtype)
        centre = x.detach().mean(0)  # keeps the rounding error relative to the spread
        x = x - centre
        other = x if y is None else y - centre
        norms = x.square().sum(1).unsqueeze(1) + other.square().sum(1)
        distances = torch.addmm(norms, x, other.T, alpha=-2.0).clamp_min_(0.0)
    return distances.fill_diagonal_(0.0) if y is None else distances


def median_sigma(squared: Tensor, max_cells: int = 512) -> Tensor:
    """Median heuristic: the median distance between distinct points.

    Parameters
    ----------
    squared
        Squared distances of one set of points, shape ``(n, n)``.
    max_cells
        Of more points than this, only every second, third... is used for the median.

    Returns
    -------
    Scalar in units of the code; 1 where the median is 0, up to rounding, or there are fewer than
    two points.

    References
    ----------
    Gretton et al. (2012), A kernel two-sample test, JMLR 13:723, section 8.
    """
    step = -(-len(squared) // max_cells)
    squared = squared[::step, ::step]
    n = len(squared)
    if n < 2:
        return squared.new_ones(())
    off_diagonal = squared.flatten()[1:].view(n - 1, n + 1)[:, :-1]
    median = off_diagonal.median()
    rounding = 16 * torch.finfo(squared.dtype).eps * squared.max()
    return or_one(torch.where(median > rounding, median, 0.0)).sqrt()


def base_bandwidth(squared: Tensor, kernel_num: int = 5, kernel_mul: float = 2.0) -> Tensor:
    r"""Smallest bandwidth of the multi-scale kernel, :math:`\bar d / m^{\lfloor K/2 \rfloor}`.

    Parameters
    ----------
    squared
        Squared distances of one set of points, shape ``(n, n)``; :math:`\bar d` is their mean over
        pairs of distinct points, which becomes the middle of the scales.
    kernel_num
        Number of scales :math:`K`.
    kernel_mul
        Ratio :math:`m` of one scale to the next.

    Returns
    -------
    Scalar in squared units of the code.
    """
    n_pairs = max(len(squared) * (len(squared) - 1), 1)
    return or_one(squared.sum() / n_pairs) / kernel_mul ** (kernel_num // 2)


def gaussian_kernel(z: Tensor, sigma: float | Callable[[Tensor], Tensor] = median_sigma) -> Tensor:
    r"""Gaussian kernel matrix :math:`\exp(-\|z_i - z_j\|^2 / 2\sigma^2)`.

    Parameters
    ----------
    z
        Code, shape ``(n, d)``.
    sigma
        Standard deviation in units of the code, or what computes it from the squared distances;
        no gradient flows through it.

    Returns
    -------
    Tensor of shape ``(n, n)``.
    """
    squared = squared_distances(z.detach())
    if callable(sigma):
        sigma = sigma(squared)
    return _GaussianSum.apply(z, squared, 2.0 * sigma**2, 1, 1.0)


def multiscale_kernel(
    z: Tensor, kernel_num: int = 5, kernel_mul: float = 2.0, fix_sigma: float | None = None
) -> Tensor:
    r"""Sum of Gaussian kernels :math:`\sum_{u=0}^{K-1} \exp(-\|z_i - z_j\|^2 / h_0 m^u)`.

    Parameters
    ----------
    z
        Code, shape ``(n, d)``.
    kernel_num
        Number of kernels :math:`K`.
    kernel_mul
        Ratio :math:`m` of one bandwidth to the next.
    fix_sigma
        The smallest bandwidth :math:`h_0` in squared units of the code; by default
        :func:`base_bandwidth`, through which no gradient flows.

    Returns
    -------
    Tensor of shape ``(n, n)``.
    """
    squared = squared_distances(z.detach())
    base = base_bandwidth(squared, kernel_num, kernel_mul) if fix_sigma is None else fix_sigma
    widest = base * kernel_mul ** (kernel_num - 1)
    return _GaussianSum.apply(z, squared, widest, kernel_num, kernel_mul)


class _GaussianSum(torch.autograd.Function):
    """Sum over u of exp(-squared / widest) ** (mul ** u), with its gradient in closed form.

    One exponential serves all scales, and one matrix is kept for the gradient; through autograd's
    own graph every scale would keep one.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, squared: Tensor, widest: float | Tensor, num: int, mul: float
    ) -> Tensor:
        term = squared.div_(-widest).exp_()
        kernel = slope = term
        if num > 1:
            kernel, slope = term.clone(), term.clone()
        for u in range(1, num):
            term.pow_(mul)
            kernel.add_(term)
            slope.add_(term, alpha=mul**u)
        ctx.save_for_backward(z, slope)
        ctx.widest = widest
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, slope = ctx.saved_tensors
        of_code, z = z.dtype, z.to(slope.dtype)
        pull = gradient * slope
        total = (pull.sum(0) + pull.sum(1)).unsqueeze(1)
        slope_of_z = (pull @ z + pull.T @ z - total * z) * (2.0 / ctx.widest)
        return slope_of_z.to(of_code), None, None, None, None


def or_one(scale: Tensor) -> Tensor:
    """The scale, or 1 where all points are the same and there is none."""
    return torch.where(scale > _TINY, scale, torch.ones_like(scale))
