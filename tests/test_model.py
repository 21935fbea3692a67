"""The public model, from AnnData to codes and back from disk."""

import numpy as np
import pytest
import scvi
import torch
from scipy import sparse
from scvi.dataloaders import DataSplitter
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from scdisentangle import DisentangleModel, InputError, data
from scdisentangle.objectives.mmd import mmd2

SMALL = {"n_hidden": 32, "n_latent_bio": 5, "n_latent_nio": 3}


@pytest.fixture(scope="module")
def adata():
    return data.simulated(n_cells=300, n_genes=100, seed=0)


def fit(adata, max_epochs=3, seed=0, setup=None, train=None, **kwargs):
    scvi.settings.seed = seed
    adata = adata.copy()
    DisentangleModel.setup_anndata(adata, **{"batch_key": "batch", **(setup or {})})
    model = DisentangleModel(adata, **{**SMALL, **kwargs})
    model.train(max_epochs, enable_progress_bar=False, **(train or {}))
    return model


@pytest.fixture(scope="module")
def model():
    simulated = data.simulated(n_cells=1000, n_genes=600, seed=0)
    return fit(simulated, max_epochs=100, n_hidden=128, n_latent_bio=30)


def test_the_codes_have_their_shapes_and_are_side_by_side_in_the_joint_one(model):
    bio, nio, joint = (
        model.get_latent_representation(representation=r) for r in ("bio", "batch", "joint")
    )
    assert bio.shape == (1000, 30)
    assert nio.shape == (1000, 3)
    np.testing.assert_array_equal(joint, np.hstack([bio, nio]))


def test_z_nio_holds_the_batch_and_z_bio_the_type(model):
    def accuracy(representation, key):
        z = model.get_latent_representation(representation=representation)
        return cross_val_score(
            LogisticRegression(max_iter=1000), z, model.adata.obs[key], cv=5
        ).mean()

    assert accuracy("batch", "batch") > 0.95
    assert accuracy("bio", "celltype") > 0.9
    assert accuracy("bio", "batch") < accuracy("batch", "batch")
    assert accuracy("batch", "celltype") < 0.6


def test_predict_batch_reads_the_batch_of_held_out_cells(model):
    adata = model.adata
    held_out = model.validation_indices
    predicted = model.predict_batch(indices=held_out)
    assert (predicted == adata.obs["batch"].to_numpy()[held_out]).mean() >= 0.95
    soft = model.predict_batch(soft=True, indices=held_out)
    assert list(soft.columns) == list(adata.obs["batch"].cat.categories)
    assert list(soft.index) == list(adata.obs_names[held_out])
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(soft.idxmax(axis=1), predicted)


@pytest.mark.parametrize("representation", ["bio", "batch", "joint"])
def test_a_cells_code_does_not_depend_on_the_minibatch(model, representation):
    whole = model.get_latent_representation(representation=representation, batch_size=1000)
    for batch_size in (1, 7, 128):
        part = model.get_latent_representation(
            representation=representation, batch_size=batch_size, indices=np.arange(50)
        )
        np.testing.assert_allclose(part, whole[:50], atol=1e-5)


def test_codes_come_in_the_order_asked_for(model):
    order = np.array([9, 3, 200, 4])
    np.testing.assert_allclose(
        model.get_latent_representation(indices=order, batch_size=4),
        model.get_latent_representation(batch_size=4)[order],
        atol=1e-6,
    )


@pytest.mark.parametrize("options", [{}, {"representation": "joint", "indices": [3, 150, 7]}])
def test_codes_can_be_had_minibatch_by_minibatch(model, options):
    minibatches = list(model.iter_latent_representation(batch_size=2, **options))
    assert {len(codes) for codes in minibatches} <= {1, 2}
    np.testing.assert_allclose(
        np.concatenate(minibatches), model.get_latent_representation(**options), atol=1e-5
    )


def test_mean_and_variance_can_be_had_minibatch_by_minibatch(model):
    means, variances = zip(*model.iter_latent_representation(return_dist=True), strict=True)
    mean, variance = model.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(np.concatenate(means), mean, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(variances), variance)


def test_no_minibatch_is_read_before_it_is_asked_for(model):
    read = []

    def minibatches():
        for minibatch in model._make_data_loader(model.adata, batch_size=16):
            read.append(1)
            yield minibatch

    codes = model.iter_latent_representation(dataloader=minibatches())
    assert not read
    next(codes)
    next(codes)
    assert len(read) == 2


