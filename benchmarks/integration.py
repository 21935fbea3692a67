"""Ours and what people use today, on the same genes and by the same scores.

    python benchmarks/integration.py --data FOLDER                  # methods that see no labels
    python benchmarks/integration.py --data FOLDER --labels 0.1 0.5 1
    python benchmarks/integration.py --data FOLDER --methods ours --redo
    python benchmarks/integration.py --data FOLDER --held-out       # sets of other tissues

Needs the extra ``peers``. Each run is a process of one thread, and a row of
``benchmarks/results/integration.csv``; a second call goes on with the rows that are missing. Writes
the tables of the README and of the user guide, and the figure of the user guide.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import (
    BATCH,
    HELD_OUT,
    KEYS,
    LABEL,
    LOG_NORMALISED,
    SETS,
    load,
    markdown,
    one_thread,
    run_all,
    scores,
)

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "integration.csv"
README = HERE.parent / "README.md"
GUIDE = HERE.parent / "docs" / "user_guide"
KNOWN, UNKNOWN, PREDICTED = "known", "Unknown", "predicted"
BIO, NIO = "X_disentangle", "X_disentangle_batch"
SCVI = {"n_layers": 2, "n_latent": 30, "gene_likelihood": "nb"}
QUIET = {"enable_progress_bar": False}


def log_normalised(adata: ad.AnnData) -> ad.AnnData:
    import scanpy as sc

    adata = adata.copy()
    if adata.uns["values"] != "counts":
        return adata
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def pca(adata: ad.AnnData, seed: int) -> np.ndarray:
    return adata.obsm["X_pca"]


def harmony(adata: ad.AnnData, seed: int) -> np.ndarray:
    import harmonypy

    found = harmonypy.run_harmony(adata.obsm["X_pca"], adata.obs, BATCH, random_state=seed)
    return np.asarray(found.Z_corr).reshape(adata.n_obs, -1)


def scanorama(adata: ad.AnnData, seed: int) -> np.ndarray:
    import scanorama

    members = [np.flatnonzero(adata.obs[BATCH] == b) for b in adata.obs[BATCH].unique()]
    values = log_normalised(adata)
    parts = [values[rows].copy() for rows in members]
    scanorama.integrate_scanpy(parts, seed=seed)
    codes = np.concatenate([part.obsm["X_scanorama"] for part in parts])
    return codes[np.argsort(np.concatenate(members))]


def scvi(adata: ad.AnnData, seed: int) -> np.ndarray:
    from scvi.model import SCVI as Model

    Model.setup_anndata(adata, batch_key=BATCH)
    model = Model(adata, **SCVI)
    model.train(**QUIET)
    return model.get_latent_representation()


def sysvi(adata: ad.AnnData, seed: int) -> np.ndarray:
    from scvi.external import SysVI

    adata = log_normalised(adata)
    SysVI.setup_anndata(adata, batch_key=BATCH)
    model = SysVI(adata)
    model.train(**QUIET)
    return model.get_latent_representation()


def drvi(adata: ad.AnnData, seed: int) -> np.ndarray:
    from drvi.model import DRVI

    DRVI.setup_anndata(adata, batch_key=BATCH)
    model = DRVI(adata)
    model.train(**QUIET)
    return model.get_latent_representation()


def biobatchnet(adata: ad.AnnData, seed: int) -> np.ndarray:
    from biobatchnet import correct_batch_effects

    return correct_batch_effects(adata, BATCH, data_type="seq", device="cpu")[0]


def concord(adata: ad.AnnData, seed: int) -> np.ndarray:
    from concord import Concord

    adata = log_normalised(adata)
    options = {"domain_key": BATCH, "seed": seed, "preload_dense": True}  # no worker processes
    Concord(adata, save_dir=None, **options).fit_transform(save_model=False)
    return adata.obsm["Concord"]


def ours(adata: ad.AnnData, seed: int, labels_key: str | None = None, **options) -> np.ndarray:
    from scdisentangle import DisentangleModel

    DisentangleModel.setup_anndata(
        adata, batch_key=BATCH, labels_key=labels_key, unlabeled_category=UNKNOWN
    )
    model = DisentangleModel(adata, **options)
    model.train(**QUIET)
    adata.obsm[NIO] = model.get_latent_representation(representation="batch")
    if labels_key is not None:
        adata.obs[PREDICTED] = model.predict()
    return model.get_latent_representation()


def scanvi(adata: ad.AnnData, seed: int) -> np.ndarray:
    from scvi.model import SCANVI
    from scvi.model import SCVI as Model

    Model.setup_anndata(adata, batch_key=BATCH, labels_key=KNOWN)
    unsupervised = Model(adata, **SCVI)
    unsupervised.train(**QUIET)
    model = SCANVI.from_scvi_model(unsupervised, unlabeled_category=UNKNOWN)
    model.train(**QUIET)
    adata.obs[PREDICTED] = model.predict()
    return model.get_latent_representation()


def fadvi(adata: ad.AnnData, seed: int) -> np.ndarray:
    from fadvi import FADVI

    FADVI.setup_anndata(adata, batch_key=BATCH, labels_key=KNOWN, unlabeled_category=UNKNOWN)
    model = FADVI(adata)
    model.train(max_epochs=30, **QUIET)  # its guide's; without, it fails on scvi-tools 1.4.2
    adata.obs[PREDICTED] = model.predict(return_dict=False)
    return model.get_latent_representation(representation="label")


UNSUPERVISED = {
    "ours": ours,
    "PCA": pca,
    "Harmony": harmony,
    "Scanorama": scanorama,
    "scVI": scvi,
    "SysVI": sysvi,
    "DRVI": drvi,
    "BioBatchNet": biobatchnet,
    "CONCORD": concord,
}
LABELLED = {"ours": partial(ours, labels_key=KNOWN), "scANVI": scanvi, "FADVI": fadvi}
SHARES = (0.1, 0.5, 1.0)
ONE_ANSWER = ("PCA", "Harmony", "Scanorama")
"""Methods that give the same whatever the seed, or the same within rounding."""
OF_COUNTS = ("scVI", "DRVI", "BioBatchNet", "scANVI", "FADVI")
"""Methods that take nothing but counts."""

SCORES = {
    "Total": "Total",
    "Total (no silhouette)": "Total without silhouettes",
    "CiLISI": "CiLISI",
    "Bio conservation": "bio",
    "Batch correction": "batch",
    "macro F1": "macro F1",
}
COLORS = (
    "#D55E00",
    "#707070",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#C7B60A",
    "#000000",
    "#8A2BA8",
)
LEAKED = "batch from z_bio within types"
OF_NIO = ("type from z_nio within batches", "batch from z_nio")


def run(job: Mapping) -> dict:
    """Fit one method to one set with one seed, in a process of its own, and score its embedding."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        codes, predicted, measured = alone.submit(fitted, job).result()
    adata = loaded(job["data"], job["set"]).copy()
    adata.obsm.update(codes)
    measured["macro F1"] = np.nan
    if predicted is not None:
        known = known_labels(adata.obs[LABEL], job["share"], job["seed"])
        measured["macro F1"] = macro_f1(adata.obs[LABEL], predicted, known == UNKNOWN)
    return dict.fromkeys((LEAKED, *OF_NIO), np.nan) | scores(adata) | measured


