"""Labels of unlabelled cells."""

import numpy as np
import pandas as pd
import pytest
import scvi

from scdisentangle import DisentangleModel, InputError, data


def fit(adata, max_epochs=3, **setup):
    scvi.settings.seed = 0
    DisentangleModel.setup_anndata(adata, batch_key="batch", **setup)
    model = DisentangleModel(adata, n_latent_bio=10)
    model.train(max_epochs, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def model():
    adata = data.simulated(n_cells=600, n_genes=100, n_types=3, marker_log_fold_change=2.0, seed=0)
    adata.obs["type"] = adata.obs["celltype"].astype(str)
    adata.obs.loc[adata.obs_names[:300], "type"] = "?"
    return fit(adata, 60, labels_key="type", unlabeled_category="?")


def test_unlabelled_cells_are_labelled(model):
    truth = model.adata.obs["celltype"].to_numpy()
    predicted = model.predict(indices=np.arange(300))
    assert "?" not in predicted
    assert (predicted == truth[:300]).mean() > 0.85


def test_soft_prediction_is_the_share_of_the_neighbours(model):
    """Squared distances by hand; from another batch 0.15 of the mean one between cells more."""
    cells = np.r_[4, 2, 5:300]
    soft = model.predict(soft=True, n_neighbors=7, indices=cells)
    z, batch = model.get_latent_representation(), model.adata.obs["batch"].to_numpy()
    squared = ((z[cells, None] - z[300:]) ** 2).sum(axis=2)
    mean = ((z[300:, None] - z[300:]) ** 2).sum(axis=2).mean()
    squared += 0.15 * mean * (batch[cells, None] != batch[300:])
    labels = model.adata.obs["type"].to_numpy()[300 + squared.argsort(axis=1)[:, :7]]
    for label in soft.columns:
        np.testing.assert_allclose(soft[label], (labels == label).mean(axis=1))
    assert list(soft.index) == list(model.adata.obs_names[cells])
    votes = 5 * model.predict(soft=True).to_numpy()  # by default
    np.testing.assert_allclose(votes, votes.round(), atol=1e-6)
    assert ((votes > 0.5) & (votes < 4.5)).any()


@pytest.mark.parametrize("shown", [True, False])
def test_many_cells_are_labelled_in_parts_that_show(model, shown, monkeypatch, capsys):
    at_once, soft = model.predict(), model.predict(soft=True)
    assert "Labelling" not in capsys.readouterr().err
    monkeypatch.setattr("scdisentangle._labels.CELLS_AT_ONCE", 250)
    np.testing.assert_array_equal(model.predict(progress_bar=shown), at_once)
    assert ("3/3" in capsys.readouterr().err) == shown
    pd.testing.assert_frame_equal(model.predict(soft=True, progress_bar=False), soft)


def test_a_batch_that_was_annotated_in_its_own_words_keeps_them(model):
    adata, own = model.adata.copy(), (model.adata.obs["batch"] == "batch_1").to_numpy()
    truth = adata.obs["celltype"].astype(str).to_numpy() + np.where(own, " here", "")
    adata.obs["type"] = np.where(np.arange(600) < 300, "?", truth)
    named = fit(adata, 60, labels_key="type", unlabeled_category="?")
    right = named.predict(indices=np.arange(300)) == truth[:300]
    assert right[own[:300]].mean() > 0.9
    assert right[~own[:300]].mean() > 0.9


def test_a_type_that_is_labelled_in_other_batches_only_is_found_there(model):
    adata = model.adata.copy()
    alone = ((adata.obs["batch"] == "batch_2") & (adata.obs["celltype"] == "type_2")).to_numpy()
    adata.obs.loc[alone, "type"] = "?"
    named = fit(adata, 60, labels_key="type", unlabeled_category="?")
    assert (named.predict(indices=np.flatnonzero(alone)) == "type_2").mean() > 0.85


def test_new_cells_are_no_reference_for_a_model_without_data(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = DisentangleModel.load(tmp_path / "model", adata=False)
    new = model.adata[:60].copy()
    loaded.get_latent_representation(new)
    with pytest.raises(InputError, match="No cell is labelled.*load a saved model with the data"):
        loaded.predict(new)


@pytest.mark.parametrize("n_neighbors", [0, 2.5])
def test_neighbours_must_be_some(model, n_neighbors):
    with pytest.raises(InputError, match=f"n_neighbors={n_neighbors} must be"):
        model.predict(n_neighbors=n_neighbors)


def test_without_labels_there_is_nothing_to_predict():
    adata = data.simulated(n_cells=100, n_genes=50, seed=0)
    with pytest.raises(InputError, match="labels_key"):
        fit(adata.copy(), 1).predict()
    adata.obs["type"] = "Unknown"
    with pytest.raises(InputError, match="unlabeled_category"):
        fit(adata, 1, labels_key="type").predict()


@pytest.mark.parametrize("encoded", [True, False])
def test_covariates_are_encoded_or_only_decoded(encoded):
    adata = data.simulated(n_cells=200, n_genes=50, seed=0)
    rng = np.random.default_rng(0)
    adata.obs["sex"] = rng.choice(["f", "m"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    DisentangleModel.setup_anndata(
        adata,
        batch_key="batch",
        categorical_covariate_keys=["sex"],
        continuous_covariate_keys=["age"],
    )
    model = DisentangleModel(adata, n_hidden=16, encode_covariates=encoded)
    model.train(3, enable_progress_bar=False)
    for key, value in (("sex", "f"), ("age", 3.0)):
        other = adata.copy()
        other.obs[key] = value
        if key == "sex":
            other.obs[key] = other.obs[key].astype(adata.obs[key].astype("category").dtype)
        z, moved = (model.get_latent_representation(cells) for cells in (adata, other))
        assert np.allclose(z, moved, atol=1e-6) is not encoded
        x, moved = (model.get_normalized_expression(cells) for cells in (adata, other))
        assert not np.allclose(x, moved, rtol=1e-3)


def test_labels_of_data_that_are_set_are_known(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = DisentangleModel.load(tmp_path / "model", adata=False)
    loaded.adata = model.adata.copy()
    assert (loaded.predict() == model.predict()).all()


@pytest.mark.parametrize("labels", [lambda i: (i % 3) / 2, lambda i: pd.cut(i, 3)])
def test_labels_of_any_type_are_predicted(labels):
    adata = data.simulated(n_cells=90, n_genes=40, seed=0)
    adata.obs["of"] = labels(np.arange(90))
    model = fit(adata, 1, labels_key="of")
    assert (model.predict(n_neighbors=1) == adata.obs["of"].to_numpy()).all()  # each is its own
    soft = model.predict(soft=True)
    assert set(soft.columns) == set(adata.obs["of"].unique())
    assert (np.asarray(soft.columns)[soft.to_numpy().argmax(axis=1)] == model.predict()).all()
