"""Checks of the values and genes that a user hands in: every error has the way out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi.dataloaders import CollectionAdapter

from ._errors import InputError, MissingKeyError, did_you_mean, name_some, warn_user
from ._values import (
    FIRST_ROWS,
    NAMED_ENTRIES,
    ValueKind,
    first_entries,
    is_negative,
    kind_of_values,
    matrix,
    not_a_whole_count,
    sums_of_cells,
)


def check_layer(adata: AnnData, layer: str | None) -> None:
    """Raise :class:`InputError` for a layer that is not there; ``None`` is ``.X``."""
    if layer is not None and layer not in adata.layers.keys():
        names = (str(name) for name in adata.layers.keys() if name is not None)  # anndata's of X
        raise MissingKeyError(
            f"layer='{layer}' is not in adata.layers. {did_you_mean(layer, names)}"
        )


def check_is_anndata(adata: object) -> None:
    """Raise :class:`InputError` for anything but cells by genes with annotations."""
    if not isinstance(adata, AnnData | MuData):
        raise InputError(
            f"adata is of type {type(adata).__name__}, and must be an AnnData. One of a file is "
            "anndata.read_h5ad(path)."
        )


def check_no_view(adata: AnnData) -> None:
    """Raise :class:`InputError` for a view: registration writes to ``.obs``."""
    if adata.is_view:
        raise InputError(
            "adata is a view of another AnnData, which registration must not write to. Take a copy "
            "first: adata = adata.copy()"
        )


def check_can_be_loaded(adata: AnnData, layer: str | None) -> None:
    """Raise :class:`InputError` for lazy sparse values, which scvi-tools' loader does not read."""
    if sparse.issparse(getattr(matrix(adata, layer), "_meta", None)):  # of dask, as its blocks
        where = _where(layer)
        raise InputError(
            f"{where} is a lazy array of sparse blocks, which cannot be cut in minibatches. Read "
            f"it first: {where} = {where}.compute()"
        )


def check_is_filled(adata: AnnData, layer: str | None) -> None:
    """Raise :class:`InputError` where there are no values."""
    if matrix(adata, layer) is None:
        raise InputError(f"{_where(layer)} is empty: register values with layer=, or set adata.X.")


def check_values(adata: AnnData, layer: str | None) -> None:
    """Check that there are cells and genes, and that all values are finite.

    Raises
    ------
    InputError
        If a dimension is zero, values are missing, or not finite.
    """
    for count, what in ((adata.n_obs, "cells"), (adata.n_vars, "genes")):
        if count == 0:
            raise InputError(f"adata has no {what} (shape {adata.shape}); nothing can be learnt.")
    check_is_filled(adata, layer)
    x = matrix(adata, layer)
    where = _where(layer)
    if not _is_of_numbers(x):
        raise InputError(f"{where} holds values of type {x.dtype}, and must hold numbers.")
    bad = first_entries(x, lambda block: ~np.isfinite(block))
    if bad is not None:
        cells, genes = bad
        raise InputError(
            f"{where} holds NaN or infinite values, in {_first(adata, cells, genes)}. "
            "Remove these cells or genes, or replace the values before setup_anndata."
        )


def check_counts(adata: AnnData, layer: str | None, gene_likelihood: str, kind: ValueKind) -> None:
    """Check that a count likelihood is given counts in each cell.

    Parameters
    ----------
    adata, layer
        The values.
    gene_likelihood
        The likelihood.
    kind
        What the values are, as :func:`kind_of_values` has it.

    Raises
    ------
    InputError
        If values are negative, or may be logarithms, or if a cell has no counts.
    """
    if kind == "others":
        raise InputError(
            f"gene_likelihood='{gene_likelihood}' needs counts, but {_no_counts(adata, layer)}. "
            "Register the layer with raw counts (layer=), or pass gene_likelihood='mse' or "
            "'normal' for normalised values."
        )
    check_no_cell_is_empty(adata, layer)


def check_no_cell_is_empty(adata: AnnData, layer: str | None) -> None:
    """Raise :class:`InputError` for cells without counts."""
    empty = sums_of_cells(matrix(adata, layer)) == 0
    if empty.any():
        raise InputError(
            f"{empty.sum()} cells have no counts in {_where(layer)}: "
            f"{name_some(adata.obs_names[empty])}. Leave them out: "
            "sc.pp.filter_cells(adata, min_counts=1), on the genes that are registered."
        )


def check_kind(adata: AnnData, layer: str | None, kind: ValueKind) -> None:
    """Check that values are counts if those of ``kind`` are, and none if they are not.

    Raises
    ------
    InputError
        If they are not.
    """
    found = kind_of_values(adata, layer)
    if (found == "others") == (kind == "others"):
        return
    if kind != "others":
        raise InputError(
            "The model was made for counts, which it normalises itself, and "
            f"{_no_counts(adata, layer)}. Give it counts as they were before they were normalised."
        )
    if first_entries(matrix(adata, layer), lambda values: values > 1) is not None:
        raise InputError(
            f"The model was made for values that are no counts, and {_where(layer)} holds counts. "
            "Prepare them as those that it was trained on: normalise them, take logarithms."
        )


