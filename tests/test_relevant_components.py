"""Components of expression along which cells differ, and matched cells of two batches do not."""

import copy

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback
from scipy.sparse import csr_array
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from scdisentangle import DisentangleModel, InputError, _training_plan, data
from scdisentangle._relevant_components import (
    RelevantComponents,
    average_of_batch,
    between_matched,
    matched_cells,
    relevant_components,
    shrunk,
    trusted,
)

N_GENES = 40


def two_batches(seed=0, n_cells=600, n_types=4):
    """Types along four orthogonal axes, the batch along another, and noise along all."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(N_GENES, n_types + 1)))[0].T
    types = rng.integers(n_types, size=n_cells)
    batch = rng.integers(2, size=n_cells)
    x = 6 * axes[types] + 9 * np.outer(batch, axes[n_types])
    return x + rng.normal(scale=0.5, size=x.shape), types, batch, axes


def cosines(a, b):
    """Cosines of the principal angles between the spans of two sets of rows."""
    (qa, _), (qb, _) = (np.linalg.qr(rows.T) for rows in (a, b))
    return np.linalg.svd(qa.T @ qb, compute_uv=False)


def test_the_first_components_are_those_of_the_types_not_of_the_batch():
    """Four types differ along three directions; the batch's, where most varies, is a fourth."""
    x, types, batch, axes = two_batches(n_cells=1200)
    of_types = axes[:4] - axes[:4].mean(axis=0)
    span = np.linalg.svd(of_types)[2][:3]
    found = relevant_components(x, batch, 20)[0][:3]
    assert cosines(found, span).min() > 0.97
    assert np.abs(found / np.linalg.norm(found, axis=1, keepdims=True) @ axes[4]).max() < 0.05


def share_within(z, types):
    """Share of the variance that is within types."""
    within = z - np.stack([z[types == t].mean(axis=0) for t in range(4)])[types]
    return within.var(axis=0).sum() / z.var(axis=0).sum()


def test_they_are_fishers_where_matched_cells_are_those_of_a_type():
    """Mutual neighbours stand for types; with these known, it is a linear discriminant analysis."""
    x, types, batch, _ = two_batches()
    without_batch = x - np.stack([x[batch == b].mean(axis=0) for b in range(2)])[batch]
    fisher = LinearDiscriminantAnalysis(solver="eigen").fit(without_batch, types).scalings_[:, :3]
    found = relevant_components(x, batch, N_GENES)[0][:3]
    z = (x - x.mean(axis=0)) @ found.T
    expected = without_batch @ fisher
    assert share_within(z, types) < 2 * share_within(expected, types) < 0.1


def test_matched_cells_differ_alike_along_every_component():
    """By definition of the components, up to the ridge."""
    x, _, batch, _ = two_batches()
    found = relevant_components(x, batch, 10)[0]
    z = (x - x.mean(axis=0)) @ found.T
    covariance = between_matched(z, matched_cells(z, batch))
    assert np.diag(covariance).max() < 1.3
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.3


def by_loops(x, batch):
    """Components of the definition, and S and D + r I of the last round, in gene space."""
    x = x - x.mean(axis=0)
    within = x - np.stack([x[batch == b].mean(axis=0) for b in range(2)])[batch]
    spread = within.T @ within / len(x)
    principal = np.linalg.svd(x, full_matrices=False)[2]
    compared = within @ principal.T
    for _ in range(3):
        like = cosine_similarity(compared)
        average = np.zeros(like.shape)
        for cell, b in enumerate(batch):
            own = np.flatnonzero(batch == b)
            average[cell, own[np.argsort(-like[cell, own])[:11]]] = 1 / 11
        like = cosine_similarity(average @ compared)
        near = np.zeros(like.shape, dtype=bool)
        for cell, b in enumerate(batch):
            others = np.flatnonzero(batch != b)
            near[cell, others[np.argsort(-like[cell, others])[:10]]] = True
        pairs = np.argwhere(near & near.T)
        squared = euclidean_distances(average @ compared, squared=True)[*pairs.T]
        weights = (1 + squared / (0.3 * np.median(squared))) ** -2
        differ = np.zeros_like(spread)
        for factor, z in ((1.0, x), (3.0, average @ x)):
            apart = z[pairs[:, 0]] - z[pairs[:, 1]]
            differ += factor * (apart.T * weights) @ apart / 2 / weights.sum()
        of_cell = np.bincount(pairs[:, 0], weights, len(x))
        n_cells = of_cell.sum() ** 2 / (of_cell**2).sum()
        share = n_cells / (n_cells + len(spread))
        equal = np.eye(len(spread)) / len(spread)
        differ = share * differ + (1 - share) * np.trace(differ) * equal
        differ += 0.05 * np.trace(spread) * equal
        root = np.linalg.inv(np.linalg.cholesky(differ))
        w = root.T @ np.linalg.eigh(root @ spread @ root.T)[1][:, ::-1]
        compared = (x @ w)[:, :30]
    return w.T, spread, differ


