"""Bad input: the error names the culprit and the way out, and nothing is lost."""

import warnings
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scdisentangle import DisentangleModel, InputError, _validation, data, pp


def make(n_cells=40, n_genes=12, n_batches=2, x=None):
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, (n_cells, n_genes)).astype(np.float32) if x is None else x
    obs = pd.DataFrame(
        {"batch": [f"b{i % n_batches}" for i in range(x.shape[0])]},
        index=[f"cell{i}" for i in range(x.shape[0])],
    )
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(x.shape[1])]))


def fitted(adata, layer=None, **kwargs):
    DisentangleModel.setup_anndata(adata, batch_key="batch", layer=layer)
    model = DisentangleModel(adata, n_hidden=8, n_latent_bio=3, n_latent_nio=2, **kwargs)
    model.train(max_epochs=1, enable_progress_bar=False)
    return model


def with_value(value, kind):
    x = make().X.copy()
    x[7, 3] = value
    return make(x=kind(x))


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("batch_key", {"batch_key": "batc"}),
        ("labels_key", {"batch_key": "batch", "labels_key": "batc"}),
        ("size_factor_key", {"batch_key": "batch", "size_factor_key": "batc"}),
        ("categorical_covariate_keys", {"categorical_covariate_keys": ["batc"]}),
        ("continuous_covariate_keys", {"continuous_covariate_keys": ["batc"]}),
    ],
)
def test_missing_key(argument, kwargs):
    with pytest.raises(InputError, match=rf"{argument}.*'batc'.*Did you mean 'batch'"):
        DisentangleModel.setup_anndata(make(), **kwargs)


def test_columns_of_scvi_tools_are_not_offered():
    adata = make()
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    assert "_scvi_batch" in adata.obs
    with pytest.raises(InputError, match=r"Known: batch\.$"):
        DisentangleModel.setup_anndata(adata, batch_key="donor")


def test_columns_of_one_name():
    adata = make()
    adata.obs = pd.concat([adata.obs, adata.obs[["batch"]]], axis=1)
    with pytest.raises(InputError, match="several columns named 'batch'.*duplicated"):
        DisentangleModel.setup_anndata(adata, batch_key="batch")
    adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]
    DisentangleModel.setup_anndata(adata, batch_key="batch")


def test_missing_values_among_several_types_are_told_first():
    """Text would make a category of them."""
    adata = make()
    adata.obs["batch"] = np.resize(np.array([1, "x", None], dtype=object), adata.n_obs)
    with pytest.raises(InputError, match="has no value for"):
        DisentangleModel.setup_anndata(adata, batch_key="batch")


@pytest.mark.parametrize("key", ["batch_key", "labels_key"])
def test_categories_that_text_made_of_missing_values_are_warned_of(key):
    adata = make()
    adata.obs["of"] = np.resize(["a", "b", "nan"], adata.n_obs)
    with pytest.warns(UserWarning, match=rf"'of'\] \({key}\) has the value 'nan'.*leave them out"):
        DisentangleModel.setup_anndata(adata, **{key: "of"})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has the value")
        DisentangleModel.setup_anndata(adata, labels_key="of", unlabeled_category="nan")


def test_missing_layer():
    with pytest.raises(InputError, match="layer='counts' is not in adata.layers"):
        DisentangleModel.setup_anndata(make(), layer="counts")


def test_nan_among_batches():
    adata = make()
    adata.obs.loc[["cell3", "cell5"], "batch"] = np.nan
    with pytest.raises(InputError, match="'batch'.*2 cells: 'cell3', 'cell5'.*notna"):
        DisentangleModel.setup_anndata(adata, batch_key="batch")


def test_nan_among_labels_may_be_unlabelled():
    adata = make()
    adata.obs["type"] = ["a", None] * 20
    with pytest.raises(InputError, match="'type'.*20 cells.*unlabeled_category"):
        DisentangleModel.setup_anndata(adata, labels_key="type")


