"""Checks of the columns of ``.obs`` that a user names: every error has the way out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from ._errors import InputError, MissingKeyError, did_you_mean, name_some, warn_user

MISSING = ("nan", "NaN", "None", "<NA>", "NaT")
"""What a missing value is as text."""


def check_column(adata: AnnData, argument: str, key: str) -> None:
    """Raise :class:`InputError` unless an argument names one column, which ``.obs`` has."""
    if not isinstance(key, str):
        raise InputError(
            f"{argument}={key!r} must name one column of adata.obs. Of several make one first: "
            "adata.obs['both'] = adata.obs['a'].astype(str) + ' ' + adata.obs['b'].astype(str)"
        )
    if key not in adata.obs:
        of_the_user = [name for name in map(str, adata.obs) if not name.startswith("_scvi_")]
        raise MissingKeyError(
            f"{argument}='{key}' is not in adata.obs. {did_you_mean(key, of_the_user)}"
        )
    if (adata.obs.columns == key).sum() > 1:
        raise InputError(
            f"adata.obs has several columns named '{key}' ({argument}). To keep the first of each: "
            "adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]"
        )


def check_columns(adata: AnnData, obs_keys: dict[str, str | None]) -> None:
    """Check that columns exist, and that each has a value of one type for every cell.

    Parameters
    ----------
    adata
        The user's data.
    obs_keys
        Columns of ``.obs`` by the argument that named them.

    Raises
    ------
    InputError
        If a column is missing, or values are missing in it or of several types.
    """
    for argument, key in obs_keys.items():
        if key is None:
            continue
        check_column(adata, argument, key)
        column = adata.obs[key]
        missing = column.isna().to_numpy()
        if missing.any():
            unlabeled = " (unlabeled_category, for a label that is not known)"
            raise InputError(
                f"adata.obs['{key}'] ({argument}) has no value for {missing.sum()} cells: "
                f"{name_some(adata.obs_names[missing])}. Give them a value"
                f"{unlabeled if argument == 'labels_key' else ''} or leave them out: "
                f"adata = adata[adata.obs['{key}'].notna()].copy()"
            )
        named = not pd.api.types.is_numeric_dtype(column)
        kinds = {type(value).__name__ for value in column.unique()} if named else set()
        if len(kinds) > 1:
            raise InputError(
                f"adata.obs['{key}'] ({argument}) holds values of several types, "
                f"{' and '.join(sorted(kinds))}: "
                f"adata.obs['{key}'] = adata.obs['{key}'].astype(str)"
            )


def warn_of_missing(
    adata: AnnData, argument: str, key: str | None, unlabeled_category: object = None
) -> None:
    """Warn of categories that are named as text names a missing value."""
    values = [] if key is None else adata.obs[key].unique()
    for value in values:
        if value in MISSING and value != unlabeled_category:
            warn_user(
                f"adata.obs['{key}'] ({argument}) has the value '{value}', which astype(str) makes "
                "of a missing one, and which is taken for a category. If these cells have none, "
                f"leave them out: adata = adata[adata.obs['{key}'] != '{value}'].copy()"
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


def warn_of_batches(adata: AnnData, batch_key: str | None) -> None:
    """Warn where there is nothing to separate, or a batch is too small to learn from."""
    sizes = pd.Series([adata.n_obs]) if batch_key is None else adata.obs[batch_key].value_counts()
    if (sizes == 0).any():
        warn_user(
            f"Batches without a cell: {name_some(sizes.index[sizes == 0])}. Nothing is learnt of "
            "them, and an average over all batches would have them: "
            f"adata.obs['{batch_key}'] = adata.obs['{batch_key}'].cat.remove_unused_categories()"
        )
    sizes = sizes[sizes > 0]
    if len(sizes) == 1:
        warn_user(
            "There is one batch only, so there is nothing to separate: z_bio is the code of a "
            "plain autoencoder. Name a column with several batches in batch_key=."
        )
    elif len(sizes) > 10 and (sizes == 1).mean() > 0.5:
        warn_user(
            f"{(sizes == 1).sum()} of {len(sizes)} batches have a single cell: is "
            f"adata.obs['{batch_key}'] a measurement, and not a batch? A measurement is named in "
            "continuous_covariate_keys=."
        )
    elif (sizes == 1).any():
        warn_user(
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
            warn_user(
                f"adata.obs['{labels_key}'] has no {unlabeled_category!r} "
                f"(unlabeled_category), and {label!r} is taken for a cell type. If it means that "
                f"the label is not known, pass unlabeled_category={label!r}."
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
