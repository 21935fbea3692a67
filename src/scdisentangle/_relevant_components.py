"""The directions of expression that matter: cells differ along them, and matched cells do not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.linalg import eigh
from scipy.sparse import block_diag, csr_array
from scipy.sparse.csgraph import laplacian
from sklearn.decomposition import PCA
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import normalize
from torch import Tensor, nn

from ._products import linear
from .objectives.contrastive import mutual_nearest_neighbours

CELLS_TO_COMPARE = 5_000
"""Cells that components are found from; the similarity of all pairs of them is in memory."""
N_NEIGHBORS = 10
N_ROUNDS = 3
"""Times that cells are matched: first by their principal components, then by what these found."""
N_COMPARED = (50, 30)
"""Components by which cells are matched: principal ones, and found ones."""
RIDGE = 0.05
"""Share of the mean variance within batches that is added to what matched cells differ by."""
SYSTEMATIC = 3.0
"""Weight of what matched cells differ by together with their neighbours, beside their own."""
TRUST = 0.3
"""Squared distance, over the median, at which a match counts a quarter."""
POWER = 0.25
"""Power of its eigenvalue that a component is longer by."""


class RelevantComponents(nn.Module):
    r"""Linear components of expression, by how much cells differ beyond what a batch may do.

    With :math:`S` the covariance of cells within batches, and :math:`N` that of matched cells,
    pairs of mutual nearest neighbours in two batches, the components :math:`w` are those of

    .. math::

        S w = \lambda \, (D + r I) \, w, \qquad w^\top (D + r I) w = 1,

    the largest :math:`\lambda` first, with :math:`D` that of :func:`shrunk` from
    :math:`N + 3 B`, and each times :math:`\lambda^{1/4}`. Cells of one type differ by the batch and
    by chance, which is :math:`N`: along every component alike. :math:`B` is the same of cells that
    are averaged with ten like ones of their batch, which leaves what the batch does. A component
    where cells of a batch differ no more than that has :math:`\lambda \le 1`, and the batch's own
    directions, where matched cells differ most, become short. Nothing is projected out.

    Matched cells are far fewer than cells. A covariance of few of them has no rank along most
    directions, and there chance alone would have the largest :math:`\lambda`: hence its shrinkage,
    and a length by :math:`\lambda`, with which the many components of chance weigh less.

    A type that a batch lacks is matched with another, and the direction between the two would be
    taken for the batch's. Averaged cells find a false match less often, and one that is far apart
    counts little.

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
    Biotechnology 36:421, for mutual nearest neighbours as like cells; Geman and McClure (1987),
    Bulletin of the International Statistical Institute 52:5, for the weights of matches.
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
        if not known.any():
            return
        x, batch = x[known], batch[known]
        values = x.cpu().numpy()
        found, relevance = relevant_components(values, batch.cpu().numpy(), len(self.weight))
        found *= relevance[:, None] ** POWER
        self.center.copy_(torch.as_tensor(values.mean(axis=0)))
        self.weight.zero_()
        self.weight[: len(found)] = torch.as_tensor(found).to(self.weight)
        length = self(self.centered(x)).norm(dim=1).median()
        self.weight *= len(self.weight) ** 0.5 / length.clamp(min=1e-6)
        self.found.fill_(True)


def relevant_components(
    x: np.ndarray, batch: np.ndarray, n_components: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""Components :math:`w` as rows, ``(n_found, n_genes)``, the most relevant first.

    Beside them their :math:`\lambda`, ``(n_found,)``.

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
        return np.zeros((0, x.shape[1])), np.zeros(0)
    principal = PCA(n_found, random_state=0).fit(x)
    z = principal.transform(x).astype(np.float64)
    within = z - pd.DataFrame(z).groupby(batch).transform("mean").to_numpy()
    spread = within.T @ within / len(z)
    ridge = (RIDGE * np.trace(spread) / n_found + 1e-12) * np.eye(n_found)
    compared = within[:, : N_COMPARED[0]]
    for _ in range(N_ROUNDS):
        average = average_of_batch(compared, batch)
        averaged = average @ compared
        matched = trusted(matched_cells(averaged, batch), averaged)
        differ = between_matched(z, matched) + SYSTEMATIC * between_matched(average @ z, matched)
        relevance, w = eigh(spread, shrunk(differ, matched) + ridge)
        w = w[:, ::-1]
        compared = (z @ w)[:, : N_COMPARED[1]]
    return w.T @ principal.components_, np.maximum(relevance[::-1], 0.0)


def average_of_batch(z: np.ndarray, batch: np.ndarray) -> csr_array:
    """Matrix that averages each cell with its ten nearest in its batch, ``(n_cells, n_cells)``.

    Nearest by cosine similarity; all others, where a batch has fewer.
    """
    unit = normalize(z)
    of_batch = [np.flatnonzero(batch == b) for b in np.unique(batch)]
    graphs = []
    for cells in of_batch:
        n = min(N_NEIGHBORS + 1, len(cells))
        graphs.append(kneighbors_graph(unit[cells], n, include_self=True) / n)
    back = np.argsort(np.concatenate(of_batch))
    return csr_array(block_diag(graphs, format="csr")[back][:, back])


def matched_cells(z: np.ndarray, batch: np.ndarray) -> csr_array:
    """Graph of the mutual nearest neighbours in two batches, ``(n_cells, n_cells)``."""
    codes = torch.as_tensor(z, dtype=torch.float32)
    near = mutual_nearest_neighbours(codes, torch.as_tensor(batch), N_NEIGHBORS)
    return csr_array(near.numpy(), dtype=np.float64)


def trusted(matched: csr_array, z: np.ndarray) -> csr_array:
    r"""The graph with weights :math:`(1 + d^2 / (0.3 m))^{-2}`.

    Of the squared distances :math:`d^2` of matched cells :math:`m` is the median. These are Geman's
    and McClure's weights, by which what is far apart counts for nothing.
    """
    pairs = matched.tocoo()
    length = np.square(z).sum(axis=1)
    products = (z @ z.T)[pairs.row, pairs.col]
    squared = np.maximum(length[pairs.row] + length[pairs.col] - 2 * products, 0.0)
    scale = TRUST * np.median(squared) + 1e-12 if len(squared) else 1.0
    return csr_array(((1 + squared / scale) ** -2, (pairs.row, pairs.col)), shape=matched.shape)


def between_matched(z: np.ndarray, matched: csr_array) -> np.ndarray:
    """Covariance of two matched cells around their mean, ``(n_components, n_components)``.

    By the graph's Laplacian, because pairs are many where batches are.
    """
    return z.T @ (laplacian(matched) @ z) / (matched.sum() or 1.0)


def shrunk(covariance: np.ndarray, matched: csr_array) -> np.ndarray:
    r"""A covariance of few matched cells, nearer to equal variances along all :math:`p` directions.

    .. math::

        \frac{n C + \mathrm{tr}(C) I}{n + p}, \qquad
        n = \frac{\left(\sum_i w_i\right)^2}{\sum_i w_i^2}

    is a posterior mean: that of a Wishart covariance of :math:`n` cells, where as many as there are
    directions were seen before and varied alike. Of cells that are matched with weights, :math:`w`
    in all for each, :math:`n` is Kish's effective number.

    References
    ----------
    Chen (1979), Journal of the Royal Statistical Society B 41:235, for the posterior mean; Kish
    (1965), Survey Sampling, for the effective number.
    """
    weights = matched.sum(axis=1)
    n = weights.sum() ** 2 / (np.square(weights).sum() or 1.0)
    p = len(covariance)
    return (n * covariance + np.trace(covariance) * np.eye(p)) / (n + p)
