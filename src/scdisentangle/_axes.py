"""How long the axes of ``z_bio`` are: by how much cells of a batch differ along them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ._added_later import AddedLater

SHORTEST = 1e-4
"""Least variance of an axis, as a share of the largest."""


class Axes(AddedLater):
    r"""Makes the long axes of ``z_bio`` longer and the short ones shorter.

    The contrast tells every cell from every other, and so spreads them over all directions alike,
    also those in which like cells differ by chance. With :math:`S` the covariance of codes within
    batches,

    .. math::

        z' = c\, S^p z,

    where :math:`c` leaves the sum of the variances as it is. What is in a code stays in it: the
    decoder reads :math:`z = S^{-p} z' / c`.

    Parameters
    ----------
    n_latent
        Dimensions of ``z_bio``.
    power
        The power :math:`p`.

    References
    ----------
    Wang and Isola (2020), Understanding contrastive representation learning through alignment and
    uniformity on the hypersphere, ICML, for why cells are spread.
    """

    def __init__(self, n_latent: int, power: float = 0.25):
        super().__init__()
        self.power = power
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
        values = z.cpu().numpy().astype(np.float64)
        of_batch = pd.DataFrame(values).groupby(batch.cpu().numpy())
        within = values - of_batch.transform("mean").to_numpy()
        variances, axes = np.linalg.eigh(within.T @ within / len(within))
        if not variances[-1] > 0:
            return
        lengths = np.maximum(variances, SHORTEST * variances[-1]) ** self.power
        lengths *= (variances.sum() / (lengths**2 @ variances)) ** 0.5
        self.root.copy_(torch.as_tensor(axes * lengths @ axes.T))
        self.inverse.copy_(torch.as_tensor(axes / lengths @ axes.T))