def positions(indices: Sequence[int] | Sequence[bool] | None, n_obs: int) -> np.ndarray:
    """The cells that positions, also from the end, or a mask ask for; all if ``None``.

    Raises
    ------
    InputError
        If they are neither, or there are no such cells.
    """
    cells = np.arange(n_obs) if indices is None else np.asarray(indices)
    if cells.ndim == 1 and cells.dtype == bool and len(cells) == n_obs:
        cells = np.flatnonzero(cells)
    if cells.ndim != 1 or (len(cells) and not np.issubdtype(cells.dtype, np.integer)):
        raise InputError(
            f"indices must be positions of cells, or a mask of {n_obs} cells, and are of type "
            f"{cells.dtype} and shape {cells.shape}. Positions of names are "
            "adata.obs_names.get_indexer(names)."
        )
    if len(cells) == 0:
        raise InputError("indices name no cells.")
    if len(outside := cells[(cells < -n_obs) | (cells >= n_obs)]):
        raise InputError(f"indices name cells {name_some(outside)}, of {n_obs} cells.")
    return cells % n_obs


def warn_of_counts_elsewhere(adata: AnnData, layer: str | None) -> None:
    """Warn where the registered values are no counts, but those of a layer, or of ``.X``, are."""
    if type(adata) is CollectionAdapter:  # whose layers are looked at part by part only
        return
    if adata.raw is not None and _may_be_counts(adata.raw.X):
        warn_user(
            f"{_where(layer)} holds no counts, and is taken as already normalised, but adata.raw "
            "may. If it holds the cells' raw counts, register them: adata.layers['counts'] = "
            "adata.raw[:, adata.var_names].X, and layer='counts'."
        )
    found = []
    for other in dict.fromkeys((None, *adata.layers)):
        if other != layer and _may_be_counts(matrix(adata, other)):
            found.append(other)
    if found:
        warn_user(
            f"{_where(layer)} holds no counts, and is taken as already normalised, but "
            f"{' and '.join(map(_where, found))} may. If one holds the cells' raw counts, register "
            f"that: layer={found[0]!r}."
        )


def _may_be_counts(values) -> bool:
    """Whether some of the first values are above 0, and all of them are whole counts."""
    if values is None or not _is_of_numbers(values, kinds="iuf"):
        return False
    first = values[:FIRST_ROWS]
    some = first_entries(first, lambda x: x > 0) is not None
    return some and first_entries(first, not_a_whole_count) is None


def check_genes(adata: AnnData, var_names: Sequence[str]) -> None:
    """Check that ``adata`` has the model's genes, in its order.

    Raises
    ------
    InputError
        If genes are missing, unknown or in another order.
    """
    expected, found = pd.Index(np.asarray(var_names).astype(str)), adata.var_names.astype(str)
    if found.equals(expected):
        return
    missing, unknown = expected.difference(found), found.difference(expected)
    if len(missing):
        raise InputError(
            f"adata lacks {len(missing)} of the model's genes: {name_some(missing)}. "
            "DisentangleModel.prepare_query_anndata(adata, model) orders genes as in training, and "
            "fills missing ones with 0."
        )
    if len(unknown):
        problem = f"has {len(unknown)} genes that the model does not know: {name_some(unknown)}"
    else:
        problem = "has the model's genes in another order"
    raise InputError(
        f"adata {problem}. Select and order them as in training: "
        "adata = adata[:, model.get_var_names()].copy()"
    )


def _is_of_numbers(x, kinds: str = "biuf") -> bool:
    """Whether values have a type of real numbers; a collection, or a table, has no one type."""
    dtype = getattr(x, "dtype", None)
    return dtype is None or (isinstance(dtype, np.dtype) and dtype.kind in kinds)


def _where(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers['{layer}']"


def _no_counts(adata: AnnData, layer: str | None) -> str:
    """Where values are no counts, in words."""
    x = matrix(adata, layer)
    cells, genes = first_entries(x, is_negative) or first_entries(x, not_a_whole_count)
    return f"{_where(layer)} has negative or non-integer values, in {_first(adata, cells, genes)}"


def _first(adata: AnnData, cells: np.ndarray, genes: np.ndarray) -> str:
    """The first of the cells and genes whose values are bad, of which there may be more."""
    found = []
    for names in (adata.obs_names[cells], adata.var_names[genes]):
        more = " and more" if len(names) == NAMED_ENTRIES else ""
        found.append(name_some(names[: NAMED_ENTRIES - 1]) + more)
    return f"cells {found[0]} and genes {found[1]}"
