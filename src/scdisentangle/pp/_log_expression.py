"""The values of an AnnData on a log scale, on a copy."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from mudata import MuData

from scdisentangle import _columns, _validation
from scdisentangle._errors import InputError
from scdisentangle._values import are_counts


def log_expression(adata: ad.AnnData, layer: str | None, batch_key: str | None) -> ad.AnnData:
    """Copy of the values alone, with the batch as a category in ``obs["batch"]``.

    Counts, whole or too large for a logarithm, are normalised to 10,000 per cell and
    log1p-transformed. Other values are taken to be normalised and stay as they are.
    """
    _validation.check_is_anndata(adata)
    if isinstance(adata, MuData):
        raise InputError("Genes are of one modality: pass it, mdata.mod['rna'].")
    _validation.check_layer(adata, layer)
    _columns.check_columns(adata, {"batch_key": batch_key})
    _validation.check_values(adata, layer)
    values = adata.X if layer is None else adata.layers[layer]
    if hasattr(values, "to_memory"):  # backed
        values = values.to_memory()
    elif hasattr(values, "compute"):  # dask's
        values = values.compute()
    if sp.issparse(values):
        values = values.tocsr(copy=True)
        values.sum_duplicates()
    else:
        values = np.asarray(values)
    batch = ["all"] * adata.n_obs if batch_key is None else adata.obs[batch_key].astype(str).array
    copy = ad.AnnData(
        values.astype(np.float32),
        obs=pd.DataFrame({"batch": pd.Categorical(batch)}, index=_names(adata.n_obs)),
        var=pd.DataFrame(index=_names(adata.n_vars)),
    )
    if are_counts(adata, layer):
        sc.pp.normalize_total(copy, target_sum=1e4)
        sc.pp.log1p(copy)
    return copy


def varies(values: ad.AnnData) -> bool:
    """Whether any gene differs between cells."""
    return (values.X.max(axis=0) - values.X.min(axis=0)).sum() > 0


def _names(n: int) -> pd.Index:
    """Unique whatever the names of the user's cells and genes."""
    return pd.RangeIndex(n).astype(str)
