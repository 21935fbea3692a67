"""A new batch on a trained model (scArches)."""

import warnings
from copy import deepcopy
from itertools import product

import anndata as ad
import numpy as np
import pytest
import scvi
import torch

from scdisentangle import DisentangleModel, InputError, data

FLOWS = ("quantized", "detached", "variational", "free")
NEW = "batch_2"


@pytest.fixture(scope="module")
def cells():
    adata = data.simulated(n_cells=300, n_genes=100, n_types=3, marker_log_fold_change=2.0, seed=0)
    rng = np.random.default_rng(0)
    adata.obs["sex"] = rng.choice(["f", "m"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    new = (adata.obs["batch"] == NEW).to_numpy()
    return adata[~new].copy(), adata[new].copy()


def fit(adata, max_epochs=20, setup=None, **kwargs):
    scvi.settings.seed = 0
    DisentangleModel.setup_anndata(adata, batch_key="batch", labels_key="celltype", **(setup or {}))
    model = DisentangleModel(
        adata, **{"n_hidden": 32, "n_latent_bio": 5, "n_latent_nio": 3, **kwargs}
    )
    model.train(max_epochs, enable_progress_bar=False)
    return model


def mapped(model, query, max_epochs=5, plan_kwargs=None, **kwargs):
    scvi.settings.seed = 0
    query_model = DisentangleModel.load_query_data(query.copy(), model, **kwargs)
    query_model.train(max_epochs, enable_progress_bar=False, plan_kwargs=plan_kwargs)
    return query_model


def assert_reference_is_unchanged(model, query_model):
    cells = model.adata.copy()
    for representation in ("bio", "batch"):
        np.testing.assert_allclose(
            query_model.get_latent_representation(cells, representation=representation),
            model.get_latent_representation(representation=representation),
            atol=1e-6,
        )
    drawn = model.module.nio_flow == "variational"
    for batch in ("batch_0", "batch_0" if drawn else None):
        np.testing.assert_allclose(
            query_model.get_normalized_expression(cells, transform_batch=batch),
            model.get_normalized_expression(transform_batch=batch),
            atol=1e-6,
        )


def test_embeddings_of_the_reference_stay(cells):
    reference, query = cells
    model = fit(reference.copy(), batch_representation="embedding")
    query_model = mapped(model, query)
    assert_reference_is_unchanged(model, query_model)
    untrained = DisentangleModel.load_query_data(query.copy(), model).module
    learned, new = (m.get_embedding("batch").weight for m in (query_model.module, untrained))
    assert learned[:2].equal(model.module.get_embedding("batch").weight)
    assert not torch.allclose(learned[2:], new[2:], atol=1e-3)


@pytest.mark.parametrize("nio_flow", FLOWS)
def test_the_reference_stays_as_it_was(cells, nio_flow):
    reference, query = cells
    model = fit(reference.copy(), nio_flow=nio_flow)
    query_model = mapped(model, query)
    assert_reference_is_unchanged(model, query_model)


@pytest.mark.parametrize("objective", ["adversary", "mutual_information", "local_batch_hsic"])
def test_objectives_of_the_size_of_the_batches_grow(cells, objective):
    reference, query = cells
    model = fit(reference.copy(), 3, objective=objective)
    assert_reference_is_unchanged(model, mapped(model, query))


@pytest.mark.parametrize("encode_covariates", [True, False])
def test_covariates_keep_their_columns_and_may_have_new_categories(cells, encode_covariates):
    reference, query = (part.copy() for part in cells)
    query.obs["sex"] = np.where(np.arange(query.n_obs) % 2, "f", "unknown")
    setup = {"categorical_covariate_keys": ["sex"], "continuous_covariate_keys": ["age"]}
    model = fit(reference, setup=setup, encode_covariates=encode_covariates)
    assert_reference_is_unchanged(model, mapped(model, query))


def test_a_reference_of_one_batch_grows(cells):
    reference, query = cells
    one = reference[reference.obs["batch"] == "batch_0"].copy()
    with pytest.warns(UserWarning, match="one batch"):
        model = fit(one)
    query_model = mapped(model, query)
    assert_reference_is_unchanged(model, query_model)
    assert query_model.module.n_batch == 2


def test_a_reference_of_one_batch_stays_where_the_query_has_it_too(cells):
    reference, query = cells
    one = reference[reference.obs["batch"] == "batch_0"].copy()
    with pytest.warns(UserWarning, match="one batch"):
        model = fit(one.copy(), 5)
    assert_reference_is_unchanged(model, mapped(model, ad.concat([one, query])))


def test_training_fits_the_new_batch_and_nothing_else(cells):
    reference, query = cells
    model = fit(reference.copy())
    scvi.settings.seed = 0
    options = deepcopy(model.init_params_)
    query_model = DisentangleModel.load_query_data(query.copy(), model)
    assert model.init_params_ == options
    before = {k: v.clone() for k, v in query_model.module.state_dict().items()}
    error = query_model.get_reconstruction_error()["reconstruction_loss"]
    query_model.train(20, enable_progress_bar=False)
    assert query_model.get_reconstruction_error()["reconstruction_loss"] < error
    moved = {k for k, v in query_model.module.state_dict().items() if not v.equal(before[k])}
    assert {name.split(".")[0] for name in moved} == {
        "alignment",
        "flow",
        "decoder",
        "classifier",
        "gene_shifts",
    }
    assert (query_model.module.gene_shifts.shifts[:2] == 0).all()
    for name in moved:
        kept = query_model.module.state_dict()[name] == before[name]
        assert kept.sum() >= model.module.state_dict()[name].numel()
    z_nio = query_model.get_latent_representation(representation="batch")
    new = query_model.module.flow.codes[2].detach().numpy()
    np.testing.assert_allclose(z_nio, np.tile(new, (len(z_nio), 1)), atol=1e-5)
    assert (query_model.predict_batch() == NEW).mean() > 0.95


def test_training_finds_what_the_genes_of_a_new_batch_are_off_by():
    """Known truth: cells of the reference, that show ten times the counts of one type's markers."""
    reference = data.simulated(n_cells=600, n_genes=100, marker_log_fold_change=2.0, seed=0)
    off = (reference.var["marker_of"] == "type_0").to_numpy()
    query = reference.copy()
    query.X = query.X.toarray() * np.where(off, 10, 1).astype("float32")
    query.obs["batch"] = "off"
    model = fit(reference, 60, alignment=False, n_hidden=128, n_latent_bio=20)
    expected = model.get_latent_representation()
    query_model = DisentangleModel.load_query_data(query, model)

    def distance():
        found = query_model.get_latent_representation()
        return ((found - expected) ** 2).sum(axis=1).mean()

    query_model.is_trained = True
    before = distance()
    query_model.is_trained = False
    query_model.train(200, enable_progress_bar=False, plan_kwargs={"weight_decay": 0.0})
    assert distance() < 0.55 * before
    shifts = query_model.module.gene_shifts.shifts[-1].detach().numpy()
    assert shifts[off].mean() > 3 * abs(shifts[~off].mean()) > 0
    ridge = query_model.history["gene_shifts_weighted_train"].to_numpy()[-1, 0]
    assert ridge == pytest.approx(0.5 * (shifts**2).sum(), rel=0.1)


def test_query_cells_take_the_label_of_the_reference_cells_around_them():
    adata = data.simulated(n_cells=900, n_genes=100, n_types=3, marker_log_fold_change=2.0, seed=0)
    new = (adata.obs["batch"] == NEW).to_numpy()
    query = adata[new].copy()
    model = fit(adata[~new].copy(), 60, n_hidden=128, n_latent_bio=20)
    truth = query.obs["celltype"].to_numpy()
    unlabelled = query.copy()
    del unlabelled.obs["celltype"]
    query_model = mapped(model, unlabelled, 2)
    assert (query_model.predict() == truth).mean() > 0.85
    soft = query_model.predict(soft=True)
    assert list(soft.columns) == ["type_0", "type_1", "type_2"]
    assert list(soft.index) == list(query.obs_names)
    np.testing.assert_allclose(soft.sum(axis=1), 1)


@pytest.mark.parametrize("nio_flow", FLOWS)
def test_a_query_of_known_and_new_batches_leaves_the_known_ones(cells, nio_flow):
    both = ad.concat(cells)
    model = fit(cells[0].copy(), 3, nio_flow=nio_flow)
    assert_reference_is_unchanged(model, mapped(model, both))


def test_a_saved_query_with_embeddings_stays_frozen(cells, tmp_path):
    both = ad.concat(cells)
    model = fit(cells[0].copy(), 3, batch_representation="embedding")
    for name, query in {"both": both, "known": cells[0].copy()}.items():
        query_model = DisentangleModel.load_query_data(query, model)
        query_model.save(tmp_path / name, save_anndata=True)
        loaded = DisentangleModel.load(tmp_path / name)
        assert loaded.module.is_frozen == (name == "known")
        if name == "both":
            loaded.train(5, enable_progress_bar=False)
            learned, reference = (m.module.get_embedding("batch").weight for m in (loaded, model))
            assert learned[:2].equal(reference)
        assert_reference_is_unchanged(model, loaded)


@pytest.mark.parametrize("n_epochs", [0, 3])
def test_what_is_frozen_stays_frozen_in_a_saved_query(cells, tmp_path, n_epochs):
    reference, query = cells
    query.obs["sex"] = np.where(np.arange(query.n_obs) % 2, "f", "unknown")
    model = fit(reference.copy(), 5, {"categorical_covariate_keys": ["sex"]}, dropout_rate=0.1)
    query_model = DisentangleModel.load_query_data(query.copy(), model, freeze_dropout=True)
    if n_epochs > 0:
        query_model.train(n_epochs, enable_progress_bar=False)
    query_model.save(tmp_path / "query", save_anndata=True)
    loaded = DisentangleModel.load(tmp_path / "query")
    assert all(p == 0 for p in dropouts(loaded))
    before = loaded.module.flow.codes[2].clone()
    loaded.train(5, enable_progress_bar=False)
    assert_reference_is_unchanged(model, loaded)
    assert not loaded.module.flow.codes[2].equal(before)
    assert loaded.module.gene_shifts.shifts[2].any()


def test_queries_that_are_prepared_share_nothing(cells):
    reference, query = (adata.copy() for adata in cells)
    query.uns["parameters"] = {"resolution": 1.0}
    genes = list(query.var_names)
    model = fit(reference[:, 10:].copy(), 1)
    first, second = (
        DisentangleModel.prepare_query_anndata(query, model, inplace=False) for _ in range(2)
    )
    assert (list(query.var_names), list(first.var_names)) == (genes, genes[10:])
    first.uns["parameters"]["resolution"] = 2.0
    first.uns["report"] = 1
    for adata in (query, second):
        assert adata.uns["parameters"] == {"resolution": 1.0}
        assert "report" not in adata.uns


def test_what_is_frozen_stays_frozen_in_a_copy(cells):
    model = fit(cells[0].copy(), 3)
    copied = deepcopy(DisentangleModel.load_query_data(cells[1].copy(), model))
    before = copied.module.flow.codes[2].clone()
    copied.train(3, enable_progress_bar=False)
    assert_reference_is_unchanged(model, copied)
    assert not copied.module.flow.codes[2].equal(before)


def test_a_query_of_an_older_file_is_not_trained(cells, tmp_path):
    model = fit(cells[0].copy(), 3)
    query_model = mapped(model, cells[1], 2)
    del query_model.frozen_
    query_model.save(tmp_path / "query", save_anndata=True)
    loaded = DisentangleModel.load(tmp_path / "query")
    with pytest.warns(UserWarning, match="map it again"):
        loaded.train(1)
    expected = query_model.get_latent_representation()
    np.testing.assert_array_equal(loaded.get_latent_representation(), expected)


def test_an_unfrozen_query_of_a_query_is_saved_and_loaded(cells, tmp_path):
    reference, query = cells
    third = query.copy()
    third.obs["batch"] = "batch_3"
    again = mapped(mapped(fit(reference.copy(), 5), query, 5), third, 2, unfrozen=True)
    again.save(tmp_path / "again", save_anndata=True)
    loaded = DisentangleModel.load(tmp_path / "again")
    for data_, representation in product((None, query.copy()), ("bio", "batch")):
        np.testing.assert_array_equal(
            loaded.get_latent_representation(data_, representation=representation),
            again.get_latent_representation(data_, representation=representation),
        )
    again.train(1, enable_progress_bar=False)
    assert not any("gene_shifts" in name for name in again.history)


def test_a_query_model_is_saved_loaded_and_mapped_upon(cells, tmp_path):
    reference, query = cells
    model = fit(reference.copy(), 5)
    model.save(tmp_path / "reference")
    query_model = mapped(str(tmp_path / "reference"), query, 2)
    assert_reference_is_unchanged(model, query_model)
    query_model.save(tmp_path / "query", save_anndata=True)
    loaded = DisentangleModel.load(tmp_path / "query")
    assert_reference_is_unchanged(model, loaded)
    for representation in ("bio", "batch"):
        np.testing.assert_array_equal(
            loaded.get_latent_representation(representation=representation),
            query_model.get_latent_representation(representation=representation),
        )
    third = query.copy()
    third.obs["batch"] = "batch_3"
    again = mapped(loaded, third, 2)
    assert_reference_is_unchanged(model, again)
    assert again.module.n_batch == 4
    for representation in ("bio", "batch"):
        np.testing.assert_allclose(
            again.get_latent_representation(query.copy(), representation=representation),
            query_model.get_latent_representation(representation=representation),
            atol=1e-6,
        )


def test_genes_that_the_query_lacks_are_padded(cells):
    reference, query = cells
    model = fit(reference.copy(), 3)
    assert list(
        DisentangleModel.prepare_query_anndata(query, model, return_reference_var_names=True)
    ) == list(reference.var_names)
    partial = query[:, query.var_names[:90][::-1]].copy()
    prepared = DisentangleModel.prepare_query_anndata(partial, model, inplace=False)
    assert list(prepared.var_names) == list(reference.var_names)
    assert prepared[:, reference.var_names[90:]].X.sum() == 0
    assert mapped(model, prepared, 1).get_latent_representation().shape == (query.n_obs, 5)


def test_a_query_of_a_reference_that_was_not_aligned_is_not_moved(cells):
    model = fit(cells[0].copy(), 20)
    model.module.alignment.levels.zero_()
    model.module.unsettle()
    expected = model.get_latent_representation()
    query = cells[0].copy()
    query.obs["batch"] = "new"
    found = mapped(model, query, 3).get_latent_representation()
    spread = expected.std(axis=0).mean()
    assert np.abs(found.mean(axis=0) - expected.mean(axis=0)).max() < 0.2 * spread


def test_a_query_may_have_more_labels_than_a_reference_of_one(cells):
    reference, query = (part.copy() for part in cells)
    reference.obs["celltype"] = "Unknown"
    model = fit(reference, 3)
    assert_reference_is_unchanged(model, mapped(model, query, 2))


@pytest.mark.parametrize("options", [{"unfrozen": True}, {"freeze_expression": False}])
def test_labels_of_a_reference_that_moves_are_left_out(cells, options):
    model = fit(cells[0].copy(), 2)
    assert DisentangleModel.load_query_data(cells[1].copy(), model).labelled_codes_ is not None
    query = cells[1].copy()
    query.obs["celltype"] = "Unknown"
    query_model = mapped(model, query, 1, **options)
    with pytest.raises(InputError, match="No cell is labelled"):
        query_model.predict()


def test_a_query_of_other_gene_names_is_told_so(cells):
    model = fit(cells[0].copy(), 1)
    query = cells[1].copy()
    query.var_names = [f"ENSG{i}" for i in range(query.n_vars)]
    with pytest.raises(InputError, match=r"No gene of adata.*'ENSG0', .*'gene_0', .*symbols"):
        DisentangleModel.prepare_query_anndata(query, model)


def test_raw_values_that_stay_are_not_warned_of(cells):
    model = fit(cells[0].copy(), 1)
    query = cells[1][:, 5:].copy()
    query.raw = query.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*raw")
        DisentangleModel.prepare_query_anndata(query, model)
    assert query.raw is not None


@pytest.mark.parametrize("names", ["obs_names", "var_names"])
def test_genes_of_names_given_twice_are_not_padded(cells, names):
    model = fit(cells[0].copy(), 1)
    query = cells[1].copy()
    setattr(query, names, ["twice"] * 2 + list(getattr(query, names)[2:]))
    with pytest.raises(InputError, match=rf"adata.{names}_make_unique\(\)"):
        DisentangleModel.prepare_query_anndata(query, model)


def test_what_is_not_frozen_is_trained(cells):
    reference, query = cells
    model = fit(reference.copy(), 3, dropout_rate=0.1)
    unfrozen = mapped(model, query, 2, unfrozen=True)
    learned = dict(model.module.named_parameters())

    def unchanged(query_model):
        return {
            name
            for name, p in query_model.module.named_parameters()
            if p.shape == learned[name].shape and p.equal(learned[name])
        }

    assert not unchanged(unfrozen)
    assert not any(p == 0 for p in dropouts(unfrozen))
    parts = {
        "freeze_expression": "encoder.bio_encoder.fc_layers.Layer 0.0.weight",
        "freeze_decoder_first_layer": "decoder.trunk.fc_layers.Layer 0.0.bias",
        "freeze_classifier": "classifier.classifier.0.fc_layers.Layer 0.0.weight",
    }
    frozen = unchanged(mapped(model, query, 2))
    for option, part in parts.items():
        assert any(name == part for name in frozen), sorted(frozen)
        freed = mapped(model, query, 2, **{option: False, "freeze_dropout": True})
        assert part not in unchanged(freed)
        assert all(p == 0 for p in dropouts(freed))
    assert dropouts(mapped(model, query, 1)) == dropouts(model)


def dropouts(model):
    return [layer.p for layer in model.module.modules() if isinstance(layer, torch.nn.Dropout)]


def test_a_query_of_known_batches_is_ready(cells):
    model = fit(cells[0], max_epochs=2)
    query = cells[0][::2].copy()
    query_model = DisentangleModel.load_query_data(query, model)
    expected = model.get_latent_representation()[::2]
    np.testing.assert_array_equal(query_model.get_latent_representation(), expected)
    with pytest.warns(UserWarning, match="nothing to train"):
        query_model.train(1)
    np.testing.assert_array_equal(query_model.get_latent_representation(), expected)


def test_the_reference_must_be_trained(cells):
    reference = cells[0].copy()
    DisentangleModel.setup_anndata(reference, batch_key="batch")
    for untrained in (DisentangleModel(reference, n_hidden=8), None):
        with pytest.raises(InputError, match="not trained"):
            DisentangleModel.load_query_data(cells[1].copy(), untrained)


def test_what_describes_a_query_stays_when_genes_are_added(cells):
    model, query = fit(cells[0], 1), cells[1][:, :90].copy()
    query.uns["batch_colors"] = ["red"]
    query.raw = query[:, :50].copy()
    returned = DisentangleModel.prepare_query_anndata(query.copy(), model, inplace=False)
    DisentangleModel.prepare_query_anndata(query, model)
    for prepared in (query, returned):
        assert prepared.n_vars == 100
        assert prepared.uns["batch_colors"] == ["red"]
        assert prepared.raw.shape == (query.n_obs, 50)


@pytest.mark.parametrize("missing", [False, True])
def test_numbers_in_the_reference_and_text_in_the_query(cells, missing):
    reference, query = (adata.copy() for adata in cells)
    reference.obs["celltype"] = np.arange(reference.n_obs) % 3
    query.obs["celltype"] = "1"
    if missing:
        del query.obs["celltype"]
    before = list(query.obs)
    model = fit(reference, 1)
    with pytest.raises(InputError, match="celltype'.*of type str .*of type int.*astype"):
        DisentangleModel.load_query_data(query, model)
    assert list(query.obs) == before
