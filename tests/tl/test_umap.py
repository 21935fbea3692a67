import warnings

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from scdisentangle import InputError, tl
from scdisentangle.data import simulated


@pytest.fixture(scope="module")
def adata():
    adata = simulated(n_cells=150, n_genes=30, n_types=2)
    rng = np.random.default_rng(0)
    code = rng.normal(size=(150, 6))
    code[:, 0] += 20 * (adata.obs["celltype"] == "type_1")
    adata.obsm["code"] = code
    tl.umap(adata, "code")
    return adata


def test_neighbourhoods_are_kept(adata):
    layout = adata.obsm["code_umap"]
    assert layout.shape == (150, 2)
    assert trustworthiness(adata.obsm["code"], layout, n_neighbors=10) > 0.8


def test_a_seed_gives_the_same_layout_and_the_rest_is_left_alone(adata):
    again = adata.copy()
    again.obsm["X_umap"] = np.zeros((150, 2))
    tl.umap(again, ["code"])
    np.testing.assert_array_equal(again.obsm["code_umap"], adata.obsm["code_umap"])
    tl.umap(again, ["code"], seed=1)
    assert not np.allclose(again.obsm["code_umap"], adata.obsm["code_umap"])
    assert not again.obsm["X_umap"].any()
    assert not again.obsp


def test_threads_stay_as_they_were(adata):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tl.umap(adata, "code")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_bad_input(adata):
    message = r"'X_pca' is not in adata.obsm. scdisentangle.pp.pca\(adata\) makes it"
    with pytest.raises(InputError, match=message):
        tl.umap(adata)
    with pytest.raises(InputError, match="at least four cells, got 3"):
        tl.umap(adata[:3].copy(), "code")


def test_a_quantised_code_is_drawn_as_one_cloud_for_each_value():
    adata = simulated(n_cells=150, n_genes=30, n_types=2)
    value = np.repeat([0, 1, 2], [10, 40, 100])
    adata.obsm["code"] = np.eye(3)[value]
    with warnings.catch_warnings(action="error"):
        tl.umap(adata, "code")
    layout = adata.obsm["code_umap"]
    assert np.isfinite(layout).all()
    assert len(np.unique(layout, axis=0)) == 150
    assert KNeighborsClassifier(3).fit(layout, value).score(layout, value) == 1
    spread = [np.ptp(layout[value == v], axis=0).max() for v in range(3)]
    assert spread[0] < spread[1] < spread[2]


def test_a_code_on_a_small_scale_is_not_taken_for_a_quantised_one(adata):
    small = adata.copy()
    small.obsm["code"] = 1e-6 * adata.obsm["code"]
    tl.umap(small, "code")
    layout = small.obsm["code_umap"]
    assert trustworthiness(adata.obsm["code"], layout, n_neighbors=10) > 0.8


def test_a_code_that_is_the_same_everywhere_is_one_cloud(adata):
    same = adata.copy()
    same.obsm["code"] = np.zeros((150, 6))
    tl.umap(same, "code")
    layout = same.obsm["code_umap"]
    assert np.isfinite(layout).all()
    assert len(np.unique(layout, axis=0)) == 150