@pytest.mark.parametrize(
    ("argument", "values", "problem"),
    [
        ("size_factor_key", [1.0, 0.0], "above zero.*20 cells: 'cell1'"),
        ("size_factor_key", [1.0, -2.0], "above zero.*20 cells: 'cell1'"),
        ("size_factor_key", [1.0, np.inf], "finite.*20 cells: 'cell1'"),
        ("size_factor_key", ["a", "b"], "must hold numbers"),
        ("continuous_covariate_keys", [1.0, np.inf], "finite.*20 cells: 'cell1'"),
        ("continuous_covariate_keys", ["1.5", "2"], "must hold numbers"),
    ],
)
def test_columns_that_must_hold_numbers(argument, values, problem):
    adata = make()
    adata.obs["number"] = values * 20
    key = ["number"] if argument.endswith("keys") else "number"
    with pytest.raises(InputError, match=rf"adata.obs\['number'\].*{problem}"):
        DisentangleModel.setup_anndata(adata, batch_key="batch", **{argument: key})


@pytest.mark.parametrize("dtype", [object, "category"])
def test_a_batch_of_several_types(dtype):
    adata = make()
    adata.obs["batch"] = pd.Series(["a", 1] * 20, adata.obs_names, dtype=dtype)
    with pytest.raises(InputError, match="several types, int and str.*astype"):
        DisentangleModel.setup_anndata(adata, batch_key="batch")


def test_keys_that_are_no_list():
    with pytest.raises(InputError, match=r"must be a list: categorical_covariate_keys=\['batch'\]"):
        DisentangleModel.setup_anndata(make(), categorical_covariate_keys="batch")


def test_an_argument_of_setup_that_is_misspelt():
    with pytest.raises(InputError, match="'label_key'. Did you mean 'labels_key'"):
        DisentangleModel.setup_anndata(make(), batch_key="batch", label_key="batch")


@pytest.mark.parametrize("adata", ["cells.h5ad", None, pd.DataFrame()])
def test_what_is_no_anndata(adata):
    with pytest.raises(InputError, match=f"type {type(adata).__name__}.*must be an AnnData.*read"):
        DisentangleModel.setup_anndata(adata, batch_key="batch")


def test_a_model_is_not_loaded_with_what_is_no_anndata(tmp_path):
    with pytest.raises(InputError, match="type str.*must be an AnnData"):
        DisentangleModel.load(tmp_path, adata="cells.h5ad")


def test_sums_of_counts_of_sixteen_bits():
    adata = make(x=np.full((4, 40), 2_000, np.float16))
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    assert DisentangleModel(adata).module.target_sum == 80_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_values_that_are_not_finite(value, kind):
    with pytest.raises(InputError, match="adata.X holds NaN or infinite.*'cell7'.*'gene3'"):
        DisentangleModel.setup_anndata(with_value(value, kind), batch_key="batch")


@pytest.mark.parametrize("value", [-1.0, 0.5])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_values_that_are_no_counts(value, kind, likelihood):
    adata = with_value(value, kind)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    with pytest.raises(InputError, match=f"'{likelihood}'.*'cell7'.*'gene3'.*'mse'"):
        DisentangleModel(adata, gene_likelihood=likelihood)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_counts_need_not_be_whole_where_they_cannot_be_logarithms(kind, likelihood):
    x = make().X * 20.3
    adata = make(x=kind(x))
    assert fitted(adata, gene_likelihood=likelihood).module.log_normalize
    x[7, 3] = -1.0
    adata = make(x=kind(x))
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    with pytest.raises(InputError, match="'cell7'.*'gene3'.*'mse'"):
        DisentangleModel(adata, gene_likelihood=likelihood)


def test_cells_without_counts():
    x = make().X.copy()
    x[[2, 9]] = 0
    adata = make(x=sparse.csr_matrix(x))
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    with pytest.raises(InputError, match="2 cells have no counts.*'cell2', 'cell9'.*filter_cells"):
        DisentangleModel(adata)


@pytest.mark.parametrize(("shape", "what"), [((0, 5), "cells"), ((5, 0), "genes")])
def test_nothing_to_learn_from(shape, what):
    with pytest.raises(InputError, match=f"no {what}"):
        DisentangleModel.setup_anndata(make(x=np.zeros(shape, np.float32)), batch_key="batch")