def test_one_seed_gives_one_result(adata):
    first, second, other = (fit(adata, seed=s).get_latent_representation() for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("with_adata", [True, False])
def test_save_and_load(model, tmp_path, with_adata):
    model.save(tmp_path / "a model", save_anndata=with_adata)
    loaded = DisentangleModel.load(
        tmp_path / "a model", adata=None if with_adata else model.adata.copy()
    )
    for representation in ("bio", "batch"):
        np.testing.assert_allclose(
            loaded.get_latent_representation(representation=representation),
            model.get_latent_representation(representation=representation),
            atol=1e-6,
        )
    assert loaded.summary_string == model.summary_string
    np.testing.assert_array_equal(loaded.predict_batch(), model.predict_batch())


def test_load_without_data_then_embed(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = DisentangleModel.load(tmp_path / "model", adata=False)
    np.testing.assert_allclose(
        loaded.get_latent_representation(model.adata.copy()),
        model.get_latent_representation(),
        atol=1e-6,
    )


def test_save_never_overwrites_silently(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="already exists"):
        model.save(tmp_path / "model")


KINDS = {
    "float32": lambda x: x.toarray(),
    "float64": lambda x: x.toarray().astype(np.float64),
    "int64": lambda x: x.toarray().astype(np.int64),
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csr int32": lambda x: sparse.csr_matrix(x).astype(np.int32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_matrix_gives_the_same_codes(adata, kind):
    expected = fit(adata, max_epochs=1).get_latent_representation()
    other = adata.copy()
    other.X = KINDS[kind](adata.X)
    codes = fit(other, max_epochs=1).get_latent_representation()
    np.testing.assert_allclose(codes, expected, atol=1e-4)


def test_a_layer_is_used_in_place_of_x(adata):
    other = adata.copy()
    other.X = np.zeros(other.shape, np.float32)
    codes = fit(other, max_epochs=1, setup={"layer": "counts"}).get_latent_representation()
    np.testing.assert_allclose(
        codes, fit(adata, max_epochs=1).get_latent_representation(), atol=1e-5
    )


@pytest.mark.parametrize(
    ("transform", "likelihood", "log_normalize"),
    [
        (lambda x: x, "nb", True),
        (lambda x: 20.3 * x, "nb", True),  # of reads, as Smart-seq's are estimated
        (np.log1p, "mse", False),
        (lambda x: x - 1.5, "mse", False),
        (lambda x: 20.3 * x - 1.5, "mse", False),
    ],
)
def test_likelihood_follows_the_values_and_is_said(
    adata, caplog, transform, likelihood, log_normalize
):
    other = adata.copy()
    other.X = transform(adata.X.toarray())
    with caplog.at_level("INFO", logger="scdisentangle"):
        model = fit(other, max_epochs=1)
    assert model.module.gene_likelihood == likelihood
    assert model.module.log_normalize == log_normalize
    assert f"gene_likelihood='{likelihood}'" in caplog.text
    assert ("not all are whole" in caplog.text) == (likelihood == "nb" and other.X.max() % 1 > 0)
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("deeper", [1, 1000])
def test_counts_are_scaled_to_the_median_library(adata, deeper):
    other = adata.copy()
    other.X = other.X * deeper
    DisentangleModel.setup_anndata(other, batch_key="batch")
    libraries = other.X.toarray().sum(axis=1)
    assert DisentangleModel(other).module.target_sum == np.median(libraries)


@pytest.mark.parametrize("scale", [1.0, 0.5, 1e-3])
def test_the_scale_of_size_factors_does_not_matter(adata, scale):
    sums = np.asarray(adata.X.sum(axis=1)).ravel()
    other = adata.copy()
    other.obs["size"] = scale * sums
    DisentangleModel.setup_anndata(other, batch_key="batch", size_factor_key="size")
    module = DisentangleModel(other).module.eval()
    assert module.target_sum == np.median(sums)
    tensors = {"X": torch.tensor(other.X.toarray()), "batch": torch.zeros(len(sums), 1).long()}
    tensors["size_factor"] = torch.tensor(other.obs["size"].to_numpy(np.float32))[:, None]
    _, generated, _ = module(tensors)
    np.testing.assert_allclose(generated["px"].mean.sum(1).detach(), sums, rtol=1e-4)


@pytest.mark.parametrize("likelihood", ["mse", "nb", "zinb", "poisson", "normal"])
def test_every_likelihood_lowers_its_reconstruction_error(adata, likelihood):
    untrained = fit(
        adata, max_epochs=1, gene_likelihood=likelihood, train={"plan_kwargs": {"lr": 0}}
    )
    before = untrained.get_reconstruction_error()["reconstruction_loss"]
    after = fit(adata, max_epochs=10, gene_likelihood=likelihood).get_reconstruction_error()
    assert after["reconstruction_loss"] < before


def test_reconstruction_error_is_the_squared_error_summed_over_genes(adata):
    model = fit(adata, gene_likelihood="mse")
    normalized, mean = [], []
    for tensors in model._make_data_loader(adata=model.adata):
        outputs, generated, _ = model.module(tensors)
        normalized.append(outputs["normalized"].detach().numpy())
        mean.append(generated["px"].mean.detach().numpy())
    expected = ((np.vstack(normalized) - np.vstack(mean)) ** 2).sum(axis=1).mean()
    assert model.get_reconstruction_error()["reconstruction_loss"] == pytest.approx(
        expected, rel=1e-5
    )


def test_covariates_labels_and_size_factors_are_registered(adata):
    other = adata.copy()
    rng = np.random.default_rng(0)
    other.obs["size"] = np.asarray(other.X.sum(axis=1)).ravel()
    other.obs["age"] = rng.normal(size=other.n_obs)
    other.obs["sex"] = rng.choice(["f", "m"], other.n_obs)
    other.obs["type"] = other.obs["celltype"].astype(str)
    other.obs.iloc[:50, other.obs.columns.get_loc("type")] = "Unknown"
    model = fit(
        other,
        setup={
            "labels_key": "type",
            "size_factor_key": "size",
            "categorical_covariate_keys": ["sex"],
            "continuous_covariate_keys": ["age"],
        },
        encode_covariates=True,
        objective="contrastive",
    )
    assert np.isfinite(model.get_latent_representation()).all()
    mapping = list(model._state_of("labels")["categorical_mapping"])
    assert model.module.unlabeled_code == mapping.index("Unknown")


def test_a_second_registration_leaves_the_first_model_its_batches(adata):
    expected = fit(adata)
    adata = adata.copy()
    adata.obs["other"] = np.arange(adata.n_obs) % 5
    scvi.settings.seed = 0
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, **SMALL)
    for step in (lambda: model.train(3, enable_progress_bar=False), model.align):
        DisentangleModel.setup_anndata(adata, batch_key="other")
        step()
        np.testing.assert_allclose(
            model.get_latent_representation(), expected.get_latent_representation(), atol=1e-6
        )


@pytest.mark.parametrize("precision", ["64-true", 64, "bf16-true"])
def test_precisions_that_values_do_not_have_are_refused(model, precision):
    with pytest.raises(InputError, match=f"precision={precision!r} is not for values"):
        model.train(1, precision=precision)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("axes", [True, False])
def test_axes_are_made_longer_where_that_is_asked_for(adata, labelled, axes):
    setup = {"labels_key": "celltype"} if labelled else {}
    model = fit(adata, setup=setup, axes=axes)
    assert (model.module.axes is not None) == axes
    lengths = np.linalg.norm(model.get_latent_representation(), axis=1)
    assert (lengths.std() > 1e-3) == axes  # on the sphere all are the same


def test_a_model_of_one_label_loads_with_data_of_several(adata, tmp_path):
    adata = adata.copy()
    adata.obs["type"] = "Unknown"
    model = fit(adata, setup={"labels_key": "type"})
    model.save(tmp_path / "model")
    expected = model.get_latent_representation()
    adata.obs["type"] = adata.obs["celltype"].astype(str)
    loaded = DisentangleModel.load(tmp_path / "model", adata=adata)
    np.testing.assert_allclose(loaded.get_latent_representation(), expected, atol=1e-5)


def test_weights_that_were_loaded_are_aligned_as_they_were(adata):
    expected = fit(adata)
    model = DisentangleModel(expected.adata, **SMALL)
    model.module.load_state_dict(expected.module.state_dict())
    model.is_trained_ = True
    model.align()
    np.testing.assert_allclose(
        model.get_latent_representation(), expected.get_latent_representation(), atol=1e-5
    )


def test_numbers_of_numpy_are_numbers(adata, tmp_path):
    for number in (np.int64, int):
        adata = adata.copy()
        DisentangleModel.setup_anndata(adata, batch_key="batch")
        model = DisentangleModel(adata, **SMALL)
        model.train(
            number(2),
            batch_size=number(64),
            checkpoint=tmp_path / "state",
            plan_kwargs={"lr": np.float64(1e-3)},
            enable_progress_bar=False,
        )
    assert len(model.get_latent_representation(batch_size=np.int32(7))) == adata.n_obs


@pytest.mark.parametrize("wrong", [{"plan_kwargs": {"typo": 1}}, {"no_argument_of_the_trainer": 1}])
def test_a_training_that_is_refused_changes_nothing(adata, wrong):
    model = fit(adata)
    before = model.get_latent_representation()
    with pytest.raises((ValueError, TypeError), match="typo|no_argument"):
        model.train(1, enable_progress_bar=False, **wrong)
    assert not model.module.training
    np.testing.assert_allclose(model.get_latent_representation(), before, atol=1e-5)


def test_training_takes_what_scvi_tools_models_take(adata, tmp_path):
    model = fit(
        adata,
        max_epochs=20,
        train={
            "accelerator": "cpu",
            "devices": 1,
            "train_size": 0.7,
            "validation_size": 0.2,
            "batch_size": 64,
            "early_stopping": True,
            "early_stopping_monitor": "reconstruction_loss_validation",
            "early_stopping_patience": 1,
            "early_stopping_min_delta": 1e6,
            "check_val_every_n_epoch": 1,
            "datasplitter_kwargs": {"drop_last": True},
            "plan_kwargs": {"lr": 1e-3, "weight_decay": 1e-4, "optimizer": "AdamW"},
            "enable_checkpointing": True,
            "default_root_dir": str(tmp_path),
        },
    )
    assert len(model.history["train_loss"]) < 20
    assert len(model.train_indices) == round(0.7 * adata.n_obs)
    assert len(model.validation_indices) == round(0.2 * adata.n_obs)


def test_training_goes_on_where_it_stopped(adata):
    model = fit(adata, max_epochs=3)
    model.train(2, enable_progress_bar=False)
    assert len(model.history["train_loss"]) == 5


def test_training_goes_on_in_training_mode(adata):
    """Lightning leaves the mode as it finds it, and a trained model is in evaluation mode."""
    model = fit(adata, max_epochs=1, alignment=False, spherical=False)
    modes = []
    inference = model.module.inference
    model.module.inference = lambda *a, **k: (
        modes.append(model.module.training) or inference(*a, **k)
    )
    model.train(1, train_size=1.0, enable_progress_bar=False)
    assert modes
    assert all(modes)
    assert not model.module.training


def test_as_written_is_the_method_of_the_paper(adata):
    other = adata.copy()
    DisentangleModel.setup_anndata(other, batch_key="batch")
    model = DisentangleModel.as_written(other, n_hidden=16)
    model.train(3, enable_progress_bar=False)
    module = model.module
    assert module.encoder.bio_encoder is module.encoder.nio_encoder
    assert (module.gene_likelihood, module.nio_flow) == ("mse", "free")
    assert module.disentanglement.weights == {"mmd": 1.0}
    assert (module.lambda_cls, module.lambda_dis) == (1.0, 1.0)
    assert (module.input_dropout, module.nio_noise_factor) == (0.0, 1.0)
    assert module.alignment is None and module.axes is None
    bio, nio = (
        torch.tensor(model.get_latent_representation(representation=r)) for r in ("bio", "batch")
    )
    assert bio.shape == nio.shape
    tensors = next(iter(model._make_data_loader(other, batch_size=other.n_obs)))
    with torch.no_grad():
        _, generated, losses = module(tensors)
        logits = module.classifier(nio)
    counts = tensors["X"]
    x = torch.log1p(counts / counts.sum(1, keepdim=True) * np.median(counts.sum(1)))
    batch = tensors["batch"].squeeze(1)
    reconstruction = (generated["px"].mean - x).square().sum(1).mean()
    classification = torch.nn.functional.cross_entropy(logits, batch)
    unit = [torch.nn.functional.normalize(z, dim=1) for z in (bio, nio)]
    expected = reconstruction + classification - mmd2(*unit)
    assert losses.loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_repr_names_what_was_chosen(model, capsys):
    repr(model)
    assert "DisentangleModel" in capsys.readouterr().out
    text = model.summary_string
    assert "gene_likelihood: nb" in text
    assert "n_latent_bio: 30" in text
    assert "Trained" in text


def test_a_model_made_from_a_registry_trains_from_a_data_module(adata, caplog):
    other = adata.copy()
    DisentangleModel.setup_anndata(other, batch_key="batch")
    manager = DisentangleModel(other, **SMALL).adata_manager
    with caplog.at_level("INFO", logger="scdisentangle"):
        model = DisentangleModel(registry=manager.registry, **SMALL)
    assert "taken as counts, without a look at them" in caplog.text
    assert model.module.gene_likelihood == "nb"
    splitter = DataSplitter(manager, train_size=0.9, batch_size=64)
    model.train(3, datamodule=splitter, enable_progress_bar=False)
    loader = DataSplitter(manager, train_size=1.0, shuffle_set_split=False, batch_size=64)
    loader.setup()
    codes = model.get_latent_representation(dataloader=loader.train_dataloader())
    assert codes.shape == (adata.n_obs, 5)
    assert np.isfinite(codes).all()
