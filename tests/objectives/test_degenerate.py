"""Minibatches that hold next to nothing: every objective is finite there, and so is its slope."""

import pytest
import torch

from scdisentangle.objectives import OBJECTIVES, adversary, build_objectives, hsic, mmd
from scdisentangle.objectives._kernels import gaussian_kernel

VARIANTS = {
    **{name: {} for name in OBJECTIVES},
    "mmd unbiased": {"estimator": "unbiased"},
    "mmd as it is": {"normalize": False, "kernel": "gaussian"},
    "batch_mmd unbiased": {"estimator": "unbiased"},
    "batch_mmd normalised": {"normalize": True},
    "local_batch_mmd gaussian": {"kernel": "gaussian", "estimator": "unbiased"},
    "hsic unbiased": {"estimator": "unbiased"},
    "cka unbiased": {"estimator": "unbiased"},
    "batch_hsic unbiased": {"estimator": "unbiased"},
    "mutual_information leave_one_out": {"bound": "leave_one_out"},
    "contrastive mnn": {"positives": "mnn"},
    "contrastive views": {"counterfactual": 0.0},
    "contrastive counterfactual": {"counterfactual": 1.0},
    "adversary balanced": {"balanced": True},
}
N = 6


def identical(n):
    return torch.ones(n, 4)


def zero(n):
    return torch.zeros(n, 4)


def next_to_identical(n):
    return 1.0 + 1e-9 * torch.randn(n, 4)


def twins(n):
    return torch.randn(-(-n // 2), 4).repeat_interleave(2, 0)[:n]


def random(n):
    return torch.randn(n, 4)


PLACES = [identical, zero, next_to_identical, twins, random]
BATCHES = {
    "two batches": torch.arange(N) % 2,
    "one batch": torch.zeros(N, dtype=torch.long),
    "one cell in each batch": torch.arange(N),
    "one cell in one of two batches": torch.tensor([0, 0, 0, 0, 0, 1]),
    "a single cell": torch.tensor([1]),
    "two cells": torch.tensor([0, 1]),
}


def build(variant):
    name = variant.split()[0]
    loss = build_objectives({name: VARIANTS[variant]}, n_latent_bio=4, n_latent_nio=4, n_batch=N)
    return loss.objectives[name]


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_value_and_gradient_are_finite(make_codes, variant, place, batch):
    n = len(batch)
    z_bio, z_nio = place(n).requires_grad_(), place(n).requires_grad_()
    codes = make_codes(n, 4, 4, z_bio=z_bio, z_nio=z_nio, batch=batch, n_batch=N)
    objective = build(variant)
    value = objective(codes)
    (value + objective.estimator_loss(codes)).backward()
    assert value.isfinite()
    for tensor in (z_bio, z_nio, *objective.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.fixture
def as_finite_differences_see_it(monkeypatch):
    """What the gradient takes as constant is constant, and no gradient is reversed."""
    torch.set_default_dtype(torch.float64)
    clusters = torch.rand(N, 2).softmax(1)
    monkeypatch.setattr(hsic, "gaussian_kernel", lambda z, *_: gaussian_kernel(z, 0.7))
    monkeypatch.setattr(adversary, "reverse_gradient", lambda z, _: z)
    for module in (hsic, mmd):
        monkeypatch.setattr(module, "soft_clusters", lambda *_: clusters)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("batch", ["two batches", "one cell in one of two batches"])
@pytest.mark.parametrize("place", [identical, next_to_identical, twins, random])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_that_of_finite_differences(
    make_codes, as_finite_differences_see_it, variant, place, batch
):
    name = variant.split()[0]
    options = dict(VARIANTS[variant])
    if "mmd" in name:
        options |= {"sigma": 0.7, "fix_sigma": 0.7}
    if name == "local_batch_mmd":
        options["min_cells"] = 1
    loss = build_objectives({name: options}, n_latent_bio=4, n_latent_nio=4, n_batch=2)
    objective = loss.double().objectives[name]
    fixed = make_codes(N, 4, 4, batch=BATCHES[batch], n_batch=2)

    def value(z_bio, z_nio):
        torch.manual_seed(0)
        fields = {"z_bio": z_bio, "z_nio": z_nio}
        return objective(type(fixed)(**{**vars(fixed), **fields}))

    z_bio, z_nio = place(N).requires_grad_(), (0.3 + place(N)).requires_grad_()
    atol = 1e-4 if name == "cka" else 1e-5  # a ratio of two zeros, held by a small number
    assert torch.autograd.gradcheck(value, (z_bio, z_nio), atol=atol, rtol=1e-3)
