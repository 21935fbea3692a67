"""The terms of the loss, their weights, and what each of them trains."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scvi import REGISTRY_KEYS
from sklearn.metrics import log_loss
from small_module import N_CELLS, gradient_norm, make, minibatch


@pytest.fixture
def tensors():
    return minibatch()


def reconstruct(module, tensors):
    _, generated, _ = module(tensors)
    x = tensors[REGISTRY_KEYS.X_KEY]
    return -generated["px"].log_prob(x).sum()


def test_loss_is_the_weighted_sum_of_its_terms(tensors):
    options = {"gene_likelihood": "mse", "code_loss": "likelihood", "objective": {"hsic": 2.0}}
    module = make(lambda_cls=3.0, lambda_dis=0.5, **options).eval()
    outputs, generated, _ = module(tensors)
    losses = module.loss(tensors, outputs, generated, 0.7, 0.4)

    target, mean = (t.detach().numpy() for t in (outputs["normalized"], generated["px"].mean))
    reconstruction = ((mean - target) ** 2).sum(axis=1).mean()
    probabilities = module.classifier(outputs["z_nio"]).softmax(1).detach().numpy()
    classification = log_loss(tensors[REGISTRY_KEYS.BATCH_KEY].ravel().numpy(), probabilities)
    dependence = losses.extra_metrics["hsic"].item()
    expected = 0.7 * reconstruction + 3.0 * classification + 0.4 * 0.5 * 2.0 * dependence
    assert losses.loss.item() == pytest.approx(expected, rel=1e-4)


def test_balanced_classification_weighs_batches_alike(tensors):
    tensors[REGISTRY_KEYS.BATCH_KEY] = torch.tensor([0] * 20 + [1] * 3 + [2]).unsqueeze(1)
    module = make(class_balanced=True).eval()
    outputs, _, losses = module(tensors)
    batch = tensors[REGISTRY_KEYS.BATCH_KEY].ravel().numpy()
    probabilities = module.classifier(outputs["z_nio"]).softmax(1).detach().numpy()
    weights = 1 / np.bincount(batch)[batch]
    expected = log_loss(batch, probabilities, sample_weight=weights)
    assert losses.extra_metrics["classification_loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("flow", "reaches"), [("quantized", False), ("detached", False), ("free", True)]
)
def test_whether_reconstruction_shapes_z_nio(tensors, flow, reaches):
    module = make(nio_flow=flow)
    reconstruct(module, tensors).backward()
    assert (gradient_norm(module.encoder.nio_encoder.parameters()) > 0) == reaches
    assert gradient_norm(module.encoder.bio_encoder.parameters()) > 0


def test_classification_shapes_z_nio_alone(tensors):
    module = make()
    module(tensors)[2].extra_metrics["classification_loss"].backward()
    assert gradient_norm(module.encoder.nio_encoder.parameters()) > 0
    assert gradient_norm(module.encoder.bio_encoder.parameters()) == 0
    assert gradient_norm(module.decoder.parameters()) == 0


def test_kl_of_the_variational_codes(tensors):
    """Against the expectation of log q - log p over draws from SciPy's normals."""
    module = make(nio_flow="variational", kl_weight_bio=0.5, kl_weight_nio=2.0).eval()
    with torch.no_grad():
        outputs, _, losses = module(tensors)
        q_bio, q_nio = outputs["q_bio"], outputs["q_nio"]
        batch = tensors[REGISTRY_KEYS.BATCH_KEY].ravel()
        prior_nio = norm(module.flow.mean[batch], module.flow.log_scale.exp()[batch])
    for name, weight, q, prior in [
        ("kl_bio", 0.5, q_bio, norm(0, 1)),
        ("kl_nio", 2.0, q_nio, prior_nio),
    ]:
        own = norm(q.loc.numpy(), q.scale.numpy())
        draws = own.rvs(size=(20_000, *q.loc.shape), random_state=0)
        kl = (own.logpdf(draws) - prior.logpdf(draws)).mean(axis=0).sum(axis=1)
        np.testing.assert_allclose(losses.kl_local[name].numpy(), kl, rtol=0.05, atol=0.02)
        weighted = losses.extra_metrics[f"{name}_weighted"]
        np.testing.assert_allclose(weighted.numpy(), weight * kl.mean(), rtol=0.05)
    weighted = sum(losses.extra_metrics[f"{name}_weighted"] for name in losses.kl_local)
    total = losses.reconstruction_loss_sum + N_CELLS * weighted
    classification = module.lambda_cls * losses.extra_metrics["classification_loss"] * N_CELLS
    assert losses.loss.item() * N_CELLS == pytest.approx((total + classification).item(), rel=1e-5)


