"""What each part of the method does: every part and option on three real sets, parts on five more.

    python benchmarks/ablation.py --data ../shared/data --processes 2
    python benchmarks/ablation.py --data FOLDER --held-out    # the parts, on sets of other tissues

Writes one row a run to ``benchmarks/results/ablation.csv`` (a second call goes on where the first
stopped), the medians over seeds as the tables of the user guide, and the figure beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from common import BATCH, HELD_OUT, LABEL, SETS, load, markdown, one_thread, run_all, scores

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ablation.csv"
CELLS = 1000
EQUAL = {"n_latent_bio": 16, "n_latent_nio": 16}


def only(objective: str, weight: float = 1.0, **options) -> dict:
    """Model options for one objective in place of the default one."""
    return {"objective": {objective: {"weight": weight, **options}}}


# name: (options of the model, options of the training plan)
VARIANTS: dict[str, tuple[dict, dict]] = {
    "default": ({}, {}),
    "as written: shared encoder, mse, -MMD": ({"as_written": True}, {}),
    "as written, but -MMD weighs 1 per gene": ({"as_written": True, "lambda_dis": 2000.0}, {}),
    "no objective": ({"objective": None}, {}),
    "contrastive, no counterfactuals": (only("contrastive", counterfactual=0.0), {}),
    "variational z_bio, half the KL term": ({"kl_weight_bio": 0.5}, {}),
    "encoder of genes": ({"n_components": 0}, {}),
    "z_bio of free length": ({"spherical": False}, {}),
    "no alignment": ({"alignment": False}, {}),
    "no axes": ({"axes": False}, {}),
    "no gene dropout": ({"input_dropout": 0.0}, {}),
    "codes by the likelihood alone": ({"code_loss": "likelihood"}, {}),
    "codes by squared error alone": ({"code_loss": "squared_error"}, {}),
    "mse": ({"gene_likelihood": "mse"}, {}),
    "zinb": ({"gene_likelihood": "zinb"}, {}),
    "poisson": ({"gene_likelihood": "poisson"}, {}),
    "normal": ({"gene_likelihood": "normal"}, {}),
    "class-balanced classifier": ({"class_balanced": True}, {}),
    "-MMD, one Gaussian kernel": ({**only("mmd", kernel="gaussian"), **EQUAL}, {}),
    "-MMD, multi-scale kernel": ({**only("mmd"), **EQUAL}, {}),
    "-MMD, codes not normalised": ({**only("mmd", normalize=False), **EQUAL}, {}),
    "+MMD between batches": (only("batch_mmd"), {}),
    "HSIC(z_bio, z_nio)": (only("hsic", 10.0), {}),
    "CKA(z_bio, z_nio)": (only("cka"), {}),
    "mutual information": (only("mutual_information"), {}),
    "gradient penalty": (only("gradient_penalty", 0.1), {}),
    "contrastive, mutual neighbours": (only("contrastive", positives="mnn"), {}),
    "contrastive, labels (sees labels)": (only("contrastive", positives="labels"), {}),
    "contrastive 0.5 + MMD within clusters 0.4": (
        {"objective": {"contrastive": 0.5, "local_batch_mmd": 0.4}},
        {},
    ),
    "no classifier": ({"lambda_cls": 0.0, "nio_flow": "detached"}, {}),
    "adversary on z_bio": (only("adversary"), {}),
    "no input noise": ({}, {"noise_start": 0.0, "noise_end": 0.0}),
    "constant noise": ({}, {"noise_schedule": "constant"}),
    "cosine noise": ({}, {"noise_schedule": "cosine"}),
    "falling reconstruction weight": ({}, {"reconstruction_floor": 0.1}),
    "no warm-up": ({}, {"dis_warmup": 0.0, "dis_ramp": 0.0}),
    "HSIC(z_bio, batch)": (only("batch_hsic", 10.0), {}),
    "HSIC(z_bio, batch) within clusters": (only("local_batch_hsic", 10.0), {}),
    "MMD of batches within clusters": (only("local_batch_mmd"), {}),
    "shared encoder": ({"encoder": "shared"}, {}),
    "z_nio free": ({"nio_flow": "free"}, {}),
    "z_nio detached": ({"nio_flow": "detached"}, {}),
    "z_nio variational": ({"nio_flow": "variational"}, {}),
    "no batch in the decoder": ({"batch_in_decoder": False}, {}),
}
PARTS = list(VARIANTS)[: list(VARIANTS).index("mse")]
"""What the model is made of: run on sets of other tissues too."""

COLUMNS = {
    "Total": "Total",
    "Bio conservation": "Bio",
    "Batch correction": "Batch",
    "batch from z_bio within types": "batch in z_bio",
    "type from z_nio within batches": "type in z_nio",
    "train_s": "seconds",
}
SCORES = {"Bio": "bio conservation", "Batch": "batch correction"}
MEANS = {
    "Total": "Total",
    "Total (no silhouette)": "without silhouettes",
    "Bio conservation": "Bio",
    "Batch correction": "Batch",
    "batch from z_bio within types": "batch in z_bio",
}


def run(job: Mapping) -> dict:
    """Train one variant on one set with one seed, and score it."""
    import scvi

    from scdisentangle import DisentangleModel

    options, plan = VARIANTS[job["variant"]]
    adata = load(job["data"], job["set"], job["max_cells"])
    sees_labels = "labels" in job["variant"]
    scvi.settings.seed = job["seed"]
    DisentangleModel.setup_anndata(
        adata, batch_key=BATCH, labels_key=LABEL if sees_labels else None
    )
    options = dict(options)
    if options.pop("as_written", False):
        model = DisentangleModel.as_written(adata, **options)
    else:
        model = DisentangleModel(adata, **options)
    one_thread()
    began = time.process_time()
    model.train(
        plan_kwargs=plan,
        enable_progress_bar=False,
        max_epochs=job["max_epochs"],
        check_val_every_n_epoch=None,
        default_root_dir=str(HERE / "results"),
    )
    seconds = time.process_time() - began
    adata.obsm["X_disentangle"] = model.get_latent_representation()
    adata.obsm["X_disentangle_batch"] = model.get_latent_representation(representation="batch")
    return {**scores(adata), "train_s": seconds}


def table(results: pd.DataFrame) -> pd.DataFrame:
    """Medians over seeds, rows in the order of the method, three columns of sets in each score."""
    of_three = results[results["set"].isin(SETS)]
    medians = of_three.groupby(["variant", "set"])[list(COLUMNS)].median()
    medians = medians.rename(columns=COLUMNS).unstack("set")
    medians = medians.dropna()
    order = [name for name in VARIANTS if name in medians.index]
    medians = medians.loc[order, [(c, s) for c in COLUMNS.values() for s in SETS]]
    return medians


def as_markdown(medians: pd.DataFrame, seeds: str) -> str:
    """The table of the user guide: three numbers a cell, one for each set."""
    lines = [
        f"{' / '.join(SETS)}, 1,000 cells each; seeds: {seeds}.\n",
        "| variant | " + " | ".join(COLUMNS.values()) + " |",
        "| --- |" + " --- |" * len(COLUMNS),
    ]
    for name, row in medians.iterrows():
        cells = [
            " / ".join(f"{row[column, s]:.{0 if column == 'seconds' else 2}f}" for s in SETS)
            for column in COLUMNS.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table_of_parts(results: pd.DataFrame) -> str:
    """Means over all sets of the medians over seeds, and the Total of each set."""
    sets = [*SETS, *HELD_OUT]
    medians = results.groupby(["variant", "set"])[list(MEANS)].median().unstack("set")
    every = medians.reindex(PARTS, columns=pd.MultiIndex.from_product([MEANS, sets])).dropna()
    rows = [
        [
            name,
            *(f"{row[score].mean():.3f}" for score in MEANS),
            *(f"{row['Total', of_set]:.2f}" for of_set in sets),
        ]
        for name, row in every.iterrows()
    ]
    return markdown(["", *MEANS.values(), *sets], rows)


def figure(medians: pd.DataFrame, path: Path) -> None:
    """Bio conservation and batch correction, a row for each variant, lines at the default's."""
    import matplotlib.pyplot as plt

    rows = range(len(medians))
    size = (11, 1.2 + 0.21 * len(medians))
    fig, axes = plt.subplots(1, len(SETS), sharey=True, figsize=size, layout="constrained")
    for ax, of_set in zip(axes, SETS, strict=True):
        for score, color in (("Bio", "#0072B2"), ("Batch", "#E69F00")):
            values = medians[score, of_set]
            ax.scatter(values, rows, s=22, color=color, label=SCORES[score], zorder=3)
            ax.axvline(values["default"], color=color, linewidth=1, alpha=0.5)
        ax.axhline(medians.index.isin(PARTS).sum() - 0.5, color="0.7", linewidth=0.8, linestyle=":")
        ax.hlines(rows, *ax.get_xlim(), color="0.93", linewidth=0.8, zorder=0)
        ax.set_title(of_set)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(rows, medians.index, size=7)
    axes[0].set_ylim(len(medians) - 0.5, -0.5)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    fig.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, then write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-epochs", type=int, help="for a trial; by default the model's own")
    parser.add_argument(
        "--max-cells", type=int, default=CELLS, help="of each set, others for a trial"
    )
    parser.add_argument(
        "--csv", type=Path, default=RESULTS, help="of a trial, whose table is shown"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS)
    parser.add_argument("--held-out", action="store_true", help="the parts, on other tissues")
    arguments = parser.parse_args()
    is_trial = arguments.max_epochs is not None or arguments.max_cells != CELLS
    if is_trial and arguments.csv == RESULTS:
        parser.error("--max-epochs and --max-cells are for a trial: name a --csv of its own")
    variants = arguments.variants or (PARTS if arguments.held_out else VARIANTS)
    jobs = [
        {
            "set": name,
            "variant": variant,
            "seed": seed,
            "data": arguments.data.resolve(),
            "max_epochs": arguments.max_epochs,
            "max_cells": arguments.max_cells,
        }
        for seed in range(arguments.seeds)
        for name in (HELD_OUT if arguments.held_out else SETS)
        for variant in dict.fromkeys(("default", *variants))  # which others are beside
    ]
    results = run_all(jobs, run, arguments.csv, arguments.processes)
    if arguments.csv == RESULTS:
        report(results)
    else:
        print(as_markdown(table(results), str(arguments.seeds)))


def report(results: pd.DataFrame) -> None:
    """Write the table and the figure of the user guide, of the variants that all sets have."""
    medians = table(results)
    guide = HERE.parent / "docs" / "user_guide"
    done = results[results.variant.isin(medians.index) & results["set"].isin(SETS)]
    seeds = done.groupby(["variant", "set"]).size()
    of_parts = seeds[seeds.index.get_level_values("variant").isin(PARTS)]
    text = as_markdown(medians, f"{seeds.min()}, of parts of the method {of_parts.min()}")
    (guide / "ablation_table.md").write_text(text)
    figure(medians, guide / "ablation.png")
    (guide / "parts_table.md").write_text(table_of_parts(results))
    print(text)


if __name__ == "__main__":
    main()
