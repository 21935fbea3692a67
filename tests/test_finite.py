"""NaN and infinity in training: where they are caught, what is said, and what is kept."""

import numpy as np
import pytest
import torch

from scdisentangle import DisentangleModel, NonFiniteError, _finite, data
from scdisentangle.objectives.contrastive import Contrastive


@pytest.fixture
def model():
    adata = data.simulated(n_cells=150, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    return DisentangleModel(adata, n_hidden=16)


def weights(model):
    """What steps of training change; the alignment and the axes are found after the last."""
    state = model.module.state_dict()
    return {k: v.clone() for k, v in state.items() if not k.startswith(("alignment.", "axes."))}


def break_from(monkeypatch, model, call, what):
    """From call ``call`` on, let ``what`` make the contrastive term in training.

    Returns the weights at each call until then.
    """
    original, at_call = Contrastive.forward, []

    def forward(self, codes):
        value = original(self, codes)
        if not self.training:
            return value
        at_call.append(weights(model))
        return value if len(at_call) < call else what(value, codes.z_bio)

    monkeypatch.setattr(Contrastive, "forward", forward)
    return at_call


def root_of_zero(term, z_bio):
    """A finite value whose slope is not."""
    return term + (z_bio - z_bio.detach()).sum().sqrt()


def train(model, plan_kwargs=None, **kwargs):
    """Three epochs of five steps, all of which have the contrastive term."""
    plan_kwargs = {"dis_every_n_steps": 1} | (plan_kwargs or {})
    options = {"batch_size": 30, "train_size": 1.0, "enable_progress_bar": False}
    model.train(3, plan_kwargs=plan_kwargs, **options, **kwargs)


def assert_weights(model, expected):
    for name, value in weights(model).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "normal"},
        {"gene_likelihood": "mse"},
        {"kl_weight_bio": 1.0},
        {"nio_flow": "variational"},
    ],
)
def test_every_likelihood_and_code_leaves_faults_to_the_guard(model, options):
    model = DisentangleModel(model.adata, n_hidden=16, **options)
    with pytest.raises(NonFiniteError, match="became NaN or infinite"):
        train(model, {"lr": 1e30, "lr_schedule": "constant"})
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_stops_training(model, monkeypatch, value):
    at_call = break_from(monkeypatch, model, 7, lambda term, z_bio: term * value)
    with pytest.raises(NonFiniteError, match=r"'contrastive' of the loss.*epoch 2, step 2") as e:
        train(model)
    assert "lr" in str(e.value)
    assert_weights(model, at_call[5])
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize(("call", "kept"), [(1, 0), (6, 5), (7, 5), (10, 5), (15, 10)])
def test_a_gradient_that_is_not_finite_stops_training(model, monkeypatch, call, kept):
    """Five steps are an epoch; call 15 is the last of all."""
    at_call = break_from(monkeypatch, model, call, root_of_zero)
    epoch, step = 1 + (call - 1) // 5, 1 + (call - 1) % 5
    with pytest.raises(
        NonFiniteError, match=rf"gradient of 'contrastive' .*epoch {epoch}, step {step}\."
    ):
        train(model, plan_kwargs={"dis_warmup": 0, "dis_ramp": 0})
    assert_weights(model, at_call[kept])


def test_an_estimator_is_watched_too(monkeypatch):
    adata = data.simulated(n_cells=150, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16, objective="mutual_information")
    objective = model.module.disentanglement.objectives["mutual_information"]
    monkeypatch.setattr(objective, "estimator_loss", lambda codes: codes.z_bio.sum() * torch.nan)
    with pytest.raises(NonFiniteError, match="'estimator_loss' of the loss.*epoch 1, step 1"):
        train(model)


def test_a_learning_rate_that_explodes_is_no_silent_nan(model):
    train(model)
    start = weights(model)
    with pytest.raises(NonFiniteError, match="epoch 1, step"):
        train(model, plan_kwargs={"lr": 1e30})
    assert_weights(model, start)
    train(model)
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_where_looks_are_rare_the_first_bad_step_is_named_and_weights_are_restored(
    model, monkeypatch, what
):
    """As on an accelerator, where each look at a number waits for the device."""
    monkeypatch.setattr(_finite, "looks_at_every_step", lambda values: False)
    ruin = {"loss": lambda term, z_bio: term * torch.nan, "gradient": root_of_zero}
    at_call = break_from(monkeypatch, model, 8, ruin[what])
    step = {"loss": 3, "gradient": 4}[what]
    with pytest.raises(NonFiniteError, match=f"epoch 2, step {step}"):
        train(model, plan_kwargs={"dis_warmup": 0, "dis_ramp": 0})
    assert_weights(model, at_call[5])


def test_where_looks_are_rare_training_goes_on_to_the_next_one_at_most(model, monkeypatch):
    monkeypatch.setattr(_finite, "looks_at_every_step", lambda values: False)
    monkeypatch.setattr(_finite, "STEPS_BETWEEN_LOOKS", 2)
    at_call = break_from(monkeypatch, model, 2, lambda term, z_bio: term * torch.nan)
    with pytest.raises(NonFiniteError, match="epoch 1, step 2"):
        train(model, plan_kwargs={"dis_warmup": 0, "dis_ramp": 0})
    assert len(at_call) <= 3  # of five in the epoch


def test_weights_that_give_no_codes_hide_no_error():
    """The root of a variance below zero: no code is finite, and none can be aligned."""
    adata = data.simulated(n_cells=150, n_genes=60, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    options = {"kl_weight_bio": 1.0, "var_activation": torch.nn.ELU()}
    model = DisentangleModel(adata, n_hidden=16, **options)
    with pytest.raises(NonFiniteError, match="'kl_bio' of the loss.*epoch 1, step 1"):
        train(model)


def test_mixed_precision_trains_and_is_watched(model, monkeypatch):
    train(model, precision="bf16-mixed")
    assert np.isfinite(model.get_latent_representation()).all()
    break_from(monkeypatch, model, 3, lambda term, z_bio: term / 0)
    with pytest.raises(NonFiniteError, match="'contrastive'.*epoch 1, step 3"):
        train(model, precision="bf16-mixed")


def test_a_gradient_that_the_scaler_skips_is_no_fault():
    """Loss scaling begins too high on purpose; the overflow must reach no weight and no error."""
    module = torch.nn.Linear(2, 1)
    guard = _finite.FiniteGuard(module, lambda minibatch: {})
    module.weight.grad = torch.full_like(module.weight, torch.inf)
    guard.watch({"loss": module.weight.sum()}, None, 1, 1)
    guard.end_epoch()
