"""Preprocessing that leaves the registered values as they are."""

from ._genes import select_genes
from ._pca import pca

__all__ = ["pca", "select_genes"]
