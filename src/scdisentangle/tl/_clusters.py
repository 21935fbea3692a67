"""Groups of like cells where there are no labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix, csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.metrics.pairwise import euclidean_distances
from tqdm.auto import tqdm

_MOST_CLUSTERS = 12
_SILHOUETTE_CELLS = 1000


def clusters_by_batch(
    code: np.ndarray, batch: pd.Series, min_cells: int, seed: int, *, progress_bar: bool = False
) -> pd.Series:
    """Clusters of each batch on its own, named after it; batches of few cells have none."""
    clusters = pd.Series(pd.NA, index=batch.index, dtype=object)
    names = batch.dropna().unique()
    for name in tqdm(names, desc="Clustering", unit="batch", disable=not progress_bar, leave=False):
        cells = np.flatnonzero((batch == name).to_numpy())
        if len(cells) >= 2 * min_cells:
            clusters.iloc[cells] = [f"{name}, {n}" for n in _clusters(code[cells], seed)]
    return clusters


def _clusters(code: np.ndarray, seed: int) -> np.ndarray:
    """As many as there may be without cutting what holds together.

    The largest number whose silhouette is within a twentieth of the best.
    """
    most = int(np.clip(len(code) // 50, 2, _MOST_CLUSTERS))
    cells = np.random.default_rng(seed).permutation(len(code))[:_SILHOUETTE_CELLS]
    found, silhouettes = {}, {}
    for n in range(2, most + 1):
        found[n] = KMeans(n, n_init=10, random_state=seed).fit_predict(code)
        seen = found[n][cells]
        silhouettes[n] = silhouette_score(code[cells], seen) if len(np.unique(seen)) > 1 else -1.0
    best = max(silhouettes.values())
    return found[max(n for n, value in silhouettes.items() if value >= best - 0.05 * abs(best))]


def matched_clusters(code: np.ndarray, cluster: pd.Series, batch: pd.Series) -> pd.Series:
    """Groups of clusters of different batches that are each other's nearest by their means.

    References
    ----------
    Haghverdi et al. (2018), Batch effects in single-cell RNA-sequencing data are corrected by
    matching mutual nearest neighbors, Nature Biotechnology 36.
    """
    known = cluster.notna().to_numpy()
    of_cell, names = pd.factorize(cluster.to_numpy()[known], sort=True)
    n_cells = np.bincount(of_cell)[:, None]
    members = csr_array((np.ones(len(of_cell)), (of_cell, np.arange(len(of_cell)))))
    means = members @ code[known] / n_cells
    _, first = np.unique(of_cell, return_index=True)
    batches, batch_of = np.unique(batch.to_numpy()[known][first].astype(str), return_inverse=True)
    distances = euclidean_distances(means)
    columns = [np.flatnonzero(batch_of == b) for b in range(len(batches))]
    nearest = np.stack([own[distances[:, own].argmin(axis=1)] for own in columns], axis=1)
    mutual = nearest[nearest, batch_of[:, None]] == np.arange(len(names))[:, None]
    one, other = np.nonzero(mutual)[0], nearest[mutual]
    graph = coo_matrix((np.ones(len(one)), (one, other)), shape=(len(names), len(names)))
    _, group = connected_components(graph, directed=False)
    name_of = {name: f"group {number}" for name, number in zip(names, group, strict=True)}
    return cluster.map(name_of)
