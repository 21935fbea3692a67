"""Threads of PyTorch, which numba's kernels in scanpy set to the number of cores on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give PyTorch its number of threads back.

    Numba and PyTorch share one OpenMP runtime. Without this, ``OMP_NUM_THREADS`` is lost, and a
    model that is trained afterwards on a busy machine is slower by orders of magnitude.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
