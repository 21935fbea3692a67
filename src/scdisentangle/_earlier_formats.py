"""What model files of earlier formats mean, said as files of today say it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scvi.model.base._constants import SAVE_KEYS
from torch import Tensor

FILE_FORMAT = 13
"""Raised when the package of yesterday would not give what a file of today means."""
FIRST_WITH_SPHERES = 2
"""File format since which ``z_bio`` is on a sphere unless the model says otherwise."""
FIRST_WITH_NARROW_NIO = 5
"""File format since which the encoder of ``z_nio`` has units of its own number."""
FIRST_WITH_SCALED_SIZE_FACTORS = 8
"""File format since which size factors are scaled to counts."""
FIRST_WITH_BOTH_LOSSES = 11
"""File format since which squared error trains codes too unless the model says otherwise."""
SHORTCUT_ONCE = 0.25
"""Weight of the first components in ``z_bio``, before files named it."""
NAMES_ONCE = {
    "codebook.codes": "flow.codes",
    "prior_nio_mean": "flow.mean",
    "prior_nio_log_scale": "flow.log_scale",
    "nio_means.means": "flow.means",
}
"""What the tensors of a module's ``flow`` were called before format 13."""


def format_of(content: Mapping) -> int:
    """The format that the content of a model file was written in."""
    return content[SAVE_KEYS.ATTR_DICT_KEY].get("file_format_", 1)


def upgraded(content: Mapping) -> dict:
    """The content of a model file as it would be in a file of today.

    Options that were not there, or had another default, are named, and tensors have the names of
    today. What a part of the module that was added later does not do needs no word: see
    :class:`~scdisentangle._added_later.AddedLater`.
    """
    written = format_of(content)
    attributes = {**content[SAVE_KEYS.ATTR_DICT_KEY], "file_format_": FILE_FORMAT}
    weights = _renamed(content[SAVE_KEYS.MODEL_STATE_DICT_KEY])
    init_params = attributes["init_params_"]
    options = dict(init_params["kwargs"]["module_kwargs"])
    if "encoder.components.weight" not in weights:
        options["n_components"] = 0
    if "axes.root" not in weights:
        options["axes"] = False
    if written < FIRST_WITH_SPHERES:
        options["spherical"] = False
    if written < FIRST_WITH_NARROW_NIO:
        options["n_hidden_nio"] = weights["encoder.nio_head.mean.weight"].shape[1]
    if written < FIRST_WITH_SCALED_SIZE_FACTORS:
        options["counts_per_size_factor"] = 1.0
    if written < FIRST_WITH_BOTH_LOSSES:
        options.setdefault("code_loss", "likelihood")
    weights.setdefault("encoder.shortcut", torch.tensor(SHORTCUT_ONCE))
    attributes["init_params_"] = {**init_params, "kwargs": {"module_kwargs": options}}
    if "frozen_" in attributes:
        frozen = attributes["frozen_"]
        attributes["frozen_"] = {**frozen, "known": _renamed(frozen["known"])}
    if len(labelled := attributes.get("labelled_codes_") or ()) == 2:
        z_bio, labels = labelled
        attributes["labelled_codes_"] = (z_bio, labels, np.full(len(labels), ""))  # of no batch
    return {
        **content,
        SAVE_KEYS.ATTR_DICT_KEY: attributes,
        SAVE_KEYS.MODEL_STATE_DICT_KEY: weights,
    }


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {NAMES_ONCE.get(name, name): values for name, values in tensors.items()}
