"""What each batch has: a code, or the mean code of its cells, and what its genes are off by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._added_later import AddedLater

WEIGHT_OF_LATEST = 0.3
"""Weight of the latest minibatch in a running mean."""


class GeneShifts(AddedLater):
    """What the genes of a batch that came after training are off by, for the encoder of ``z_bio``.

    Only query mapping learns it, as scArches learns its batch's column of the encoder (Lotfollahi
    et al. 2022, Nature Biotechnology 40:121), with a ridge that keeps it small. For the batches of
    the reference it is 0.

    Parameters
    ----------
    n_batch, n_genes
        Number of batches and of genes.
    """

    def __init__(self, n_batch: int, n_genes: int):
        super().__init__()
        self.shifts = nn.Parameter(torch.zeros(n_batch, n_genes), requires_grad=False)
        self.learned = False

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        """Expression as the reference's batches would show it, ``(n_cells, n_genes)``."""
        return x - self.shifts[batch] if self.learned else x

    def ridge(self) -> Tensor:
        """Half the squared length of all shifts, to be added to the loss of a cell."""
        return 0.5 * self.shifts.square().sum()

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.learned |= bool(self.shifts.any())


class Codebook(nn.Module):
    r"""One learned code per batch; each cell takes the nearest.

    A code of ``n_batch`` values can hold the batch and nothing else of a cell. Gradients pass
    straight through to the encoder (van den Oord et al. 2017, arXiv:1711.00937).

    Parameters
    ----------
    n_batch
        Number of batches.
    n_latent
        Dimensions of a code.
    """

    def __init__(self, n_batch: int, n_latent: int):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(n_batch, n_latent))
        self.n_learned = n_batch

    def forward(self, z: Tensor, batch: Tensor) -> Tensor:
        """Nearest code of each cell, shape ``(n_cells, n_latent)``.

        A cell of a batch that was added later, ``n_learned`` or above, takes the code of its
        batch: the encoder, which learned without it, cannot tell.
        """
        encoded, learned = z.detach(), self.codes.detach()[: self.n_learned]
        squares = learned.square().sum(dim=1)
        nearest = torch.addmm(squares, encoded, learned.T, alpha=-2).argmin(dim=1)
        if self.n_learned < len(self.codes):
            nearest = torch.where(batch < self.n_learned, nearest, batch)
        return self.codes[nearest] + (z - encoded)

    def commitment(self, z: Tensor, batch: Tensor) -> Tensor:
        """Squared distance of each cell to the code of its own batch, shape ``(n_cells,)``.

        Cells come to the code, which would lose its distance to that of a like batch if it came
        to them; only that of a batch that was added later does, whose cells stay where they are.
        """
        codes = self.codes[batch]
        codes = torch.where(batch[:, None] < self.n_learned, codes.detach(), codes)
        return (z - codes).square().sum(dim=1)


class RunningMeans(nn.Module):
    """Mean code of each batch's cells, followed through training from its first minibatch on.

    Parameters
    ----------
    n_batch
        Number of batches.
    n_latent
        Dimensions of a code.
    """

    def __init__(self, n_batch: int, n_latent: int):
        super().__init__()
        self.first_new = 0
        self.register_buffer("means", torch.zeros(n_batch, n_latent))

    @torch.no_grad()
    def update(self, z: Tensor, batch: Tensor) -> None:
        """Move to a minibatch's means; batches that it lacks, or below ``first_new``, stay."""
        members = nn.functional.one_hot(batch, len(self.means)).to(z.dtype).T
        counts = members.sum(dim=1, keepdim=True)
        is_first = (self.means == 0).all(dim=1, keepdim=True)
        weight = torch.where(is_first, 1.0, WEIGHT_OF_LATEST) * (counts > 0)
        change = weight * (members @ z / counts.clamp(min=1) - self.means)
        self.means[self.first_new :] += change[self.first_new :]
