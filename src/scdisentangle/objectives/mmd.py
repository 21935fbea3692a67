from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scdisentangle._errors import InputError, check_choice, check_count, check_positive

from ._base import (
    Codes,
    Objective,
    differentiable_zero,
    one_hot,
)
from ._kernels import gaussian_kernel, multiscale_kernel
from ._soft_clusters import soft_clusters


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: str = "multiscale",
    *,
    sigma: float = 1.0,
    kernel_num: int = 5,
    kernel_mul: float = 2.0,
    fix_sigma: float | None = None,
    estimator: str = "biased",
) -> Tensor:
    r"""Squared maximum mean discrepancy between two samples.

    .. math::

        \mathrm{MMD}^2 = E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y)

    The biased estimate averages over all pairs, is never negative, and is 0 for equal samples. The
    unbiased one leaves out the pairs of a point with itself and can be negative.

    Parameters
    ----------
    x
        Sample of shape ``(n, d)``.
    y
        Sample of shape ``(m, d)``.
    kernel
        ``"gaussian"``, :math:`\exp(-\|x - y\|^2 / 2 \sigma^2)`, or ``"multiscale"``,
        :math:`\sum_{u=0}^{K-1} \exp(-\|x - y\|^2 / h_0 m^u)` with
        :math:`h_0 = \bar d / m^{\lfloor K/2 \rfloor}`, where :math:`\bar d` is the mean squared
        distance between distinct points of both samples together. No gradient flows through it.
    sigma
        Standard deviation of the single Gaussian, in units of the samples.
    kernel_num
        Number of scales :math:`K`.
    kernel_mul
        Ratio :math:`m` of neighbouring scales.
    fix_sigma
        Takes the place of :math:`h_0`, in squared units of the samples.
    estimator
        ``"biased"`` or ``"unbiased"``; the latter needs two points in each sample.

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If the samples differ in dimension, if one is too small, or if an option is not known.

    Examples
    --------
    >>> import torch
    >>> from scdisentangle.objectives.mmd import mmd2
    >>> x = torch.randn(50, 3)
    >>> abs(float(mmd2(x, x))) < 1e-5
    True
    >>> bool(mmd2(x, x + 5) > 1)
    True

    References
    ----------
    Gretton et al. (2012), A kernel two-sample test, JMLR 13:723. Multi-scale form: Long et al.
    (2015), Learning transferable features with deep adaptation networks, ICML.
    """
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"MMD compares samples of one space, but x has {x.shape[1]} dimensions and y "
            f"{y.shape[1]}."
        )
    check_choice("kernel", kernel, ("multiscale", "gaussian"))
    check_choice("estimator", estimator, ("biased", "unbiased"))
    fewest = 1 if estimator == "biased" else 2
    if min(len(x), len(y)) < fewest:
        raise InputError(
            f"The {estimator} MMD needs at least {fewest} point(s) in each sample, got "
            f"{len(x)} and {len(y)}."
        )
    pooled = torch.cat([x, y])
    similarity = _similarity(pooled, kernel, sigma, kernel_num, kernel_mul, fix_sigma)
    weights = pooled.new_zeros(len(pooled), 2)
    weights[: len(x), 0] = 1.0 / len(x)
    weights[len(x) :, 1] = 1.0 / len(y)
    return pairwise_mmd2(similarity, weights, estimator)[0, 1]


def pairwise_mmd2(kernel: Tensor, weights: Tensor, estimator: str = "biased") -> Tensor:
    r"""Squared MMD between all pairs of weighted groups of the same points.

    With weights :math:`w` of a group summing to 1, its mean similarity to itself is
    :math:`w^\top K w`, or without the pairs of a point with itself
    :math:`(w^\top K w - \sum_i w_i^2 K_{ii}) / (1 - \sum_i w_i^2)`.

    Parameters
    ----------
    kernel
        Kernel matrix, shape ``(n, n)``.
    weights
        Shape ``(..., n, n_groups)``; columns sum to 1. A column of zeros is an empty group, whose
        row and column of the result have no meaning.
    estimator
        ``"biased"`` or ``"unbiased"``.

    Returns
    -------
    Tensor of shape ``(..., n_groups, n_groups)``.
    """
    across = weights.mT @ (kernel @ weights)
    within = across.diagonal(dim1=-2, dim2=-1)
    if estimator == "unbiased":
        squares = weights.square()
        own = (squares * kernel.diagonal().unsqueeze(-1)).sum(-2)
        within = (within - own) / (1.0 - squares.sum(-2)).clamp_min(1e-6)
    return within.unsqueeze(-1) + within.unsqueeze(-2) - 2.0 * across


