"""How a model is trained: what is asked for, what is refused, and what an interruption leaves."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.utilities import rank_zero_only
from scvi import REGISTRY_KEYS, settings
from scvi.model.base import UnsupervisedTrainingMixin
from scvi.train import Trainer, TrainingPlan, TrainRunner
from scvi.train._config import merge_kwargs

from ._errors import (
    InputError,
    NonFiniteError,
    argument_names,
    check_count,
    check_positive,
    check_share,
    warn_user,
)
from ._interruption import Begun, exit_as_asked, resume_arguments

CELLS_TO_ALIGN = 10_000
MIN_CELLS_TO_VALIDATE = 30
OF_ONE_OPTIMIZER = {"gradient_clip_val": 0, "accumulate_grad_batches": 1}
"""Arguments of the trainer that Lightning takes only where it steps the one optimiser itself.

With the values by which they do nothing.
"""
TRUE_PRECISIONS = ("64", "64-true", "bf16-true", "16-true")
OF_A_RUN = {"validation_size", "shuffle_set_split", "datasplitter_kwargs", "precision"}
"""Arguments of ``train`` for others that a run which goes on from a checkpoint must have too."""


class TrainingMixin(UnsupervisedTrainingMixin):
    """``train`` of scvi-tools, which goes on where it was stopped, and ends with the alignment."""

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        batch_size: int | None = 128,
        plan_kwargs: Mapping | None = None,
        checkpoint: str | PathLike | None = None,
        data_on_device: bool | None = None,
        **kwargs,
    ):
        """Train the model, with a progress bar; :attr:`history` then holds every term.

        Parameters
        ----------
        max_epochs
            Passes over the data. ``None`` takes :func:`default_max_epochs`.
        accelerator, devices
            Where to train, as Lightning names it.
        train_size
            Share of cells to train on, in (0, 1]; the rest validates. ``None`` is 0.9, and 1 where
            there are fewer than 30 cells.
        batch_size
            Cells in a minibatch, ``scvi.settings.batch_size`` if ``None``.
        plan_kwargs
            Options of :class:`~scdisentangle.DisentangleTrainingPlan`: noise, warm-up, ``lr``, …
        checkpoint
            File to write the state of training to as each epoch begins. Where it exists, training
            goes on from it: after a kill, the same call in a new process ends as it would have.
        data_on_device
            Whether minibatches are cut on the device, from data that were moved there once; the
            result is the same. ``None`` does where they take up to half of its free memory.
        **kwargs
            What scvi-tools' models take: ``validation_size``, ``shuffle_set_split``,
            ``early_stopping``, ``datasplitter_kwargs``, ``datamodule``, ``enable_checkpointing``,
            ``plan_config``, ``trainer_config``, ``ckpt_path``, and arguments of
            :class:`scvi.train.Trainer`.

        Raises
        ------
        InputError
            If an option is unknown or out of its range, the checkpoint is of another run, the data
            are minified or no counts any more, or those that should stay on the device cannot.
        NonFiniteError
            If the loss or a gradient becomes NaN or infinite; the last good weights are kept.
        AttributeError
            If there is neither an AnnData nor a data module to train on.
        """
        plan_kwargs = merge_kwargs(kwargs.pop("plan_config", None), plan_kwargs, name="plan")
        kwargs = merge_kwargs(kwargs.pop("trainer_config", None), kwargs, name="trainer")
        batch_size = settings.batch_size if batch_size is None else batch_size
        self._check_training(max_epochs, train_size, batch_size, kwargs)
        if self.module is not None and self.module.is_frozen:
            warn_user(
                "There is nothing to train: all batches of the query are the reference's, or it "
                "was saved by a version that did not note what of it is frozen; map it again then. "
                "Its codes are ready."
            )
            return None
        self._note_empty_batches()
        datamodule = kwargs.get("datamodule")
        run = {
            **self._lengths_of_run(max_epochs, train_size, datamodule),
            "batch_size": int(batch_size),
            "plan_kwargs": self._options_of_plan(plan_kwargs),
        }
        if self.adata is not None:
            if _some_validate(self.adata.n_obs, run["train_size"], kwargs):
                kwargs.setdefault("check_val_every_n_epoch", 1)
            elif datamodule is None and run["plan_kwargs"].get("reduce_lr_on_plateau"):
                raise InputError(
                    "reduce_lr_on_plateau=True watches the loss of validation, and no cells "
                    "validate: take a smaller train_size, or more cells."
                )
        if checkpoint is not None:
            of_run = {name: kwargs[name] for name in sorted(OF_A_RUN & kwargs.keys())}
            known = {**run, **of_run, **self.init_params_, **self.summary_stats}
            kwargs.update(resume_arguments(checkpoint, known, kwargs.get("callbacks")))
        if datamodule is None:
            loading = {"on_device": data_on_device, **(kwargs.get("datasplitter_kwargs") or {})}
            kwargs["datasplitter_kwargs"] = loading
        if self._has_estimators and kwargs.get("max_steps", -1) > 0:
            kwargs["max_steps"] *= 2  # Lightning counts those of both optimisers
        begun = Begun()
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), begun]
        progress_bar = kwargs.get("enable_progress_bar", True) and rank_zero_only.rank == 0
        with self._settled_at_the_end(begun, datamodule, progress_bar), exit_as_asked():
            return super().train(
                accelerator=accelerator,
                devices=devices,
                **run,
                **{"inference_mode": False, **kwargs},
            )

    @property
    def _has_estimators(self) -> bool:
        return self.module is not None and self.module.disentanglement.has_estimators

    def _lengths_of_run(
        self,
        max_epochs: int | None,
        train_size: float | None,
        datamodule: LightningDataModule | None,
    ) -> dict[str, int | float | None]:
        """How long a run is, and on which share of the cells, where that is not told."""
        n_obs = getattr(datamodule, "n_obs", None)
        if n_obs is None and self.adata is not None:
            n_obs = self.adata.n_obs
        if n_obs is not None:
            max_epochs = default_max_epochs(n_obs) if max_epochs is None else max_epochs
            if train_size is None and n_obs < MIN_CELLS_TO_VALIDATE:
                train_size = 1.0
        return {
            "max_epochs": None if max_epochs is None else int(max_epochs),
            "train_size": train_size,
        }

    def _options_of_plan(self, plan_kwargs: Mapping) -> dict:
        options = {
            name: value.item() if isinstance(value, np.generic) else value  # which files would hold
            for name, value in plan_kwargs.items()
        }
        if self.module is not None and self.module.is_partly_frozen:
            options.setdefault("weight_decay", 0.0)  # what is partly frozen would decay
        return options

    @contextmanager
    def _settled_at_the_end(
        self, begun: Begun, datamodule: LightningDataModule | None, progress_bar: bool
    ) -> Iterator[None]:
        """Take the alignment back for a run, and find it anew, also if the run is broken off."""
        self.settled_ = False  # as a model that a callback saves before the end
        if self.module is not None:
            self.module.unsettle()
            self.module.train()
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            interrupted = isinstance(error, KeyboardInterrupt) and begun.has_learned
            self.is_trained_ |= isinstance(error, NonFiniteError) or interrupted
            if self.is_trained_:
                self.module.eval()
                with suppress(ValueError):  # of weights that give no codes; what was wrong is told
                    self.align(datamodule, progress_bar)
                self.settled_ = True  # as far as it can be
            raise
        self.align(datamodule, progress_bar)

    @torch.inference_mode()
    def align(
        self, datamodule: LightningDataModule | None = None, progress_bar: bool = True
    ) -> None:
        """Find the shifts between batches that training left in ``z_bio``, and take them out.

        Then the axes along which cells differ most are made longer. :meth:`train` ends with it.
        Call it for weights from a checkpoint that was written in training. A model with
        ``alignment=False`` has no shifts; one with labels or ``spherical=False`` has by default no
        such axes.

        Parameters
        ----------
        datamodule
            What the model was trained from, where that was no AnnData.
        progress_bar
            Whether to show progress.

        Raises
        ------
        InputError
            If the model's data are minified, and so hold codes that are aligned already.
        """
        if self.module.alignment is None and self.module.axes is None:
            self.settled_ = True
            return
        if self.minified_data_type is not None:
            raise InputError(
                "The AnnData is minified: the model reads its codes, which are aligned already. "
                "Call align() before minify_adata()."
            )
        if datamodule is None:
            self._validate_anndata()
            minibatches = self._make_data_loader(self.adata, self._cells_to_align())
        else:
            minibatches = (
                datamodule.on_after_batch_transfer(datamodule.on_before_batch_transfer(cells, 0), 0)
                for cells in datamodule.train_dataloader()
            )
        self.module.eval()
        self.module.unsettle()
        codes, batches, n_cells = [], [], 0
        for tensors in minibatches:
            inputs = self.module._get_inference_input(tensors)
            codes.append(self.module.inference(**inputs)["z_bio"])
            batches.append(tensors[REGISTRY_KEYS.BATCH_KEY].squeeze(-1).to(codes[-1].device).long())
            n_cells += len(codes[-1])
            if n_cells >= CELLS_TO_ALIGN:
                break
        z_bio, batch = (torch.cat(parts)[:CELLS_TO_ALIGN] for parts in (codes, batches))
        if datamodule is not None:  # which may have shuffled the cells
            order = z_bio[:, 0].argsort()
            z_bio, batch = z_bio[order], batch[order]
        self.module.settle(z_bio, batch, progress_bar)
        self.settled_ = True

    def _cells_to_align(self) -> np.ndarray | None:
        if self.adata.n_obs <= CELLS_TO_ALIGN:
            return None
        return np.sort(np.random.default_rng(0).choice(self.adata.n_obs, CELLS_TO_ALIGN, False))

    def _check_names(self, options: Mapping) -> None:
        trainer = (LightningTrainer, Trainer, TrainRunner, UnsupervisedTrainingMixin.train)
        known = argument_names(*trainer) | {"ckpt_path"}
        others = {
            "the training plan: plan_kwargs={{'{}': ...}}": (TrainingPlan, self._training_plan_cls),
            "the model: DisentangleModel(adata, {}=...)": (self._module_cls,),
        }
        for name in options.keys() - known:
            for place, classes in others.items():
                if name in argument_names(*classes):
                    raise InputError(f"'{name}' is no option of train, but of {place.format(name)}")
            near = [f"'{other}'" for other in difflib.get_close_matches(name, known, n=2)]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise InputError(
                f"'{name}' is no option of train.{hint} Options are those of scvi-tools' train and "
                "of scvi.train.Trainer."
            )

    def _check_training(
        self,
        max_epochs: int | None,
        train_size: float | None,
        batch_size: int,
        options: Mapping,
    ) -> None:
        """Refuse what :meth:`train` cannot do, before anything of the model changes."""
        self._check_names(options)
        if self.adata is None and options.get("datamodule") is None:
            raise AttributeError(
                "There is nothing to train on: pass datamodule=, or make the model with an AnnData."
            )
        if self.minified_data_type is not None:
            raise InputError(
                "The AnnData is minified, and the model reads its codes in place of counts. Train "
                "on the data as they were before minify_adata()."
            )
        if self._has_estimators:
            for name, nothing in OF_ONE_OPTIMIZER.items():
                if options.get(name) not in (None, nothing):
                    raise InputError(
                        f"{name}= is not for an objective with an estimator of its own, as the "
                        "model has: it takes a second optimiser. Leave it out, or take another "
                        "objective."
                    )
        if str(options.get("precision")) in TRUE_PRECISIONS:
            raise InputError(
                f"precision={options['precision']!r} is not for values that are loaded as 32 bits: "
                "take 'bf16-mixed' or '16-mixed'."
            )
        check_count(batch_size=batch_size)
        if max_epochs is not None:
            check_count(max_epochs=max_epochs)
        if train_size is not None:
            check_share(train_size=train_size)
            check_positive(train_size=train_size)
        if self.adata is None:
            return
        self._validate_anndata()
        if self.adata.n_obs < batch_size:
            warn_user(
                f"{self.adata.n_obs} cells are fewer than a minibatch (batch_size={batch_size}): "
                "each epoch is one step. Pass a smaller batch_size for more steps."
            )


def _some_validate(n_obs: int, train_size: float | None, options: Mapping) -> bool:
    splits = (options.get("datasplitter_kwargs") or {}).get("external_indexing")
    if splits is not None:
        return len(splits) > 1 and splits[1] is not None and len(splits[1]) > 0
    share = options.get("validation_size")
    if share is None:
        share = 1 - (train_size or 0.9)
    return n_obs * share >= 1


def default_max_epochs(n_obs: int) -> int:
    """Epochs that :meth:`DisentangleModel.train` takes if not told.

    90, but more below about 400 cells, so that there are 300 minibatches to learn from (at most 400
    epochs), and fewer above 20,000 cells, where the number of minibatches stays. Longer training
    trades biology for mixing, and few cells seen often are learnt by heart.

    Parameters
    ----------
    n_obs
        Number of cells.

    Raises
    ------
    InputError
        If that is no positive whole number.

    Examples
    --------
    >>> import scdisentangle
    >>> scdisentangle.default_max_epochs(5_000), scdisentangle.default_max_epochs(40_000)
    (90, 45)
    """
    check_count(n_obs=n_obs)
    enough = round(300 * 128 / n_obs)
    return max(1, min(max(90, min(enough, 400)), round(90 * 20_000 / n_obs)))
