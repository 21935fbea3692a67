from __future__ import annotations

import warnings
from collections.abc import Sequence

import anndata as ad
import numpy as np
import scanpy as sc

from scdisentangle._errors import InputError
from scdisentangle.pp._threads import threads_kept

from ._checks import check_obsm, finite_codes


@threads_kept()
def umap_coordinates(code: np.ndarray, *, n_neighbors: int = 15, seed: int = 0) -> np.ndarray:
    """UMAP of a code, shape `(n_cells, 2)`.

    A quantised code has fewer distinct values than a cell has neighbours, and so no neighbourhoods
    to lay out: each value is then a round cloud, and the clouds stand on a circle.
    """
    code = np.asarray(code, dtype=np.float32)
    n_neighbors = min(n_neighbors, len(code) - 1)
    if not has_neighbourhoods(code, n_neighbors):
        return _clouds(_values(code)[1], np.random.default_rng(seed))
    if len(code) < 4:
        raise InputError(f"UMAP needs at least four cells, got {len(code)}.")
    cells = ad.AnnData(code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on threads, which a seed rules out
        sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
        sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]


def has_neighbourhoods(code: np.ndarray, n_neighbors: int = 15) -> bool:
    """Whether the code has as many distinct values as a cell has neighbours."""
    return len(_values(code)[0]) >= min(n_neighbors, len(code) - 1)


def _values(code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, and which of them each cell has."""
    code = np.asarray(code, dtype=np.float32)
    scale = np.abs(code).max() or 1.0
    values, value_of_cell = np.unique((code / scale).round(4), axis=0, return_inverse=True)
    return values, value_of_cell.ravel()


def _clouds(value_of_cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A disc for each value, on a circle, with an area that goes with its number of cells."""
    counts = np.bincount(value_of_cell)
    angles = 2 * np.pi * np.arange(len(counts)) / len(counts)
    centres = 10 * np.column_stack([np.cos(angles), np.sin(angles)])
    largest = 0.8 * 10 * np.sin(np.pi / max(len(counts), 2))
    radius = (largest * np.sqrt(counts / counts.max()))[value_of_cell]
    radius = radius * np.sqrt(rng.uniform(size=len(value_of_cell)))
    angle = rng.uniform(0, 2 * np.pi, size=len(value_of_cell))
    offsets = radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return (centres[value_of_cell] + offsets).astype(np.float32)


def umap(
    adata: ad.AnnData,
    use_rep: str | Sequence[str] = ("X_pca", "X_disentangle", "X_disentangle_batch"),
    *,
    seed: int = 0,
) -> None:
    """Two-dimensional UMAP of each code, in ``adata.obsm[f"{use_rep}_umap"]``.

    :func:`scdisentangle.pl.latents` draws it. Call this again when a code was replaced.

    A code with fewer distinct values than a cell has neighbours, as z_nio has where it is
    quantised, has no neighbourhoods to lay out: each value is drawn as a round cloud, and where
    clouds and the cells in them lie means nothing.

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
        If a key is missing, codes are not finite, or the cells are fewer than four.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated_codes(200, n_types=3)
    >>> sd.tl.umap(adata, "X_disentangle")
    >>> adata.obsm["X_disentangle_umap"].shape
    (200, 2)
    """
    keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    check_obsm(adata, keys)
    for key in keys:
        adata.obsm[f"{key}_umap"] = umap_coordinates(finite_codes(adata, key), seed=seed)
