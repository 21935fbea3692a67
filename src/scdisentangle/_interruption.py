"""What happens to training when the process is told to stop, or is killed and starts again."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ._aside import aside, flush
from ._errors import InputError

UNREADABLE = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
SPLIT = ("train_idx", "val_idx", "test_idx")
"""What data modules of scvi-tools call the cells that train, validate and test."""


@contextmanager
def exit_as_asked() -> Iterator[None]:
    """Undo what Lightning makes of an interruption: an exit of the interpreter, without a reason.

    Ctrl-C is a ``KeyboardInterrupt`` again, and SIGTERM exits with 143, as a shell expects.
    """
    try:
        yield
    except SIGTERMException as stop:
        raise SystemExit(128 + SIGTERM) from stop
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


class Begun(Callback):
    """Knows whether a step was taken: before, an interruption leaves an untrained model."""

    def __init__(self) -> None:
        self.has_learned = False

    def on_train_batch_end(self, *args) -> None:
        """Note it."""
        self.has_learned = True


class Resuming(Callback):
    """Writes the state of training when an epoch begins, the second at first, and goes on there.

    Weights, optimisers, the epoch, the history, the split of the cells and the state of the random
    numbers of each process: a run that goes on gives what one that was not interrupted gives.

    Parameters
    ----------
    path
        File of the state. Each write replaces the one before when it is complete.
    run
        What the run is of; only a run of the same goes on.
    """

    def __init__(self, path: Path, run: str):
        self.path, self.run = path, run
        self.restored: dict | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, unless it was just read or there is nothing to lose yet."""
        if self.restored is not None:
            _set_history(trainer, self.restored["history"])
            trainer._model.is_trained_ = False  # else scvi-tools adds the history to a former one
            self.restored = None
            return
        if trainer.current_epoch == 0:
            return
        partial = aside(self.path)
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:  # the only process that writes
                flush(partial)
                partial.replace(self.path)
        except RuntimeError as error:
            raise OSError(f"{self.path} could not be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict):
        """Add what Lightning leaves out, and say that no minibatch of this epoch is done."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False
        progress["current"] = dict.fromkeys(progress["current"], 0)
        checkpoint["scdisentangle"] = {
            "run": self.run,
            "random": _of_each_process(trainer, _random_state(trainer.strategy.root_device)),
            "split": {
                name: torch.as_tensor(cells)
                for name in SPLIT
                if (cells := getattr(trainer.datamodule, name, None)) is not None
            },
            "history": {
                name: (table.index.name, table.index.tolist(), table[name].astype(float).tolist())
                for name, table in (_history(trainer) or {}).items()
            },
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict):
        """Take what was added. The order of the cells is drawn next."""
        self.restored = checkpoint["scdisentangle"]
        states = self.restored["random"]
        if len(states) != trainer.world_size:
            raise InputError(
                f"{self.path} is of a run of {len(states)} processes, and this one has "
                f"{trainer.world_size}. Pass as many devices, or remove it to start anew."
            )
        _set_random_state(states[trainer.global_rank], trainer.strategy.root_device)
        for name, cells in self.restored["split"].items():
            setattr(trainer.datamodule, name, cells.numpy())


def resume_arguments(path: str | os.PathLike, run: dict, callbacks: list[Callback] | None) -> dict:
    """Arguments of the trainer that write the state of training, and go on from it if there is any.

    Parameters
    ----------
    path
        File of the state.
    run
        What the run is of, by name.
    callbacks
        Those that the trainer has already.

    Raises
    ------
    InputError
        If the file cannot be read, or is of another run.
    """
    path = Path(path).absolute()
    described = re.sub(" at 0x[0-9a-f]+", "", repr(run))  # a function is elsewhere in each process
    arguments: dict = {"callbacks": [*(callbacks or []), Resuming(path, described)]}
    if path.exists():
        try:
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            found = state["scdisentangle"]["run"]
        except UNREADABLE as error:
            raise InputError(
                f"{path} is not the state of a training that can be gone on with: {error}"
            ) from error
        if found != described:
            raise InputError(
                f"{path} is of another run ({found}) than this one ({described}). Remove it to "
                "start anew, or name another file."
            )
        arguments["ckpt_path"] = str(path)
    elif not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} in.")
    return arguments


def _of_each_process(trainer: Trainer, value: dict) -> list[dict]:
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def _random_state(device: torch.device) -> dict:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _history(trainer: Trainer) -> Mapping | None:
    """Tables of the logger, unless it keeps files of its own or is that of a second process."""
    history = getattr(trainer.logger, "history", None)
    return history if isinstance(history, Mapping) else None


def _set_history(trainer: Trainer, history: dict) -> None:
    if _history(trainer) is None:
        return
    trainer.logger.experiment.data.update(
        {
            name: pd.DataFrame({name: values}, index=pd.Index(index, name=index_name))
            for name, (index_name, index, values) in history.items()
        }
    )
