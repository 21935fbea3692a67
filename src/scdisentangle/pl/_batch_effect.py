from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scdisentangle import tl
from scdisentangle._errors import check_count
from scdisentangle._model import DisentangleModel

from ._finish import finish
from ._words import plain


def batch_effect(
    effect: DisentangleModel | pd.DataFrame,
    *,
    n_genes: int = 8,
    ax: Axes | None = None,
    show: bool = True,
    save: str | Path | None = None,
) -> Axes:
    """Heat map of the genes that z_nio moves most, for each batch.

    One column for each batch, and for each batch, from left to right, the `n_genes` genes that it
    moves most in either direction; a gene is shown once, at the batch that moves it most.

    Parameters
    ----------
    effect
        A trained model, or what :func:`scdisentangle.tl.batch_effect` made of it: genes by batches.
    n_genes
        Genes for each batch.
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
        If `n_genes` is no whole number above 0.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated(n_cells=200, n_genes=100)
    >>> sd.DisentangleModel.setup_anndata(adata, batch_key="batch")
    >>> model = sd.DisentangleModel(adata)
    >>> model.train(max_epochs=2)
    >>> ax = sd.pl.batch_effect(model, n_genes=5, show=False)
    """
    check_count(n_genes=n_genes)
    table = effect if isinstance(effect, pd.DataFrame) else tl.batch_effect(effect)
    chosen = _moved_most(table, n_genes)
    if ax is None:
        longest = max(len(str(name)) for name in chosen.index)
        size = (2.0 + 0.09 * longest + 0.55 * chosen.shape[1], 1.2 + 0.22 * len(chosen))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    limit = float(np.abs(chosen.to_numpy()).max()) or 1.0
    image = ax.imshow(chosen.to_numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    longest = max(len(str(name)) for name in chosen.columns)
    slanted = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if longest > 8 else {}
    ax.set_xticks(range(chosen.shape[1]), map(plain, chosen.columns), **slanted)
    ax.set_yticks(range(len(chosen)), map(plain, chosen.index), size="small")
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, aspect=20, pad=0.03)
    unit = f", {table.attrs['unit']}" if "unit" in table.attrs else ""
    bar.set_label(f"effect of the batch{unit}", size="small")
    bar.outline.set_visible(False)
    finish(ax.figure, show=show, save=save)
    return ax


def _moved_most(effect: pd.DataFrame, n_genes: int) -> pd.DataFrame:
    """Rows of the genes that each batch moves more than any other, the strongest first.

    Of two batches one moves a gene up by what the other moves it down: it is with the first.
    """
    values = effect.to_numpy()
    strength = np.abs(values)
    of_most = strength.max(axis=1, keepdims=True)
    mover = np.where(np.isclose(strength, of_most), values, -np.inf).argmax(axis=1)
    rows = []
    for number, moved in enumerate(values.T):
        own = np.flatnonzero(mover == number)
        strongest = own[np.argsort(-np.abs(moved[own]), kind="stable")[:n_genes]]
        rows += list(strongest[np.argsort(-moved[strongest], kind="stable")])
    return effect.iloc[rows]
