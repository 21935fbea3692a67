"""Logs the values of steps once, as their epoch ends."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

STEPS = ("training_step", "validation_step")
STEPS_KEPT = 1000
"""Values of so many steps are kept before they become their mean."""


class EpochLogMixin(LightningModule):
    """Keeps what steps log on the device, and hands Lightning the means of an epoch at its end.

    Names and values are those of Lightning, which does its bookkeeping for each value at each step:
    a dozen values take as long as a forward pass. What a plan logs for single steps,
    ``on_step=True``, goes to Lightning at once.
    """

    on_step: bool = False
    _n_cells: int = 1
    """Cells in the minibatch of this step, which its values are weighed by."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._kept: defaultdict[str, dict[str, tuple]] = defaultdict(dict)

    def log(self, name: str, value: Any, **options) -> None:
        """Keep a value of a step until the epoch ends; log any other, and metrics, which add up."""
        at_once = self.on_step or self._current_fx_name not in STEPS
        if at_once or isinstance(value, Metric):
            super().log(name, value, **options)
            return
        options |= {"on_step": False, "on_epoch": True}
        size = options.pop("batch_size", None) or self._n_cells
        _, values = self._kept[self._current_fx_name].setdefault(name, (options, []))
        if isinstance(value, Tensor):
            value = value.detach().to(self.device, torch.float32)
        else:  # made there, where a copy would wait for the device
            value = torch.full((), float(value), device=self.device)
        values.append((value, size))
        if len(values) == STEPS_KEPT:
            values[:] = [_mean(values)]

    def _log_means(self, step: str) -> None:
        """Log the means over an epoch's steps, each weighed by its cells."""
        for name, (options, values) in self._kept.pop(step, {}).items():
            mean, size = _mean(values)
            super().log(name, mean, batch_size=size, **options)

    def on_train_batch_end(self, outputs: Tensor, batch: Any, batch_idx: int) -> None:
        """Log an epoch's means before any callback asks for them."""
        if self.trainer.is_last_batch:
            self._log_means("training_step")

    def on_train_epoch_end(self) -> None:
        """Log what an epoch that was cut short has left."""
        self._log_means("training_step")

    def on_validation_epoch_end(self) -> None:
        """Log the means of the validation's steps."""
        self._log_means("validation_step")


def _mean(values: list[tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """Mean of values that are each of so many cells, and the sum of the cells."""
    of_steps, sizes = zip(*values, strict=True)
    stacked = torch.stack(of_steps)
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return (stacked * shares.to(stacked)).sum(), sum(sizes)
