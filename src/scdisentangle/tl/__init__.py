"""Measure a trained model: what the codes predict, and how well batches are integrated."""

from ._batch_effect import batch_effect
from ._disentanglement import disentanglement_report
from ._integration import integration_scores
from ._leakage import leakage
from ._report import DisentanglementReport
from ._umap import umap

__all__ = [
    "DisentanglementReport",
    "batch_effect",
    "disentanglement_report",
    "integration_scores",
    "leakage",
    "umap",
]