def _similarity(
    z: Tensor,
    kernel: str,
    sigma: float,
    kernel_num: int,
    kernel_mul: float,
    fix_sigma: float | None,
) -> Tensor:
    if kernel == "gaussian":
        return gaussian_kernel(z, sigma)
    return multiscale_kernel(z, kernel_num, kernel_mul, fix_sigma)


class _KernelObjective(Objective):
    """Keeps the options of the kernel, the same for every use of MMD."""

    def __init__(
        self,
        *,
        normalize: bool,
        kernel: str = "multiscale",
        sigma: float = 1.0,
        kernel_num: int = 5,
        kernel_mul: float = 2.0,
        fix_sigma: float | None = None,
        estimator: str = "biased",
        **sizes: int,
    ) -> None:
        super().__init__(**sizes)
        check_choice("kernel", kernel, ("multiscale", "gaussian"))
        check_choice("estimator", estimator, ("biased", "unbiased"))
        check_positive(sigma=sigma, kernel_mul=kernel_mul)
        check_count(kernel_num=kernel_num)
        if fix_sigma is not None:
            check_positive(fix_sigma=fix_sigma)
        self.normalize = normalize
        self.estimator = estimator
        self.kernel: dict[str, Any] = {
            "kernel": kernel,
            "sigma": sigma,
            "kernel_num": kernel_num,
            "kernel_mul": kernel_mul,
            "fix_sigma": fix_sigma,
        }

    def scaled(self, z: Tensor) -> Tensor:
        """The code as it enters the kernel, L2-normalised if asked for."""
        return functional.normalize(z, dim=1, eps=1e-6) if self.normalize else z

    def similarity(self, z: Tensor) -> Tensor:
        """Kernel matrix of the code, shape ``(n_cells, n_cells)``."""
        return _similarity(self.scaled(z), **self.kernel)


class CodeMMD(_KernelObjective):
    r"""Pushes the two codes apart: :math:`-\mathrm{MMD}^2(z_\text{bio}, z_\text{nio})`.

    The term of the method as first written. It rewards codes that lie in different places, which
    does not make them independent of one another; for independence use ``"hsic"`` or
    ``"mutual_information"``.

    Parameters
    ----------
    normalize
        L2-normalise the codes first, which bounds the term for a fixed bandwidth too.
    kernel, sigma, kernel_num, kernel_mul, fix_sigma, estimator
        As in :func:`mmd2`.
    **sizes
        As in :class:`Objective`; ``n_latent_bio`` and ``n_latent_nio`` must be equal.

    Raises
    ------
    InputError
        If the two codes have different dimensions.
    """

    def __init__(self, *, normalize: bool = True, **options: Any) -> None:
        super().__init__(normalize=normalize, **options)
        if self.n_latent_bio != self.n_latent_nio:
            raise InputError(
                "The objective 'mmd' compares z_bio with z_nio in one space, but "
                f"n_latent_bio={self.n_latent_bio} and n_latent_nio={self.n_latent_nio}. Set them "
                "equal, or take 'hsic' or 'mutual_information', which allow different sizes."
            )

    def forward(self, codes: Codes) -> Tensor:
        """-MMD² of the two codes; 0 where the unbiased estimate has a single cell."""
        if self.estimator == "unbiased" and len(codes.z_bio) < 2:
            return differentiable_zero(codes.z_bio)
        return -mmd2(
            self.scaled(codes.z_bio),
            self.scaled(codes.z_nio),
            estimator=self.estimator,
            **self.kernel,
        )


