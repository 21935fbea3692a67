"""The report as a user sees it: in the terminal, in a notebook, in ``adata.uns``."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from math import isnan

import anndata as ad
import numpy as np
import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from scdisentangle._errors import InputError

from ._verdict import SIGNIFICANT

CODES = ("z_bio", "z_nio", "unintegrated")
_STYLES = {"good": "bold green", "fair": "bold yellow", "poor": "bold red"}
QUESTIONS = {
    ("batch", "all"): "batch, all cells",
    ("batch", "mean over labels"): "batch, within types",
    ("batch", "mean over clusters"): "batch, within clusters",
    ("label", "all"): "type, all cells",
    ("label", "mean over batches"): "type, within batches",
    ("cluster", "mean over batches"): "structure, within batches",
}


@dataclass
class DisentanglementReport:
    """What :func:`scdisentangle.tl.disentanglement_report` found.

    Attributes
    ----------
    table
        One row for each number: `measure` (`balanced_accuracy`, `hsic`, `cka`,
        `effective_dimension`, `reconstruction_share`), `code`, `target`, `within`, `value`,
        `chance` (one over the number of classes), `luck` and `upper` (mean and 95 % quantile of the
        permuted values), `p_value`, `probe`, `logistic`, `neighbors`, `n_cells`, `n_classes`.
    status
        ``"good"``, ``"fair"`` or ``"poor"``; ``"confounded"`` where no type is in two batches, and
        ``"undecided"`` where none has enough cells in two.
    score
        From 0 to 1: 1 minus the largest of the severities.
    verdict
        What was found, in words.
    advice
        What to try.
    severities
        Each problem that was looked for, from 0 (absent) to 1.
    batch_key, label_key
        Columns of ``obs`` that were read.
    left_out
        Groups that were too small for a probe.
    """

    table: pd.DataFrame
    status: str
    score: float
    verdict: str
    advice: list[str]
    severities: dict[str, float]
    batch_key: str
    label_key: str | None = None
    left_out: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """Contents as ``adata.uns`` and ``.h5ad`` files take them."""
        return {
            "table": self.table.copy(),
            "status": self.status,
            "score": float(self.score),
            "verdict": self.verdict,
            "advice": np.array(self.advice, dtype=object),
            "severities": dict(self.severities),
            "batch_key": self.batch_key,
            "label_key": self.label_key or "",
            "left_out": np.array(self.left_out, dtype=object),
        }

    @classmethod
    def from_adata(cls, adata: ad.AnnData, key: str = "disentanglement") -> DisentanglementReport:
        """The report that is kept in ``adata.uns[key]``.

        Parameters
        ----------
        adata
            That was reported on.
        key
            The report's `key_added`.

        Raises
        ------
        InputError
            If there is no report.
        """
        if key not in adata.uns:
            raise InputError(
                f"'{key}' is not in adata.uns: call tl.disentanglement_report first, on the model "
                "or on this AnnData."
            )
        kept: Mapping = adata.uns[key]
        return cls(
            table=kept["table"].copy(),
            status=str(kept["status"]),
            score=float(kept["score"]),
            verdict=str(kept["verdict"]),
            advice=[str(a) for a in kept["advice"]],
            severities={str(k): float(v) for k, v in kept["severities"].items()},
            batch_key=str(kept["batch_key"]),
            label_key=str(kept["label_key"]) or None,
            left_out=[str(a) for a in kept["left_out"]],
        )

    def summary(self) -> pd.DataFrame:
        """The table that is printed: questions by codes, numbers as text.

        A star is a p-value below 0.05.
        """
        rows: dict[str, dict[str, str]] = {}
        table = self.table
        probes = table[table["measure"] == "balanced_accuracy"]
        for (target, within), name in QUESTIONS.items():
            found = probes[(probes["target"] == target) & (probes["within"] == within)]
            if not found.empty:
                luck = f"{found['luck'].mean():.2f}"
                rows[name] = {**_by_code(found, _with_star), "by luck": luck}
        for measure, form in _OTHERS.items():
            found = table[table["measure"] == measure]
            if not found.empty:
                rows[measure.replace("_", " ")] = _by_code(found, form)
        columns = [*CODES, "by luck"]
        return pd.DataFrame(
            [[row.get(column, "–") for column in columns] for row in rows.values()],
            index=list(rows),
            columns=columns,
        )

    def _dependence(self) -> str:
        """HSIC and CKA in a line, empty where there is no z_nio."""
        found = {
            (row["measure"], row["within"]): row
            for _, row in self.table[self.table["measure"].isin(["hsic", "cka"])].iterrows()
        }
        if not found:
            return ""
        hsic = found["hsic", "all"]
        words = f"z_bio and z_nio: HSIC {hsic['value']:.2g} (p = {hsic['p_value']:.2g}"
        if ("hsic", "labels") in found:
            words += f"; within types, p = {found['hsic', 'labels']['p_value']:.2g}"
        return words + f"), CKA {found['cka', 'all']['value']:.2f}."

    @property
    def _headline(self) -> str:
        return f"{self.status}, {self.score:.2f} of 1"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble(
            "Disentanglement: ", (self._headline, _STYLES.get(self.status, "bold magenta"))
        )
        yield Text(self.verdict)
        for advice in self.advice:
            yield Text(f"→ {advice}")
        table = Table(caption=_CAPTION, caption_justify="left")
        table.add_column("held-out balanced accuracy of", no_wrap=True)
        summary = self.summary()
        for column in summary.columns:
            table.add_column(column, justify="right")
        for name, row in summary.iterrows():
            table.add_row(str(name), *row)
        yield table
        if words := self._dependence():
            yield Text(words)

    def __repr__(self) -> str:
        console = Console(file=StringIO(), width=100, color_system=None, force_jupyter=False)
        console.print(self)
        return console.file.getvalue().rstrip()

    def _repr_html_(self) -> str:
        advice = "".join(f"<li>{html.escape(line)}</li>" for line in self.advice)
        return (
            f"<p><strong>Disentanglement: {self._headline}</strong></p>"
            f"<p>{html.escape(self.verdict)}</p>"
            + (f"<ul>{advice}</ul>" if advice else "")
            + self.summary().to_html()
            + f"<p>{_CAPTION} {html.escape(self._dependence())}</p>"
        )


_CAPTION = (
    f"* more than by luck, p < {SIGNIFICANT}. Luck: the better of two probes on permuted cells."
)


def _by_code(found: pd.DataFrame, form) -> dict[str, str]:
    return {row["code"]: form(row) for _, row in found.iterrows() if row["code"] in CODES}


def _with_star(row: pd.Series) -> str:
    return f"{row['value']:.2f}{'*' if row['p_value'] < SIGNIFICANT else ' '}"


_OTHERS = {
    "reconstruction_share": lambda row: "– " if isnan(row["value"]) else f"{row['value']:.0%} ",
    "effective_dimension": lambda row: f"{row['value']:.1f} ",
}
