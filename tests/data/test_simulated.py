import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scdisentangle import InputError
from scdisentangle.data import simulated


@pytest.fixture(scope="module")
def adata():
    return simulated()


def test_default_shape_and_types(adata):
    assert adata.shape == (2000, 1000)
    assert adata.obs["batch"].nunique() == 3
    assert adata.obs["celltype"].nunique() == 6
    for counts in (adata.X, adata.layers["counts"]):
        assert sp.issparse(counts)
        assert counts.format == "csr"
        assert counts.dtype == np.float32
        assert counts.data.min() > 0
        np.testing.assert_array_equal(counts.data, np.round(counts.data))
    assert adata.X.sum(axis=1).min() > 0


def test_counts_have_the_negative_binomial_mean_and_variance(adata):
    """Pearson residuals of the truth are standardised, also among highly expressed genes."""
    expected = adata.layers["expected"].astype(float)
    theta = adata.var["dispersion"].to_numpy()
    variance = expected + expected**2 / theta
    residuals = (adata.X.toarray() - expected) / np.sqrt(variance)
    assert residuals.mean() == pytest.approx(0, abs=4 / np.sqrt(residuals.size))
    assert (residuals**2).mean() == pytest.approx(1, abs=0.02)
    high = expected > 10
    assert high.mean() > 0.02
    assert (residuals[high] ** 2).mean() == pytest.approx(1, abs=0.05)


def test_counts_follow_the_negative_binomial_distribution(adata):
    """The randomised probability transform of the counts is uniform."""
    expected = adata.layers["expected"][:, :50].astype(float)
    theta = adata.var["dispersion"].to_numpy()[:50]
    nb = stats.nbinom(theta, theta / (theta + expected))
    counts = adata.X[:, :50].toarray()
    uniform = np.random.default_rng(1).uniform(size=counts.shape)
    transformed = nb.cdf(counts - 1) + uniform * nb.pmf(counts)
    assert stats.kstest(transformed.ravel(), "uniform").pvalue > 1e-3


def test_truth_is_free_of_the_batch(adata):
    truth = adata.layers["truth"].astype(float)
    np.testing.assert_allclose(truth.sum(axis=1), 1, atol=1e-4)
    other = adata.obs[adata.obs["celltype"] == "type_3"]
    rows = adata.obs_names.get_indexer(other.index)
    np.testing.assert_allclose(truth[rows], np.repeat(truth[rows[:1]], len(rows), axis=0))


def test_expected_counts_are_truth_times_effect_times_library(adata):
    effect = np.exp(adata.varm["batch_effect"].to_numpy().T[adata.obs["batch"].cat.codes])
    shares = adata.layers["truth"] * effect
    shares /= shares.sum(axis=1, keepdims=True)
    simulation = adata.uns["simulation"]
    depth = simulation["depth"].loc[adata.obs["batch"].astype(str), "depth"].to_numpy()
    library = simulation["counts_per_cell"] * depth * adata.obs["capture"].to_numpy()
    np.testing.assert_allclose(adata.layers["expected"], library[:, None] * shares, rtol=1e-3)
    assert adata.obs["capture"].mean() == pytest.approx(1, abs=0.05)


def test_batch_effects_are_recovered_from_the_counts():
    """Log-ratios of two batches' pooled counts, for one type, give the effects that were put in."""
    adata = simulated(n_types=2, n_batches=2, n_cells=4000, n_genes=200, balanced=True, seed=3)
    cells = adata[adata.obs["celltype"] == "type_1"]
    pooled = [
        np.asarray(cells[cells.obs["batch"] == b].X.sum(axis=0)).ravel()
        for b in ("batch_0", "batch_1")
    ]
    found = np.log(pooled[1] / pooled[0])
    effect = adata.varm["batch_effect"]
    true = (effect["batch_1"] - effect["batch_0"]).to_numpy()
    residual = (found - found.mean()) - (true - true.mean())
    assert np.std(true) > 0.5
    assert np.median(np.abs(residual)) < 0.05


