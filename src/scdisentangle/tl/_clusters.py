"""Groups of like cells where there are no labels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.metrics.pairwise import euclidean_distances

_MOST_CLUSTERS = 12
_SILHOUETTE_CELLS = 1000


def clusters_by_batch(code: np.ndarray, batch: pd.Series, min_cells: int, seed: int) -> pd.Series:
    """Clusters of each batch on its own, named after it; batches of few cells have none."""
    clusters = pd.Series(pd.NA, index=batch.index, dtype=object)
    for name in batch.dropna().unique():
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
    names = np.array(sorted(cluster.dropna().unique()))
    means = np.array([code[(cluster == name).to_numpy()].mean(axis=0) for name in names])
    batch_of = np.array([str(batch[(cluster == name).to_numpy()].iloc[0]) for name in names])
    pairs = []
    for one, other in combinations(np.unique(batch_of), 2):
        rows, columns = np.flatnonzero(batch_of == one), np.flatnonzero(batch_of == other)
        distances = euclidean_distances(means[rows], means[columns])
        nearest, back = distances.argmin(axis=1), distances.argmin(axis=0)
        pairs += [(rows[i], columns[j]) for i, j in enumerate(nearest) if back[j] == i]
    one, other = np.array(pairs).T
    graph = coo_matrix((np.ones(len(one)), (one, other)), shape=(len(names), len(names)))
    _, group = connected_components(graph, directed=False)
    name_of = {name: f"group {number}" for name, number in zip(names, group, strict=True)}
    return cluster.map(name_of)
