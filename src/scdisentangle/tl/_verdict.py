"""From what the probes found to a verdict: how good, what is wrong, what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from scdisentangle._errors import name_some

from ._questions import ALL, MEAN_OVER, of_groups

GOOD, FAIR = 0.85, 0.5
"""Scores from which a disentanglement is called good, and fair."""
UNJUDGED = ("confounded", "undecided")
"""Problems that leave nothing else to be said, and so are the status."""
NOT_TOLD = "biology not told"
_NOTICED = 1.0 - GOOD
SIGNIFICANT = 0.05
"""P-value below which something is called more than luck."""
_STRUCTURE = 0.2
"""Below this, the cells before integration have too little structure for its loss to be judged."""
_APART = 0.9
_EITHER = (
    "Either the batch was not removed, or batch and biology are confounded, and then no method can "
    "tell them apart: pass label_key to know which of the two it is."
)


class Finding(NamedTuple):
    """One thing that is wrong, how badly on a scale from 0 to 1, and what to try."""

    problem: str
    severity: float
    words: str
    advice: str = ""


class Verdict(NamedTuple):
    """Status in one word, score from 0 (useless) to 1 (nothing found), words and advice."""

    status: str
    score: float
    words: str
    advice: list[str]
    severities: dict[str, float]


class Evidence(NamedTuple):
    """What :func:`judge` looks at.

    The table of the probes, the confusion of labels summed over batches by code, cells by batch and
    group, and whether the groups are the user's labels or matched clusters.
    """

    table: pd.DataFrame
    confusion: Mapping[str, pd.DataFrame]
    composition: pd.DataFrame
    labelled: bool
    min_cells: int


def judge(evidence: Evidence) -> Verdict:
    """Weigh the evidence. The score is 1 minus the severity of the worst finding."""
    findings = [
        finding
        for finding in (
            _separable(evidence),
            _batch_in_bio(evidence),
            _biology_in_nio(evidence),
            _biology_lost(evidence),
            _batch_not_in_nio(evidence),
        )
        if finding is not None
    ]
    findings.sort(key=lambda finding: -finding.severity)
    score = 1.0 - max((finding.severity for finding in findings), default=0.0)
    if findings and findings[0].problem in UNJUDGED:
        status = findings[0].problem
    else:
        status = "good" if score >= GOOD else "fair" if score >= FAIR else "poor"
    noticed = [finding for finding in findings if finding.words]
    words = [finding.words for finding in noticed]
    if status == "good":
        told = all(finding.problem != NOT_TOLD for finding in findings)
        words.insert(
            0, f"z_bio holds {'the biology and ' if told else ''}next to nothing of the batch."
        )
    return Verdict(
        status=status,
        score=score,
        words=" ".join(words),
        advice=list(dict.fromkeys(finding.advice for finding in noticed if finding.advice)),
        severities={finding.problem: finding.severity for finding in findings},
    )


def above(value: float, floor: float) -> float:
    """How far a value lies above a floor, as a share of the way from there to 1; 0 below it."""
    return float(np.clip((value - floor) / (1.0 - floor), 0.0, 1.0)) if floor < 1 else 0.0


def _rows(table: pd.DataFrame, code: str, target: str, groups: str) -> tuple[pd.Series, ...]:
    """Row of the mean over groups and rows of the groups."""
    found = table[(table["code"] == code) & (table["target"] == target)]
    mean = found[found["within"] == MEAN_OVER + groups]
    return (None if mean.empty else mean.iloc[0]), of_groups(found)


def _shared(evidence: Evidence) -> pd.Series:
    """Whether each group has two batches with enough cells."""
    return (evidence.composition >= evidence.min_cells).sum(axis=0) >= 2


def _separable(evidence: Evidence) -> Finding | None:
    """Whether batch and biology can be told apart at all."""
    shared = _shared(evidence)
    if shared.any():
        if shared.all() or not evidence.labelled:
            return None
        apart = shared.index[~shared]
        return Finding(
            "partly confounded",
            0.0,
            f"{len(apart)} of {len(shared)} types ({name_some(apart)}) "
            f"{'does' if len(apart) == 1 else 'do'} not have {evidence.min_cells} cells in two "
            "batches: whether z_bio holds their batch cannot be told.",
        )
    in_two = (evidence.composition > 0).sum(axis=0) >= 2
    if evidence.labelled and in_two.any():
        return Finding(
            "undecided",
            1.0,
            f"No type has {evidence.min_cells} cells in two batches, though {in_two.sum()} of "
            f"{len(in_two)} are in two or more: too few cells to tell the batch from the biology.",
            "Merge fine types into coarser ones, pass a smaller min_cells, or check that label_key "
            "is a column of types.",
        )
    if evidence.labelled:
        return Finding(
            "confounded",
            1.0,
            "Batch and biology are confounded: no type is in two batches. What "
            "differs between batches may be either, and no method can tell them apart.",
            "Add a batch that shares types with the others, or name as batch_key what is technical "
            "and not the condition.",
        )
    return Finding(
        "confounded",
        1.0,
        f"The batches lie apart in z_bio: no cluster of one has a match in another. {_EITHER}",
    )


def _batch_in_bio(evidence: Evidence) -> Finding | None:
    groups = "labels" if evidence.labelled else "clusters"
    mean, rest = _rows(evidence.table, "z_bio", "batch", groups)
    if mean is None:
        return None
    each = [above(row["balanced_accuracy"], row["upper"]) for _, row in rest.iterrows()]
    severity = max(above(mean["balanced_accuracy"], mean["luck"]), *each)
    if severity < _NOTICED:
        return Finding("batch in z_bio", severity, "")
    readable = [
        row["within"]
        for (_, row), far in zip(rest.iterrows(), each, strict=True)
        if row["p_value"] < SIGNIFICANT and far > 0
    ]
    kind = "types" if evidence.labelled else "clusters"
    where = (
        f"{len(readable)} of {len(rest)} {kind} ({name_some(readable)})"
        if readable
        else f"the {kind} taken together"
    )
    words = (
        f"The batch is still readable from z_bio in {where}: on average a probe is right at "
        f"{mean['balanced_accuracy']:.2f} (logistic regression {mean['logistic']:.2f}, nearest "
        f"neighbours {mean['neighbors']:.2f}), by luck at {mean['luck']:.2f}"
    )
    before, _ = _rows(evidence.table, "unintegrated", "batch", groups)
    words += (
        "." if before is None else f", before integration at {before['balanced_accuracy']:.2f}."
    )
    if severity > _APART and not evidence.labelled:
        words += f" {_EITHER}"
    return Finding(
        "batch in z_bio",
        severity,
        words,
        "Against the batch in z_bio: train longer, raise lambda_dis step by step, or combine "
        "objectives, objective={'contrastive': 1.0, 'local_batch_mmd': 0.1}; then look here again, "
        "since too much of it merges types.",
    )


def _biology_in_nio(evidence: Evidence) -> Finding | None:
    mean, _ = _rows(evidence.table, "z_nio", _biology(evidence), "batches")
    if mean is None:
        return None
    severity = above(mean["balanced_accuracy"], mean["luck"])
    if severity < _NOTICED or mean["p_value"] >= SIGNIFICANT:
        return Finding("biology in z_nio", min(severity, _NOTICED), "")
    what = "The type" if evidence.labelled else "The structure of the cells"
    return Finding(
        "biology in z_nio",
        severity,
        f"{what} is readable from z_nio within batches: a probe is right at "
        f"{mean['balanced_accuracy']:.2f}, by luck at {mean['luck']:.2f}.",
        "Against biology in z_nio: nio_flow='quantized', the default, or a smaller n_latent_nio.",
    )


def _biology_lost(evidence: Evidence) -> Finding | None:
    before, after = (_read_of_biology(evidence, code) for code in ("unintegrated", "z_bio"))
    if before is None or after is None or before < _STRUCTURE:
        what = "types are" if evidence.labelled else "structure of the cells is"
        return Finding(
            NOT_TOLD,
            0.0,
            f"Whether z_bio holds the biology cannot be told, since before integration no {what} "
            "read from the cells.",
            "Name as label_key a column of cell types." if evidence.labelled else "",
        )
    lost = 1.0 - min(after / before, 1.0)
    each = {}
    if evidence.labelled and evidence.confusion:
        each = _lost_recall(evidence.confusion["unintegrated"], evidence.confusion["z_bio"])
    severity = max(lost, *each.values(), 0.0)
    if severity < _NOTICED:
        return Finding("biology lost", severity, "")
    merged = [name for name, far in each.items() if far >= _NOTICED]
    if merged:
        pairs = [f"{name} (taken for {_mistaken_for(evidence, name)})" for name in merged]
        what = (
            f"{len(merged)} of {len(each)} types {'is' if len(merged) == 1 else 'are'} told apart "
        )
        what += f"less well in z_bio than before integration: {', '.join(pairs[:3])}"
        what += f" and {len(pairs) - 3} more." if len(pairs) > 3 else "."
    else:
        what = (
            f"z_bio keeps {1 - lost:.0%} of the structure that the cells had within batches before "
            "integration."
        )
    return Finding(
        "biology lost",
        severity,
        what,
        "Against lost biology: lower lambda_dis by a factor of ten, keep to the default objective, "
        "select more genes.",
    )


def _read_of_biology(evidence: Evidence, code: str) -> float | None:
    """How far above luck a probe reads the biology within batches, or of all where none has two."""
    target = _biology(evidence)
    row, _ = _rows(evidence.table, code, target, "batches")
    if row is None:
        found = evidence.table.query("code == @code and target == @target and within == @ALL")
        row = None if found.empty else found.iloc[0]
    return None if row is None else above(row["balanced_accuracy"], row["luck"])


def _lost_recall(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, float]:
    """Recall that each type lost, beyond two standard errors of the difference."""
    lost = {}
    for name in before.index.intersection(after.index):
        recalls, error = [], 0.0
        for confusion in (before, after):
            n = confusion.loc[name].sum()
            recall = confusion.at[name, name] / n
            recalls.append(recall)
            error += recall * (1.0 - recall) / n
        lost[name] = float(max(recalls[0] - recalls[1] - 2.0 * np.sqrt(error), 0.0))
    return lost


def _mistaken_for(evidence: Evidence, name: str) -> str:
    return str(evidence.confusion["z_bio"].loc[name].drop(name).idxmax())


def _batch_not_in_nio(evidence: Evidence) -> Finding | None:
    """A note without weight: z_bio may be good all the same."""
    found = evidence.table[
        (evidence.table["target"] == "batch") & (evidence.table["within"] == ALL)
    ].set_index("code")
    if not {"z_nio", "unintegrated"} <= set(found.index):
        return None
    nio, before = (
        above(found.at[code, "balanced_accuracy"], found.at[code, "luck"])
        for code in ("z_nio", "unintegrated")
    )
    if before - nio < 0.3:
        return None
    return Finding(
        "batch not in z_nio",
        0.0,
        f"z_nio holds little of the batch: {found.at['z_nio', 'balanced_accuracy']:.2f}, where the "
        f"cells before integration have {found.at['unintegrated', 'balanced_accuracy']:.2f}.",
        "Against a z_nio without the batch: raise lambda_cls, or train longer.",
    )


def _biology(evidence: Evidence) -> str:
    return "label" if evidence.labelled else "cluster"
