"""A folder of results that appears when it is complete, in the place of its own kind only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ._aside import aside, flush

ADATA = "adata.h5ad"
MODEL = "model"
HISTORY = "history.csv"
SCORES = "scores.csv"
LATENTS = "latents.png"
LOSSES = "losses.png"
REPORT = "report.png"
_RESULTS = {ADATA, MODEL, HISTORY, SCORES, LATENTS, LOSSES, REPORT}


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder may be written.

    Raises
    ------
    OSError
        If it exists and `overwrite` is off, or holds other things than results, or its parent
        does not exist, or it is a symbolic link.
    """
    if folder.is_symlink():
        raise FileExistsError(
            f"{folder} is a symbolic link, and is not followed: name the folder that is meant, or "
            "another, with -o"
        )
    if not folder.exists():
        if not folder.absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {folder.parent} to write {folder.name} in")
        return
    if not overwrite:
        raise FileExistsError(
            f"{folder} exists: choose another folder with -o or replace it with --overwrite"
        )
    others = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else [folder.name]
    others = [name for name in others if name not in _RESULTS]
    if others or not folder.is_dir():
        raise FileExistsError(
            f"{folder} is not the folder of an earlier run, because it is or holds "
            f"'{others[0]}': --overwrite leaves it as it is; choose another folder with -o"
        )


@contextmanager
def complete_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside `folder` that takes its place at the end, or vanishes on failure.

    Raises
    ------
    OSError
        As :func:`check_free`, of what came to `folder` in the meantime. What was written is then in
        a folder beside it, which the message names.
    """
    folder = folder.absolute()
    partial, replaced = aside(folder), aside(folder, "replaced")
    partial.mkdir()
    try:
        yield partial
        flush(partial)
        try:
            check_free(folder, overwrite=overwrite)
        except OSError as error:
            others = (folder.with_name(f"{folder.name}_{i}") for i in count(2))
            kept = next(other for other in others if not other.exists())
            partial.rename(kept)
            raise FileExistsError(
                f"{folder} has changed while this ran, and is left as it is. The results are in "
                f"{kept}"
            ) from error
        if folder.exists():
            folder.rename(replaced)
        try:
            partial.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
