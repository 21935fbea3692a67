import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from scdisentangle import InputError, pl
from scdisentangle.data import simulated
from scdisentangle.pl import _latents


@pytest.fixture
def adata():
    adata = simulated(n_cells=90, n_genes=60, n_types=2, n_markers=5)
    rng = np.random.default_rng(0)
    for key in ("X_pca", "X_disentangle", "X_disentangle_batch"):
        adata.obsm[key] = rng.normal(size=(90, 4))
        adata.obsm[f"{key}_umap"] = rng.normal(size=(90, 2))
    return adata


def points(ax):
    return np.concatenate([c.get_offsets() for c in ax.collections])


def legend(ax):
    found = ax.get_legend()
    colors = [to_hex(handle.get_color()) for handle in found.legend_handles]
    return dict(zip([text.get_text() for text in found.get_texts()], colors, strict=True))


def test_before_and_after_by_batch_and_by_label(adata, tmp_path):
    axes = pl.latents(adata, ["batch", "celltype"], show=False, save=tmp_path / "latents.png")
    assert axes.shape == (2, 3)
    titles = [ax.get_title() for ax in axes[0]]
    assert titles[0] == "Unintegrated PCA"
    assert "bio" in titles[1]
    assert "nio" in titles[2]
    for row in axes:
        for ax, key in zip(row, ("X_pca", "X_disentangle", "X_disentangle_batch"), strict=True):
            drawn, layout = points(ax), adata.obsm[f"{key}_umap"]
            np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(layout, axis=0))
            assert all(c.get_rasterized() for c in ax.collections)
    assert [ax.get_legend() is None for ax in axes[:, 0]] == [True, True]
    assert list(legend(axes[0, -1])) == ["batch_0", "batch_1", "batch_2"]
    assert axes[1, -1].get_legend().get_title().get_text() == "celltype"
    assert plt.imread(tmp_path / "latents.png").std() > 0.05


def test_each_cell_has_the_color_of_its_category(adata):
    ax = pl.latents(adata, "batch", use_rep="X_pca", show=False)[0, 0]
    colors = legend(ax)
    assert len(set(colors.values())) == 3
    position = {
        tuple(xy): b for xy, b in zip(adata.obsm["X_pca_umap"], adata.obs["batch"], strict=True)
    }
    (collection,) = ax.collections
    for xy, color in zip(collection.get_offsets(), collection.get_facecolors(), strict=True):
        assert to_hex(color) == colors[position[tuple(xy)]]


