"""A model of an older version, minified data, the hub, and data that are not a plain AnnData."""

from copy import deepcopy
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata.experimental import AnnCollection
from huggingface_hub import ModelCard
from mudata import MuData
from scvi import dataloaders
from scvi.dataloaders import CollectionAdapter
from scvi.hub import HubMetadata, HubModel

from scdisentangle import DisentangleModel, InputError, data

OLD = Path(__file__).parent / "fixtures" / "model_0.1.0"
SMALL = {"n_hidden": 16, "n_latent_bio": 5, "n_latent_nio": 3}


@pytest.fixture(scope="module")
def adata():
    return data.simulated(n_cells=200, n_genes=60, seed=0)


def fit(adata, **kwargs):
    scvi.settings.seed = 0
    adata = adata.copy()
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, **SMALL, **kwargs)
    model.train(3, enable_progress_bar=False)
    return model


@pytest.fixture
def model(adata):
    return fit(adata)


@pytest.fixture
def old_adata():
    adata = data.simulated(n_cells=60, n_genes=30, n_types=3, n_batches=2, seed=0)
    rng = np.random.default_rng(0)
    adata.obs["sex"] = rng.choice(["f", "m"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    return adata


@pytest.mark.parametrize("way", ["loaded", "saved again", "as the reference of a query"])
def test_the_codes_of_a_model_of_an_older_version_are_what_they_were(old_adata, tmp_path, way):
    model = DisentangleModel.load(OLD, adata=old_adata)
    if way == "saved again":
        model.save(tmp_path / "again")
        model = DisentangleModel.load(tmp_path / "again", adata=old_adata)
    elif way == "as the reference of a query":
        model = DisentangleModel.load_query_data(old_adata, model)
        model.is_trained_ = True
    bio = np.load(OLD / "latents.npz")["bio"]
    np.testing.assert_allclose(model.get_latent_representation(), bio, atol=1e-5)


def test_a_model_of_an_older_version_gives_what_it_gave(old_adata):
    adata = old_adata
    model = DisentangleModel.load(OLD, adata=adata)
    saved = np.load(OLD / "latents.npz")
    for representation in ("bio", "batch"):
        np.testing.assert_allclose(
            model.get_latent_representation(representation=representation),
            saved[representation],
            atol=1e-5,
        )
    assert model.module.axes is None
    error = model.get_reconstruction_error()["reconstruction_loss"]
    assert error == pytest.approx(saved["reconstruction_loss"].item(), rel=1e-5)
    assert (model.predict(n_neighbors=1) == adata.obs["celltype"]).all()  # each is its own


@pytest.mark.parametrize("options", [{}, {"kl_weight_bio": 0.5, "nio_flow": "variational"}])
@pytest.mark.parametrize("counts", [False, True])
def test_minified_data_give_what_the_data_gave(adata, tmp_path, options, counts):
    model = fit(adata, **options)
    codes = {
        r: model.get_latent_representation(representation=r, return_dist=True)
        for r in ("bio", "batch")
    }
    decoded = model.get_normalized_expression(transform_batch="batch_1", n_samples=500)
    mean, variance = codes["bio"]
    with pytest.raises(InputError, match="'X_latent_qzm' is not in adata.obsm. Put the codes"):
        model.minify_adata()
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean, variance
    kind = "latent_posterior_parameters" + ("_with_counts" if counts else "")
    model.minify_adata(kind)
    assert (model.adata.X.nnz > 0) is counts
    model.save(tmp_path / "model", save_anndata=True)
    for minified in (model, DisentangleModel.load(tmp_path / "model")):
        assert minified.minified_data_type == kind
        for representation, (mean, variance) in codes.items():
            found = minified.get_latent_representation(
                representation=representation, return_dist=True
            )
            np.testing.assert_allclose(found[0], mean, atol=1e-6)
            np.testing.assert_allclose(found[1], variance, atol=1e-6)
        again = minified.get_normalized_expression(transform_batch="batch_1", n_samples=500)
        np.testing.assert_allclose(again, decoded, rtol=0.2 if options else 1e-4, atol=1e-4)
        with pytest.raises(InputError, match="minified.*reads its codes"):
            minified.train(1)
        with pytest.raises(InputError, match="data are minified.*load_query_data"):
            minified.predict_batch(data.simulated(n_cells=20, n_genes=60, seed=1))
        assert minified.posterior_predictive_sample(indices=[0, 1]).shape == (2, 60)
        if counts:
            assert np.isfinite(minified.get_reconstruction_error()["reconstruction_loss"])
        else:
            with pytest.raises(ValueError, match="minified"):
                minified.get_reconstruction_error()


def test_the_hub_takes_the_model(model, tmp_path):
    codes = model.get_latent_representation()
    folder = str(tmp_path / "model")
    model.save(folder, save_anndata=True)
    metadata = HubMetadata.from_dir(folder, anndata_version=ad.__version__)
    assert metadata.model_cls_name == "DisentangleModel"
    metadata.model_parent_module = "scdisentangle"
    card = ModelCard("---\nlicense: bsd-3-clause\n---\nA model.")
    hub = HubModel(folder, metadata=metadata, model_card=card)
    np.testing.assert_allclose(hub.model.get_latent_representation(), codes, atol=1e-6)


def test_a_modality_of_mudata_gives_what_it_gives_alone(adata, tmp_path):
    expected = fit(adata)
    rna = adata.copy()
    rna.obs["type"] = rna.obs["celltype"].astype(str)
    protein = ad.AnnData(np.ones((adata.n_obs, 4), np.float32), obs=adata.obs[[]].copy())
    protein.var_names = [f"protein_{i}" for i in range(4)]
    mdata = MuData({"protein": protein, "rna": rna})
    modalities = {"rna_layer": "rna", "batch_key": "rna", "labels_key": "rna"}
    scvi.settings.seed = 0
    DisentangleModel.setup_mudata(
        mdata, modalities, batch_key="batch", labels_key="type", rna_layer="counts"
    )
    model = DisentangleModel(mdata, **SMALL, objective={"contrastive": {"positives": "views"}})
    model.train(3, enable_progress_bar=False)
    assert model.get_latent_representation().shape == (200, 5)
    table = model.get_normalized_expression(transform_batch="batch_0", gene_list=["gene_3"])
    assert list(table.columns) == ["gene_3"]
    assert list(table.index) == list(mdata.obs_names)
    np.testing.assert_allclose(model.get_normalized_expression().sum(axis=1), 1, rtol=1e-5)
    assert (model.predict(n_neighbors=1) == adata.obs["celltype"]).all()  # each is its own
    assert model.module.target_sum == expected.module.target_sum
    model.save(tmp_path / "model", save_anndata=True)
    loaded = DisentangleModel.load(tmp_path / "model")
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-6
    )
    scvi.settings.seed = 1
    backwards = model._make_data_loader(mdata, np.arange(200)[::-1])
    np.testing.assert_allclose(
        model.get_normalized_expression(dataloader=backwards),
        model.get_normalized_expression().to_numpy()[::-1],
        rtol=1e-5,
    )
    new = MuData({"protein": protein[:40].copy(), "rna": rna[:40].copy()})
    new["rna"].obs["batch"] = "new"
    query = DisentangleModel.load_query_data(new, tmp_path / "model")
    assert query.summary_stats.n_batch == 4
    model.save(tmp_path / "alone")
    with pytest.raises(InputError, match="saved without its MuData"):
        DisentangleModel.load_query_data(new, tmp_path / "alone")
    scvi.settings.seed = 1
    every = model.posterior_predictive_sample(n_samples=2).todense()
    scvi.settings.seed = 1
    some = model.posterior_predictive_sample(n_samples=2, gene_list=["gene_3", "gene_1"]).todense()
    np.testing.assert_array_equal(some, every[:, [1, 3]])
    by_position = model.get_normalized_expression(None, None, "batch_0", ["gene_3"])
    pd.testing.assert_frame_equal(by_position, table)
    with pytest.raises(InputError, match="of type AnnData, and the model was made for a MuData"):
        model.get_latent_representation(rna)
    with pytest.raises(InputError, match="adata is a MuData: register it with setup_mudata"):
        DisentangleModel.setup_anndata(mdata, batch_key="batch")
    with pytest.raises(InputError, match="mdata is of type AnnData, and must be a MuData"):
        DisentangleModel.setup_mudata(rna, modalities)
    with pytest.raises(InputError, match="takes no MuData"):
        model.get_feature_correlation_matrix()
    with pytest.raises(InputError, match=r"MuData cannot be minified.*mdata\.mod"):
        model.minify_adata()
    with pytest.raises(InputError, match="protein, rna"):
        DisentangleModel.setup_mudata(mdata, {"rna_layer": "atac"})


def test_all_that_a_mudata_registers_is_what_an_anndata_registers(adata):
    """Some columns in the modality, some in the MuData, and the same model of both."""
    adata = adata.copy()
    rng = np.random.default_rng(0)
    adata.obs["type"] = np.where(np.arange(200) % 3, adata.obs["celltype"].astype(str), "?")
    adata.obs["sex"] = rng.choice(["f", "m"], 200)
    adata.obs["age"] = rng.normal(size=200)
    adata.obs["size"] = rng.uniform(0.5, 2.0, 200)
    mdata = MuData({"other": adata[:, :10].copy(), "rna": adata.copy()})
    mdata.obs["sex"] = adata.obs["sex"]
    options = {
        "batch_key": "batch",
        "labels_key": "type",
        "size_factor_key": "size",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
        "unlabeled_category": "?",
    }
    arguments = options.keys() - {"categorical_covariate_keys", "unlabeled_category"}
    DisentangleModel.setup_mudata(mdata, dict.fromkeys(["rna_layer", *arguments], "rna"), **options)
    DisentangleModel.setup_anndata(adata, **options)
    models = [DisentangleModel(cells, **SMALL, encode_covariates=True) for cells in (adata, mdata)]
    assert models[1].module.unlabeled_code == models[0].module.unlabeled_code is not None
    models[1].module.load_state_dict(models[0].module.state_dict())
    for model in models:
        model.module.eval()
        model.is_trained_ = True
    for of in (
        DisentangleModel.get_latent_representation,
        lambda model: model.get_normalized_expression(library_size="latent"),
        DisentangleModel.predict,
    ):
        expected, found = map(of, models)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "vanilla"},
        {"mode": "change", "batch_correction": True},
        {
            "mode": "change",
            "batch_correction": True,
            "batchid1": ["batch_0"],
            "batchid2": ["batch_1"],
            "fdr_target": 0.4,
            "delta": 0.1,
        },
    ],
)
def test_differential_expression_of_mudata_finds_the_markers_that_it_finds_alone(adata, options):
    alone = fit(adata)
    mdata = MuData({"other": adata[:, :10].copy(), "rna": adata.copy()})
    mdata.obs["type"] = adata.obs["celltype"]
    DisentangleModel.setup_mudata(
        mdata, {"rna_layer": "rna", "batch_key": "rna"}, batch_key="batch", rna_layer="counts"
    )
    model = DisentangleModel(mdata, **SMALL)
    model.module.load_state_dict(alone.module.state_dict())
    model.module.eval()
    model.is_trained_ = True
    groups = {"group1": "type_0", "group2": "type_1", "silent": True}
    scvi.settings.seed = 0
    expected = alone.differential_expression(groupby="celltype", **groups, **options)
    scvi.settings.seed = 0
    found = model.differential_expression(groupby="type", **groups, **options)
    assert sorted(found.index) == sorted(adata.var_names)
    pd.testing.assert_frame_equal(
        found.loc[adata.var_names], expected.loc[adata.var_names], rtol=1e-4, atol=1e-4
    )
    chosen = model.differential_expression(
        idx1=list(range(30)),
        idx2=list(range(30, 60)),
        filter_outlier_cells=True,
        silent=True,
        **options,
    )
    assert len(chosen) == adata.n_vars


