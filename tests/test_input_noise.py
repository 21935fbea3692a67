"""Noise and hidden genes have the distribution that is asked for."""

import pytest
import torch
from scipy import stats

from scdisentangle._input_noise import add_noise, hide_genes


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.5, 0.97])
def test_each_gene_is_hidden_with_the_probability(rate):
    torch.manual_seed(0)
    x = torch.full((401, 503), 2.0)
    hidden = hide_genes(x, rate)
    assert set(hidden.unique().tolist()) == {0.0, 2.0}
    dropped = hidden == 0
    assert stats.binomtest(int(dropped.sum()), x.numel(), rate).pvalue > 1e-3
    for column in range(4):  # four values share a random number
        of_one = dropped.flatten()[column::4]
        assert stats.binomtest(int(of_one.sum()), len(of_one), rate).pvalue > 1e-3


def test_neighbours_are_hidden_independently():
    torch.manual_seed(0)
    dropped = (hide_genes(torch.ones(400, 500), 0.3) == 0).view(-1, 4).double()
    correlations = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlations.abs().max() < 4 / len(dropped) ** 0.5


def test_nothing_is_hidden_at_rate_zero_and_the_input_is_left_alone():
    x = torch.rand(3, 5)
    before = x.clone()
    assert hide_genes(x, 0.0) is x
    assert add_noise(x, 0.0) is x
    hide_genes(x, 0.5)
    add_noise(x, 0.5)
    assert torch.equal(x, before)


def test_a_gradient_reaches_the_genes_that_are_not_hidden():
    x = torch.rand(10, 7, requires_grad=True)
    hidden = hide_genes(add_noise(x, 0.1), 0.4)
    hidden.sum().backward()
    assert torch.equal(x.grad, (hidden != 0).float())


def test_the_noise_is_gaussian():
    torch.manual_seed(0)
    x = torch.rand(200, 300)
    noise = (add_noise(x, 0.2) - x).flatten()
    assert stats.kstest(noise.numpy(), stats.norm(0, 0.2).cdf).pvalue > 1e-3
