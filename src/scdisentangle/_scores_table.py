"""The scores of the integration as a table for the terminal."""

from __future__ import annotations

import pandas as pd
from rich.table import Table

_SUMMARY = ["Bio conservation", "Batch correction", "Total", "Total (no silhouette)"]
_SHORT = {
    "X_unintegrated": "unintegrated",
    "X_disentangle": "z_bio",
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


def _bold(text: str, yes: bool) -> str:
    return f"[bold]{text}[/bold]" if yes else text