loaded = cache(load)


def fitted(job: Mapping) -> tuple[dict[str, np.ndarray], np.ndarray | None, dict[str, float]]:
    """The codes, the labels if any are predicted, and what the fit took."""
    import scvi as scvi_tools

    adata = load(job["data"], job["set"])
    method = UNSUPERVISED[job["method"]] if job["share"] is None else LABELLED[job["method"]]
    if job["share"] is not None:
        adata.obs[KNOWN] = known_labels(adata.obs[LABEL], job["share"], job["seed"])
    scvi_tools.settings.seed = job["seed"]
    one_thread()
    wall, cpu = time.perf_counter(), time.process_time()
    codes = {BIO: np.asarray(method(adata, job["seed"]), dtype=np.float32)}
    measured = {
        "source": "run",
        "fit_s": time.process_time() - cpu,
        "fit_wall_s": time.perf_counter() - wall,
        "peak_mb": peak_mb(),
    }
    if NIO in adata.obsm:
        codes[NIO] = adata.obsm[NIO]
    return codes, adata.obs[PREDICTED].to_numpy() if PREDICTED in adata.obs else None, measured


def peak_mb() -> float:
    """Most memory that this process has held, as Linux tells; ``ru_maxrss`` counts the parent's."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def known_labels(labels: pd.Series, share: float, seed: int) -> pd.Series:
    """The labels of this share of each type's cells, at least one; of the others, ``Unknown``."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = labels.iloc[order].groupby(labels.iloc[order], observed=True).cumcount()[labels.index]
    sizes = labels.astype(str).map(labels.value_counts())
    chosen = rank < (share * sizes).round().clip(lower=1)
    return labels.astype(str).where(chosen, UNKNOWN).astype("category")


