"""Values that are logged once an epoch are those of scvi-tools' and Lightning's bookkeeping."""

import inspect

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback, LightningModule
from scvi.train import TrainingPlan
from torchmetrics import SumMetric

from scdisentangle import DisentangleModel, DisentangleTrainingPlan, _epoch_log, data
from scdisentangle._epoch_log import EpochLogMixin


def trained(max_epochs=3, objective="contrastive", **kwargs):
    scvi.settings.seed = 0
    adata = data.simulated(n_cells=150, n_genes=40)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16, objective=objective, kl_weight_bio=0.5)
    # minibatches of several sizes, each of which must weigh as many cells as it has
    model.train(max_epochs, batch_size=40, enable_progress_bar=False, **kwargs)
    return model


SUMMED = ("elbo", "reconstruction_loss", "kl_local", "kl_global")


@torch.no_grad()
def logged_by_scvi(plan, *args):
    inspect.unwrap(TrainingPlan.compute_and_log_metrics)(plan, *args)


@pytest.mark.parametrize("objective", ["contrastive", "mutual_information"])
@pytest.mark.parametrize("on_step", [False, True])
def test_the_history_is_that_of_scvi_tools_and_lightning(monkeypatch, objective, on_step):
    plan_kwargs = {"n_epochs_kl_warmup": 2, "on_step": on_step}
    ours = trained(objective=objective, plan_kwargs=plan_kwargs).history
    monkeypatch.setattr(EpochLogMixin, "log", LightningModule.log)
    monkeypatch.setattr(DisentangleTrainingPlan, "compute_and_log_metrics", logged_by_scvi)
    theirs = trained(objective=objective, plan_kwargs=plan_kwargs).history
    # scvi-tools' metrics have no values of single steps
    summed = [f"{n}_{m}_step" for n in SUMMED for m in ("train", "validation")] if on_step else []
    assert ours.keys() - {"kl_weight"} == theirs.keys() - {"kl_weight"} | set(summed)
    for name in theirs.keys() - {"kl_weight"}:  # which Lightning shows every tenth step
        assert list(ours[name].index) == list(theirs[name].index)
        np.testing.assert_allclose(
            ours[name].to_numpy(float), theirs[name].to_numpy(float), rtol=1e-5, atol=1e-6
        )


def test_a_metric_of_a_plan_adds_up_over_an_epoch(monkeypatch):
    class Counting(DisentangleTrainingPlan):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.n_cells = SumMetric()

        def training_step(self, batch, batch_idx):
            self.n_cells.update(len(batch["X"]))
            self.log("n_cells", self.n_cells, on_epoch=True, on_step=False)
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr(DisentangleModel, "_training_plan_cls", Counting)
    history = trained(2, train_size=0.8).history
    assert history["n_cells"]["n_cells"].tolist() == [120, 120]


def test_many_steps_give_the_same_mean(monkeypatch):
    expected = trained().history["train_loss"]["train_loss"].to_numpy(float)
    monkeypatch.setattr(_epoch_log, "STEPS_KEPT", 2)
    found = trained().history["train_loss"]["train_loss"].to_numpy(float)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_weight_of_the_divergence_is_in_the_history():
    curve = trained(plan_kwargs={"n_epochs_kl_warmup": 2}).history["kl_weight"]["kl_weight"]
    assert curve.tolist() == [0.0, 0.5, 1.0]


class Spy(Callback):
    """What a callback finds as an epoch ends, and the losses of its steps."""

    def __init__(self, stop_at=None):
        self.stop_at, self.losses, self.found = stop_at, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append((float(outputs["loss"]), len(batch["X"])))
        if len(self.losses) == self.stop_at:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer, pl_module):
        self.found.append(float(trainer.callback_metrics["train_loss"]))


def test_callbacks_find_the_mean_as_the_epoch_ends():
    spy = Spy()
    trained(1, callbacks=[spy])
    losses, sizes = zip(*spy.losses, strict=True)
    assert len(set(sizes)) > 1
    assert spy.found == pytest.approx([np.average(losses, weights=sizes)], rel=1e-5)


def test_an_epoch_that_is_cut_short_is_logged():
    spy = Spy(stop_at=2)
    spy.on_train_epoch_end = lambda trainer, pl_module: None
    history = trained(1, callbacks=[spy]).history
    assert len(spy.losses) == 2
    losses, sizes = zip(*spy.losses, strict=True)
    expected = np.average(losses, weights=sizes)
    assert history["train_loss"]["train_loss"].iloc[0] == pytest.approx(expected, rel=1e-5)


def test_values_of_half_precision_are_averaged_in_full():
    curve = trained(2, precision="bf16-mixed").history["train_loss"]["train_loss"]
    assert torch.tensor(curve.to_numpy(float)).isfinite().all()
