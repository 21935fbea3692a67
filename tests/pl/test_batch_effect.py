import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scdisentangle import InputError, pl


@pytest.fixture
def effect():
    values = [[3, -1, -2], [-4, 2, 2], [0.1, 1, -1.1], [0, -2, 2.5], [1, 1, -2], [2, -1, -1]]
    genes = [f"g{i}" for i in range(6)]
    return pd.DataFrame(values, index=genes, columns=["a", "b", "long name"], dtype=float)


def test_each_gene_stands_at_the_batch_that_moves_it_most(effect, tmp_path):
    ax = pl.batch_effect(effect, n_genes=2, show=False, save=tmp_path / "effect.png")
    genes = [t.get_text() for t in ax.get_yticklabels()]
    assert genes == ["g0", "g1", "g3", "g4"]
    np.testing.assert_array_equal(ax.images[0].get_array(), effect.loc[genes])
    assert ax.images[0].get_clim() == (-4, 4)
    assert plt.imread(tmp_path / "effect.png").std() > 0.05


def test_axes_and_errors(effect):
    _, given = plt.subplots()
    assert pl.batch_effect(effect, ax=given, show=False) is given
    with pytest.raises(InputError, match="n_genes=0 must be a number above zero"):
        pl.batch_effect(effect, n_genes=0, show=False)


def test_genes_of_one_name_are_genes_of_their_own(effect):
    effect.index = ["g", "g", "h", "h", "k", "k"]
    ax = pl.batch_effect(effect, n_genes=2, show=False)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["g", "g", "h", "k"]
    np.testing.assert_array_equal(ax.images[0].get_array(), effect.iloc[[0, 1, 3, 4]])


def test_of_two_batches_a_gene_stands_at_the_one_that_moves_it_up():
    """What one moves up the other moves down, by as much but for rounding."""
    up = np.array([3.0, -2.0, 1.0, -1.5, 0.5, 2.5])
    rounded = -up * (1 + 1e-15 * np.array([1, -1, 1, 1, -1, -1]))
    effect = pd.DataFrame({"a": up, "b": rounded}, index=[f"g{i}" for i in range(6)])
    ax = pl.batch_effect(effect, n_genes=2, show=False)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["g0", "g5", "g1", "g3"]
