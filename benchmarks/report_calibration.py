"""Does the report's score tell good codes from bad ones? On codes whose leakage is known.

Writes one row per set to ``results/report_calibration.csv``, and the table of the user guide.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

import scdisentangle as sd

BAD = 0.15
"""More than this of the batch in z_bio, of the type in z_nio, or of the type lost is bad: fixed
before any report was made."""
COMPOSITIONS = ("balanced", "unequal", "private")


def designs(first_seed: int) -> list[dict]:
    """What each set holds, from clean to confounded."""
    sets: list[dict] = []
    for i, leak in enumerate((0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)):
        for j, mechanism in enumerate(("share", "shift", "parity")):
            n_batches = 2 + (i % 3) if mechanism == "share" else 2
            sets.append(
                {
                    "family": f"batch in z_bio, {mechanism}",
                    "leak": leak,
                    "mechanism": mechanism,
                    "n_batches": n_batches,
                    "composition": COMPOSITIONS[(i + j) % 3],
                }
            )
    for i, leak in enumerate((0.1, 0.3, 0.6, 1.0)):
        for n_leaking in (1, 2):
            sets.append(
                {
                    "family": "batch in z_bio of one or two types",
                    "leak": leak,
                    "n_leaking": n_leaking,
                    "n_batches": 2 + i % 2,
                    "n_types": 8,
                }
            )
    for i, share in enumerate((0.05, 0.1, 0.25, 0.5, 1.0)):
        sets.append(
            {
                "family": "biology in z_nio",
                "biology_in_nio": share,
                "composition": COMPOSITIONS[i % 3],
            }
        )
    for i, share in enumerate((0.05, 0.1, 0.25, 0.5, 1.0)):
        sets.append({"family": "biology lost", "lost": share, "composition": COMPOSITIONS[i % 3]})
    sets += [{"family": "types merged", "n_merged": n} for n in (2, 3, 4)]
    for i in range(12):
        sets.append(
            {
                "family": "clean",
                "n_batches": 2 + i % 4,
                "n_types": 4 + i % 5,
                "composition": COMPOSITIONS[i % 3],
            }
        )
    for n_batches in (2, 3, 4):
        sets.append(
            {
                "family": "confounded",
                "n_batches": n_batches,
                "n_types": 8,
                "composition": "confounded",
            }
        )
    for i, design in enumerate(sets):
        design |= {"n_cells": (800, 1500, 3000)[i % 3], "seed": first_seed + i}
    return sets


def is_bad(design: dict) -> bool:
    """By construction, whatever a report says."""
    return (
        design.get("composition") == "confounded"
        or design.get("n_merged", 0) >= 2
        or max(design.get(key, 0.0) for key in ("leak", "biology_in_nio", "lost")) > BAD
    )


def measure(design: dict) -> dict:
    options = {key: value for key, value in design.items() if key != "family"}
    adata = sd.data.simulated_codes(**options)
    row = {**design, "bad": is_bad(design)}
    for name, label_key in {"labels": "celltype", "clusters": None}.items():
        began = time.perf_counter()
        report = sd.tl.disentanglement_report(adata, "batch", label_key, progress_bar=False)
        row |= {
            f"score, {name}": report.score,
            f"status, {name}": report.status,
            f"seconds, {name}": time.perf_counter() - began,
        }
    return row


def families(rows: pd.DataFrame) -> pd.DataFrame:
    """Range of the scores of good and of bad sets in each family."""

    def span(scores: pd.Series) -> str:
        if scores.empty:
            return "–"
        return f"{scores.min():.2f} to {scores.max():.2f} ({len(scores)})"

    table = {}
    for family, part in rows.groupby("family", sort=False):
        table[family] = {
            f"{kind}, {name}": span(part.loc[part["bad"] == bad, f"score, {name}"])
            for name in ("labels", "clusters")
            for kind, bad in (("good", False), ("bad", True))
        }
    return pd.DataFrame(table).T.rename_axis("family")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent
    parser.add_argument("--seed", type=int, default=0, help="seed of the first set")
    parser.add_argument("--out", type=Path, default=here / "results" / "report_calibration.csv")
    table = here.parent / "docs" / "user_guide" / "report_calibration_table.md"
    parser.add_argument("--table", type=Path, default=table)
    arguments = parser.parse_args()

    rows = pd.DataFrame([measure(design) for design in tqdm(designs(arguments.seed), unit="set")])
    rows.to_csv(arguments.out, index=False, float_format="%.4g")
    lines = [f"{len(rows)} sets, {rows['bad'].sum()} of them bad.", ""]
    for name in ("labels", "clusters"):
        auc = roc_auc_score(~rows["bad"], rows[f"score, {name}"])
        called_good = rows[f"status, {name}"] == "good"
        right = np.mean(called_good != rows["bad"])
        lines.append(
            f"- with {name}: ROC AUC {auc:.3f}; `good` or not is right for {right:.0%} of the "
            f"sets; median {rows[f'seconds, {name}'].median():.1f} s, "
            f"at most {rows[f'seconds, {name}'].max():.1f} s"
        )
    table = families(rows)
    lines += ["", "| family | " + " | ".join(table.columns) + " |"]
    lines.append("| --- |" + " --- |" * len(table.columns))
    lines += ["| " + " | ".join([family, *row]) + " |" for family, row in table.iterrows()]
    arguments.table.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
