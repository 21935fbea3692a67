from __future__ import annotations

from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import norm, ortho_group

from scdisentangle._errors import InputError, check_choice, check_count, check_share

from ._simulated import composition_of_batches

_APART = 6.0
"""Distance of centres that no probe takes for one another, in standard deviations of the noise."""
_MECHANISMS = ("share", "shift", "parity")
_COMPOSITIONS = ("balanced", "unequal", "private", "confounded")


def simulated_codes(
    n_cells: int = 1500,
    n_batches: int = 2,
    n_types: int = 6,
    *,
    leak: float = 0.0,
    mechanism: Literal["share", "shift", "parity"] = "share",
    n_leaking: int | None = None,
    biology_in_nio: float = 0.0,
    lost: float = 0.0,
    n_merged: int = 0,
    composition: Literal["balanced", "unequal", "private", "confounded"] = "balanced",
    seed: int = 0,
) -> ad.AnnData:
    r"""Codes without a model, of which it is known what they give away.

    To check what :func:`scdisentangle.tl.disentanglement_report` says. Every quantity below is on
    one scale: the balanced accuracy :math:`a` that the best possible classifier has, with
    :math:`K` classes, as :math:`(a - 1/K) / (1 - 1/K)`; 0 is a guess and 1 is certainty.

    Parameters
    ----------
    n_cells, n_batches, n_types
        Sizes.
    leak
        What z_bio gives away of the batch within a type, in [0, 1].
    mechanism
        How: ``"share"``, that share of the cells lies in a cloud of their batch and the others in
        that of a batch drawn at random; ``"shift"``, two batches are two Gaussians whose distance
        is :math:`2 \Phi^{-1}((1 + \text{leak}) / 2)`, at most 6; ``"parity"``, of two batches one
        has two coordinates of the same sign and the other of opposite signs, which no linear
        classifier can read.
    n_leaking
        Number of types that leak, all by default.
    biology_in_nio
        What z_nio gives away of the type within a batch, in [0, 1].
    lost
        Share of cells whose z_bio is that of a type drawn at random: 1 minus what z_bio tells of
        the type.
    n_merged
        Number of types, from the first, that share one place in z_bio.
    composition
        ``"balanced"``, types in equal shares; ``"unequal"``, shares of each batch are drawn from a
        Dirichlet distribution; ``"private"``, and the last type is in the last batch only;
        ``"confounded"``, each type is in one batch only.
    seed
        Seed of everything random.

    Returns
    -------
    AnnData without values, with `batch` and `celltype` in ``obs``, and in ``obsm`` ``X_pca`` (which
    tells batch and type), ``X_disentangle`` (z_bio) and ``X_disentangle_batch`` (z_nio).

    Raises
    ------
    InputError
        If an argument is out of its range, or the mechanism is not for as many batches.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated_codes(600, leak=0.5)
    >>> report = sd.tl.disentanglement_report(adata, "batch", "celltype", progress_bar=False)
    >>> 0.3 < report.score < 0.7
    True
    """
    check_choice("mechanism", mechanism, _MECHANISMS)
    check_choice("composition", composition, _COMPOSITIONS)
    check_count(n_cells=n_cells, n_batches=n_batches, n_types=n_types)
    check_share(leak=leak, biology_in_nio=biology_in_nio, lost=lost)
    for name, value in {"n_leaking": n_leaking, "n_merged": n_merged}.items():
        if value is not None and not 0 <= value <= n_types:
            raise InputError(f"{name}={value!r} must be a number of types, from 0 to {n_types}.")
    if composition == "confounded" and n_types < n_batches:
        raise InputError(
            f"composition='confounded' needs a type for each batch: n_types={n_types} is fewer "
            f"than n_batches={n_batches}."
        )
    if mechanism != "share" and n_batches != 2:
        raise InputError(f"mechanism='{mechanism}' is for two batches, got n_batches={n_batches}.")
    if min(n_batches, n_types) < 2:
        raise InputError("simulated_codes needs at least two batches and two types.")

    rng = np.random.default_rng(seed)
    if composition == "confounded":
        shares = (np.arange(n_types) % n_batches == np.arange(n_batches)[:, None]).astype(float)
        shares /= shares.sum(axis=1, keepdims=True)
    else:
        balanced, private_type = composition == "balanced", composition == "private"
        shares = composition_of_batches(rng, n_batches, n_types, balanced, private_type)
    pairs = rng.choice(shares.size, size=n_cells, p=(shares / shares.sum()).ravel())
    batch, celltype = np.divmod(pairs, n_types)
    leaks = np.where(celltype < (n_types if n_leaking is None else n_leaking), leak, 0.0)

    seen = np.where(celltype < n_merged, 0, celltype)
    seen = np.where(rng.uniform(size=n_cells) < lost, rng.integers(n_types, size=n_cells), seen)
    bio = np.hstack([_clouds(seen, n_types), _batch_part(rng, batch, n_batches, leaks, mechanism)])
    told = np.where(
        rng.uniform(size=n_cells) < biology_in_nio, celltype, rng.integers(n_types, size=n_cells)
    )
    nio = _clouds(batch, n_batches)
    if biology_in_nio > 0:
        nio = np.hstack([nio, _clouds(told, n_types)])
    before = np.hstack([_clouds(celltype, n_types), _clouds(batch, n_batches)])
    return ad.AnnData(
        obs=pd.DataFrame(
            {
                "batch": pd.Categorical([f"batch_{b}" for b in batch]),
                "celltype": pd.Categorical([f"type_{t}" for t in celltype]),
            },
            index=[f"cell_{i}" for i in range(n_cells)],
        ),
        obsm={
            key: _noisy_and_turned(rng, centres)
            for key, centres in {
                "X_pca": before,
                "X_disentangle": bio,
                "X_disentangle_batch": nio,
            }.items()
        },
    )


def _clouds(number: np.ndarray, n: int) -> np.ndarray:
    """Centres that are all as far from one another, shape `(n_cells, n)`."""
    return _APART / np.sqrt(2.0) * np.eye(n)[number]


def _batch_part(
    rng: np.random.Generator,
    batch: np.ndarray,
    n_batches: int,
    leaks: np.ndarray,
    mechanism: str,
) -> np.ndarray:
    if mechanism == "shift":
        distance = np.minimum(2.0 * norm.ppf((1.0 + leaks) / 2.0), _APART)
        return (distance * (batch - 0.5))[:, None]
    random = rng.integers(n_batches, size=len(batch))
    shown = np.where(rng.uniform(size=len(batch)) < leaks, batch, random)
    if mechanism == "parity":
        sign = rng.choice([-1.0, 1.0], size=len(batch))
        return _APART / 2.0 * np.column_stack([sign, np.where(shown == 1, sign, -sign)])
    return _clouds(shown, n_batches)


def _noisy_and_turned(rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """Unit noise, and a random rotation, so that no axis has a meaning."""
    noisy = centres + rng.normal(size=centres.shape)
    return (noisy @ ortho_group.rvs(centres.shape[1], random_state=rng)).astype(np.float32)
