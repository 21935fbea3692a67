"""Minibatches that are cut where the model is, from data that stay there."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS, dataloaders, settings
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.dataloaders import CollectionAdapter
from torch import Tensor
from torch.utils.data import Dataset, Subset

from scdisentangle._errors import InputError
from scdisentangle._sparse_losses import ABOVE_ZERO_KEY

logger = logging.getLogger(__name__)
SHARE_OF_FREE_MEMORY = 0.5
OPTIONS = {"batch_size", "distributed_sampler", "drop_dataset_tail"}
"""Options of scvi-tools' loader that ours takes too."""


class DataSplitter(dataloaders.DataSplitter):
    """scvi-tools' splitter, with data that stay on the device where they fit.

    Split, order and values are those of scvi-tools' loader, which cuts each minibatch on the host,
    makes it dense and copies it. Here, a sparse matrix is moved to a GPU once, and is cut and made
    dense there. On a CPU, where nothing moves, a minibatch brings along where its counts are, so
    that likelihoods need not search for them.

    Parameters
    ----------
    adata_manager, *args, **kwargs
        As for :class:`scvi.dataloaders.DataSplitter`.
    on_device
        Whether to keep the data on the device. ``None`` does if they are in memory, take up to half
        of what is free on the device, and no option asks for scvi-tools' loader.

    Raises
    ------
    InputError
        If data that should stay on the device cannot.
    """

    def __init__(
        self, adata_manager: AnnDataManager, *args, on_device: bool | None = None, **kwargs
    ):
        super().__init__(adata_manager, *args, **kwargs)
        self.on_device = on_device
        self._host_manager = adata_manager

    def setup(self, stage: str | None = None) -> None:
        """Split the cells, and move the data."""
        super().setup(stage)
        if self.on_device is False or self.trainer is None:
            return
        device = self.trainer.strategy.root_device
        source = AnnTorchDataset(self._host_manager)
        if (reason := self._reason_against(source, device)) is None:
            on_host = device.type == "cpu"
            rows = HostRows(self._host_manager) if on_host else DeviceRows(source, device)
            self.adata_manager = _RowManager(self._host_manager, rows)
        elif self.on_device:
            raise InputError(
                f"The data cannot stay on the device: {reason}. Leave data_on_device=True out, and "
                "minibatches are cut on the host."
            )
        else:
            logger.info("Minibatches are cut on the host: %s.", reason)

    def teardown(self, stage: str | None = None) -> None:
        """Free the device."""
        if isinstance(self.adata_manager, _RowManager):
            self.adata_manager.rows.release()
            self.adata_manager = self._host_manager

    def on_exception(self, exception: BaseException) -> None:
        """Free the device."""
        self.teardown()

    def _reason_against(self, source: AnnTorchDataset, device: torch.device) -> str | None:
        options = [key for key in self.data_loader_kwargs if key not in OPTIONS]
        if self.load_sparse_tensor:
            options.append("load_sparse_tensor")
        if self.pin_memory:
            options.append("pin_memory")
        if not options and settings.dl_num_workers > 0:
            options.append("scvi.settings.dl_num_workers")
        if options:
            return f"{', '.join(options)} is an option of scvi-tools' loader"
        if device.type not in ("cpu", "cuda"):
            return f"it is '{device}', neither a CPU nor a CUDA device"
        if isinstance(source.adata_manager.adata, CollectionAdapter):
            return "they are a collection"
        if source.adata_manager.adata.isbacked:
            return "they are on disk"
        for key, values in source.data.items():
            in_memory = isinstance(values, np.ndarray | pd.DataFrame | str)
            if not in_memory and not sparse.issparse(values):
                return f"'{key}' is a {type(values).__name__}, no array in memory"
        needed, free = bytes_needed(source, device), free_bytes(device)
        if needed > SHARE_OF_FREE_MEMORY * free:
            return (
                f"they take {needed / 2**30:.2f} GiB, more than {SHARE_OF_FREE_MEMORY:.0%} of the "
                f"{free / 2**30:.2f} GiB that are free on {device}"
            )
        return None


class HostRows(Dataset):
    """Rows as scvi-tools cuts them, with the places where their values are not 0."""

    def __init__(self, manager: AnnDataManager):
        self.source = AnnTorchDataset(manager)
        self.dtypes = self.source.keys_and_dtypes
        self.x = self.source.data[REGISTRY_KEYS.X_KEY]
        if sparse.issparse(self.x):
            self.x = self.x.tocsr()
            others = {k: t for k, t in self.dtypes.items() if k != REGISTRY_KEYS.X_KEY}
            self.source = AnnTorchDataset(manager, others)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indexes: Sequence[int]) -> dict[str, np.ndarray]:
        """Registered values of some cells."""
        if not sparse.issparse(self.x):
            return self.source[indexes]
        indexes = np.asarray(indexes)
        x = self.x[indexes].astype(self.dtypes[REGISTRY_KEYS.X_KEY], copy=False)
        minibatch = {REGISTRY_KEYS.X_KEY: x.toarray(), **self.source[indexes]}
        if self.x.has_canonical_format and x.data.all():
            starts = np.arange(0, np.prod(x.shape), x.shape[1])
            minibatch[ABOVE_ZERO_KEY] = starts.repeat(np.diff(x.indptr)) + x.indices
        return minibatch

    def release(self) -> None:
        """Let go of what was copied."""
        self.x = None


