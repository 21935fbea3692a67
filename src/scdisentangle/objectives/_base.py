from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Codes:
    """What an objective sees of one minibatch.

    Parameters
    ----------
    z_bio
        Biological code, shape ``(n_cells, n_latent_bio)``.
    z_nio
        Batch code, shape ``(n_cells, n_latent_nio)``.
    batch
        Batch of each cell, integers ``0 .. n_batch - 1``, shape ``(n_cells,)``.
    n_batch
        Number of batches in the whole data set, not in the minibatch.
    labels
        Label of each cell as an integer, -1 where unlabelled, shape ``(n_cells,)``; ``None`` where
        no labels are registered.
    x
        Normalised expression without input noise, shape ``(n_cells, n_genes)``.
    encode_bio
        Maps the normalised expression of some cells, and their indices, to ``z_bio``, through noise
        and gene dropout of its own as in training, to encode another view of them.
    decode
        Maps ``(z_bio, z_nio)`` to the reconstruction on the normalised scale, shape
        ``(n_cells, n_genes)``, each cell in its own batch. It must not detach its arguments.
    as_partner
        Maps the indices of some cells, and of a partner for each, to the normalised expression that
        the cells would show with their partners' ``z_nio``, in their partners' batches.
    """

    z_bio: Tensor
    z_nio: Tensor
    batch: Tensor
    n_batch: int
    labels: Tensor | None
    x: Tensor
    encode_bio: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor, Tensor], Tensor]
    as_partner: Callable[[Tensor, Tensor], Tensor]


class Objective(nn.Module, ABC):
    """A disentanglement objective: a scalar of the codes, to be minimised.

    Subclasses take their options as keywords with plain values (so that they serialise) and pass
    the sizes on.

    Parameters
    ----------
    n_latent_bio
        Dimensions of ``z_bio``.
    n_latent_nio
        Dimensions of ``z_nio``.
    n_batch
        Number of batches.
    """

    def __init__(self, *, n_latent_bio: int, n_latent_nio: int, n_batch: int) -> None:
        super().__init__()
        self.n_latent_bio = n_latent_bio
        self.n_latent_nio = n_latent_nio
        self.n_batch = n_batch

    @abstractmethod
    def forward(self, codes: Codes) -> Tensor:
        """Value of the objective, a scalar that is differentiable with respect to the codes."""

    def estimator_loss(self, codes: Codes) -> Tensor:
        """Loss that fits the objective's own estimator; no gradient reaches the codes."""
        return codes.z_bio.new_zeros(())

    def estimator_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that :meth:`estimator_loss` fits; :meth:`forward` gives them no gradient."""
        return iter(())


def differentiable_zero(z: Tensor) -> Tensor:
    """Zero with a zero gradient, for minibatches in which there is nothing to compare."""
    return z[:0].sum()


def one_hot(batch: Tensor, n_batch: int, like: Tensor) -> Tensor:
    """Indicators of the batch in the floating type of ``like``, shape ``(n_cells, n_batch)``."""
    return torch.nn.functional.one_hot(batch, n_batch).to(like.dtype)
