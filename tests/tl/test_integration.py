import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from sklearn.metrics import silhouette_score

from scdisentangle import InputError, pp, tl
from scdisentangle.tl import _integration


@pytest.fixture(scope="module")
def adata():
    rng = np.random.default_rng(0)
    n = 240
    batch, label = rng.integers(0, 2, n), rng.integers(0, 3, n)
    label[:5] = 3
    noise = rng.normal(size=(n, 5))
    mixed, split = noise.copy(), noise.copy()
    mixed[:, 0] += 10 * label
    split[:, 0] += 10 * label
    split[:, 1] += 10 * batch
    return ad.AnnData(
        obs=pd.DataFrame(
            {
                "batch": pd.Categorical.from_codes(batch, ["x", "y"]),
                "label": pd.Categorical.from_codes(label, ["a", "b", "c", "rare"]),
            },
            index=[f"cell_{i}" for i in range(n)],
        ),
        obsm={"mixed": mixed, "split": split},
    )


@pytest.fixture(scope="module")
def scores(adata):
    return tl.integration_scores(
        adata, "batch", "label", ["split", "mixed"], unintegrated="split", progress_bar=False
    )


def test_known_answers(adata, scores):
    """Labels apart and batches mixed, by construction; silhouettes by scikit-learn."""
    kept = (adata.obs["label"] != "rare").to_numpy()
    labels = adata.obs["label"][kept].astype(str)
    for key in ("mixed", "split"):
        silhouette = silhouette_score(adata.obsm[key][kept], labels)
        assert scores.loc[key, "Silhouette label"] == pytest.approx((silhouette + 1) / 2, abs=1e-4)
    mixed, split = scores.loc["mixed"], scores.loc["split"]
    assert mixed["Leiden ARI"] == pytest.approx(1)
    assert mixed["cLISI"] == pytest.approx(1, abs=0.01)
    assert mixed["PCR comparison"] > 0.9
    assert split["PCR comparison"] == 0
    assert split["iLISI"] < 0.05 < 0.8 < mixed["iLISI"]
    assert split["KBET"] < 0.1 < 0.8 < mixed["KBET"]
    assert split["CiLISI"] < 0.1 < 0.8 < mixed["CiLISI"]


def test_totals(scores):
    bio = ["Isolated labels", "Leiden NMI", "Leiden ARI", "Silhouette label", "cLISI"]
    batch = ["BRAS", "iLISI", "KBET", "Graph connectivity", "PCR comparison"]
    aggregates = ["Bio conservation", "Batch correction", "Total", "Total (no silhouette)"]
    assert list(scores.columns) == [*bio, *batch, *aggregates, "CiLISI"]
    row = scores.loc["mixed"]
    assert row["Total"] == pytest.approx(0.6 * row[bio].mean() + 0.4 * row[batch].mean())
    without = 0.6 * (row["Leiden NMI"] + row["Leiden ARI"] + row["cLISI"]) / 3
    without += (
        0.4 * (row["iLISI"] + row["KBET"] + row["Graph connectivity"] + row["PCR comparison"]) / 4
    )
    assert row["Total (no silhouette)"] == pytest.approx(without)


def test_cilisi_where_all_cells_of_a_label_are_equally_near():
    """At the corners of a simplex, a cell's neighbours are all other cells of its label."""
    counts = {"a": {"x": 15, "y": 10, "z": 5}, "b": {"x": 5, "y": 20}, "in z only": {"z": 46}}
    cells = [(b, label) for label, n in counts.items() for b in n for _ in range(n[b])]
    obs = pd.DataFrame(cells, columns=["batch", "label"]).rename(index=str)
    adata = ad.AnnData(obs=obs, obsm={"simplex": np.eye(len(obs))})
    found = tl.integration_scores(
        adata, "batch", "label", "simplex", unintegrated="simplex", progress_bar=False
    )
    expected = []
    for n in (counts["a"], counts["b"]):
        n_others = sum(n.values()) - 1
        for own in n:
            lisi = n_others**2 / sum((n[b] - (b == own)) ** 2 for b in n)
            expected += n[own] * [(lisi - 1) / (len(n) - 1)]
    assert found.at["simplex", "CiLISI"] == pytest.approx(np.mean(expected))


def test_result_is_kept_and_nothing_else_is_changed(adata, scores):
    pd.testing.assert_frame_equal(adata.uns["integration_scores"], scores)
    assert list(adata.obs) == ["batch", "label"]
    assert list(adata.obsm) == ["mixed", "split"]


