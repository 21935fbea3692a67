"""Questions that probes put to codes: a target, a code, and the groups of cells to ask within."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ._probes import HeldOut, large_enough, predict_held_out

COLUMNS = [
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
ALL, MEAN_OVER = "all", "mean over "
"""Names in the column `within` that are no group's: all cells, and the mean over what follows."""
_OF_NULL = ["luck", "upper", "p_value"]
_AVERAGED = ["balanced_accuracy", "chance", "excess", "logistic", "neighbors"]


class Question(NamedTuple):
    """What is the `target` of a cell, given its `code`? All cells at once, or in `groups`."""

    code: str
    target: str
    groups: str = ""


class Answer(NamedTuple):
    """Held-out predictions for one group of cells."""

    question: Question
    within: str
    held_out: HeldOut

    def row(self) -> dict[str, object]:
        """The columns of the table that :func:`answers_table` makes."""
        score = self.held_out.score()
        return {
            **score._asdict(),
            "code": self.question.code,
            "target": self.question.target,
            "within": self.within,
            "balanced_accuracy": score.balanced_accuracy,
            "chance": score.chance,
            "excess": score.balanced_accuracy - score.chance,
            "probe": score.stronger,
        }


def ask(
    questions: Sequence[Question],
    codes: Mapping[str, np.ndarray],
    columns: Mapping[str, pd.Series],
    *,
    min_cells: int,
    max_cells: int | None,
    seed: int,
    progress_bar: bool = False,
) -> tuple[list[Answer], list[str]]:
    """Put each question to each of its groups.

    Parameters
    ----------
    questions
        Names in ``codes`` and in ``columns``.
    codes
        Arrays of shape `(n_cells, n_dims)`.
    columns
        Targets and groups, each of shape `(n_cells,)`; cells without a value are not asked.
    min_cells, max_cells, seed
        As in :func:`scdisentangle.tl.leakage`.
    progress_bar
        Whether to show a progress bar over the groups.

    Returns
    -------
    The answers, and in words the groups in which fewer than two classes have `min_cells` cells.
    """
    tasks = [
        (question, within, cells)
        for question in questions
        for within, cells in _groups(columns[question.target], columns.get(question.groups))
    ]
    answers, left_out = [], []
    for question, within, cells in tqdm(
        tasks, desc="Probing", unit="probe", disable=not progress_bar, leave=False
    ):
        classes = columns[question.target].to_numpy()[cells].astype(str)
        cells, classes = (a[large_enough(classes, min_cells)] for a in (cells, classes))
        if len(np.unique(classes)) < 2:
            left_out.append(f"{question.target} from {question.code} within {within}")
            continue
        code = codes[question.code][cells]
        found = predict_held_out(code, classes, seed=seed, max_cells=max_cells)
        answers.append(Answer(question, within, found))
    return answers, left_out


def _groups(target: pd.Series, group_of: pd.Series | None) -> Iterator[tuple[str, np.ndarray]]:
    """Names of the groups and the positions of their cells; cells without a target are in none."""
    known = target.notna().to_numpy()
    if group_of is None:
        yield ALL, np.flatnonzero(known)
        return
    names = group_of.astype(str).to_numpy()
    known = known & group_of.notna().to_numpy()
    for name in np.unique(names[known]):
        yield str(name), np.flatnonzero(known & (names == name))


def answers_table(
    answers: Sequence[Answer], *, n_permutations: int = 0, seed: int = 0
) -> pd.DataFrame:
    """One row for each answer, and the mean over groups before the rows that it is the mean of.

    Parameters
    ----------
    answers
        What :func:`ask` returned.
    n_permutations
        Permutations for the columns `luck` (mean of the balanced accuracy that the stronger probe
        has by luck), `upper` (its 95 % quantile) and `p_value`, which are not there if 0.
    seed
        Seed of the permutations.
    """
    by_question: dict[Question, list[Answer]] = {}
    for answer in answers:
        by_question.setdefault(answer.question, []).append(answer)
    columns = [*COLUMNS, *(_OF_NULL if n_permutations else [])]
    rows = []
    for question, asked in by_question.items():
        of_groups = [answer.row() for answer in asked]
        rng = np.random.default_rng(seed)  # groups of one size would have one null by one seed
        nulls = [answer.held_out.null(n_permutations, rng) for answer in asked]
        if question.groups:
            of_groups.insert(0, _mean(of_groups, question.groups))
            nulls.insert(0, np.mean(nulls, axis=0))
        for row, null in zip(of_groups, nulls, strict=True):
            rows.append({**row, **_compare(row["balanced_accuracy"], null)})
    table = pd.DataFrame(rows, columns=columns).astype({"n_cells": int, "n_classes": int})
    table.index = table.index.astype(str)
    return table


def is_of_a_table(name: str) -> bool:
    """Whether a name in the column `within` is that of all cells, or of a mean over groups."""
    return name == ALL or name.startswith(MEAN_OVER)


def of_groups(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of single groups of cells."""
    return table[~table["within"].map(is_of_a_table).astype(bool)]


def _mean(rows: Sequence[Mapping], groups: str) -> dict[str, object]:
    mean = {name: float(np.mean([row[name] for row in rows])) for name in _AVERAGED}
    counts = {
        "n_cells": sum(row["n_cells"] for row in rows),
        "n_classes": max(row["n_classes"] for row in rows),
    }
    named = {"within": MEAN_OVER + groups, "probe": "stronger"}
    return {**rows[0], **mean, **counts, **named}


def _compare(value: float, null: np.ndarray) -> dict[str, float]:
    if not len(null):
        return {}
    return {
        "luck": float(null.mean()),
        "upper": float(np.quantile(null, 0.95)),
        "p_value": permutation_p_value(value, null),
    }


def permutation_p_value(value: float, null: np.ndarray) -> float:
    """Share of the null that is at least `value`, the observed one counted in (never 0).

    References
    ----------
    Phipson and Smyth (2010), Permutation p-values should never be zero, Statistical Applications
    in Genetics and Molecular Biology 9.
    """
    return float((1 + np.sum(null >= value - 1e-12)) / (1 + len(null)))
