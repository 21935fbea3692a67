from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from mudata import MuData
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._utils import _get_adata_minify_type

from scdisentangle._errors import InputError
from scdisentangle._model import DisentangleModel
from scdisentangle._registration import measurements
from scdisentangle.pp._pca import components

from ._checks import (
    check_groups,
    check_is_model,
    check_min_cells,
    check_obs,
    check_obsm,
    finite_codes,
)
from ._clusters import clusters_by_batch, matched_clusters
from ._dependence import dependence, effective_dimension
from ._questions import Answer, Question, answers_table, ask
from ._reconstruction import reconstruction_shares
from ._report import CODES, DisentanglementReport
from ._verdict import Evidence, judge


def disentanglement_report(
    model_or_adata: DisentangleModel | ad.AnnData,
    batch_key: str,
    label_key: str | None = None,
    *,
    use_rep: str = "X_disentangle",
    use_rep_batch: str | None = "X_disentangle_batch",
    unintegrated: str = "X_pca",
    min_cells: int = 10,
    max_cells: int | None = 3000,
    n_permutations: int = 200,
    key_added: str = "disentanglement",
    seed: int = 0,
    progress_bar: bool = True,
) -> DisentanglementReport:
    """Did it work, and can z_bio be trusted? Measure both codes, and say it in words.

    Of z_bio, z_nio and the principal components before integration it measures

    - what two probes, a logistic regression and a 15-nearest-neighbour classifier, read of the
      batch and of the label in held-out cells, over all cells, of the batch within labels, and of
      the label within batches, with a permutation p-value of the better of the two;
    - how much z_bio and z_nio depend on each other: HSIC, with a p-value of permutations over all
      cells and of permutations within labels, and CKA;
    - the effective dimension: the participation ratio of the variances;
    - given a model, which share of the reconstruction each code explains: its Shapley value.

    Without labels, the principal components of each batch are clustered, and the clusters take the
    place of the label within that batch. The batch is then read within groups of clusters that are
    nearest to one another across batches in z_bio. This is a rough guide: a private type of one
    batch may be matched with the wrong one of another.

    The score is 1 minus the worst of three: the batch that z_bio gives away within labels, the
    biology that z_nio gives away within batches, and the biology that z_bio has lost since before
    integration, each from 0 (by luck) to 1. It is ``good`` from 0.85, ``fair`` from 0.5, else
    ``poor``. It is 0 and ``confounded`` where no label is shared between batches, and
    ``undecided`` where none has enough cells in two.

    Parameters
    ----------
    model_or_adata
        Trained model, whose codes are computed, or AnnData with codes in ``obsm``. Of minified data
        without counts, nothing is said of the reconstruction.
    batch_key
        Column of ``obs`` with the batches.
    label_key
        Column of ``obs`` with the labels (cell types).
    use_rep, use_rep_batch
        Keys of ``obsm`` with z_bio and z_nio, shapes `(n_cells, n_dims)`, where an AnnData is
        given. ``use_rep_batch=None`` if there is no z_nio.
    unintegrated
        Key of ``obsm`` with the components before integration. Where it is missing they are
        computed as by :func:`scdisentangle.pp.pca`, and not kept.
    min_cells
        Classes with fewer cells are not read, nor groups with fewer than two classes left.
    max_cells
        Cells that one probe reads at most; `None` for all.
    n_permutations
        Permutations of each p-value, at least 20.
    key_added
        Key of ``adata.uns`` for the report.
    seed
        Seed of folds, draws, clusters and permutations.
    progress_bar
        Whether to show progress bars, over the batches that are clustered and over the probes.

    Returns
    -------
    The report: prints as a table, shows as HTML in a notebook, and has ``table``, ``verdict``,
    ``advice``, ``status`` and ``score``. Its contents are in ``adata.uns[key_added]``.

    Raises
    ------
    InputError
        If a key is missing, there are fewer than two batches or labels, codes are not finite, or an
        argument is out of range.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated(n_cells=200, n_genes=100)
    >>> sd.DisentangleModel.setup_anndata(adata, batch_key="batch")
    >>> model = sd.DisentangleModel(adata)
    >>> model.train(max_epochs=2)
    >>> report = sd.tl.disentanglement_report(model, "batch", "celltype", progress_bar=False)
    >>> report.status in ("good", "fair", "poor")
    True
    """
    adata, codes = _codes(model_or_adata, use_rep, use_rep_batch)
    check_obs(adata, (batch_key, label_key))
    _check(adata, batch_key, label_key, min_cells, max_cells, n_permutations)
    codes["unintegrated"] = _unintegrated(model_or_adata, adata, unintegrated)

    labelled = label_key is not None
    batch = adata.obs[batch_key]
    columns = {"batch": batch, "batches": batch}
    if labelled:
        columns |= {"label": adata.obs[label_key], "labels": adata.obs[label_key]}
    else:
        columns["cluster"] = clusters_by_batch(
            codes["unintegrated"], batch, min_cells, seed, progress_bar=progress_bar
        )
        columns["clusters"] = matched_clusters(codes["z_bio"], columns["cluster"], batch)
    answers, left_out = ask(
        _questions(codes, labelled),
        codes,
        columns,
        min_cells=min_cells,
        max_cells=max_cells,
        seed=seed,
        progress_bar=progress_bar,
    )
    probes = answers_table(answers, n_permutations=n_permutations, seed=seed)
    groups = columns["labels" if labelled else "clusters"]
    known = (groups.notna() & batch.notna()).to_numpy()
    composition = pd.crosstab(*(values.astype(str).to_numpy()[known] for values in (batch, groups)))
    verdict = judge(
        Evidence(probes, _confusion(answers), composition, labelled, min_cells=min_cells)
    )
    rows = _other_measures(codes, batch, groups if labelled else None, n_permutations, seed)
    if isinstance(model_or_adata, DisentangleModel) and not _lacks_values(adata):
        shares = reconstruction_shares(model_or_adata, seed=seed)
        rows += [_row("reconstruction_share", code, value=share) for code, share in shares.items()]
    report = DisentanglementReport(
        table=_tidy(probes, rows),
        status=verdict.status,
        score=verdict.score,
        verdict=verdict.words,
        advice=verdict.advice,
        severities=verdict.severities,
        batch_key=batch_key,
        label_key=label_key,
        left_out=left_out,
    )
    adata.uns[key_added] = report.to_dict()
    return report


