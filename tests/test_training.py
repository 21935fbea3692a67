"""Loggers, checkpoints, tuning, several processes and lower precision, as in scvi-tools."""

import builtins
import copy
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from scvi.train import SaveCheckpoint
from scvi.train._callbacks import ScibCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters

from scdisentangle import (
    DisentangleModel,
    DisentangleTrainingPlan,
    InputError,
    _input_noise,
    _likelihoods,
    data,
    default_max_epochs,
)
from scdisentangle.objectives import OBJECTIVES


def fit(max_epochs=3, plan_kwargs=None, objective="contrastive", n_latent_nio=8, **kwargs):
    scvi.settings.seed = 0
    adata = data.simulated(n_cells=200, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16, n_latent_nio=n_latent_nio, objective=objective)
    model.train(max_epochs, enable_progress_bar=False, plan_kwargs=plan_kwargs, **kwargs)
    return model


@pytest.mark.parametrize(
    ("n_cells", "n_epochs"),
    [(50, 400), (100, 384), (300, 128), (427, 90), (20_000, 90), (40_000, 45), (5_000_000, 1)],
)
def test_epochs_by_default_are_300_minibatches_of_few_cells_and_fewer_of_many(n_cells, n_epochs):
    assert default_max_epochs(n_cells) == n_epochs


@pytest.mark.parametrize("n_cells", [0, -5, 2.5])
def test_epochs_are_for_some_cells(n_cells):
    with pytest.raises(InputError, match=f"n_obs={n_cells} must be"):
        default_max_epochs(n_cells)


@pytest.mark.parametrize(("n_cells", "n_epochs"), [(300, 128), (5_000, 90), (40_000, 45)])
def test_a_data_module_that_knows_its_number_of_cells_trains_for_as_long(n_cells, n_epochs):
    datamodule = fit(1).trainer.datamodule
    datamodule.n_obs, datamodule.n_vars, datamodule.n_batch = n_cells, 60, 3
    model = DisentangleModel(n_hidden=16)
    model.train(datamodule=datamodule, max_steps=1, enable_progress_bar=False)
    assert model.trainer.max_epochs == n_epochs


@pytest.mark.parametrize(("n_cells", "n_validating"), [(29, 0), (30, 3)])
def test_of_few_cells_all_train_and_a_minibatch_that_is_too_large_is_told(n_cells, n_validating):
    adata = data.simulated(n_cells=n_cells, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=8)
    for batch_size in (n_cells, n_cells + 1):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model.train(1, batch_size=batch_size, enable_progress_bar=False)
        too_large = any("fewer than a minibatch" in str(warning.message) for warning in told)
        assert too_large == (batch_size > n_cells)
        assert len(model.validation_indices) == n_validating


def test_a_csv_logger_holds_the_terms(tmp_path):
    fit(logger=CSVLogger(tmp_path))
    table = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
    assert {"classification_loss_train", "contrastive_validation"} <= set(table.columns)
    assert table["classification_loss_train"].notna().sum() == 3


def test_tensorboard_holds_the_terms(tmp_path):
    fit(logger=TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(next(tmp_path.rglob("events.out*")).parent)).Reload()
    assert len(events.Scalars("contrastive_train")) == 3


def test_the_best_checkpoint_is_a_model(tmp_path):
    monitor = "reconstruction_loss_validation"
    model = fit(
        6,
        enable_checkpointing=True,
        callbacks=[SaveCheckpoint(str(tmp_path), monitor=monitor, load_best_on_end=False)],
    )
    best = DisentangleModel.load(str(next(tmp_path.iterdir())), adata=model.adata)
    curve = model.history[monitor][monitor].to_numpy(dtype=float)
    saved = best.get_reconstruction_error(indices=model.validation_indices)
    assert float(saved["reconstruction_loss"]) == pytest.approx(curve.min(), rel=1e-3)


