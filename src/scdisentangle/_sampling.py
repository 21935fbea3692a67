"""What a module gives beside its loss: draws of codes and values, and the marginal likelihood."""

from __future__ import annotations

import math

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor
from torch.distributions import Normal

NIO_QZM_KEY, NIO_QZV_KEY = "latent_nio_qzm", "latent_nio_qzv"


class SamplingMixin:
    """Posterior draws, from data or from stored codes, under the names of scvi-tools' mixins."""

    def _draw(self, mean: Tensor, posterior: Normal | None, n_samples: int | None) -> Tensor:
        several = n_samples is not None and n_samples > 1
        if posterior is None or (n_samples is None and not self.training):
            return mean.expand(n_samples, *mean.shape) if several else mean
        return posterior.rsample((n_samples,) if several else ())

    @staticmethod
    def _inferred(
        z_bio: Tensor,
        z_nio: Tensor,
        q_bio: Normal | None,
        q_nio: Normal | None,
        library: Tensor,
        n_samples: int | None,
    ) -> dict[str, Tensor | Normal | None]:
        if n_samples is not None and n_samples > 1:
            library = library.expand(n_samples, *library.shape)
        return {
            "z_bio": z_bio,
            "z_nio": z_nio,
            "q_bio": q_bio,
            "q_nio": q_nio,
            MODULE_KEYS.LIBRARY_KEY: library,
            MODULE_KEYS.Z_KEY: z_bio,
            MODULE_KEYS.QZ_KEY: q_bio,
            MODULE_KEYS.QL_KEY: None,
        }

    def _get_cached_input(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.use_size_factor_key:
            library = self.library_of_size_factors(tensors)
        else:
            library = tensors[REGISTRY_KEYS.OBSERVED_LIB_SIZE].log()
        return {
            MODULE_KEYS.QZM_KEY: tensors[REGISTRY_KEYS.LATENT_QZM_KEY],
            MODULE_KEYS.QZV_KEY: tensors[REGISTRY_KEYS.LATENT_QZV_KEY],
            "nio_qzm": tensors[NIO_QZM_KEY],
            "nio_qzv": tensors[NIO_QZV_KEY],
            MODULE_KEYS.LIBRARY_KEY: library,
        }

    @auto_move_data
    def _cached_inference(
        self,
        qzm: Tensor,
        qzv: Tensor,
        nio_qzm: Tensor,
        nio_qzv: Tensor,
        library: Tensor,
        n_samples: int | None = None,
    ) -> dict[str, Tensor | Normal | None]:
        """As :meth:`inference`, from stored means and variances of the codes."""
        posteriors = [
            None
            if head.log_variance is None
            else Normal(mean, variance.sqrt(), validate_args=False)
            for head, mean, variance in (
                (self.encoder.bio_head, qzm, qzv),
                (self.encoder.nio_head, nio_qzm, nio_qzv),
            )
        ]
        codes = [
            self._draw(mean, posterior, n_samples)
            for mean, posterior in zip((qzm, nio_qzm), posteriors, strict=True)
        ]
        return self._inferred(*codes, *posteriors, library, n_samples)

    def _variational(self, inference_outputs: dict, batch: Tensor):
        """Posterior and prior of each variational code."""
        pairs = {}
        if (q_bio := inference_outputs["q_bio"]) is not None:
            mean, scale = torch.zeros_like(q_bio.loc), torch.ones_like(q_bio.scale)
            pairs["bio"] = q_bio, Normal(mean, scale, validate_args=False)
        if (q_nio := inference_outputs["q_nio"]) is not None:
            pairs["nio"] = q_nio, self.flow.prior(batch)
        return pairs

    @torch.inference_mode()
    def sample(
        self,
        tensors: dict[str, Tensor],
        n_samples: int = 1,
        generative_kwargs: dict | None = None,
    ) -> Tensor:
        """Draws of each gene's value in each cell.

        Parameters
        ----------
        tensors
            Minibatch as scvi-tools' data loaders give it.
        n_samples
            Draws for each cell.
        generative_kwargs
            Keyword arguments for :meth:`generative`.

        Returns
        -------
        Shape ``(n_cells, n_genes)``, or ``(n_cells, n_genes, n_samples)`` for several.
        """
        _, generative_outputs = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        drawn = generative_outputs[MODULE_KEYS.PX_KEY].sample()
        return (drawn.permute(1, 2, 0) if n_samples > 1 else drawn).cpu()

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 1,
    ) -> Tensor | float:
        r"""Marginal log-likelihood by importance sampling from the posterior.

        .. math::

            \log \frac{1}{S} \sum_s \frac{p(x \mid z_s)\, p(z_s)}{q(z_s \mid x)}

        over the variational codes; a quantised ``z_nio`` is given.

        Parameters
        ----------
        tensors
            Minibatch as scvi-tools' data loaders give it.
        n_mc_samples
            Number of draws :math:`S`.
        return_mean
            Whether to return the mean over cells.
        n_mc_samples_per_pass
            Draws that are in memory at once.
        """
        batch = tensors[REGISTRY_KEYS.BATCH_KEY].squeeze(-1)
        log_weights = []
        for start in range(0, n_mc_samples, n_mc_samples_per_pass):
            n_samples = min(n_mc_samples_per_pass, n_mc_samples - start)
            inferred, generated = self.forward(
                tensors,
                inference_kwargs={"n_samples": n_samples},
                get_inference_input_kwargs={"full_forward_pass": True},
                compute_loss=False,
            )
            target = self.likelihood_target(tensors, inferred)
            log_weight = generated[MODULE_KEYS.PX_KEY].log_prob(target).sum(dim=-1)
            for code, (posterior, prior) in self._variational(inferred, batch).items():
                z = inferred[f"z_{code}"]
                log_weight += (prior.log_prob(z) - posterior.log_prob(z)).sum(dim=-1)
            log_weights.append(log_weight.reshape(n_samples, -1))
        log_likelihood = torch.cat(log_weights).logsumexp(dim=0).cpu() - math.log(n_mc_samples)
        return log_likelihood.mean().item() if return_mean else log_likelihood
