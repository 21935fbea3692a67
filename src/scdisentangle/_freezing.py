"""What of a module is trained once it has new batches: what belongs to them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class FreezingMixin:
    """Of a module with ``gene_shifts``."""

    grown_: tuple[str, ...] = ()
    """Names of the parameters of which a part alone is trained."""

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
        held = [name for name, _ in self.named_parameters() if not name.startswith(tuple(free))]
        for name in held:
            self.get_parameter(name).requires_grad = name in known
        self.grown_ = tuple(name for name in held if name in known)
        for name in self.grown_:
            self.register_buffer(_mask_of(name), ~known[name], persistent=False)
        for layer in self.modules():
            if dropout and isinstance(layer, nn.Dropout):
                layer.p = 0.0

    def hold_known_values(self) -> None:
        """Set gradients of the reference's values to 0, where a part of a parameter is trained."""
        for name in self.grown_:
            gradient = self.get_parameter(name).grad
            if gradient is not None:
                gradient *= self.get_buffer(_mask_of(name))

    @property
    def is_partly_frozen(self) -> bool:
        """Whether some of what every model trains is not to be trained, as in query mapping."""
        common = (p for name, p in self.named_parameters() if not name.startswith("gene_shifts."))
        return not all(parameter.requires_grad for parameter in common)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is to be trained, as in a query whose batches are all known."""
        return not any(parameter.requires_grad for parameter in self.parameters())


def _mask_of(name: str) -> str:
    return f"is_new_in_{name.replace('.', '_')}"  # names of buffers have no points
