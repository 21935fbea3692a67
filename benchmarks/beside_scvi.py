"""Ours and scVI side by side, one run: counterfactuals, markers, and labels of a new batch.

    python benchmarks/beside_scvi.py --data FOLDER

On the simulated default set, both are trained with their defaults (scVI with ``nb``, two layers and
as many latent dimensions as ours), and each cell is decoded in the batches that it is not of. On
the real sets, each batch in turn is left out, mapped on a model of the others (scArches), and its
cells take the label of most of the 15 nearest reference cells. Rows are kept in
``beside_scvi.csv``; a run that was stopped goes on with those that it lacks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import BATCH, LABEL, SETS, load, one_thread, run_all

SCVI = {"n_layers": 2, "n_latent": 30, "gene_likelihood": "nb"}
SCARCHES = {  # the architecture that scvi-tools' guide gives for query mapping
    **SCVI,
    "encode_covariates": True,
    "use_layer_norm": "both",
    "use_batch_norm": "none",
    "dropout_rate": 0.2,
}


def trained(method: str, adata: ad.AnnData, max_epochs: int | None, scvi_options: Mapping):
    import scvi

    import scdisentangle

    cls = {"ours": scdisentangle.DisentangleModel, "scVI": scvi.model.SCVI}[method]
    cls.setup_anndata(adata, batch_key=BATCH)
    model = cls(adata, **(scvi_options if method == "scVI" else {}))
    model.train(max_epochs, enable_progress_bar=False)
    return model


def simulated(job: Mapping, max_epochs: int | None) -> dict[str, float]:
    """Correlation with the true counterfactual, and AUROC of the true markers."""
    import scvi
    from sklearn.metrics import roc_auc_score

    import scdisentangle

    one_thread()
    scvi.settings.seed = job["seed"]
    adata = scdisentangle.data.simulated(seed=job["seed"])
    model = trained(job["variant"], adata, max_epochs, SCVI)
    rho, beta = adata.layers["truth"], np.asarray(adata.varm["batch_effect"])
    correlations = []
    for code, batch in enumerate(adata.uns["simulation"]["composition"].index):
        truth = np.log(rho) + beta[:, code]
        truth -= np.log(np.exp(truth).sum(axis=1, keepdims=True))
        decoded = model.get_normalized_expression(transform_batch=batch, return_numpy=True)
        elsewhere = (adata.obs[BATCH] != batch).to_numpy()
        correlations.append(
            np.corrcoef(np.log(decoded[elsewhere]).ravel(), truth[elsewhere].ravel())[0, 1]
        )
    found = {"counterfactual correlation": np.mean(correlations)}
    for mode, score in (("vanilla", "bayes_factor"), ("change", "lfc_mean")):
        table = model.differential_expression(
            groupby=LABEL, mode=mode, batch_correction=True, silent=True
        )
        found[f"AUROC of markers, {mode}"] = np.mean(
            [
                roc_auc_score(
                    adata.var["marker_of"] == label,
                    table[table["group1"] == label].loc[adata.var_names, score],
                )
                for label in adata.obs[LABEL].cat.categories
            ]
        )
    return found


def mapped(
    job: Mapping, folder: Path, max_epochs: int | None, max_cells: int | None
) -> dict[str, float]:
    """Accuracy of the labels that a left-out batch takes from the reference."""
    import scvi
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
    from sklearn.neighbors import KNeighborsClassifier

    name, left_out = job["set"].split(" without ")
    adata = load(folder, name, max_cells)
    new = (adata.obs[BATCH].astype(str) == left_out).to_numpy()
    reference, query = adata[~new].copy(), adata[new].copy()
    one_thread()
    scvi.settings.seed = job["seed"]
    model = trained(job["variant"], reference, max_epochs, SCARCHES)
    query_model = type(model).load_query_data(query, model)
    query_model.train(
        max_epochs or 200, enable_progress_bar=False, plan_kwargs={"weight_decay": 0.0}
    )
    classifier = KNeighborsClassifier(15).fit(
        model.get_latent_representation(), reference.obs[LABEL].astype(str)
    )
    predicted = classifier.predict(query_model.get_latent_representation())
    truth = query.obs[LABEL].astype(str)
    return {
        "accuracy": accuracy_score(truth, predicted),
        "balanced accuracy": balanced_accuracy_score(truth, predicted),
        "macro F1": f1_score(truth, predicted, average="macro"),
    }


def run(
    job: Mapping, folder: Path, max_epochs: int | None, max_cells: int | None
) -> dict[str, float]:
    if job["set"] == "simulated":
        found = simulated(job, max_epochs)
    else:
        found = mapped(job, folder, max_epochs, max_cells)
    columns = dict.fromkeys(COLUMNS, np.nan)
    return columns | found


COLUMNS = (
    "counterfactual correlation",
    "AUROC of markers, vanilla",
    "AUROC of markers, change",
    "accuracy",
    "balanced accuracy",
    "macro F1",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    all_sets = ("simulated", *SETS)
    parser.add_argument("--sets", nargs="*", choices=all_sets, default=all_sets)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--max-epochs", type=int, help="for a trial; by default the models' own")
    parser.add_argument("--max-cells", type=int, help="of each real set, to save time")
    results = Path(__file__).parent / "results" / "beside_scvi.csv"
    parser.add_argument("--csv", type=Path, default=results)
    arguments = parser.parse_args()
    is_trial = arguments.max_epochs is not None or arguments.max_cells is not None
    if is_trial and arguments.csv == results:
        parser.error("--max-epochs and --max-cells are for a trial: name a --csv of its own")
    sets = []
    for name in arguments.sets:
        if name == "simulated":
            sets.append(name)
            continue
        batches = ad.read_h5ad(arguments.data / f"{name}.h5ad", backed="r").obs[BATCH]
        sets += [f"{name} without {batch}" for batch in batches.astype(str).unique()]
    jobs = [
        {"set": name, "variant": method, "seed": seed}
        for seed in arguments.seeds
        for name in sets
        for method in ("ours", "scVI")
    ]
    worker = partial(
        run,
        folder=arguments.data,
        max_epochs=arguments.max_epochs,
        max_cells=arguments.max_cells,
    )
    table = run_all(jobs, worker, arguments.csv, arguments.processes)
    table["set"] = table["set"].str.split(" without ").str[0]
    means = table.groupby(["set", "variant", "seed"])[list(COLUMNS)].mean()
    medians = means.groupby(["set", "variant"]).median()
    with pd.option_context("display.width", 200, "display.max_columns", 10):
        print(medians.round(4).to_string(na_rep=""))


if __name__ == "__main__":
    main()
