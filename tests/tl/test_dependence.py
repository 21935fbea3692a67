import numpy as np
import pytest
from hyppo.independence import Hsic

from scdisentangle.tl._dependence import dependence, effective_dimension


def test_independent_codes_have_uniform_p_values():
    rng = np.random.default_rng(0)
    p_values = np.array(
        [
            dependence(*rng.normal(size=(2, 80, 3)), n_permutations=39, seed=i).p_value
            for i in range(100)
        ]
    )
    assert np.mean(p_values <= 0.1) == pytest.approx(0.1, abs=0.1)
    assert np.mean(p_values <= 0.5) == pytest.approx(0.5, abs=0.17)


def test_dependence_that_a_correlation_does_not_see():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 1))
    y = np.hstack([x**2 + 0.1 * rng.normal(size=(200, 1)), rng.normal(size=(200, 1))])
    found = dependence(x, y, n_permutations=99)
    assert found.p_value == 0.01
    assert Hsic().test(x, y, auto=True).pvalue < 0.01
    assert dependence(x, rng.permutation(y), n_permutations=99).cka < found.cka / 3


def test_a_code_depends_on_itself_entirely():
    x = np.random.default_rng(2).normal(size=(60, 2))
    found = dependence(x, 3 * x + 1, n_permutations=20)
    assert found.cka == pytest.approx(1.0, abs=1e-4)
    assert found.p_value == pytest.approx(1 / 21)


def test_what_strata_explain_is_not_counted():
    rng = np.random.default_rng(3)
    stratum = rng.integers(0, 3, 300)
    x, y = rng.normal(size=(2, 300, 2)) + 5 * stratum[:, None]
    assert dependence(x, y, n_permutations=99).p_value == 0.01
    assert dependence(x, y, stratum, n_permutations=99).p_value > 0.05
    y[:, 0] += x[:, 0]
    assert dependence(x, y, stratum, n_permutations=99).p_value == 0.01


def test_a_draw_of_many_cells():
    x = np.random.default_rng(4).normal(size=(500, 2))
    assert dependence(x, x, n_permutations=20, max_cells=50).n_cells == 50


def test_effective_dimension_of_known_variances():
    """Variances 4, 1, 1 on orthogonal axes: 36 / 18 = 2, whatever the rotation."""
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.normal(size=(50, 4)) - 0)[0]
    axes = np.linalg.qr(np.column_stack([np.ones(50), axes]))[0][:, 1:4]
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    code = axes * [2.0, 1.0, 1.0] @ rotation + 7
    assert effective_dimension(code) == pytest.approx(2.0)
    assert effective_dimension(np.ones((5, 3))) == 0.0
