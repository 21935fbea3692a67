from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from scdisentangle import InputError, pl
from scdisentangle.data import simulated_codes
from scdisentangle.tl import disentanglement_report
from scdisentangle.tl import leakage as table_of_leakage


def test_shades_and_numbers_are_shares_of_the_way_from_luck_to_certainty(report, tmp_path):
    ax = pl.leakage(report, show=False, save=tmp_path / "leakage.png")
    shades = ax.images[0].get_array()
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "B cells",
        "NK",
        "T cells",
        "first",
        "second",
    ]
    expected = [
        (0.52 - 0.5) / 0.5,
        (0.75 - 0.5) / 0.5,
        (0.9 - 0.5) / 0.5,
        *[(0.88 - 0.34) / 0.66] * 2,
    ]
    np.testing.assert_allclose(shades[:, 0], expected)
    assert np.ma.getmaskarray(shades)[:, 1].tolist() == [True, True, True, False, False]
    numbers = [text.get_text() for text in ax.texts]
    assert {"0.04", "0.50*", "0.80*", "0.82*", "0.03"} <= set(numbers)
    assert plt.imread(tmp_path / "leakage.png").std() > 0.05


def test_what_is_below_luck_is_nothing(report):
    table = report.table.copy()
    table.loc[(table["code"] == "z_bio") & (table["within"] == "B cells"), "value"] = 0.4
    ax = pl.leakage(replace(report, table=table), show=False)
    assert ax.images[0].get_array()[0, 0] == 0.0
    assert ax.texts[0].get_text() == "0.00"


def test_stars_where_batches_are_named_as_types(report):
    table = report.table.copy()
    names = {"B cells": "0", "NK": "1", "T cells": "2", "first": "0", "second": "1"}
    table["within"] = table["within"].replace(names)
    kept, renamed = (
        [text.get_text() for text in pl.leakage(r, show=False).texts]
        for r in (report, replace(report, table=table))
    )
    assert renamed == kept


def test_groups_of_one_kind_and_none(report):
    of_batch = report.table["target"] == "batch"
    without = replace(report, table=report.table[~of_batch])
    titles = [text.get_text() for text in pl.leakage(without, show=False).texts]
    assert "type,\nwithin\nbatches" in titles
    assert "batch,\nwithin\ntypes" not in titles
    means = report.table["within"].isin(["all"])
    with pytest.raises(InputError, match="nothing to draw"):
        pl.leakage(replace(report, table=report.table[means]), show=False)


def test_on_axes_that_are_given_and_without_labels():
    adata = simulated_codes(400, n_types=3, seed=1)
    disentanglement_report(adata, "batch", progress_bar=False)
    _, given = plt.subplots()
    ax = pl.leakage(adata, ax=given, show=False)
    titles = [text.get_text() for text in ax.texts]
    assert "batch,\nwithin\ngroups" in titles
    assert "structure,\nwithin\nbatches" in titles
    assert ax is given
    assert "structure,\nwithin\nbatches" in [text.get_text() for text in ax.texts]
    with pytest.raises(InputError, match="'other' is not in adata.uns"):
        pl.leakage(adata, key="other", show=False)


def test_the_table_of_probes_is_drawn_from_wherever_it_is():
    adata = simulated_codes(400, n_types=3, seed=1, leak=0.5)
    table = table_of_leakage(adata, "batch", "celltype", progress_bar=False)
    groups = table[~table["within"].isin(["all", "mean over labels", "mean over batches"])]
    rows = groups[(groups["code"] == "z_bio") & (groups["target"] == "batch")].set_index("within")
    expected = ((rows["balanced_accuracy"] - rows["chance"]) / (1 - rows["chance"])).clip(lower=0)
    for source in (table, adata):
        ax = pl.leakage(source, show=False)
        names = [label.get_text() for label in ax.get_yticklabels()]
        shades = dict(zip(names, ax.images[0].get_array()[:, 0], strict=True))
        assert {name: shades[name] for name in rows.index} == pytest.approx(expected.to_dict())
        assert not any("*" in text.get_text() for text in ax.texts)


def test_a_report_comes_before_a_table_unless_that_is_asked_for():
    adata = simulated_codes(400, n_types=3, seed=1)
    disentanglement_report(adata, "batch", "celltype", progress_bar=False)
    table_of_leakage(adata, "batch", "celltype", progress_bar=False)
    columns = [len(pl.leakage(adata, key=k, show=False).get_xticks()) for k in (None, "leakage")]
    assert columns == [3, 2]  # a report compares with the cells before integration


def test_a_table_of_other_things_is_refused():
    adata = simulated_codes(400, n_types=3, seed=1)
    with pytest.raises(InputError, match="no column 'code'"):
        pl.leakage(adata.obs, show=False)
