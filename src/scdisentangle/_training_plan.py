"""Training: asks the schedules, hands weights and noise level to the module."""

from __future__ import annotations

import math
from functools import partial
from numbers import Integral
from typing import get_args

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan
from torch import Tensor

from . import _schedules
from ._epoch_log import EpochLogMixin
from ._errors import (
    argument_names,
    check_choice,
    check_count,
    check_not_negative,
    check_options,
    check_positive,
    check_share,
)
from ._finite import FiniteGuard
from ._module import DisentangleModule
from ._relevant_components import CELLS_TO_COMPARE

STEPS_WITH_DIS = {"genes": 20, "components": 2}
"""Steps of an epoch that keep the disentanglement term, by what the encoder of ``z_bio`` sees.

Components lack the batch, so that few are enough.
"""
LONGEST_INTERVAL = 4
"""Steps from one with that term to the next, at the most."""
STEPS_WITH_CLS = 20
"""Steps of an epoch that the classification needs to be in no more than these.

Of fewer, ``z_nio`` learned too little to tell replicates that are nearly alike.
"""


class DisentangleTrainingPlan(EpochLogMixin, TrainingPlan):
    r"""Trains :class:`~scdisentangle.DisentangleModule` on a schedule.

    What is in force at each epoch is in the history as ``noise_level``, ``learning_rate`` (what its
    warm-up leads to), ``reconstruction_weight``, ``classification_weight`` and
    ``disentanglement_weight``, the last two with their lambda.

    Parameters
    ----------
    module
        The module to train.
    noise_start, noise_end, noise_schedule
        Level of the Gaussian noise on the normalised input, at the beginning and at the end of
        training (standard deviation), and the course between: ``"linear"``, ``"cosine"`` or
        ``"constant"``.
    reconstruction_floor
        If given, the weight of the reconstruction term falls as ``1 - epoch / max_epochs`` down
        to this floor.
    dis_warmup, dis_ramp
        Length of the warm-up without the disentanglement term, and of its linear ramp after that:
        epochs as an ``int``, a share of training as a ``float``.
    dis_every_n_steps
        Steps from one with the disentanglement term to the next. Its weight rises as much, so that
        an epoch has the same share of it. ``None`` takes 4, or as many as leave 20 steps of an
        epoch with the term: with fewer, some small sets kept more of the batch. Where the encoder
        of ``z_bio`` sees relevant components, which lack the batch, that is 2 steps.
        Objectives with estimators of their own, which must keep up with the codes, are taken in
        every step. The classification goes with it where ``z_nio`` is quantised and 20 steps of an
        epoch have it; in the steps between, ``z_nio`` is the code of the cell's batch.
    lr, lr_schedule
        Learning rate, and its course: ``"cosine"`` down to 0, after the warm-up, or ``"constant"``,
        as always with ``reduce_lr_on_plateau``.
    lr_warmup
        Length of the rise of a learning rate that is not constant, step by step from 0: epochs as
        an ``int``, a share of training as a ``float``. Adam's first steps are as long as any, and
        without a warm-up they can ruin the encoder: on few cells, some seeds lost the biology.
    eps
        Adam's term against division by zero. scvi-tools' 0.01 damps the small gradients with which
        the contrast of near cells begins, so that it starts late; 0.0001 gained
        nothing more on real data.
    n_epochs_kl_warmup
        Epochs over which the weight of Kullback-Leibler terms rises; ``None`` for no warm-up.
    **kwargs
        Keyword arguments for :class:`scvi.train.TrainingPlan`: ``weight_decay``,
        ``optimizer``, ``reduce_lr_on_plateau``, ``compile``, …

    Raises
    ------
    InputError
        If an option is unknown or out of range.
    """

    def __init__(
        self,
        module: DisentangleModule,
        *,
        noise_start: float = 0.1,
        noise_end: float = 0.02,
        noise_schedule: _schedules.NoiseSchedule = "linear",
        reconstruction_floor: float | None = None,
        dis_warmup: int | float = 0.05,
        dis_ramp: int | float = 0.25,
        dis_every_n_steps: int | None = None,
        lr: float = 3e-3,
        lr_schedule: _schedules.LearningRateSchedule = "cosine",
        lr_warmup: int | float = 0.1,
        eps: float = 1e-3,
        n_epochs_kl_warmup: int | None = None,
        **kwargs,
    ):
        known = argument_names(TrainingPlan, DisentangleTrainingPlan) - {"module"}
        check_options(kwargs, known, "plan_kwargs")
        check_choice("noise_schedule", noise_schedule, get_args(_schedules.NoiseSchedule))
        check_not_negative(noise_start=noise_start, noise_end=noise_end, lr=lr)
        check_positive(eps=eps)
        if reconstruction_floor is not None:
            check_share(reconstruction_floor=reconstruction_floor)
        lengths = {"dis_warmup": dis_warmup, "dis_ramp": dis_ramp, "lr_warmup": lr_warmup}
        for name, length in lengths.items():
            check = check_not_negative if isinstance(length, Integral) else check_share
            check(**{name: length})
        check_choice("lr_schedule", lr_schedule, get_args(_schedules.LearningRateSchedule))
        super().__init__(module, lr=lr, eps=eps, n_epochs_kl_warmup=n_epochs_kl_warmup, **kwargs)
        self.lr_schedule = "constant" if self.reduce_lr_on_plateau else lr_schedule
        self.noise = {"start": noise_start, "end": noise_end, "schedule": noise_schedule}
        self.reconstruction_floor = reconstruction_floor
        self.dis_warmup, self.dis_ramp, self.lr_warmup = dis_warmup, dis_ramp, lr_warmup
        if dis_every_n_steps is not None:
            check_count(dis_every_n_steps=dis_every_n_steps)
        self.dis_every_n_steps = dis_every_n_steps
        self.automatic_optimization = not self.module.disentanglement.has_estimators

    @property
    def progress(self) -> float:
        """Share of training that is done, in [0, 1]: ``epoch / max_epochs``."""
        return min(self.current_epoch / self._max_epochs, 1.0)

    @property
    def global_step(self) -> int:
        """Steps of training that were taken; a second optimiser's are not counted again."""
        return super().global_step // (1 if self.automatic_optimization else 2)

    @property
    def _max_epochs(self) -> int:
        return max(self.trainer.max_epochs, 1)

    @property
    def noise_level(self) -> float:
        """Standard deviation of the noise on the input at this epoch."""
        return _schedules.noise_level(self.progress, **self.noise)

    def weights(self) -> dict[str, float]:
        """Factors on the terms of the loss at this epoch, by their name in the module's loss."""
        return {
            "reconstruction_weight": _schedules.reconstruction_weight(
                self.progress, self.reconstruction_floor
            ),
            "classification_weight": 1.0,
            "disentanglement_weight": _schedules.disentanglement_weight(
                self.progress,
                _schedules.as_share(self.dis_warmup, self._max_epochs),
                _schedules.as_share(self.dis_ramp, self._max_epochs),
            ),
        }

    def forward(self, *args, **kwargs):
        """Run the module under the noise level and the weights of this step."""
        weights = {**self._weights_of_step(), **kwargs.get("loss_kwargs", {})}
        kwargs["loss_kwargs"] = weights
        kwargs["inference_kwargs"] = {
            "noise_level": self.noise_level,
            "n_samples": None if self.training else 1,  # a bound on the likelihood is of draws
            "encode_nio": weights["classification_weight"] is not None,
        }
        outputs = super().forward(*args, **kwargs)
        self._metrics = outputs[2].extra_metrics
        self._cells = args[0], outputs[0]["z_bio"].detach()
        self._n_cells = outputs[2].n_obs_minibatch
        return outputs

    def _weights_of_step(self) -> dict[str, float | None]:
        weights = self.weights()
        if not self.training:
            return weights
        n_steps = self.trainer.num_training_batches
        step = self.trainer.fit_loop.batch_idx
        interval = self._dis_interval(n_steps)
        factor = _schedules.interval_factor(step, n_steps, interval)
        taken = ["disentanglement_weight"]
        if self.module.flow.is_of_batch and n_steps / interval >= STEPS_WITH_CLS:
            taken.append("classification_weight")
        return weights | {k: None if factor is None else factor * weights[k] for k in taken}

    def _dis_interval(self, n_steps: float) -> int:
        if self.module.disentanglement.has_estimators:
            return 1
        if self.dis_every_n_steps is not None:
            return self.dis_every_n_steps
        seen = "genes" if self.module.encoder.components is None else "components"
        interval = min(n_steps / STEPS_WITH_DIS[seen], LONGEST_INTERVAL)  # steps may be infinite
        return max(1, int(interval))

    def _terms(self) -> dict[str, Tensor]:
        """Terms of the last loss with their weights, and what the estimators add to it."""
        terms = {
            k.removesuffix("_weighted"): v
            for k, v in self._metrics.items()
            if k.endswith("_weighted")
        }
        if (estimators := self._metrics.get("estimator_loss")) is not None:
            terms["estimator_loss"] = estimators
        return terms

    def _terms_of(self, minibatch) -> dict[str, Tensor]:
        self.forward(minibatch, loss_kwargs=self.weights())
        return self._terms()

    def on_train_start(self) -> None:
        """Find the components that ``z_bio`` is made of, and keep the weights at the start."""
        self._find_components()
        self._guard = FiniteGuard(self.module, self._terms_of)

    @torch.no_grad()
    def _find_components(self) -> None:
        components = self.module.encoder.components
        if components is None or components.found:
            return
        seen, batches, n_cells = [], [], 0
        with torch.random.fork_rng(devices=[]):  # what epochs draw is as without this
            torch.random.default_generator.manual_seed(0)
            # loaded anew, since workers that persist have one pass at a time, that of the epoch
            datamodule = self.trainer.datamodule
            hooks = datamodule or self
            loader = datamodule.train_dataloader() if datamodule else self.trainer.train_dataloader
            for minibatch in loader:
                minibatch = hooks.on_before_batch_transfer(minibatch, 0)  # which may make it dense
                tensors = self.trainer.strategy.batch_to_device(minibatch)
                seen.append(self.module.comparable(tensors))
                batches.append(tensors[REGISTRY_KEYS.BATCH_KEY].squeeze(-1))
                n_cells += len(seen[-1])
                if n_cells >= CELLS_TO_COMPARE:
                    break
        components.fit(*(torch.cat(parts)[:CELLS_TO_COMPARE] for parts in (seen, batches)))
        for buffer in components.buffers():  # of several processes, each has seen other cells
            buffer.copy_(self.trainer.strategy.broadcast(buffer.cpu()))

    def on_train_end(self) -> None:
        """Let go of the last minibatch and its graph, with which a model could not be copied."""
        super().on_train_end()
        self._metrics = self._cells = self._guard = None

    def on_train_epoch_end(self) -> None:
        """Stop if a term or a weight is not finite."""
        super().on_train_epoch_end()
        self._guard.end_epoch()

    def on_train_epoch_start(self) -> None:
        """Log what is in force in this epoch."""
        weights = self.weights()
        module = self.module
        self._set_learning_rate()
        self.log_dict(
            {
                "noise_level": self.noise_level,
                "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
                "reconstruction_weight": weights["reconstruction_weight"],
                "classification_weight": float(module.lambda_cls),
                "disentanglement_weight": weights["disentanglement_weight"] * module.lambda_dis,
            },
            on_epoch=True,
        )

    def on_train_batch_start(self, batch, batch_idx) -> None:
        """Set the learning rate of a step in the warm-up."""
        n_steps = self.trainer.num_training_batches
        share = (batch_idx + 1) / n_steps if math.isfinite(n_steps) else 1.0
        progress = min((self.current_epoch + share) / self._max_epochs, 1.0)
        warmup = _schedules.as_share(self.lr_warmup, self._max_epochs)
        self._set_learning_rate(_schedules.warmup_factor(progress, warmup))

    def _set_learning_rate(self, factor: float = 1.0) -> None:
        """Take a share of what the schedule says of this epoch.

        A constant one is left alone, and that of a callback with a schedule of its own.
        """
        if self.lr_schedule == "constant" or self.trainer.lr_scheduler_configs:
            return
        factor *= _schedules.learning_rate_factor(self.progress, self.lr_schedule)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def training_step(self, batch, batch_idx):
        """One step; estimators that an objective brings along take theirs beside it."""
        loss = super().training_step(batch, batch_idx)
        self._guard.watch(self._terms(), batch, self.current_epoch + 1, batch_idx + 1)
        if not self.automatic_optimization:
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss + self._metrics["estimator_loss"])
            for optimizer in optimizers:
                optimizer.step()
        return loss

    def prepare_scib_autotune(self, loss_outputs: dict[str, Tensor], stage: str) -> None:
        """Hand ``z_bio`` to tuning by scib-metrics, which looks for codes among the terms."""
        tensors, z_bio = self._cells
        batch, labels = tensors[REGISTRY_KEYS.BATCH_KEY], tensors.get(REGISTRY_KEYS.LABELS_KEY)
        seen = {"z": z_bio, "batch": batch, "labels": labels}
        super().prepare_scib_autotune({**loss_outputs, **seen}, stage)

    def on_after_backward(self) -> None:
        """Leave what a query's reference knows as it is."""
        super().on_after_backward()
        self.module.hold_known_values()

    @torch.no_grad()
    def compute_and_log_metrics(self, loss_output: LossOutput, metrics: object, mode: str) -> None:
        """Log the terms of a step by scvi-tools' names, as means over its cells.

        They come to what scvi-tools' ``metrics`` give, which take longer to add them up.
        """
        n_cells = loss_output.n_obs_minibatch
        reconstruction = loss_output.reconstruction_loss_sum / n_cells
        kl_local = loss_output.kl_local_sum / n_cells
        values = {
            "elbo": reconstruction + kl_local,
            "reconstruction_loss": reconstruction,
            "kl_local": kl_local,
            "kl_global": torch.zeros_like(kl_local),
            **loss_output.extra_metrics,
        }
        self.log_dict(
            {f"{name}_{mode}": value for name, value in values.items()},
            on_step=self.on_step,
            on_epoch=self.on_epoch,
            batch_size=n_cells,
            sync_dist=self.use_sync_dist,
        )

    def _optimizer_creator_fn(self, optimizer_cls: type[torch.optim.Optimizer]):
        """Take the fused step, but where Lightning would have to clip gradients that it scales."""
        clips_scaled = self.trainer.scaler is not None and self.trainer.gradient_clip_val
        fused = getattr(self, "fused_optimizer", True) and not clips_scaled
        return partial(
            optimizer_cls,
            lr=self.lr,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=fused and self.device.type in ("cpu", "cuda"),
        )

    def configure_optimizers(self):
        """The optimiser of scvi-tools, and one of their own for the objectives' estimators."""
        config = super().configure_optimizers()
        if self.automatic_optimization:
            return config
        estimators = list(self.module.disentanglement.estimator_parameters())
        ids = {id(parameter) for parameter in estimators}
        for group in config["optimizer"].param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        return config, {"optimizer": self.get_optimizer_creator()(estimators)}

    def on_validation_epoch_end(self) -> None:
        """Step the learning-rate scheduler where Lightning leaves it to the plan."""
        super().on_validation_epoch_end()
        if not self.automatic_optimization and (scheduler := self.lr_schedulers()) is not None:
            scheduler.step(self.trainer.callback_metrics[self.lr_scheduler_metric])