def test_a_model_that_a_callback_saved_is_aligned_once_loaded(tmp_path):
    kept = SaveCheckpoint(str(tmp_path), monitor="train_loss", load_best_on_end=True)
    model = fit(6, enable_checkpointing=True, callbacks=[kept])
    loaded = DisentangleModel.load(kept.best_model_path, adata=model.adata)
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-5
    )
    with pytest.warns(UserWarning, match=r"not aligned.*align\(\) once it has"):
        without_data = DisentangleModel.load(kept.best_model_path, adata=False)
    without_data.adata = model.adata.copy()
    without_data.align(progress_bar=False)
    np.testing.assert_allclose(
        without_data.get_latent_representation(), model.get_latent_representation(), atol=1e-5
    )


def test_tuning_by_scib_metrics_gets_the_codes_of_an_epoch():
    callback = ScibCallback()
    model = fit(1, batch_size=60, train_size=0.9, callbacks=[callback])
    for stage, n_cells in (("training", 180), ("validation", 20)):
        seen = getattr(callback.pl_module, f"_{stage}_epoch_outputs")
        assert seen["z"].shape == (n_cells, model.module.encoder.bio_head.mean.out_features)
        assert len(seen["batch"]) == len(seen["labels"]) == n_cells
        assert set(seen["batch"].tolist()) == {0, 1, 2}


def test_workers_that_persist_train_every_epoch():
    options = {"num_workers": 1, "persistent_workers": True}
    model = fit(2, batch_size=60, datasplitter_kwargs=options)
    assert model.trainer.global_step == 2 * model.trainer.num_training_batches == 6


@pytest.mark.parametrize("objective", ["contrastive", "mutual_information"])
def test_steps_are_as_many_as_are_asked_for(objective):
    """Each is taken by both optimisers, where there are two."""
    model = fit(10, objective=objective, batch_size=60, max_steps=4)
    optimizers = model.trainer.optimizers
    assert len(optimizers) == 1 + (objective == "mutual_information")
    for optimizer in optimizers:
        assert {int(state["step"]) for state in optimizer.state.values()} == {4}


def test_the_learning_rates_of_a_callback_are_those_it_asks_for(monkeypatch):
    """Lightning's range test tries rates that rise by one factor from each step to the next."""
    taken, step = [], DisentangleTrainingPlan.training_step

    def watched(plan, *args):
        taken.append(plan.trainer.optimizers[0].param_groups[0]["lr"])
        return step(plan, *args)

    monkeypatch.setattr(DisentangleTrainingPlan, "training_step", watched)
    finder = LearningRateFinder(min_lr=1e-6, max_lr=1e-1, num_training_steps=20)
    fit(10, batch_size=20, callbacks=[finder])
    factors = np.divide(taken[2:20], taken[1:19])
    assert factors.min() > 1.1
    np.testing.assert_allclose(factors, factors.mean(), rtol=0.05)


def test_training_stops_early_on_a_validation_term():
    model = fit(
        30,
        early_stopping=True,
        early_stopping_monitor="contrastive_validation",
        early_stopping_patience=2,
        early_stopping_min_delta=1e6,
    )
    assert len(model.history["train_loss"]) == 3


def test_ctrl_c_leaves_a_usable_model(tmp_path):
    scvi.settings.seed = 0
    adata = data.simulated(n_cells=200, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16)
    inference, calls = model.module.inference, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return inference(*args, **kwargs)

    model.module.inference = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.train(50, enable_progress_bar=False)
    model.module.inference = inference
    assert not model.module.training
    codes = model.get_latent_representation()
    assert np.isfinite(codes).all()
    model.save(tmp_path / "model")
    loaded = DisentangleModel.load(tmp_path / "model", adata=adata)
    np.testing.assert_allclose(loaded.get_latent_representation(), codes, atol=1e-6)
    model.train(2, enable_progress_bar=False)
    assert model.is_trained


