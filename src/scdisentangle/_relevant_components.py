"""The directions of expression that matter: cells differ along them, and matched cells do not."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.sparse.csgraph import laplacian
from sklearn.decomposition import PCA
from torch import Tensor, nn

from ._products import linear
from .objectives.contrastive import mutual_nearest_neighbours

CELLS_TO_COMPARE = 5_000
"""Cells that components are found from; the similarity of all pairs of them is in memory."""
N_NEIGHBORS = 10
N_ROUNDS = 2
"""Times that cells are matched: first by their principal components, then by what these found."""
RIDGE = 0.05
"""Share of the mean variance within batches that is added to what matched cells differ by."""


class RelevantComponents(nn.Module):
    r"""Linear components of expression, by how much cells differ beyond what a batch may do.

    With :math:`S` the covariance of cells within batches, and :math:`N` that of matched cells,
    pairs of mutual nearest neighbours in two batches, the components :math:`w` are those of

    .. math::

        S w = \lambda \, (N + r I) \, w, \qquad w^\top (N + r I) w = 1,

    the largest :math:`\lambda` first. Cells of one type differ by the batch and by chance, which
    is :math:`N`: along every component alike. A component where cells of a batch differ no more
    than that has :math:`\lambda \le 1`, and the batch's own directions, where matched cells differ
    most, become short. Nothing is projected out.

    Until they are found, components are random directions.

    Parameters
    ----------
    n_input
        Number of genes.
    n_components
        Number of components, at most one less than the cells, and no more than the genes; the
        values of further ones are 0.

    References
    ----------
    Bar-Hillel et al. (2003), Learning distance functions using equivalence relations, ICML, for
    components that are relevant because like cells agree in them; Haghverdi et al. (2018), Nature
    Biotechnology 36:421, for mutual nearest neighbours as like cells.
    """

    def __init__(self, n_input: int, n_components: int):
        super().__init__()
        self.register_buffer("found", torch.tensor(False))
        self.register_buffer("center", torch.zeros(n_input))
        self.register_buffer("weight", torch.randn(n_components, n_input) / n_input**0.5)

    def centered(self, x: Tensor) -> Tensor:
        """Expression less its mean over cells: 0 is then a gene of which nothing is known."""
        return x - self.center

    def forward(self, centered: Tensor) -> Tensor:
        """Components, ``(n_cells, n_components)``, of centred expression."""
        return linear(centered, self.weight)

    def fit(self, x: Tensor, batch: Tensor) -> None:
        """Find the components.

        Parameters
        ----------
        x
            Normalised expression, ``(n_cells, n_genes)``.
        batch
            Batch of each cell, ``(n_cells,)``.
        """
        known = x.isfinite().all(dim=1)  # of the others, the first step of training tells
        x, batch = x[known], batch[known]
        values = x.cpu().numpy()
        found = relevant_components(values, batch.cpu().numpy(), len(self.weight))
        self.center.copy_(torch.as_tensor(values.mean(axis=0)))
        self.weight.zero_()
        self.weight[: len(found)] = torch.as_tensor(found).to(self.weight)
        length = self(self.centered(x)).norm(dim=1).median()
        self.weight *= len(self.weight) ** 0.5 / length.clamp(min=1e-6)
        self.found.fill_(True)


def relevant_components(x: np.ndarray, batch: np.ndarray, n_components: int) -> np.ndarray:
    r"""Components :math:`w` as rows, ``(n_found, n_genes)``, the most relevant first.

    Parameters
    ----------
    x
        Normalised expression, ``(n_cells, n_genes)``.
    batch
        Batch of each cell, ``(n_cells,)``.
    n_components
        Number of components at most.
    """
    n_found = min(n_components, len(x) - 1, x.shape[1])
    if n_found < 1:
        return np.zeros((0, x.shape[1]))
    principal = PCA(n_found, random_state=0).fit(x)
    z = principal.transform(x).astype(np.float64)
    within = z - _means_of_batch(z, batch)
    spread = within.T @ within / len(z)
    ridge = (RIDGE * np.trace(spread) / n_found + 1e-12) * np.eye(n_found)
    compared = within
    for _ in range(N_ROUNDS):
        _, w = eigh(spread, between_matched(z, matched_cells(compared, batch)) + ridge)
        w = w[:, ::-1]
        compared = z @ w
    return w.T @ principal.components_


def matched_cells(z: np.ndarray, batch: np.ndarray) -> csr_array:
    """Graph of the mutual nearest neighbours in two batches, ``(n_cells, n_cells)``."""
    codes = torch.as_tensor(z, dtype=torch.float32)
    near = mutual_nearest_neighbours(codes, torch.as_tensor(batch), N_NEIGHBORS)
    return csr_array(near.numpy(), dtype=np.float64)


def between_matched(z: np.ndarray, matched: csr_array) -> np.ndarray:
    """Covariance of two matched cells around their mean, ``(n_components, n_components)``.

    By the graph's Laplacian, because pairs are many where batches are.
    """
    return z.T @ (laplacian(matched) @ z) / max(matched.nnz, 1)


def _means_of_batch(z: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """For each cell the mean over its batch, of the shape of ``z``."""
    _, of_cell, n = np.unique(batch, return_inverse=True, return_counts=True)
    sums = np.zeros((len(n), z.shape[1]))
    np.add.at(sums, of_cell, z)
    return (sums / n[:, None])[of_cell]
