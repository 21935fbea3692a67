from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scdisentangle._errors import InputError, check_choice, check_count

from ._base import Codes, Objective, differentiable_zero
from ._kernels import gaussian_kernel, or_one
from ._soft_clusters import soft_clusters

_ESTIMATORS = ("biased", "unbiased")


def hsic(kernel_x: Tensor, kernel_y: Tensor, estimator: str = "biased") -> Tensor:
    r"""Hilbert-Schmidt independence criterion of two kernel matrices of the same cells.

    .. math::

        \mathrm{HSIC}_b = \frac{1}{n^2} \mathrm{tr}(KHLH), \qquad
        \mathrm{HSIC}_u = \frac{1}{n(n-3)} \left[ \mathrm{tr}(\tilde K \tilde L)
            + \frac{1^\top \tilde K 1 \, 1^\top \tilde L 1}{(n-1)(n-2)}
            - \frac{2}{n-2} 1^\top \tilde K \tilde L 1 \right]

    with :math:`H = I - 1 1^\top / n`, and the tilde for a diagonal set to 0. No matrix product is
    formed: the cost is of order n².

    Parameters
    ----------
    kernel_x, kernel_y
        Symmetric, shape ``(n, n)``; see :func:`gaussian_kernel`.
    estimator
        ``"biased"`` (never negative) or ``"unbiased"`` (needs n > 3, can be negative).

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If there are too few cells for the unbiased estimate, or the estimator is not known.

    Examples
    --------
    The kernel "same batch" of two batches of two cells with itself, (1/n²) tr(KHKH):

    >>> import torch
    >>> from scdisentangle.objectives.hsic import hsic
    >>> same_batch = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    >>> float(hsic(same_batch, same_batch))
    0.25

    References
    ----------
    Gretton et al. (2005), Measuring statistical dependence with Hilbert-Schmidt norms, ALT; Song et
    al. (2012), Feature selection via dependence maximization, JMLR 13:1393 (unbiased).
    """
    check_choice("estimator", estimator, _ESTIMATORS)
    n = len(kernel_x)
    if estimator == "biased":
        rows = kernel_y.mean(1)
        centred = kernel_y - rows - rows.unsqueeze(1) + rows.mean()
        return (kernel_x * centred).mean()
    if n < 4:
        raise InputError(f"The unbiased HSIC needs at least 4 cells, got {n}.")
    diagonal = torch.eye(n, dtype=torch.bool, device=kernel_x.device)
    kernel_x, kernel_y = kernel_x.masked_fill(diagonal, 0.0), kernel_y.masked_fill(diagonal, 0.0)
    rows_x, rows_y = kernel_x.sum(1), kernel_y.sum(1)
    return (
        (kernel_x * kernel_y).sum()
        + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
        - 2.0 / (n - 2) * (rows_x * rows_y).sum()
    ) / (n * (n - 3))


def cka(kernel_x: Tensor, kernel_y: Tensor, estimator: str = "biased") -> Tensor:
    r"""Centred kernel alignment: HSIC on the scale of a correlation.

    .. math::

        \mathrm{CKA} = \frac{\mathrm{HSIC}(K, L)}
            {\sqrt{\mathrm{HSIC}(K, K) \, \mathrm{HSIC}(L, L)}}

    Parameters
    ----------
    kernel_x, kernel_y
        Symmetric, shape ``(n, n)``.
    estimator
        As in :func:`hsic`.

    Returns
    -------
    Scalar, at most 1; 0 where one of the two does not vary.

    Examples
    --------
    >>> import torch
    >>> from scdisentangle.objectives.hsic import cka
    >>> same_batch = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    >>> float(cka(same_batch, 7 * same_batch))
    1.0

    References
    ----------
    Cortes et al. (2012), Algorithms for learning kernels based on centered alignment, JMLR 13:795;
    Kornblith et al. (2019), Similarity of neural network representations revisited, ICML.
    """
    variances = hsic(kernel_x, kernel_x, estimator) * hsic(kernel_y, kernel_y, estimator)
    return hsic(kernel_x, kernel_y, estimator) * variances.clamp_min(1e-10).rsqrt()


def weighted_hsic(kernel_x: Tensor, kernel_y: Tensor, weights: Tensor) -> Tensor:
    r"""Biased HSIC of weighted cells, for several sets of weights at once.

    .. math::

        \sum_{ij} w_i w_j K_{ij} L_{ij} + (w^\top K w)(w^\top L w)
            - 2 \sum_i w_i (Kw)_i (Lw)_i

    Equal weights give :func:`hsic`.

    Parameters
    ----------
    kernel_x, kernel_y
        Symmetric, shape ``(n, n)``.
    weights
        Shape ``(n, n_sets)``; columns sum to 1.

    Returns
    -------
    Tensor of shape ``(n_sets,)``.
    """
    rows_x, rows_y = kernel_x @ weights, kernel_y @ weights
    joint = (weights * ((kernel_x * kernel_y) @ weights)).sum(0)
    means = (weights * rows_x).sum(0) * (weights * rows_y).sum(0)
    return joint + means - 2.0 * (weights * rows_x * rows_y).sum(0)


