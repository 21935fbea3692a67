from __future__ import annotations

import warnings
from collections.abc import Sequence

import anndata as ad
import numpy as np
import scanpy as sc

from scdisentangle._errors import InputError

from ._checks import check_obsm


def umap_coordinates(code: np.ndarray, *, n_neighbors: int = 15, seed: int = 0) -> np.ndarray:
    """UMAP of a code, shape `(n_cells, 2)`."""
    cells = ad.AnnData(np.asarray(code, dtype=np.float32))
    n_neighbors = min(n_neighbors, cells.n_obs - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on threads, which a seed rules out
        sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
        sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]


def umap(
    adata: ad.AnnData,
    use_rep: str | Sequence[str] = ("X_pca", "X_disentangle", "X_disentangle_batch"),
    *,
    seed: int = 0,
) -> None:
    """Two-dimensional UMAP of each code, in ``adata.obsm[f"{use_rep}_umap"]``.

    Parameters
    ----------
    adata
        With the codes in ``adata.obsm``. Neighbours and ``X_umap`` of the user are left alone.
    use_rep
        One or several keys of ``adata.obsm``.
    seed
        Seed of the layout.

    Raises
    ------
    InputError
        If a key is missing or the cells are fewer than four.
    """
    keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    check_obsm(adata, keys)
    if adata.n_obs < 4:
        raise InputError(f"UMAP needs at least four cells, got {adata.n_obs}.")
    for key in keys:
        adata.obsm[f"{key}_umap"] = umap_coordinates(adata.obsm[key], seed=seed)