def test_one_batch_is_allowed_with_a_warning():
    adata = make(n_batches=1)
    with pytest.warns(UserWarning, match="one batch only") as warned:
        model = fitted(adata)
    assert {w.filename for w in warned if "one batch only" in str(w.message)} == {__file__}
    assert np.isfinite(model.get_latent_representation()).all()
    assert (model.predict_batch() == "b0").all()


def test_counts_that_are_not_the_registered_values_are_pointed_at():
    adata = make()
    adata.layers["counts"], adata.layers["mask"] = adata.X.copy(), adata.X > 0
    adata.X = np.log1p(adata.X)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    adata.layers["none"], adata.layers["complex"] = 0 * adata.X, 1j * adata.X
    with pytest.warns(UserWarning, match=r"adata.X holds no counts.*layers\['counts'\] may"):
        DisentangleModel(adata)
    adata.layers["spliced"] = pd.DataFrame(
        adata.layers["counts"], index=adata.obs_names, columns=adata.var_names
    )
    with pytest.warns(UserWarning, match=r"layers\['counts'\] and adata.layers\['spliced'\] may"):
        DisentangleModel(adata)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*holds no counts")
        DisentangleModel(adata, gene_likelihood="mse")  # asked for
        DisentangleModel.setup_anndata(adata, batch_key="batch", layer="counts")
        DisentangleModel(adata)


def test_a_batch_of_one_cell_is_allowed_with_a_warning():
    adata = make()
    adata.obs.loc["cell4", "batch"] = "lonely"
    with pytest.warns(UserWarning, match="single cell: 'lonely'"):
        model = fitted(adata)
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("n_cells", [1, 2, 3, 33, 65])
def test_few_cells_and_a_last_minibatch_of_one(n_cells):
    adata = make(n_cells=n_cells)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=8)
    model.train(max_epochs=2, train_size=1.0, batch_size=32, enable_progress_bar=False)
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    assert model.get_latent_representation().shape == (n_cells, 30)


def test_fewer_cells_than_a_minibatch_is_said():
    adata = make(n_cells=20)
    with pytest.warns(UserWarning, match=r"20 cells are fewer.*batch_size=128"):
        fitted(adata)


def test_unregistered_anndata():
    with pytest.raises(ValueError, match="setup_anndata"):
        DisentangleModel(make())


def test_missing_and_unknown_genes():
    model = fitted(make())
    with pytest.raises(InputError, match="lacks 2 of the model's genes: 'gene10', 'gene11'"):
        model.get_latent_representation(make(n_genes=10))
    with pytest.raises(InputError, match="1 genes that the model does not know: 'gene12'"):
        model.get_latent_representation(make(n_genes=13))


def test_genes_in_another_order():
    model = fitted(make())
    with pytest.raises(InputError, match="another order.*get_var_names"):
        model.get_latent_representation(make()[:, ::-1].copy())


def test_unseen_batch():
    model = fitted(make())
    with pytest.raises(InputError, match="'batch'.*did not see in training: 'b2'"):
        model.get_latent_representation(make(n_batches=3))


def test_new_data_is_checked_as_the_first_was():
    model = fitted(make())
    with pytest.raises(InputError, match="NaN"):
        model.get_latent_representation(with_value(np.nan, np.asarray))
    with pytest.raises(InputError, match="made for counts"):
        model.get_latent_representation(with_value(0.5, np.asarray))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: DisentangleModel(a, n_latnt_bio=3), "option 'n_latnt_bio'.*n_latent_bio"),
        (lambda a: DisentangleModel(a, n_latent_bio=0), "n_latent_bio=0"),
        (lambda a: DisentangleModel(a, n_latents=3), "Did you mean 'n_latent'"),
        (lambda a: DisentangleModel(a, n_latent=0), "n_latent_bio=0"),
        (lambda a: DisentangleModel(a, nio_flow="detach"), "Did you mean 'detached'"),
        (lambda a: DisentangleModel(a, encoder="joint"), "encoder='joint'.*separate, shared"),
        (lambda a: DisentangleModel(a, gene_likelihood="negbin"), "gene_likelihood='negbin'.*nb"),
        (lambda a: DisentangleModel(a, objective="hsik"), "hsic"),
        (lambda a: DisentangleModel(a).train(1, plan_kwargs={"noise_strt": 1}), "noise_start"),
        (lambda a: DisentangleModel(a).train(1, plan_kwargs={"noise_start": -1}), "zero or more"),
        (
            lambda a: DisentangleModel(a).train(1, plan_kwargs={"noise_end": np.nan}),
            "noise_end=nan must be a number",
        ),
        (
            lambda a: DisentangleModel(a).train(1, plan_kwargs={"noise_schedule": "line"}),
            "Did you mean 'linear'",
        ),
    ],
)
def test_unknown_options(call, message):
    adata = make()
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    with pytest.raises(ValueError, match=message):
        call(adata)