def test_they_solve_the_equation_that_defines_them():
    rng = np.random.default_rng(0)
    batch, types = rng.integers(2, size=(2, 150))
    x = rng.normal(size=(150, N_GENES))  # of which no two averages are as good as the same
    x[:, :3] += 3.0 * np.stack([batch, types, batch * types], axis=1)
    expected, spread, differ = by_loops(x, batch)
    found, relevance = relevant_components(x, batch, N_GENES)
    np.testing.assert_allclose(found @ differ @ found.T, np.eye(N_GENES), atol=1e-6)
    ratios = np.diag(expected @ spread @ expected.T)
    assert (np.diff(ratios) < 0).all()
    np.testing.assert_allclose(found @ spread @ found.T, np.diag(ratios), atol=1e-6 * ratios[0])
    np.testing.assert_allclose(relevance, ratios, rtol=1e-6)


def test_a_type_that_one_batch_lacks_keeps_its_direction():
    x, types, batch, axes = two_batches()
    kept = (types != 3) | (batch == 0)
    x, types, batch = x[kept], types[kept], batch[kept]
    z = (x - x.mean(axis=0)) @ relevant_components(x, batch, 20)[0][:3].T
    predicted = cross_val_predict(KNeighborsClassifier(5), z, types)
    assert balanced_accuracy_score(types, predicted) > 0.98


@pytest.mark.parametrize("seed", [0, 1])
def test_two_types_that_two_batches_lack_in_turn_are_not_taken_for_one(seed):
    """Each is the nearest that the other batch has, and so they are matched; in vain."""
    x, types, batch, axes = two_batches(seed, n_types=6)
    kept = ((types != 3) | (batch == 0)) & ((types != 2) | (batch == 1))
    found = relevant_components(x[kept], batch[kept], 20)[0][:5]
    apart = axes[3] - axes[2]
    assert cosines(found, apart[None]).min() > 0.9
    ordinary = axes[1] - axes[0]
    assert np.linalg.norm(found @ apart) > 0.8 * np.linalg.norm(found @ ordinary)


def test_a_match_counts_less_the_farther_apart_it_is():
    """Squared distances 1, 4 and 9: of their median 4, 0.3 is 1.2."""
    z = np.array([[0.0], [1.0], [10.0], [12.0], [20.0], [23.0]])
    matched = np.zeros((6, 6))
    matched[[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]] = 1
    weights = trusted(csr_array(matched), z).toarray()
    expected = np.repeat((1 + np.array([1, 4, 9]) / 1.2) ** -2.0, 2)
    np.testing.assert_allclose(weights[matched > 0], expected)
    assert (weights[matched == 0] == 0).all()
    assert trusted(csr_array((6, 6)), z).nnz == 0


def test_cells_are_averaged_with_the_nearest_of_their_batch():
    rng = np.random.default_rng(0)
    z, batch = rng.normal(size=(60, 5)), rng.permutation(np.repeat([0, 1, 2], [40, 15, 5]))
    averages = average_of_batch(z, batch) @ z
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    for cell in range(len(z)):
        others = np.flatnonzero(batch == batch[cell])
        nearest = others[np.argsort(-unit[others] @ unit[cell])[:11]]
        np.testing.assert_allclose(averages[cell], z[nearest].mean(axis=0))


def test_the_covariance_of_matched_cells_is_that_around_their_means():
    z = np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 0.0], [5.0, 4.0]])
    matched = np.zeros((4, 4))
    matched[[0, 1, 2, 3], [1, 0, 3, 2]] = 1
    around = z - np.repeat([z[:2].mean(axis=0), z[2:].mean(axis=0)], 2, axis=0)
    np.testing.assert_allclose(between_matched(z, csr_array(matched)), around.T @ around / 2)
    nobody = csr_array((4, 4))
    np.testing.assert_array_equal(between_matched(z, nobody), np.zeros((2, 2)))


