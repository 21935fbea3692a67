"""The steps of ``scdisentangle integrate``, each a call of the public API."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import pandas as pd
import scvi
import torch
from rich.console import Console
from rich.markup import escape

from . import _output, data, pl, pp, tl
from ._errors import InputError, name_some
from ._model import DisentangleModel
from ._scores_table import scores_table
from ._training import default_max_epochs
from ._values import are_counts, matrix, sums_of_cells
from .pl._words import TITLES
from .pp._threads import threads_kept
from .tl._checks import check_obs

UNINTEGRATED, BIO, BATCH = "X_unintegrated", "X_disentangle", "X_disentangle_batch"


def integrate(arguments: argparse.Namespace) -> None:
    """Run all steps and write the folder ``arguments.out``."""
    console = Console()
    new_folder = _output.complete_folder(arguments.out, overwrite=arguments.overwrite)
    with _plain_messages(console), new_folder as folder:
        steps = _Steps(console)
        adata = _read(arguments, steps)
        steps.expect(_expected_seconds(adata, arguments))
        model = _train(adata, arguments, steps, folder)
        _embed(adata, model, steps)
        tables = _score(adata, model, arguments, steps, folder)
        with _at_most_a_warning("Not every picture was drawn."):
            _draw(adata, model, arguments, steps, folder)
        steps.start("Write", f"{arguments.out}/")
        model.save(str(folder / _output.MODEL))
        pd.concat(model.history.values(), axis=1).to_csv(folder / _output.HISTORY)
        with _at_most_a_warning("The data were not written; the model, which holds, gives codes."):
            adata.write_h5ad(folder / _output.ADATA)
    for table in tables:
        console.print(table)
    steps.finish(f"Everything is in {arguments.out}/")


class _Steps:
    """Numbered steps, with the time that is left, longer where the pace so far was slow."""

    def __init__(self, console: Console):
        self.console = console
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.names = ["Read", "Select", "Train", "Embed", "Score", "Draw", "Write"]

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Say how many seconds the coming steps would take on a machine of middling speed."""
        self.seconds = dict(seconds)
        self.began = time.perf_counter()

    def start(self, name: str, what: str) -> None:
        number = self.names.index(name)
        done = sum(self.seconds.get(n, 0.0) for n in self.names[:number])
        left = sum(self.seconds.get(n, 0.0) for n in self.names[number:])
        if done >= 5.0:
            left *= max((time.perf_counter() - self.began) / done, 1.0)
        remaining = f" [dim](about {_duration(left)} left)[/dim]" if self.seconds else ""
        self.console.print(
            f"[bold]\\[{number + 1}/{len(self.names)}][/bold] {name} {escape(what)}{remaining}"
        )

    def finish(self, message: str) -> None:
        seconds = time.perf_counter() - self.began
        self.console.print(f"Done in {_duration(seconds)}. {escape(message)}")


def _duration(seconds: float) -> str:
    return f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _expected_seconds(adata: ad.AnnData, arguments: argparse.Namespace) -> dict[str, float]:
    epochs = arguments.max_epochs or default_max_epochs(adata.n_obs)
    thousands = adata.n_obs / 1000
    scored = 0.0 if arguments.label_key is None else 30 + 15 * thousands
    return {
        "Select": 1 + 0.2 * thousands,
        "Train": 2 + 0.4 * epochs * thousands,
        "Embed": 1 + 0.1 * thousands,
        "Score": 4 + 2 * min(thousands, 20) + scored,  # probes read some of the cells only
        "Draw": 10 + 8 * min(thousands, 10) + max(thousands - 10, 0),  # UMAP takes fewer epochs
        "Write": 1 + 0.1 * thousands,
    }


def _read(arguments: argparse.Namespace, steps: _Steps) -> ad.AnnData:
    if arguments.input is None:
        steps.start("Read", "the simulated default set")
        adata = data.simulated()
    else:
        steps.start("Read", str(arguments.input))
        try:
            adata = ad.read_h5ad(arguments.input)
        except Exception as error:
            raise InputError(f"{arguments.input} cannot be read as .h5ad: {error}") from error
    check_obs(adata, (arguments.batch_key, arguments.label_key))
    for table in (adata.obs, adata.var, *(() if adata.raw is None else (adata.raw.var,))):
        if "_index" in table:
            raise InputError(
                f"{arguments.input} has a column '_index', a name that .h5ad files keep for "
                "themselves, and could not be written: rename it."
            )
    n_batches = adata.obs[arguments.batch_key].nunique()
    steps.console.print(f"  {adata.n_obs:,} cells, {adata.n_vars:,} genes, {n_batches} batches")
    return adata


def _train(
    adata: ad.AnnData, arguments: argparse.Namespace, steps: _Steps, folder: Path
) -> DisentangleModel:
    steps.start("Select", f"up to {arguments.n_top_genes:,} genes that vary within batches")
    pp.select_genes(
        adata, arguments.n_top_genes, batch_key=arguments.batch_key, layer=arguments.layer
    )
    pp.pca(adata, layer=arguments.layer, key_added=UNINTEGRATED)
    scvi.settings.seed = arguments.seed
    selected = adata[:, adata.var["highly_variable"].to_numpy()].copy()
    empty = sums_of_cells(matrix(selected, arguments.layer)) == 0
    if empty.any() and are_counts(selected, arguments.layer):
        raise InputError(
            f"{empty.sum()} cells have no counts in the {selected.n_vars} selected genes: "
            f"{name_some(selected.obs_names[empty])}. Select more, --n-top-genes, or leave these "
            "cells out of the file."
        )
    DisentangleModel.setup_anndata(selected, batch_key=arguments.batch_key, layer=arguments.layer)
    options = {} if arguments.objective is None else {"objective": _objective(arguments.objective)}
    model = DisentangleModel(selected, **options)
    likelihood = model.module.gene_likelihood
    steps.start("Train", f"the model on {selected.n_vars:,} genes, gene_likelihood='{likelihood}'")
    with threads_kept():
        torch.set_num_threads(1)  # minibatches are small: more threads wait for one another
        model.train(max_epochs=arguments.max_epochs, default_root_dir=str(folder))
    return model


