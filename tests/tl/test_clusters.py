"""Groups of like cells without labels, on codes whose groups are known."""

from itertools import combinations

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score, silhouette_score

from scdisentangle.tl._clusters import clusters_by_batch, matched_clusters


def test_each_batch_has_clusters_of_its_own_where_it_has_cells_enough():
    rng = np.random.default_rng(0)
    batch = pd.Series(np.repeat(["x", "y", "few", None], [180, 120, 20, 10]), dtype=object)
    blob = np.r_[np.arange(180) % 3, np.arange(120) % 2, np.zeros(30, dtype=int)]
    code = 10.0 * np.eye(3)[blob] + rng.normal(size=(330, 3))
    found = clusters_by_batch(code, batch, min_cells=11, seed=0)
    assert found[300:].isna().all()
    for name, n in (("x", 3), ("y", 2)):
        cells = (batch == name).to_numpy()
        assert set(found[cells]) == {f"{name}, {i}" for i in range(n)}
        assert adjusted_rand_score(blob[cells], found[cells]) == 1.0
    assert clusters_by_batch(code, batch, min_cells=10, seed=0)[300:320].notna().all()


def test_clusters_are_as_many_as_hold_together_nearly_as_well_as_the_best():
    """Two far places of two near ones each: two clusters are a little better than four."""
    place = np.arange(200) % 4
    code = np.array([[0.0, 0], [0, 2], [20, 0], [20, 2]])[place]
    code = code + 0.1 * np.random.default_rng(0).normal(size=code.shape)
    two, four = silhouette_score(code, place // 2), silhouette_score(code, place)
    assert 0.95 * two < four < two
    found = clusters_by_batch(code, pd.Series(["x"] * 200), min_cells=10, seed=0)
    assert adjusted_rand_score(place, found) == 1.0


def test_clusters_are_matched_where_each_is_the_nearest_of_the_other():
    """On a line; x1 is nearest to y1, which has a nearer one, and so is nobody's."""
    places = {"x": [0.0, 10.0], "y": [1.0, 3.0, 30.0], "w": [0.5, 29.0]}
    names, code = zip(
        *[(f"{b}, {i}", place) for b in places for i, place in enumerate(places[b])], strict=True
    )
    cluster = pd.Series([*np.repeat(names, 2), pd.NA], dtype=object)
    code = np.r_[np.repeat(code, 2) + np.tile([-0.1, 0.1], len(names)), 0.0][:, None]
    batch = pd.Series([*cluster[:-1].str[0], "x"])
    found = matched_clusters(code, cluster, batch)
    assert pd.isna(found.iloc[-1])
    groups = pd.Series(names).groupby(found.iloc[:-1:2].to_numpy()).agg(set)
    assert sorted(map(sorted, groups)) == [
        ["w, 0", "x, 0", "y, 0"],
        ["w, 1", "y, 2"],
        ["x, 1"],
        ["y, 1"],
    ]


def test_every_pair_of_batches_is_matched():
    """Against the definition: means that are each other's nearest of the two batches."""
    rng = np.random.default_rng(0)
    batch = pd.Series(np.repeat([f"b{i}" for i in range(7)], 40))
    cluster = batch + pd.Series(rng.integers(4, size=len(batch))).map(", {}".format)
    code = (
        rng.normal(size=(len(batch), 3))
        + 5 * rng.normal(size=(28, 3))[pd.factorize(cluster, sort=True)[0]]
    )
    means = pd.DataFrame(code).groupby(cluster).mean()
    of_batch = means.index.str[:2]
    matches = nx.Graph()
    matches.add_nodes_from(means.index)
    for one, other in combinations(of_batch.unique(), 2):
        apart = pd.DataFrame(
            cdist(means[of_batch == one], means[of_batch == other]),
            index=means.index[of_batch == one],
            columns=means.index[of_batch == other],
        )
        matches.add_edges_from(
            (name, to) for name, to in apart.idxmin(axis=1).items() if apart[to].idxmin() == name
        )
    expected = list(nx.connected_components(matches))
    assert len(expected) == 3
    found = cluster.groupby(matched_clusters(code, cluster, batch)).agg(set)
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_over_batches_if_asked_for(shown, capsys):
    code = np.random.default_rng(0).normal(size=(40, 2))
    batch = pd.Series(np.repeat(["x", "y"], 20))
    clusters_by_batch(code, batch, min_cells=10, seed=0, progress_bar=shown)
    assert ("Clustering" in capsys.readouterr().err) == shown
