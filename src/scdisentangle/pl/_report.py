from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scdisentangle._model import DisentangleModel
from scdisentangle.tl import DisentanglementReport
from scdisentangle.tl._questions import of_groups
from scdisentangle.tl._report import QUESTIONS
from scdisentangle.tl._verdict import SIGNIFICANT

from ._finish import finish, own_axes
from ._leakage import report_of
from ._words import COLORS, TITLES, plain

_STATUS = {
    "good": "#009E73",
    "fair": "#C7860A",
    "poor": "#D55E00",
    "confounded": "#8A2BA8",
    "undecided": "#8A2BA8",
}
_SIZES = {
    "reconstruction_share": ("share of the reconstruction", ".0%"),
    "effective_dimension": ("effective dimension", ".1f"),
}


def report(
    source: ad.AnnData | DisentangleModel | DisentanglementReport,
    *,
    key: str = "disentanglement",
    ax: Sequence[Axes] | None = None,
    show: bool = True,
    save: str | Path | None = None,
) -> np.ndarray:
    """The disentanglement report in one picture.

    Left, what the probes read from each code, with luck as a line across. Middle, the batch within
    each type: z_bio should lie at luck, however readable the batch was before. Right, the share of
    the reconstruction and the effective dimension of each code. The status is the title, the
    verdict stands below.

    Parameters
    ----------
    source
        What :func:`scdisentangle.tl.disentanglement_report` returned, or the model or AnnData that
        it was called on.
    key
        Key of ``adata.uns`` with the report.
    ax
        Three axes to draw in, in place of a figure of its own; the status is then the title of the
        first, and the verdict is left out.
    show
        Whether to show the figure.
    save
        File to write the figure to.

    Returns
    -------
    Axes of the panels, shape `(3,)`.

    Raises
    ------
    InputError
        If there is no report, or ``ax`` are too few.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated_codes(400, n_types=3, leak=0.5)
    >>> report = sd.tl.disentanglement_report(adata, "batch", "celltype", progress_bar=False)
    >>> axes = sd.pl.report(adata, show=False)
    """
    found = report_of(source, key)
    probes = found.table[found.table["measure"] == "balanced_accuracy"]
    groups = of_groups(probes[probes["target"] == "batch"])
    title = f"Disentanglement: {found.status}, {found.score:.2f} of 1"
    style = {"ha": "left", "color": _STATUS[found.status], "weight": "bold"}
    if ax is None:
        axes = _figure(groups["within"].nunique(), found.verdict)
        axes[0].figure.suptitle(title, x=0.01, **style)
    else:
        axes = own_axes(ax, 3)
    _bars(axes[0], probes)
    _by_group(axes[1], groups, "type" if found.label_key else "group")
    _dimensions_and_shares(axes[2], found.table)
    if ax is not None:
        axes[0].set_title(title, loc="left", color=style["color"], weight="bold")
    finish(axes[0].figure, show=show, save=save)
    return axes


def _figure(n_groups: int, verdict: str) -> np.ndarray:
    figure, axes = plt.subplots(
        1,
        3,
        figsize=(11.5, max(3.6, 1.3 + 0.28 * n_groups) + 0.9),
        width_ratios=[4.2, 3.6, 2.2],
        layout="constrained",
    )
    words = textwrap.fill(plain(verdict), 185)
    figure.supxlabel(words, x=0.01, ha="left", size="small", linespacing=1.4)
    return axes


def _bars(ax: Axes, probes: pd.DataFrame) -> None:
    names = []
    width = 0.27
    for (target, within), name in QUESTIONS.items():
        rows = probes[(probes["target"] == target) & (probes["within"] == within)]
        if rows.empty:
            continue
        x = len(names)
        names.append(name.replace(", ", ",\n"))
        for shift, code in enumerate(TITLES):
            for value in rows.loc[rows["code"] == code, "value"]:
                ax.bar(x + (shift - 1) * width, value, width * 0.92, color=COLORS[code])
        luck = rows["luck"].mean()
        ax.plot([x - 0.45, x + 0.45], [luck, luck], color="black", linewidth=1.2)
    ax.set_xticks(range(len(names)), names, size="small")
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("balanced accuracy, held out")
    ax.set_title("What can be read from each code", size="medium", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=COLORS[code], label=TITLES[code])
        for code in TITLES
        if code in set(probes["code"])
    ]
    handles.append(Line2D([], [], color="black", linewidth=1.2, label="luck"))
    ax.legend(
        handles=handles,
        frameon=False,
        fontsize="small",
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
    )


def _by_group(ax: Axes, groups: pd.DataFrame, kind: str) -> None:
    names = list(dict.fromkeys(groups["within"]))[::-1]
    for y, name in enumerate(names):
        rows = groups[groups["within"] == name].set_index("code")
        luck = rows["luck"].mean()
        ax.plot([luck, luck], [y - 0.3, y + 0.3], color="black", linewidth=1.2)
        if {"z_bio", "unintegrated"} <= set(rows.index):
            ends = rows.loc[["unintegrated", "z_bio"], "value"]
            ax.plot(ends, [y, y], color="#D0D0D0", linewidth=2, zorder=0)
        for code, size in {"unintegrated": 9, "z_bio": 6}.items():
            if code in rows.index:
                row, color = rows.loc[code], COLORS[code]
                face = color if row["p_value"] < SIGNIFICANT else "white"
                ax.plot(row["value"], y, "o", color=color, markerfacecolor=face, markersize=size)
    ax.set_yticks(range(len(names)), map(plain, names), size="small")
    ax.set_ylim(-0.6, max(len(names), 1) - 0.4)
    ax.set_xlim(0, 1.04)
    ax.set_xlabel("balanced accuracy (hollow: within luck)", size="small")
    ax.set_title(f"Batch, within each {kind}", size="medium", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    if not names:
        ax.text(0.5, 0.5, "no group is shared\nbetween batches", ha="center", va="center")


def _dimensions_and_shares(ax: Axes, table: pd.DataFrame) -> None:
    positions, names = [], []
    y = 0.0
    for measure, (title, form) in _SIZES.items():
        rows = table[table["measure"] == measure].set_index("code")["value"]
        if rows.empty:
            continue
        ax.text(0.0, y, title, va="center", size="small", color="#444444")
        for code in (code for code in TITLES if code in rows.index):
            y -= 1.0
            value = rows[code]
            length = max(value / rows.max(), 0.0) if np.isfinite(value) else 0.0
            ax.barh(y, length, 0.75, color=COLORS[code])
            words = format(value, form) if np.isfinite(value) else "–"
            ax.text(length + 0.03, y, words, va="center", size="small")
            positions.append(y)
            names.append(TITLES[code])
        y -= 1.4
    ax.set_ylim(min(y + 0.4, -5.5), 0.6)
    ax.set_xlim(0, 1.25)
    ax.set_xticks([])
    ax.set_yticks(positions, names, size="small")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("Size of each code", size="medium", loc="left")