def test_unknown_representation():
    with pytest.raises(InputError, match="'noise' is not an option.*batch, bio, joint"):
        fitted(make()).get_latent_representation(representation="noise")


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, np.asfortranarray])
def test_the_users_data_is_left_alone(kind):
    adata = make(x=kind(make().X))
    adata.obs["score"] = 1.0
    before = adata.copy()
    fitted(adata)
    difference = adata.X != before.X
    assert difference.nnz == 0 if sparse.issparse(difference) else not difference.any()
    if isinstance(adata.X, np.ndarray):
        assert adata.X.flags["F_CONTIGUOUS"] == (kind is np.asfortranarray)
    pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    new = set(adata.obs) - set(before.obs)
    assert all(name.startswith("_scvi") for name in [*new, *adata.uns])


def test_a_key_where_there_are_none_at_all():
    adata = ad.AnnData(np.ones((4, 3), dtype=np.float32))
    adata.obs["batch"] = ["a", "a", "b", "b"]
    with pytest.raises(InputError, match=r"'counts' is not in adata.layers. There are none\."):
        DisentangleModel.setup_anndata(adata, batch_key="batch", layer="counts")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda copy: copy[:, ::-1].copy(), "genes in another order"),
        (lambda copy: copy[:, :-1].copy(), "lacks 1 of the model's genes"),
        (
            lambda copy: ad.AnnData(np.log1p(copy.X), copy.obs, copy.var, copy.uns),
            "made for counts",
        ),
        (lambda copy: ad.AnnData(copy.X * np.nan, copy.obs, copy.var, copy.uns), "NaN"),
        (lambda copy: copy.obs.__setitem__("batch", "new") or copy, "'batch'.*'new'"),
        (lambda copy: copy.obs.__setitem__("batch", np.nan) or copy, "'batch'.*no value for 40"),
    ],
)
def test_copies_of_the_registered_data_are_checked_as_new_data_are(change, problem):
    adata = make()
    model = fitted(adata)
    changed = change(adata.copy())
    assert changed.uns["_scvi_uuid"] == adata.uns["_scvi_uuid"]
    with pytest.raises(InputError, match=problem):
        model.get_latent_representation(changed)


def test_registered_counts_that_became_logarithms():
    adata = make()
    model = fitted(adata)
    before = model.get_latent_representation()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    for use in (model.get_latent_representation, model.get_normalized_expression, model.train):
        with pytest.raises(InputError, match="have changed since they were registered.*'cell0'"):
            use()
    adata.X = adata.layers["counts"]
    np.testing.assert_array_equal(model.get_latent_representation(), before)


@pytest.mark.parametrize("of_counts", [True, False])
def test_values_under_squared_error_stay_of_their_kind(of_counts):
    """A model of counts would normalise logarithms too, and one of logarithms no counts."""
    kinds = {True: make(), False: make()}
    kinds[False].X = np.log1p(kinds[False].X)
    model = fitted(kinds[of_counts], gene_likelihood="mse")
    expected = model.get_latent_representation()
    wrong = "has negative or non-integer values" if of_counts else "holds counts"
    with pytest.raises(InputError, match=wrong):
        model.get_latent_representation(kinds[not of_counts])
    own = kinds[of_counts]
    own.layers["right"] = own.X
    own.X = kinds[not of_counts].X
    for use in (model.get_latent_representation, model.train):
        with pytest.raises(InputError, match=f"have changed since they were registered.*{wrong}"):
            use()
    own.X = own.layers["right"]
    np.testing.assert_array_equal(model.get_latent_representation(), expected)