class BatchMMD(_KernelObjective):
    r"""Aligns the batches: mean of :math:`\mathrm{MMD}^2` of z_bio over pairs of batches.

    Bandwidths are those of the whole minibatch. For batches of similar composition; where cell
    types differ between batches use ``"local_batch_mmd"``, since this one merges types.

    Parameters
    ----------
    normalize
        L2-normalise z_bio first.
    min_cells
        Batches with fewer cells in the minibatch, or one, are left out.
    kernel, sigma, kernel_num, kernel_mul, fix_sigma, estimator
        As in :func:`mmd2`.
    **sizes
        As in :class:`Objective`.
    """

    def __init__(self, *, normalize: bool = False, min_cells: int = 2, **options: Any) -> None:
        super().__init__(normalize=normalize, **options)
        check_count(min_cells=min_cells)
        self.min_cells = max(min_cells, 2)

    def forward(self, codes: Codes) -> Tensor:
        """Mean MMD² over pairs of batches; 0 where the minibatch has no pair to compare."""
        members = one_hot(codes.batch, self.n_batch, codes.z_bio)
        sizes = members.sum(0)
        enough = (sizes >= self.min_cells).to(members)
        pairs = torch.outer(enough, enough).triu(1)
        table = pairwise_mmd2(
            self.similarity(codes.z_bio), members / sizes.clamp_min(1.0), self.estimator
        )
        return (pairs * table).sum() / pairs.sum().clamp_min(1.0)


class LocalBatchMMD(_KernelObjective):
    r"""Aligns the batches like with like: MMD between batches within soft clusters of z_bio.

    .. math::

        L = \frac{\sum_c \sum_{b < b'} m_{cbb'}
            \mathrm{MMD}^2(z_\text{bio} \mid c, b;\; z_\text{bio} \mid c, b')}
            {\sum_c \sum_{b < b'} m_{cbb'}}, \qquad
        m_{cbb'} = \frac{n_{cb} n_{cb'}}{n_{cb} + n_{cb'}}

    where :math:`n_{cb}` is the number of cells of batch b in cluster c, counted by soft membership:
    a cluster that one batch lacks asks nothing of the other, so that batches of different
    composition are not forced together. Memberships are constants for the gradient.

    Parameters
    ----------
    n_clusters
        Soft clusters per minibatch.
    normalize
        L2-normalise z_bio first.
    min_cells
        Pairs in which a batch has fewer cells in the cluster, or less than two, are left out.
    kernel, sigma, kernel_num, kernel_mul, fix_sigma, estimator
        As in :func:`mmd2`.
    **sizes
        As in :class:`Objective`.
    """

    def __init__(
        self,
        *,
        n_clusters: int = 10,
        normalize: bool = False,
        min_cells: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(normalize=normalize, **options)
        check_count(n_clusters=n_clusters, min_cells=min_cells)
        self.n_clusters = n_clusters
        self.min_cells = max(min_cells, 2)

    def forward(self, codes: Codes) -> Tensor:
        """Weighted mean MMD² within clusters; 0 where no cluster has two batches."""
        clusters = soft_clusters(codes.z_bio, self.n_clusters)
        members = one_hot(codes.batch, self.n_batch, codes.z_bio)
        parts = clusters.T.unsqueeze(-1) * members  # (n_clusters, n_cells, n_batch)
        sizes = parts.sum(1)
        sizes = sizes * (sizes >= self.min_cells)
        product = sizes.unsqueeze(-1) * sizes.unsqueeze(-2)
        total = (sizes.unsqueeze(-1) + sizes.unsqueeze(-2)).clamp_min(1.0)
        pairs = (product / total).triu(1)
        weights = parts / parts.sum(1, keepdim=True).clamp_min(1e-12)
        table = pairwise_mmd2(self.similarity(codes.z_bio), weights, self.estimator)
        return (pairs * table).sum() / pairs.sum().clamp_min(1e-12)
