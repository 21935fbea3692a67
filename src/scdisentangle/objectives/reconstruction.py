from __future__ import annotations

from torch import Tensor


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
    return (x_hat - x).square().sum(-1)