def _codes(
    model_or_adata: DisentangleModel | ad.AnnData, use_rep: str, use_rep_batch: str | None
) -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    if isinstance(model_or_adata, ad.AnnData | MuData):
        keys = {"z_bio": use_rep, "z_nio": use_rep_batch}
        check_obsm(model_or_adata, keys.values())
        return model_or_adata, {
            code: finite_codes(model_or_adata, key) for code, key in keys.items() if key is not None
        }
    check_is_model(model_or_adata, "a trained DisentangleModel, or an AnnData with codes in obsm")
    representations = {"z_bio": "bio", "z_nio": "batch"}
    return model_or_adata.adata, {
        code: model_or_adata.get_latent_representation(representation=name)
        for code, name in representations.items()
    }


def _unintegrated(
    model_or_adata: DisentangleModel | ad.AnnData, adata: ad.AnnData, key: str
) -> np.ndarray:
    if key in adata.obsm:
        return finite_codes(adata, key)
    measured, layer = adata, None
    if isinstance(model_or_adata, DisentangleModel):
        measured, layer = measurements(adata, model_or_adata.registry["setup_args"])
    # of a MuData without a model, it is not known which modality has the genes
    if isinstance(measured, MuData) or measured.n_vars == 0 or _lacks_values(adata):
        raise InputError(
            f"'{key}' is not in adata.obsm, and there are no values of genes to compute it from: "
            "add it, or name in unintegrated= the codes to compare with."
        )
    return components(measured, layer=layer)


def _lacks_values(adata: ad.AnnData) -> bool:
    return _get_adata_minify_type(adata) == ADATA_MINIFY_TYPE.LATENT_POSTERIOR


