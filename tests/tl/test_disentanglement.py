from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata.experimental import AnnCollection
from mudata import MuData
from scvi.dataloaders import CollectionAdapter
from sklearn.metrics import roc_auc_score

from scdisentangle import DisentangleModel, InputError, pl, pp
from scdisentangle.data import simulated, simulated_codes
from scdisentangle.tl import DisentanglementReport, batch_effect, disentanglement_report


def reported(adata, label_key="celltype", **options):
    return disentanglement_report(adata, "batch", label_key, progress_bar=False, **options)


@pytest.fixture(scope="module")
def model():
    adata = simulated(n_cells=200, n_genes=60, n_types=2)
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.full(adata.shape, np.nan, dtype=np.float32)
    DisentangleModel.setup_anndata(adata, batch_key="batch", layer="raw")
    model = DisentangleModel(adata)
    model.train(3, enable_progress_bar=False)
    return model


DESIGNS = [
    ({}, True),
    ({"composition": "unequal", "n_batches": 3}, True),
    ({"composition": "private"}, True),
    ({"leak": 0.05}, True),
    ({"biology_in_nio": 0.05}, True),
    ({"lost": 0.05}, True),
    ({"leak": 0.3}, False),
    ({"leak": 0.5, "composition": "unequal"}, False),
    ({"leak": 0.5, "mechanism": "parity"}, False),
    ({"leak": 0.6, "n_leaking": 1}, False),
    ({"biology_in_nio": 0.4}, False),
    ({"lost": 0.4}, False),
    ({"n_merged": 2}, False),
    ({"composition": "confounded"}, False),
]


def test_the_score_tells_good_codes_from_bad_ones():
    scores = [
        reported(simulated_codes(600, n_types=3, seed=seed, **design), n_permutations=40).score
        for seed, (design, _) in enumerate(DESIGNS)
    ]
    assert roc_auc_score([good for _, good in DESIGNS], scores) >= 0.95


def test_clean_codes():
    adata = simulated_codes(900, n_types=4, seed=1)
    report = reported(adata)
    assert report.status == "good"
    assert not report.advice
    table = report.table.set_index(["measure", "code", "target", "within"])
    probes = table.loc["balanced_accuracy"]
    assert probes.at[("z_bio", "batch", "mean over labels"), "value"] == pytest.approx(0.5, abs=0.1)
    assert probes.at[("z_bio", "batch", "mean over labels"), "p_value"] > 0.05
    assert probes.at[("unintegrated", "batch", "mean over labels"), "value"] > 0.98
    assert probes.at[("z_nio", "label", "mean over batches"), "value"] < 0.3
    assert table.loc["hsic"]["p_value"].min() > 0.01
    assert table.at[("effective_dimension", "z_nio", "", "all"), "value"] < 2


def test_leaking_types_are_counted_and_named():
    report = reported(simulated_codes(1000, n_types=5, leak=0.8, n_leaking=2, seed=2))
    assert report.status == "poor"
    assert "in 2 of 5 types ('type_0', 'type_1')" in report.verdict
    assert "lambda_dis" in report.advice[0]
    assert report.severities["batch in z_bio"] == pytest.approx(0.75, abs=0.12)


def test_merged_types_are_named():
    report = reported(simulated_codes(1000, n_types=5, n_merged=2, seed=3))
    assert "type_0 (taken for type_1)" in report.verdict
    assert max(report.severities, key=report.severities.get) == "biology lost"


def test_biology_in_z_nio():
    report = reported(simulated_codes(900, n_types=4, biology_in_nio=0.6, seed=4))
    assert report.severities["biology in z_nio"] == pytest.approx(0.6, abs=0.05)
    assert "readable from z_nio" in report.verdict


@pytest.mark.parametrize("label_key", ["celltype", None])
def test_confounded_is_called_so(label_key):
    adata = simulated_codes(900, n_types=4, composition="confounded", seed=5)
    report = reported(adata, label_key)
    assert report.status == ("poor" if label_key is None else "confounded")
    assert report.score < 0.05
    assert "no method can tell them apart" in report.verdict


def test_a_type_in_one_batch_is_named():
    adata = simulated_codes(1200, n_types=4, seed=6)
    adata = adata[(adata.obs["celltype"] != "type_3") | (adata.obs["batch"] == "batch_0")].copy()
    report = reported(adata)
    assert report.status == "good"
    assert "1 of 4 types ('type_3') does not have 10 cells in two batches" in report.verdict