def macro_f1(labels: pd.Series, predicted: np.ndarray, hidden: pd.Series) -> float:
    """Of what was predicted for the cells whose label was hidden; NaN where none was."""
    from sklearn.metrics import f1_score

    if not hidden.any():
        return np.nan
    return f1_score(labels[hidden].astype(str), predicted[hidden].astype(str), average="macro")


def variant(method: str, share: float | None) -> str:
    return method if share is None else f"{method}, {share:.0%} of labels"


def taken_over(csv: Path, have: pd.DataFrame) -> pd.DataFrame:
    """Rows that others measured, of the methods, sets and seeds that ``have`` lacks."""
    names = {method.lower(): method for method in UNSUPERVISED}
    names |= {method.lower(): variant(method, 1.0) for method in LABELLED}
    peers = pd.read_csv(csv).rename(columns={"dataset": "set", "method": "variant"})
    peers["variant"] = peers["variant"].map(names)
    peers["fit_wall_s"] = peers.filter(like="seconds").iloc[:, 0]
    bio, batch = ["Leiden NMI", "Leiden ARI", "cLISI"], ["iLISI", "KBET"]
    batch += ["Graph connectivity", "PCR comparison"]
    means = peers[bio].mean(axis=1), peers[batch].mean(axis=1)
    peers["Total (no silhouette)"] = 0.6 * means[0] + 0.4 * means[1]
    peers["source"] = "taken over"
    known = set(have[list(KEYS)].itertuples(index=False, name=None))
    new = [key not in known for key in peers[list(KEYS)].itertuples(index=False, name=None)]
    return peers.loc[new].reindex(columns=have.columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=range(5))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--held-out", dest="sets", action="store_const", const=HELD_OUT)
    known = UNSUPERVISED | LABELLED
    parser.add_argument("--methods", nargs="+", choices=known, help="all by default")
    parser.add_argument("--labels", type=float, nargs="*", help="shares of labels to show")
    parser.add_argument("--redo", action="store_true", help="run what has a row again")
    parser.add_argument("--taken-from", type=Path, help="scores of others, for what was not run")
    arguments = parser.parse_args()
    methods = arguments.methods or (UNSUPERVISED if arguments.labels is None else LABELLED)
    jobs = [
        {
            "set": name,
            "variant": variant(method, share),
            "seed": seed,
            "method": method,
            "share": share,
            "data": arguments.data.resolve(),
        }
        for seed in arguments.seeds
        for method in methods
        for name in arguments.sets
        for share in arguments.labels or [None]
        if seed == 0 or method not in ONE_ANSWER
        if name not in LOG_NORMALISED or method not in OF_COUNTS
    ]
    if arguments.redo:
        old, again = pd.read_csv(RESULTS), pd.DataFrame(jobs)[list(KEYS)]
        keys = pd.MultiIndex.from_frame(again)
        old[~pd.MultiIndex.from_frame(old[list(KEYS)]).isin(keys)].to_csv(RESULTS, index=False)
    results = run_all(jobs, run, RESULTS, arguments.processes)
    if arguments.taken_from is not None:
        results = pd.concat([results, taken_over(arguments.taken_from, results)])
        results.to_csv(RESULTS, index=False)
    report(results)


