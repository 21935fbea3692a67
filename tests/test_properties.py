"""Whatever a user feeds in: finite latents in the caller's order, or one of our errors first.

``HYPOTHESIS_PROFILE=nightly`` takes 2,000 examples in place of 100.
"""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import event, given, note
from hypothesis import strategies as st
from scipy import sparse

from scdisentangle import DisentangleModel, InputError, data

SMALL = {"n_hidden": 8, "n_latent_bio": 4, "n_latent_nio": 4}

LAYOUTS = {  # COO is not among them: AnnData itself refuses it
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}
DTYPES = ["int8", "uint16", "int32", "int64", "float16", "float32", "float64", "bool"]


def as_strings(codes):
    return [f"b{code}" for code in codes]


CATEGORIES = {
    "strings": as_strings,
    "unicode": lambda codes: [f"Spender µ-{chr(0x4E00 + code)} 🧬" for code in codes],
    "integers": lambda codes: [7 * code - 3 for code in codes],
    "floats": lambda codes: [code / 2 for code in codes],
    "booleans": lambda codes: [code % 2 == 0 for code in codes],
    "empty string": lambda codes: ["" if code == 0 else str(code) for code in codes],
    "categorical": lambda codes: pd.Categorical(as_strings(codes)),
    "unused categories": lambda codes: pd.Categorical(
        as_strings(codes), categories=[f"b{i}" for i in range(max(codes) + 4)][::-1]
    ),
    "with NaN": lambda codes: pd.Categorical(
        [None if i % 5 == 0 else f"b{code}" for i, code in enumerate(codes)]
    ),
}


