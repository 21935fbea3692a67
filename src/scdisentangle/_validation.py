"""Checks of what a user hands in: every error names the culprit and the way out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi import settings
from scvi.dataloaders import CollectionAdapter

from ._errors import InputError, MissingKeyError, did_you_mean, name_some
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


def check_column(adata: AnnData, argument: str, key: str) -> None:
    """Raise :class:`InputError` unless an argument names one column, which ``.obs`` has."""
    if not isinstance(key, str):
        raise InputError(
            f"{argument}={key!r} must name one column of adata.obs. Of several make one first: "
            "adata.obs['both'] = adata.obs['a'].astype(str) + ' ' + adata.obs['b'].astype(str)"
        )
    if key not in adata.obs:
        raise MissingKeyError(f"{argument}='{key}' is not in adata.obs. {_known(key, adata.obs)}")


def check_keys(adata: AnnData, layer: str | None, obs_keys: dict[str, str | None]) -> None:
    """Check that every key exists, and that the batch is known for every cell.

    Parameters
    ----------
    adata
        The user's data.
    layer
        Layer with the values, ``None`` for ``.X``.
    obs_keys
        Columns of ``.obs`` by the argument that named them.

    Raises
    ------
    InputError
        If a key is missing, or values are missing in a column or of several types.
    """
    if layer is not None and layer not in adata.layers.keys():
        raise MissingKeyError(
            f"layer='{layer}' is not in adata.layers. {_known(layer, adata.layers.keys())}"
        )
    for argument, key in obs_keys.items():
        if key is None:
            continue
        check_column(adata, argument, key)
        column = adata.obs[key]
        named = not pd.api.types.is_numeric_dtype(column)
        kinds = {type(value).__name__ for value in column.dropna().unique()} if named else set()
        if len(kinds) > 1:
            raise InputError(
                f"adata.obs['{key}'] ({argument}) holds values of several types, "
                f"{' and '.join(sorted(kinds))}: "
                f"adata.obs['{key}'] = adata.obs['{key}'].astype(str)"
            )
        missing = column.isna().to_numpy()
        if missing.any():
            unlabeled = " (unlabeled_category, for a label that is not known)"
            raise InputError(
                f"adata.obs['{key}'] ({argument}) has no value for {missing.sum()} cells: "
                f"{name_some(adata.obs_names[missing])}. Give them a value"
                f"{unlabeled if argument == 'labels_key' else ''} or leave them out: "
                f"adata = adata[adata.obs['{key}'].notna()].copy()"
            )


def check_is_anndata(adata: object) -> None:
    """Raise :class:`InputError` for anything but cells by genes with annotations."""
    if not isinstance(adata, AnnData | MuData):
        raise InputError(
            f"adata is of type {type(adata).__name__}, and must be an AnnData. One of a file is "
            "anndata.read_h5ad(path)."
        )


def check_numbers(adata: AnnData, key: str, above_zero: bool = False) -> None:
    """Check that a column of ``.obs`` holds finite numbers, and those above zero if so asked.

    Raises
    ------
    InputError
        If it does not.
    """
    column = adata.obs[key]
    if not pd.api.types.is_numeric_dtype(column):
        raise InputError(
            f"adata.obs['{key}'] is of type {column.dtype}, and must hold numbers: "
            f"adata.obs['{key}'] = adata.obs['{key}'].astype(float)"
        )
    values = column.to_numpy(dtype=float)
    bad = ~np.isfinite(values) | (above_zero & (values <= 0))
    if bad.any():
        raise InputError(
            f"adata.obs['{key}'] must be finite{' and above zero' if above_zero else ''}, and is "
            f"not for {bad.sum()} cells: {name_some(adata.obs_names[bad])}. Mend the values or "
            "leave these cells out."
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


def check_counts(
    adata: AnnData, layer: str | None, gene_likelihood: str, kind: ValueKind | None = None
) -> None:
    """Check that a count likelihood is given counts in each cell.

    Parameters
    ----------
    adata, layer
        The values.
    gene_likelihood
        The likelihood.
    kind
        What they are, as :func:`kind_of_values` has it, if that is known already.

    Raises
    ------
    InputError
        If values are negative, or may be logarithms, or if a cell has no counts.
    """
    if (kind or kind_of_values(adata, layer)) == "others":
        raise InputError(
            f"gene_likelihood='{gene_likelihood}' needs counts, but {_no_counts(adata, layer)}. "
            "Register the layer with raw counts (layer=), or pass gene_likelihood='mse' or "
            "'normal' for normalised values."
        )
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


def check_alone(dataloader: object, **others: object) -> None:
    """Raise :class:`InputError` for what would not be looked at beside a data loader."""
    for name, value in others.items():
        if dataloader is not None and value is not None:
            raise InputError(
                f"{name}= is not for cells of a dataloader, all of which are taken as they are. "
                "Put them into an AnnData, and pass that as adata=; a model of a data module is "
                "loaded with it: DisentangleModel.load(folder, adata)."
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


def warn_of_batches(adata: AnnData, batch_key: str | None) -> None:
    """Warn where there is nothing to separate, or a batch is too small to learn from."""
    sizes = pd.Series([adata.n_obs]) if batch_key is None else adata.obs[batch_key].value_counts()
    if (sizes == 0).any():
        _warn(
            f"Batches without a cell: {name_some(sizes.index[sizes == 0])}. Nothing is learnt of "
            "them, and an average over all batches would have them: "
            f"adata.obs['{batch_key}'] = adata.obs['{batch_key}'].cat.remove_unused_categories()"
        )
    sizes = sizes[sizes > 0]
    if len(sizes) == 1:
        _warn(
            "There is one batch only, so there is nothing to separate: z_bio is the code of a "
            "plain autoencoder. Name a column with several batches in batch_key=."
        )
    elif len(sizes) > 10 and (sizes == 1).mean() > 0.5:
        _warn(
            f"{(sizes == 1).sum()} of {len(sizes)} batches have a single cell: is "
            f"adata.obs['{batch_key}'] a measurement, and not a batch? A measurement is named in "
            "continuous_covariate_keys=."
        )
    elif (sizes == 1).any():
        _warn(
            f"Batches with a single cell: {name_some(sizes.index[sizes == 1])}. What is technical "
            "cannot be told from what is that cell's own; merge them or leave them out if you can."
        )


def warn_of_labels(adata: AnnData, labels_key: str | None, unlabeled_category: object) -> None:
    """Warn where no label is the one of unlabelled cells, but one is nearly."""
    if labels_key is None:
        return
    labels = adata.obs[labels_key].unique().tolist()
    if unlabeled_category in labels:
        return
    for label in labels:
        if str(label).lower() == str(unlabeled_category).lower():
            _warn(
                f"adata.obs['{labels_key}'] has no {unlabeled_category!r} "
                f"(unlabeled_category), and {label!r} is taken for a cell type. If it means that "
                f"the label is not known, pass unlabeled_category={label!r}."
            )


def warn_of_counts_elsewhere(adata: AnnData, layer: str | None) -> None:
    """Warn where the registered values are no counts, but those of a layer, or of ``.X``, are."""
    if type(adata) is CollectionAdapter:  # whose layers are looked at part by part only
        return
    if adata.raw is not None and _may_be_counts(adata.raw.X):
        _warn(
            f"{_where(layer)} holds no counts, and is taken as already normalised, but adata.raw "
            "may. If it holds the cells' raw counts, register them: adata.layers['counts'] = "
            "adata.raw[:, adata.var_names].X, and layer='counts'."
        )
    found = []
    for other in dict.fromkeys((None, *adata.layers)):
        if other != layer and _may_be_counts(matrix(adata, other)):
            found.append(other)
    if found:
        _warn(
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


def check_categories(
    adata: AnnData, key: str, known: Iterable[object], may_be_new: bool = False
) -> None:
    """Check categories of a column of ``.obs`` against those of the model's own data.

    Parameters
    ----------
    adata, key
        The data, and the column's name.
    known
        Categories that the model was made with.
    may_be_new
        Whether there may be others.

    Raises
    ------
    InputError
        If they are of another type, or others that may not be.
    """
    known = list(known)
    unseen = [value for value in adata.obs[key].unique() if value not in known]
    if not unseen:
        return
    same_words = {str(value) for value in unseen} <= {str(value) for value in known}
    if known and (same_words or isinstance(unseen[0], str) != isinstance(known[0], str)):
        found, needed = type(unseen[0]).__name__, type(known[0]).__name__
        raise InputError(
            f"adata.obs['{key}'] holds values of type {found} ({name_some(unseen)}), and in the "
            f"model's data they were of type {needed} ({name_some(known)}). Make them of one type, "
            "text best before the model is made: "
            f"adata.obs['{key}'] = adata.obs['{key}'].astype(str)"
        )
    if not may_be_new:
        raise InputError(
            f"adata.obs['{key}'] has values that the model did not see in training: "
            f"{name_some(unseen)}. It knows {name_some(known, limit=10)}. Map these cells onto the "
            "model (load_query_data), leave them out, or train a model on all."
        )


def check_has_labels(adata: AnnData, key: str | None, unlabeled: object) -> None:
    """Raise :class:`MissingKeyError` where later data lack the column of the model's labels."""
    if key is not None and key not in adata.obs:
        raise MissingKeyError(
            f"labels_key='{key}' is not in adata.obs. Where labels are not known: "
            f"adata.obs['{key}'] = {unlabeled!r}"
        )


def check_learned(adata: AnnData, key: str, empty: Sequence[object]) -> None:
    """Raise :class:`InputError` for cells of batches that had none when the model was trained."""
    found = [name for name in empty if key in adata.obs and (adata.obs[key] == name).any()]
    if found:
        raise InputError(
            f"adata.obs['{key}'] has cells of {name_some(found)}, a category of which the model "
            "was shown no cell, so that it learnt nothing of it. Give these cells another name of "
            "their batch and map them onto the model (load_query_data), or train it on data "
            "without empty categories: "
            f"adata.obs['{key}'] = adata.obs['{key}'].cat.remove_unused_categories()"
        )


def _is_of_numbers(x, kinds: str = "biuf") -> bool:
    """Whether values have a type of real numbers; a collection, or a table, has no one type."""
    dtype = getattr(x, "dtype", None)
    return dtype is None or (isinstance(dtype, np.dtype) and dtype.kind in kinds)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=settings.warnings_stacklevel)


def _known(key: str, columns: Iterable[str]) -> str:
    named = (str(column) for column in columns if column is not None)  # None: anndata's name of X
    return did_you_mean(str(key), named)


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
