"""Cells of data modules and data loaders, and what an AnnData must hold in their place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scvi import REGISTRY_KEYS

from ._errors import InputError, name_some


def is_of_data_module(registry: Mapping) -> bool:
    """Whether a registry is that of a data module, and not of an AnnData."""
    return registry.get("setup_method_name") == "setup_datamodule"


def as_of_anndata(registry: Mapping) -> dict:
    """The registry of a data module, as if its cells had been registered in an AnnData.

    Raises
    ------
    InputError
        If there are covariates or size factors, of which a data module notes too little.
    """
    setup_args, fields = registry["setup_args"], registry["field_registries"]
    further = ("size_factor_key", "categorical_covariate_keys", "continuous_covariate_keys")
    if given := [name for name in further if setup_args.get(name)]:
        raise InputError(
            f"The model was trained from a data module with {name_some(given)}, which an AnnData "
            "cannot be held against. Pass cells as dataloader=, as the data module gives them."
        )
    labels = fields[REGISTRY_KEYS.LABELS_KEY]["state_registry"]
    names = ("layer", "batch_key", "labels_key", *further)
    known = (REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)
    of_cells = {name: fields[name] for name in known}
    if setup_args.get("labels_key") is None:
        none = {"categorical_mapping": np.array([0]), "original_key": "_scvi_labels"}
        of_cells[REGISTRY_KEYS.LABELS_KEY] = {
            **fields[REGISTRY_KEYS.LABELS_KEY],
            "state_registry": none,
        }
    empty = {"data_registry": {}, "state_registry": {}, "summary_stats": {}}
    others = (
        REGISTRY_KEYS.SIZE_FACTOR_KEY,
        REGISTRY_KEYS.CAT_COVS_KEY,
        REGISTRY_KEYS.CONT_COVS_KEY,
    )
    return {
        **registry,
        "setup_method_name": "setup_anndata",
        "setup_args": {
            **{name: setup_args.get(name) for name in names},
            "unlabeled_category": labels.get("unlabeled_category", "Unknown"),
        },
        "field_registries": {**dict.fromkeys(others, empty), **of_cells},
    }


def check_alone(dataloader: object, **others: object) -> None:
    """Raise :class:`InputError` for what would not be looked at beside a data loader."""
    for name, value in others.items():
        if dataloader is not None and value is not None:
            raise InputError(
                f"{name}= is not for cells of a dataloader, all of which are taken as they are. "
                "Put them into an AnnData, and pass that as adata=; a model of a data module is "
                "loaded with it: DisentangleModel.load(folder, adata)."
            )
