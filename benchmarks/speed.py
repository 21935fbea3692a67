"""Ours and scVI side by side, one thread: training, whole runs, growth, latents from disk.

    python benchmarks/speed.py

scVI has our width, layers, minibatch and likelihood. Counts are drawn at random, one in ten above
zero. Each row is kept in ``speed.csv``; a run that was stopped goes on with those that it lacks.
Rows that need a CUDA device, or annbatch (Python 3.12), are left out and named where there is none.
The pieces of a step are cut by Lightning's hooks; ``--ours-as before`` with another version of the
package on ``PYTHONPATH`` adds its rows under that name.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import BATCH, one_thread, run_all
from lightning.pytorch import Callback
from scipy import sparse

N_GENES, PER_CELL, N_BATCH = 2000, 200, 4
SCVI = {"n_layers": 2, "n_hidden": 128, "n_latent": 30, "gene_likelihood": "nb"}
BARE = "ours, no objective"
PIECES = ("load", "forward", "log", "backward", "update")
COLUMNS = (
    "cells_per_s",
    "seconds",
    "peak_gib",
    *(f"{piece}_ms" for piece in (*PIECES, "step", "bound")),
)
GROWTH = (2_000, 6_000, 20_000, 60_000, 200_000)


def counts(n_cells: int, seed: int = 0) -> ad.AnnData:
    """Random counts of 2,000 genes, 200 of each cell above zero, in four batches."""
    rng = np.random.default_rng(seed)
    stride = N_GENES // PER_CELL
    columns = rng.integers(0, stride, (n_cells, PER_CELL), dtype=np.int32)
    columns += stride * np.arange(PER_CELL, dtype=np.int32)
    values = 1 + rng.poisson(1.0, n_cells * PER_CELL).astype(np.float32)
    starts = np.arange(0, n_cells * PER_CELL + 1, PER_CELL)
    x = sparse.csr_matrix((values, columns.ravel(), starts), (n_cells, N_GENES))
    batch = pd.Categorical(rng.choice([f"b{i}" for i in range(N_BATCH)], n_cells))
    cells = pd.RangeIndex(n_cells).astype(str)
    return ad.AnnData(x, obs=pd.DataFrame({BATCH: batch}, index=cells))


class Stopwatch(Callback):
    """Seconds of each epoch, and of the pieces of each step."""

    def __init__(self, device: str):
        self.device = device
        self.epochs: list[float] = []
        self.steps: list[dict[str, float]] = []

    def now(self) -> float:
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def on_fit_start(self, trainer, pl_module):
        forward = pl_module.forward

        def timed(*args, **kwargs):
            start = self.now()
            outputs = forward(*args, **kwargs)
            self.forward = self.now() - start
            return outputs

        pl_module.forward = timed

    def on_train_epoch_start(self, trainer, pl_module):
        self.epoch_start = self.end = self.now()

    def on_train_batch_start(self, *_):
        self.start = self.now()

    def on_before_backward(self, *_):
        self.before_backward = self.now()

    def on_after_backward(self, *_):
        self.after_backward = self.now()

    def on_train_batch_end(self, *_):
        end = self.now()
        step = {
            "load": self.start - self.end,
            "forward": self.forward,
            "log": self.before_backward - self.start - self.forward,
            "backward": self.after_backward - self.before_backward,
            "update": end - self.after_backward,
            "step": end - self.end,
        }
        self.steps.append(step)
        self.end = end

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(self.now() - self.epoch_start)


def model_of(method: str, adata: ad.AnnData):
    import scvi

    import scdisentangle

    cls = scvi.model.SCVI if method == "scVI" else scdisentangle.DisentangleModel
    cls.setup_anndata(adata, batch_key=BATCH)
    return cls(adata, **{"scVI": SCVI, BARE: {"objective": None}}.get(method, {}))


def bound(model, device: str, n_cells: int) -> float:
    """Milliseconds that the matrix products of a step take at the speed of a large one."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = model.module.to(device).train()
    loader = model._make_data_loader(model.adata, batch_size=n_cells)
    tensors = {key: value.to(device) for key, value in next(iter(loader)).items()}
    countable = torch.backends.mkldnn.flags(enabled=False)  # oneDNN's products are not counted
    with countable, FlopCounterMode(display=False) as counter:
        module(tensors)[2].loss.backward()
    a = torch.randn(2048, 2048, device=device)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 1e3 * counter.get_total_flops() * min(seconds) / (2 * 2048**3)


