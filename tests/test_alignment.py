"""Shifts between batches that are found in z_bio after training."""

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import linalg, special, stats
from sklearn.cluster import KMeans
from sklearn.gaussian_process.kernels import RBF

from scdisentangle import DisentangleModel, InputError, _training, data, tl
from scdisentangle._alignment import (
    Alignment,
    common_shifts,
    group_means,
    groups,
    levels_and_shifts,
    likeness,
    mean_of_group,
    overlap,
)

N_CLUSTERS, N_BATCH, N_LATENT = 4, 3, 5


@pytest.fixture
def cells():
    """Codes, batch and cluster of 400 cells; cluster 3 is of batch 0 only, batch 2 lacks two."""
    rng = np.random.default_rng(0)
    batch, cluster = rng.integers(N_BATCH, size=400), rng.integers(N_CLUSTERS, size=400)
    batch[cluster == 3] = 0
    batch[(cluster == 2) & (batch == 2)] = 1
    z = rng.normal(size=(400, N_LATENT)) + rng.normal(size=(N_CLUSTERS, N_LATENT))[cluster]
    return z + rng.normal(size=(N_BATCH, N_LATENT))[batch], batch, cluster


@pytest.mark.parametrize("ridge", [0.5, 20.0, 1e6])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("spread", [1e-3, 2.0])
def test_shifts_are_those_of_a_ridge_regression_on_all_cells(cells, ridge, soft, spread):
    """A cell that is in several clusters counts as so many cells, with its share for weight."""
    z, batch, cluster = cells
    memberships = np.eye(N_CLUSTERS)[cluster]
    if soft:
        memberships = np.random.default_rng(1).dirichlet(np.ones(N_CLUSTERS), size=len(z))
    n, means = group_means(z, batch, memberships, N_BATCH)
    centers = np.random.default_rng(2).normal(size=(N_CLUSTERS, N_LATENT))
    alike = RBF(np.sqrt(2 * spread))(centers)  # what is alike is drawn to each other
    np.testing.assert_allclose(likeness(centers, spread), alike)
    levels, shifts = levels_and_shifts(n, means, alike, ridge)
    z, batch = np.repeat(z, N_CLUSTERS, axis=0), np.repeat(batch, N_CLUSTERS)
    cluster = np.tile(np.arange(N_CLUSTERS), len(memberships))
    group = batch * N_CLUSTERS + cluster
    design = np.concatenate([np.eye(k)[v] for k, v in ((4, cluster), (3, batch), (12, group))], 1)
    root = np.sqrt(memberships.ravel())
    precision = np.kron(np.eye(N_BATCH), ridge * np.linalg.inv(alike))
    diagonal = np.diag(np.sqrt(np.repeat([1e-6, 1.0], [4, 3])))
    penalty = linalg.block_diag(diagonal, np.linalg.cholesky(precision).T)
    found = np.linalg.lstsq(
        np.concatenate([root[:, None] * design, penalty]),
        np.concatenate([root[:, None] * z, np.zeros((19, N_LATENT))]),
        rcond=None,
    )[0]
    np.testing.assert_allclose(levels, found[:4], atol=1e-6)
    expected = found[4:7, None] + found[7:].reshape(N_BATCH, N_CLUSTERS, N_LATENT)
    np.testing.assert_allclose(shifts, expected, atol=1e-6)


def test_a_new_batch_is_shifted_to_known_levels():
    levels = np.array([[0.0, 0.0], [10.0, 0.0]])
    means = np.array([[[1.0, 2.0], [13.0, 2.0]]])
    n = np.array([[50.0, 50.0]])
    # both clusters weigh 50 * 50 / 100 = 25, against one of a shift of 0
    shift = common_shifts(n, means, levels, np.eye(2), ridge=50.0)
    np.testing.assert_allclose(shift, [[50 * 2.0 / 51, 50 * 2.0 / 51]])
    # as one cluster of 100 cells, which weighs 100 * 50 / 150
    shift = common_shifts(n, means, levels, np.ones((2, 2)), ridge=50.0)
    np.testing.assert_allclose(shift, [[100 * 2.0 / 103, 100 * 2.0 / 103]])