class _Dependence(Objective):
    """Of z_bio and something else, by a measure of two kernels that has two estimators."""

    def __init__(self, *, estimator: str = "biased", **sizes: int) -> None:
        super().__init__(**sizes)
        check_choice("estimator", estimator, _ESTIMATORS)
        self.estimator = estimator

    def _dependence(self, measure: Callable[..., Tensor], z_bio: Tensor, other: Tensor) -> Tensor:
        if self.estimator == "unbiased" and len(z_bio) < 4:
            return differentiable_zero(z_bio)
        return measure(gaussian_kernel(z_bio), other, self.estimator)


class CodeHSIC(_Dependence):
    r"""Independence of the two codes: :math:`\mathrm{HSIC}(z_\text{bio}, z_\text{nio})`.

    Gaussian kernels with the median heuristic, so that neither the sizes nor the dimensions of the
    codes matter. HSIC is 0 if and only if the codes are independent.

    Parameters
    ----------
    estimator
        ``"biased"`` or ``"unbiased"``.
    **sizes
        As in :class:`Objective`.
    """

    def forward(self, codes: Codes) -> Tensor:
        """HSIC of the two codes; 0 where the unbiased estimate has fewer than 4 cells."""
        return self._dependence(hsic, codes.z_bio, gaussian_kernel(codes.z_nio))


class CodeCKA(_Dependence):
    r"""Independence of the two codes on the scale of a correlation, :func:`cka`.

    Lies between 0 and 1 in the biased form, so that its weight means the same for every data set.

    Parameters
    ----------
    estimator
        ``"biased"`` or ``"unbiased"``.
    **sizes
        As in :class:`Objective`.
    """

    def forward(self, codes: Codes) -> Tensor:
        """CKA of the two codes; 0 where the unbiased estimate has fewer than 4 cells."""
        return self._dependence(cka, codes.z_bio, gaussian_kernel(codes.z_nio))


class BatchHSIC(_Dependence):
    r"""Independence of z_bio from the batch over the whole minibatch.

    :math:`\mathrm{HSIC}(z_\text{bio}, b)` with a Gaussian kernel (median heuristic) on z_bio and
    the kernel :math:`1[b_i = b_j]` on the batch, to which every Gaussian kernel on the one-hot
    batch is equivalent up to a factor. For batches of similar composition; where cell types differ
    between batches use ``"local_batch_hsic"``, since this one merges types.

    Parameters
    ----------
    estimator
        ``"biased"`` or ``"unbiased"``.
    **sizes
        As in :class:`Objective`.

    References
    ----------
    Lopez et al. (2018), Information constraints on auto-encoding variational Bayes, NeurIPS.
    """

    def forward(self, codes: Codes) -> Tensor:
        """HSIC of z_bio and the batch; 0 where the unbiased estimate has fewer than 4 cells."""
        return self._dependence(hsic, codes.z_bio, _same_batch(codes.batch, codes.z_bio))


class LocalBatchHSIC(Objective):
    r"""Independence of z_bio from the batch like with like, within soft clusters of z_bio.

    .. math::

        L = \sum_c \pi_c \, \mathrm{HSIC}(z_\text{bio}, b \mid c), \qquad
        \pi_c = \frac{1}{N} \sum_i r_{ic}

    with cells weighted by their memberships :math:`r_{ic}` in cluster c, which are constants for
    the gradient, and one Gaussian kernel whose :math:`2\sigma^2` is the mean squared distance
    within clusters. A cluster of a single batch contributes 0, so that batches of different
    composition are not forced together.

    Parameters
    ----------
    n_clusters
        Soft clusters per minibatch.
    **sizes
        As in :class:`Objective`.
    """

    def __init__(self, *, n_clusters: int = 10, **sizes: int) -> None:
        super().__init__(**sizes)
        check_count(n_clusters=n_clusters)
        self.n_clusters = n_clusters

    def forward(self, codes: Codes) -> Tensor:
        """Mean HSIC within clusters, weighted by their share of the cells."""
        clusters = soft_clusters(codes.z_bio, self.n_clusters)
        shares = clusters.mean(0)
        weights = clusters / clusters.sum(0).clamp_min(1e-12)

        def sigma_within_clusters(squared: Tensor) -> Tensor:
            mean = (weights * (squared @ weights)).sum(0)
            return or_one((shares * mean).sum() / 2.0).sqrt()

        kernel = gaussian_kernel(codes.z_bio, sigma_within_clusters)
        same_batch = _same_batch(codes.batch, codes.z_bio)
        return (shares * weighted_hsic(kernel, same_batch, weights)).sum()


def _same_batch(batch: Tensor, like: Tensor) -> Tensor:
    return (batch.unsqueeze(1) == batch).to(like.dtype)
