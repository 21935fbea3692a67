import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from scdisentangle.tl._probes import large_enough, predict_held_out


def probe(*args, **kwargs):
    return predict_held_out(*args, **kwargs).score()


def gaussians(rng, sizes, distance):
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=(len(y), 2))
    x[:, 0] += distance * y
    return x, y


def test_bayes_accuracy_of_two_gaussians():
    """At distance d, the best balanced accuracy is the normal distribution at d / 2."""
    x, y = gaussians(np.random.default_rng(0), [4000, 4000], distance=2.0)
    found = probe(x, y)
    assert found.logistic == pytest.approx(0.8413, abs=0.012)
    assert found.logistic >= found.neighbors > 0.8
    assert (found.stronger, found.balanced_accuracy) == ("logistic", found.logistic)
    assert (found.n_cells, found.n_classes, found.chance) == (8000, 2, 0.5)


def test_unequal_classes_do_not_hide_leakage():
    x, y = gaussians(np.random.default_rng(1), [3800, 200], distance=2.0)
    reference = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(x, y).predict(x)
    bayes = np.mean([(reference[y == c] == c).mean() for c in (0, 1)])
    found = probe(x, y)
    assert found.logistic == pytest.approx(bayes, abs=0.02)
    assert found.neighbors == pytest.approx(bayes, abs=0.05)


def test_neighbors_see_what_is_not_linear():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 1000)
    angle = rng.uniform(0, 2 * np.pi, 1000)
    radius = np.where(y == 1, 3.0, 1.0) + rng.normal(scale=0.2, size=1000)
    found = probe(np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]), y)
    assert found.neighbors > 0.98
    assert found.logistic < 0.6
    assert found.stronger == "neighbors"


@pytest.mark.parametrize("n_classes", [2, 5])
def test_noise_is_at_chance(n_classes):
    rng = np.random.default_rng(3)
    found = probe(rng.normal(size=(4000, 6)), rng.integers(0, n_classes, 4000).astype(str))
    assert found.balanced_accuracy == pytest.approx(1 / n_classes, abs=0.03)


def test_a_code_that_remembers_cells_gains_nothing():
    """Held out: a code with more dimensions than cells separates only the cells it was fit on."""
    rng = np.random.default_rng(4)
    found = probe(rng.normal(size=(100, 300)), np.repeat([0, 1], 50))
    assert found.logistic == pytest.approx(0.5, abs=0.2)


def test_scale_of_a_dimension_does_not_matter():
    x, y = gaussians(np.random.default_rng(5), [300, 300], distance=3.0)
    found, scaled = probe(x, y), probe(x * [1e-4, 1e4] + 7, y)
    assert scaled == pytest.approx(found, abs=0.005)


def test_draw_is_even_over_the_classes():
    x, y = gaussians(np.random.default_rng(6), [2000, 40], distance=3.0)
    found = probe(x, y, max_cells=200, seed=1)
    assert found.n_cells == 140
    assert found.balanced_accuracy == pytest.approx(0.933, abs=0.05)
    assert probe(x, y, max_cells=200, seed=1) == found


def test_large_enough():
    mask = large_enough(np.array(["a"] * 3 + ["b"] * 2 + ["c"]), 2)
    assert mask.tolist() == [True] * 5 + [False]
