from __future__ import annotations

import warnings

import anndata as ad
import pandas as pd

from scdisentangle._errors import name_some

from ._checks import check_groups, check_min_cells, check_obs, check_obsm, finite_codes
from ._questions import Question, answers_table, ask

_QUESTIONS = [
    Question("z_bio", "batch"),
    Question("z_bio", "batch", "labels"),
    Question("z_bio", "label"),
    Question("z_nio", "batch"),
    Question("z_nio", "label"),
    Question("z_nio", "label", "batches"),
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
    progress_bar: bool = True,
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
    progress_bar
        Whether to show a progress bar over the probes.

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
        If a key is missing, a batch or label has the name of a row of the table, or `min_cells` is
        below the five that the folds need.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated_codes(400, n_types=3, leak=1.0)
    >>> table = sd.tl.leakage(adata, "batch", "celltype").set_index(["code", "target", "within"])
    >>> bool(table.loc[("z_bio", "batch", "mean over labels"), "balanced_accuracy"] > 0.9)
    True
    """
    check_obs(adata, (batch_key, label_key))
    check_groups(adata, batch_key, label_key)
    check_obsm(adata, (use_rep, use_rep_batch))
    check_min_cells(min_cells)

    codes = {"z_bio": finite_codes(adata, use_rep)}
    if use_rep_batch is not None:
        codes["z_nio"] = finite_codes(adata, use_rep_batch)
    columns = {"batch": adata.obs[batch_key], "batches": adata.obs[batch_key]}
    if label_key is not None:
        columns |= {"label": adata.obs[label_key], "labels": adata.obs[label_key]}
    answers, left_out = ask(
        [q for q in _QUESTIONS if q.code in codes and {q.target, q.groups} <= {*columns, ""}],
        codes,
        columns,
        min_cells=min_cells,
        max_cells=max_cells,
        seed=seed,
        progress_bar=progress_bar,
    )
    if left_out:
        warnings.warn(
            f"Leakage left out where fewer than two classes have {min_cells} cells: "
            + name_some(left_out)
            + ".",
            stacklevel=2,
        )
    table = answers_table(answers)
    adata.uns[key_added] = table.copy()
    return table
