from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scdisentangle._errors import InputError, check_count
from scdisentangle._model import DisentangleModel

from ._finish import finish, own_axes
from ._palette import EIGHT

_PANEL = (3.6, 2.7)
_SPLITS = {"train": "training", "validation": "validation"}
_WEIGHTED = "weighted terms (training)"
_WEIGHTS = "weights"
_STYLES = ["-", "--", ":", "-."]
_HIDDEN = {"train_loss_step", "kl_global", "elbo"}
"""Not a term of the loss: single steps, and what scvi-tools logs on its own account."""


def losses(
    history: DisentangleModel | Mapping[str, pd.DataFrame],
    *,
    n_columns: int = 4,
    ax: Sequence[Axes] | None = None,
    show: bool = True,
    save: str | Path | None = None,
) -> np.ndarray:
    """Draw each term of the loss and each schedule over the epochs.

    One panel for each term as it is, with training and validation; one for the weighted terms
    together, as they add up to the loss; one for the weights and one for the noise level. Terms
    that are zero throughout are left out.

    Parameters
    ----------
    history
        A trained model, or its ``history``: names to columns over epochs.
    n_columns
        Number of panels beside each other.
    ax
        Axes to draw in, one for each panel, in place of a figure of its own.
    show
        Whether to show the figure.
    save
        File to write the figure to.

    Returns
    -------
    Axes of the panels, shape `(n_panels,)`.

    Raises
    ------
    InputError
        If there is no history, because the model has not been trained, or ``ax`` are too few.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated(n_cells=200, n_genes=100)
    >>> sd.DisentangleModel.setup_anndata(adata, batch_key="batch")
    >>> model = sd.DisentangleModel(adata)
    >>> model.train(max_epochs=2)
    >>> axes = sd.pl.losses(model, show=False)
    """
    check_count(n_columns=n_columns)
    given = type(history).__name__
    history = getattr(history, "history", history)
    if not isinstance(history, Mapping | None):
        raise InputError(f"Pass a trained DisentangleModel, or its history, not {given}.")
    panels = _panels(history or {})
    if not panels:
        raise InputError("The history is empty: call model.train() before drawing its losses.")
    axes = own_axes(ax, len(panels)) if ax is not None else _grid(len(panels), n_columns)
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        _draw(panel, title, lines)
    finish(axes[0].figure, show=show, save=save)
    return axes


def _grid(n_panels: int, n_columns: int) -> np.ndarray:
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    _, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(_PANEL[0] * n_columns, _PANEL[1] * n_rows),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[n_panels:]:
        ax.remove()
    return axes.flatten()[:n_panels]


def _panels(history: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, pd.Series]]:
    """Titles of the panels to their lines; the terms first, then what was in force."""
    terms: dict[str, dict[str, pd.Series]] = {}
    weighted, weights, others = {}, {}, {}
    for key, frame in history.items():
        values = frame.iloc[:, 0].astype(float)
        stem, _, split = key.rpartition("_")
        if key in _HIDDEN or stem in _HIDDEN:
            continue
        if key.endswith("_weight"):
            weights[_words(stem)] = values
        elif split in _SPLITS and stem.endswith("_weighted"):
            if split == "train":
                weighted[_words(stem.removesuffix("_weighted"))] = values
        elif split in _SPLITS:
            terms.setdefault(_words(stem), {})[split] = values
        elif key in ("train_loss", "validation_loss"):
            terms.setdefault("loss", {})[stem] = values
        else:
            others[_words(key)] = {_words(key): values}
    terms = {title: lines for title, lines in terms.items() if any(v.any() for v in lines.values())}
    terms = {title: _training_first(lines) for title, lines in terms.items()}
    if not any(title.startswith("kl") for title in terms):
        weights.pop("kl", None)
    combined = {_WEIGHTED: weighted, _WEIGHTS: weights}
    return {**terms, **{title: lines for title, lines in combined.items() if lines}, **others}


def _training_first(lines: Mapping[str, pd.Series]) -> dict[str, pd.Series]:
    return {name: lines[split] for split, name in _SPLITS.items() if split in lines}


def _words(key: str) -> str:
    return key.replace("_", " ").strip()


def _draw(ax: Axes, title: str, lines: Mapping[str, pd.Series]) -> None:
    for i, (name, values) in enumerate(lines.items()):
        ax.plot(
            values.index,
            values,
            label=name,
            color=EIGHT[i % len(EIGHT)],
            linestyle=_STYLES[i % len(_STYLES)],
            marker="o" if len(values) == 1 else None,
            linewidth=1.5,
        )
    combined = title in (_WEIGHTED, _WEIGHTS)
    if title == _WEIGHTED:
        ax.set_yscale("symlog", linthresh=1.0)
    ax.set_title(title, fontsize="medium")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25), "ncols": 2}
        ax.legend(fontsize="x-small", frameon=False, **(below if combined else {}))