def test_a_loss_without_the_classification_lacks_just_that(tensors):
    module = make(nio_flow="quantized", lambda_cls=3.0).eval()
    outputs = module(tensors)[:2]
    whole, rest = (
        module.loss(tensors, *outputs, classification_weight=weight) for weight in (2.0, None)
    )
    names = ("classification_loss", "commitment")
    left_out = sum(whole.extra_metrics[name] for name in names)
    torch.testing.assert_close(whole.loss - rest.loss, 2.0 * 3.0 * left_out, rtol=1e-3, atol=1e-3)
    assert not set(names) & set(rest.extra_metrics)


def best_normal_loss(x, mean):
    """Negative log-likelihood of a cell with the best of variances, less its constant."""
    scale = ((x - mean) ** 2).mean() ** 0.5
    constant = 0.5 * x.shape[1] * (1 + np.log(2 * np.pi))
    return -norm(mean, scale).logpdf(x).sum(axis=1).mean() - constant


@pytest.mark.parametrize("code_loss", ["both", "squared_error"])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "normal"])
def test_squared_error_trains_the_codes_with_the_likelihood_or_alone(
    tensors, likelihood, code_loss
):
    module = make(gene_likelihood=likelihood, code_loss=code_loss, objective=None).eval()
    outputs, generated, losses = module(tensors)
    normalized = outputs["normalized"].numpy()
    expected = best_normal_loss(normalized, generated["normalized"].detach().numpy())
    terms = losses.extra_metrics
    assert terms["squared_error"].item() == pytest.approx(expected, rel=1e-4)
    x = normalized if likelihood == "normal" else tensors[REGISTRY_KEYS.X_KEY].numpy()
    reconstruction = -generated["px"].log_prob(torch.tensor(x)).sum(1).mean()
    assert terms["reconstruction_loss_weighted"].item() == pytest.approx(
        reconstruction.item(), rel=1e-4
    )
    total = sum(term for name, term in terms.items() if name.endswith("_weighted"))
    assert losses.loss.item() == pytest.approx(total.item())

    terms["reconstruction_loss_weighted"].backward(retain_graph=True)
    both = code_loss == "both"
    assert (gradient_norm(module.encoder.bio_encoder.parameters()) > 0) == both
    assert (gradient_norm(module.decoder.trunk.parameters()) > 0) == both
    assert gradient_norm(module.decoder.output.parameters()) > 0
    module.zero_grad()
    terms["squared_error_weighted"].backward()
    assert gradient_norm(module.encoder.bio_encoder.parameters()) > 0
    assert gradient_norm(module.decoder.output.parameters()) == 0


@pytest.mark.parametrize("code_loss", ["both", "squared_error"])
def test_squared_error_that_trains_the_codes_is_calibrated(tensors, code_loss):
    module = make(gene_likelihood="mse", code_loss=code_loss).eval()
    outputs, generated, losses = module(tensors)
    target, mean = outputs["normalized"].numpy(), generated["px"].mean.detach().numpy()
    assert losses.extra_metrics["reconstruction_loss_weighted"].item() == pytest.approx(
        best_normal_loss(target, mean), rel=1e-4
    )
    np.testing.assert_allclose(
        losses.reconstruction_loss["reconstruction_loss"].detach(),
        ((target - mean) ** 2).sum(axis=1),
        rtol=1e-4,
    )
    losses.loss.backward()
    assert gradient_norm(module.encoder.bio_encoder.parameters()) > 0


def test_weights_are_one_unless_scheduled(tensors):
    module = make(objective="hsic", kl_weight_bio=1.0).eval()
    outputs = module(tensors)[:2]
    weights = ("reconstruction_weight", "disentanglement_weight", "kl_weight")
    plain, explicit = (
        module.loss(tensors, *outputs, **options).extra_metrics
        for options in ({}, dict.fromkeys(weights, 1.0))
    )
    assert plain == explicit


def test_there_is_no_loss_of_an_estimator_without_one(tensors):
    assert "estimator_loss" not in make(objective="hsic").train()(tensors)[2].extra_metrics
    assert (
        "estimator_loss" in make(objective="mutual_information").train()(tensors)[2].extra_metrics
    )


def test_weights_of_zero_leave_nothing_of_the_loss(tensors):
    options = {"kl_weight_bio": 1.0, "nio_flow": "variational", "code_loss": "both"}
    module = make(objective={"hsic": 1.0}, **options).eval()
    outputs = module(tensors)[:2]
    weights = ("reconstruction", "disentanglement", "kl", "classification")
    losses = module.loss(tensors, *outputs, **{f"{name}_weight": 0.0 for name in weights})
    assert losses.loss.item() == 0.0
    assert losses.extra_metrics["classification_loss"] > 0


def test_shifts_of_genes_that_are_learned_add_half_their_square(tensors):
    module = make().eval()
    outputs = module(tensors)[:2]
    before = module.loss(tensors, *outputs).loss
    shifts = module.gene_shifts.shifts.requires_grad_()
    with torch.no_grad():
        shifts += torch.randn_like(shifts)
    added = (module.loss(tensors, *outputs).loss - before).item()
    assert added == pytest.approx(np.square(shifts.detach().numpy()).sum() / 2, rel=1e-3)