@pytest.mark.parametrize(("min_cells", "rare"), [(5, True), (6, False)])
def test_rare_labels_are_left_out_and_the_table_is_kept_by_the_name_asked_for(
    adata, monkeypatch, min_cells, rare
):
    scored = []

    def benchmark(cells, key, unintegrated):
        scored.append(cells)
        return pd.Series(0.5, index=[*_integration.BIO, *_integration.BATCH])

    monkeypatch.setattr(_integration, "_benchmark", benchmark)
    adata = adata.copy()
    adata.uns.clear()
    adata.obs.loc[adata.obs_names[50:53], "batch"] = np.nan
    adata.obs.loc[adata.obs_names[60:64], "label"] = np.nan
    table = tl.integration_scores(
        adata,
        "batch",
        "label",
        "mixed",
        unintegrated="split",
        min_cells=min_cells,
        key_added="mine",
        progress_bar=False,
    )
    kept = np.r_[0 if rare else 5 : 50, 53:60, 64:240]
    assert list(scored[0].obs_names) == list(adata.obs_names[kept])
    np.testing.assert_allclose(scored[0].obsm["mixed"], adata.obsm["mixed"][kept], rtol=1e-6)
    assert list(adata.uns) == ["mine"]
    pd.testing.assert_frame_equal(adata.uns["mine"], table)
    assert adata.uns["mine"] is not table


def test_silent_and_the_same_again(adata, scores, capfd, caplog):
    root = logging.getLogger()
    handlers = list(root.handlers)
    with caplog.at_level(logging.INFO):
        again = tl.integration_scores(
            adata.copy(), "batch", "label", "mixed", unintegrated="split", progress_bar=False
        )
    pd.testing.assert_frame_equal(again, scores.loc[["mixed"]])
    assert root.handlers == handlers
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.obs.pop("label"), "'label' is not in adata.obs"),
        (lambda a: a.obsm.pop("split"), "'split' is not in adata.obsm"),
        (lambda a: a.obs.__setitem__("batch", "x"), "two values of adata.obs\\['batch'\\]"),
        (lambda a: a.obs.__setitem__("label", "a"), "two values of adata.obs\\['label'\\]"),
    ],
)
def test_bad_input(adata, change, message):
    adata = adata.copy()
    adata.obs = adata.obs.astype(str)
    change(adata)
    with pytest.raises(InputError, match=message):
        tl.integration_scores(adata, "batch", "label", "mixed", unintegrated="split")


def test_too_few_cells(adata):
    with pytest.raises(InputError, match="more than 90 cells.*90 cells are of labels"):
        kept = adata[adata.obs["label"] != "rare"][:90].copy()
        tl.integration_scores(kept, "batch", "label", "mixed", unintegrated="split")


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["cellbench", "pbmcstim", "pbmc3chem"])
def test_scores_of_pca_that_others_measured(real_data, name):
    adata = sc.read_h5ad(real_data / f"{name}.h5ad")
    sizes = adata.obs["celltype"].value_counts()
    adata = adata[adata.obs["celltype"].isin(sizes.index[sizes >= 10])].copy()
    pp.select_genes(adata, 2000, batch_key="batch")
    pp.pca(adata, n_comps=30)
    found = tl.integration_scores(adata, "batch", "celltype", "X_pca").loc["X_pca"]
    peers = pd.read_csv(real_data / "peers.csv")
    peer = peers[(peers["dataset"] == name) & (peers["method"] == "pca")].iloc[0]
    expected = peer[found.index.drop(["Total (no silhouette)", "CiLISI"])].astype(float)
    by_chance = {"KBET": 0.05, "Batch correction": 0.01}
    tolerance = pd.Series(by_chance).reindex(expected.index, fill_value=0.005)
    assert ((found[expected.index] - expected).abs() <= tolerance).all()


def test_labels_of_one_batch_each(adata, scores):
    own = adata.copy()
    own.obs["own"] = own.obs["label"].astype(str) + own.obs["batch"].astype(str)
    found = tl.integration_scores(
        own, "batch", "own", ["mixed"], unintegrated="split", progress_bar=False
    ).loc["mixed"]
    assert found.index[found.isna()].tolist() == ["BRAS", "KBET", "CiLISI"]
    assert found["iLISI"] == pytest.approx(scores.loc["mixed", "iLISI"], abs=0.02)
    batch = found[["iLISI", "Graph connectivity", "PCR comparison"]]
    assert found["Batch correction"] == pytest.approx(batch.mean())


def test_codes_that_are_not_finite(adata):
    broken = adata.copy()
    broken.obsm["mixed"][3, 0] = np.inf
    with pytest.raises(InputError, match=r"\['mixed'\] holds NaN or infinite.*'cell_3'"):
        tl.integration_scores(broken, "batch", "label", ["mixed"], unintegrated="split")
    with pytest.raises(InputError, match=r"\['mixed'\] holds NaN or infinite.*'cell_3'"):
        tl.leakage(broken, "batch", "label", use_rep="mixed", use_rep_batch=None)
    with pytest.raises(InputError, match=r"\['mixed'\] holds NaN or infinite.*'cell_3'"):
        tl.umap(broken, "mixed")
