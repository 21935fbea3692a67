"""Keys that must be in an AnnData before it is measured or drawn."""

from __future__ import annotations

from collections.abc import Iterable

import anndata as ad

from scdisentangle._errors import InputError, did_you_mean


def check_obs(adata: ad.AnnData, keys: Iterable[str | None]) -> None:
    """Raise :class:`InputError` for the first key that ``adata.obs`` lacks; `None` is no key."""
    _check(keys, adata.obs, "adata.obs")


def check_obsm(adata: ad.AnnData, keys: Iterable[str | None]) -> None:
    """Raise :class:`InputError` for the first key that ``adata.obsm`` lacks; `None` is no key."""
    _check(keys, adata.obsm, "adata.obsm")


def _check(keys: Iterable[str | None], known: Iterable[str], where: str) -> None:
    known = [str(name) for name in known]
    for key in keys:
        if key is not None and key not in known:
            raise InputError(f"'{key}' is not in {where}. {did_you_mean(str(key), known)}")
