from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdisentangle._errors import InputError, check_count, check_not_negative, check_positive

_DISPERSION = 2.0
_COMPOSITION_CONCENTRATION = 3.0
_CAPTURE_SD = 0.3
_DEPTH_SD = 0.6


def simulated(
    n_cells: int = 2000,
    n_genes: int = 1000,
    n_batches: int = 3,
    n_types: int = 6,
    *,
    strength: float = 0.5,
    counts_per_cell: float = 2000.0,
    n_markers: int | None = None,
    marker_log_fold_change: float = 1.0,
    balanced: bool = False,
    private_type: bool = False,
    seed: int = 0,
) -> ad.AnnData:
    r"""Multi-batch negative-binomial counts with known biology and known batch effects.

    The count of gene :math:`g` in cell :math:`i` of batch :math:`b` and type :math:`t` is

    .. math::
        x_{ig} \sim \mathrm{NB}(\text{mean}=\mu_{ig}, \text{variance}=\mu_{ig}+\mu_{ig}^2/\theta_g),
        \qquad
        \mu_{ig} = \ell\, d_b\, c_i\,
        \frac{\rho_{ig}\, e^{\beta_{gb}}}{\sum_h \rho_{ih}\, e^{\beta_{hb}}},
        \qquad
        \rho_{ig} \propto e^{\alpha_g + \gamma_{gt} + s_i \delta_g},

    with the base expression :math:`\alpha`, the log fold changes :math:`\gamma` of a type's
    markers, a gradient :math:`s_i \in [0, 1]` along which the cells of the first type lie (it is 0
    for all others), and the technical parts: the effects of the batch on each gene :math:`\beta`
    and on the depth :math:`d_b`, and the capture efficiency of the cell :math:`c_i`, whose mean
    is 1. :math:`\ell` is `counts_per_cell`.

    Parameters
    ----------
    n_cells
        Number of cells, spread evenly over the batches.
    n_genes
        Number of genes.
    n_batches
        Number of batches.
    n_types
        Number of cell types.
    strength
        Standard deviation of :math:`\beta_{gb}`, in natural-log units. It also scales the spread of
        the depths :math:`d_b`: at 0 the batches differ in nothing but their composition.
    counts_per_cell
        Expected total count of a cell, where depth and capture efficiency are 1.
    n_markers
        Number of marker genes per type, disjoint between types, and of genes that change along the
        gradient. By default 5 % of the genes, and at least one.
    marker_log_fold_change
        Mean of the natural-log fold change of a marker gene in its type.
    balanced
        Whether all batches hold their types in equal shares. If not, each batch draws its shares
        from a Dirichlet distribution.
    private_type
        Whether the last type lives in the last batch only.
    seed
        Seed of everything random.

    Returns
    -------
    AnnData of shape `(n_cells, n_genes)` with float32 CSR counts in `X` and `layers["counts"]`, and

    - `obs`: `batch`, `celltype`, `capture` (:math:`c_i`) and `gradient` (:math:`s_i`)
    - `layers["truth"]`: :math:`\rho_{ig}`, the batch-free expression, each cell summing to 1
    - `layers["expected"]`: :math:`\mu_{ig}`, the expected counts
    - `var`: `marker_of` (name of the type or an empty string), `base_log_expression`
      (:math:`\alpha_g`), `gradient_log_fold_change` (:math:`\delta_g`), `dispersion`
      (:math:`\theta_g`)
    - `varm["log_fold_change"]`: :math:`\gamma_{gt}`, genes by types
    - `varm["batch_effect"]`: :math:`\beta_{gb}`, genes by batches
    - `uns["simulation"]`: the arguments, `composition` (batches by types, the shares asked for) and
      `depth` (:math:`d_b`)

    Raises
    ------
    InputError
        If an argument is out of its range, or the genes are too few for the markers.

    Examples
    --------
    >>> import scdisentangle
    >>> adata = scdisentangle.data.simulated(n_cells=500, n_genes=200, private_type=True)
    """
    check_count(n_cells=n_cells, n_genes=n_genes, n_batches=n_batches, n_types=n_types)
    if n_markers is None:
        n_markers = max(1, n_genes // 20)
    check_count(n_markers=n_markers)
    check_positive(counts_per_cell=counts_per_cell)
    check_not_negative(strength=strength, marker_log_fold_change=marker_log_fold_change)
    if n_cells < n_batches:
        raise InputError(
            f"n_cells={n_cells} is fewer than one cell for each of {n_batches} batches."
        )
    if (n_types + 1) * n_markers > n_genes:
        raise InputError(
            f"{n_types} types and the gradient need {n_markers} genes each, "
            f"{(n_types + 1) * n_markers} in all, but n_genes={n_genes}. "
            "Lower n_markers or n_types, or raise n_genes."
        )
    if private_type and (n_batches < 2 or n_types < 2):
        raise InputError("private_type=True needs at least two batches and two types.")

    rng = np.random.default_rng(seed)
    batches = [f"batch_{b}" for b in range(n_batches)]
    types = [f"type_{t}" for t in range(n_types)]
    genes = [f"gene_{g}" for g in range(n_genes)]

    base = rng.normal(0.0, 1.2, n_genes)
    marker_of, fold_change, gradient_change = _markers(
        rng, n_genes, n_types, n_markers, marker_log_fold_change
    )
    effect = strength * rng.normal(size=(n_genes, n_batches))
    depth = np.exp(strength * _DEPTH_SD * rng.normal(size=n_batches))
    dispersion = rng.gamma(10.0, _DISPERSION / 10.0, n_genes)

    composition = composition_of_batches(rng, n_batches, n_types, balanced, private_type)
    batch, celltype = _assign(rng, n_cells, composition)
    gradient = np.where(celltype == 0, rng.uniform(size=n_cells), 0.0)
    capture = rng.lognormal(-(_CAPTURE_SD**2) / 2, _CAPTURE_SD, n_cells)

    log_expression = base + fold_change.T[celltype] + gradient[:, None] * gradient_change
    truth = _proportions(log_expression)
    library = counts_per_cell * depth[batch] * capture
    expected = library[:, None] * _proportions(log_expression + effect.T[batch])
    rates = rng.gamma(dispersion, expected / dispersion)
    counts = sp.csr_matrix(rng.poisson(rates).astype(np.float32))

    return ad.AnnData(
        X=counts,
        obs=pd.DataFrame(
            {
                "batch": pd.Categorical.from_codes(batch, batches),
                "celltype": pd.Categorical.from_codes(celltype, types),
                "capture": capture,
                "gradient": gradient,
            },
            index=[f"cell_{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(
            {
                "marker_of": [types[t] if t >= 0 else "" for t in marker_of],
                "base_log_expression": base,
                "gradient_log_fold_change": gradient_change,
                "dispersion": dispersion,
            },
            index=genes,
        ),
        layers={
            "counts": counts.copy(),
            "truth": truth.astype(np.float32),
            "expected": expected.astype(np.float32),
        },
        varm={
            "log_fold_change": pd.DataFrame(fold_change, index=genes, columns=types),
            "batch_effect": pd.DataFrame(effect, index=genes, columns=batches),
        },
        uns={
            "simulation": {
                "n_cells": n_cells,
                "n_genes": n_genes,
                "n_batches": n_batches,
                "n_types": n_types,
                "strength": strength,
                "counts_per_cell": counts_per_cell,
                "n_markers": n_markers,
                "marker_log_fold_change": marker_log_fold_change,
                "balanced": balanced,
                "private_type": private_type,
                "seed": seed,
                "composition": pd.DataFrame(composition, index=batches, columns=types),
                "depth": pd.DataFrame({"depth": depth}, index=batches),
            }
        },
    )


def _markers(
    rng: np.random.Generator, n_genes: int, n_types: int, n_markers: int, log_fold_change: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disjoint genes for each type (the type's code, or -1) and for the gradient."""
    chosen = rng.permutation(n_genes)[: (n_types + 1) * n_markers].reshape(n_types + 1, n_markers)
    changes = log_fold_change * rng.uniform(0.5, 1.5, chosen.shape)
    marker_of = np.full(n_genes, -1)
    fold_change = np.zeros((n_genes, n_types))
    for t in range(n_types):
        marker_of[chosen[t]] = t
        fold_change[chosen[t], t] = changes[t]
    gradient_change = np.zeros(n_genes)
    gradient_change[chosen[-1]] = changes[-1]
    return marker_of, fold_change, gradient_change


def composition_of_batches(
    rng: np.random.Generator, n_batches: int, n_types: int, balanced: bool, private_type: bool
) -> np.ndarray:
    """Shares of the types in each batch; rows sum to 1."""
    if balanced:
        shares = np.ones((n_batches, n_types))
    else:
        shares = rng.dirichlet(np.full(n_types, _COMPOSITION_CONCENTRATION), n_batches)
    if private_type:
        shares[:-1, -1] = 0.0
    return shares / shares.sum(axis=1, keepdims=True)


def _assign(
    rng: np.random.Generator, n_cells: int, composition: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the batch and of the type of each cell, in random order, shares kept to one cell."""
    n_batches, n_types = composition.shape
    batch = np.sort(np.arange(n_cells) % n_batches)
    celltype = np.concatenate(
        [
            np.repeat(np.arange(n_types), _whole_parts(size, shares))
            for size, shares in zip(np.bincount(batch), composition, strict=True)
        ]
    )
    order = rng.permutation(n_cells)
    return batch[order], celltype[order]


def _whole_parts(total: int, shares: np.ndarray) -> np.ndarray:
    """Integers that sum to the total and are each within one of their share (largest remainder)."""
    parts = np.floor(total * shares).astype(int)
    remainder = total * shares - parts
    parts[np.argsort(-remainder, kind="stable")[: total - parts.sum()]] += 1
    return parts


def _proportions(log_expression: np.ndarray) -> np.ndarray:
    expression = np.exp(log_expression)
    return expression / expression.sum(axis=1, keepdims=True)
