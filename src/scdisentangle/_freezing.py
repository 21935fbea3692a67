"""What of a module is trained once it has new batches: what belongs to them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn


class FreezingMixin:
    """Of a module with ``gene_shifts``."""

    def freeze(
        self, known: Mapping[str, Tensor], free: Sequence[str] = (), dropout: bool = False
    ) -> None:
        """Train only what belongs to new batches.

        Parameters
        ----------
        known
            For each parameter that has grown with them, by name, where the reference's values are.
        free
            Beginnings of names of parameters that are trained nonetheless.
        dropout
            Whether to switch dropout off.
        """
        self.gene_shifts.learned = True
        for name, parameter in self.named_parameters():
            if name.startswith(tuple(free)):
                continue
            parameter.requires_grad = name in known
            if name in known:
                parameter.register_hook(partial(_of_new_values, ~known[name]))
        for layer in self.modules():
            if dropout and isinstance(layer, nn.Dropout):
                layer.p = 0.0

    @property
    def is_partly_frozen(self) -> bool:
        """Whether some of what every model trains is not to be trained, as in query mapping."""
        common = (p for name, p in self.named_parameters() if not name.startswith("gene_shifts."))
        return not all(parameter.requires_grad for parameter in common)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is to be trained, as in a query whose batches are all known."""
        return not any(parameter.requires_grad for parameter in self.parameters())


def _of_new_values(new: Tensor, gradient: Tensor) -> Tensor:
    return gradient * new.to(gradient.device)
