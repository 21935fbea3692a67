"""Likelihoods against SciPy."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit, softmax
from scvi.distributions import NegativeBinomial

from scdisentangle._likelihoods import expression_distribution, reconstruction_loss

rng = np.random.default_rng(0)
OUTPUT = rng.normal(size=(5, 4))
COUNTS = rng.poisson(1.5, size=(5, 4))
COUNTS[0, :2] = (0, 200)
LIBRARY = COUNTS.sum(1, keepdims=True)
LOG_DISPERSION = rng.normal(size=4)
ZI_LOGITS = rng.normal(size=(5, 4))
RATE = LIBRARY * softmax(OUTPUT, axis=1)
THETA = np.exp(LOG_DISPERSION)
NB = stats.nbinom(THETA, THETA / (THETA + RATE))
PI = expit(ZI_LOGITS)

EXPECTED = {
    "nb": NB.logpmf(COUNTS),
    "zinb": np.log(PI * (COUNTS == 0) + (1 - PI) * NB.pmf(COUNTS)),
    "poisson": stats.poisson(RATE).logpmf(COUNTS),
    "normal": stats.norm(OUTPUT, THETA).logpdf(COUNTS),
    "mse": -((OUTPUT - COUNTS) ** 2),
}


@pytest.mark.parametrize("likelihood", EXPECTED)
def test_loss_is_summed_over_genes_for_each_cell(likelihood):
    output, library, dispersion, zi = map(
        torch.tensor, (OUTPUT, np.log(LIBRARY), LOG_DISPERSION, ZI_LOGITS)
    )
    px = expression_distribution(likelihood, output, library, dispersion, zi)
    loss = reconstruction_loss(likelihood, px, torch.tensor(COUNTS, dtype=torch.float64))
    np.testing.assert_allclose(loss, -EXPECTED[likelihood].sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_expected_counts_add_up_to_the_library(likelihood):
    output, library, dispersion, zi = map(
        torch.tensor, (OUTPUT, np.log(LIBRARY), LOG_DISPERSION, ZI_LOGITS)
    )
    px = expression_distribution(likelihood, output, library, dispersion, zi)
    np.testing.assert_allclose(px.get_normalized("scale").sum(1), np.ones(5))


def test_sparse_negative_binomial_has_the_gradients_of_the_dense_form():
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    gradients = []
    for loss in (
        lambda mu, theta: reconstruction_loss("nb", NegativeBinomial(mu=mu, theta=theta), counts),
        lambda mu, theta: -NegativeBinomial(mu=mu, theta=theta).log_prob(counts).sum(-1),
    ):
        mu, theta = (torch.tensor(a, requires_grad=True) for a in (RATE, THETA))
        loss(mu, theta).pow(2).sum().backward()
        gradients.append((mu.grad, theta.grad))
    for own, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(own, dense, rtol=1e-5, atol=1e-5)