class AsAsked(Dataset):
    """Rows in the order in which they are asked for, of a dataset that sorts what it cuts.

    scvi-tools' does so with data on disk, which are read in order.

    Parameters
    ----------
    source
        The dataset.
    """

    def __init__(self, source: Dataset):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indexes: Sequence[int]) -> dict[str, np.ndarray]:
        """Registered values of some cells."""
        rows, of_row = np.unique(indexes, return_inverse=True)
        return {key: values[of_row] for key, values in self.source[rows].items()}


class DeviceRows(Dataset):
    """Rows of fields that were moved to a device, cut and made dense there.

    No step waits for the device: what a minibatch takes is known on the host.

    Parameters
    ----------
    source
        Registered fields.
    device
        Device to move them to.
    """

    def __init__(self, source: AnnTorchDataset, device: torch.device):
        self.n_cells, self.device = len(source), device
        self.dense: dict[str, Tensor] = {}
        self.sparse: dict[str, CompressedRows] = {}
        for key, dtype in source.keys_and_dtypes.items():
            values = source.data[key]
            if sparse.issparse(values):
                self.sparse[key] = CompressedRows(values.tocsr(), dtype, device)
            elif not isinstance(values, str):
                self.dense[key] = torch.tensor(np.asarray(values, dtype), device=device)

    def __len__(self) -> int:
        return self.n_cells

    def __getitem__(self, indexes: Sequence[int]) -> dict[str, Tensor]:
        """Registered values of some cells."""
        on_host = torch.tensor(indexes)
        if self.device.type == "cuda":
            on_host = on_host.pin_memory()
        rows = on_host.to(self.device, non_blocking=True)
        minibatch = {key: values.cut(rows, on_host) for key, values in self.sparse.items()}
        return minibatch | {key: values[rows] for key, values in self.dense.items()}

    def release(self) -> None:
        """Free the device."""
        self.dense.clear()
        self.sparse.clear()


class CompressedRows:
    """A CSR matrix on a device.

    Parameters
    ----------
    x
        The matrix.
    dtype
        Type of its values there.
    device
        Where it is moved to.
    """

    def __init__(self, x: sparse.csr_matrix, dtype: type, device: torch.device):
        self.n_columns = x.shape[1]
        self.lengths = torch.tensor(np.diff(x.indptr), dtype=torch.int64)
        self.starts = torch.tensor(x.indptr[:-1], dtype=torch.int64, device=device)
        self.lengths_there = self.lengths.to(device)
        self.columns = torch.tensor(x.indices, dtype=torch.int32, device=device)
        self.values = torch.tensor(x.data.astype(dtype, copy=False), device=device)

    def cut(self, rows: Tensor, rows_on_host: Tensor) -> Tensor:
        """Dense rows, shape ``(n_rows, n_columns)``."""
        n_values = int(self.lengths[rows_on_host].sum())
        lengths = self.lengths_there[rows]
        firsts = self.starts[rows] - lengths.cumsum(0) + lengths
        row = torch.repeat_interleave(lengths, output_size=n_values)
        entry = firsts[row] + torch.arange(n_values, device=rows.device)
        at = row * self.n_columns + self.columns[entry]
        dense = self.values.new_zeros(len(rows) * self.n_columns)
        return dense.index_add_(0, at, self.values[entry]).view(len(rows), self.n_columns)


class _RowManager:
    """What :class:`scvi.dataloaders.AnnDataLoader` asks of a manager."""

    def __init__(self, manager: AnnDataManager, rows: HostRows | DeviceRows):
        self.adata, self.rows = manager.adata, rows

    def create_torch_dataset(self, indices: Sequence[int], **kwargs) -> Subset:
        return Subset(self.rows, indices)


def bytes_needed(source: AnnTorchDataset, device: torch.device) -> int:
    """Memory of a device that a copy of the registered fields takes."""
    if device.type == "cpu":
        x = source.data[REGISTRY_KEYS.X_KEY]
        copied = sparse.issparse(x) and x.format != "csr"
        return x.data.nbytes + x.indices.nbytes + x.indptr.nbytes if copied else 0
    needed = 0
    for key, dtype in source.keys_and_dtypes.items():
        values, size = source.data[key], np.dtype(dtype).itemsize
        if sparse.issparse(values):
            needed += values.nnz * (size + 4) + 16 * len(source)
        elif not isinstance(values, str):
            needed += np.size(values) * size
    return needed


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is free; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return 0
