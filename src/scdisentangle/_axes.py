"""How long the axes of ``z_bio`` are: by how much cells of a batch differ along them."""

from __future__ import annotations

import torch
from torch import Tensor

from ._networks import AddedLater

POWER = 0.25
"""Of the variance along an axis, what its length is multiplied by."""
SHORTEST = 1e-4
"""Least variance of an axis, as a share of the largest."""


class Axes(AddedLater):
    r"""Makes the long axes of ``z_bio`` longer and the short ones shorter.

    The contrast tells every cell from every other, and so spreads them over all directions alike,
    also those in which like cells differ by chance. With :math:`S` the covariance of codes within
    batches,

    .. math::

        z' = c\, S^{1/4} z,

    where :math:`c` leaves the sum of the variances as it is. What is in a code stays in it: the
    decoder reads :math:`z = S^{-1/4} z' / c`.

    Parameters
    ----------
    n_latent
        Dimensions of ``z_bio``.

    References
    ----------
    Wang and Isola (2020), Understanding contrastive representation learning through alignment and
    uniformity on the hypersphere, ICML, for why cells are spread.
    """

    def __init__(self, n_latent: int):
        super().__init__()
        self.of_reference = False
        self.register_buffer("root", torch.eye(n_latent))
        self.register_buffer("inverse", torch.eye(n_latent))

    def forward(self, z: Tensor) -> Tensor:
        """Codes along the axes as they are found, of the shape of ``z``."""
        return z @ self.root

    def undo(self, z: Tensor) -> Tensor:
        """Codes as they were before :meth:`forward`, of the shape of ``z``."""
        return z @ self.inverse

    def reset(self) -> None:
        """Leave codes as they are; those of a query stay as its reference has them."""
        if not self.of_reference:
            for matrix in self.buffers():
                matrix.copy_(torch.eye(len(matrix)))

    @torch.no_grad()
    def fit(self, z: Tensor, batch: Tensor) -> None:
        """Find the axes from codes, ``(n_cells, n_latent)``, and the batch of each cell."""
        if self.of_reference:
            return
        within, batch = z.cpu().double().clone(), batch.cpu()  # some devices have no doubles
        for b in batch.unique():
            within[batch == b] -= within[batch == b].mean(dim=0)
        variances, axes = torch.linalg.eigh(within.T @ within / len(within))
        if not variances[-1] > 0:
            return
        lengths = variances.clamp(min=SHORTEST * variances[-1]) ** POWER
        lengths *= (variances.sum() / (lengths.square() * variances).sum()).sqrt()
        self.root.copy_(axes * lengths @ axes.T)
        self.inverse.copy_(axes / lengths @ axes.T)
