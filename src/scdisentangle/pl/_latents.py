from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scdisentangle._errors import InputError
from scdisentangle.tl._checks import check_obs, check_obsm, finite_codes
from scdisentangle.tl._umap import has_neighbourhoods, umap_coordinates

from ._finish import finish
from ._palette import MISSING, category_colors, is_continuous
from ._words import TITLES, plain

_REPRESENTATIONS = {
    "X_pca": "Unintegrated PCA",
    "X_disentangle": TITLES["z_bio"],
    "X_disentangle_batch": TITLES["z_nio"],
}
_PANEL = 3.4
_LEGEND, _LEGEND_ROWS = 1.7, 14


def latents(
    adata: ad.AnnData,
    color: str | Sequence[str],
    *,
    use_rep: Mapping[str, str] | Sequence[str] | str | None = None,
    size: float | None = None,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool = True,
    save: str | Path | None = None,
) -> np.ndarray:
    """Draw the UMAP of each code side by side, coloured by the batch, the label, and so on.

    Before and after: one column for each code, one row for each key of `color`. The layout is read
    from ``adata.obsm[f"{use_rep}_umap"]`` where :func:`scdisentangle.tl.umap` has put it, and
    computed otherwise; a code that was replaced since must be laid out again. A code with too few
    distinct values for a UMAP, as a quantised z_nio has, is drawn as one cloud for each value;
    where the clouds lie means nothing.

    Parameters
    ----------
    adata
        With the codes in ``adata.obsm``.
    color
        Columns of ``adata.obs``. Floating-point columns, and whole numbers of more than 30 values,
        get a colour scale, all others a legend, in the colours of ``adata.uns[f"{color}_colors"]``
        where they are set. Cells without a value are grey.
    use_rep
        Keys of ``adata.obsm``, or a mapping of keys to titles. By default those that exist of the
        unintegrated PCA (``X_pca``), z_bio (``X_disentangle``) and z_nio (``X_disentangle_batch``).
    size
        Area of a point in points squared. By default it falls with the number of cells.
    seed
        Seed of a layout that is computed, and of the order in which cells are drawn.
    ax
        Axes to draw on, for a single code and a single colour.
    show
        Whether to show the figure.
    save
        File to write the figure to.

    Returns
    -------
    Axes of shape `(n_colors, n_codes)`.

    Raises
    ------
    InputError
        If a key is missing, `ax` is given for more than one panel, or there are codes without a
        layout that are not finite, or of fewer than four cells.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated_codes(200, n_types=3)
    >>> axes = sd.pl.latents(adata, ["batch", "celltype"], show=False)
    >>> axes.shape
    (2, 3)
    """
    colors = [color] if isinstance(color, str) else list(color or [])
    titles = _titles(adata, use_rep)
    check_obs(adata, colors)
    check_obsm(adata, titles)
    if not colors or not titles:
        raise InputError("There is nothing to draw: name at least one color and one use_rep.")
    shape = (len(colors), len(titles))
    if ax is not None:
        if shape != (1, 1):
            raise InputError(f"ax= takes one panel, but {shape[0]} x {shape[1]} were asked for.")
        axes = np.array([[ax]])
    else:
        legend = max(_legend_width(adata, key) for key in colors)
        figure_size = (_PANEL * shape[1] + legend, _PANEL * shape[0])
        _, axes = plt.subplots(*shape, figsize=figure_size, squeeze=False, layout="constrained")

    order = np.random.default_rng(seed).permutation(adata.n_obs)
    size = size or float(np.clip(18_000 / adata.n_obs, 1.0, 30.0))
    for column, (key, title) in enumerate(titles.items()):
        layout = adata.obsm.get(f"{key}_umap")
        if layout is None:
            layout = umap_coordinates(finite_codes(adata, key), seed=seed)
        across, up = _axis_names(finite_codes(adata, key))
        for row, name in enumerate(colors):
            panel = axes[row, column]
            _scatter(panel, adata, name, np.asarray(layout), order, size)
            panel.set_title(title if row == 0 else "")
            panel.set_xlabel(across if row == len(colors) - 1 else "")
            panel.set_ylabel(up if column == 0 else "")
    for row, name in enumerate(colors):
        _explain_colors(axes[row], adata, name)
    finish(axes[0, 0].figure, show=show, save=save)
    return axes


def _axis_names(code: np.ndarray) -> tuple[str, str]:
    if has_neighbourhoods(code):
        return "UMAP 1", "UMAP 2"
    return "one cloud for each value", ""


def _titles(
    adata: ad.AnnData, use_rep: Mapping[str, str] | Sequence[str] | str | None
) -> dict[str, str]:
    if isinstance(use_rep, Mapping):
        return dict(use_rep)
    if use_rep is None:
        use_rep = [key for key in _REPRESENTATIONS if key in adata.obsm]
    keys = [use_rep] if isinstance(use_rep, str) else use_rep
    return {key: _REPRESENTATIONS.get(key, key) for key in keys}


def _legend_width(adata: ad.AnnData, key: str) -> float:
    """Inches that a legend takes, by its columns and its longest name."""
    if is_continuous(adata.obs[key]):
        return _LEGEND
    names = list(category_colors(adata, key))
    longest = max(map(len, [key, *names]))
    return -(-len(names) // _LEGEND_ROWS) * max(_LEGEND, 0.5 + 0.085 * longest)


def _scatter(
    ax: Axes, adata: ad.AnnData, key: str, layout: np.ndarray, order: np.ndarray, size: float
) -> None:
    values = adata.obs[key]
    known = values.notna().to_numpy()
    style = {"s": size, "linewidths": 0, "rasterized": True}
    if not known.all():
        ax.scatter(*layout[~known].T, color=MISSING, **style)
    order = order[known[order]]
    if is_continuous(values):
        points = {"c": values.to_numpy()[order], "cmap": "viridis"}
    else:
        palette = category_colors(adata, key)
        points = {"c": [palette[str(value)] for value in values.astype("category").array[order]]}
    ax.scatter(*layout[order].T, **points, **style)
    ax.set(xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(False)


def _explain_colors(row: np.ndarray, adata: ad.AnnData, key: str) -> None:
    """Put the legend or the colour scale of a row to its right."""
    last = row[-1]
    if is_continuous(adata.obs[key]):
        last.figure.colorbar(last.collections[-1], ax=last, label=key, shrink=0.8)
        return
    palette = category_colors(adata, key)
    if adata.obs[key].isna().any():
        palette = {**palette, "no value": MISSING}
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=6, color=color, label=plain(name))
        for name, color in palette.items()
    ]
    last.legend(
        handles=handles,
        title=plain(key),
        alignment="left",
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        ncols=-(-len(handles) // _LEGEND_ROWS),
        frameon=False,
    )