def test_markers_are_raised_in_their_type_only(adata):
    truth = adata.layers["truth"]
    types = adata.obs["celltype"].to_numpy()
    for name in ("type_1", "type_4"):
        ratio = np.log(truth[types == name].mean(axis=0) / truth[types == "type_2"].mean(axis=0))
        markers = (adata.var["marker_of"] == name).to_numpy()
        change = adata.varm["log_fold_change"][name].to_numpy()
        assert markers.sum() == 50
        np.testing.assert_array_equal(markers, change > 0)
        unchanged = (adata.var["marker_of"] == "").to_numpy()
        np.testing.assert_allclose(
            (ratio - ratio[unchanged].mean())[markers], change[markers], atol=1e-3
        )


def test_the_first_type_is_a_gradient(adata):
    inside = (adata.obs["celltype"] == "type_0").to_numpy()
    gradient = adata.obs["gradient"].to_numpy()
    assert (gradient[~inside] == 0).all()
    assert stats.kstest(gradient[inside], "uniform").pvalue > 1e-3
    rising = adata.var["gradient_log_fold_change"].to_numpy() > 0
    share = adata.layers["truth"][:, rising].sum(axis=1)
    assert stats.spearmanr(gradient[inside], share[inside]).statistic == pytest.approx(1)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("private_type", [True, False])
def test_composition_is_what_was_asked_for(balanced, private_type):
    adata = simulated(n_cells=900, balanced=balanced, private_type=private_type, seed=5)
    obs = adata.obs
    found = obs.groupby(["batch", "celltype"], observed=False).size().unstack()
    asked = adata.uns["simulation"]["composition"] * 300
    assert (found - asked).abs().to_numpy().max() < 1
    assert ((found["type_5"] > 0).tolist() == [False, False, True]) is private_type
    shared = found.drop(columns="type_5").drop(index="batch_2" if private_type else [])
    spread = (shared.max() - shared.min()).max()
    assert bool(spread <= 1) is balanced


def test_strength_zero_leaves_no_trace_of_the_batch():
    adata = simulated(strength=0)
    assert (adata.varm["batch_effect"] == 0).all(axis=None)
    assert (adata.uns["simulation"]["depth"]["depth"] == 1).all()
    weak, strong = (
        simulated(n_cells=50, strength=s).varm["batch_effect"].to_numpy() for s in (0.2, 0.4)
    )
    np.testing.assert_allclose(strong, 2 * weak)


@pytest.mark.parametrize("strength", [0, 0.5])
def test_the_counts_give_the_batch_away_only_where_it_has_an_effect(strength):
    """Held out, by a linear classifier, among cells of one type."""
    adata = simulated(n_cells=1200, n_genes=100, n_types=2, strength=strength, balanced=True)
    cells = adata[adata.obs["celltype"] == "type_1"]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    x = np.log1p(cells.X.toarray())
    accuracy = cross_val_score(classifier, x, cells.obs["batch"], cv=5).mean()
    if strength:
        assert accuracy > 0.95
    else:
        assert accuracy == pytest.approx(1 / 3, abs=0.07)


def test_a_seed_gives_the_same_set():
    first, second, other = (simulated(100, 50, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    assert first.obs.equals(second.obs)
    assert (first.X != other.X).nnz > 0


def test_round_trip_through_a_file(tmp_path):
    adata = simulated(60, 40, n_types=2)
    adata.write_h5ad(tmp_path / "set.h5ad")
    read = ad.read_h5ad(tmp_path / "set.h5ad")
    np.testing.assert_array_equal(read.varm["batch_effect"], adata.varm["batch_effect"])
    composition = adata.uns["simulation"]["composition"]
    np.testing.assert_array_equal(read.uns["simulation"]["composition"], composition)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "n_cells=0 must be a number above zero"),
        ({"n_genes": 10.5}, "n_genes=10.5 must be a whole number"),
        ({"n_batches": True}, "n_batches=True must be a number"),
        ({"n_cells": 2, "n_batches": 3}, "fewer than one cell for each of 3 batches"),
        ({"n_markers": 0}, "n_markers=0 must be a number above zero"),
        ({"n_genes": 20, "n_markers": 3}, "21 in all, but n_genes=20"),
        ({"strength": -1}, "strength=-1 must be a number, zero or more"),
        ({"strength": float("nan")}, "strength=nan must be a number"),
        ({"marker_log_fold_change": float("inf")}, "marker_log_fold_change=inf must be a number"),
        ({"strength": "a"}, "strength='a' must be a number"),
        ({"counts_per_cell": 0}, "counts_per_cell=0 must be a number above zero"),
        ({"n_batches": 1, "private_type": True}, "at least two batches and two types"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        simulated(**arguments)
