"""Tables for the terminal."""

from __future__ import annotations

import pandas as pd
from rich.table import Table

_SUMMARY = ["Bio conservation", "Batch correction", "Total", "Total (no silhouette)"]
_SHORT = {
    "X_unintegrated": "unintegrated",
    "X_disentangle": "z_bio",
    "X_disentangle_batch": "z_nio",
}
_QUESTIONS = {
    ("batch", "all"): "batch, all cells",
    ("batch", "mean over labels"): "batch, within labels",
    ("label", "all"): "label, all cells",
    ("label", "mean over batches"): "label, within batches",
}


def scores_table(scores: pd.DataFrame) -> Table:
    """Aggregate scores, the best of each in bold."""
    table = Table(
        title="Integration (scib-metrics, 0 to 1, higher is better)", title_justify="left"
    )
    table.add_column("embedding", no_wrap=True)
    for name in _SUMMARY:
        table.add_column(name, justify="right")
    best = scores[_SUMMARY].max()
    for embedding, row in scores.iterrows():
        cells = (_bold(f"{row[name]:.3f}", row[name] == best[name]) for name in _SUMMARY)
        table.add_row(_SHORT.get(embedding, embedding), *cells)
    return table


def leakage_table(leakage: pd.DataFrame) -> Table:
    """What each code predicts, with what chance gives, for all cells and the mean of the groups."""
    table = Table(
        title="What a code predicts (balanced accuracy of held-out cells)", title_justify="left"
    )
    table.add_column("predicted", no_wrap=True)
    codes = list(leakage["code"].unique())
    for column in (*codes, "chance"):
        table.add_column(_SHORT.get(column, column), justify="right")
    found = leakage.set_index(["target", "within", "code"])
    for (target, within), title in _QUESTIONS.items():
        rows = leakage[(leakage["target"] == target) & (leakage["within"] == within)]
        if rows.empty:
            continue
        values = (
            f"{found.at[(target, within, code), 'balanced_accuracy']:.3f}"
            if (target, within, code) in found.index
            else "–"
            for code in codes
        )
        table.add_row(title, *values, f"{rows['chance'].iloc[0]:.3f}")
    return table


def _bold(text: str, yes: bool) -> str:
    return f"[bold]{text}[/bold]" if yes else text