@st.composite
def counts(draw, n_cells, n_genes):
    """Counts with a depth of 1 to 1e7 for each cell, with constant and silent genes and cells."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    depth = 10.0 ** draw(st.floats(0, 7))
    spread = draw(st.sampled_from([0.0, 1.0, 3.0]))
    rates = (
        depth
        * 10.0 ** (-spread * rng.random((n_cells, 1)))
        * rng.dirichlet(np.ones(n_genes), n_cells)
    )
    x = rng.poisson(rates).astype(np.float64)
    x[np.arange(n_cells), rates.argmax(axis=1)] += x.sum(axis=1) == 0
    if draw(st.booleans()):
        x[:, rng.integers(n_genes)] = draw(st.sampled_from([0.0, 3.0]))
    if draw(st.integers(0, 5)) == 5:
        x[rng.integers(n_cells)] = 0.0
    return x


@st.composite
def batches(draw, n_cells):
    """Codes of the batches: balanced, 100 to 1, with a single cell, or one for each cell."""
    n_batches = min(draw(st.sampled_from([1, 2, 3, 20, 200])), n_cells)
    kind = draw(st.sampled_from(["balanced", "imbalanced", "single cell"]))
    codes = np.arange(n_cells) % n_batches
    if kind != "balanced" and n_batches > 1:
        codes = np.where(codes == n_batches - 1, 0, codes)
        codes[: 1 if kind == "single cell" else max(n_cells // 100, 1)] = n_batches - 1
    return np.random.default_rng(n_cells).permutation(codes)


@st.composite
def data_sets(draw):
    n_cells = draw(st.sampled_from([1, 2, 3, 7, 33, 65, 120, 210]))
    n_genes = draw(st.sampled_from([1, 2, 5, 30]))
    x = draw(counts(n_cells, n_genes))
    dtype = draw(st.sampled_from(DTYPES))
    if dtype in ("int8", "uint16", "float16"):
        x = np.minimum(x, {"int8": 127, "uint16": 65535, "float16": 2048}[dtype])
    fault = draw(st.sampled_from([None] * 9 + ["NaN", "infinity", "negative"]))
    if fault and dtype.startswith("float"):
        x.flat[draw(st.integers(0, x.size - 1))] = {"NaN": np.nan, "infinity": np.inf}.get(
            fault, -1
        )
    layout = draw(st.sampled_from(list(LAYOUTS)))
    if dtype == "float16" and layout not in ("C", "Fortran", "strided"):
        dtype = "float32"  # scipy has no sparse matrices of half precision
    place = draw(st.sampled_from(["X", "layer beside X", "layer without X"]))
    x = LAYOUTS[layout](x.astype(dtype))
    kind = draw(st.sampled_from(list(CATEGORIES)))
    duplicated = draw(st.booleans())
    names = [f"cell{i // 2 if duplicated else i}" for i in range(n_cells)]
    genes = [f"gène {i // 2 if duplicated else i}" for i in range(n_genes)]
    obs = pd.DataFrame({"batch": CATEGORIES[kind](draw(batches(n_cells)))}, index=names)
    options = {"obs": obs, "var": pd.DataFrame(index=genes)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if place == "X":
            adata = ad.AnnData(x, **options)
        elif place == "layer beside X":
            adata = ad.AnnData(np.zeros(x.shape), layers={"values": x}, **options)
        else:
            adata = ad.AnnData(None, layers={"values": x}, shape=x.shape, **options)
        view = draw(st.sampled_from([None, None, None, "copied", "view"]))
        if view is not None:
            adata = adata[::-1] if view == "view" else adata[::-1].copy()
    note(f"{adata.shape}, {layout} of {dtype}, batches: {kind}, {place}, {view}, fault: {fault}")
    return adata, None if place == "X" else "values"


@given(
    cells=data_sets(),
    likelihood=st.sampled_from([None, None, "nb", "zinb", "poisson", "mse", "normal"]),
    objective=st.sampled_from(
        ["contrastive", "contrastive", None, "mmd", "local_batch_mmd", "hsic", "batch_hsic"]
        + ["cka", "local_batch_hsic", "mutual_information", "gradient_penalty", "adversary"]
    ),
    batch_size=st.sampled_from([2, 32, 128]),
    train_size=st.sampled_from([None, 1.0, 0.5]),
)
@pytest.mark.filterwarnings("ignore")
def test_finite_latents_in_the_callers_order_or_an_error_before_training(
    cells, likelihood, objective, batch_size, train_size
):
    adata, layer = cells
    training = False
    try:
        DisentangleModel.setup_anndata(adata, batch_key="batch", layer=layer)
        model = DisentangleModel(adata, gene_likelihood=likelihood, objective=objective, **SMALL)
        training = True
        model.train(
            1,
            batch_size=max(batch_size, adata.n_obs // 6),
            train_size=train_size,
            enable_progress_bar=False,
        )
    except InputError as error:
        assert not training, error
        assert any(word in str(error) for word in ("adata", "gene_likelihood", "cells")), error
        event(f"refused: {str(error)[:40]}")
        return
    event("trained")
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    codes = model.get_latent_representation()
    assert codes.shape == (adata.n_obs, 4)
    assert np.isfinite(codes).all()
    some = np.arange(adata.n_obs)[::-2]
    np.testing.assert_allclose(
        model.get_latent_representation(indices=some), codes[some], rtol=1e-4, atol=1e-4
    )
    assert np.isfinite(model.get_latent_representation(representation="batch")).all()
    assert len(model.predict_batch()) == adata.n_obs


@pytest.mark.parametrize("layout", ["C", "csr", "csc"])
def test_backed_data_train_and_give_the_codes_of_the_same_data_in_memory(tmp_path, layout):
    adata = data.simulated(n_cells=120, n_genes=40)
    adata.layers.clear()
    adata.X = LAYOUTS[layout](adata.X.toarray())
    adata.write_h5ad(tmp_path / "data.h5ad")
    backed = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    DisentangleModel.setup_anndata(backed, batch_key="batch")
    model = DisentangleModel(backed, **SMALL)
    model.train(1, enable_progress_bar=False)
    codes = model.get_latent_representation(adata)
    assert np.isfinite(codes).all()
    np.testing.assert_allclose(model.get_latent_representation(), codes, atol=1e-5)
