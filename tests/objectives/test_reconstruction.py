from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from scdisentangle.objectives import calibrated, squared_error


def test_squared_error_is_the_squared_euclidean_norm_per_cell():
    x_hat, x = torch.randn(9, 30).double(), torch.randn(9, 30).double()
    expected = np.linalg.norm(x_hat.numpy() - x.numpy(), axis=1) ** 2
    np.testing.assert_allclose(squared_error(x_hat, x), expected)


def test_its_mean_over_cells_is_the_reconstruction_loss_by_hand():
    x_hat = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert squared_error(x_hat, x).mean().item() == (1 + 4 + 9) / 2


def test_calibrated_squared_error_is_the_least_loss_of_a_normal_distribution():
    rng = np.random.default_rng(0)
    x_hat, x = rng.normal(size=(6, 4)), 3.0 * rng.normal(size=(6, 4))
    found = minimize_scalar(
        lambda log_scale: -norm(x_hat, np.exp(log_scale)).logpdf(x).sum(axis=1).mean()
    )
    expected = found.fun - 0.5 * 4 * (1.0 + np.log(2.0 * np.pi))
    errors = squared_error(torch.tensor(x_hat), torch.tensor(x))
    assert calibrated(errors, 4).item() == pytest.approx(expected, rel=1e-6)


def test_calibrated_squared_error_weighs_alike_on_every_scale():
    """Its gradient with respect to a share of the error is what it is, in whatever unit."""
    rng = np.random.default_rng(0)
    for unit in (1e-2, 1.0, 1e2):
        x = torch.tensor(unit * rng.normal(size=(6, 4)))
        share = torch.ones((), dtype=torch.double, requires_grad=True)
        calibrated(squared_error(share * x, torch.zeros_like(x)), 4).backward()
        assert share.grad.item() == pytest.approx(4.0)  # of G log(share)


def test_calibrated_squared_error_of_no_error_is_finite():
    error = torch.zeros(3, requires_grad=True)
    calibrated(error, 5).backward()
    assert torch.isfinite(error.grad).all()
