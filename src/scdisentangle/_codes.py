"""What the objectives see of a minibatch, and what they may ask the module for."""

from __future__ import annotations

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from .objectives import Codes


class CodesMixin:
    """Hands objectives the codes of a minibatch, and ways to encode and decode its cells anew."""

    def codes(self, tensors: dict[str, Tensor], inference_outputs: dict) -> Codes:
        """What an objective sees of a minibatch.

        Parameters
        ----------
        tensors
            Minibatch as scvi-tools' data loaders give it.
        inference_outputs
            What inference returned for it.
        """
        z_bio, z_nio = inference_outputs["z_bio"], inference_outputs["z_nio"]
        batch_index = tensors[REGISTRY_KEYS.BATCH_KEY]
        covariates = self.covariates(tensors)
        counts = self.fits_counts and self.code_loss == "likelihood"

        def covariates_of(cells: Tensor) -> dict[str, Tensor | None]:
            return {
                key: None if value is None else value[cells] for key, value in covariates.items()
            }

        def encode_bio(x: Tensor, cells: Tensor) -> Tensor:
            noise_level = inference_outputs["noise_level"]
            return self.encode_bio(x, noise_level, batch_index[cells], **covariates_of(cells))[0]

        def decode(z_bio: Tensor, z_nio: Tensor) -> Tensor:
            output = self.decode(z_bio, z_nio, batch_index, **covariates).of_codes
            return output - output.mean(dim=-1, keepdim=True) if counts else output

        def as_partner(cells: Tensor, partners: Tensor) -> Tensor:
            shown = self.decode(
                z_bio[cells],
                self.flow.as_read(z_nio[partners]),
                batch_index[partners],
                **covariates_of(cells),
            ).of_codes
            if counts:
                shown = shown.softmax(dim=-1)
                if self.log_normalize:
                    shown = torch.log1p(shown * self.target_sum)
                else:
                    shown = shown * inference_outputs[MODULE_KEYS.LIBRARY_KEY][cells].exp()
            return self.gene_shifts(shown, batch_index[partners].squeeze(-1))

        return Codes(
            z_bio=z_bio,
            z_nio=z_nio,
            batch=batch_index.squeeze(-1),
            n_batch=self.n_batch,
            labels=self._known_labels(tensors),
            x=inference_outputs["comparable"],
            encode_bio=encode_bio,
            decode=decode,
            as_partner=as_partner,
        )

    def _known_labels(self, tensors: dict[str, Tensor]) -> Tensor | None:
        """Labels, ``(n_cells,)``, -1 for a cell without one; ``None`` if none are registered."""
        if self.n_labels == 1:
            return None
        labels = tensors[REGISTRY_KEYS.LABELS_KEY].squeeze(-1)
        if self.unlabeled_code is None:
            return labels
        return torch.where(labels == self.unlabeled_code, -1, labels)
