from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

from scdisentangle._errors import InputError, check_count, name_some

from ._log_expression import log_expression, varies
from ._threads import threads_kept


def pca(
    adata: ad.AnnData,
    n_comps: int = 30,
    layer: str | None = None,
    *,
    key_added: str = "X_pca",
    seed: int = 0,
) -> None:
    """Principal components of the unintegrated values, in ``adata.obsm[key_added]``.

    Counts are normalised to 10,000 per cell and log1p-transformed on a copy first, other values are
    taken as in :func:`scdisentangle.pp.select_genes`. Where ``adata.var["highly_variable"]``
    exists, only those genes are read.

    Parameters
    ----------
    adata
        Cells by genes.
    n_comps
        Number of components; fewer where the cells or genes do not allow as many.
    layer
        Layer with the values; ``adata.X`` by default.
    key_added
        Key of ``adata.obsm`` for the components, of shape `(n_cells, n_comps)`.
    seed
        Seed of the solver's start.

    Raises
    ------
    InputError
        If the layer is missing, values are not finite, `n_comps` is below 1, or there are fewer
        than two cells or genes.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated(n_cells=200, n_genes=100)
    >>> sd.pp.pca(adata, n_comps=10)
    >>> adata.obsm["X_pca"].shape
    (200, 10)
    """
    adata.obsm[key_added] = components(adata, n_comps, layer, seed=seed)


@threads_kept()
def components(
    adata: ad.AnnData, n_comps: int = 30, layer: str | None = None, *, seed: int = 0
) -> np.ndarray:
    """What :func:`pca` puts into ``obsm``, shape `(n_cells, n_comps)`."""
    check_count(n_comps=n_comps)
    values = log_expression(adata, layer, batch_key=None)
    if "highly_variable" in adata.var:
        values = values[:, _is_highly_variable(adata.var["highly_variable"])].copy()
    if min(values.shape) < 2:
        raise InputError(f"Components need two cells and two genes, and there are {values.shape}.")
    if not varies(values):
        raise InputError("No gene varies, so that there are no components: look at the values.")
    n_comps = min(n_comps, values.n_obs - 1, values.n_vars - 1)
    sc.pp.pca(values, n_comps=n_comps, random_state=seed, mask_var=None)
    return values.obsm["X_pca"]


def _is_highly_variable(column: pd.Series) -> np.ndarray:
    """The column as a mask; other tools write it as 0 and 1."""
    others = column[~column.isin([0, 1])].unique()
    if len(others):
        raise InputError(
            "adata.var['highly_variable'] must be True or False for each gene, and is "
            f"{name_some(others)} for some. Select genes anew, "
            "scdisentangle.pp.select_genes, or delete the column to use all."
        )
    mask = column.to_numpy(dtype=bool)
    if mask.sum() < 2:
        raise InputError(
            f"adata.var['highly_variable'] is True for {mask.sum()} genes, and components need "
            "two. Select genes anew, scdisentangle.pp.select_genes, or delete the column."
        )
    return mask
