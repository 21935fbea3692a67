"""Stops training at the first loss or gradient that is not finite, and keeps good weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn

from ._errors import NonFiniteError, name_some

STEPS_BETWEEN_LOOKS = 50
"""On an accelerator, where a look waits for the device. On a CPU every step is looked at."""


def looks_at_every_step(values: Tensor) -> bool:
    """Whether a look at values costs no wait."""
    return values.device.type == "cpu"


class FiniteGuard:
    """Watches the terms of the loss, and keeps the weights that an epoch began with.

    A gradient that is not finite makes weights and so the next loss not finite: it is enough to
    look at the terms, a handful of numbers, at each step, and at the weights once an epoch. Under
    mixed precision, gradients that overflow are skipped by the gradient scaler and reach no weight.
    Weights are kept once they have given a finite loss: finite ones may be ruined too.

    Parameters
    ----------
    module
        The module in training.
    terms_of
        Gives the weighted terms of the loss of a minibatch by name, to find the term of a gradient.
    """

    def __init__(self, module: nn.Module, terms_of: Callable[[object], Mapping[str, Tensor]]):
        self.module, self.terms_of = module, terms_of
        self.at_every_step = True
        self.pending: list[tuple[str, list[str], Tensor]] = []
        self.last_step, self.last_minibatch = "before the first step", None
        self.good_weights: dict[str, Tensor] = {}
        self._keep_weights()

    def watch(self, terms: Mapping[str, Tensor], minibatch: object, epoch: int, step: int) -> None:
        """Look at the terms of a step, before its gradient is taken.

        Raises
        ------
        NonFiniteError
            If one is not finite; on an accelerator, up to ``STEPS_BETWEEN_LOOKS`` steps later.
        """
        with torch.no_grad():
            values = torch.stack(list(terms.values())).float()
        self.pending.append((f"in epoch {epoch}, step {step}", list(terms), values))
        self.at_every_step = looks_at_every_step(values)
        if self.at_every_step or step == 1 or len(self.pending) == STEPS_BETWEEN_LOOKS:
            self._look()
        if step == 1:
            self._keep_weights()
        self.last_minibatch = minibatch

    def end_epoch(self) -> None:
        """Look at the steps that were not looked at yet, and at the weights.

        Raises
        ------
        NonFiniteError
            If terms or weights are not finite.
        """
        self._look()
        if not self._weights_are_finite():
            self._stop_for_gradient()

    def _look(self) -> None:
        pending, self.pending = self.pending, []
        for step, names, values in pending:
            finite = [math.isfinite(value) for value in values.tolist()]
            if not all(finite):
                self._stop_for_loss(
                    step, [name for name, good in zip(names, finite, strict=True) if not good]
                )
            self.last_step = step

    def _stop_for_loss(self, step: str, bad: list[str]) -> NoReturn:
        if self.at_every_step and not self._weights_are_finite():
            self._stop_for_gradient()
        self._restore_weights()
        _stop(f"{name_some(bad)} of the loss", step)

    def _stop_for_gradient(self) -> NoReturn:
        self._restore_weights()
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        bad = []
        found = {} if self.last_minibatch is None else self.terms_of(self.last_minibatch)
        for name, term in found.items():
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            if not _are_finite(g for g in gradients if g is not None):
                bad.append(name)
        _stop(f"the gradient of {name_some(bad) if bad else 'the loss'}", self.last_step)

    def _weights_are_finite(self) -> bool:
        return _are_finite(w for w in self.module.state_dict().values() if w.is_floating_point())

    @torch.no_grad()
    def _keep_weights(self) -> None:
        for name, weights in self.module.state_dict().items():
            kept = self.good_weights.setdefault(name, torch.empty_like(weights))
            kept.copy_(weights)

    @torch.no_grad()
    def _restore_weights(self) -> None:
        self.module.load_state_dict(self.good_weights)


@torch.no_grad()
def _are_finite(tensors: Iterable[Tensor]) -> bool:
    sums = [tensor.sum(dtype=torch.float32) for tensor in tensors]  # NaN and infinity stay
    return not sums or bool(torch.stack(sums).isfinite().all())


def _stop(what: str, step: str) -> NoReturn:
    raise NonFiniteError(
        f"Training stopped: {what} became NaN or infinite {step}. The model has its last good "
        "weights and can be used, saved or trained further. Lower the learning rate, "
        "plan_kwargs={'lr': ...}, or the weight of that term; clip gradients, "
        "gradient_clip_val=...; in half precision, train with precision=32."
    )
