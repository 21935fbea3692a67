"""Labels of cells, from the labelled cells around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from sklearn.neighbors import KNeighborsClassifier
from tqdm.auto import trange

from ._errors import InputError, check_count
from ._validation import positions

OTHER_BATCH = 0.15
"""What another batch adds to a squared distance, as a share of the mean one between any cells."""
CELLS_AT_ONCE = 10_000
"""Cells that votes are counted for between two steps of the progress bar."""


class LabelMixin:
    """Label transfer in ``z_bio``."""

    labelled_codes_: tuple[np.ndarray, ...] | None = None

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        n_neighbors: int = 5,
        progress_bar: bool = True,
    ) -> np.ndarray | pd.DataFrame:
        """The label of each cell, by a vote of the nearest labelled cells in ``z_bio``.

        Those of the cell's own batch count as nearer than those of others: batches are often
        annotated one by one, and then a label names other cells in each, which ``z_bio`` cannot
        know. A type that is labelled in other batches only is still found there.

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
        progress_bar
            Whether to show progress where there are more than 10,000 cells. Each is compared with
            every labelled one.

        Returns
        -------
        Array of ``n_cells`` labels, or a DataFrame ``(n_cells, n_labels)`` if ``soft``.

        Raises
        ------
        InputError
            If no cell is labelled.
        """
        check_count(n_neighbors=n_neighbors)
        labelled = self._labelled_codes()
        if labelled is None:
            raise InputError(
                "No cell is labelled. Register labels_key= in setup_anndata, with "
                "unlabeled_category= for cells whose label is not known, and load a saved model "
                "with the data that have labels."
            )
        z_bio, labels, batch = labelled
        batches = np.unique(batch)
        apart = np.sqrt(OTHER_BATCH * z_bio.var(axis=0).sum())

        def placed(z_bio: np.ndarray, batch: np.ndarray) -> np.ndarray:
            return np.concatenate([z_bio, apart * (batch[:, None] == batches)], axis=1)

        classifier = KNeighborsClassifier(min(n_neighbors, len(labels)))
        names, of_labelled = np.unique(labels, return_inverse=True)
        classifier.fit(placed(z_bio, batch), of_labelled)
        adata = self._validate_anndata(adata)
        minibatches = self._make_data_loader(adata, indices, batch_size)
        codes = placed(
            self.get_latent_representation(dataloader=minibatches),
            self._names(REGISTRY_KEYS.BATCH_KEY, adata, indices).astype(str),
        )
        vote = classifier.predict_proba if soft else classifier.predict
        parts = trange(
            0,
            len(codes),
            CELLS_AT_ONCE,
            desc="Labelling",
            disable=not progress_bar or len(codes) <= CELLS_AT_ONCE,
        )
        voted = np.concatenate([vote(codes[first : first + CELLS_AT_ONCE]) for first in parts])
        if not soft:
            return names[voted]
        cells = adata.obs_names[positions(indices, adata.n_obs)]
        return pd.DataFrame(voted, index=cells, columns=names)

    def _labelled_codes(self) -> tuple[np.ndarray, ...] | None:
        """``z_bio``, label and batch of the labelled cells of the reference and of the own data."""
        setup_args = self.registry_["setup_args"]
        parts = [] if self.labelled_codes_ is None else [self.labelled_codes_]
        has_own = self.adata is not None and not self._adopted
        if has_own and setup_args["labels_key"] is not None:
            labels = self._names(REGISTRY_KEYS.LABELS_KEY, self.adata)
            cells = np.flatnonzero(labels != setup_args["unlabeled_category"])
            if len(cells):
                batch = self._names(REGISTRY_KEYS.BATCH_KEY, self.adata, cells).astype(str)
                z_bio = self.get_latent_representation(indices=cells)
                parts.append((z_bio, labels[cells], batch))
        return tuple(map(np.concatenate, zip(*parts, strict=True))) if parts else None

    def _names(self, key: str, adata: AnnData, indices: Sequence[int] | None = None) -> np.ndarray:
        """The category of each cell in a registered field of checked data, by name."""
        names = np.asarray(self._state_of(key)["categorical_mapping"])
        return names[self._categories(key, adata, indices)]