def test_autotune_chooses_among_our_options(tmp_path, monkeypatch):
    from ray import tune
    from scvi.autotune import run_autotune

    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setattr(builtins, "print", print)  # ray's own stays, and numba compiles none
    adata = data.simulated(n_cells=100, n_genes=40, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    found = run_autotune(
        DisentangleModel,
        adata,
        metrics="reconstruction_loss_validation",
        mode="min",
        search_space={
            "model_params": {
                "n_hidden": tune.choice([8, 16]),
                "objective": tune.choice([{"hsic": 0.5}, "contrastive"]),
                "nio_flow": tune.choice(["detached"]),
            },
            "train_params": {"max_epochs": 1, "plan_kwargs": {"lr": tune.loguniform(1e-4, 1e-2)}},
        },
        num_samples=2,
        seed=0,
        scheduler="fifo",
        searcher="random",
        resources={"cpu": 1},
        logging_dir=str(tmp_path),
    )
    table = found.result_grid.get_dataframe()
    assert len(table) == 2
    assert np.isfinite(table["reconstruction_loss_validation"]).all()
    assert set(table["config/model_params/nio_flow"]) == {"detached"}


DISTRIBUTED = """
import sys, os
import numpy as np, scvi, torch
from scdisentangle import DisentangleModel, data
torch.set_num_threads(1)
scvi.settings.seed = 0
adata = data.simulated(n_cells=200, n_genes=60, seed=0)
DisentangleModel.setup_anndata(adata, batch_key="batch")
model = DisentangleModel(adata, n_hidden=16, objective=sys.argv[2])
model.train(
    3, accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true",
    enable_progress_bar=False, batch_size=32,
    datasplitter_kwargs={"drop_dataset_tail": True, "drop_last": False},
    checkpoint=sys.argv[3] if len(sys.argv) > 3 else None,
)
np.save(sys.argv[1] + os.environ.get("LOCAL_RANK", "0"), model.get_latent_representation())
"""


def in_two_processes(folder, *arguments):
    """Codes that each of them ends with."""
    script = folder / "distributed.py"
    script.write_text(DISTRIBUTED)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, str(script), str(folder / "rank"), *arguments],
        check=True,
        env=environment,
        cwd=folder,
        timeout=300,
    )
    return [np.load(folder / f"rank{rank}.npy") for rank in (0, 1)]


@pytest.mark.parametrize("objective", ["contrastive", "batch_mmd"])
def test_two_processes_end_with_the_same_codes(tmp_path, objective):
    first, second = in_two_processes(tmp_path, objective)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first.round(4), axis=0)) == 200


def test_two_processes_go_on_from_a_checkpoint(tmp_path):
    """The second run begins with the last epoch, of which the first run wrote the start."""
    state = str(tmp_path / "state")
    for codes in zip(
        in_two_processes(tmp_path, "contrastive"),
        in_two_processes(tmp_path, "contrastive", state),
        in_two_processes(tmp_path, "contrastive", state),
        strict=True,
    ):
        np.testing.assert_array_equal(codes[0], codes[1])
        np.testing.assert_array_equal(codes[0], codes[2])


def correlation(model, other):
    return np.corrcoef(
        model.get_latent_representation().ravel(), other.get_latent_representation().ravel()
    )[0, 1]


def test_bfloat16_agrees_with_float32():
    """Latents of the same cells correlate by 0.99, and the error is within 1 %."""
    full, half = fit(10), fit(10, precision="bf16-mixed")
    assert correlation(full, half) > 0.99
    errors = [float(m.get_reconstruction_error()["reconstruction_loss"]) for m in (full, half)]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)
    assert half.module.log_dispersion.dtype == torch.float32


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_in_bfloat16(objective):
    plan_kwargs = {"dis_warmup": 0.0}
    model = fit(2, plan_kwargs, objective, n_latent_nio=30, precision="bf16-mixed")
    assert model.history["disentanglement_weight"].to_numpy(float)[-1] > 0
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="the default backend of torch.compile needs a C++ compiler on a CPU",
)
def test_a_model_compiled_by_inductor_agrees_with_an_eager_one():
    """With the same random numbers, as ``fallback_random`` has it, latents agree within 1e-4."""
    steps = {"max_epochs": 1, "train_size": 1.0, "batch_size": 100}
    eager = fit(**steps)
    options = {"compile": True, "compile_kwargs": {"options": {"fallback_random": True}}}
    compiled = fit(plan_kwargs=options, **steps)
    np.testing.assert_allclose(
        compiled.get_latent_representation(), eager.get_latent_representation(), atol=1e-4
    )


