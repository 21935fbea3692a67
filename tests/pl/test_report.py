import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

from scdisentangle import InputError, pl


def dots(ax):
    """Value and whether it is filled, by height from below."""
    return [
        (line.get_ydata()[0], line.get_xdata()[0], line.get_markerfacecolor() != "white")
        for line in ax.lines
        if line.get_marker() == "o"
    ]


def test_bars_dots_and_sizes_are_those_of_the_table(report, tmp_path):
    bars, groups, sizes = pl.report(report, show=False, save=tmp_path / "report.png")
    heights = sorted(round(bar.get_height(), 3) for bar in bars.patches)
    probes = report.table[report.table["measure"] == "balanced_accuracy"]
    shown = probes[probes["within"].isin(["all", "mean over labels", "mean over batches"])]
    assert heights == sorted(shown["value"].round(3))
    assert [t.get_text() for t in groups.get_yticklabels()] == ["T cells", "NK", "B cells"]
    of_bio = {height: (value, sure) for height, value, sure in dots(groups) if value != 0.97}
    assert of_bio == {0: (0.9, True), 1: (0.75, True), 2: (0.52, False)}
    texts = [text.get_text() for text in sizes.texts]
    assert [t for t in texts if "%" in t] == ["80%", "20%"]
    assert "9.0" in texts
    assert bars.figure.get_suptitle() == "Disentanglement: poor, 0.20 of 1"
    assert bars.figure.get_supxlabel() == report.verdict
    assert plt.imread(tmp_path / "report.png").std() > 0.05


def test_luck_is_a_line_across_the_bars_of_each_question(report):
    bars = pl.report(report, show=False)[0]
    questions = [t.get_text() for t in bars.get_xticklabels()]
    lines = {}
    for line in bars.lines:
        (start, end), (luck, _) = line.get_xdata(), line.get_ydata()
        lines[questions[round((start + end) / 2)]] = luck
    assert lines == {
        name: 0.5 if name.startswith("batch") else pytest.approx(0.34) for name in questions
    }


def test_read_from_where_it_is_kept(report):
    adata = ad.AnnData(np.zeros((2, 2)), uns={"mine": report.to_dict()})
    axes = pl.report(adata, key="mine", show=False)
    assert axes[0].figure.get_supxlabel() == report.verdict
    with pytest.raises(InputError, match="call tl.disentanglement_report first"):
        pl.report(adata, show=False)


@pytest.mark.parametrize(
    ("shares", "words"), [((-0.4, 1.4), ["-40%", "140%"]), ((np.nan, np.nan), ["–", "–"])]
)
def test_shares_that_are_below_zero_or_not_there(report, shares, words):
    of_share = report.table["measure"] == "reconstruction_share"
    report.table.loc[of_share, "value"] = shares
    sizes = pl.report(report, show=False)[2]
    texts = [text for text in sizes.texts if text.get_text() in words]
    assert [text.get_text() for text in texts] == words
    assert min(text.get_position()[0] for text in texts) > 0
    assert min(bar.get_width() for bar in sizes.patches) >= 0
    assert "nan" not in repr(report)


def test_names_with_dollars_are_no_mathematics(report):
    report.table["within"] = report.table["within"].replace("NK", r"$CD4^{} \type$")
    groups = pl.report(report, show=False)[1]
    groups.figure.draw_without_rendering()
    assert groups.get_yticklabels()[1].get_text() == r"\$CD4^{} \type\$"


def test_no_group_that_batches_share(report):
    within = report.table["within"]
    report.table = report.table[(report.table["target"] != "batch") | (within == "all")]
    axes = pl.report(report, show=False)
    assert "no group is shared" in axes[1].texts[0].get_text()


def test_in_axes_of_the_caller(report):
    figure, axes = plt.subplots(1, 4)
    drawn = pl.report(report, ax=axes, show=False)
    assert list(drawn) == list(axes[:3])
    assert axes[0].get_title("left") == "Disentanglement: poor, 0.20 of 1"
    assert axes[0].get_title() == ""
    assert axes[0].patches
    assert figure.get_suptitle() == ""
    assert not axes[3].patches
    with pytest.raises(InputError, match="ax has 2 axes, but there are 3 panels"):
        pl.report(report, ax=axes[:2], show=False)
