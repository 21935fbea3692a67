"""Load: memory of large sparse data, memory over many epochs, open files, many batches.

python benchmarks/load.py large | epochs | batches
"""

from __future__ import annotations

import argparse
import os
import resource
import time
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scdisentangle import DisentangleModel, data

GIB = 2**20  # ru_maxrss counts KiB


def peak() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def now() -> float:
    """Resident memory now, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(adata: ad.AnnData, epochs: int, **kwargs) -> DisentangleModel:
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata)
    model.train(epochs, enable_progress_bar=False, **kwargs)
    return model


def large(n_cells: int = 50_000, n_genes: int = 20_000, share: float = 0.05) -> None:
    """Many cells of all genes: an epoch and the latents, one entry in twenty above zero."""
    rng = np.random.default_rng(0)
    per_cell = int(share * n_genes)
    columns = np.concatenate(
        [np.sort(rng.integers(0, n_genes, per_cell, dtype=np.int32)) for _ in range(n_cells)]
    )
    values = 1 + rng.poisson(1.0, n_cells * per_cell).astype(np.float32)
    starts = np.arange(0, n_cells * per_cell + 1, per_cell)
    x = sparse.csr_matrix((values, columns, starts), (n_cells, n_genes))
    x.sum_duplicates()
    obs = pd.DataFrame({"batch": rng.choice(list("abc"), n_cells)}, index=map(str, range(n_cells)))
    adata = ad.AnnData(x, obs=obs)
    del columns, values
    size = (x.data.nbytes + x.indices.nbytes + x.indptr.nbytes) / 2**30
    print(f"{n_cells:,} x {n_genes:,}, {x.nnz:,} entries, {size:.2f} GiB; peak {peak():.2f} GiB")
    start = time.perf_counter()
    model = train(adata, 1, train_size=1.0)
    print(f"an epoch: {time.perf_counter() - start:.0f} s; peak {peak():.2f} GiB")
    z = model.get_latent_representation()
    print(f"latents {z.shape}, finite: {np.isfinite(z).all()}; peak {peak():.2f} GiB")


def epochs(n: int = 200, every: int = 20) -> None:
    """Memory and open files along a training, from epoch 20 on."""
    from lightning.pytorch.callbacks import Callback

    class Watch(Callback):
        seen: list[tuple[int, float, int]] = []

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch % every == 0:
                files = len(os.listdir("/proc/self/fd"))
                self.seen.append((trainer.current_epoch, now(), files))

    train(data.simulated(n_cells=1000, n_genes=500), n + 1, callbacks=[Watch()])
    for epoch, memory, files in Watch.seen:
        print(f"epoch {epoch}: {memory:.0f} MiB, {files} open files")
    first, last = Watch.seen[1], Watch.seen[-1]
    print(
        f"from epoch {first[0]} to {last[0]}: {last[1] - first[1]:+.1f} MiB, "
        f"{last[2] - first[2]:+d} open files"
    )


def batches(n_batches: int = 200) -> None:
    """As many batches as atlases have, thirty cells each."""
    adata = data.simulated(n_cells=30 * n_batches, n_genes=500, n_batches=n_batches)
    start = time.perf_counter()
    model = train(adata, 20)
    seconds = time.perf_counter() - start
    right = (model.predict_batch() == adata.obs["batch"].to_numpy()).mean()
    z = model.get_latent_representation()
    print(
        f"{n_batches} batches, {adata.n_obs:,} cells, 20 epochs: {seconds:.0f} s, latents finite: "
        f"{np.isfinite(z).all()}, batch told from z_nio: {right:.2f}, peak {peak():.2f} GiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["large", "epochs", "batches"])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    {"large": large, "epochs": epochs, "batches": batches}[parser.parse_args().what]()
