"""Labels of cells, from the labelled cells around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from sklearn.neighbors import KNeighborsClassifier

from ._errors import InputError


class LabelMixin:
    """Label transfer in ``z_bio``."""

    labelled_codes_: tuple[np.ndarray, np.ndarray] | None = None

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        n_neighbors: int = 5,
    ) -> np.ndarray | pd.DataFrame:
        """The label of each cell, by a vote of the nearest labelled cells in ``z_bio``.

        Labelled are those cells of the model's data, and of the reference that it was mapped to,
        whose label is not the ``unlabeled_category`` of ``setup_anndata``.

        Parameters
        ----------
        adata, indices, batch_size
            As for :meth:`get_latent_representation`.
        soft
            Whether to give the share of votes for every label, instead of the label with most.
        n_neighbors
            Number of votes. Many outvote a type of which few cells are labelled.

        Returns
        -------
        Array of ``n_cells`` labels, or a DataFrame ``(n_cells, n_labels)`` if ``soft``.

        Raises
        ------
        InputError
            If no cell is labelled.
        """
        labelled = self._labelled_codes()
        if labelled is None:
            raise InputError(
                "No cell is labelled. Register labels_key= in setup_anndata, with "
                "unlabeled_category= for cells whose label is not known."
            )
        z_bio, labels = labelled
        classifier = KNeighborsClassifier(min(n_neighbors, len(labels))).fit(z_bio, labels)
        codes = self.get_latent_representation(adata, indices, batch_size=batch_size)
        if not soft:
            return classifier.predict(codes)
        cells = self._validate_anndata(adata).obs_names
        return pd.DataFrame(
            classifier.predict_proba(codes),
            index=cells if indices is None else cells[indices],
            columns=classifier.classes_,
        )

    def _labelled_codes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """``z_bio`` and labels of the labelled cells of the reference and of the own data."""
        setup_args = self.registry_["setup_args"]
        parts = [] if self.labelled_codes_ is None else [self.labelled_codes_]
        if self.adata is not None and setup_args["labels_key"] is not None:
            mapping = np.asarray(self._state_of(REGISTRY_KEYS.LABELS_KEY)["categorical_mapping"])
            codes = self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY)
            labels = mapping[np.asarray(codes).ravel()]
            labelled = np.flatnonzero(labels != setup_args["unlabeled_category"])
            if len(labelled):
                parts.append((self.get_latent_representation(indices=labelled), labels[labelled]))
        return tuple(map(np.concatenate, zip(*parts, strict=True))) if parts else None