@pytest.mark.parametrize("n_matched", [4, 60])
def test_the_covariance_of_few_cells_is_nearer_to_equal_variances(n_matched):
    matched = np.zeros((n_matched, n_matched))
    cells = np.arange(n_matched)
    matched[cells, cells[::-1]] = 0.7
    share = n_matched / (n_matched + 2)
    expected = np.diag([6 * share + 3 * (1 - share), 3 * (1 - share)])
    np.testing.assert_allclose(shrunk(np.diag([6.0, 0.0]), csr_array(matched)), expected)
    nobody = csr_array((n_matched, n_matched))
    np.testing.assert_allclose(shrunk(np.diag([6.0, 0.0]), nobody), 3 * np.eye(2))


def test_few_cells_show_their_types_and_not_chance():
    """Fewer cells than genes: five types, the batch, and as much chance along every gene."""
    rng = np.random.default_rng(0)
    types, batch = np.tile(np.arange(5), 20), np.repeat([0, 1], 50)
    axes = np.linalg.qr(rng.normal(size=(600, 6)))[0].T
    x = 5 * axes[types] + 12 * np.outer(batch, axes[5]) + rng.normal(size=(100, 600))
    components = RelevantComponents(600, 90)
    components.fit(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(batch))
    z = components(torch.as_tensor(x, dtype=torch.float32)).numpy()
    genes = x - np.stack([x[batch == b].mean(axis=0) for b in range(2)])[batch]

    def told(codes):
        predicted = cross_val_predict(KNeighborsClassifier(5), codes, types)
        return balanced_accuracy_score(types, predicted)

    assert told(z) > told(genes)


@pytest.mark.parametrize("n_batch", [1, 2])
@pytest.mark.parametrize("n_cells", [1, 2, 5, 30])
def test_as_many_components_as_there_are_cells_for(n_cells, n_batch):
    x = torch.as_tensor(two_batches()[0][:n_cells], dtype=torch.float32)
    components = RelevantComponents(N_GENES, 12)
    components.fit(x, torch.arange(n_cells) % n_batch)
    z = components(components.centered(x))
    assert z.isfinite().all()
    assert (z.abs().sum(dim=0) > 1e-4).sum() <= min(12, n_cells - 1)
    assert components.found


def test_constant_genes_and_cells():
    components = RelevantComponents(N_GENES, 12)
    components.fit(torch.ones(50, N_GENES), torch.arange(50) % 2)
    assert (components(components.centered(torch.ones(50, N_GENES))) == 0).all()


def test_a_cell_is_as_long_as_the_number_of_components_says():
    x = torch.as_tensor(two_batches()[0], dtype=torch.float32)
    components = RelevantComponents(N_GENES, 16)
    components.fit(x, torch.as_tensor(two_batches()[2]))
    length = components(components.centered(x)).norm(dim=1).median()
    assert length.item() == pytest.approx(4.0, rel=1e-5)


def test_cells_with_nan_are_left_to_training():
    x = torch.as_tensor(two_batches()[0], dtype=torch.float32)
    batch = torch.as_tensor(two_batches()[2])
    whole, torn = RelevantComponents(N_GENES, 8), RelevantComponents(N_GENES, 8)
    whole.fit(x, batch)
    hole = torch.full((1, N_GENES), torch.nan)
    torn.fit(torch.cat([hole, x]), torch.cat([batch[:1], batch]))
    torch.testing.assert_close(torn.weight, whole.weight)


