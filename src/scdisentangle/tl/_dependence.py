"""What can be said of codes without a classifier: their dependence and their dimension."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from scdisentangle.objectives._kernels import gaussian_kernel
from scdisentangle.objectives.hsic import cka, hsic

from ._questions import permutation_p_value


class Dependence(NamedTuple):
    """Dependence of two codes; the p-value is that of HSIC."""

    hsic: float
    cka: float
    p_value: float
    n_cells: int


def dependence(
    x: np.ndarray,
    y: np.ndarray,
    strata: np.ndarray | None = None,
    *,
    n_permutations: int = 200,
    max_cells: int = 1000,
    seed: int = 0,
) -> Dependence:
    """HSIC and CKA of two codes of the same cells, and how often permuted cells give as much.

    Gaussian kernels with the median heuristic; the biased estimates.

    Parameters
    ----------
    x, y
        Codes, shapes `(n_cells, n_dims_x)` and `(n_cells, n_dims_y)`.
    strata
        Cells are permuted within these groups alone, shape `(n_cells,)`: the p-value is then of
        dependence that the groups do not explain.
    n_permutations
        Number of permutations.
    max_cells
        A random draw of so many cells, if there are more: time and memory go with their square.
    seed
        Seed of the draw and of the permutations.

    References
    ----------
    Gretton et al. (2008), A kernel statistical test of independence, NeurIPS.
    """
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.permutation(len(x))[:max_cells])
    kernel_x, kernel_y = (
        gaussian_kernel(torch.as_tensor(np.asarray(code, dtype=np.float32)[cells]))
        for code in (x, y)
    )
    strata = np.zeros(len(cells), dtype=int) if strata is None else np.asarray(strata)[cells]
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    observed = float(hsic(kernel_x, kernel_y))
    null = np.empty(n_permutations)
    order = np.arange(len(cells))
    for i in range(n_permutations):
        for stratum in members:
            order[stratum] = rng.permutation(stratum)
        permuted = torch.as_tensor(order)
        null[i] = float(hsic(kernel_x, kernel_y[permuted][:, permuted]))
    return Dependence(
        observed,
        float(cka(kernel_x, kernel_y)),
        permutation_p_value(observed, null),
        len(cells),
    )


def effective_dimension(code: np.ndarray) -> float:
    r"""Participation ratio of the variances along the principal axes.

    .. math::

        \frac{(\sum_k v_k)^2}{\sum_k v_k^2}

    between 1, all variance along one axis, and the number of dimensions; 0 where nothing varies.

    References
    ----------
    Gao et al. (2017), A theory of multineuronal dimensionality, dynamics and measurement, bioRxiv.
    """
    centred = np.asarray(code, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    covariance = centred.T @ centred
    total = np.trace(covariance)
    return float(total**2 / np.square(covariance).sum()) if total > 0 else 0.0