def test_means_of_groups_without_cells_are_zero():
    z = np.array([[2.0], [4.0], [7.0]])
    memberships = np.array([[0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    n, means = group_means(z, np.array([0, 0, 1]), memberships, 2)
    np.testing.assert_array_equal(n, [[0, 4], [1, 0]])
    np.testing.assert_array_equal(means[..., 0], [[0, 3.5], [7, 0]])


def test_overlap_is_none_where_a_batch_is_alone_and_full_where_batches_mix():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(600, 2)) + 100 * np.repeat([[0.0], [1.0]], 300, axis=0)
    batch = np.r_[rng.integers(2, size=300), np.zeros(300, int)]
    found = overlap(z, batch)
    np.testing.assert_array_equal(found[300:], 0)
    assert found[:300].mean() > 0.8
    np.testing.assert_array_equal(overlap(z, np.zeros(600, int)), 1)


def planted(private: bool, seed: int = 0):
    """Cells of three far clusters, two batches apart by a shift; maybe a cluster of one batch."""
    rng = np.random.default_rng(seed)
    cluster, batch = rng.integers(3, size=1500), rng.integers(2, size=1500)
    if private:
        batch[cluster == 2] = 0
    centers = 10 * np.eye(3, 6)
    shift = np.array([[[0.0] * 6] * 3, [[0, 0, 0, 1.5, 0, 0], [0, 0, 0, 1.5, 1, 0], [0] * 6]])
    z = centers[cluster] + shift[batch, cluster] + rng.normal(size=(1500, 6))
    return torch.tensor(z, dtype=torch.float32), torch.tensor(batch), cluster


def distances(z, batch, cluster, clusters):
    """Between the means of the two batches, in each cluster."""
    of = [[z[(batch == b) & (cluster == k)].mean(0) for b in (0, 1)] for k in clusters]
    return [float((one - other).norm()) for one, other in of]


@pytest.mark.parametrize("spherical", [False, True])
def test_planted_shifts_are_taken_out_and_a_cluster_of_one_batch_stays(spherical):
    z, batch, cluster = planted(private=True)
    alignment = Alignment(6, 2, spherical=spherical, max_clusters=3, ridge=5.0)
    assert alignment(z, batch).equal(z) or spherical
    alignment.fit(z, batch)
    moved = alignment(z, batch)
    assert min(distances(z, batch, cluster, [0, 1])) > 1.3
    assert max(distances(moved, batch, cluster, [0, 1])) < 0.25
    means = torch.stack([moved[cluster == k].mean(0) for k in range(3)])
    assert torch.cdist(means[2:], means[:2]).min() > 13.0  # 14.1 where nothing was planted
    if spherical:
        torch.testing.assert_close(moved.norm(dim=1), z.norm(dim=1))
    alignment.reset()
    torch.testing.assert_close(alignment(z, batch), z)


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_clusters_are_those_that_were_planted(seed):
    """Every other one is half as large; a single start of k-means puts two of them into one."""
    rng = np.random.default_rng(seed)
    planted = 5 * rng.normal(size=(20, 10))
    cluster = np.repeat(np.arange(20), [34, 68] * 10)
    z = planted[cluster] + rng.normal(size=(len(cluster), 10))
    alignment = Alignment(10, 1, spherical=False, n_rounds=1, max_clusters=20)
    alignment.fit(torch.tensor(z, dtype=torch.float32), torch.zeros(len(z), dtype=torch.long))
    nearest = np.linalg.norm(planted[:, None] - alignment.centers[0].numpy(), axis=-1).min(axis=1)
    assert nearest.max() < 1.5  # an error of the mean of 34 cells is 0.5


def test_cells_are_shared_among_clusters_by_their_squared_distance():
    """140 cells are enough for two; the scale is 0.15 of the mean squared distance to a centre."""
    z = np.random.default_rng(0).normal(size=(140, 3)) + [3, 0, 0] * (np.arange(140) % 2)[:, None]
    alignment = Alignment(3, 1, spherical=False, n_rounds=1, max_clusters=5)
    codes = torch.tensor(z, dtype=torch.float32)
    alignment.fit(codes, torch.zeros(140, dtype=torch.long))
    centers = alignment.centers[0, :2].double().numpy()
    expected = KMeans(2, n_init=10, random_state=0).fit(z).cluster_centers_
    np.testing.assert_allclose(np.sort(centers[:, 0]), np.sort(expected[:, 0]), atol=1e-4)
    squared = np.square(z[:, None] - centers).sum(axis=2)
    shares = special.softmax(-squared / (0.15 * squared.min(axis=1).mean()), axis=1)
    assert ((shares > 0.05) & (shares < 0.95)).any()
    found = alignment._memberships(codes, 0)
    np.testing.assert_allclose(found[:, :2], shares, atol=1e-4)
    assert (found[:, 2:] == 0).all()


def test_what_is_reset_of_a_query_is_its_own():
    z, batch, _ = planted(private=False)
    alignment = Alignment(6, 3, spherical=False, max_clusters=3)
    alignment.fit(z, batch)
    before = alignment(z, batch)
    assert not before.equal(z)
    alignment.first_new = 2
    new = torch.full((len(z),), 2)
    alignment.fit(z + 1.0, new)
    assert not alignment(z, new).equal(z)
    alignment.reset()
    assert alignment(z, new).equal(z)
    assert alignment(z, batch).equal(before)


def test_each_cell_is_moved_by_the_shifts_of_its_own_batch_whatever_is_beside_it():
    z, batch, _ = planted(private=False)
    alignment = Alignment(6, 3, spherical=False, max_clusters=3, n_rounds=1)
    alignment.fit(z, batch)
    shares = alignment._memberships(z, 0)
    moves = torch.einsum("ik,ikd->id", shares, alignment.shifts[0, batch])
    together = alignment(z, batch)
    torch.testing.assert_close(together, z - moves)
    alone = [alignment(z[i : i + 1], batch[i : i + 1]) for i in range(20)]
    assert torch.cat(alone).equal(together[:20])


def test_a_new_batch_joins_and_the_others_stay():
    z, batch, cluster = planted(private=False)
    alignment = Alignment(6, 3, spherical=False, max_clusters=3)
    alignment.fit(z, batch)
    before = alignment(z, batch)
    alignment.first_new = 2
    new = z[batch == 0] + torch.tensor([0.0, 0, 0, 0, 0, 2.0])
    alignment.fit(new, torch.full((len(new),), 2))
    assert alignment(z, batch).equal(before)
    arrived = alignment(new, torch.full((len(new),), 2))
    expected = before[batch == 0]
    assert (new - expected).norm(dim=1).mean() > 1.5
    assert (arrived - expected).mean(0).norm() < 0.4
    alignment.fit(z, batch)  # no cell of a new batch
    assert alignment(new, torch.full((len(new),), 2)).equal(arrived)


def test_groups_are_of_like_cells_of_one_batch():
    """Ten cells at each of twelve places, six for each of two batches."""
    rng = np.random.default_rng(0)
    place = torch.as_tensor(rng.permutation(np.arange(120) % 12))
    centers = 50.0 * torch.as_tensor(rng.normal(size=(12, 4)), dtype=torch.float32)
    z = centers[place] + torch.as_tensor(rng.normal(size=(120, 4)), dtype=torch.float32)
    group = groups(z, place % 2)
    expected = pd.DataFrame(z.numpy()).groupby(place.numpy()).transform("mean")
    np.testing.assert_allclose(mean_of_group(z, group), expected, rtol=1e-4, atol=1e-4)


def test_a_round_is_the_regression_on_cells_that_overlap():
    """One type in one batch only, whose cells do not count."""
    rng = np.random.default_rng(0)
    cluster, batch = rng.integers(3, size=900), rng.integers(2, size=900)
    batch[cluster == 2] = 0
    z = 5 * np.eye(3, 6)[cluster] + np.eye(6)[3] * batch[:, None] + rng.normal(size=(900, 6))
    alignment = Alignment(6, 2, spherical=False, n_rounds=1, max_clusters=3)
    alignment.fit(torch.tensor(z, dtype=torch.float32), torch.tensor(batch))
    centers = alignment.centers[0].double().numpy()
    squared = np.square(z[:, None] - centers).sum(axis=2)
    spread = squared.min(axis=1).mean()
    shares = special.softmax(-squared / (0.15 * spread), axis=1) * overlap(z, batch)[:, None]
    n, means = group_means(z, batch, shares, 2)
    levels, shifts = levels_and_shifts(n, means, RBF(np.sqrt(2 * spread))(centers), ridge=30.0)
    np.testing.assert_allclose(alignment.levels[0], levels, atol=2e-3)
    np.testing.assert_allclose(alignment.shifts[0], shifts, atol=2e-3)


def test_a_round_of_a_new_batch_is_the_common_shift_of_its_groups():
    rng = np.random.default_rng(1)
    cluster, batch = rng.integers(3, size=900), rng.integers(3, size=900)
    offsets = np.array([0.0, 1.0, 2.0])[batch, None] * np.eye(6)[3]
    z = 5 * np.eye(3, 6)[cluster] + offsets + rng.normal(size=(900, 6))
    codes, batches = torch.tensor(z, dtype=torch.float32), torch.tensor(batch)
    alignment = Alignment(6, 3, spherical=False, n_rounds=1, max_clusters=3)
    alignment.fit(codes[batches < 2], batches[batches < 2])
    alignment.first_new = 2
    alignment.fit(codes, batches)
    new = codes[batches == 2]
    of_new = torch.full((len(new),), 2)
    means_of_groups = mean_of_group(new, groups(new, of_new)).double().numpy()
    centers, levels = alignment.centers[0].double().numpy(), alignment.levels[0].double().numpy()
    spread = float(alignment.widths[0]) / 0.15
    squared = np.square(means_of_groups[:, None] - centers).sum(axis=2)
    shares = special.softmax(-squared / (0.15 * spread), axis=1)
    n, means = group_means(new.double().numpy(), of_new.numpy(), shares, 3)
    expected = common_shifts(n, means, levels, RBF(np.sqrt(2 * spread))(centers), 30.0)[2]
    np.testing.assert_allclose(alignment.shifts[0, 2], np.tile(expected, (3, 1)), atol=2e-3)


@pytest.mark.parametrize("n_cells", [1, 2, 60])
def test_few_cells_and_batches_without_cells(n_cells):
    z = torch.randn(n_cells, 6, generator=torch.Generator().manual_seed(0))
    batch = torch.arange(n_cells) % 2
    alignment = Alignment(6, 3, spherical=True)
    alignment.fit(z, batch)
    assert alignment(z, batch).isfinite().all()


def trained(**options):
    """With an encoder that sees genes, which leaves more of the batch."""
    adata = data.simulated(n_cells=600, n_genes=100, n_types=3, marker_log_fold_change=2.0, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    scvi.settings.seed = 0
    model = DisentangleModel(adata, n_hidden=32, n_latent_bio=10, n_components=0, **options)
    model.train(20, enable_progress_bar=False)
    return model, adata


def leakage(model, adata):
    adata.obsm["X_disentangle"] = model.get_latent_representation()
    table = tl.leakage(adata, "batch", "celltype", use_rep_batch=None)
    table = table.set_index(["code", "target", "within"])
    return table.excess["z_bio", "batch", "mean over labels"]


@pytest.mark.parametrize("options", [{}, {"kl_weight_bio": 0.1}], ids=["point", "variational"])
def test_a_model_ends_its_training_with_it(options):
    model, adata = trained(**options)
    without, _ = trained(alignment=False, **options)
    assert leakage(model, adata) < leakage(without, adata) - 0.1
    mean, variance = model.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(mean, model.get_latent_representation())
    raw, raw_variance = without.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(variance, raw_variance)
    without.align()
    np.testing.assert_array_equal(without.get_latent_representation(), raw)
    model.module.unsettle()
    without.module.unsettle()
    raw = without.get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(), raw, atol=1e-5)
    model.align()
    np.testing.assert_allclose(model.get_latent_representation(), mean, atol=1e-5)


def test_draws_of_a_cell_are_moved_as_its_mean_is():
    model, _ = trained(kl_weight_bio=0.1)
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=50)))
    inputs = model.module._get_inference_input(tensors)
    drawn = model.module.inference(**inputs, n_samples=500)
    mean = model.get_latent_representation(indices=np.arange(50))
    assert drawn["z_bio"].shape == (500, 50, 10)
    error = drawn["q_bio"].scale.mean() / 500**0.5
    torch.testing.assert_close(
        drawn["z_bio"].mean(0), torch.tensor(mean), atol=6 * float(error), rtol=0
    )


