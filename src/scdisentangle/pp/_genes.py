from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

from scdisentangle._errors import InputError, check_count

from ._log_expression import log_expression, varies
from ._threads import threads_kept


@threads_kept()
def select_genes(
    adata: ad.AnnData,
    n_top_genes: int = 2000,
    batch_key: str | None = None,
    layer: str | None = None,
) -> None:
    """Mark the genes that vary most within batches, in ``adata.var["highly_variable"]``.

    Scanpy's ``seurat`` flavour (normalised dispersion, Satija et al. 2015) on a copy of the values,
    which are not changed themselves. Raw counts are normalised to 10,000 per cell and
    log1p-transformed on the way. Values with negative entries, for which a dispersion means
    nothing, are ranked by their variance within batches.

    Parameters
    ----------
    adata
        Cells by genes: counts, or normalised or continuous values.
    n_top_genes
        Number of genes to mark; where there are no more genes than that, all are marked.
    batch_key
        Column of ``adata.obs``. Genes are ranked in each batch by itself, and those that vary in
        many batches come first. Batches of a single cell have no say.
    layer
        Layer with the values; ``adata.X`` by default.

    Raises
    ------
    InputError
        If the key or the layer is missing, a cell has no batch, `n_top_genes` is no whole number
        above 0, values are not finite, or no gene varies.

    References
    ----------
    Satija et al., Spatial reconstruction of single-cell gene expression data, Nature Biotechnology
    33:495, 2015.

    Examples
    --------
    >>> import scdisentangle
    >>> adata = scdisentangle.data.simulated()
    >>> scdisentangle.pp.select_genes(adata, n_top_genes=500, batch_key="batch")
    >>> adata = adata[:, adata.var["highly_variable"]].copy()
    """
    check_count(n_top_genes=n_top_genes)
    values = log_expression(adata, layer, batch_key)
    if n_top_genes >= adata.n_vars:
        chosen = np.ones(adata.n_vars, dtype=bool)
    else:
        sizes = values.obs["batch"].value_counts()
        values = values[values.obs["batch"].isin(sizes.index[sizes > 1])].copy()
        if not any(varies(values[values.obs["batch"] == b]) for b in sizes.index[sizes > 1]):
            raise InputError(
                f"No gene varies within any of {len(sizes)} batches of {adata.n_obs} cells in "
                "all, so that there are none to select: look at the "
                "values, and at batch_key."
            )
        rank = _by_variance if values.X.min() < 0 else _by_dispersion
        chosen = rank(values, n_top_genes)
    adata.var["highly_variable"] = chosen


def _by_dispersion(values: ad.AnnData, n_top_genes: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes that one batch lacks have no dispersion there
        table = sc.pp.highly_variable_genes(
            values,
            n_top_genes=n_top_genes,
            flavor="seurat",
            batch_key="batch" if values.obs["batch"].nunique() > 1 else None,
            inplace=False,
        )
    return pd.DataFrame(table).loc[values.var_names, "highly_variable"].to_numpy(dtype=bool)


def _by_variance(values: ad.AnnData, n_top_genes: int) -> np.ndarray:
    table = values.to_df().groupby(values.obs["batch"].to_numpy()).var()
    chosen = np.zeros(values.n_vars, dtype=bool)
    chosen[np.argsort(-table.mean().to_numpy(), kind="stable")[:n_top_genes]] = True
    return chosen