def test_a_compiled_model_agrees_with_an_eager_one():
    """Latents of the same cells agree within 0.01."""
    eager, compiled = fit(2), fit(2, {"compile": True, "compile_kwargs": {"backend": "aot_eager"}})
    np.testing.assert_allclose(
        compiled.get_latent_representation(), eager.get_latent_representation(), atol=0.01
    )


def test_a_compiled_step_is_one_graph_that_schedules_do_not_compile_again(monkeypatch):
    """With the noise and the likelihood that a GPU takes."""

    def dense(mu, theta, counts, above_zero):
        return -_likelihoods.NegativeBinomial(mu=mu, theta=theta).log_prob(counts).sum(dim=-1)

    monkeypatch.setattr(_input_noise, "POOL", 0)
    monkeypatch.setattr(_likelihoods, "negative_binomial_loss", dense)
    graphs = []
    for max_epochs in (4, 8):
        torch._dynamo.reset()
        counters.clear()
        fit(
            max_epochs,
            {"compile": True, "compile_kwargs": {"backend": "aot_eager"}},
            batch_size=48,
            train_size=1.0,
            datasplitter_kwargs={"drop_last": True},
        )
        assert not counters["graph_break"]
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[1]


@pytest.mark.parametrize("n_validating", [0, 20])
def test_cells_that_validate_are_those_that_were_named(n_validating):
    cells = np.arange(200)
    split = [cells[: 180 - n_validating], cells[180 - n_validating : 180], cells[180:]]
    model = fit(2, datasplitter_kwargs={"external_indexing": split})
    np.testing.assert_array_equal(model.validation_indices, split[1])
    assert ("validation_loss" in model.history) == (n_validating > 0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("lr", r"of the training plan: plan_kwargs=\{'lr': \.\.\.\}"),
        ("lambda_dis", r"of the model: DisentangleModel\(adata, lambda_dis=\.\.\.\)"),
        ("early_stoping", "Did you mean 'early_stopping'"),
        ("epochs", "'max_epochs'"),
    ],
)
def test_an_option_that_train_does_not_have_is_told_where_it_belongs(option, message):
    model = fit(1)
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(InputError, match=f"'{option}' is no option of train.*{message}"):
        model.train(1, **{option: 1})
    assert all(value.equal(weights[name]) for name, value in model.module.state_dict().items())


def test_options_in_configurations_are_as_those_by_name(monkeypatch):
    class Count(Callback):
        n_epochs = 0

        def on_train_epoch_end(self, *args):
            Count.n_epochs += 1

    configured = fit(
        plan_config={"noise_start": 0.5, "noise_schedule": "constant"},
        trainer_config={"callbacks": [Count()], "check_val_every_n_epoch": 2},
    )
    assert Count.n_epochs == 3
    assert (configured.history["noise_level"]["noise_level"] == 0.5).all()
    assert len(configured.history["reconstruction_loss_validation"]) == 1
    with pytest.raises(InputError, match="'precision=.64.|precision='64'"):
        fit(trainer_config={"precision": "64"})
    with pytest.raises(InputError, match="Unknown plan_kwargs option 'noise'"):
        fit(plan_config={"noise": 1.0})
    monkeypatch.setattr(scvi.settings, "batch_size", 50)
    assert fit(1, batch_size=None, train_size=1.0).trainer.num_training_batches == 4


def test_training_goes_on_from_a_checkpoint_of_lightnings(tmp_path):
    kept = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(2, callbacks=[kept], enable_checkpointing=True)
    model = fit(4, ckpt_path=kept.last_model_path)
    assert model.trainer.current_epoch == 4
    assert len(model.history["reconstruction_loss_train"]) == 2


@pytest.mark.parametrize("options", [{"train_size": 1.0}, {"check_val_every_n_epoch": None}])
def test_a_trained_model_can_be_copied(options):
    model = fit(2, **options)
    copied = copy.deepcopy(model)
    np.testing.assert_array_equal(
        copied.get_latent_representation(), model.get_latent_representation()
    )
