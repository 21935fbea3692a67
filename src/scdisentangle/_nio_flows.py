"""The flows of ``z_nio``: what it is made of, and what of a loss returns to it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Normal

WEIGHT_OF_LATEST = 0.3
"""Weight of the latest minibatch in a running mean."""


class NioFlow(nn.Module, ABC):
    """Between the encoder of ``z_nio`` and those who read it.

    A code that is neither variational nor of its batch is a point of each cell, of which there is
    no likelihood.

    Parameters
    ----------
    n_batch
        Number of batches. Each flow takes the dimensions of ``z_nio``, ``n_latent``, after it.
    """

    is_variational = False
    """Whether the encoder gives a posterior, which is held to the ``prior`` of the batch."""
    is_of_batch = False
    """Whether cells of a batch share a code, so that not every step need encode it."""
    returns = False
    """Whether the decoder's gradient reaches the encoder."""
    holds: tuple[str, ...] = ()
    """Names of the :meth:`terms`."""

    def __init__(self, n_batch: int):
        super().__init__()
        self.n_learned, self.n_reference = n_batch, 0

    @property
    @abstractmethod
    def of_batch(self) -> Tensor:
        """What stands for the code of any cell of each batch, ``(n_batch, n_latent)``."""

    def forward(self, encoded: Tensor, batch: Tensor) -> Tensor:
        """The code, ``(n_cells, n_latent)``, from what the encoder gives, of the same shape.

        ``batch`` is that of each cell, ``(n_cells,)``.
        """
        return encoded

    def as_read(self, z_nio: Tensor) -> Tensor:
        """The code as the decoder reads it."""
        return z_nio if self.returns else z_nio.detach()

    def terms(self, encoded: Tensor, batch: Tensor) -> dict[str, Tensor]:
        """What holds the encoder to the batch beside the classifier: means over cells, by name."""
        return {}

    def follow(self, z_nio: Tensor, batch: Tensor) -> None:
        """Take note of the codes of a minibatch in training."""

    def added(self, n_learned: int, n_reference: int) -> None:
        """Take note that batches were added to a trained model.

        Parameters
        ----------
        n_learned
            Number of batches that the encoder and the classifier learned with.
        n_reference
            Number of those that must stay as they are, 0 if none.
        """
        self.n_learned, self.n_reference = n_learned, n_reference


class Quantized(NioFlow):
    r"""One learned code per batch; each cell takes the nearest.

    A code of ``n_batch`` values can hold the batch and nothing else of a cell. Gradients of the
    classifier pass straight through to the encoder (van den Oord et al. 2017, arXiv:1711.00937).
    """

    is_of_batch = True
    holds = ("commitment",)

    def __init__(self, n_batch: int, n_latent: int):
        super().__init__(n_batch)
        self.codes = nn.Parameter(torch.randn(n_batch, n_latent))

    @property
    def of_batch(self) -> Tensor:
        """The batches' codes."""
        return self.codes

    def forward(self, encoded: Tensor, batch: Tensor) -> Tensor:
        """Nearest code of each cell, shape ``(n_cells, n_latent)``.

        A cell of a batch that was added later, ``n_learned`` or above, takes the code of its
        batch: the encoder, which learned without it, cannot tell.
        """
        constant, learned = encoded.detach(), self.codes.detach()[: self.n_learned]
        squares = learned.square().sum(dim=1)
        nearest = torch.addmm(squares, constant, learned.T, alpha=-2).argmin(dim=1)
        if self.n_learned < len(self.codes):
            nearest = torch.where(batch < self.n_learned, nearest, batch)
        return self.codes[nearest] + (encoded - constant)

    def terms(self, encoded: Tensor, batch: Tensor) -> dict[str, Tensor]:
        """Squared distance of cells to the code of their own batch.

        Cells come to the code, which would lose its distance to that of a like batch if it came
        to them; only that of a batch that was added later does, whose cells stay where they are.
        """
        codes = self.codes[batch]
        codes = torch.where(batch[:, None] < self.n_learned, codes.detach(), codes)
        return {"commitment": (encoded - codes).square().sum(dim=1).mean()}


class Variational(NioFlow):
    r"""A sample of a posterior that is held to a learned prior per batch."""

    is_variational = True
    returns = True

    def __init__(self, n_batch: int, n_latent: int):
        super().__init__(n_batch)
        self.mean = nn.Parameter(torch.randn(n_batch, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_batch, n_latent))

    @property
    def of_batch(self) -> Tensor:
        """The priors' means."""
        return self.mean

    def prior(self, batch: Tensor) -> Normal:
        r""":math:`N(\mu_b, \sigma_b^2)` of the batch of each cell, ``(n_cells, n_latent)``."""
        return Normal(self.mean[batch], self.log_scale[batch].exp(), validate_args=False)


class Free(NioFlow):
    """As it is; the mean of each batch's cells is followed from the first minibatch on."""

    returns = True

    def __init__(self, n_batch: int, n_latent: int):
        super().__init__(n_batch)
        self.register_buffer("means", torch.zeros(n_batch, n_latent))

    @property
    def of_batch(self) -> Tensor:
        """The running means."""
        return self.means

    @torch.no_grad()
    def follow(self, z_nio: Tensor, batch: Tensor) -> None:
        """Move to a minibatch's means; batches that it lacks, or of a reference, stay."""
        members = nn.functional.one_hot(batch, len(self.means)).to(z_nio.dtype).T
        counts = members.sum(dim=1, keepdim=True)
        is_first = (self.means == 0).all(dim=1, keepdim=True)
        weight = torch.where(is_first, 1.0, WEIGHT_OF_LATEST) * (counts > 0)
        change = weight * (members @ z_nio / counts.clamp(min=1) - self.means)
        self.means[self.n_reference :] += change[self.n_reference :]


class Detached(Free):
    """As it is, but what the decoder reads of it sends no gradient back."""

    returns = False


NIO_FLOWS = {
    "quantized": Quantized,
    "detached": Detached,
    "variational": Variational,
    "free": Free,
}
