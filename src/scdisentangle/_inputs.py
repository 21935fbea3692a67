"""What a module reads of a minibatch: values as its encoders see them, library, covariates."""

from __future__ import annotations

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from ._errors import InputError
from ._likelihoods import COUNT_LIKELIHOODS
from ._sparse_losses import ABOVE_ZERO_KEY


class InputsMixin:
    """From the tensors of scvi-tools' data loaders to the arguments of inference and generative."""

    def normalize(self, x: Tensor, library: Tensor, above_zero: Tensor | None = None) -> Tensor:
        """Values as the encoders see them, without noise, shape ``(n_cells, n_genes)``.

        Parameters
        ----------
        x, library, above_zero
            As for inference.
        """
        if not self.log_normalize:
            return x
        scaled = x * ((-library).exp() * self.target_sum)
        if above_zero is None:
            return scaled.log1p_()
        flat = scaled.view(-1)
        flat.scatter_(0, above_zero, flat.index_select(0, above_zero).log1p_())
        return scaled

    def comparable(self, tensors: dict[str, Tensor]) -> Tensor:
        """Values as the encoder of ``z_bio`` sees them, without noise, ``(n_cells, n_genes)``.

        Parameters
        ----------
        tensors
            Minibatch as scvi-tools' data loaders give it.
        """
        inputs = self._get_inference_input(tensors, full_forward_pass=True)
        normalized = self.normalize(inputs[MODULE_KEYS.X_KEY], inputs[MODULE_KEYS.LIBRARY_KEY])
        return self.gene_shifts(normalized, tensors[REGISTRY_KEYS.BATCH_KEY].squeeze(-1))

    @property
    def fits_counts(self) -> bool:
        """Whether the likelihood is of counts, not of normalised values."""
        return self.gene_likelihood in COUNT_LIKELIHOODS

    def likelihood_target(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]
    ) -> Tensor:
        """The values that the likelihood is of, ``(n_cells, n_genes)``."""
        return tensors[REGISTRY_KEYS.X_KEY] if self.fits_counts else inference_outputs["normalized"]

    def covariates(self, tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """Further covariates of a minibatch, ``(n_cells, n_covariates)`` each, or ``None``."""
        return {
            MODULE_KEYS.CONT_COVS_KEY: tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            MODULE_KEYS.CAT_COVS_KEY: tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
        }

    def library_of_size_factors(self, tensors: dict[str, Tensor]) -> Tensor:
        """Logarithm of the library size that the size factor stands for, ``(n_cells, 1)``."""
        return (tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY] * self.counts_per_size_factor).log()

    def _get_inference_input(self, tensors: dict[str, Tensor], full_forward_pass: bool = False):
        if REGISTRY_KEYS.LATENT_QZM_KEY in tensors and not full_forward_pass:
            return self._get_cached_input(tensors)
        x = tensors[REGISTRY_KEYS.X_KEY]
        if self.use_size_factor_key:
            library = self.library_of_size_factors(tensors)
        else:
            library = x.sum(dim=1, keepdim=True).clamp(min=1e-8).log()
        return {
            MODULE_KEYS.X_KEY: x,
            MODULE_KEYS.LIBRARY_KEY: library,
            MODULE_KEYS.BATCH_INDEX_KEY: tensors[REGISTRY_KEYS.BATCH_KEY],
            **self.covariates(tensors),
            "above_zero": tensors.get(ABOVE_ZERO_KEY),
        }

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]
    ):
        labels = tensors.get(REGISTRY_KEYS.LABELS_KEY)
        if self.dispersion == "gene-label" and not self.training and labels.max() >= self.n_labels:
            raise InputError(
                "Some cells have a label that training did not have, and with "
                "dispersion='gene-label' no dispersion of genes is known for it. "
                "get_latent_representation works for these cells."
            )
        return {
            "z_bio": inference_outputs["z_bio"],
            "z_nio": inference_outputs["z_nio"],
            MODULE_KEYS.LIBRARY_KEY: inference_outputs[MODULE_KEYS.LIBRARY_KEY],
            MODULE_KEYS.BATCH_INDEX_KEY: tensors[REGISTRY_KEYS.BATCH_KEY],
            MODULE_KEYS.Y_KEY: labels,
            **self.covariates(tensors),
        }

    @staticmethod
    def _split(cat_covs: Tensor | None) -> tuple[Tensor, ...]:
        return () if cat_covs is None else torch.split(cat_covs, 1, dim=1)
