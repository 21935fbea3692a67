"""What a code predicts: cross-validated classifiers on arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
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
    classes, codes = np.unique(target, return_inverse=True)
    return np.bincount(codes, minlength=len(classes))[codes] >= min_cells


def probe(
    code: np.ndarray, target: np.ndarray, *, seed: int = 0, max_cells: int | None = None
) -> Probe:
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
        Read at most this many cells divided by the number of classes from each class, drawn at
        random, if there are more cells.
    """
    classes, y = np.unique(target, return_inverse=True)
    if max_cells is not None and len(y) > max_cells:
        drawn = _draw(y, max_cells // len(classes), np.random.default_rng(seed))
        code, y = code[drawn], y[drawn]
    frequency = np.bincount(y) / len(y)
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    n_neighbors = min(N_NEIGHBORS, len(y) - -(-len(y) // N_FOLDS))
    logistic = LogisticRegression(class_weight="balanced", max_iter=1000)
    neighbors = KNeighborsClassifier(n_neighbors)

    def held_out(classifier, weights) -> float:
        pipeline = make_pipeline(StandardScaler(), classifier)
        probabilities = cross_val_predict(pipeline, code, y, cv=folds, method="predict_proba")
        return float(balanced_accuracy_score(y, np.argmax(probabilities * weights, axis=1)))

    return Probe(
        logistic=held_out(logistic, 1.0),
        neighbors=held_out(neighbors, 1.0 / frequency),
        n_cells=len(y),
        n_classes=len(classes),
    )


def _draw(y: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of at most `per_class` cells of each class."""
    shuffled = rng.permutation(len(y))
    return np.concatenate([shuffled[y[shuffled] == c][:per_class] for c in np.unique(y)])
