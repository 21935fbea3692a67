from __future__ import annotations

import warnings
from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd

from scdisentangle._errors import InputError

from ._checks import check_obs, check_obsm
from ._probes import N_FOLDS, large_enough, probe

_COLUMNS = [
    "code",
    "target",
    "within",
    "balanced_accuracy",
    "chance",
    "excess",
    "probe",
    "logistic",
    "neighbors",
    "n_cells",
    "n_classes",
]


def leakage(
    adata: ad.AnnData,
    batch_key: str,
    label_key: str | None = None,
    *,
    use_rep: str = "X_disentangle",
    use_rep_batch: str | None = "X_disentangle_batch",
    min_cells: int = 10,
    max_cells: int | None = 20_000,
    key_added: str = "leakage",
    seed: int = 0,
) -> pd.DataFrame:
    """Measure what each code predicts, and so what it gives away that it should not.

    A logistic regression and a 15-nearest-neighbour classifier read the batch from z_bio and from
    z_nio, and the label from both, in cells that they were not trained on (five stratified folds).
    z_bio should predict the label but not the batch within a label; z_nio the batch but not the
    label within a batch. Over all cells, z_bio predicts the batch as far as the composition of
    batches differs, and should: within labels is the fair question.

    Parameters
    ----------
    adata
        With the codes in ``adata.obsm``.
    batch_key
        Column of ``adata.obs`` with the batches.
    label_key
        Column of ``adata.obs`` with the labels (cell types). Without it, only the batch is read.
    use_rep
        Key of ``adata.obsm`` with z_bio, shape `(n_cells, n_latent_bio)`.
    use_rep_batch
        Key of ``adata.obsm`` with z_nio, shape `(n_cells, n_latent_nio)`; `None` if there is none.
    min_cells
        A class with fewer cells is not read. A group of cells with fewer than two such classes
        is left out, with a warning that names it.
    max_cells
        A probe reads a random draw of so many cells, as even over the classes as they allow, if
        there are more. `None` reads all.
    key_added
        Key of ``adata.uns`` for the table.
    seed
        Seed of the folds and the draws.

    Returns
    -------
    One row for each probe, also in ``adata.uns[key_added]``:

    - `code` (`z_bio` or `z_nio`), `target` (`batch` or `label`) and `within`: the group of cells,
      `all`, or `mean over labels` or `mean over batches` for the mean of the groups' rows
    - `balanced_accuracy` of the stronger probe, `chance` (one over the number of classes) and
      `excess`, their difference; being the better of two, it lies a little above 0 by luck alone
    - `probe`, the name of the stronger, or `stronger` for the mean of each group's own; `logistic`
      and `neighbors`, the balanced accuracy of each
    - `n_cells` and `n_classes` that were read

    Raises
    ------
    InputError
        If a key is missing, or `min_cells` is below the five that the folds need.
    """
    check_obs(adata, (batch_key, label_key))
    check_obsm(adata, (use_rep, use_rep_batch))
    if min_cells < N_FOLDS:
        raise InputError(f"min_cells={min_cells} is fewer than the {N_FOLDS} folds need.")

    batch = adata.obs[batch_key]
    label = None if label_key is None else adata.obs[label_key]
    questions = [("z_bio", "batch", None)]
    if label is not None:
        questions += [("z_bio", "batch", "labels"), ("z_bio", "label", None)]
    if use_rep_batch is not None:
        questions.append(("z_nio", "batch", None))
        if label is not None:
            questions += [("z_nio", "label", None), ("z_nio", "label", "batches")]

    rows, left_out = [], []
    for code_name, target_name, groups in questions:
        code = np.asarray(adata.obsm[use_rep if code_name == "z_bio" else use_rep_batch])
        target = batch if target_name == "batch" else label
        group_of = {None: None, "labels": label, "batches": batch}[groups]
        for within, cells in _groups(target, group_of):
            classes = target.to_numpy()[cells].astype(str)
            cells, classes = (a[large_enough(classes, min_cells)] for a in (cells, classes))
            if len(np.unique(classes)) < 2:
                left_out.append(f"{target_name} from {code_name} within {within}")
                continue
            found = probe(code[cells], classes, seed=seed, max_cells=max_cells)
            rows.append(
                {
                    **found._asdict(),
                    "code": code_name,
                    "target": target_name,
                    "within": within,
                    "balanced_accuracy": found.balanced_accuracy,
                    "chance": found.chance,
                    "excess": found.balanced_accuracy - found.chance,
                    "probe": found.stronger,
                    "groups": groups or "",
                }
            )
    if left_out:
        warnings.warn(
            f"Leakage left out where fewer than two classes have {min_cells} cells: "
            + "; ".join(left_out)
            + ".",
            stacklevel=2,
        )
    table = _with_means(pd.DataFrame(rows, columns=[*_COLUMNS, "groups"]))
    adata.uns[key_added] = table.copy()
    return table


def _groups(target: pd.Series, group_of: pd.Series | None) -> Iterator[tuple[str, np.ndarray]]:
    """Names of the groups and the positions of their cells; cells without a target are in none."""
    known = target.notna().to_numpy()
    if group_of is None:
        yield "all", np.flatnonzero(known)
        return
    names = group_of.astype(str).to_numpy()
    known = known & group_of.notna().to_numpy()
    for name in np.unique(names[known]):
        yield str(name), np.flatnonzero(known & (names == name))


def _with_means(table: pd.DataFrame) -> pd.DataFrame:
    """Put the mean over labels or batches before the rows that it is the mean of."""
    parts = []
    for (_, _, groups), part in table.groupby(["code", "target", "groups"], sort=False):
        if groups:
            mean = part[["balanced_accuracy", "chance", "excess", "logistic", "neighbors"]].mean()
            mean["n_cells"] = part["n_cells"].sum()
            mean["n_classes"] = part["n_classes"].max()
            row = {**part.iloc[0], **mean, "within": f"mean over {groups}", "probe": "stronger"}
            parts.append(pd.DataFrame([row], columns=table.columns))
        parts.append(part)
    whole = pd.concat(parts, ignore_index=True) if parts else table
    whole = whole.astype({"n_cells": int, "n_classes": int})
    whole.index = whole.index.astype(str)
    return whole[_COLUMNS]
