from __future__ import annotations

import pytest
import torch
from torch import nn

from scdisentangle import InputError
from scdisentangle.objectives import build_objectives
from scdisentangle.objectives.gradient_penalty import output_sensitivity, projected_sensitivity

SIZES = {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 3}


def test_sensitivity_of_a_linear_output_is_the_norm_of_its_weights():
    weights = torch.tensor([3.0, 4.0])
    value = output_sensitivity(lambda z: z @ weights, torch.randn(6, 2))
    assert value.item() == pytest.approx(25.0)


def test_sensitivity_equals_finite_differences():
    z = torch.randn(4, 3).double()
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    step = 1e-5
    total = 0.0
    with torch.no_grad():
        for direction in torch.eye(3).double():
            slopes = (net(z + step * direction) - net(z - step * direction)) / (2 * step)
            total += slopes.square().mean().item()
    assert output_sensitivity(lambda z: net(z).squeeze(1), z).item() == pytest.approx(total)


def test_sensitivity_can_be_differentiated_again():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    z = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: output_sensitivity(lambda z: net(z).squeeze(1), z), z)


def test_projection_is_exact_for_a_map_with_orthogonal_columns():
    columns = torch.linalg.qr(torch.randn(7, 3)).Q * torch.tensor([1.0, 2.0, 3.0])
    value = projected_sensitivity(lambda z: z @ columns.T, torch.randn(5, 3))
    assert value.item() == pytest.approx(1 + 4 + 9, rel=1e-5)
    scaled = projected_sensitivity(
        lambda z: z @ columns.T, torch.randn(5, 3), scale=torch.tensor([2.0, 1.0, 0.0])
    )
    assert scaled.item() == pytest.approx(4 + 4, rel=1e-5)


def test_projection_is_the_frobenius_norm_on_average():
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 30))
    z = torch.randn(3, 4)
    jacobians = torch.stack([torch.autograd.functional.jacobian(net, row) for row in z])
    expected = jacobians.square().sum((1, 2)).mean().item()
    found = sum(projected_sensitivity(net, z).item() for _ in range(500)) / 500
    assert found == pytest.approx(expected, rel=0.05)


def test_projection_can_be_differentiated():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    z = torch.randn(4, 3, dtype=torch.double, requires_grad=True)

    def with_the_same_signs(z):
        torch.manual_seed(3)
        return projected_sensitivity(net, z)

    assert torch.autograd.gradcheck(with_the_same_signs, z)


def test_a_function_that_ignores_the_code_has_no_sensitivity():
    constant = torch.randn(5, 2, requires_grad=True)
    value = projected_sensitivity(lambda z: constant * 2.0, torch.randn(5, 3))
    value.backward()
    assert value.item() == 0.0


def test_lowers_what_the_decoder_reads_from_z_nio(make_codes):
    codes = make_codes()
    decoder = nn.Linear(10, 20)
    codes = make_codes(decode=lambda bio, nio: decoder(torch.cat([bio, nio], 1)))
    objective = build_objectives({"gradient_penalty": {"batch_weight": 0.0}}, **SIZES)
    assert not objective.has_estimators
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    bio_before = decoder.weight[:, :5].norm().item()
    for _ in range(100):
        optimizer.zero_grad()
        objective(codes)["gradient_penalty"].backward()
        optimizer.step()
    assert decoder.weight[:, 5:].norm().item() < 0.2
    assert decoder.weight[:, :5].norm().item() == pytest.approx(bio_before)


def test_lowers_the_effect_of_z_bio_on_the_batch_logits(make_codes):
    batch = torch.arange(120) % 3
    signal = 2.0 * nn.functional.one_hot(batch, 5).float()
    z_bio = (torch.randn(120, 5) + signal).requires_grad_()
    codes = make_codes(n=120, batch=batch, z_bio=z_bio, z_nio=torch.randn(120, 5) + signal)
    loss = build_objectives({"gradient_penalty": {"reconstruction_weight": 0.0}}, **SIZES)
    classifier = loss.objectives["gradient_penalty"].classifier
    estimator = torch.optim.Adam(loss.estimator_parameters(), lr=0.01)
    for _ in range(60):
        estimator.zero_grad()
        loss.estimator_loss(codes).backward()
        estimator.step()

    @torch.no_grad()
    def change_of_logits(step=1e-3):
        """Mean squared slope of the own batch's logit along each standardised dimension."""
        codes_in = [(z - z.mean(0)) / z.std(0, correction=0) for z in (z_bio, codes.z_nio)]
        total = 0.0
        for direction in step * torch.eye(5):
            ahead, behind = (
                classifier(torch.cat([codes_in[0] + sign * direction, codes_in[1]], 1))
                for sign in (1, -1)
            )
            slopes = (ahead - behind)[torch.arange(120), batch] / (2 * step)
            total += slopes.square().mean().item()
        return total

    before = change_of_logits()
    assert loss(codes)["gradient_penalty"].item() == pytest.approx(before, rel=1e-2)
    main = torch.optim.Adam([z_bio], lr=0.05)
    for _ in range(150):
        main.zero_grad()
        loss(codes)["gradient_penalty"].backward()
        main.step()
    assert change_of_logits() < 0.8 * before


def test_does_not_change_with_the_scale_of_z_bio(make_codes):
    codes = make_codes()
    scaled = make_codes(z_bio=codes.z_bio * 100.0, z_nio=codes.z_nio)
    objective = build_objectives({"gradient_penalty": {"reconstruction_weight": 0.0}}, **SIZES)
    torch.testing.assert_close(objective(codes), objective(scaled), rtol=1e-3, atol=1e-6)


def test_refuses_weights_that_leave_nothing():
    options = {"batch_weight": 0.0, "reconstruction_weight": 0.0}
    with pytest.raises(InputError, match="are 0: give one of them more"):
        build_objectives({"gradient_penalty": options}, **SIZES)
    with pytest.raises(InputError, match="batch_weight=nan must be a number"):
        build_objectives({"gradient_penalty": {"batch_weight": float("nan")}}, **SIZES)


def test_the_reconstruction_counts_by_its_weight_in_units_of_z_nio(make_codes):
    """Exact for a linear decoder with orthogonal columns: variances by squared lengths."""
    lengths = torch.arange(1.0, 6.0)
    columns = torch.linalg.qr(torch.randn(20, 5)).Q * lengths
    codes = make_codes(decode=lambda _, z_nio: z_nio @ columns.T)
    options = {"batch_weight": 0.0, "reconstruction_weight": 3.0}
    value = build_objectives({"gradient_penalty": options}, **SIZES)(codes)["gradient_penalty"]
    expected = 3.0 * (codes.z_nio.detach().var(0, correction=0) * lengths.square()).sum()
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
