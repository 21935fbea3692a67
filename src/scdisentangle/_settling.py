"""What is done to ``z_bio`` after training: batches are aligned, then axes get their lengths."""

from __future__ import annotations

from torch import Tensor


class SettlingMixin:
    """Of a module with an ``alignment`` and ``axes``, each ``None`` where the model has none."""

    def unsettle(self) -> None:
        """Take back what was found after an earlier training: the alignment and the axes."""
        for part in filter(None, (self.alignment, self.axes)):
            part.reset()

    def settle(self, z_bio: Tensor, batch: Tensor, progress_bar: bool = False) -> None:
        """Find the alignment, and then the axes.

        Parameters
        ----------
        z_bio
            Codes, ``(n_cells, n_latent_bio)``, as inference gives them after :meth:`unsettle`.
        batch
            Batch of each cell, ``(n_cells,)``.
        progress_bar
            Whether to show progress.
        """
        z_bio = self.as_trained(z_bio)  # axes of a reference stay
        if self.alignment is not None:
            self.alignment.fit(z_bio, batch, progress_bar)
            z_bio = self.alignment(z_bio, batch)
        if self.axes is not None:
            self.axes.fit(z_bio, batch)

    def as_trained(self, z_bio: Tensor) -> Tensor:
        """Codes along the axes that training had, which the decoder reads; of the same shape."""
        return z_bio if self.axes is None else self.axes.undo(z_bio)
