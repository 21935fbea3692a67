import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scdisentangle import DisentangleModel, InputError, pl, tl
from scdisentangle.data import simulated_codes

N = 600


@pytest.fixture
def adata():
    """z_bio knows the label and, for type c alone, the batch; z_nio knows the batch."""
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 2, N)
    label = rng.integers(0, 3, N)
    bio, nio = rng.normal(size=(2, N, 4))
    bio[:, 0] += 12 * label
    bio[:, 1] += 10 * batch * (label == 2)
    nio[:, 0] += 12 * batch
    return ad.AnnData(
        obs=pd.DataFrame(
            {
                "batch": pd.Categorical.from_codes(batch, ["x", "y"]),
                "label": pd.Categorical.from_codes(label, ["a", "b", "c"]),
            },
            index=[f"cell_{i}" for i in range(N)],
        ),
        obsm={"X_disentangle": bio, "X_disentangle_batch": nio},
    )


def test_each_question_finds_what_was_put_in(adata):
    table = tl.leakage(adata, "batch", "label").set_index(["code", "target", "within"])
    excess = table["excess"]
    assert excess["z_bio", "batch", "a"] == pytest.approx(0, abs=0.12)
    assert excess["z_bio", "batch", "b"] == pytest.approx(0, abs=0.12)
    assert excess["z_bio", "batch", "c"] == pytest.approx(0.5, abs=0.01)
    groups = [("z_bio", "batch", g) for g in "abc"]
    assert excess["z_bio", "batch", "mean over labels"] == pytest.approx(excess[groups].mean())
    assert excess["z_bio", "label", "all"] == pytest.approx(2 / 3, abs=0.01)
    assert excess["z_nio", "batch", "all"] == pytest.approx(1 / 2, abs=0.01)
    assert excess["z_nio", "label", "all"] == pytest.approx(0, abs=0.08)
    assert excess["z_nio", "label", "mean over batches"] == pytest.approx(0, abs=0.1)
    assert table.loc[("z_bio", "batch", "all"), "n_cells"] == N
    np.testing.assert_allclose(table["excess"], table["balanced_accuracy"] - table["chance"])
    np.testing.assert_allclose(
        table["balanced_accuracy"]
        .drop("mean over labels", level=2)
        .drop("mean over batches", level=2),
        table[["logistic", "neighbors"]]
        .max(axis=1)
        .drop("mean over labels", level=2)
        .drop("mean over batches", level=2),
    )


def test_table_is_kept_and_can_be_written(adata, tmp_path):
    table = tl.leakage(adata, "batch", "label", key_added="found")
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad").uns["found"]
    np.testing.assert_allclose(read["excess"], table["excess"])
    assert list(read["within"]) == list(table["within"])
    pd.testing.assert_frame_equal(table, tl.leakage(adata, "batch", "label"))


def test_without_labels_and_without_z_nio(adata):
    table = tl.leakage(adata, "batch", use_rep_batch=None)
    assert table[["code", "target", "within"]].to_numpy().tolist() == [["z_bio", "batch", "all"]]


def test_groups_too_small_are_left_out_and_named(adata):
    adata.obs["label"] = adata.obs["label"].astype(str)
    adata.obs.loc[(adata.obs["label"] == "c") & (adata.obs["batch"] == "y"), "label"] = "b"
    adata.obs.iloc[:7, 1] = "rare"
    with pytest.warns(UserWarning, match="batch from z_bio within c', .*within rare"):
        table = tl.leakage(adata, "batch", "label")
    within = table[(table["code"] == "z_bio") & (table["target"] == "batch")]["within"]
    assert list(within) == ["all", "mean over labels", "a", "b"]
    known = table[(table["code"] == "z_bio") & (table["target"] == "label")].iloc[0]
    assert (known["n_classes"], known["n_cells"]) == (3, N - 7)


def test_one_batch_leaves_an_empty_table(adata):
    with pytest.warns(UserWarning, match="left out"):
        table = tl.leakage(adata[adata.obs["batch"] == "x"].copy(), "batch")
    assert table.empty
    assert "excess" in table


def test_cells_without_a_label_are_not_read(adata):
    adata.obs.iloc[:50, 1] = np.nan
    table = tl.leakage(adata, "batch", "label").set_index(["code", "target", "within"])
    assert table.loc[("z_bio", "label", "all"), "n_cells"] == N - 50
    assert table.loc[("z_bio", "batch", "all"), "n_cells"] == N
    assert table.loc[("z_bio", "batch", "mean over labels"), "n_cells"] == N - 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_key": "bach"}, "'bach' is not in adata.obs. Did you mean 'batch'"),
        ({"batch_key": "batch", "label_key": "type"}, "'type' is not in adata.obs"),
        ({"batch_key": "batch", "use_rep": "X_pca"}, "'X_pca' is not in adata.obsm"),
        ({"batch_key": "batch", "min_cells": 4}, "min_cells=4"),
        ({"batch_key": "batch", "min_cells": 5.5}, "min_cells=5.5 must be a whole number"),
    ],
)
def test_bad_arguments(adata, arguments, message):
    with pytest.raises(InputError, match=message):
        tl.leakage(adata, **arguments)


def test_names_of_rows_are_no_names_of_groups():
    adata = simulated_codes(100, n_types=3)
    with pytest.raises(InputError, match=r"compares batches: name their column"):
        tl.leakage(adata, None)
    adata.obs["type"] = adata.obs["celltype"].astype(str).replace({"type_1": "all"})
    for measure in (tl.leakage, tl.disentanglement_report):
        with pytest.raises(InputError, match=r"adata.obs\['type'\] has a value 'all'"):
            measure(adata, "batch", "type")


def test_few_cells_of_each_class_are_read_where_so_few_are_asked_for():
    adata = simulated_codes(400, n_types=6)
    table = tl.leakage(adata, "batch", "celltype", max_cells=20)
    found = table[(table["target"] == "label") & (table["within"] == "all")]
    assert (found["n_cells"] == 5 * 6).all()


def test_what_is_handed_in_must_be_of_the_right_kind():
    adata = simulated_codes(100, n_types=3)
    with pytest.raises(InputError, match="of type int, and must be an AnnData"):
        tl.leakage(3, "batch")
    model = object.__new__(DisentangleModel)
    for ask in (lambda: tl.leakage(model, "batch"), lambda: tl.umap(model)):
        with pytest.raises(InputError, match="with the model's codes in obsm, not the model"):
            ask()
    with pytest.raises(InputError, match="Pass a trained DisentangleModel, not AnnData"):
        tl.batch_effect(adata)
    with pytest.raises(InputError, match="A table is no report"):
        pl.report(tl.leakage(adata, "batch"))
    dense = tl.leakage(adata, "batch")
    adata.obsm["X_disentangle"] = sparse.csr_matrix(adata.obsm["X_disentangle"])
    pd.testing.assert_frame_equal(tl.leakage(adata, "batch"), dense)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_unless_it_is_not_wanted(adata, shown, capsys):
    tl.leakage(adata, "batch", use_rep_batch=None, progress_bar=shown)
    assert ("Probing" in capsys.readouterr().err) == shown
