from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from scdisentangle._errors import InputError, check_count, check_not_negative

from ._base import Codes, Objective
from ._estimators import frozen_call, mlp, standardise
from .classification import batch_cross_entropy


def output_sensitivity(outputs: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    r"""Mean squared gradient of one scalar per cell, :math:`\frac{1}{N}\sum_i\|\nabla s_i\|^2`.

    Exact, by one backward pass, and differentiable again. Works where gradients are switched off.

    Parameters
    ----------
    outputs
        Maps ``z`` to one scalar per cell, shape ``(n_cells,)``, each of its own cell's row only.
    z
        Shape ``(n_cells, d)``.

    Returns
    -------
    Scalar.
    """
    further = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        z = z if z.requires_grad and further else z.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(outputs(z).sum(), z, create_graph=further)
        return gradient.square().sum(1).mean()


def projected_sensitivity(
    function: Callable[[Tensor], Tensor], z: Tensor, scale: float | Tensor = 1.0
) -> Tensor:
    r"""Random estimate of a mean squared Jacobian, :math:`\frac{1}{N} \sum_i \|J_i S\|_F^2`.

    Hutchinson's estimate :math:`\|J S\|_F^2 = E_v \|J S v\|^2` with one vector of random signs per
    cell, by forward-mode differentiation: one pass whatever the number of outputs, and the result
    is differentiable as usual. Works where gradients are switched off.

    Parameters
    ----------
    function
        Maps ``z`` to outputs of shape ``(n_cells, n_outputs)``, each row of its own cell only.
    z
        Shape ``(n_cells, d)``.
    scale
        Unit of each dimension of ``z``, the diagonal of S, shape ``(d,)``.

    Returns
    -------
    Scalar; 0 where the function does not use ``z``.

    References
    ----------
    Hutchinson (1989), A stochastic estimator of the trace of the influence matrix for Laplacian
    smoothing splines, Communications in Statistics 18:1059.
    """
    further = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(further), forward_ad.dual_level():
        z = z if further else z.clone()
        signs = torch.randint(0, 2, z.shape, device=z.device).to(z.dtype) * 2.0 - 1.0
        outputs = function(forward_ad.make_dual(z, signs * scale))
        tangent = forward_ad.unpack_dual(outputs).tangent
    if tangent is None:
        return outputs[:0].sum()
    return tangent.square().sum(1).mean()


class GradientPenalty(Objective):
    r"""Neither output is sensitive to the other code.

    .. math::

        L = \frac{w_\text{batch}}{N} \sum_i
                \left\| \frac{\partial l_{i b_i}}{\partial z_{\text{bio}, i}} \right\|^2
            + \frac{w_\text{rec}}{N} \sum_i
                \left\| \frac{\partial \hat x_i}{\partial z_{\text{nio}, i}} \right\|_F^2

    The first term moves z_bio to where it does not sway the batch logits :math:`l`, those of a
    joint classifier of both codes, owned by this objective and fitted on detached codes
    (:meth:`estimator_loss`, its own optimiser). The second keeps the decoder from reading biology
    out of z_nio. Both derivatives are with respect to the codes in units of their standard
    deviation in the minibatch, so that a code cannot lower the penalty by its scale.

    A weak rival: where z_nio tells the batch, the joint classifier hardly needs z_bio, so that a
    low first term does not mean that z_bio is free of the batch. For that take
    ``"contrastive"``. The second term has no use where the decoder does not read z_nio, and it is a
    sum over genes: its weight goes down as their number goes up.

    Parameters
    ----------
    batch_weight
        Weight of the sensitivity of the batch logits to z_bio, 0 to leave it out.
    reconstruction_weight
        Weight of the sensitivity of the reconstruction to z_nio, 0 to leave it out.
    n_hidden
        Hidden units of the joint classifier.
    **sizes
        As in :class:`Objective`.
    """

    def __init__(
        self,
        *,
        batch_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        n_hidden: int = 64,
        **sizes: int,
    ) -> None:
        super().__init__(**sizes)
        check_count(n_hidden=n_hidden)
        check_not_negative(batch_weight=batch_weight, reconstruction_weight=reconstruction_weight)
        if batch_weight == reconstruction_weight == 0:
            raise InputError("batch_weight and reconstruction_weight are 0: give one of them more.")
        self.batch_weight = batch_weight
        self.reconstruction_weight = reconstruction_weight
        if batch_weight > 0:
            n_latent = self.n_latent_bio + self.n_latent_nio
            self.classifier = mlp(n_latent, n_hidden, self.n_batch)

    def forward(self, codes: Codes) -> Tensor:
        """Weighted sum of the two sensitivities."""
        total = codes.z_bio.new_zeros(())
        if self.batch_weight > 0:
            total = total + self.batch_weight * self._batch_sensitivity(codes)
        if self.reconstruction_weight > 0:
            total = total + self.reconstruction_weight * self._reconstruction_sensitivity(codes)
        return total

    def estimator_loss(self, codes: Codes) -> Tensor:
        """Cross-entropy of the joint classifier on detached codes."""
        if self.batch_weight == 0:
            return super().estimator_loss(codes)
        z = torch.cat([standardise(codes.z_bio.detach()), standardise(codes.z_nio.detach())], 1)
        return batch_cross_entropy(self.classifier(z), codes.batch)

    def estimator_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the joint classifier."""
        return self.classifier.parameters() if self.batch_weight > 0 else iter(())

    def _batch_sensitivity(self, codes: Codes) -> Tensor:
        z_nio = standardise(codes.z_nio)

        def logit_of_own_batch(z_bio: Tensor) -> Tensor:
            logits = frozen_call(self.classifier, torch.cat([z_bio, z_nio], 1))
            own_batch = codes.batch.clone()  # one made in inference mode could not be an index here
            return logits.gather(1, own_batch.unsqueeze(1)).squeeze(1)

        return output_sensitivity(logit_of_own_batch, standardise(codes.z_bio))

    def _reconstruction_sensitivity(self, codes: Codes) -> Tensor:
        return projected_sensitivity(
            lambda z_nio: codes.decode(codes.z_bio, z_nio),
            codes.z_nio,
            scale=(codes.z_nio.var(0, correction=0) + 1e-6).sqrt(),
        )
