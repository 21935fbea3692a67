"""What is in force at each epoch, and who is trained by whom."""

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from scdisentangle import DisentangleModel, DisentangleTrainingPlan, InputError, data
from scdisentangle.objectives import OBJECTIVES

TRAINING = ("batch_size", "train_size", "callbacks")


def trained(max_epochs=8, plan_kwargs=None, **kwargs):
    training = {name: kwargs.pop(name) for name in TRAINING if name in kwargs}
    adata = data.simulated(n_cells=150, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch", labels_key="celltype")
    scvi.settings.seed = 0
    model = DisentangleModel(adata, n_hidden=16, **kwargs)
    model.train(max_epochs, plan_kwargs=plan_kwargs, enable_progress_bar=False, **training)
    return model


def curve(model, name):
    return model.history[name][name].to_numpy(dtype=float)


def test_history_holds_the_schedules_as_their_formulas_say():
    model = trained(
        plan_kwargs={
            "dis_warmup": 2,
            "dis_ramp": 0.5,
            "reconstruction_floor": 0.5,
            "noise_start": 0.2,
            "noise_end": 0.05,
        },
        lambda_dis=3.0,
    )
    progress = np.arange(8) / 8
    np.testing.assert_allclose(
        curve(model, "learning_rate"), 3e-3 * (1 + np.cos(np.pi * progress)) / 2, rtol=1e-5
    )
    np.testing.assert_allclose(curve(model, "noise_level"), 0.2 - 0.15 * progress, rtol=1e-5)
    np.testing.assert_allclose(
        curve(model, "disentanglement_weight"), 3.0 * np.clip((progress - 0.25) / 0.5, 0, 1)
    )
    np.testing.assert_allclose(
        curve(model, "reconstruction_weight"), np.maximum(1 - progress, 0.5), rtol=1e-6
    )


@pytest.mark.parametrize("objective", ["contrastive", "mutual_information"])
@pytest.mark.parametrize("warmup", [2, 0.25])
def test_learning_rate_rises_step_by_step_and_then_falls_by_epochs(objective, warmup):
    rates = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            rates.append([group["lr"] for o in trainer.optimizers for group in o.param_groups])

    trained(
        plan_kwargs={"lr_warmup": warmup},
        objective=objective,
        batch_size=27,
        train_size=0.9,
        callbacks=[Watch()],
    )
    epoch, step = np.divmod(np.arange(8 * 5), 5)
    expected = 3e-3 * np.minimum((epoch + (step + 1) / 5) / 2, 1) * (1 + np.cos(np.pi * epoch / 8))
    for rates_of_optimizer in np.transpose(rates):
        np.testing.assert_allclose(rates_of_optimizer, expected / 2, rtol=1e-6)


def test_the_learning_rates_of_an_optimizer_of_ones_own_are_those_of_the_schedule_times_its_own():
    rates = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def creator(parameters):
        first, *others = parameters
        return torch.optim.SGD([{"params": [first], "lr": 1e-5}, {"params": others}], lr=1e-4)

    trained(
        plan_kwargs={"optimizer": "Custom", "optimizer_creator": creator, "lr_warmup": 0},
        batch_size=150,
        train_size=1.0,
        callbacks=[Watch()],
    )
    course = (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose(rates, np.outer(course, [1e-5, 1e-4]), rtol=1e-6)


def test_one_step_has_the_whole_learning_rate():
    model = trained(max_epochs=1, train_size=1.0, batch_size=150)
    before = trained(max_epochs=1, train_size=1.0, batch_size=150, plan_kwargs={"lr_warmup": 0})
    for name, weights in model.module.state_dict().items():
        torch.testing.assert_close(weights, before.module.state_dict()[name])


@pytest.mark.parametrize("every", [1, 2, 3])
def test_history_holds_each_term_raw_and_weighted(every):
    weights = {"hsic": 2.0, "batch_mmd": 0.5}
    model = trained(
        plan_kwargs={"dis_warmup": 0, "dis_ramp": 0, "dis_every_n_steps": every},
        batch_size=27,
        objective=weights,
        lambda_cls=4.0,
        lambda_dis=3.0,
        kl_weight_bio=0.0,
    )
    for stage in ("train", "validation"):
        total = curve(model, f"{stage}_loss" if stage == "train" else "validation_loss")
        parts = 0
        for name, factor in {
            "reconstruction_loss": 1.0,
            "classification_loss": 4.0,
            "commitment": 4.0,
            "hsic": 3.0 * 2.0,
            "batch_mmd": 3.0 * 0.5,
        }.items():
            weighted = curve(model, f"{name}_weighted_{stage}")
            np.testing.assert_allclose(
                weighted, factor * curve(model, f"{name}_{stage}"), rtol=1e-3, atol=1e-6
            )
            parts = parts + weighted
        np.testing.assert_allclose(total, parts, rtol=1e-3)


STEPS_WITH_TERM = {
    "every step of a short epoch": (27, None, "hsic", 0, 5, 5),
    "every second of a longer one": (3, None, "hsic", 0, 45, 23),
    "every fourth of a long one": (1, None, "hsic", 0, 135, 34),
    "the only one, with components": (135, None, "hsic", 20, 1, 1),
    "every second of a very short one, with components": (27, None, "hsic", 20, 5, 3),
    "every fourth of a short one, with components": (6, None, "hsic", 20, 23, 6),
    "every step with components, as told": (27, 1, "hsic", 20, 5, 5),
    "as told": (6, 5, "hsic", 0, 23, 5),
    "every step of a long one, as told": (6, 1, "hsic", 0, 23, 23),
    "every step where an estimator must keep up": (6, 5, "mutual_information", 0, 23, 23),
}


@pytest.mark.parametrize("case", STEPS_WITH_TERM)
def test_the_disentanglement_term_is_taken_in_some_steps(case, monkeypatch):
    batch_size, every, objective, n_components, n_steps, n_taken = STEPS_WITH_TERM[case]
    taken, forward = [], OBJECTIVES[objective].forward

    def counted(self, codes):
        taken.append(codes)
        return forward(self, codes)

    monkeypatch.setattr(OBJECTIVES[objective], "forward", counted)
    model = trained(
        2,
        {"dis_every_n_steps": every},
        objective=objective,
        batch_size=batch_size,
        n_components=n_components,
        n_latent_bio=6,
        n_latent_nio=6,
    )
    assert model.trainer.num_training_batches == n_steps
    n_validation = sum(not codes.z_bio.requires_grad for codes in taken)
    assert len(taken) - n_validation == 2 * n_taken


def test_every_fourth_step_has_the_term_where_their_number_is_not_known(monkeypatch):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from loader

    whole = trained(1, batch_size=10).trainer.datamodule
    loader = list(whole.train_dataloader())
    datamodule = LightningDataModule()
    datamodule.train_dataloader = lambda: DataLoader(Stream(), batch_size=None)
    datamodule.n_vars, datamodule.n_batch = 60, 3
    model = DisentangleModel(n_hidden=16, objective="hsic")
    taken, forward = [], OBJECTIVES["hsic"].forward
    monkeypatch.setattr(
        OBJECTIVES["hsic"], "forward", lambda *args: taken.append(1) or forward(*args)
    )
    model.train(2, datamodule=datamodule, enable_progress_bar=False)
    assert len(loader) == 14
    assert len(taken) == 2 * 4


STEPS_WITH_CLASSIFICATION = {
    "those of 27 that have the term": ("quantized", 1, 5, 135, 27),
    "each, as five are too few": ("quantized", 6, 5, 23, 23),
    "each of a detached z_nio": ("detached", 1, 5, 135, 135),
    "each of a variational z_nio": ("variational", 1, 5, 135, 135),
    "each of a free z_nio": ("free", 1, 5, 135, 135),
}


@pytest.mark.parametrize("case", STEPS_WITH_CLASSIFICATION)
def test_z_nio_learns_in_the_steps_that_have_the_classification(case):
    flow, batch_size, every, n_steps, n_taken = STEPS_WITH_CLASSIFICATION[case]
    n_learning = 0

    class Count(Callback):
        def on_before_optimizer_step(self, trainer, plan, optimizer):
            nonlocal n_learning
            learning = [p.grad is not None for p in plan.module.classifier.parameters()]
            assert all(learning) or not any(learning)
            n_learning += learning[0]

    model = trained(
        2,
        {"dis_every_n_steps": every},
        nio_flow=flow,
        batch_size=batch_size,
        callbacks=[Count()],
    )
    assert model.trainer.num_training_batches == n_steps
    assert n_learning == 2 * n_taken


@pytest.mark.parametrize(
    "options",
    [
        {"dis_ramp": -0.5},
        {"dis_ramp": -1},
        {"dis_warmup": 1.5},
        {"lr_warmup": -1},
        {"reconstruction_floor": -1},
        {"reconstruction_floor": 1.5},
        {"lr": -1.0},
        {"eps": 0},
        {"eps": "small"},
    ],
)
def test_schedules_out_of_their_range_are_refused(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}=.* must be a number"):
        trained(1, options)


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_an_interval_that_is_none_is_refused(every):
    with pytest.raises(InputError, match=f"dis_every_n_steps={every}"):
        trained(1, {"dis_every_n_steps": every})


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("likelihood", ["nb", "mse"])
def test_every_objective_trains_beside_either_kind_of_likelihood(objective, likelihood):
    sizes = {"n_latent_bio": 6, "n_latent_nio": 6, "gene_likelihood": likelihood}
    model = trained(3, {"dis_warmup": 0, "dis_ramp": 0}, objective=objective, **sizes)
    for stage in ("train", "validation"):
        assert np.isfinite(curve(model, f"{objective}_{stage}")).all()
    error = curve(model, "reconstruction_loss_train")
    assert error[-1] < error[0]


def test_schedules_can_be_switched_off():
    model = trained(
        plan_kwargs={"noise_start": 0.0, "noise_schedule": "constant", "lr_schedule": "constant"}
    )
    assert curve(model, "learning_rate") == pytest.approx([3e-3] * 8)
    assert (curve(model, "noise_level") == 0).all()
    assert (curve(model, "reconstruction_weight") == 1).all()


WEIGHTS_OF_DIVERGENCES = {
    "less than one": ({"max_kl_weight": 0.3}, [0.3] * 6),
    "over epochs": (
        {"n_epochs_kl_warmup": 3, "min_kl_weight": 0.25},
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0],
    ),
    "over steps": (
        {"n_steps_kl_warmup": 4, "min_kl_weight": 0.2, "max_kl_weight": 0.8},
        [0.2, 0.35, 0.5, 0.65, 0.8, 0.8],
    ),
}


@pytest.mark.parametrize("objective", ["hsic", "mutual_information"])
@pytest.mark.parametrize("case", WEIGHTS_OF_DIVERGENCES)
def test_divergences_have_the_weight_that_is_asked_for(case, objective):
    """Each epoch is one step, with one optimiser or with two."""
    options, expected = WEIGHTS_OF_DIVERGENCES[case]
    sizes = {"kl_weight_bio": 0.5, "objective": objective}
    model = trained(6, options, **sizes, batch_size=150, train_size=1.0)
    np.testing.assert_allclose(curve(model, "kl_weight"), expected, rtol=1e-5)
    np.testing.assert_allclose(
        curve(model, "kl_bio_weighted_train"),
        0.5 * np.array(expected) * curve(model, "kl_local_train"),
        rtol=1e-4,
    )


def test_noise_reaches_the_module():
    levels = []
    original = DisentangleTrainingPlan.noise_level.fget

    class Spy(DisentangleTrainingPlan):
        @property
        def noise_level(self):
            levels.append(original(self))
            return levels[-1]

    adata = data.simulated(n_cells=150, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16, alignment=False, spherical=False)
    model._training_plan_cls = Spy
    seen = []
    forward = model.module.inference
    model.module.inference = lambda *a, noise_level=0.0, **k: (
        seen.append(noise_level) or forward(*a, noise_level=noise_level, **k)
    )
    model.train(4, enable_progress_bar=False)
    assert sorted(set(np.round(seen, 6))) == pytest.approx([0.04, 0.06, 0.08, 0.1])


def test_estimators_are_trained_by_their_own_optimizer():
    adata = data.simulated(n_cells=150, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16, objective="mutual_information")
    before = [p.detach().clone() for p in model.module.disentanglement.estimator_parameters()]
    model.train(3, enable_progress_bar=False)
    plan = model.trainer.lightning_module
    main, own = plan.optimizers()
    estimators = {id(p) for p in model.module.disentanglement.estimator_parameters()}

    def ids(optimizer):
        return {id(p) for group in optimizer.param_groups for p in group["params"]}

    assert ids(own) == estimators
    assert not ids(main) & estimators
    assert ids(main) | estimators == {id(p) for p in model.module.parameters() if p.requires_grad}
    still = {n for n, p in model.module.named_parameters() if not p.requires_grad}
    assert still == {"gene_shifts.shifts"}  # which only a query learns
    assert main.param_groups[0]["weight_decay"] == 1e-6  # scvi-tools' default
    after = model.module.disentanglement.estimator_parameters()
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert "estimator_loss_train" in model.history


@pytest.mark.parametrize("objective", ["hsic", "mutual_information"])
def test_learning_rate_falls_on_a_plateau(objective):
    model = trained(
        6,
        objective=objective,
        plan_kwargs={"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e9},
    )
    rate = model.trainer.optimizers[0].param_groups[0]["lr"]
    n_falls = np.log(rate / 3e-3) / np.log(0.6)  # scvi-tools' factor, and nothing else
    assert n_falls >= 1
    assert n_falls == pytest.approx(round(n_falls), abs=1e-6)


@pytest.mark.parametrize("option", ["gradient_clip_val", "accumulate_grad_batches"])
def test_what_a_second_optimizer_rules_out_is_told(option):
    model = trained(1, objective="mutual_information")
    with pytest.raises(InputError, match=f"{option}= is not for an objective with an estimator"):
        model.train(1, **{option: 2})
    nothing = {"gradient_clip_val": 0, "accumulate_grad_batches": 1}[option]
    model.train(1, **{option: nothing}, enable_progress_bar=False)


def test_the_step_of_adam_is_fused_and_the_same():
    scvi.settings.seed = 0
    fused = trained(2)
    assert fused.trainer.optimizers[0].defaults["fused"]

    def creator(parameters):
        return torch.optim.Adam(parameters, lr=3e-3, eps=1e-3, weight_decay=1e-6)

    scvi.settings.seed = 0
    plain = trained(2, {"optimizer": "Custom", "optimizer_creator": creator})
    assert not plain.trainer.optimizers[0].defaults["fused"]
    for name, weights in fused.module.state_dict().items():
        torch.testing.assert_close(
            weights, plain.module.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name
        )


def test_gradients_that_a_scaler_scales_can_be_clipped(monkeypatch):
    """Lightning clips no gradients that the optimiser itself would have to scale back."""
    monkeypatch.setattr(Trainer, "scaler", property(lambda trainer: object()))
    adata = data.simulated(n_cells=60, n_genes=30)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    for clip, fused in ((None, True), (1.0, False)):
        model = DisentangleModel(adata, n_hidden=8)
        model.train(1, enable_progress_bar=False, gradient_clip_val=clip)
        assert model.trainer.optimizers[0].defaults["fused"] is fused
