"""Colours of categories, told apart by colour-blind readers as long as there are few."""

from __future__ import annotations

import anndata as ad
import pandas as pd
from scanpy.plotting.palettes import default_20, default_102

# Okabe and Ito, Color Universal Design, 2008; the yellow darkened to be seen on white.
EIGHT = [
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#C7B60A",
    "#000000",
]
# Petroff, Accessible color sequences for data visualization, arXiv:2107.02270.
_TEN = [
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
]
MISSING = "#D3D3D3"
MOST_NUMBERED = 30
"""Whole numbers that are drawn as categories, as those of clusters; more are counts."""


def category_colors(adata: ad.AnnData, key: str) -> dict[str, str]:
    """Colour of each category of ``adata.obs[key]``, as the user set in ``adata.uns`` if so."""
    values = adata.obs[key].astype("category").cat
    used = values.remove_unused_categories().cat.categories
    chosen = list(adata.uns.get(f"{key}_colors", []))
    if len(chosen) >= len(values.categories):
        colors = dict(zip(values.categories, chosen, strict=False))
        return {str(category): colors[category] for category in used}
    palettes = [EIGHT, _TEN, default_20, default_102]
    chosen = next((p for p in palettes if len(p) >= len(used)), default_102)
    return {str(c): chosen[i % len(chosen)] for i, c in enumerate(used)}


def is_continuous(values: pd.Series) -> bool:
    """Whether the values are drawn on a scale and not as categories."""
    counts = pd.api.types.is_integer_dtype(values) and values.nunique() > MOST_NUMBERED
    return counts or pd.api.types.is_float_dtype(values)