def report(results: pd.DataFrame) -> None:
    """Write the tables of the README and of the guide, and the figure."""
    methods = [name for name in UNSUPERVISED if name in set(results["variant"])]
    main_table, held_out = table(results, methods), table(results, methods, HELD_OUT)
    text = README.read_text()
    begin, end = "<!-- integration: begin -->\n", "<!-- integration: end -->"
    before, rest = text.split(begin)
    README.write_text(before + begin + main_table + end + rest.split(end)[1])
    labelled = [
        variant(method, share)
        for share in SHARES
        for method in LABELLED
        if variant(method, share) in set(results["variant"])
    ]
    (GUIDE / "integration_table.md").write_text(main_table)
    (GUIDE / "integration_held_out_table.md").write_text(held_out)
    with_labels = table(results, labelled)
    (GUIDE / "integration_labels_table.md").write_text(with_labels)
    figure(results, methods, GUIDE / "integration.png")
    print("\n".join([main_table, held_out, with_labels]))


def table(results: pd.DataFrame, variants: Sequence[str], sets: Sequence[str] = SETS) -> str:
    """A row for each set and variant: medians over seeds, and the range of the Total; best bold."""
    shown = results[results["variant"].isin(variants)].copy()
    shown["seconds"] = shown["fit_s"].fillna(shown["fit_wall_s"])
    scores = [name for name in SCORES if shown[name].notna().any()]
    groups = shown.groupby(["set", "variant"])
    medians = groups[[*scores, LEAKED, "seconds", "peak_mb"]].median()
    heads = ["set", "method", "Total", "its range", *(SCORES[name] for name in scores[1:])]
    heads += ["batch in embedding", "seconds", "GB", "seeds"]
    lines = []
    for name in sets:
        if name not in medians.index:
            continue
        best = medians.loc[[name], scores].max().round(3)
        for method in variants:
            if (name, method) not in medians.index:
                continue
            row, runs = medians.loc[name, method], groups.get_group((name, method))
            cells = [
                f"**{row[score]:.3f}**"
                if round(row[score], 3) == best[score]
                else _cell(row[score])
                for score in scores
            ]
            low, high = runs["Total"].min(), runs["Total"].max()
            cells.insert(1, f"{low:.3f}–{high:.3f}" if len(runs) > 1 else "")
            mark = " †" if (runs["source"] != "run").any() else ""
            cells = [name, method + mark, *cells, _cell(row[LEAKED], 2)]
            cells += [_cell(row["seconds"], 0 if row["seconds"] >= 10 else 1)]
            cells += [_cell(row["peak_mb"] / 1024, 1), str(len(runs))]
            lines.append(cells)
    return markdown(heads, lines)


def _cell(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def figure(results: pd.DataFrame, methods: Sequence[str], path: Path) -> None:
    """Bio conservation against batch correction: medians, and ranges over seeds."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(SETS), figsize=(13, 4.6), layout="constrained")
    points = {}
    for ax, name in zip(axes, SETS, strict=True):
        for method, color in zip(methods, COLORS, strict=False):
            rows = results[(results["set"] == name) & (results["variant"] == method)]
            if rows.empty:
                continue
            runs = rows[["Batch correction", "Bio conservation"]]
            middle = runs.median()
            reach = np.stack([middle - runs.min(), runs.max() - middle], axis=1)
            points[method] = ax.errorbar(
                *middle,
                xerr=reach[:1].T,
                yerr=reach[1:].T,
                fmt="o",
                ms=10 if method == "ours" else 6,
                color=color,
                elinewidth=0.8,
            )
        ax.set(title=name, xlabel="Batch correction")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Bio conservation")
    fig.legend(points.values(), points, loc="outside right center", frameon=False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


if __name__ == "__main__":
    main()
