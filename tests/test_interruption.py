"""Stopped or killed in the middle of an epoch: what is said, and how it goes on."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from scdisentangle import DisentangleModel, InputError, _interruption, data

MINIBATCHES = 5


def new_model(objective="contrastive", **kwargs):
    scvi.settings.seed = 0
    adata = data.simulated(n_cells=200, n_genes=60)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    return DisentangleModel(adata, n_hidden=16, objective=objective, **kwargs)


def train(model, max_epochs=5, **kwargs):
    model.train(max_epochs, **{"batch_size": 40, "enable_progress_bar": False, **kwargs})


def at_minibatch(model, number, act):
    """Do ``act`` in the encoder when training comes to its minibatch ``number``."""
    inference, calls = model.module.inference, []

    def counted(*args, **kwargs):
        if model.module.training:
            calls.append(1)
            if len(calls) == number:
                act()
        return inference(*args, **kwargs)

    model.module.inference = counted


def interrupt():
    raise KeyboardInterrupt


def assert_same_training(model, expected):
    np.testing.assert_array_equal(
        model.get_latent_representation(), expected.get_latent_representation()
    )
    assert set(model.history) == set(expected.history)
    for name, table in expected.history.items():
        np.testing.assert_array_equal(
            model.history[name].to_numpy(dtype=float), table.to_numpy(dtype=float)
        )
        assert list(model.history[name].index) == list(table.index)


def test_a_run_that_is_called_again_on_its_model_is_the_same_run(tmp_path):
    expected = new_model()
    train(expected)
    model = new_model()
    train(model, checkpoint=tmp_path / "state")
    train(model, checkpoint=tmp_path / "state")
    assert_same_training(model, expected)
    train(model, max_epochs=2)  # a further one, whose history is added
    assert len(model.history["reconstruction_loss_train"]) == 7


@pytest.mark.parametrize(
    ("objective", "epoch"), [("contrastive", 1), ("contrastive", 3), ("mutual_information", 5)]
)
def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(tmp_path, objective, epoch):
    """With one optimiser and with two; the same weights, to the last bit, and the same history."""
    expected = new_model(objective)
    train(expected)
    first = new_model(objective)
    at_minibatch(first, (epoch - 1) * MINIBATCHES + 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(first, checkpoint=tmp_path / "state")
    torch.rand(7)  # a new process has its own random numbers
    second = new_model(objective)
    train(second, checkpoint=tmp_path / "state")
    assert_same_training(second, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(("minibatch", "is_trained"), [(1, False), (2, True)])
def test_a_model_is_trained_from_its_first_step_on(minibatch, is_trained):
    model = new_model()
    at_minibatch(model, minibatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(model)
    assert model.is_trained_ == is_trained


def test_a_run_without_a_seed_goes_on_with_the_same_cells(tmp_path):
    state, cells = tmp_path / "state", []

    class Watch(Callback):
        def on_train_start(self, trainer, plan):
            cells.append((trainer.datamodule.train_idx, trainer.datamodule.val_idx))

    first, second = new_model(), new_model()
    scvi.settings.seed = None
    at_minibatch(first, 2 * MINIBATCHES, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(first, checkpoint=state, callbacks=[Watch()])
    train(second, checkpoint=state, callbacks=[Watch()])
    for before, after in zip(*cells, strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(second.train_indices, cells[0][0])
    assert len(second.train_indices) < 200


def test_functions_are_the_same_in_another_process(tmp_path):
    def model():
        return new_model(var_activation=lambda output: output.exp(), kl_weight_bio=0.1)

    train(model(), 2, checkpoint=tmp_path / "state")
    train(model(), 2, checkpoint=tmp_path / "state")


def test_the_checkpoint_itself_changes_nothing(tmp_path):
    plain = new_model()
    train(plain)
    written = new_model()
    train(written, checkpoint=tmp_path / "state")
    assert_same_training(written, plain)


def test_a_run_with_a_logger_of_its_own_goes_on(tmp_path):
    expected = new_model()
    train(expected)
    first = new_model()
    at_minibatch(first, 2 * MINIBATCHES + 3, interrupt)
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(first, checkpoint=state, logger=CSVLogger(tmp_path / "first"))
    second = new_model()
    train(second, checkpoint=state, logger=CSVLogger(tmp_path / "second"))
    np.testing.assert_array_equal(
        second.get_latent_representation(), expected.get_latent_representation()
    )


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_interruption import MINIBATCHES, at_minibatch, new_model, train
model = new_model()
at_minibatch(model, 2 * MINIBATCHES + 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
train(model, checkpoint=sys.argv[2])
"""


def test_killed_in_the_middle_of_an_epoch(tmp_path):
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, here, str(tmp_path / "state")],
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    expected = new_model()
    train(expected)
    resumed = new_model()
    train(resumed, checkpoint=tmp_path / "state")
    assert_same_training(resumed, expected)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    model = new_model()
    flush, calls = _interruption.flush, []

    def full_at_the_third(path):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        flush(path)

    monkeypatch.setattr(_interruption, "flush", full_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        train(model, checkpoint=tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert torch.load(tmp_path / "state", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(
    "other",
    [
        {"max_epochs": 4},
        {"plan_kwargs": {"lr": 1e-3}},
        {"objective": "hsic"},
        {"batch_size": 50},
        {"train_size": 0.8},
        {"validation_size": 0.05},
        {"shuffle_set_split": False},
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, other):
    train(new_model(), checkpoint=tmp_path / "state", max_epochs=2)
    model = new_model(other.pop("objective", "contrastive"))
    with pytest.raises(InputError, match="is of another run.*Remove it"):
        train(model, **{"max_epochs": 2, **other, "checkpoint": tmp_path / "state"})


def test_the_checkpoint_of_more_processes_is_refused(tmp_path):
    train(new_model(), 2, checkpoint=tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    state["scdisentangle"]["random"] *= 2
    torch.save(state, tmp_path / "state")
    with pytest.raises(InputError, match="a run of 2 processes, and this one has 1"):
        train(new_model(), 2, checkpoint=tmp_path / "state")


@pytest.mark.parametrize("content", [b"", b"no", {"epoch": 3}, [1]])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "state"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match="not the state of a training"):
        train(new_model(), checkpoint=path)


def test_a_checkpoint_needs_its_folder(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        train(new_model(), checkpoint=tmp_path / "no" / "state")


@pytest.fixture
def plain_sigterm():
    """The handler of a fresh process: Ray, which autotuning starts, leaves one of its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("plain_sigterm")
def test_sigterm_ends_the_program_with_its_code():
    model = new_model()
    at_minibatch(model, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as exit:
        train(model)
    assert exit.value.code == 143


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_line_is_stopped_in_training(tmp_path, signal_number, code):
    program = (  # a process in the background would ignore Ctrl-C
        "import signal, sys; from scdisentangle._cli import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", program, "integrate", "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "Train the model" in line:
            break
    time.sleep(1.0)
    process.send_signal(signal_number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "was not written" in errors.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
