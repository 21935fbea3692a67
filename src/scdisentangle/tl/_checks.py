"""What an AnnData must hold before it is measured or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

import anndata as ad
import numpy as np
from mudata import MuData
from scipy import sparse
from scvi.dataloaders import CollectionAdapter

from scdisentangle._errors import InputError, check_count, did_you_mean, name_some
from scdisentangle._model import DisentangleModel
from scdisentangle._validation import check_is_anndata

from ._probes import N_FOLDS
from ._questions import is_of_a_table

_MADE_BY = {
    "X_pca": "scdisentangle.pp.pca(adata) makes it; or name other codes.",
    "X_disentangle": (
        "Put model.get_latent_representation() there, or name the codes that there are in use_rep=."
    ),
    "X_disentangle_batch": (
        "Put model.get_latent_representation(representation='batch') there, or leave it out "
        "(use_rep_batch=None) if there is no such code."
    ),
}
"""Where the codes come from whose keys are defaults."""


def check_is_model(model: object, wanted: str = "a trained DisentangleModel") -> None:
    """Raise :class:`InputError` for what is no model of ours, or holds no cells."""
    if not isinstance(model, DisentangleModel):
        raise InputError(f"Pass {wanted}, not {type(model).__name__}.")
    if model.adata is None or isinstance(model.adata, CollectionAdapter):
        raise InputError(
            "The model was made from a registry or a collection, and has no AnnData: put its codes "
            "into the obsm of one, and pass that."
        )


def check_obs(adata: ad.AnnData, keys: Iterable[str | None]) -> None:
    """Raise :class:`InputError` for the first key that ``adata.obs`` lacks; `None` is no key."""
    _check_holds_codes(adata)
    if isinstance(adata, MuData):
        for key, (name, modality) in product(keys, adata.mod.items()):
            if key in modality.obs and key not in adata.obs:
                raise InputError(
                    f"'{key}' is in the .obs of a modality, and must be in that of the MuData: "
                    f"mdata.obs['{key}'] = mdata['{name}'].obs['{key}']"
                )
    _check(keys, adata.obs, "adata.obs")


def check_groups(adata: ad.AnnData, batch_key: str | None, label_key: str | None) -> None:
    """Raise :class:`InputError` if there is no batch, or a group is named as a row of the table."""
    if batch_key is None:
        raise InputError("What is measured compares batches: name their column in batch_key=.")
    for key in (batch_key, label_key):
        for name in () if key is None else adata.obs[key].dropna().unique():
            if is_of_a_table(str(name)):
                raise InputError(
                    f"adata.obs['{key}'] has a value '{name}', which is the name of a row of the "
                    "table: give it another."
                )


def check_min_cells(min_cells: int) -> None:
    """Raise :class:`InputError` for fewer cells of a class than the folds of the probes need."""
    check_count(min_cells=min_cells)
    if min_cells < N_FOLDS:
        raise InputError(f"min_cells={min_cells} is fewer than the {N_FOLDS} folds need.")


def check_obsm(adata: ad.AnnData, keys: Iterable[str | None]) -> None:
    """Raise :class:`InputError` for the first key that ``adata.obsm`` lacks; `None` is no key."""
    _check_holds_codes(adata)
    _check(keys, adata.obsm, "adata.obsm", _MADE_BY)


def finite_codes(adata: ad.AnnData, key: str) -> np.ndarray:
    """The codes at a key of ``adata.obsm``; :class:`InputError` if one is NaN or infinite."""
    codes = adata.obsm[key]
    codes = codes.toarray() if sparse.issparse(codes) else np.asarray(codes)
    bad = ~np.isfinite(codes).all(axis=1)
    if bad.any():
        raise InputError(
            f"adata.obsm['{key}'] holds NaN or infinite values for {bad.sum()} cells: "
            f"{name_some(adata.obs_names[bad])}. Leave these cells out."
        )
    return codes


def _check_holds_codes(adata: object) -> None:
    if isinstance(adata, DisentangleModel):
        raise InputError(
            "Pass an AnnData with the model's codes in obsm, not the model: adata.obsm"
            "['X_disentangle'] = model.get_latent_representation()"
        )
    check_is_anndata(adata)


def _check(
    keys: Iterable[str | None],
    known: Iterable[str],
    where: str,
    made_by: Mapping[str, str] | None = None,
) -> None:
    known = [str(name) for name in known]
    for key in keys:
        if key is not None and key not in known:
            way_out = (made_by or {}).get(str(key)) or did_you_mean(str(key), known)
            raise InputError(f"'{key}' is not in {where}. {way_out}")
