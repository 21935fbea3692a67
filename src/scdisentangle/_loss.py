"""The loss of the method: the only place where its terms are weighed and added up."""

from __future__ import annotations

from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from ._likelihoods import reconstruction_loss
from ._sparse_losses import ABOVE_ZERO_KEY
from .objectives import batch_cross_entropy, calibrated, squared_error


class LossMixin:
    """Of a module that has what the terms are computed by."""

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Tensor | Distribution | None],
        generative_outputs: dict[str, Distribution],
        reconstruction_weight: float = 1.0,
        disentanglement_weight: float | None = 1.0,
        kl_weight: float = 1.0,
        classification_weight: float | None = 1.0,
    ) -> LossOutput:
        r"""Weigh the terms of the loss, and add them up.

        .. math::

            L = w_{rec} L_{rec} + w_{cls} \lambda_{cls} L_{cls} + w_{dis} \lambda_{dis} L_{dis}
                + w_{KL} \mathrm{KL}

        with factors :math:`w` that the training plan's schedules set, and that are 1 outside
        training. KL terms exist for variational codes only; a quantised ``z_nio`` adds to
        :math:`L_{cls}` the squared distance to the code of the cell's batch.

        Parameters
        ----------
        tensors
            Minibatch as scvi-tools' data loaders give it.
        inference_outputs, generative_outputs
            What :meth:`inference` and :meth:`generative` returned.
        reconstruction_weight, disentanglement_weight, kl_weight, classification_weight
            Factors :math:`w` on the terms. ``None`` leaves out that of the classification, or that
            of the disentanglement.
        """
        batch = tensors[REGISTRY_KEYS.BATCH_KEY].squeeze(-1)
        codes = self.codes(tensors, inference_outputs)
        reconstruction = reconstruction_loss(
            self.gene_likelihood,
            generative_outputs[MODULE_KEYS.PX_KEY],
            self.likelihood_target(tensors, inference_outputs),
            tensors.get(ABOVE_ZERO_KEY),
        )
        reconstructed = self._reconstruction_terms(
            reconstruction, generative_outputs["normalized"], inference_outputs["normalized"]
        )
        classified, objectives = {}, {}
        if classification_weight is not None:
            classified = self._classification_terms(inference_outputs, batch)
        if disentanglement_weight is not None:
            objectives = self.disentanglement(codes)
        kl_local = {
            f"kl_{code}": kl_divergence(posterior, prior).sum(dim=-1)
            for code, (posterior, prior) in self._variational(inference_outputs, batch).items()
        }
        terms = {
            **reconstructed,
            **classified,
            **objectives,
            **{name: kl.mean() for name, kl in kl_local.items()},
        }
        if self.gene_shifts.shifts.requires_grad:
            terms["gene_shifts"] = self.gene_shifts.ridge()
        weights = self._weights(
            reconstruction_weight, classification_weight, disentanglement_weight, kl_weight
        )
        weighted = {name: weights[name] * term for name, term in terms.items()}
        logged = {**self._zero_terms(reconstruction.new_zeros(())), **weighted}

        if self.training:
            self.flow.follow(inference_outputs["z_nio"], batch)
        metrics = {**classified, **objectives}
        if "squared_error" in terms:
            metrics["squared_error"] = terms["squared_error"]
        metrics |= {f"{name}_weighted": term for name, term in logged.items()}
        if self.training and self.disentanglement.has_estimators:
            metrics["estimator_loss"] = self.disentanglement.estimator_loss(codes)
        return LossOutput(
            loss=sum(weighted.values()),
            reconstruction_loss=reconstruction,
            kl_local=kl_local or None,
            extra_metrics=metrics,
        )

    def _weights(
        self,
        reconstruction: float,
        classification: float | None,
        disentanglement: float | None,
        kl: float,
    ) -> dict[str, float]:
        """What each term weighs, by name, under the factors :math:`w`."""
        cls = self.lambda_cls * (classification or 0.0)
        dis = self.lambda_dis * (disentanglement or 0.0)
        return {
            "reconstruction_loss": reconstruction,
            "squared_error": reconstruction,
            "classification_loss": cls,
            **dict.fromkeys(self.flow.holds, cls),
            **{name: dis * weight for name, weight in self.disentanglement.weights.items()},
            **{name: kl * weight for name, weight in self.kl_weights.items()},
            "gene_shifts": 1.0,
        }

    def _zero_terms(self, zero: Tensor) -> dict[str, Tensor]:
        """The terms that a step may leave out, as it logs them then."""
        return dict.fromkeys(
            ["classification_loss", *self.flow.holds, *self.disentanglement.weights], zero
        )

    def _reconstruction_terms(self, reconstruction: Tensor, decoded: Tensor | None, x: Tensor):
        """The reconstruction's terms, as means over cells.

        Parameters
        ----------
        reconstruction
            That of the likelihood, ``(n_cells,)``.
        decoded
            What the decoder makes of the normalised values, if it does beside the likelihood's.
        x
            These values, ``(n_cells, n_genes)``.
        """
        terms = {"reconstruction_loss": reconstruction.mean()}
        if decoded is not None:
            terms["squared_error"] = calibrated(squared_error(decoded, x), x.shape[-1])
        elif self.code_loss != "likelihood":
            terms["reconstruction_loss"] = calibrated(reconstruction, x.shape[-1])
        return terms

    def _classification_terms(self, inference_outputs: dict, batch: Tensor) -> dict[str, Tensor]:
        """The terms that hold ``z_nio`` to the batch, as means over cells."""
        logits = self.classifier(inference_outputs["z_nio"])
        loss = batch_cross_entropy(logits, batch, balanced=self.class_balanced)
        held = self.flow.terms(inference_outputs["encoded_nio"], batch)
        return {"classification_loss": loss, **held}
