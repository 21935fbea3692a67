from __future__ import annotations

import numpy as np
import pytest
import torch
from hyppo.independence import Dcorr
from scipy.stats import norm

from scdisentangle.objectives import build_objectives
from scdisentangle.objectives.mutual_information import (
    club,
    gaussian_log_likelihoods,
    leave_one_out,
)


def correlated_gaussians(rho: float, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """I(x; y) = -d / 2 log(1 - rho ** 2)."""
    x = torch.randn(n, d)
    return x, rho * x + (1 - rho**2) ** 0.5 * torch.randn(n, d)


def true_log_likelihoods(x, y, rho):
    return gaussian_log_likelihoods(rho * x, torch.full_like(x, np.log(1 - rho**2)), y)


def test_log_likelihoods_equal_scipy():
    mean, log_variance, y = (np.random.default_rng(0).normal(size=(n, 3)) for n in (4, 4, 5))
    expected = [
        [norm.logpdf(y[j], mean[i], np.exp(log_variance[i] / 2)).sum() for j in range(5)]
        for i in range(4)
    ]
    found = gaussian_log_likelihoods(*map(torch.tensor, (mean, log_variance, y)))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_bounds_of_correlated_gaussians_with_the_true_conditional(rho):
    d = 2
    x, y = correlated_gaussians(rho, n=3000, d=d)
    log_likelihoods = true_log_likelihoods(x, y, rho)
    information = -d / 2 * np.log(1 - rho**2)
    # E log q(y|x) - E log q(y'|x) of the Gaussian conditional
    looser = d * rho**2 / (1 - rho**2)
    assert club(log_likelihoods).item() == pytest.approx(looser, rel=0.1, abs=0.02)
    assert leave_one_out(log_likelihoods).item() == pytest.approx(information, rel=0.1, abs=0.02)
    assert looser >= information


@pytest.mark.parametrize("bound", [club, leave_one_out])
def test_gradient_equals_finite_differences(bound):
    x = torch.randn(5, 2, dtype=torch.double, requires_grad=True)
    y = torch.randn(5, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: bound(true_log_likelihoods(x, y, 0.6)), (x, y))


@pytest.mark.parametrize(("bound", "looser"), [("club", True), ("leave_one_out", False)])
def test_fitted_network_gives_the_bound(make_codes, bound, looser):
    rho, d = 0.7, 2
    sizes = {"n_latent_bio": d, "n_latent_nio": d, "n_batch": 2}
    objective = build_objectives({"mutual_information": {"bound": bound}}, **sizes)
    optimizer = torch.optim.Adam(objective.estimator_parameters(), lr=5e-3)
    for _ in range(250):
        x, y = correlated_gaussians(rho, n=256, d=d)
        loss = objective.estimator_loss(make_codes(n=256, z_bio=x, z_nio=y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = correlated_gaussians(rho, n=2000, d=d)
    value = objective(make_codes(n=2000, z_bio=x, z_nio=y))["mutual_information"].item()
    expected = d * rho**2 / (1 - rho**2) if looser else -d / 2 * np.log(1 - rho**2)
    assert value == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("bound", ["club", "leave_one_out"])
def test_makes_the_codes_independent(make_codes, bound):
    x, y = correlated_gaussians(0.9, n=200, d=3)
    codes = make_codes(n=200, z_bio=x.requires_grad_(), z_nio=y.requires_grad_())
    sizes = {"n_latent_bio": 3, "n_latent_nio": 3, "n_batch": 3}
    objective = build_objectives({"mutual_information": {"bound": bound}}, **sizes)

    def dependence():
        return Dcorr().statistic(*(z.detach().double().numpy() for z in (codes.z_bio, codes.z_nio)))

    before = dependence()
    estimator = torch.optim.Adam(objective.estimator_parameters(), lr=5e-3)
    main = torch.optim.Adam([codes.z_bio, codes.z_nio], lr=0.02)
    for step in range(250):
        estimator.zero_grad()
        objective.estimator_loss(codes).backward()
        estimator.step()
        if step >= 100:
            main.zero_grad()
            objective(codes)["mutual_information"].backward()
            main.step()
    assert before > 0.7
    assert dependence() < 0.4 * before


def test_does_not_change_with_the_scale_of_the_codes(make_codes):
    codes = make_codes()
    sizes = {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 3}
    objective = build_objectives("mutual_information", **sizes)
    scaled = make_codes(z_bio=codes.z_bio * 100, z_nio=codes.z_nio * 100 + 5)
    torch.testing.assert_close(objective(codes), objective(scaled), rtol=1e-3, atol=1e-5)


def test_takes_the_batch_out_of_z_bio(alike):
    z = alike.train("mutual_information", weight=1.0, steps=200)
    assert alike.leakage(alike.z) > 0.9
    assert alike.leakage(z) < 0.7
    assert alike.type_accuracy(z) > 0.95


def test_leave_one_out_of_two_cells_by_hand():
    table = torch.tensor([[-1.0, -4.0], [-3.0, -2.0]])
    assert leave_one_out(table).item() == pytest.approx(((-1.0 + 3.0) + (-2.0 + 4.0)) / 2)


def test_two_cells_are_enough(make_codes):
    objective = build_objectives("mutual_information", n_latent_bio=5, n_latent_nio=5, n_batch=3)
    assert objective(make_codes(n=2))["mutual_information"].abs() > 1e-4