def test_registered_data_that_lost_genes_their_order_or_their_layer():
    for change, problem in (
        (lambda a: a._inplace_subset_var(np.arange(a.n_vars)[::-1]), "in another order"),
        (lambda a: a._inplace_subset_var(np.arange(a.n_vars - 1)), "lacks 1 of the model's genes"),
        (lambda a: a.layers.pop("counts"), "'counts' is not in adata.layers"),
    ):
        adata = make()
        adata.layers["counts"] = adata.X.copy()
        model = fitted(adata, layer="counts")
        change(adata)
        for use in (model.get_latent_representation, model.train):
            with pytest.raises(InputError, match=f"have changed since they were reg.*{problem}"):
                use()


def test_batches_without_a_cell_are_named():
    adata = make()
    adata.obs["batch"] = adata.obs["batch"].astype("category").cat.add_categories(["empty"])
    with pytest.warns(UserWarning, match="without a cell: 'empty'.*remove_unused_categories"):
        DisentangleModel.setup_anndata(adata, batch_key="batch")


@pytest.mark.parametrize(("found", "given"), [(-1, "-1"), ("unknown", "Unknown")])
def test_a_label_that_is_nearly_the_one_of_unlabelled_cells_is_named(found, given):
    adata = make()
    adata.obs["type"] = [found, *[0 if isinstance(found, int) else "B"] * (adata.n_obs - 1)]
    with pytest.warns(UserWarning, match=f"{found!r} is taken for a cell type.*={found!r}"):
        DisentangleModel.setup_anndata(
            adata, batch_key="batch", labels_key="type", unlabeled_category=given
        )


@pytest.mark.parametrize(
    ("of_model", "kind"),
    [(pd.to_numeric, "int"), (lambda batch: pd.to_datetime("2026-01-1" + batch), "datetime")],
)
def test_batches_of_another_type(of_model, kind):
    adata = make()
    adata.obs["batch"] = of_model(adata.obs["batch"].str[1:])
    model = fitted(adata)
    new = make()
    new.obs["batch"] = new.obs["batch"].str[1:]
    with pytest.raises(InputError, match=f"of type str .*were of type {kind}.*astype"):
        model.get_latent_representation(new)


def test_a_model_without_data(tmp_path):
    fitted(make()).save(tmp_path / "model")
    model = DisentangleModel.load(tmp_path / "model", adata=False)
    with pytest.raises(InputError, match="made without data: pass adata="):
        model.get_latent_representation()


@pytest.mark.parametrize("labels", ["Unknown", "new type"])
def test_new_cells_need_no_known_label(labels):
    adata = make()
    adata.obs["type"] = ["a", "b"] * 20
    DisentangleModel.setup_anndata(adata, batch_key="batch", labels_key="type")
    model = DisentangleModel(adata, n_hidden=8, n_latent_bio=3, n_latent_nio=2)
    model.train(max_epochs=1, enable_progress_bar=False)
    new = make()
    with pytest.raises(InputError, match="labels_key='type' is not in adata.obs"):
        model.get_latent_representation(new)
    new.obs["type"] = labels
    np.testing.assert_array_equal(
        model.get_latent_representation(new), model.get_latent_representation()
    )
    np.testing.assert_array_equal(model.predict(new, n_neighbors=1), adata.obs["type"])


@pytest.mark.parametrize(
    ("indices", "problem"),
    [
        ([], "no cells"),
        ([True, False], "a mask of 40 cells.*bool.*2"),
        (["cell1"], "positions of cells.*get_indexer"),
        (3, "positions of cells"),
        ([0, 40], "'40', of 40 cells"),
    ],
)
def test_indices_that_name_no_cells(indices, problem):
    with pytest.raises(InputError, match=problem):
        fitted(make()).get_latent_representation(indices=indices)


