"""Likelihoods against SciPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import digamma as digamma_of_scipy
from scipy.special import expit, gammaln, softmax
from scvi import distributions

from scdisentangle import _likelihoods
from scdisentangle._likelihoods import expression_distribution, reconstruction_loss
from scdisentangle._sparse_losses import digamma, negative_binomial_loss

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


@pytest.mark.parametrize("likelihood", EXPECTED)
def test_each_of_several_draws_has_its_loss(likelihood):
    output, zi = (torch.tensor(np.stack([a, a[::-1]])) for a in (OUTPUT, ZI_LOGITS))
    library, dispersion = torch.tensor(np.log(LIBRARY)), torch.tensor(LOG_DISPERSION)
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    loss = reconstruction_loss(
        likelihood,
        expression_distribution(likelihood, output, library, dispersion, zi),
        counts,
    )
    for draw in range(2):
        one = expression_distribution(likelihood, output[draw], library, dispersion, zi[draw])
        expected = -one.log_prob(counts).sum(dim=-1)
        if likelihood == "mse":
            expected = (output[draw] - counts).square().sum(dim=-1)
        np.testing.assert_allclose(loss[draw], expected, rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_counts_that_are_not_whole_have_the_densities_by_log_gammas(likelihood):
    y = COUNTS * 0.7
    poisson = y * np.log(RATE) - RATE - gammaln(y + 1)
    nb = gammaln(y + THETA) - gammaln(THETA) - gammaln(y + 1)
    nb += THETA * np.log(THETA / (THETA + RATE)) + y * np.log(RATE / (THETA + RATE))
    zinb = np.log(PI * (y == 0) + (1 - PI) * np.exp(nb))
    expected = {"nb": nb, "zinb": zinb, "poisson": poisson}[likelihood].sum(axis=1)
    output, library, dispersion, zi = map(
        torch.tensor, (OUTPUT, np.log(LIBRARY), LOG_DISPERSION, ZI_LOGITS)
    )
    px = expression_distribution(likelihood, output, library, dispersion, zi)
    loss = reconstruction_loss(likelihood, px, torch.tensor(y))
    np.testing.assert_allclose(loss, -expected, rtol=1e-5)
    np.testing.assert_allclose(px.log_prob(torch.tensor(y)).sum(dim=1), expected, rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_expected_counts_add_up_to_the_library(likelihood):
    output, library, dispersion, zi = map(
        torch.tensor, (OUTPUT, np.log(LIBRARY), LOG_DISPERSION, ZI_LOGITS)
    )
    px = expression_distribution(likelihood, output, library, dispersion, zi)
    np.testing.assert_allclose(px.get_normalized("scale").sum(1), np.ones(5))


CLASSES = {  # ours, and scvi-tools'
    "nb": (_likelihoods.NegativeBinomial, distributions.NegativeBinomial),
    "zinb": (_likelihoods.ZeroInflatedNegativeBinomial, distributions.ZeroInflatedNegativeBinomial),
    "poisson": (distributions.Poisson, distributions.Poisson),
}


def arguments(likelihood, per_cell):
    """Leaf tensors of the distribution, with a dispersion for each gene or each value."""
    theta = np.broadcast_to(THETA, RATE.shape).copy() if per_cell else THETA
    leaf = {"mu": RATE, "theta": theta, "zi_logits": ZI_LOGITS}
    if likelihood == "poisson":
        leaf = {"rate": RATE}
    elif likelihood == "nb":
        del leaf["zi_logits"]
    return {name: torch.tensor(value, requires_grad=True) for name, value in leaf.items()}


@pytest.mark.parametrize("likelihood", CLASSES)
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_sparse_forms_have_the_gradients_of_the_dense_form(likelihood, per_cell, known):
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    above_zero = torch.tensor(np.flatnonzero(COUNTS)) if known else None
    own, dense = arguments(likelihood, per_cell), arguments(likelihood, per_cell)
    ours, scvi_tools = CLASSES[likelihood]
    reconstruction_loss(likelihood, ours(**own), counts, above_zero).pow(2).sum().backward()
    loss = -scvi_tools(**dense).log_prob(counts).sum(-1)
    loss.pow(2).sum().backward()
    for name, leaf in own.items():
        torch.testing.assert_close(leaf.grad, dense[name].grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_cell", [False, True])
def test_the_closed_form_gradient_is_that_of_finite_differences(per_cell):
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    leaf = arguments("nb", per_cell)
    assert torch.autograd.gradcheck(
        lambda mu, theta: negative_binomial_loss(mu, theta, counts), (leaf["mu"], leaf["theta"])
    )


def test_the_gradient_of_a_silent_minibatch_is_that_of_zeros():
    mu = torch.full((2, 3), 0.5, dtype=torch.float64, requires_grad=True)
    theta = torch.full((3,), 2.0, dtype=torch.float64)
    negative_binomial_loss(mu, theta, torch.zeros(2, 3).double()).sum().backward()
    torch.testing.assert_close(mu.grad, torch.full((2, 3), 2 / 2.5, dtype=torch.float64))


@pytest.mark.parametrize("likelihood", CLASSES)
@pytest.mark.parametrize("gap", [80.0, 95.0, 120.0])
def test_a_count_where_the_decoder_shows_none_has_a_finite_gradient(likelihood, gap):
    """As scvi-tools' dense form has; the softmax of these outputs is 0, or all but 0."""
    output = torch.tensor([[0.0, -gap, 0.0]], requires_grad=True)
    px = expression_distribution(
        likelihood, output, torch.tensor([[1000.0]]).log(), torch.zeros(3), torch.zeros(1, 3)
    )
    reconstruction_loss(likelihood, px, torch.tensor([[1.0, 5.0, 2.0]])).sum().backward()
    assert output.grad.isfinite().all()
    assert output.grad[0, 1] <= 0  # its mean is not to fall


@pytest.mark.parametrize("likelihood", CLASSES)
def test_a_gpu_which_would_wait_to_find_counts_above_zero_takes_the_dense_form(likelihood):
    values = torch.empty(5, 4, device="meta")
    parameters = {"rate": values} if likelihood == "poisson" else {"mu": values}
    px = SimpleNamespace(**parameters)
    assert not _likelihoods._takes_sparse_form(likelihood, px, values)
    assert _likelihoods._takes_sparse_form(likelihood, px, torch.empty(5, 4))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 3e-9)])
def test_digamma_is_that_of_scipy(dtype, tolerance):
    x = torch.logspace(-6, 7, 2001, dtype=dtype)
    expected = digamma_of_scipy(x.double().numpy())
    np.testing.assert_allclose(digamma(x).double().numpy(), expected, tolerance, tolerance)
