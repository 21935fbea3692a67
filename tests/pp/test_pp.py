import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from mudata import MuData

from scdisentangle import InputError, pp
from scdisentangle.data import simulated


@pytest.fixture
def adata():
    return simulated(n_cells=300, n_genes=200, seed=1)


def log_normalised(adata):
    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


@pytest.mark.parametrize("batch_key", ["batch", None])
def test_genes_are_those_of_scanpy_and_values_stay(adata, batch_key):
    before = adata.X.copy()
    pp.select_genes(adata, 60, batch_key=batch_key)
    reference = log_normalised(adata)
    del reference.var["highly_variable"]
    sc.pp.highly_variable_genes(reference, n_top_genes=60, flavor="seurat", batch_key=batch_key)
    assert adata.var["highly_variable"].sum() == 60
    assert adata.var["highly_variable"].equals(reference.var["highly_variable"])
    assert (adata.X != before).nnz == 0
    assert "log1p" not in adata.uns


@pytest.mark.parametrize("convert", [sp.csc_matrix, lambda x: x.toarray(), lambda x: x.astype(int)])
def test_genes_do_not_depend_on_the_storage(adata, convert):
    pp.select_genes(adata, 60, batch_key="batch")
    chosen = adata.var.pop("highly_variable")
    adata.layers["other"] = convert(adata.X)
    adata.X = None
    pp.select_genes(adata, 60, batch_key="batch", layer="other")
    assert adata.var["highly_variable"].equals(chosen)


def test_normalised_values_are_taken_as_they_are(adata):
    pp.select_genes(adata, 60, batch_key="batch")
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    for values in (normalised, log_normalised(adata)):
        pp.select_genes(values, 60, batch_key="batch")
        assert values.var["highly_variable"].equals(adata.var["highly_variable"])


def test_values_below_zero_are_ranked_by_variance_within_batches(adata):
    rng = np.random.default_rng(0)
    scale = np.linspace(0.5, 3, adata.n_vars)
    shift = np.where(adata.obs["batch"] == "batch_1", 5.0, 0.0)[:, None] * scale[::-1]
    adata.X = rng.normal(size=adata.shape) * scale + shift
    pp.select_genes(adata, 50, batch_key="batch")
    assert adata.var["highly_variable"].to_numpy()[-40:].all()
    assert not adata.var["highly_variable"].to_numpy()[:100].any()


def test_all_genes_where_there_are_no_more(adata):
    pp.select_genes(adata, 2000, batch_key="batch")
    assert adata.var["highly_variable"].all()


def test_odd_batches_and_names(adata):
    """Numbers for batches, a batch of one cell, a gene that is nowhere, names that repeat."""
    adata.obs["number"] = adata.obs["batch"].cat.codes.to_numpy(copy=True)
    adata.obs.iloc[0, adata.obs.columns.get_loc("number")] = 7
    counts = adata.X.toarray()
    counts[:, :5] = 0
    adata.X = sp.csr_matrix(counts)
    adata.var_names = ["same"] * adata.n_vars
    pp.select_genes(adata, 50, batch_key="number")
    chosen = adata.var["highly_variable"].to_numpy()
    assert chosen.sum() == 50
    assert not chosen[:5].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_key": "bach"}, "'bach'.*Did you mean 'batch'"),
        ({"layer": "raw"}, "'raw'.*counts"),
        ({"n_top_genes": 0}, "n_top_genes=0 must be a number above zero"),
        ({"n_top_genes": 2.5}, "n_top_genes=2.5 must be a whole number"),
    ],
)
def test_bad_arguments(adata, arguments, message):
    with pytest.raises(InputError, match=message):
        pp.select_genes(adata, **arguments)


def test_values_that_are_not_finite(adata):
    adata.X.data[0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        pp.select_genes(adata)


def test_pca_is_scanpys_of_the_selected_genes(adata):
    pp.select_genes(adata, 60, batch_key="batch")
    pp.pca(adata, n_comps=10, key_added="X_before")
    reference = log_normalised(adata)
    sc.pp.pca(reference, n_comps=10, mask_var="highly_variable")
    np.testing.assert_allclose(
        np.abs(adata.obsm["X_before"]), np.abs(reference.obsm["X_pca"]), atol=1e-3
    )
    assert "X_pca" not in adata.obsm


def test_pca_of_values_in_a_layer_is_their_singular_value_decomposition(adata):
    values = np.random.default_rng(0).normal(size=adata.shape) * np.linspace(1, 4, adata.n_vars)
    adata.layers["scaled"] = values
    before = values.copy()
    pp.pca(adata, n_comps=5, layer="scaled")
    u, s, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    expected = u[:, :5] * s[:5]
    found = adata.obsm["X_pca"]
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=0.02)
    np.testing.assert_array_equal(adata.layers["scaled"], before)
    with pytest.raises(InputError, match="'scale' is not in adata.layers. Did you mean 'scaled'"):
        pp.pca(adata, layer="scale")