def test_a_mask_and_a_tuple_name_cells():
    model = fitted(make())
    every = model.get_latent_representation()
    mask = [False, True] * 20
    for indices, cells in ((mask, slice(1, None, 2)), ((3, 1), [3, 1]), ([5, -1, 2], [5, 39, 2])):
        codes = model.get_latent_representation(indices=indices)
        np.testing.assert_allclose(codes, every[cells], atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 0},
        {"max_epochs": 2.5},
        {"max_epochs": 1, "batch_size": 0},
        {"max_epochs": 1, "train_size": 0},
        {"max_epochs": 1, "train_size": 1.5},
    ],
)
def test_options_of_training_out_of_their_range(options):
    adata = make()
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    option = list(options)[-1]
    with pytest.raises(InputError, match=f"{option}=.* must be"):
        DisentangleModel(adata, n_hidden=8).train(**options)


def test_a_plateau_of_validation_needs_cells_that_validate():
    adata = make()
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=8)
    for options in (
        {"train_size": 1.0},
        {"train_size": 1.0, "datamodule": None},
        {"train_size": 0.99},
        {"validation_size": 0},
        {"validation_size": 0.001},
    ):
        with pytest.raises(InputError, match="reduce_lr_on_plateau=True watches.*smaller train"):
            model.train(1, **options, plan_kwargs={"reduce_lr_on_plateau": True})


@pytest.mark.parametrize("x", [np.full((6, 4), "3"), np.full((6, 4), 3j)])
def test_values_that_are_no_real_numbers(x):
    with pytest.raises(InputError, match="adata.X holds values of type .* must hold numbers"):
        DisentangleModel.setup_anndata(make(x=x), batch_key="batch")


def test_one_name_for_the_dimensions_of_z_bio():
    adata = make()
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    assert DisentangleModel(adata, n_latent=7).module.encoder.bio_head.mean.out_features == 7
    with pytest.raises(InputError, match="n_latent=7 is another name of n_latent_bio=5"):
        DisentangleModel(adata, n_latent_bio=5, n_latent=7)


def test_a_measurement_that_is_named_as_batch_is_told():
    adata = make()
    adata.obs["score"] = np.random.default_rng(0).normal(size=adata.n_obs)
    with pytest.warns(UserWarning, match="40 of 40 batches have a single cell.*'score'"):
        DisentangleModel.setup_anndata(adata, batch_key="score")


@pytest.mark.parametrize("held", [True, False])
def test_counts_in_raw_are_told_of(held):
    adata = make()
    logarithms = np.log1p(adata.X)
    if not held:
        adata.X = logarithms
    adata.raw = adata.copy()
    adata.X = logarithms
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        DisentangleModel(adata)
    assert any("adata.raw may" in str(warning.message) for warning in told) == held


def test_of_bad_values_the_first_are_named_and_that_there_are_more():
    x = make().X.copy()
    x[[1, 2, 4, 5, 6], 3] = np.nan
    message = r"in cells 'cell1', 'cell2', 'cell4' and more and genes 'gene3'\."
    with pytest.raises(InputError, match=message):
        DisentangleModel.setup_anndata(make(x=x), batch_key="batch")


