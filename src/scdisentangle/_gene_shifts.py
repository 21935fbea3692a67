"""What the genes of a batch that came after training are off by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._added_later import AddedLater


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
