from __future__ import annotations

from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from mudata import MuData

from scdisentangle._errors import InputError
from scdisentangle._model import DisentangleModel
from scdisentangle.tl import DisentanglementReport
from scdisentangle.tl._checks import check_is_model
from scdisentangle.tl._questions import of_groups
from scdisentangle.tl._verdict import SIGNIFICANT, above

from ._finish import finish
from ._words import TITLES, plain

REPORT, TABLE = "disentanglement", "leakage"
"""Where :mod:`scdisentangle.tl` keeps a report, and the table of its ``leakage``."""
_OF_TABLE = ["code", "target", "within", "balanced_accuracy", "chance"]
_CMAP = "YlGnBu"
_NOT_ASKED = "#EEEEEE"
_TITLES = {
    "batch": "batch,\nwithin\n{kinds}",
    "label": "type,\nwithin\nbatches",
    "cluster": "structure,\nwithin\nbatches",
}


def leakage(
    source: ad.AnnData | DisentangleModel | DisentanglementReport | pd.DataFrame,
    *,
    key: str | None = None,
    ax: Axes | None = None,
    show: bool = True,
    save: str | Path | None = None,
) -> Axes:
    """Heat map of what each code gives away: the batch within each type, the type in each batch.

    One row for each group of cells, one column for each code. The shade is the balanced accuracy of
    the stronger probe on a scale from luck (0) to certainty (1), which is the number in the cell; a
    star is a permutation p-value below 0.05, which a report has. The upper part should be light for
    z_bio, the lower for z_nio, and both are dark before integration.

    Parameters
    ----------
    source
        What :func:`scdisentangle.tl.disentanglement_report` or :func:`scdisentangle.tl.leakage`
        returned, or the model or AnnData that it was called on.
    key
        Key of ``adata.uns`` with the report or the table. ``None`` takes the report under
        ``"disentanglement"``, or where there is none the table under ``"leakage"``.
    ax
        Axes to draw on.
    show
        Whether to show the figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If there is no report and no table, or it has no groups of cells.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated_codes(400, n_types=3, leak=0.5)
    >>> report = sd.tl.disentanglement_report(adata, "batch", "celltype", progress_bar=False)
    >>> ax = sd.pl.leakage(report, show=False)
    """
    parts = _parts(_table_of(source, key))
    if not parts:
        raise InputError(
            "Nothing was asked within a group: no type is shared by two batches, and no batch has "
            "two types. There is nothing to draw."
        )
    values, p_values = (
        pd.concat([part.pivot(index="within", columns="code", values=name) for part in parts])
        for name in ("far", "p_value")
    )
    columns = [code for code in TITLES if code in values.columns]
    values, p_values = values[columns], p_values[columns]
    if ax is None:
        longest = max(len(str(name)) for name in values.index)
        size = (1.6 + 0.08 * longest + 1.0 * len(columns), 1.1 + 0.32 * len(values))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    shown = np.ma.masked_invalid(values.to_numpy(float))
    image = ax.imshow(shown, cmap=_CMAP, vmin=0.0, vmax=1.0, aspect="auto")
    ax.set_facecolor(_NOT_ASKED)
    ax.set_xticks(range(len(columns)), [TITLES[code] for code in columns])
    ax.set_yticks(range(len(values)), map(plain, values.index))
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    for y in range(len(values)):
        for x in range(len(columns)):
            far = values.iat[y, x]
            if np.isfinite(far):
                star = "*" if p_values.iat[y, x] < SIGNIFICANT else ""
                color = "white" if far > 0.5 else "black"
                ax.text(x, y, f"{far:.2f}{star}", ha="center", va="center", color=color, size=9)
    row = 0
    targets = [part["target"].iloc[0] for part in parts]
    kinds = "groups" if "cluster" in targets else "types"  # without labels, those of clusters
    for target, part in zip(targets, parts, strict=True):
        height = part["within"].nunique()
        if row:
            ax.axhline(row - 0.5, color="white", linewidth=4)
        ax.annotate(
            _TITLES[target].format(kinds=kinds),
            (1.02, row + (height - 1) / 2),
            xycoords=("axes fraction", "data"),
            va="center",
            size="small",
        )
        row += height
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.9, aspect=25, pad=0.02)
    bar.set_label("readable: luck 0, certainty 1", size="small")
    bar.outline.set_visible(False)
    finish(ax.figure, show=show, save=save)
    return ax


def _table_of(
    source: ad.AnnData | DisentangleModel | DisentanglementReport | pd.DataFrame, key: str | None
) -> pd.DataFrame:
    """Balanced accuracies (`value`) beside those by luck, of a report or of `tl.leakage`."""
    source = _not_of_model(source)
    if isinstance(source, ad.AnnData):
        if key is None:
            key = next((k for k in (REPORT, TABLE) if k in source.uns), REPORT)
        if isinstance(source.uns.get(key), pd.DataFrame):
            source = source.uns[key]
    if not isinstance(source, pd.DataFrame):
        table = report_of(source, key).table
        return table[table["measure"] == "balanced_accuracy"]
    lacking = [name for name in _OF_TABLE if name not in source]
    if lacking:
        raise InputError(
            f"The table has no column '{lacking[0]}': pass what tl.leakage or "
            "tl.disentanglement_report returned, or the model or AnnData that it was called on."
        )
    named = source[_OF_TABLE].set_axis(["code", "target", "within", "value", "luck"], axis=1)
    return named.assign(p_value=np.nan)


def _parts(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of the groups of each question, the batch first, `far` from luck to certainty."""
    groups = of_groups(table).copy()
    groups["far"] = [above(*row) for row in groups[["value", "luck"]].itertuples(index=False)]
    batch = groups["target"] == "batch"
    return [part for part in (groups[batch], groups[~batch]) if not part.empty]


def report_of(
    source: ad.AnnData | DisentangleModel | DisentanglementReport, key: str
) -> DisentanglementReport:
    """The report itself, or that which is kept where it was made."""
    source = _not_of_model(source)
    if isinstance(source, DisentanglementReport):
        return source
    if isinstance(source, pd.DataFrame):
        raise InputError(
            "A table is no report: pass what tl.disentanglement_report returned, or the model or "
            "AnnData that it was called on."
        )
    return DisentanglementReport.from_adata(source, key)


def _not_of_model(
    source: ad.AnnData | DisentangleModel | DisentanglementReport | pd.DataFrame,
) -> ad.AnnData | DisentanglementReport | pd.DataFrame:
    """The AnnData of a model; any other source as it is."""
    if isinstance(source, ad.AnnData | MuData | DisentanglementReport | pd.DataFrame):
        return source
    check_is_model(source, "a report, or the trained DisentangleModel or AnnData that it is of")
    return source.adata
