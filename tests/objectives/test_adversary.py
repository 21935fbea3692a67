from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from scdisentangle.objectives import build_objectives
from scdisentangle.objectives.adversary import reverse_gradient

SIZES = {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 3}


def test_reverses_the_gradient_and_nothing_else():
    z = torch.randn(4, 3, requires_grad=True)
    reversed_z = reverse_gradient(z, 0.5)
    assert torch.equal(reversed_z, z)
    (gradient,) = torch.autograd.grad(reversed_z.square().sum(), z)
    torch.testing.assert_close(gradient, -0.5 * 2 * z.detach())


def test_the_classifier_keeps_its_own_gradient(make_codes):
    codes = make_codes()
    loss = build_objectives({"adversary": {"strength": 2.0}}, **SIZES)
    classifier = loss.objectives["adversary"].classifier
    value = loss(codes)["adversary"]
    reversed_gradients = torch.autograd.grad(value, [codes.z_bio, *classifier.parameters()])
    plain = functional.cross_entropy(classifier(codes.z_bio), codes.batch)
    to_codes, *to_classifier = torch.autograd.grad(plain, [codes.z_bio, *classifier.parameters()])
    assert value.item() == pytest.approx(plain.item())
    torch.testing.assert_close(reversed_gradients[0], -2.0 * to_codes)
    torch.testing.assert_close(list(reversed_gradients[1:]), to_classifier)


def test_balanced_weighs_batches_alike(make_codes):
    batch = torch.tensor([0] * 30 + [1] * 8 + [2] * 2)
    codes = make_codes(batch=batch)
    loss = build_objectives({"adversary": {"balanced": True}}, **SIZES)
    logits = loss.objectives["adversary"].classifier(codes.z_bio)
    each = torch.stack(
        [functional.cross_entropy(logits[batch == b], batch[batch == b]) for b in range(3)]
    )
    torch.testing.assert_close(loss(codes)["adversary"], each.mean())


def test_hides_the_batch(alike):
    z = alike.train("adversary", weight=3.0, steps=400)
    assert alike.leakage(alike.z) > 0.9
    assert alike.leakage(z) < 0.75
    assert alike.type_accuracy(z) > 0.9