def _objective(named: list[tuple[str, float]]) -> dict[str, float] | None:
    return None if [name for name, _ in named] == ["none"] else dict(named)


def _embed(adata: ad.AnnData, model: DisentangleModel, steps: _Steps) -> None:
    steps.start("Embed", "all cells, z_bio and z_nio")
    adata.obsm[BIO] = model.get_latent_representation()
    adata.obsm[BATCH] = model.get_latent_representation(representation="batch")


def _score(
    adata: ad.AnnData,
    model: DisentangleModel,
    arguments: argparse.Namespace,
    steps: _Steps,
    folder: Path,
) -> list[object]:
    """Write the scores and return them as tables to print."""
    batch_key, label_key = arguments.batch_key, arguments.label_key
    steps.start("Score", "the codes" if label_key is None else "the codes and the integration")
    report = scores = None
    adata.uns.pop("disentanglement", None)  # that of an earlier run
    with _at_most_a_warning("The codes were not scored."):
        report = tl.disentanglement_report(
            model,
            batch_key,
            label_key,
            unintegrated=UNINTEGRATED,
            seed=arguments.seed,
            progress_bar=False,
        )
        adata.uns["disentanglement"] = model.adata.uns["disentanglement"]
    if label_key is not None:
        with _at_most_a_warning("Integration was not scored."):
            scores = tl.integration_scores(
                adata, batch_key, label_key, [UNINTEGRATED, BIO], unintegrated=UNINTEGRATED
            )
    _tidy(report, scores).to_csv(folder / _output.SCORES, index=False)
    return [
        *([] if scores is None else [scores_table(scores)]),
        *([] if report is None else [report]),
    ]


@contextmanager
def _at_most_a_warning(consequence: str) -> Iterator[None]:
    """What fails after training costs neither the model nor its codes."""
    try:
        yield
    except OSError:  # a full disk, on which nothing could be written
        raise
    except InputError as error:
        warnings.warn(f"{consequence} {error}", stacklevel=2)
    except Exception as error:  # noqa: BLE001
        warnings.warn(f"{consequence} {error!r}", stacklevel=2)


def _tidy(report: tl.DisentanglementReport | None, scores: pd.DataFrame | None) -> pd.DataFrame:
    """One row for each number: what was measured, of which embedding, and what chance gives."""
    columns = ["kind", "embedding", "metric", "within", "value", "chance", "p_value"]
    parts = []
    if scores is not None:
        metrics = scores.rename_axis("embedding").reset_index().melt("embedding", var_name="metric")
        parts.append(metrics.assign(kind="integration", within="all"))
    if report is not None:
        probes = report.table[report.table["measure"] == "balanced_accuracy"]
        keys = {"z_bio": BIO, "z_nio": BATCH, "unintegrated": UNINTEGRATED}
        embedding, metric = probes["code"].map(keys), probes["target"] + " from code"
        parts.append(probes.assign(kind="leakage", embedding=embedding, metric=metric))
    return (pd.concat(parts) if parts else pd.DataFrame()).reindex(columns=columns)


def _draw(
    adata: ad.AnnData,
    model: DisentangleModel,
    arguments: argparse.Namespace,
    steps: _Steps,
    folder: Path,
) -> None:
    steps.start("Draw", "UMAPs before and after, the losses and the report")
    titles = {
        UNINTEGRATED: "Unintegrated PCA",
        BIO: TITLES["z_bio"],
        BATCH: TITLES["z_nio"],
    }
    for key in titles:
        steps.console.print(f"  UMAP of {key}")
        tl.umap(adata, [key])
    colors = [key for key in (arguments.batch_key, arguments.label_key) if key is not None]
    previous = plt.get_backend()
    plt.switch_backend("agg")
    try:
        pl.latents(adata, colors, use_rep=titles, show=False, save=folder / _output.LATENTS)
        pl.losses(model, show=False, save=folder / _output.LOSSES)
        if "disentanglement" in adata.uns:
            pl.report(adata, show=False, save=folder / _output.REPORT)
    finally:
        plt.close("all")
        plt.switch_backend(previous)


@contextmanager
def _plain_messages(console: Console) -> Iterator[None]:
    """Show warnings of ours in one line each, and none of the libraries' chatter."""

    def show(message: Warning | str, *_args: object, **_kwargs: object) -> None:
        console.print(f"[yellow]warning:[/yellow] {escape(str(message))}", highlight=False)

    names = ("lightning.pytorch", "lightning.fabric", "scvi", "scdisentangle")
    chatty = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in chatty]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)
        for library in ("lightning", "torch", "anndata", "scanpy", "umap", "sklearn", "functools"):
            warnings.filterwarnings("ignore", module=library)
        warnings.showwarning = show
        for logger in chatty:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(chatty, levels, strict=True):
                logger.setLevel(level)