@pytest.mark.parametrize("method", ["predict", "predict_batch", "get_batch_representation"])
def test_new_data_are_looked_at_once(method, monkeypatch):
    adata = data.simulated(n_cells=200, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch", labels_key="celltype")
    model = DisentangleModel(adata, n_hidden=16)
    model.train(1, enable_progress_bar=False)
    looked_at, check = [], _validation.check_values
    monkeypatch.setattr(
        _validation, "check_values", lambda *args: looked_at.append(args) or check(*args)
    )
    new = adata[:50].copy()
    options = {"soft": True} if method.startswith("predict") else {}
    of_new = getattr(model, method)(new, **options)
    assert len(looked_at) == 1
    of_own = getattr(model, method)(indices=np.arange(50), **options)
    np.testing.assert_allclose(np.asarray(of_new), np.asarray(of_own), atol=1e-6)


@pytest.mark.parametrize("argument", ["batch_key", "labels_key"])
def test_a_list_of_columns_where_one_is_meant(argument):
    adata = data.simulated(n_cells=60, n_genes=30, seed=0)
    options = {"batch_key": "batch"} | {argument: ["batch", "celltype"]}
    with pytest.raises(InputError, match=rf"{argument}=\['batch', 'celltype'\] must name one"):
        DisentangleModel.setup_anndata(adata, **options)


def test_values_that_are_taken_away_after_training():
    adata = data.simulated(n_cells=60, n_genes=30, seed=0)
    model = fitted(adata)
    adata.X = None
    with pytest.raises(InputError, match="changed since they were registered. adata.X is empty"):
        model.get_latent_representation()


def test_covariates_in_an_array():
    adata = data.simulated(n_cells=60, n_genes=30, seed=0)
    adata.obs["age"], adata.obs["dose"] = np.arange(60.0), np.arange(60.0)[::-1]
    keys = np.array(["age", "dose"])
    DisentangleModel.setup_anndata(adata, "batch", continuous_covariate_keys=keys)
    assert DisentangleModel(adata).summary_stats.n_extra_continuous_covs == 2


def test_lazy_sparse_values_are_selected_from_and_refused_in_training():
    adata = data.simulated(n_cells=60, n_genes=30, seed=0)
    dask = pytest.importorskip("dask.array")
    lazy = adata.copy()
    lazy.X = dask.from_array(adata.X, chunks=(20, 30), asarray=False)
    pp.select_genes(lazy, 10, batch_key="batch")
    pp.select_genes(adata, 10, batch_key="batch")
    assert lazy.var["highly_variable"].equals(adata.var["highly_variable"])
    with pytest.raises(InputError, match=r"lazy array of sparse.*adata.X = adata.X.compute\(\)"):
        DisentangleModel.setup_anndata(lazy, batch_key="batch")
    lazy.X = dask.from_array(adata.X.toarray(), chunks=(20, 30))
    DisentangleModel.setup_anndata(lazy, batch_key="batch")


def test_covariates_that_training_did_not_see():
    adata = make()
    adata.obs["sex"] = np.where(np.arange(adata.n_obs) % 2, "f", "m")
    DisentangleModel.setup_anndata(
        adata, batch_key="batch", categorical_covariate_keys=["sex", "batch"]
    )
    model = DisentangleModel(adata, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    for value, message in (("unknown", "did not see in training: 'unknown'"), (1, "of type int")):
        new = make()
        new.obs["sex"] = value
        with pytest.raises(InputError, match=f"'sex'.* {message}"):
            model.get_latent_representation(new)


def test_logarithms_are_not_encoded_by_a_model_of_counts():
    model = fitted(make())
    new = make(x=np.log1p(make().X))
    with pytest.raises(InputError, match="made for counts.*Give it counts as they were before"):
        model.get_latent_representation(new)


def test_new_cells_without_the_column_of_labels():
    adata = make()
    adata.obs["type"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    DisentangleModel.setup_anndata(adata, batch_key="batch", labels_key="type")
    model = DisentangleModel(adata, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    new = make()
    with pytest.raises(KeyError, match=r"'type' is not in.*adata\.obs\['type'\] = 'Unknown'"):
        model.predict(new)
    new.obs["type"] = "Unknown"
    assert len(model.predict(new)) == new.n_obs


def test_a_category_without_cells_is_no_batch_that_was_learnt(tmp_path):
    adata = make()
    adata.obs["batch"] = pd.Categorical(adata.obs["batch"], ["b0", "b1", "b2"])
    with pytest.warns(UserWarning, match="Batches without a cell: 'b2'"):
        model = fitted(adata)
    model.save(tmp_path / "model", save_anndata=True)
    new = make()
    new.obs["batch"] = "b2"
    for known in (model, DisentangleModel.load(tmp_path / "model")):
        for map_it in (known.get_latent_representation, partial(map_query, known)):
            with pytest.raises(InputError, match="cells of 'b2', a category.*another name"):
                map_it(new)
    new.obs["batch"] = "b3"
    query_model = map_query(model, new)
    query_model.train(1, enable_progress_bar=False)
    query_model.get_latent_representation(make())
    new = make()
    new.obs["batch"] = "b2"
    with pytest.raises(InputError, match="cells of 'b2'"):
        query_model.get_latent_representation(new)


def map_query(model, query):
    return DisentangleModel.load_query_data(query, model)