def test_pca_of_few_cells(adata):
    few = adata[:8].copy()
    pp.pca(few, n_comps=30)
    assert few.obsm["X_pca"].shape == (8, 7)


def test_threads_of_pytorch_are_kept(adata):
    torch.set_num_threads(1)
    pp.select_genes(adata, 60, batch_key="batch")
    pp.pca(adata)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("n_comps", [0, -1, 2.5])
def test_a_number_of_components_that_is_none(adata, n_comps):
    with pytest.raises(InputError, match=f"n_comps={n_comps} must be"):
        pp.pca(adata, n_comps)


def test_nothing_to_select_or_to_turn(adata):
    with pytest.raises(InputError, match="two cells and two genes"):
        pp.pca(adata[:1].copy())
    with pytest.raises(InputError, match="two cells and two genes"):
        pp.pca(adata[:, :1].copy())
    adata.obs["own"] = adata.obs_names
    with pytest.raises(InputError, match=f"{adata.n_obs} batches of {adata.n_obs} cells"):
        pp.select_genes(adata, 5, batch_key="own")
    adata.X = np.ones(adata.shape, np.float32)
    with pytest.raises(InputError, match="No gene varies"):
        pp.pca(adata)
    first = (adata.obs["batch"] == "batch_0").to_numpy(np.float32)
    adata.X = np.tile(1 + first[:, None], adata.n_vars)
    with pytest.raises(InputError, match="No gene varies within any of 3 batches"):
        pp.select_genes(adata, 5, batch_key="batch")


@pytest.mark.parametrize("convert", [sp.csr_matrix, lambda x: x.toarray()])
def test_backed_values_give_what_those_in_memory_give(adata, tmp_path, convert):
    adata.X = convert(sp.csr_matrix(adata.X))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    for cells in (adata, backed):
        pp.select_genes(cells, 20, batch_key="batch")
        pp.pca(cells, 5)
    np.testing.assert_array_equal(backed.var["highly_variable"], adata.var["highly_variable"])
    np.testing.assert_allclose(backed.obsm["X_pca"], adata.obsm["X_pca"], atol=1e-5)


@pytest.mark.parametrize("of", [int, float, "boolean"])
def test_genes_that_other_tools_mark_by_numbers(adata, of):
    pp.select_genes(adata, 60, batch_key="batch")
    pp.pca(adata, 5)
    numbered = adata.copy()
    numbered.var["highly_variable"] = adata.var["highly_variable"].astype(of)
    pp.pca(numbered, 5)
    np.testing.assert_array_equal(numbered.obsm["X_pca"], adata.obsm["X_pca"])


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (["yes", "no"] * 100, "True or False for each gene, and is 'yes', 'no'"),
        ([None, True] * 100, "is 'None' for some. Select genes anew"),
        ([True] + [False] * 199, "True for 1 genes, and components need two"),
    ],
)
def test_marks_of_genes_that_are_none(adata, marks, message):
    adata.var["highly_variable"] = np.array(marks)
    with pytest.raises(InputError, match=message):
        pp.pca(adata)


def test_entries_that_are_stored_in_parts(adata):
    """Counts of 2 and more as one less and one."""
    whole = adata.X.tocoo()
    more = whole.data > 1
    parts = np.r_[whole.data - more, np.ones(more.sum())].astype(np.float32)
    rows, columns = np.r_[whole.row, whole.row[more]], np.r_[whole.col, whole.col[more]]
    order = np.argsort(rows, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(rows, minlength=adata.n_obs))]
    split = adata.copy()
    split.X = sp.csr_matrix((parts[order], columns[order], starts), shape=adata.shape)
    assert split.X.nnz > adata.X.nnz
    for values in (adata, split):
        pp.select_genes(values, 60, batch_key="batch")
        pp.pca(values, 5)
    assert split.var["highly_variable"].equals(adata.var["highly_variable"])
    np.testing.assert_allclose(split.obsm["X_pca"], adata.obsm["X_pca"], atol=1e-4)
    assert split.X.nnz > adata.X.nnz


@pytest.mark.parametrize("what", [None, {"X": 1}])
def test_what_is_no_anndata(what):
    with pytest.raises(InputError, match="must be an AnnData"):
        pp.select_genes(what, 10)


@pytest.mark.parametrize("step", [pp.select_genes, pp.pca])
def test_a_modality_is_asked_for(adata, step):
    with pytest.raises(InputError, match=r"pass it, mdata.mod\['rna'\]"):
        step(MuData({"rna": adata}))
