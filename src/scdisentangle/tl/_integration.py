from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse.linalg
from sklearn.neighbors import NearestNeighbors
from tqdm.auto import tqdm

from scdisentangle._errors import InputError
from scdisentangle.pp._threads import threads_kept

from ._checks import check_obs, check_obsm, finite_codes

BIO = ["Isolated labels", "Leiden NMI", "Leiden ARI", "Silhouette label", "cLISI"]
BATCH = ["BRAS", "iLISI", "KBET", "Graph connectivity", "PCR comparison"]
_SILHOUETTES = {"Isolated labels", "Silhouette label", "BRAS"}
_N_NEIGHBORS = 90


@threads_kept()
def integration_scores(
    adata: ad.AnnData,
    batch_key: str,
    label_key: str,
    embeddings: str | Sequence[str] = ("X_pca", "X_disentangle"),
    *,
    unintegrated: str = "X_pca",
    min_cells: int = 10,
    key_added: str = "integration_scores",
    progress_bar: bool = True,
) -> pd.DataFrame:
    """Score embeddings by how well they keep the labels and mix the batches.

    The metrics are those of scib-metrics (Luecken et al. 2022), between 0 and 1, higher is better,
    with Leiden clusters at the best of ten resolutions. `Bio conservation` and `Batch correction`
    are the means of their metrics and `Total` is 0.6 times the first plus 0.4 times the second.
    `Total (no silhouette)` is the same without the three that rest on silhouettes (isolated labels,
    silhouette label, BRAS), which reward round clusters even where batches do not mix
    (Rautenstrauch and Ohler 2025). `CiLISI` is iLISI within each label (Andreatta et al. 2024): the
    inverse Simpson index of the batches of a cell's 30 nearest cells of its label, scaled from 0 to
    1 by the number of batches that the label occurs in, and averaged over the cells of labels in
    several batches. Where batches differ in composition it does not reward mixing one label with
    another, as iLISI does. It is no part of the totals.

    scib-metrics starts the diffusion maps of kBET at random, by which kBET moves by a few
    hundredths from one call to the next. Here the start is fixed, so that scores can be repeated.

    Parameters
    ----------
    adata
        With the embeddings in ``adata.obsm``.
    batch_key
        Column of ``adata.obs`` with the batches, at least two.
    label_key
        Column of ``adata.obs`` with the labels (cell types), at least two. Cells without a label
        are not scored.
    embeddings
        Keys of ``adata.obsm`` to score, each of shape `(n_cells, n_dims)`.
    unintegrated
        Key of ``adata.obsm`` with the components before integration, see
        :func:`scdisentangle.pp.pca`; the PCR comparison measures against it.
    min_cells
        Cells of labels with fewer cells than this are not scored.
    key_added
        Key of ``adata.uns`` for the table.
    progress_bar
        Whether to show a progress bar over the embeddings.

    Returns
    -------
    Embeddings by metrics, also in ``adata.uns[key_added]``. Without a label in two batches
    ``BRAS``, ``KBET`` and ``CiLISI`` are NaN, and totals are of the others.

    Raises
    ------
    InputError
        If a key is missing, codes are not finite, or there are fewer than two batches or labels or
        91 cells to score.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated_codes(200, n_types=3)
    >>> scores = sd.tl.integration_scores(adata, "batch", "celltype", progress_bar=False)
    >>> bool(scores.at["X_disentangle", "Total"] > scores.at["X_pca", "Total"])
    True

    References
    ----------
    Luecken et al., Benchmarking atlas-level data integration in single-cell genomics, Nature
    Methods 19:41, 2022.

    Rautenstrauch and Ohler, Shortcomings of silhouette in single-cell integration benchmarking,
    Nature Biotechnology, 2025.

    Andreatta et al., Semi-supervised integration of single-cell transcriptomics data, Nature
    Communications 15:872, 2024.
    """
    embeddings = [embeddings] if isinstance(embeddings, str) else list(embeddings)
    check_obs(adata, (batch_key, label_key))
    check_obsm(adata, (*embeddings, unintegrated))
    cells = _cells_to_score(adata, batch_key, label_key, min_cells, [*embeddings, unintegrated])

    rows = []
    for key in tqdm(embeddings, desc="Scoring", unit="embedding", disable=not progress_bar):
        with _quiet(), _reproducible():
            rows.append(_benchmark(cells, key, unintegrated))
    table = pd.DataFrame(rows, index=embeddings).reindex(columns=BIO + BATCH).astype(float)
    table["Bio conservation"] = table[BIO].mean(axis=1)
    table["Batch correction"] = table[BATCH].mean(axis=1)
    table["Total"] = _total(table, BIO, BATCH)
    table["Total (no silhouette)"] = _total(
        table,
        [metric for metric in BIO if metric not in _SILHOUETTES],
        [metric for metric in BATCH if metric not in _SILHOUETTES],
    )
    batch, label = (cells.obs[key].to_numpy() for key in ("batch", "label"))
    table["CiLISI"] = [_cilisi(cells.obsm[key], batch, label) for key in embeddings]
    adata.uns[key_added] = table.copy()
    return table


