from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scdisentangle._errors import check_count, check_positive

from ._base import Codes, Objective
from ._estimators import mlp
from .classification import batch_cross_entropy


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(z: Tensor, strength: float = 1.0) -> Tensor:
    """Identity whose gradient is multiplied by ``-strength``."""
    return _Reversal.apply(z, strength)


class BatchAdversary(Objective):
    r"""Batch classifier on z_bio behind a gradient reversal.

    The value is the classifier's cross-entropy. One step of the main optimiser lowers it for the
    classifier and raises it for the codes, so that the batch becomes hard to read from z_bio. The
    usual rival of the other objectives, for comparison; where cell types differ between batches it
    merges types.

    Parameters
    ----------
    strength
        Factor of the reversed gradient, beside the objective's weight, which acts on the
        classifier as well.
    balanced
        Give every batch the same weight, as in :func:`batch_cross_entropy`.
    n_hidden
        Hidden units of the classifier.
    **sizes
        As in :class:`Objective`.

    References
    ----------
    Ganin et al. (2016), Domain-adversarial training of neural networks, JMLR 17:1.
    """

    def __init__(
        self, *, strength: float = 1.0, balanced: bool = False, n_hidden: int = 128, **sizes: int
    ) -> None:
        super().__init__(**sizes)
        check_positive(strength=strength)
        check_count(n_hidden=n_hidden)
        self.strength = strength
        self.balanced = balanced
        self.classifier = mlp(self.n_latent_bio, n_hidden, self.n_batch)

    def forward(self, codes: Codes) -> Tensor:
        """Cross-entropy in nats, with the gradient to the codes reversed."""
        logits = self.classifier(reverse_gradient(codes.z_bio, self.strength))
        return batch_cross_entropy(logits, codes.batch, self.balanced)