def _check(
    adata: ad.AnnData,
    batch_key: str,
    label_key: str | None,
    min_cells: int,
    max_cells: int | None,
    n_permutations: int,
) -> None:
    check_min_cells(min_cells)
    if max_cells is not None and max_cells < 2 * min_cells:
        raise InputError(f"max_cells={max_cells} is fewer than twice min_cells={min_cells}.")
    if n_permutations < 20:
        raise InputError(
            f"n_permutations={n_permutations} gives no p-value below 0.05; pass 20 or more."
        )
    check_groups(adata, batch_key, label_key)
    if label_key is not None:
        if adata.obs[label_key].nunique() < 2:
            raise InputError(
                f"adata.obs['{label_key}'] tells no two types apart, so that nothing can be said "
                "of the biology: name another label_key, or none, and clusters are looked at."
            )
        largest = adata.obs.groupby([batch_key, label_key], observed=True).size().max()
        if not largest >= min_cells:
            raise InputError(
                f"No value of adata.obs['{label_key}'] has {min_cells} cells in one batch: is it a "
                "column of cell types? Merge fine types, or pass a smaller min_cells."
            )
    needed = min_cells if label_key is not None else 2 * min_cells  # to find clusters in
    if (adata.obs[batch_key].value_counts() >= needed).sum() < 2:
        raise InputError(
            f"The report compares batches, but fewer than two values of "
            f"adata.obs['{batch_key}'] have {needed} cells; pass another batch_key."
        )


def _questions(codes: dict[str, np.ndarray], labelled: bool) -> list[Question]:
    groups, biology = ("labels", "label") if labelled else ("clusters", "cluster")
    kinds = [("batch", ""), ("batch", groups), (biology, "batches")]
    if labelled:
        kinds.append(("label", ""))
    return [
        Question(code, target, within)
        for target, within in kinds
        for code in CODES
        if code in codes and (code != "z_nio" or within != groups)
    ]


def _confusion(answers: list[Answer]) -> dict[str, pd.DataFrame]:
    """Confusion of labels within batches, summed over batches."""
    summed: dict[str, pd.DataFrame] = {}
    for answer in answers:
        if answer.question.target == "label" and answer.question.groups == "batches":
            code, confusion = answer.question.code, answer.held_out.confusion()
            before = summed.get(code)
            summed[code] = confusion if before is None else before.add(confusion, fill_value=0)
    return {code: confusion.fillna(0) for code, confusion in summed.items()}


def _other_measures(
    codes: dict[str, np.ndarray],
    batch: pd.Series,
    labels: pd.Series | None,
    n_permutations: int,
    seed: int,
) -> list[dict[str, object]]:
    rows = [_row("effective_dimension", c, value=effective_dimension(codes[c])) for c in codes]
    if "z_nio" not in codes:
        return rows
    for within, strata in {"all": None, "labels": labels}.items():
        if within == "labels" and labels is None:
            continue
        known = np.ones(len(batch), dtype=bool) if strata is None else strata.notna().to_numpy()
        found = dependence(
            codes["z_bio"][known],
            codes["z_nio"][known],
            None if strata is None else strata.astype(str).to_numpy()[known],
            n_permutations=n_permutations,
            seed=seed,
        )
        common = {"within": within, "n_cells": found.n_cells}
        both = "z_bio, z_nio"
        rows.append(_row("hsic", both, value=found.hsic, p_value=found.p_value, **common))
        if strata is None:
            rows.append(_row("cka", both, value=found.cka, **common))
    return rows


def _row(measure: str, code: str, *, within: str = "all", **values: float) -> dict[str, object]:
    return {"measure": measure, "code": code, "target": "", "within": within, **values}


def _tidy(probes: pd.DataFrame, rows: list[dict[str, object]]) -> pd.DataFrame:
    columns = ["measure", "code", "target", "within", "value", "chance", "luck", "upper"]
    columns += ["p_value", "probe", "logistic", "neighbors", "n_cells", "n_classes"]
    probes = probes.rename(columns={"balanced_accuracy": "value"})
    probes.insert(0, "measure", "balanced_accuracy")
    table = pd.DataFrame([*probes.to_dict("records"), *rows], columns=columns)
    table["probe"] = table["probe"].fillna("")
    for column in ("n_cells", "n_classes"):
        table[column] = table[column].fillna(0).astype(int)
    table.index = table.index.astype(str)
    return table