def _total(table: pd.DataFrame, bio: list[str], batch: list[str]) -> pd.Series:
    return 0.6 * table[bio].mean(axis=1) + 0.4 * table[batch].mean(axis=1)


def _cilisi(codes: np.ndarray, batch: np.ndarray, label: np.ndarray) -> float:
    """Mean over cells; NaN if no label is in two batches."""
    found = [
        (_lisi(codes[label == name], batch[label == name]) - 1) / (n_batches - 1)
        for name, n_batches in pd.Series(batch).groupby(label).nunique().items()
        if n_batches > 1
    ]
    return float(np.concatenate(found).mean()) if found else np.nan


def _lisi(codes: np.ndarray, batch: np.ndarray, n_neighbors: int = 30) -> np.ndarray:
    """Effective number of batches among the nearest cells of each cell, without itself."""
    search = NearestNeighbors(n_neighbors=min(n_neighbors, len(codes) - 1)).fit(codes)
    near = search.kneighbors(return_distance=False)
    names, batch = np.unique(batch, return_inverse=True)  # names take long to compare
    shares = np.stack([(batch[near] == b).mean(axis=1) for b in range(len(names))], axis=1)
    return 1 / np.square(shares).sum(axis=1)


def _cells_to_score(
    adata: ad.AnnData, batch_key: str, label_key: str, min_cells: int, keys: list[str]
) -> ad.AnnData:
    """Batch, label and embeddings alone, of the cells with a batch and a label that is not rare."""
    label = adata.obs[label_key]
    keep = label.notna() & adata.obs[batch_key].notna()
    keep &= label.map(label.value_counts()).astype(float).fillna(0) >= min_cells
    kept = adata.obs.loc[keep]
    for key in (batch_key, label_key):
        if kept[key].nunique() < 2:
            raise InputError(
                f"Scoring needs at least two values of adata.obs['{key}'] among the "
                f"{len(kept)} cells of labels with at least {min_cells} cells; pass another key."
            )
    if len(kept) <= _N_NEIGHBORS:
        raise InputError(
            f"Scoring needs more than {_N_NEIGHBORS} cells, because it looks at as many "
            f"neighbours; {len(kept)} cells are of labels with at least {min_cells} cells."
        )
    mask = keep.to_numpy()
    return ad.AnnData(
        obs=pd.DataFrame(
            {
                "batch": pd.Categorical(kept[batch_key].astype(str)),
                "label": pd.Categorical(kept[label_key].astype(str)),
            },
            index=kept.index.astype(str),
        ),
        obsm={
            key: finite_codes(adata, key).astype(np.float32)[mask] for key in dict.fromkeys(keys)
        },
    )


def _benchmark(cells: ad.AnnData, key: str, unintegrated: str) -> pd.Series:
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    shared = bool((cells.obs.groupby("label", observed=True)["batch"].nunique() > 1).any())
    benchmarker = Benchmarker(
        cells,
        "batch",
        "label",
        [key],
        bio_conservation_metrics=BioConservation(
            nmi_ari_cluster_labels_kmeans=False, nmi_ari_cluster_labels_leiden=True
        ),
        batch_correction_metrics=BatchCorrection(bras=shared, kbet_per_label=shared),
        pre_integrated_embedding_obsm_key=unintegrated,
        progress_bar=False,
    )
    benchmarker.benchmark()
    return benchmarker.get_results().loc[key]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence scib-metrics, which also logs to the root logger and so would configure it."""
    import scib_metrics

    root, handler = logging.getLogger(), logging.NullHandler()
    verbosity = scib_metrics.settings.verbosity
    root.addHandler(handler)
    scib_metrics.settings.verbosity = logging.ERROR
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        scib_metrics.settings.verbosity = verbosity
        root.removeHandler(handler)


@contextmanager
def _reproducible() -> Iterator[None]:
    """Give scipy's eigensolver a fixed start, which scib-metrics leaves to chance."""
    eigsh = scipy.sparse.linalg.eigsh

    def started(matrix, *args, **kwargs):
        start = np.random.default_rng(0).uniform(-1, 1, matrix.shape[0])
        return eigsh(matrix, *args, **{"v0": start.astype(matrix.dtype), **kwargs})

    scipy.sparse.linalg.eigsh = started
    try:
        yield
    finally:
        scipy.sparse.linalg.eigsh = eigsh
