"""The command line: parse, run, and turn what a user can put right into one line."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from ._errors import InputError, NonFiniteError, check_choice
from ._integrate import integrate
from ._output import check_free
from .objectives import OBJECTIVES


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments after the program's name, ``sys.argv[1:]`` by default.

    Returns
    -------
    Exit code: 0 when all is done, 2 after an error that is the input's, 130 when interrupted, 143
    when terminated.
    """
    arguments = _parser().parse_args(argv)
    try:
        _check(arguments)
        with _sigterm_cleans_up():
            integrate(arguments)
    except (InputError, NonFiniteError, OSError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"error: interrupted, {arguments.out} was not written", file=sys.stderr)
        return 130
    except _Terminated:
        print(f"error: terminated, {arguments.out} was not written", file=sys.stderr)
        return 143
    return 0


class _Terminated(BaseException):
    """SIGTERM: passes every handler of errors on its way, and every clean-up."""


@contextmanager
def _sigterm_cleans_up() -> Iterator[None]:
    def terminate(*_: object) -> NoReturn:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # signals are not ours there
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scdisentangle", description="Split each cell's code into biology and batch."
    )
    parser.add_argument("--version", action="version", version=version("scdisentangle"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    integrate = commands.add_parser(
        "integrate",
        help="select genes, train, embed, score and draw",
        description="Select genes, train, embed, score and draw. Without INPUT, on a simulated set "
        "with three batches and six cell types. Labels are for scores and pictures only, the model "
        "does not see them.",
    )
    integrate.add_argument(
        "input", nargs="?", type=Path, metavar="INPUT.h5ad", help="AnnData file, cells by genes"
    )
    integrate.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    integrate.add_argument(
        "--overwrite", action="store_true", help="replace the folder of an earlier run"
    )
    integrate.add_argument("--batch-key", help="column of obs with the batches; needed with INPUT")
    integrate.add_argument("--label-key", help="column of obs with cell types, to score with")
    integrate.add_argument("--layer", help="layer with the counts or values (default: X)")
    integrate.add_argument(
        "--n-top-genes",
        type=_positive,
        default=2000,
        metavar="N",
        help="highly variable genes to train on (default: 2000)",
    )
    integrate.add_argument(
        "--max-epochs",
        type=_positive,
        metavar="N",
        help="passes over the data (default: by the number of cells)",
    )
    integrate.add_argument(
        "--objective",
        nargs="+",
        type=_objective,
        metavar="NAME[=WEIGHT]",
        help="what keeps the codes apart (default: the model's): none, or some of "
        f"{', '.join(OBJECTIVES)}",
    )
    integrate.add_argument("--seed", type=_seed, default=0, help="seed of training (default: 0)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above zero, got {text}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text}")
    return int(text)


def _objective(text: str) -> tuple[str, float]:
    if text.endswith(".h5ad"):
        raise argparse.ArgumentTypeError(f"{text} is no objective: name INPUT before --objective")
    name, _, weight = text.partition("=")
    try:
        return name, float(weight or 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a name or a name with a weight, such as hsic=0.5"
        ) from None


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is read."""
    check_free(arguments.out, overwrite=arguments.overwrite)
    if arguments.input is None:
        arguments.batch_key = arguments.batch_key or "batch"
        arguments.label_key = arguments.label_key or "celltype"
        arguments.layer = arguments.layer or "counts"
    elif not arguments.input.is_file():
        found = " (it is a folder; what is read is one .h5ad)" if arguments.input.is_dir() else ""
        raise FileNotFoundError(f"there is no file {arguments.input}{found}")
    elif arguments.batch_key is None:
        raise InputError(
            "--batch-key is needed with INPUT: name the column of obs with the batches"
        )
    named = [name for name, _ in arguments.objective or []]
    for name in named:
        check_choice("--objective", name, [*OBJECTIVES, *(["none"] if len(named) == 1 else [])])
        if named.count(name) > 1:
            raise InputError(f"--objective names {name} more than once: give it one weight")