def test_a_second_training_starts_from_codes_that_are_not_aligned():
    model, adata = trained()
    scvi.settings.seed = 1
    model.train(1, enable_progress_bar=False, plan_kwargs={"lr": 1e-9})
    once = model.get_latent_representation()
    model.align()
    np.testing.assert_allclose(model.get_latent_representation(), once, atol=1e-6)


def test_shifts_are_found_from_so_many_random_cells(monkeypatch):
    model, adata = trained()
    model.module.unsettle()
    raw = model.get_latent_representation()
    seen = []
    monkeypatch.setattr(_training, "CELLS_TO_ALIGN", 240)
    monkeypatch.setattr(Alignment, "fit", lambda self, z, batch, _: seen.append((z, batch)))
    model.align()
    (z, batch), codes = seen[0], adata.obs["batch"].cat.codes.to_numpy()
    cells = np.abs(z.numpy()[:, None] - raw).max(axis=2).argmin(axis=1)
    np.testing.assert_allclose(z, raw[cells], atol=1e-5)
    np.testing.assert_array_equal(batch, codes[cells])
    assert len(set(cells)) == 240
    drawn, of_all = np.bincount(batch), np.bincount(codes)
    expected = stats.multivariate_hypergeom(of_all, 240)
    deviations = (drawn - expected.mean()) / np.diag(expected.cov()) ** 0.5
    assert np.abs(deviations).max() < 4


def test_progress_is_shown_where_it_is_wanted(capsys):
    model, _ = trained()
    assert "Aligning" not in capsys.readouterr().out
    model.align(progress_bar=False)
    assert "Aligning" not in capsys.readouterr().out
    model.align()
    assert "Aligning" in capsys.readouterr().out
    model.train(1)
    assert "Aligning" in capsys.readouterr().out


def test_minified_codes_are_not_aligned_again():
    model, adata = trained()
    mean, variance = model.get_latent_representation(return_dist=True)
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = mean, variance
    model.minify_adata()
    np.testing.assert_array_equal(model.get_latent_representation(), mean)
    with pytest.raises(InputError, match="minified"):
        model.align()


def test_a_file_from_before_there_was_an_alignment_loads():
    alignment = Alignment(6, 2, spherical=False)
    module = torch.nn.ModuleDict({"alignment": alignment, "other": torch.nn.Linear(1, 1)})
    old = {k: v for k, v in module.state_dict().items() if not k.startswith("alignment")}
    module.load_state_dict(old)
    z = torch.randn(5, 6)
    torch.testing.assert_close(alignment(z, torch.zeros(5, dtype=torch.long)), z)