def test_anncollection_gives_what_the_data_in_memory_give(adata, model, tmp_path):
    parts = [adata[adata.obs["batch"] == b].copy() for b in adata.obs["batch"].cat.categories]
    collection = CollectionAdapter(AnnCollection(parts, join_vars="inner", join_obs="inner"))
    with pytest.raises(InputError, match="layer='raw' is not in adata.layers"):
        DisentangleModel.setup_anndata(collection, layer="raw", batch_key="batch")
    DisentangleModel.setup_anndata(collection, layer="counts", batch_key="batch")
    trained = DisentangleModel(collection, **SMALL)
    assert trained.module.target_sum == model.module.target_sum
    assert trained.module.gene_likelihood == "nb"
    trained.module.load_state_dict(model.module.state_dict())
    trained.module.eval()
    trained.is_trained_ = True
    order = np.concatenate([np.flatnonzero(adata.obs_names.isin(p.obs_names)) for p in parts])
    np.testing.assert_allclose(
        trained.get_latent_representation(), model.get_latent_representation()[order], atol=1e-5
    )
    with pytest.raises(InputError, match="cannot stay on the device: they are a collection"):
        trained.train(1, data_on_device=True)
    before = trained.get_reconstruction_error()["reconstruction_loss"]
    trained.train(5, enable_progress_bar=False)
    assert trained.get_reconstruction_error()["reconstruction_loss"] < before
    trained.save(tmp_path / "model")
    loaded = DisentangleModel.load(tmp_path / "model", adata=collection)
    np.testing.assert_allclose(
        loaded.get_latent_representation(), trained.get_latent_representation(), atol=1e-6
    )