def test_data_that_are_no_anndata_are_told_the_way():
    adata = simulated(n_cells=100, n_genes=40, n_types=2)
    mdata = MuData({"rna": adata.copy()})
    modalities = {"rna_layer": "rna", "batch_key": "rna"}
    DisentangleModel.setup_mudata(mdata, modalities, batch_key="batch")
    model = DisentangleModel(mdata, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    with pytest.raises(InputError, match=r"mdata\.obs\['batch'\] = mdata\['rna'\]\.obs\['batch'\]"):
        reported(model)
    mdata.obs["batch"], mdata.obs["celltype"] = adata.obs["batch"], adata.obs["celltype"]
    assert 0 <= reported(model).score <= 1
    collection = CollectionAdapter(AnnCollection([adata], join_vars="inner", join_obs="inner"))
    DisentangleModel.setup_anndata(collection, batch_key="batch", layer="counts")
    model = DisentangleModel(collection, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    with pytest.raises(InputError, match="or a collection, and has no AnnData.*obsm of one"):
        reported(model)


def of_noise():
    """Codes before integration that tell types, and a z_bio that tells nothing."""
    adata = simulated_codes(400, n_types=3)
    z_bio = adata.obsm["X_disentangle"]
    adata.obsm["X_disentangle"] = np.random.default_rng(0).normal(size=z_bio.shape)
    return adata


def test_biology_that_no_probe_reads_is_not_said_to_be_held():
    adata = of_noise()
    adata.obs["celltype"] = np.random.default_rng(1).choice(["a", "b", "c"], 400)
    report = reported(adata)
    assert report.severities.get("biology lost") is None
    assert "holds the biology cannot be told" in report.verdict
    assert "holds the biology and" not in report.verdict


def test_biology_is_read_over_all_cells_where_no_batch_has_two_types():
    adata = of_noise()
    rare = np.array([f"rare {i % 35}" for i in range(400)])
    adata.obs["celltype"] = np.where(adata.obs["celltype"] == "type_0", "common", rare)
    report = reported(adata)
    assert not (report.table["within"] == "mean over batches").any()
    assert report.severities["biology lost"] > 0.5
    assert report.status == "poor"


def test_z_nio_that_does_not_know_the_batch():
    adata = simulated_codes(900, n_types=3, seed=7)
    adata.obsm["X_disentangle_batch"] = np.random.default_rng(0).normal(size=(900, 3))
    report = reported(adata)
    assert "z_nio holds little of the batch: 0.5" in report.verdict
    assert report.status == "good"


@pytest.mark.parametrize(("leak", "good"), [(0.0, True), (0.6, False), (1.0, False)])
def test_without_labels(leak, good):
    report = reported(simulated_codes(900, n_types=4, leak=leak, seed=8), None)
    assert (report.score > 0.7) == good
    assert set(report.table["target"]) == {"batch", "cluster", ""}


def test_without_z_nio():
    report = reported(simulated_codes(600, n_types=3), use_rep_batch=None)
    assert set(report.table["code"]) == {"z_bio", "unintegrated"}
    assert "HSIC" not in repr(report)


def test_a_model(model):
    report = reported(model)
    shares = report.table[report.table["measure"] == "reconstruction_share"].set_index("code")
    assert shares["value"].sum() == pytest.approx(1.0)
    assert "X_pca" not in model.adata.obsm
    pd.testing.assert_frame_equal(model.adata.uns["disentanglement"]["table"], report.table)
    adata = model.adata.copy()
    adata.obsm["bio"] = model.get_latent_representation()
    adata.obsm["nio"] = model.get_latent_representation(representation="batch")
    adata.X = adata.layers["raw"]
    same = reported(adata, use_rep="bio", use_rep_batch="nio")
    expected = report.table[report.table["measure"] != "reconstruction_share"]
    pd.testing.assert_frame_equal(
        same.table, expected.reset_index(drop=True).set_axis(same.table.index)
    )


def test_kept_in_a_file(tmp_path):
    adata = simulated_codes(600, n_types=3, leak=0.5)
    for key, label_key in {"a": "celltype", "b": None}.items():
        report = reported(adata, label_key, key_added=key)
        adata.write_h5ad(tmp_path / "a.h5ad")
        read = DisentanglementReport.from_adata(ad.read_h5ad(tmp_path / "a.h5ad"), key)
        assert repr(read) == repr(report)
        assert (read.label_key, read.advice) == (label_key, report.advice)
        np.testing.assert_allclose(
            read.table["value"].to_numpy(float), report.table["value"].to_numpy(float)
        )


def test_in_the_terminal_and_in_a_notebook():
    adata = simulated_codes(600, n_types=3, leak=0.9)
    adata.obs["celltype"] = adata.obs["celltype"].cat.rename_categories({"type_0": "<b>"})
    report = reported(adata)
    shown, page = repr(report), report._repr_html_()
    for text in ("Disentanglement: poor", "batch, within types", "unintegrated"):
        assert text in shown
        assert text in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    value = report.table.query("code == 'z_bio' and within == 'mean over labels'")["value"].iloc[0]
    assert report.summary().at["batch, within types", "z_bio"] == f"{value:.2f}*"


def test_bad_input(model):
    adata = simulated_codes(200)
    for arguments, message in [
        (("bach",), "'bach' is not in adata.obs. Did you mean 'batch'"),
        (("batch", "type"), "'type' is not in adata.obs"),
    ]:
        with pytest.raises(InputError, match=message):
            disentanglement_report(adata, *arguments)
    with pytest.raises(InputError, match="'X_scvi' is not in adata.obsm"):
        reported(adata, use_rep="X_scvi")
    with pytest.raises(InputError, match="min_cells=3 is fewer"):
        reported(adata, min_cells=3)
    with pytest.raises(InputError, match="n_permutations=5"):
        reported(adata, n_permutations=5)
    with pytest.raises(InputError, match="fewer than two values"):
        reported(adata[adata.obs["batch"] == "batch_0"].copy())
    with pytest.raises(InputError, match="fewer than two values.* have 400 cells"):
        reported(adata, None, min_cells=200, max_cells=None)
    with pytest.raises(InputError, match="max_cells=3 is fewer"):
        reported(adata, max_cells=3)
    with pytest.raises(InputError, match="name their column in batch_key="):
        disentanglement_report(adata, None)
    for value in ("one", np.nan):
        adata.obs["same"] = value
        with pytest.raises(InputError, match=r"obs\['same'\] tells no two types apart"):
            reported(adata, "same")
    adata.obs["own"] = np.arange(adata.n_obs).astype(str)
    with pytest.raises(InputError, match=r"No value of adata.obs\['own'\] has 10 cells"):
        reported(adata, "own")
    with pytest.raises(InputError, match="or an AnnData with codes in obsm, not str"):
        disentanglement_report("cells.h5ad", "batch")
    without = adata.copy()
    del without.obsm["X_disentangle_batch"]
    with pytest.raises(InputError, match=r"'X_disentangle_batch' is not.*use_rep_batch=None"):
        reported(without)
    without = adata.copy()
    del without.obsm["X_pca"]
    with pytest.raises(InputError, match="'X_pca' is not in adata.obsm.*unintegrated="):
        reported(without)
    for key in ("X_disentangle", "X_disentangle_batch", "X_pca"):
        broken = adata.copy()
        broken.obsm[key][[4, 7], 1] = np.nan
        with pytest.raises(InputError, match=rf"{key}'\] holds NaN.*2 cells: 'cell_4', 'cell_7'"):
            reported(broken)
    with pytest.raises(InputError, match="call tl.disentanglement_report first"):
        DisentanglementReport.from_adata(adata)


def test_cells_of_the_same_name():
    adata = simulated_codes(200)
    expected = reported(adata).table
    adata.obs_names = ["cell"] * 200
    pd.testing.assert_frame_equal(reported(adata).table, expected)


def test_a_model_of_mudata():
    rna = simulated(n_cells=200, n_genes=60, n_types=2)
    mdata = MuData({"rna": rna, "other": ad.AnnData(np.ones((200, 3), np.float32), rna.obs[[]])})
    mdata.obs["batch"] = rna.obs["batch"].astype(str)
    reports = []
    for cells, setup in (
        (rna, DisentangleModel.setup_anndata),
        (mdata, partial(DisentangleModel.setup_mudata, modalities={"rna_layer": "rna"})),
    ):
        scvi.settings.seed = 0
        setup(cells, batch_key="batch")
        model = DisentangleModel(cells)
        model.train(3, enable_progress_bar=False)
        reports.append(reported(model, None).table)
        assert pl.report(cells, show=False) is not None
        assert list(batch_effect(model).index) == list(rna.var_names)
    pd.testing.assert_frame_equal(*reports, rtol=1e-3, atol=1e-3)
    mdata.obsm["X_disentangle"] = model.get_latent_representation()
    mdata.obsm["X_disentangle_batch"] = model.get_latent_representation(representation="batch")
    with pytest.raises(InputError, match="'X_pca' is not in adata.obsm, and there are no values"):
        reported(mdata, None)
    pp.pca(rna)
    mdata.obsm["X_pca"] = rna.obsm["X_pca"]
    of_codes, of_model = (
        table.set_index(["measure", "code", "target", "within"]).value
        for table in (reported(mdata, None).table, reports[1])
    )
    pd.testing.assert_series_equal(of_codes, of_model[of_codes.index], rtol=1e-3, atol=1e-3)


def test_cells_without_a_batch_do_not_make_types_shared():
    adata = simulated_codes(600, n_types=4)
    first = (adata.obs["batch"].astype(str) == "batch_0").to_numpy()
    odd = np.arange(600) % 2
    adata.obs["private"] = np.where(first, "a", "c") + pd.Series(odd).astype(str).to_numpy()
    assert reported(adata, "private").status == "confounded"
    adata.obs["batch"] = adata.obs["batch"].astype(object).where(np.arange(600) >= 120)
    assert reported(adata, "private").status == "confounded"


def test_minified_data_have_no_reconstruction_to_share():
    adata = simulated(n_cells=200, n_genes=60, n_types=2)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata)
    model.train(2, enable_progress_bar=False)
    codes = model.get_latent_representation(return_dist=True)
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = codes
    model.minify_adata()
    with pytest.raises(InputError, match="'X_pca' is not in adata.obsm.*no values of genes"):
        reported(model)
    model.adata.obsm["X_pca"] = codes[0]
    assert "reconstruction_share" not in set(reported(model).table["measure"])
