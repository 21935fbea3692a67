"""Measure a trained model: what the codes predict, and how well batches are integrated."""

from ._integration import integration_scores
from ._leakage import leakage
from ._umap import umap

__all__ = ["integration_scores", "leakage", "umap"]
