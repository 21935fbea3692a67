"""What a code predicts: cross-validated classifiers on arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

N_FOLDS = 5
N_NEIGHBORS = 15


class Probe(NamedTuple):
    """Balanced accuracy of held-out predictions, by each classifier."""

    logistic: float
    neighbors: float
    n_cells: int
    n_classes: int

    @property
    def stronger(self) -> str:
        """Name of the classifier that predicts better."""
        return "logistic" if self.logistic >= self.neighbors else "neighbors"

    @property
    def balanced_accuracy(self) -> float:
        """Balanced accuracy of the stronger classifier."""
        return max(self.logistic, self.neighbors)

    @property
    def chance(self) -> float:
        """Balanced accuracy of a guess."""
        return 1.0 / self.n_classes


def large_enough(target: np.ndarray, min_cells: int) -> np.ndarray:
    """Mask of the cells whose class has at least `min_cells` cells, shape `(n_cells,)`."""
    _, of_cell, n = np.unique(target, return_inverse=True, return_counts=True)
    return n[of_cell] >= min_cells


class HeldOut(NamedTuple):
    """What the classifiers said of cells that they were not trained on.

    All are of shape `(n_cells,)` but `classes`, `(n_classes,)`: the name of each class, then the
    true class, the fold in which the cell was held out, and the class that each probe named.
    """

    classes: np.ndarray
    truth: np.ndarray
    fold: np.ndarray
    logistic: np.ndarray
    neighbors: np.ndarray

    def score(self) -> Probe:
        """Balanced accuracy of each probe."""
        return Probe(
            logistic=float(balanced_accuracy_score(self.truth, self.logistic)),
            neighbors=float(balanced_accuracy_score(self.truth, self.neighbors)),
            n_cells=len(self.truth),
            n_classes=len(self.classes),
        )

    def confusion(self) -> pd.DataFrame:
        """Number of cells of each true class (rows) by the class that the stronger probe named."""
        named = getattr(self, self.score().stronger)
        counts = confusion_matrix(self.truth, named, labels=range(len(self.classes)))
        return pd.DataFrame(counts, index=self.classes, columns=self.classes)

    def null(self, n_permutations: int, seed: int | np.random.Generator = 0) -> np.ndarray:
        """Balanced accuracy of the stronger probe where the code says nothing about the class.

        The true classes are permuted within each fold: given the folds that a probe was trained on,
        the cells held out are exchangeable if their code does not depend on their class. Being the
        better of two probes is part of the null. Shape `(n_permutations,)`.

        References
        ----------
        Ojala and Garriga (2010), Permutation tests for studying classifier performance, JMLR 11.
        """
        rng = np.random.default_rng(seed)
        permuted = np.empty((n_permutations, len(self.truth)), dtype=self.truth.dtype)
        for fold in np.unique(self.fold):
            cells = np.flatnonzero(self.fold == fold)
            permuted[:, cells] = rng.permuted(
                np.tile(self.truth[cells], (n_permutations, 1)), axis=1
            )
        weight = 1.0 / (np.bincount(self.truth) * len(self.classes))
        weights = weight[permuted]
        return np.maximum(
            ((permuted == self.logistic) * weights).sum(axis=1),
            ((permuted == self.neighbors) * weights).sum(axis=1),
        )


def predict_held_out(
    code: np.ndarray, target: np.ndarray, *, seed: int = 0, max_cells: int | None = None
) -> HeldOut:
    """Predict `target` from `code` in cells that the classifiers have not seen.

    The code is standardised. A logistic regression weights the classes by the inverse of their
    frequency; so are the votes of the 15 nearest neighbours, because balanced accuracy is what is
    reported. Five stratified folds, predictions pooled.

    Parameters
    ----------
    code
        Shape `(n_cells, n_dims)`.
    target
        Shape `(n_cells,)`; at least two classes, each with at least five cells.
    seed
        Seed of the folds and of the draw of `max_cells`.
    max_cells
        Read at most this many cells divided by the number of classes from each class, but five,
        drawn at random, if there are more cells.
    """
    classes, y = np.unique(target, return_inverse=True)
    if max_cells is not None and len(y) > max_cells:
        drawn = _draw(y, max(max_cells // len(classes), N_FOLDS), np.random.default_rng(seed))
        code, y = code[drawn], y[drawn]
    frequency = np.bincount(y) / len(y)
    folds = list(StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(code, y))
    fold_of_cell = np.empty(len(y), dtype=int)
    for number, (_, held_out) in enumerate(folds):
        fold_of_cell[held_out] = number
    n_neighbors = min(N_NEIGHBORS, len(y) - -(-len(y) // N_FOLDS))
    logistic = LogisticRegression(class_weight="balanced", max_iter=1000)
    neighbors = KNeighborsClassifier(n_neighbors)

    def named(classifier, weights) -> np.ndarray:
        pipeline = make_pipeline(StandardScaler(), classifier)
        probabilities = cross_val_predict(pipeline, code, y, cv=folds, method="predict_proba")
        return np.argmax(probabilities * weights, axis=1)

    return HeldOut(
        classes=classes,
        truth=y,
        fold=fold_of_cell,
        logistic=named(logistic, 1.0),
        neighbors=named(neighbors, 1.0 / frequency),
    )


def _draw(y: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of at most `per_class` cells of each class."""
    shuffled = rng.permutation(len(y))
    return np.concatenate([shuffled[y[shuffled] == c][:per_class] for c in np.unique(y)])
