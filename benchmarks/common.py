"""What the benchmarks share: real sets, scores, and runs that resume where they stopped."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from tqdm import tqdm

SETS = ("cellbench", "pbmcstim", "pbmc3chem")
HELD_OUT = ("islets", "islets of two species", "stem cells", "interferon", "blood")
"""Sets of other tissues. That encoders see components was found on the first three."""
LOG_NORMALISED = ("blood",)
"""Sets whose values are no counts."""
BATCH, LABEL = "batch", "celltype"
KEYS = ("set", "variant", "seed")


def load(folder: Path, name: str, max_cells: int | None = None) -> ad.AnnData:
    """A real set: values of 2,000 batch-aware variable genes, types of ten cells and more, PCA.

    With ``max_cells``, so many cells of it, the same at every call. ``uns["values"]`` says what the
    values are, ``"counts"`` or ``"log-normalised"``.
    """
    import scdisentangle

    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    adata.uns["values"] = "log-normalised" if name in LOG_NORMALISED else "counts"
    if max_cells is not None and max_cells < adata.n_obs:
        chosen = np.random.default_rng(0).choice(adata.n_obs, max_cells, replace=False)
        adata = adata[np.sort(chosen)].copy()
    sizes = adata.obs[LABEL].value_counts()
    adata = adata[adata.obs[LABEL].isin(sizes.index[sizes >= 10])].copy()
    scdisentangle.pp.select_genes(adata, 2000, batch_key=BATCH)
    scdisentangle.pp.pca(adata)
    return adata[:, adata.var["highly_variable"].to_numpy()].copy()


def scores(adata: ad.AnnData) -> dict[str, float]:
    """Integration scores of ``X_disentangle``, and leakage both ways if there is a z_nio."""
    import scdisentangle

    has_nio = "X_disentangle_batch" in adata.obsm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = scdisentangle.tl.integration_scores(
            adata, BATCH, LABEL, "X_disentangle", progress_bar=False
        ).iloc[0]
    return {**row, **leakage(adata, "X_disentangle_batch" if has_nio else None)}


def leakage(adata: ad.AnnData, use_rep_batch: str | None = None) -> dict[str, float]:
    """What probes read of the batch in ``X_disentangle``, and of both in z_nio if it is named."""
    import scdisentangle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = scdisentangle.tl.leakage(
            adata, BATCH, LABEL, use_rep_batch=use_rep_batch, progress_bar=False
        ).set_index(["code", "target", "within"])
    found = {
        "batch from z_bio within types": table.excess["z_bio", "batch", "mean over labels"],
    }
    if use_rep_batch is not None:
        found |= {
            "type from z_nio within batches": table.excess["z_nio", "label", "mean over batches"],
            "batch from z_nio": table.balanced_accuracy["z_nio", "batch", "all"],
        }
    return found


def run_all(
    jobs: Iterable[Mapping], run: Callable[[Mapping], dict], csv: Path, n_processes: int
) -> pd.DataFrame:
    """Run the jobs that ``csv`` lacks, a row each, and return the table of all.

    A job is a mapping with the keys ``set``, ``variant`` and ``seed``; each process has one thread.
    """
    done = set()
    if csv.exists():
        done = set(pd.read_csv(csv)[list(KEYS)].itertuples(index=False, name=None))
    todo = [job for job in jobs if tuple(job[key] for key in KEYS) not in done]
    csv.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false")
    pool = ProcessPoolExecutor(n_processes, mp_context=get_context("spawn"))
    with pool, tqdm(total=len(todo), desc=csv.stem, unit="run") as bar:
        futures = {pool.submit(_timed, run, job): job for job in todo}
        for future in as_completed(futures):
            bar.update()
            if error := future.exception():
                tqdm.write(f"{[futures[future][key] for key in KEYS]} failed: {error!r}")
                continue
            row = pd.DataFrame([future.result()])
            if csv.exists():  # whose columns need not be today's
                row = pd.concat([pd.read_csv(csv), row])
            row.to_csv(csv, index=False)
    return pd.read_csv(csv)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first two columns are words and whose others are numbers."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    lines.insert(1, "| --- | --- |" + " ---: |" * (len(heads) - 2))
    return "\n".join(lines) + "\n"


def one_thread() -> None:
    """Call right before training: numba, in gene selection and scores, sets PyTorch's threads."""
    import torch

    torch.set_num_threads(1)


def _timed(run: Callable[[Mapping], dict], job: Mapping) -> dict:
    began = time.perf_counter()
    found = run(job)
    return {**{key: job[key] for key in KEYS}, **found, "total_s": time.perf_counter() - began}
