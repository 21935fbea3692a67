"""What registered values are: read part by part, since backed data never come whole to memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.experimental import AnnCollection
from scipy import sparse
from scvi.dataloaders import CollectionAdapter

ValueKind = Literal["whole counts", "counts", "others"]
ROWS_PER_BLOCK = 10_000
FIRST_ROWS = 1_000
VALUES_PER_LOOK = 2**20
"""Looked at together, so that what a look needs is small beside the data."""
NAMED_ENTRIES = 4
LARGEST_LOGARITHM = 30.0
"""More than this on a log scale would be a count above 1e9, to base 2, and 1e13, to base e."""


def are_counts(adata: AnnData, layer: str | None) -> bool:
    """Whether registered values are counts, whole or not."""
    return kind_of_values(adata, layer) != "others"


def kind_of_values(adata: AnnData, layer: str | None) -> ValueKind:
    """Counts, where no value is negative, and all are whole or some too large for a logarithm.

    Those that were estimated from reads, or corrected, need not be whole.
    """
    x = matrix(adata, layer)
    if first_entries(x, not_a_whole_count) is None:
        return "whole counts"
    beyond_logarithms = first_entries(x, lambda values: values > LARGEST_LOGARITHM) is not None
    if beyond_logarithms and first_entries(x, is_negative) is None:
        return "counts"
    return "others"


def begins_with_whole_counts(adata: AnnData, layer: str | None) -> bool:
    """Whether the values of the first cells are whole counts."""
    return first_entries(matrix(adata, layer)[:FIRST_ROWS], not_a_whole_count) is None


def median_sum(adata: AnnData, layer: str | None) -> float:
    """Median over cells of the sum over genes."""
    return float(np.median(sums_of_cells(matrix(adata, layer))))


class _Rows:
    """Values of an AnnCollection, which come in blocks of rows."""

    def __init__(self, collection: AnnCollection, layer: str | None):
        self.collection, self.layer = collection, layer
        self.shape = collection.shape

    def __getitem__(self, rows: slice):
        return matrix(self.collection[rows], self.layer)


def matrix(adata: AnnData, layer: str | None):
    """The values, cells by genes: an array, a sparse matrix, or what gives blocks of rows."""
    if type(adata) is CollectionAdapter:  # isinstance takes it for an AnnData
        return _Rows(adata.collection, layer)
    return adata.X if layer is None else adata.layers[layer]


def is_negative(values: np.ndarray) -> np.ndarray:
    """Mask of values below 0."""
    return values < 0


def not_a_whole_count(values: np.ndarray) -> np.ndarray:
    """Mask of values that are below 0 or not whole."""
    return is_negative(values) | (values % 1 != 0)


def _blocks(x) -> Iterator[tuple[int, np.ndarray | sparse.spmatrix]]:
    """Blocks of rows with the number of their first: backed data never comes whole to memory."""
    in_memory = isinstance(x, np.ndarray) or sparse.issparse(x)
    step = x.shape[0] if in_memory else ROWS_PER_BLOCK
    for start in range(0, x.shape[0], step):
        block = x if in_memory else x[start : start + step]
        yield start, (block.compute() if hasattr(block, "compute") else block)  # that of dask


def sums_of_cells(x) -> np.ndarray:
    """Sum over genes of each cell; of 64 bits, since that of counts of 16 is soon too large."""
    blocks = (block.sum(axis=1, dtype=np.float64) for _, block in _blocks(x))
    return np.concatenate([np.asarray(sums).ravel() for sums in blocks])


def first_entries(
    x, is_bad: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows and columns of the first bad entries, or ``None``. Zeros of sparse data are good."""
    for start, block in _blocks(x):
        if sparse.issparse(block):
            block = block.tocsr() if block.format != "csc" else block
            values, step = block.data, VALUES_PER_LOOK
        else:
            values = np.asarray(block)
            step = max(1, VALUES_PER_LOOK // values.shape[1])
        for first in range(0, len(values), step):
            bad = is_bad(values[first : first + step])
            if not bad.any():
                continue
            if sparse.issparse(block):
                rows, columns = _of_stored(block, first + np.flatnonzero(bad))
            else:
                rows, columns = np.nonzero(bad)
                rows += first
            return start + pd.unique(rows)[:NAMED_ENTRIES], pd.unique(columns)[:NAMED_ENTRIES]
    return None


def _of_stored(x: sparse.spmatrix, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of some of the stored values of a CSR or CSC matrix."""
    outer, inner = np.searchsorted(x.indptr, entries, side="right") - 1, x.indices[entries]
    return (inner, outer) if x.format == "csc" else (outer, inner)
