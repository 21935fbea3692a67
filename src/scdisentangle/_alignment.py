"""What training leaves of the batches in ``z_bio``: estimated within clusters, and subtracted."""

from __future__ import annotations

import sys

import numpy as np
import torch
from scipy.linalg import solve
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from tqdm.auto import trange

from ._added_later import AddedLater

CELLS_PER_CLUSTER = 50
CELLS_PER_GROUP = 10
"""Cells of a new batch that look for their cluster together."""
FAR = 1e6
"""Where the centres of clusters are that there are not enough cells for."""
N_NEIGHBORS = 15
N_STARTS = 10
"""Times that clusters are looked for in each round; one alone may put two types into one."""
REACH = 2.0
"""Squared reach of a batch's shift, in mean squared distances of cells to their centre."""
WIDTH = 0.15
"""Reach of a cluster's border, as a share of the mean squared distance of cells to their centre."""


class Alignment(AddedLater):
    r"""Moves the batches onto each other within the clusters of ``z_bio``.

    Codes of batch :math:`b` in cluster :math:`k` are taken to be
    :math:`c_k + \delta_b + \gamma_{kb}` and noise: a shift of the batch that is the same in every
    cluster, and one of the batch in this cluster, which is like those in clusters nearby, and drawn
    to 0 where the batch has few cells. Both are subtracted. Cells whose neighbours are all of their
    own batch do not count, because what they are the other batches may lack. This is done in
    rounds: clusters are clearer once batches are closer.

    Training cannot do it, for in a minibatch a cluster has a few cells of each batch, and what
    their means differ by is noise.

    Parameters
    ----------
    n_latent
        Dimensions of ``z_bio``.
    n_batch
        Number of batches.
    spherical
        Whether codes keep their length.
    n_rounds
        Number of rounds.
    max_clusters
        Number of clusters, at most; fewer where there are less than 50 cells for each.
    ridge
        Number of cells of a batch in a cluster, far from others, at which half of
        :math:`\gamma_{kb}` is believed.

    References
    ----------
    :math:`\gamma` is the random effect of a linear mixed model: Robinson (1991), That BLUP is a
    good thing, Statistical Science 6:15; with the covariance of a Gaussian process over clusters:
    Rasmussen and Williams (2006), Gaussian processes for machine learning, 2.2 and 2.7. Shifts
    within clusters are also those of Harmony (Korsunsky et al. 2019, Nature Methods 16:1289), whose
    clusters are made to have cells of all batches, which merges types that the batches do not
    share.
    """

    def __init__(
        self,
        n_latent: int,
        n_batch: int,
        *,
        spherical: bool,
        n_rounds: int = 5,
        max_clusters: int = 50,
        ridge: float = 30.0,
    ):
        super().__init__()
        self.spherical = spherical
        self.ridge = ridge
        self.first_new = 0
        self.moves = False
        self.register_buffer("centers", torch.zeros(n_rounds, max_clusters, n_latent))
        self.register_buffer("widths", torch.ones(n_rounds))
        self.register_buffer("levels", torch.zeros(n_rounds, max_clusters, n_latent))
        self.register_buffer("shifts", torch.zeros(n_rounds, n_batch, max_clusters, n_latent))

    def forward(self, z: Tensor, batch: Tensor) -> Tensor:
        """Aligned codes, ``(n_cells, n_latent)``, of cells of known batch, ``(n_cells,)``."""
        if not self.moves:  # as in training, whose validation need not wait for clusters
            return z
        for i in range(len(self.centers)):
            z = self._moved(z, batch, self._memberships(z, i), i)
        return z

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.moves = bool(self.shifts.any())

    def _memberships(self, z: Tensor, i: int) -> Tensor:
        """Share of each cell that is in each cluster, the same whatever cells are beside it."""
        mode = "donot_use_mm_for_euclid_dist"  # whose rounding depends on the other rows
        distances = torch.cdist(z, self.centers[i], compute_mode=mode)
        return (-distances.square() / self.widths[i]).softmax(dim=1)

    def _moved(self, z: Tensor, batch: Tensor, memberships: Tensor, i: int) -> Tensor:
        moved = z - (memberships.unsqueeze(1) @ self.shifts[i, batch]).squeeze(1)
        if not self.spherical:
            return moved
        return nn.functional.normalize(moved, dim=1) * z.norm(dim=1, keepdim=True)

    def reset(self) -> None:
        """Move no cell; only those of batches before ``first_new`` as before."""
        self.shifts[:, self.first_new :] = 0.0
        self.moves &= self.first_new > 0

    @torch.no_grad()
    def fit(self, z: Tensor, batch: Tensor, progress_bar: bool = False) -> None:
        """Estimate the shifts from codes, ``(n_cells, n_latent)``, that are not aligned yet.

        If there are batches before ``first_new``, their shifts and the clusters stay, and each new
        batch has one shift for all clusters: what it lacks or has alone cannot be told. Its cells
        look for their clusters in groups of about ten, whose mean is less often nearest to a wrong
        one than a cell is.
        """
        mapped = self.first_new > 0
        if mapped and not self.levels.any():  # the reference has no clusters to look for
            return
        is_new = batch >= self.first_new
        z, batch = z[is_new], batch[is_new]
        if len(z) == 0:
            return
        group = groups(z, batch) if mapped else None
        rounds = trange(
            len(self.centers),
            desc="Aligning",
            disable=not progress_bar,
            leave=False,
            file=sys.stdout,  # where Lightning's bar is
        )
        for i in rounds:
            if not mapped:
                self._find_clusters(z, i)
            memberships = self._memberships(mean_of_group(z, group) if mapped else z, i)
            cells = [values.cpu().numpy() for values in (z, batch)]
            weight = np.ones(len(z)) if mapped else overlap(*cells)
            n, means = group_means(
                *cells, weight[:, None] * memberships.cpu().numpy(), len(self.shifts[i])
            )
            alike = likeness(self.centers[i].cpu().numpy(), float(self.widths[i]) / WIDTH)
            if mapped:
                shifts = common_shifts(n, means, self.levels[i].cpu().numpy(), alike, self.ridge)
                self.shifts[i, self.first_new :] = torch.as_tensor(shifts)[self.first_new :, None]
            else:
                levels, shifts = levels_and_shifts(n, means, alike, self.ridge)
                self.levels[i], self.shifts[i] = map(torch.as_tensor, (levels, shifts))
            z = self._moved(z, batch, memberships, i)
        self.moves = True

    def _find_clusters(self, z: Tensor, i: int) -> None:
        n = max(1, min(len(self.centers[i]), len(z) // CELLS_PER_CLUSTER))
        found = KMeans(n, n_init=N_STARTS, random_state=0).fit(z.cpu().numpy())
        self.centers[i] = FAR
        self.centers[i, :n] = torch.as_tensor(found.cluster_centers_)
        self.widths[i] = WIDTH * found.inertia_ / len(z) + 1e-12


def groups(z: Tensor, batch: Tensor) -> Tensor:
    """The group of about ten like cells of one batch that each cell is in, ``(n_cells,)``."""
    group, n_before = torch.zeros_like(batch), 0
    for b in batch.unique():
        cells = batch == b
        n = max(1, int(cells.sum()) // CELLS_PER_GROUP)
        found = KMeans(n, n_init=1, random_state=0).fit_predict(z[cells].cpu().numpy())
        group[cells] = n_before + torch.as_tensor(found).to(group)
        n_before += n
    return group


def mean_of_group(z: Tensor, group: Tensor) -> Tensor:
    """For each cell the mean over its group, of the shape of ``z``."""
    sums = z.new_zeros(int(group.max()) + 1, z.shape[1]).index_add_(0, group, z)
    return (sums / group.bincount().clamp(min=1).unsqueeze(1))[group]


def group_means(
    z: np.ndarray, batch: np.ndarray, memberships: np.ndarray, n_batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the cells of each batch in each cluster, and their mean, 0 where there are none.

    Shapes ``(n_batch, n_clusters)`` and ``(n_batch, n_clusters, n_latent)``.
    """
    of_batch = [(batch == b, memberships[batch == b].T) for b in range(n_batch)]
    n = np.stack([members.sum(axis=1) for _, members in of_batch])
    sums = np.stack([members @ z[cells] for cells, members in of_batch])
    return n, np.divide(sums, n[..., None], out=np.zeros_like(sums), where=n[..., None] > 0)


def likeness(centers: np.ndarray, spread: float) -> np.ndarray:
    r"""How like a batch's shifts in two clusters are, ``(n_clusters, n_clusters)``, 1 if the same.

    .. math::

        K_{kl} = \exp \left(-\frac{\lVert c_k - c_l \rVert^2}{2 \cdot 2 s^2}\right)

    Parameters
    ----------
    centers
        The clusters' centres :math:`c`, ``(n_clusters, n_latent)``.
    spread
        Mean squared distance of cells to their centre, :math:`s^2`.
    """
    return np.exp(-cdist(centers, centers, "sqeuclidean") / (2 * REACH * spread))


def levels_and_shifts(
    n: np.ndarray, means: np.ndarray, alike: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    r"""Least squares of :math:`c_k + \delta_b + \gamma_{kb}` with a ridge on the last.

    .. math::

        \sum_i w_i \lVert z_i - c_{k_i} - \delta_{b_i} - \gamma_{k_i b_i} \rVert^2
            + \sum_b \left(\lVert \delta_b \rVert^2
            + r\, \mathrm{tr}\, \gamma_b^T K^{-1} \gamma_b\right)

    which, :math:`\gamma` being solved for, is a regression of the means of groups with the
    :func:`weights` :math:`W_b`, and :math:`\gamma_b = K W_b e_b / r` with its residuals
    :math:`e_b`.

    Parameters
    ----------
    n, means
        As :func:`group_means` gives them.
    alike
        :math:`K`, as :func:`likeness` gives it.
    ridge
        The ridge :math:`r`.

    Returns
    -------
    :math:`c`, ``(n_clusters, n_latent)``, and :math:`\delta_b + \gamma_{kb}`, of the shape of
    ``means``.
    """
    n_batch, n_clusters, _ = means.shape
    weight = weights(n, alike, ridge)
    of_batch = weight.sum(axis=2)
    total = np.block([[weight.sum(axis=0), of_batch.T], [of_batch, np.diag(of_batch.sum(axis=1))]])
    total += np.diag(np.repeat([1e-6, 1.0], [n_clusters, n_batch]))  # an empty level is 0
    weighted = weight @ means
    sums = np.concatenate([weighted.sum(axis=0), weighted.sum(axis=1)])
    levels, common = np.split(solve(total, sums, assume_a="pos"), [n_clusters])
    residual = means - levels - common[:, None]
    return levels, common[:, None] + alike @ weight @ residual / ridge


def common_shifts(
    n: np.ndarray, means: np.ndarray, levels: np.ndarray, alike: np.ndarray, ridge: float
) -> np.ndarray:
    r"""The shift :math:`\delta_b` of each batch, ``(n_batch, n_latent)``, where levels are known.

    As :func:`levels_and_shifts`, whose parameters these are.
    """
    weight = weights(n, alike, ridge)
    total = (weight @ (means - levels)).sum(axis=1)
    return total / (weight.sum(axis=(1, 2))[:, None] + 1.0)


def weights(n: np.ndarray, alike: np.ndarray, ridge: float) -> np.ndarray:
    r"""What the means of groups weigh, ``(n_batch, n_clusters, n_clusters)``.

    .. math::

        W_b = (N_b^{-1} + K / r)^{-1}

    with :math:`N_b` the diagonal of the batch's ``n``, of which some may be 0. Its parameters are
    those of :func:`levels_and_shifts`.
    """
    root = np.sqrt(n)
    outer = root[:, :, None] * root[:, None, :]
    return outer * np.linalg.inv(np.eye(n.shape[1]) + outer * alike / ridge)


def overlap(z: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Share of each cell's 15 neighbours that are of other batches, over that expected, up to 1.

    All 1 where there is one batch.
    """
    expected = 1 - np.bincount(batch)[batch] / len(batch)
    if not expected.any() or len(z) < 3:
        return np.ones(len(z))
    near = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(z) - 1)).fit(z)
    others = batch[near.kneighbors(return_distance=False)] != batch[:, None]
    return np.minimum(1.0, others.mean(axis=1) / expected)
