"""What the objectives see of a minibatch, and what they may ask the module for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor

from ._likelihoods import COUNT_LIKELIHOODS
from .objectives import Codes

if TYPE_CHECKING:
    from ._module import DisentangleModule


def codes_of(
    module: DisentangleModule, tensors: dict[str, Tensor], inference_outputs: dict
) -> Codes:
    """The codes of a minibatch, with ways to encode its cells again and to decode them elsewhere.

    Parameters
    ----------
    module
        The module that encoded the minibatch.
    tensors
        The minibatch, as scvi-tools' data loaders give it.
    inference_outputs
        What the module's inference returned.
    """
    z_bio, z_nio = inference_outputs["z_bio"], inference_outputs["z_nio"]
    batch_index = tensors[REGISTRY_KEYS.BATCH_KEY]
    covariates = module.covariates(tensors)
    counts = module.gene_likelihood in COUNT_LIKELIHOODS

    def covariates_of(cells: Tensor) -> dict[str, Tensor | None]:
        return {key: None if value is None else value[cells] for key, value in covariates.items()}

    def encode_bio(x: Tensor, cells: Tensor) -> Tensor:
        noise_level = inference_outputs["noise_level"]
        return module.encode_bio(x, noise_level, batch_index[cells], **covariates_of(cells))[0]

    def decode(z_bio: Tensor, z_nio: Tensor) -> Tensor:
        output, *_ = module.decode(z_bio, z_nio, batch_index, **covariates)
        return output - output.mean(dim=-1, keepdim=True) if counts else output

    def as_partner(cells: Tensor, partners: Tensor) -> Tensor:
        shown, *_ = module.decode(
            z_bio[cells],
            module.as_read(z_nio[partners]),
            batch_index[partners],
            **covariates_of(cells),
        )
        if counts:
            shown = shown.softmax(dim=-1)
            shown = torch.log1p(shown * module.target_sum) if module.log_normalize else shown
        return module.gene_shifts(shown, batch_index[partners].squeeze(-1))

    return Codes(
        z_bio=z_bio,
        z_nio=z_nio,
        batch=batch_index.squeeze(-1),
        n_batch=module.n_batch,
        labels=_known_labels(module, tensors),
        x=inference_outputs["comparable"],
        encode_bio=encode_bio,
        decode=decode,
        as_partner=as_partner,
    )


def _known_labels(module: DisentangleModule, tensors: dict[str, Tensor]) -> Tensor | None:
    """Label of each cell, -1 where it has none, ``(n_cells,)``; ``None`` if none is registered."""
    if module.n_labels == 1:
        return None
    labels = tensors[REGISTRY_KEYS.LABELS_KEY].squeeze(-1)
    if module.unlabeled_code is None:
        return labels
    return torch.where(labels == module.unlabeled_code, -1, labels)
