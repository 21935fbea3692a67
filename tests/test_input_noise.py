"""Noise and hidden genes have the distribution that is asked for."""

import pytest
import torch
from scipy import stats

from scdisentangle._input_noise import POOL, add_noise, hide_genes


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


@pytest.mark.parametrize("n_cells", [0, 1, 2 * POOL // 50])
def test_any_number_of_cells_has_noise(n_cells):
    x = torch.ones(n_cells, 25)
    noisy = hide_genes(add_noise(x, 0.1), 0.5)
    assert noisy.shape == x.shape
    assert (noisy != x).sum() >= 0.99 * x.numel()


def noise(n, level=1.0):
    torch.manual_seed(0)
    return add_noise(torch.zeros(n // 1000, 1000), level)


def test_the_noise_is_gaussian():
    drawn = noise(1_000_000, 0.2).flatten().double().numpy()
    assert stats.kstest(drawn, stats.norm(0, 0.2).cdf).pvalue > 1e-3
    for moment, expected in enumerate([0.0, 1.0, 0.0, 3.0, 0.0, 15.0], start=1):
        variance = stats.norm.moment(2 * moment) - expected**2
        error = ((drawn / 0.2) ** moment).mean() - expected
        assert abs(error) < 4 * (variance / len(drawn)) ** 0.5


def test_its_tails_are_right():
    drawn = noise(20_000_000)
    for threshold in (3.0, 3.5, 4.0):
        share = stats.norm.sf(threshold)
        error = 4 * (share / drawn.numel()) ** 0.5
        for beyond in (drawn > threshold, drawn < -threshold):
            assert beyond.double().mean().item() == pytest.approx(share, abs=error)
    assert drawn.abs().max() > 4.5


def test_neighbours_have_independent_noise():
    four = noise(1_000_000).view(-1, 4).double()
    for values in (four, four.square()):
        correlations = torch.corrcoef(values.T) - torch.eye(4)
        assert correlations.abs().max() < 4 / len(four) ** 0.5
    following = torch.corrcoef(torch.stack([four[:-1, 3], four[1:, 0]]))
    assert following[0, 1].abs() < 4 / len(four) ** 0.5


@pytest.mark.parametrize("draw", [lambda x: add_noise(x, 1.0), lambda x: hide_genes(x + 1, 0.5)])
def test_cells_and_steps_are_independent(draw):
    torch.manual_seed(0)
    drawn = torch.cat([draw(torch.zeros(20, 10_000)) for _ in range(5)])
    correlations = torch.corrcoef(drawn) - torch.eye(100)
    assert correlations.abs().max() < 5 / 10_000**0.5


def test_there_may_be_more_genes_than_drawn_numbers():
    torch.manual_seed(0)
    drawn = add_noise(torch.full((1, POOL), 9.0), 0.2, hidden=0.3)
    shown = drawn[drawn != 0]
    assert stats.binomtest(len(shown), POOL, 0.7).pvalue > 1e-3
    assert stats.kstest(shown.numpy(), stats.norm(9, 0.2).cdf).pvalue > 1e-3


def test_the_same_seed_gives_the_same_noise_and_another_does_not():
    first, second = noise(4000), noise(4000)
    assert torch.equal(first, second)
    assert not torch.equal(first, add_noise(torch.zeros(4, 1000), 1.0))


def test_values_that_are_not_hidden_have_the_noise():
    torch.manual_seed(0)
    x = torch.full((1000, 1000), 5.0)
    drawn = add_noise(x, 0.2, hidden=0.3)
    shown = drawn != 0
    assert stats.binomtest(int(shown.sum()), x.numel(), 0.7).pvalue > 1e-3
    noise_of_shown = (drawn[shown].double() - 5).numpy()
    assert stats.kstest(noise_of_shown, stats.norm(0, 0.2).cdf).pvalue > 1e-3
    before = shown.roll(1, dims=1)  # that a neighbour is shown tells nothing of a value's noise
    assert stats.ttest_ind((drawn - 5)[shown & before], (drawn - 5)[shown & ~before]).pvalue > 1e-3


def test_a_gradient_reaches_the_values_that_one_draw_left():
    x = torch.rand(10, 7, requires_grad=True)
    drawn = add_noise(x, 0.1, hidden=0.4)
    drawn.sum().backward()
    assert torch.equal(x.grad, (drawn != 0).float())


def test_genes_are_hidden_without_noise_too():
    drawn = add_noise(torch.full((40, 50), 2.0), 0.0, hidden=0.5)
    assert set(drawn.unique().tolist()) == {0.0, 2.0}