def training(job: Mapping, n_cells: int, device: str, minibatch: int, epochs: int) -> dict:
    """Cells a second and the pieces of a step, means after the first epoch."""
    import scvi

    one_thread()
    scvi.settings.seed = job["seed"]
    model = model_of(job["variant"], counts(n_cells, job["seed"]))
    watch = Stopwatch(device)
    model.train(
        epochs,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        train_size=1.0,
        batch_size=minibatch,
        enable_progress_bar=False,
        callbacks=[watch],
    )
    steps = pd.DataFrame(watch.steps[-(-n_cells // minibatch) :]).mean()
    found = {f"{piece}_ms": 1e3 * steps[piece] for piece in (*PIECES, "step")}
    seconds = float(np.median(watch.epochs[1:]))
    one_thread()
    return found | {
        "cells_per_s": n_cells / seconds,
        "seconds": seconds,
        "bound_ms": bound(model, device, minibatch),
    }


def whole_run(job: Mapping) -> dict:
    """Seconds of ``train()`` at the defaults of each, on the simulated set."""
    import scvi

    import scdisentangle

    one_thread()
    scvi.settings.seed = job["seed"]
    adata = scdisentangle.data.simulated(n_cells=2000, n_genes=N_GENES, seed=job["seed"])
    cls = scvi.model.SCVI if job["variant"] == "scVI" else scdisentangle.DisentangleModel
    cls.setup_anndata(adata, batch_key=BATCH)
    model = cls(adata)
    start = time.perf_counter()
    model.train(enable_progress_bar=False)
    return {"seconds": time.perf_counter() - start}


def latents(job: Mapping, n_cells: int, folder: Path | None) -> dict:
    """Seconds and peak memory of a process that streams codes of so many cells from disk."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for work in (write, stream):  # each in a process of its own, for its memory
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(work, Path(place), n_cells).result()
    return found


def write(place: Path, n_cells: int) -> None:
    """A collection of annbatch."""
    import scdisentangle

    path = str(place / "cells.h5ad")
    counts(n_cells).write_h5ad(path)
    scdisentangle.DisentangleModel.setup_annbatch(
        str(place / "cells.zarr"), [path], batch_key=BATCH, batch_size=1024, preload_to_gpu=False
    )


def stream(place: Path, n_cells: int) -> dict:
    import torch

    import scdisentangle

    torch.set_num_threads(1)
    datamodule = scdisentangle.DisentangleModel.setup_annbatch(
        str(place / "cells.zarr"),
        batch_key=BATCH,
        rebuild=False,
        batch_size=1024,
        preload_to_gpu=False,
    )
    model = scdisentangle.DisentangleModel(registry=datamodule.registry)
    model.is_trained = True
    start = time.perf_counter()
    written = 0
    with open(place / "codes", "wb") as file:
        for codes in model.iter_latent_representation(dataloader=datamodule.inference_dataloader()):
            codes.tofile(file)
            written += len(codes)
    if written != n_cells:
        raise RuntimeError(f"{written} codes of {n_cells} cells")
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of the parent too
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
    return {"seconds": seconds, "cells_per_s": n_cells / seconds, "peak_gib": peak}


def run(job: Mapping, folder: Path | None) -> dict:
    kind, *sizes = job["set"].split(", ")
    first = int(sizes[0].split()[0])
    if kind == "whole run":
        found = whole_run(job)
    elif kind == "latents":
        found = latents(job, first, folder)
    elif kind == "growth":
        found = training(job, first, "cpu", 128, epochs=2)
    else:
        device = kind.removeprefix("training on ")
        epochs = max(3, 60_000 // first)
        found = training(job, first, device, int(sizes[1].split()[-1]), epochs)
    return dict.fromkeys(COLUMNS, np.nan) | found


def jobs(repeats: int, ours: str, n_latents: list[int]) -> list[dict]:
    """The rows to measure here; what cannot be is named."""
    import torch

    both = (ours, "scVI")
    rows = [("training on cpu, 20000 cells, minibatch 128", (*both, BARE), repeats)]
    rows += [("training on cpu, 2000 cells, minibatch 128", (ours, BARE), repeats)]
    rows += [("whole run, 2000 cells", both, 1)]
    rows += [(f"growth, {n} cells", (ours,), 1) for n in GROWTH]
    on_gpu = [f"training on cuda, 100000 cells, minibatch {n}" for n in (128, 1024)]
    if torch.cuda.is_available():
        rows += [(row, (*both, BARE), repeats) for row in on_gpu]
    else:
        print(f"Left out, no CUDA device: {'; '.join(on_gpu)}")
    from_disk = [f"latents, {n} cells" for n in n_latents]
    if importlib.util.find_spec("annbatch"):
        rows += [(row, (ours,), 1) for row in from_disk]
    else:
        print(f"Left out, no annbatch: {'; '.join(from_disk)}")
    return [
        {"set": row, "variant": variant, "seed": seed}
        for row, variants, n in rows
        for seed in range(n)
        for variant in variants
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ours-as", default="ours", help="the name of our rows")
    parser.add_argument("--only", default="", help="rows whose name begins so")
    parser.add_argument("--latents", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the cells of latents are written")
    results = Path(__file__).parent / "results" / "speed.csv"
    parser.add_argument("--csv", type=Path, default=results)
    arguments = parser.parse_args()
    todo = [
        job
        for job in jobs(arguments.repeats, arguments.ours_as, arguments.latents)
        if job["set"].startswith(arguments.only)
    ]
    table = run_all(todo, partial(run, folder=arguments.folder), arguments.csv, 1)
    medians = table.groupby(["set", "variant"], sort=False)[list(COLUMNS)].median()
    with pd.option_context("display.width", 250, "display.max_columns", 20):
        print(medians.round(2).dropna(axis=1, how="all").to_string(na_rep=""))
    growth = table[table["set"].str.startswith("growth") & (table["variant"] == "ours")]
    if len(growth) > 1:
        n_cells = growth["set"].str.extract(r"(\d+)")[0].astype(int)
        slope = np.polyfit(np.log(n_cells), np.log(growth["seconds"]), 1)[0]
        print(f"Slope of log time of an epoch on log cells: {slope:.2f}")


if __name__ == "__main__":
    main()