def test_anncollection_with_values_that_are_no_counts_is_refused_by_name(adata):
    bad = adata.copy()
    bad.layers["counts"] = bad.layers["counts"].astype(np.float32)
    bad.layers["counts"].data[0] = np.nan
    collection = CollectionAdapter(AnnCollection([adata.copy(), bad], index_unique="-"))
    with pytest.raises(InputError, match="NaN or infinite values, in cells 'cell_0-1'"):
        DisentangleModel.setup_anndata(collection, layer="counts", batch_key="batch")


def test_backed_data_give_what_data_in_memory_give(adata, model, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    model.save(tmp_path / "model")
    other = DisentangleModel.load(tmp_path / "model", adata=backed)
    np.testing.assert_allclose(
        other.get_latent_representation(), model.get_latent_representation(), atol=1e-5
    )
    other.train(3, enable_progress_bar=False)
    assert other.adata.isbacked
    assert (
        other.history["train_loss"]["train_loss"].iloc[-1]
        < model.history["train_loss"]["train_loss"].iloc[0]
    )


def test_cells_of_backed_data_come_in_the_order_asked_for(adata, tmp_path):
    for part in (adata[:120], adata[120:]):
        part.copy().write_h5ad(tmp_path / f"{part.n_obs}.h5ad")
    files = [ad.read_h5ad(tmp_path / f"{n}.h5ad", backed="r") for n in (120, 80)]
    cells = np.array([190, 3, 150, -1, 1, 3])
    collection = CollectionAdapter(AnnCollection(files))
    for data_, layer in ((files[0], None), (collection, "counts")):
        DisentangleModel.setup_anndata(data_, "batch", layer, labels_key="celltype")
        model = DisentangleModel(data_, **SMALL)
        model.train(2, enable_progress_bar=False)
        asked = cells % data_.n_obs
        for of_cells in (
            model.get_latent_representation,
            model.get_batch_representation,
            model.predict,
            lambda indices=None, model=model: model.get_normalized_expression(
                indices=indices, return_numpy=True
            ),
        ):
            np.testing.assert_array_equal(of_cells(indices=asked), of_cells()[asked])


@pytest.mark.skipif(
    not hasattr(dataloaders, "AnnbatchDataModule"), reason="this scvi-tools has no annbatch"
)
def test_annbatch_trains_from_disk(adata, tmp_path):
    pytest.importorskip("annbatch")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    datamodule = DisentangleModel.setup_annbatch(
        collection_path=str(tmp_path / "cells.zarr"),
        paths=[str(tmp_path / "cells.h5ad")],
        batch_key="batch",
        batch_size=64,
        chunk_size=8,
        preload_nchunks=8,
        preload_to_gpu=False,
    )
    scvi.settings.seed = 0
    model = DisentangleModel(registry=datamodule.registry, **SMALL)
    model.train(3, datamodule=datamodule, enable_progress_bar=False)
    assert model.module.n_batch == 3
    assert model.module.alignment.shifts.any()
    codes = model.get_latent_representation(dataloader=datamodule.inference_dataloader())
    assert codes.shape == (200, 5)
    assert len(np.unique(codes.round(4), axis=0)) > 190
    streamed = model.iter_latent_representation(dataloader=datamodule.inference_dataloader())
    np.testing.assert_array_equal(np.concatenate(list(streamed)), codes)
    model.align(datamodule)  # from the same cells in another order
    again = model.get_latent_representation(dataloader=datamodule.inference_dataloader())
    np.testing.assert_allclose(again, codes, atol=1e-3)
    compared = model.differential_expression(
        groupby="batch", dataloader=datamodule.inference_dataloader()
    )
    assert len(compared) == 3 * 60
    with pytest.raises(InputError, match="batch_correction= is not for cells of a dataloader"):
        model.differential_expression(
            groupby="batch", dataloader=datamodule.inference_dataloader(), batch_correction=True
        )
    with pytest.raises(InputError, match="is saved with it.*datamodule="):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", datamodule=datamodule)
    for options in ({}, {"datamodule": datamodule}):
        loaded = DisentangleModel.load(tmp_path / "model", adata=False, **options)
        again = loaded.get_latent_representation(dataloader=datamodule.inference_dataloader())
        np.testing.assert_allclose(again, codes, atol=1e-3)
    assert loaded._datamodule is datamodule
    of_cells = DisentangleModel.load(tmp_path / "model", adata=adata.copy())
    assert of_cells.get_latent_representation().shape == (200, 5)
    query = adata[:50].copy()
    query.obs["batch"] = "new"
    mapped = DisentangleModel.load_query_data(query, str(tmp_path / "model"))
    mapped.train(1, enable_progress_bar=False)
    np.testing.assert_allclose(
        mapped.get_latent_representation(adata.copy()),
        of_cells.get_latent_representation(),
        atol=1e-5,
    )


def test_a_model_made_of_nothing_takes_its_sizes_from_the_data_module(adata, tmp_path):
    adata = adata.copy()
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    known = DisentangleModel(adata, **SMALL)
    model = DisentangleModel(**SMALL)
    assert model.module is None
    with pytest.raises(AttributeError, match="nothing to train on: pass datamodule="):
        model.train(1)
    datamodule = dataloaders.DataSplitter(known.adata_manager)
    datamodule.n_vars, datamodule.n_batch = adata.n_vars, adata.obs["batch"].nunique()
    model.train(2, datamodule=datamodule, enable_progress_bar=False)
    shapes = {name: weights.shape for name, weights in model.module.state_dict().items()}
    assert shapes == {name: weights.shape for name, weights in known.module.state_dict().items()}
    codes = model.get_latent_representation(dataloader=datamodule.train_dataloader())
    assert np.isfinite(codes).all()
    shifts = model.module.alignment.shifts.clone()
    for _ in range(3):
        model.align(datamodule, progress_bar=False)  # which shows the cells in another order
        torch.testing.assert_close(model.module.alignment.shifts, shifts, atol=1e-3, rtol=0)
    cells = datamodule.train_dataloader()
    expression = model.get_normalized_expression(dataloader=cells, return_numpy=True)
    np.testing.assert_allclose(expression.sum(axis=1), 1, rtol=1e-5)
    with pytest.raises(InputError, match="registry=datamodule.registry to save it"):
        model.save(tmp_path / "model")


OPTIONS_OF_A_MODULE = [
    {"dispersion": "gene-batch"},
    {"kl_weight_bio": 1.0, "nio_flow": "variational"},
    {"n_components": 20, "spherical": False},
    {"lambda_dis": 2.0, "batch_representation": "embedding"},
]


def of_a_data_module(adata, labels_key, continuous_covariate_keys=None, **options):
    """A trained model, its data module, and minibatches of the cells in their order.

    With the registry that scvi-tools' module of LaminDB's collections gives.
    """
    DisentangleModel.setup_anndata(
        adata,
        batch_key="batch",
        labels_key=labels_key,
        continuous_covariate_keys=continuous_covariate_keys,
    )
    manager = DisentangleModel._get_most_recent_anndata_manager(adata)
    datamodule = dataloaders.DataSplitter(manager, batch_size=64)
    registry = deepcopy(manager.registry)
    del registry["setup_args"]["unlabeled_category"]
    registry["field_registries"]["labels"]["state_registry"]["unlabeled_category"] = "Unknown"
    datamodule.registry = {**registry, "setup_method_name": "setup_datamodule"}
    datamodule.n_vars, datamodule.n_batch, datamodule.n_obs = 60, 3, 200
    datamodule.n_labels, datamodule.n_samples = manager.summary_stats.n_labels, 0
    datamodule.label_keys = None
    datamodule.batch_labels = registry["field_registries"]["batch"]["state_registry"][
        "categorical_mapping"
    ]
    scvi.settings.seed = 0
    model = DisentangleModel(registry=datamodule.registry, **SMALL, **options)
    model.train(2, datamodule=datamodule, enable_progress_bar=False)
    return model, datamodule, list(dataloaders.AnnDataLoader(manager, batch_size=64))


@pytest.mark.parametrize("options", OPTIONS_OF_A_MODULE)
def test_a_model_of_a_data_module_loads_as_it_was_made(adata, tmp_path, options):
    adata = adata.copy()
    adata.obs["type"] = np.where(np.arange(200) % 2, adata.obs["celltype"].astype(str), "Unknown")
    model, datamodule, cells = of_a_data_module(adata, "type", **options)
    assert model.module.unlabeled_code == sorted(adata.obs["type"].unique()).index("Unknown")
    model.save(tmp_path / "model", datamodule=datamodule)
    loaded = DisentangleModel.load(tmp_path / "model", adata=False)
    np.testing.assert_allclose(
        loaded.get_latent_representation(dataloader=cells),
        model.get_latent_representation(dataloader=cells),
        atol=1e-6,
    )
    assert loaded.module.lambda_dis == model.module.lambda_dis
    assert type(loaded.module.alignment) is type(model.module.alignment)


@pytest.mark.parametrize("options", OPTIONS_OF_A_MODULE)
@pytest.mark.parametrize("labels_key", [None, "type"])
def test_cells_in_memory_are_encoded_decoded_and_mapped_by_a_model_of_a_data_module(
    adata, tmp_path, options, labels_key
):
    adata = adata.copy()
    adata.obs["type"] = np.where(np.arange(200) % 2, adata.obs["celltype"].astype(str), "Unknown")
    model, datamodule, cells = of_a_data_module(adata, labels_key, **options)
    codes = model.get_latent_representation(dataloader=cells)
    model.save(tmp_path / "model", datamodule=datamodule)
    loaded = DisentangleModel.load(tmp_path / "model", adata=adata.copy())
    np.testing.assert_allclose(loaded.get_latent_representation(), codes, atol=1e-6)
    new = data.simulated(n_cells=200, n_genes=60, seed=0)[:50].copy()
    new.obs["type"] = adata.obs["type"][:50]
    np.testing.assert_allclose(loaded.get_latent_representation(new), codes[:50], atol=1e-6)
    with pytest.raises(InputError, match=r"takes cells as dataloader=.*load\(folder, adata\)"):
        model.get_latent_representation(new)
    if "kl_weight_bio" not in options:  # whose expression is of draws
        expected = model.get_normalized_expression(dataloader=cells, return_numpy=True)
        found = loaded.get_normalized_expression(return_numpy=True)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
        assert not np.allclose(loaded.get_normalized_expression(transform_batch="batch_0"), found)
    if labels_key is not None:
        assert len(loaded.predict(new)) == 50
    loaded.save(tmp_path / "again")
    new.obs["batch"] = "new"
    for reference in (model, str(tmp_path / "model"), str(tmp_path / "again")):
        query_model = DisentangleModel.load_query_data(new.copy(), reference)
        query_model.train(1, enable_progress_bar=False)
        np.testing.assert_allclose(
            query_model.get_latent_representation(adata[:50].copy()), codes[:50], atol=1e-5
        )
    with pytest.raises(InputError, match="did not see in training: 'new'"):
        DisentangleModel.load(tmp_path / "model", adata=new)


def test_covariates_of_a_data_module_are_not_held_against_an_anndata(adata, tmp_path):
    adata = adata.copy()
    adata.obs["age"] = np.arange(200.0)
    model, datamodule, _ = of_a_data_module(adata, None, continuous_covariate_keys=["age"])
    model.save(tmp_path / "model", datamodule=datamodule)
    with pytest.raises(InputError, match="data module with 'continuous_covariate_keys'.*dataload"):
        DisentangleModel.load(tmp_path / "model", adata=adata)
