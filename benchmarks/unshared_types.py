"""Does a type that one batch alone has stay apart? Real sets, without it in all others.

    python benchmarks/unshared_types.py --data FOLDER
    python benchmarks/unshared_types.py --data FOLDER --held-out

Of each set the second most frequent type is left in the batch that has most of it. Each run is a
row of ``benchmarks/results/unshared_types.csv``; a second call goes on with the rows that are
missing. Writes the table of the user guide.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import (
    BATCH,
    HELD_OUT,
    LABEL,
    LOG_NORMALISED,
    SETS,
    load,
    markdown,
    one_thread,
    run_all,
)
from integration import OF_COUNTS, ONE_ANSWER, harmony, ours, pca, scvi

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "unshared_types.csv"
TABLE = HERE.parent / "docs" / "user_guide" / "unshared_types_table.md"
N_NEIGHBORS = 15


METHODS = {
    "ours": ours,
    "ours, of genes": partial(ours, n_components=0),
    "ours, no counterfactuals": partial(ours, objective={"contrastive": {"counterfactual": 0.0}}),
    "ours, no objective": partial(ours, objective=None),
    "PCA": pca,
    "Harmony": harmony,
    "scVI": scvi,
}


def with_one_unshared(adata: ad.AnnData) -> tuple[ad.AnnData, str]:
    """Without the cells of the second most frequent type, but in one batch; and the type."""
    import scdisentangle

    labels = adata.obs[LABEL].astype(str)
    chosen = labels.value_counts().index[1]
    home = adata.obs.loc[labels == chosen, BATCH].value_counts().index[0]
    adata = adata[(labels != chosen) | (adata.obs[BATCH] == home)].copy()
    scdisentangle.pp.pca(adata)
    return adata, chosen


def purity(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each cell's neighbours that are of its type."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(codes).kneighbors(return_distance=False)
    return (labels[near] == labels[:, None]).mean(axis=1)


def run(job: Mapping) -> dict:
    import scvi as scvi_tools

    adata, chosen = with_one_unshared(load(job["data"], job["set"]))
    labels = adata.obs[LABEL].astype(str).to_numpy()
    scvi_tools.settings.seed = job["seed"]
    one_thread()
    own = purity(np.asarray(METHODS[job["variant"]](adata, job["seed"])), labels)
    others = pd.Series(own).groupby(labels).mean().drop(chosen).mean()
    return {"type": chosen, "unshared": own[labels == chosen].mean(), "others": others}


def table(results: pd.DataFrame) -> str:
    """A row for each set: neighbours of the unshared type's cells that are of it, and others'."""
    medians = results.groupby(["set", "variant"])[["unshared", "others"]].median()
    methods = [name for name in METHODS if name in set(results["variant"])]
    rows = []
    for name in (*SETS, *HELD_OUT):
        of_set = results[results["set"] == name]
        if of_set.empty:
            continue
        cells = [
            "{:.2f} ({:.2f})".format(*medians.loc[name, method])
            if (name, method) in medians.index
            else "–"
            for method in methods
        ]
        rows.append([name, of_set["type"].iloc[0], *cells])
    return markdown(["set", "its type", *methods], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=range(3))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--held-out", dest="sets", action="store_const", const=HELD_OUT)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    jobs = [
        {"set": name, "variant": method, "seed": seed, "data": arguments.data.resolve()}
        for seed in arguments.seeds
        for method in arguments.methods
        for name in arguments.sets
        if seed == 0 or method not in ONE_ANSWER
        if name not in LOG_NORMALISED or method not in OF_COUNTS
    ]
    results = run_all(jobs, run, RESULTS, arguments.processes)
    TABLE.write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