def trained(adata, max_epochs=1, **options):
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16, **options)
    model.train(max_epochs, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def adata():
    return data.simulated(n_cells=200, n_genes=60)


def test_training_finds_them_once(adata):
    scvi.settings.seed = 0
    model = trained(adata.copy())
    components = model.module.encoder.components
    assert components.found
    found = copy.deepcopy(components.state_dict())
    model.train(1, enable_progress_bar=False)
    for name, values in components.state_dict().items():
        torch.testing.assert_close(values, found[name])


def test_so_many_cells_are_compared_and_epochs_draw_as_without(adata, monkeypatch):
    seen, states, fit = [], [], RelevantComponents.fit

    def kept(self, *cells):
        seen.append(cells)
        fit(self, *cells)

    class Watch(Callback):
        def on_train_start(self, *args):
            states.append(torch.get_rng_state())

        on_train_epoch_start = on_train_start

    monkeypatch.setattr(_training_plan, "CELLS_TO_COMPARE", 70)
    monkeypatch.setattr(RelevantComponents, "fit", kept)
    cells = adata.copy()
    DisentangleModel.setup_anndata(cells, batch_key="batch")
    model = DisentangleModel(cells, n_hidden=16)
    model.train(1, batch_size=40, enable_progress_bar=False, callbacks=[Watch()])
    ((x, batch),) = seen
    counts = cells.X.toarray()
    expected = np.log1p(counts / counts.sum(axis=1, keepdims=True) * model.module.target_sum.item())
    distances = euclidean_distances(x.numpy(), expected)
    which = distances.argmin(axis=1)
    assert len(set(which)) == len(x) == 70
    assert distances.min(axis=1).max() < 0.01
    np.testing.assert_array_equal(batch, cells.obs["batch"].cat.codes.to_numpy()[which])
    assert states[0].equal(states[1])


def test_a_query_keeps_those_of_its_reference(adata):
    reference = trained(adata.copy())
    query = adata[:60].copy()
    query.obs["batch"] = "new"
    mapped = DisentangleModel.load_query_data(query, reference)
    mapped.train(1, enable_progress_bar=False)
    ours = mapped.module.encoder.components.state_dict()
    for name, values in reference.module.encoder.components.state_dict().items():
        torch.testing.assert_close(ours[name], values)


def test_z_bio_starts_as_the_first_components(adata):
    """With a network that says nothing, it is their direction."""
    model = trained(adata.copy())
    model.module.unsettle()
    encoder = model.module.encoder
    torch.nn.init.zeros_(encoder.bio_head.mean.weight)
    torch.nn.init.zeros_(encoder.bio_head.mean.bias)
    x = torch.as_tensor(adata.X.toarray())
    normalized = torch.log1p(x / x.sum(dim=1, keepdim=True) * model.module.target_sum)
    first = (normalized - encoder.components.center) @ encoder.components.weight[:30].T
    expected = torch.nn.functional.normalize(first, dim=1) * 30**0.5
    z = torch.as_tensor(model.get_latent_representation())
    torch.testing.assert_close(z, expected, atol=1e-3, rtol=1e-3)


def test_the_network_adds_to_three_eighths_of_the_first_components(adata):
    encoder = trained(adata.copy(), n_latent_bio=5, spherical=False).module.encoder.eval()
    x = torch.randn(20, adata.n_vars)
    components = encoder.components(x)
    network = encoder.bio_head.mean(encoder.bio_encoder(components))
    z, _ = encoder.encode_bio(x, [], None)
    torch.testing.assert_close(z, network + 0.375 * components[:, :5])


@pytest.mark.parametrize("n_components", [1, 3, 30])
def test_fewer_components_than_dimensions(adata, n_components):
    model = trained(adata.copy(), n_components=n_components)
    assert np.isfinite(model.get_latent_representation()).all()
    assert len(model.module.encoder.components.weight) == n_components


@pytest.mark.parametrize("options", [{"n_components": 0}, {"encoder": "shared"}])
def test_the_encoder_sees_genes_where_asked_to_or_shared(adata, options):
    model = trained(adata.copy(), **options)
    assert model.module.encoder.components is None
    assert model.module.encoder.bio_encoder.fc_layers[0][0].in_features == 60


def test_the_encoder_sees_genes_where_labels_are_registered(adata):
    adata = adata.copy()
    DisentangleModel.setup_anndata(adata, batch_key="batch", labels_key="celltype")
    assert DisentangleModel(adata, n_hidden=16).module.encoder.components is None
    chosen = DisentangleModel(adata, n_hidden=16, n_components=7).module.encoder
    assert len(chosen.components.weight) == 7


def test_the_encoder_sees_genes_where_there_is_no_second_batch_to_match(adata, tmp_path):
    """And so does that of a query, whose model has two."""
    reference = trained(adata[adata.obs["batch"] == "batch_0"].copy())
    assert reference.module.encoder.components is None
    query = adata[adata.obs["batch"] == "batch_1"].copy()
    mapped = DisentangleModel.load_query_data(query, reference)
    mapped.train(1, enable_progress_bar=False)
    mapped.save(str(tmp_path / "mapped"))
    loaded = DisentangleModel.load(str(tmp_path / "mapped"), adata=query)
    assert loaded.module.encoder.components is None
    z = loaded.get_latent_representation()
    np.testing.assert_allclose(z, mapped.get_latent_representation(), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": -1}, "n_components=-1 must be"),
        ({"n_components": 2.5}, "n_components=2.5 must be a whole"),
        ({"n_components": 9, "encoder": "shared"}, "n_components=9.*encoder='separate'"),
    ],
)
def test_components_that_cannot_be(adata, options, message):
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    with pytest.raises(InputError, match=message):
        DisentangleModel(adata, **options)


def test_no_finite_cell_leaves_the_components_as_they_were():
    components = RelevantComponents(5, 3)
    components.fit(torch.full((20, 5), torch.nan), torch.arange(20) % 2)
    assert all(buffer.isfinite().all() for buffer in components.buffers())
    assert not components.found