def test_colors_of_the_user(adata):
    adata.uns["batch_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    ax = pl.latents(adata, "batch", use_rep="X_pca", show=False)[0, 0]
    assert list(legend(ax).values()) == ["#ff0000", "#00ff00", "#0000ff"]


def test_colors_of_the_user_are_of_their_category_where_one_has_no_cells(adata):
    adata.uns["batch_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    first, _, third = adata.obs["batch"].cat.categories
    without = adata[adata.obs["batch"] != adata.obs["batch"].cat.categories[1]].copy()
    without.obs["batch"] = pd.Categorical(without.obs["batch"], adata.obs["batch"].cat.categories)
    without.uns["batch_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    ax = pl.latents(without, "batch", use_rep="X_pca", show=False)[0, 0]
    assert legend(ax) == {first: "#ff0000", third: "#0000ff"}


@pytest.mark.parametrize("n", [2, 8, 9, 15, 60])
def test_as_many_colors_as_categories(adata, n):
    adata.obs["many"] = pd.Categorical([f"c{i % n:02d}" for i in range(90)])
    ax = pl.latents(adata, "many", use_rep="X_pca", show=False)[0, 0]
    assert len(legend(ax)) == len(set(legend(ax).values())) == n


@pytest.mark.parametrize("n", [3, 30])
def test_long_names_leave_the_panels_their_size(adata, n):
    short = pl.latents(adata, "batch", use_rep="X_disentangle", show=False)[0, 0]
    name = "CD8-positive, alpha-beta memory T cell, CD45RO-positive"
    adata.obs["long"] = [f"{name} {i % n:02d}" for i in range(adata.n_obs)]
    ax = pl.latents(adata, "long", use_rep="X_disentangle", show=False)[0, 0]
    for drawn in (short, ax):
        drawn.figure.draw_without_rendering()
    assert ax.get_window_extent().width > 0.8 * short.get_window_extent().width
    texts = [text.get_window_extent() for text in ax.get_legend().get_texts()]
    assert max(text.x1 for text in texts) <= ax.figure.bbox.x1


def test_numbers_get_a_scale_and_cells_without_a_value_are_grey(adata):
    adata.obs["celltype"] = adata.obs["celltype"].where(np.arange(90) >= 10)
    axes = pl.latents(adata, ["gradient", "celltype"], use_rep=["X_pca"], show=False)
    assert axes[0, 0].get_legend() is None
    assert "gradient" in [ax.get_ylabel() for ax in axes[0, 0].figure.axes]
    assert list(legend(axes[1, 0])) == ["type_0", "type_1", "no value"]
    grey, colored = axes[1, 0].collections
    assert (len(grey.get_offsets()), len(colored.get_offsets())) == (10, 80)


def test_titles_axes_and_a_layout_that_is_not_there_yet(adata):
    del adata.obsm["X_pca_umap"]
    keys = list(adata.obsm)
    _, ax = plt.subplots()
    axes = pl.latents(adata, "batch", use_rep={"X_pca": "Before"}, ax=ax, size=7, show=False)
    assert axes[0, 0] is ax
    assert ax.get_title() == "Before"
    assert points(ax).shape == (90, 2)
    assert ax.collections[0].get_sizes().tolist() == [7]
    assert list(adata.obsm) == keys


def test_points_are_smaller_where_cells_are_many(adata):
    """18,000 square points in all, up to 30 and no less than 1 for each."""
    many = ad.concat([adata] * 20, index_unique="-")
    for cells, area in ((adata, 30.0), (many, 10.0)):
        ax = pl.latents(cells, "batch", use_rep="X_pca", show=False)[0, 0]
        assert ax.collections[0].get_sizes().tolist() == [area]


def test_cells_are_drawn_in_an_order_of_the_seed(adata):
    """So that no batch lies on top; each has its place and colour in any order."""
    adata.uns["batch_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    layout, orders = adata.obsm["X_pca_umap"], []
    for seed in (0, 0, 1):
        ax = pl.latents(adata, "batch", use_rep="X_pca", seed=seed, show=False)[0, 0]
        order = np.abs(points(ax)[:, None] - layout).sum(axis=2).argmin(axis=1)
        assert sorted(order) == list(range(90))
        colors = [to_hex(color) for color in ax.collections[0].get_facecolors()]
        codes = adata.obs["batch"].cat.codes.to_numpy()
        assert colors == [adata.uns["batch_colors"][code] for code in codes[order]]
        assert np.abs(np.corrcoef(order, np.arange(90))[0, 1]) < 0.5
        orders.append(order.tolist())
    assert orders[0] == orders[1] != orders[2]


def test_a_layout_that_is_computed_is_that_of_the_seed(adata, monkeypatch):
    del adata.obsm["X_pca_umap"]
    monkeypatch.setattr(_latents, "umap_coordinates", lambda code, seed: code[:, :2] + seed)
    ax = pl.latents(adata, "batch", use_rep="X_pca", seed=7, show=False)[0, 0]
    expected = adata.obsm["X_pca"][:, :2] + 7
    np.testing.assert_allclose(np.sort(points(ax), axis=0), np.sort(expected, axis=0))


def test_colors_that_are_fewer_than_the_categories_are_not_taken(adata):
    first, _, third = categories = adata.obs["batch"].cat.categories
    kept = adata[adata.obs["batch"] != categories[1]].copy()
    kept.obs["batch"] = pd.Categorical(kept.obs["batch"], categories)
    kept.uns["batch_colors"] = ["#ff0000", "#00ff00"]
    ax = pl.latents(kept, "batch", use_rep="X_pca", show=False)[0, 0]
    assert legend(ax) == {first: "#0072b2", third: "#e69f00"}


def test_show(adata, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    pl.latents(adata, "batch", show=False)
    assert not shown
    pl.latents(adata, "batch")
    assert shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"color": "bach"}, "'bach' is not in adata.obs. Did you mean 'batch'"),
        ({"color": "batch", "use_rep": "X_scvi"}, "'X_scvi' is not in adata.obsm"),
        ({"color": []}, "nothing to draw"),
        ({"color": None}, "nothing to draw"),
        ({"color": "batch", "save": True}, "save=True must be the path of a file"),
    ],
)
def test_bad_arguments(adata, arguments, message):
    with pytest.raises(InputError, match=message):
        pl.latents(adata, **arguments, show=False)


def test_codes_that_have_no_layout_and_cannot_get_one(adata):
    few = adata[:3].copy()
    del few.obsm["X_pca_umap"]
    with pytest.raises(InputError, match="at least four cells, got 3"):
        pl.latents(few, "batch", use_rep="X_pca", show=False)
    del adata.obsm["X_pca_umap"]
    adata.obsm["X_pca"][0, 0] = np.nan
    with pytest.raises(InputError, match=r"adata.obsm\['X_pca'\] holds NaN"):
        pl.latents(adata, "batch", use_rep="X_pca", show=False)


def test_one_axes_for_several_panels(adata):
    _, ax = plt.subplots()
    with pytest.raises(InputError, match="1 x 3 were asked for"):
        pl.latents(adata, "batch", ax=ax, show=False)


@pytest.mark.parametrize(
    "values", [pd.date_range("2020-01-01", periods=3), np.float32([0.1, 1.3, 2.5]), [True, 3, "a"]]
)
def test_categories_that_are_no_words_have_their_colors(adata, values):
    adata.obs["kind"] = pd.Categorical.from_codes(np.arange(90) % 3, pd.Index(values))
    ax = pl.latents(adata, "kind", use_rep="X_pca", show=False)[0, 0]
    colors = list(legend(ax).values())
    position = {tuple(xy): i % 3 for i, xy in enumerate(adata.obsm["X_pca_umap"])}
    (collection,) = ax.collections
    for xy, color in zip(collection.get_offsets(), collection.get_facecolors(), strict=True):
        assert to_hex(color) == colors[position[tuple(xy)]]


def test_whole_numbers_are_clusters_or_counts(adata):
    adata.obs["cluster"] = np.arange(90) % 30
    adata.obs["n_genes"] = np.arange(90) % 31
    axes = pl.latents(adata, ["cluster", "n_genes"], use_rep="X_disentangle", show=False)
    assert len(legend(axes[0, 0])) == 30
    assert axes[1, 0].get_legend() is None
    np.testing.assert_array_equal(np.sort(axes[1, 0].collections[0].get_array())[[0, -1]], [0, 30])
