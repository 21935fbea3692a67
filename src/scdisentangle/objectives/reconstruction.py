from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss

SMALLEST = 1e-8
"""Mean squared error of a value, below which its logarithm falls no further."""


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    r"""Squared error of each cell's reconstruction, :math:`\|\hat x_i - x_i\|^2`.

    Its mean over cells is the reconstruction loss
    :math:`\frac{1}{N} \sum_i \|D(E(x_i), b_i) - x_i\|^2`: summed over genes, averaged over cells,
    so that its size grows with the number of genes. For values that are continuous or already
    normalised; counts are better served by a count likelihood.

    Parameters
    ----------
    x_hat
        Reconstruction, shape ``(n_cells, n_genes)``.
    x
        Target, without input noise, shape ``(n_cells, n_genes)``.

    Returns
    -------
    Tensor of shape ``(n_cells,)``.

    Examples
    --------
    >>> import torch
    >>> from scdisentangle.objectives import squared_error
    >>> squared_error(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([3., 3.])
    """
    return mse_loss(x_hat, x, reduction="none").sum(-1)


def calibrated(squared_errors: Tensor, n_genes: int) -> Tensor:
    r"""Squared error on a scale that does not depend on how well the data can be told.

    .. math::

        \frac{G}{2} \log \left( \frac{1}{N G} \sum_i \|\hat x_i - x_i\|^2 \right)

    which is, but for a constant, the negative log-likelihood of a cell under a normal distribution
    whose variance is the best one for these cells. Its gradient is that of the squared error over
    twice the mean error of a value: beside it, a weight on another term means the same in deep and
    in shallow data.

    Parameters
    ----------
    squared_errors
        :func:`squared_error` of each cell, shape ``(n_cells,)``.
    n_genes
        Number of genes :math:`G` that they are sums over.

    Returns
    -------
    Scalar in nats; negative where the mean error is below 1.

    References
    ----------
    Rybkin, Daniilidis and Levine (2021), Simple and effective VAE training with calibrated
    decoders, ICML.

    Examples
    --------
    >>> import torch
    >>> from scdisentangle.objectives import calibrated
    >>> calibrated(torch.tensor([2.0, 4.0]), n_genes=3)
    tensor(0.)
    """
    return 0.5 * n_genes * (squared_errors.mean() / n_genes).clamp(min=SMALLEST).log()
