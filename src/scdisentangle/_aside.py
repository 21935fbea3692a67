"""Written aside, then renamed: what is half written never stands in the place of what is whole."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def aside(path: Path, purpose: str = "partial") -> Path:
    """A hidden neighbour of ``path``, with a name that no other process has."""
    return path.with_name(f".{path.name}.{purpose}-{uuid4().hex[:8]}")


def flush(path: Path) -> None:
    """Have a file, or a folder and all in it, written to disk: a rename is no promise of that.

    Windows, which opens no folder and flushes no file that is open for reading, does so by itself.
    """
    if os.name == "nt":
        return
    for entry in [*(path.rglob("*") if path.is_dir() else []), path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
