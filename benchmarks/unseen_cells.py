"""How well do cells that a model has not seen integrate? Real sets, a fifth of the cells left out.

    python benchmarks/unseen_cells.py --data FOLDER

A model is trained on four fifths of each set and encodes the rest. Probes read the batch from
``z_bio`` within types, of the unseen cells and of as many that it has seen, and the model's
classifier names the batch of the unseen ones from ``z_nio``, beside a logistic regression on all
genes. Each run is a row of ``benchmarks/results/unseen_cells.csv``; a second call goes on with the
rows that are missing. Writes the table of the user guide.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import BATCH, LABEL, SETS, leakage, load, markdown, one_thread, run_all

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "unseen_cells.csv"
TABLE = HERE.parent / "docs" / "user_guide" / "unseen_cells_table.md"
COLUMNS = {
    "batch from z_bio, seen": "batch in `z_bio`, seen cells",
    "batch from z_bio, unseen": "batch in `z_bio`, unseen cells",
    "batch by the classifier": "batch named by the classifier",
    "batch by all genes": "by logistic regression on all genes",
}


def split(adata: ad.AnnData, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Four fifths and one fifth, alike in types and batches."""
    from sklearn.model_selection import train_test_split

    groups = adata.obs[BATCH].astype(str) + "/" + adata.obs[LABEL].astype(str)
    groups[groups.map(groups.value_counts()) < 5] = "few"
    seen, unseen = train_test_split(
        np.arange(adata.n_obs), test_size=0.2, random_state=seed, stratify=groups
    )
    return adata[seen].copy(), adata[unseen].copy()


def left_of_the_batch(model, adata: ad.AnnData) -> float:
    """What probes read of the batch in ``z_bio`` within types, above chance."""
    adata.obsm["X_disentangle"] = model.get_latent_representation(adata)
    return leakage(adata)["batch from z_bio within types"]


def named_by_the_classifier(model, adata: ad.AnnData) -> np.ndarray:
    """The batch of each cell, as the model's classifier reads it from ``z_nio``."""
    import torch

    z_nio = model.get_latent_representation(adata, representation="batch")
    with torch.inference_mode():
        logits = model.module.classifier(torch.tensor(z_nio, device=model.module.device))
    batches = model.adata_manager.get_state_registry("batch").categorical_mapping
    return batches[logits.argmax(dim=1).cpu().numpy()]


def named_by_genes(seen: ad.AnnData, unseen: ad.AnnData) -> np.ndarray:
    """The batch of each unseen cell, by logistic regression on the logarithms of its genes."""
    import scanpy as sc
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = []
    for adata in (seen, unseen):
        logarithms = ad.AnnData(adata.X.copy())
        sc.pp.normalize_total(logarithms, target_sum=1e4)
        sc.pp.log1p(logarithms)
        values.append(logarithms.to_df().to_numpy())
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(values[0], seen.obs[BATCH]).predict(values[1])


def run(job: Mapping) -> dict:
    import scvi
    from sklearn.metrics import balanced_accuracy_score

    from scdisentangle import DisentangleModel

    seen, unseen = split(load(job["data"], job["set"]), job["seed"])
    scvi.settings.seed = job["seed"]
    DisentangleModel.setup_anndata(seen, batch_key=BATCH)
    model = DisentangleModel(seen)
    one_thread()
    model.train(enable_progress_bar=False)
    as_many = seen[np.random.default_rng(0).choice(seen.n_obs, unseen.n_obs, False)].copy()
    truth = unseen.obs[BATCH].astype(str)
    return {
        "batch from z_bio, seen": left_of_the_batch(model, as_many),
        "batch from z_bio, unseen": left_of_the_batch(model, unseen),
        "batch by the classifier": balanced_accuracy_score(
            truth, named_by_the_classifier(model, unseen)
        ),
        "batch by all genes": balanced_accuracy_score(truth, named_by_genes(seen, unseen)),
    }


def table(results: pd.DataFrame) -> str:
    """Medians over seeds, a row for each set."""
    medians = results.groupby("set")[list(COLUMNS)].median()
    seeds = results.groupby("set").size()
    rows = [
        [name, str(seeds[name]), *(f"{value:.2f}" for value in medians.loc[name])]
        for name in SETS
        if name in medians.index
    ]
    return markdown(["set", "seeds", *COLUMNS.values()], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=range(5))
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    jobs = [
        {"set": name, "variant": "ours", "seed": seed, "data": arguments.data.resolve()}
        for seed in arguments.seeds
        for name in SETS
    ]
    results = run_all(jobs, run, RESULTS, arguments.processes)
    TABLE.write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
