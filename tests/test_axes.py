import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from sklearn.metrics import silhouette_score

from scdisentangle import DisentangleModel, data
from scdisentangle._axes import Axes


@pytest.fixture
def codes():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    z = torch.as_tensor(rng.normal(size=(400, 5)) @ mixing, dtype=torch.float32)
    return z, torch.as_tensor(rng.integers(3, size=400))


def covariance(z, batch):
    """Pooled within batches, as a textbook has it."""
    z, batch = z.double().numpy(), batch.numpy()
    of_batch = [np.cov(z[batch == b].T, bias=True) * (batch == b).sum() for b in np.unique(batch)]
    return sum(of_batch) / len(z)


@pytest.mark.parametrize("power", [0.25, 0.5])
def test_codes_are_multiplied_by_a_root_of_their_covariance(codes, power):
    axes = Axes(5, power=power)
    axes.fit(*codes)
    root = fractional_matrix_power(covariance(*codes), power)
    moved = axes(codes[0]).double().numpy()
    expected = codes[0].double().numpy() @ root
    scale = np.linalg.norm(expected) / np.linalg.norm(moved)
    np.testing.assert_allclose(scale * moved, expected, rtol=1e-3, atol=1e-4)


def test_the_sum_of_variances_stays(codes):
    z, batch = codes
    axes = Axes(5)
    axes.fit(z, batch)
    before, after = (np.trace(covariance(v, batch)) for v in (z, axes(z)))
    assert after == pytest.approx(before, rel=1e-4)


def test_no_axis_is_shorter_than_a_tenth_of_the_longest():
    """Variances 1, 0.001 and a millionth: their fourth roots, the last of a ten-thousandth."""
    z = np.linalg.qr(np.random.default_rng(0).normal(size=(200, 4)))[0]
    z = np.linalg.qr(np.column_stack([np.ones(200), z]))[0][:, 1:4] * [1.0, 0.001**0.5, 0.001]
    axes = Axes(3)
    axes.fit(torch.as_tensor(z, dtype=torch.float32), torch.zeros(200, dtype=torch.long))
    lengths = np.sort(np.linalg.eigvalsh(axes.root.double().numpy()))[::-1]
    np.testing.assert_allclose(lengths / lengths[0], [1.0, 0.001**0.25, 0.1], rtol=1e-3)


def test_what_batches_differ_by_has_no_say(codes):
    z, batch = codes
    alone, shifted = Axes(5), Axes(5)
    alone.fit(z, batch)
    shifted.fit(z + 10.0 * batch.unsqueeze(1) * torch.eye(5)[0], batch)
    torch.testing.assert_close(shifted.root, alone.root, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("varying", [5, 3, 1, 0])
def test_nothing_is_lost_even_of_an_axis_where_nothing_varies(codes, varying):
    z, batch = codes
    z = z.clone()
    z[:, varying:] = 2.0
    axes = Axes(5)
    axes.fit(z, batch)
    torch.testing.assert_close(axes.undo(axes(z)), z, rtol=1e-3, atol=1e-3)
    others = torch.randn(20, 5)
    torch.testing.assert_close(axes.undo(axes(others)), others, rtol=1e-3, atol=1e-3)


def test_types_that_noise_on_many_axes_hides_are_clearer():
    rng = np.random.default_rng(0)
    types = rng.integers(4, size=600)
    z = rng.normal(size=(600, 30))
    z[:, :3] += 4.0 * rng.normal(size=(4, 3))[types]
    z = torch.as_tensor(z, dtype=torch.float32)
    axes = Axes(30)
    axes.fit(z, torch.zeros(600, dtype=torch.long))
    assert silhouette_score(axes(z), types) > 1.3 * silhouette_score(z, types)


def test_those_of_a_reference_stay(codes):
    axes = Axes(5)
    axes.fit(*codes)
    root = axes.root.clone()
    axes.of_reference = True
    axes.reset()
    axes.fit(codes[0] @ torch.diag(torch.arange(1.0, 6.0)), codes[1])
    assert axes.root.equal(root)


def test_a_file_from_before_there_were_axes_loads(codes):
    module = torch.nn.ModuleDict({"axes": Axes(5)})
    module.load_state_dict({})
    assert module["axes"](codes[0]).equal(codes[0])


@pytest.fixture(scope="module", params=["likelihood", "both", "squared_error"])
def trained(request):
    adata = data.simulated(n_cells=300, n_genes=80, seed=1)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, code_loss=request.param)
    model.train(max_epochs=5, enable_progress_bar=False)
    return model, adata


def test_what_is_decoded_does_not_depend_on_the_axes(trained):
    model, _ = trained
    z, expression = model.get_latent_representation(), model.get_normalized_expression()
    kept = [matrix.clone() for matrix in model.module.axes.buffers()]
    model.module.axes.reset()
    unscaled = model.get_latent_representation()
    assert not np.allclose(z, unscaled, atol=1e-2)
    np.testing.assert_allclose(model.get_normalized_expression(), expression, rtol=1e-3, atol=1e-7)
    for matrix, values in zip(model.module.axes.buffers(), kept, strict=True):
        matrix.copy_(values)
    np.testing.assert_allclose(model.get_latent_representation(), z, rtol=1e-5)


def test_training_leaves_codes_along_the_axes_that_were_found(trained):
    model, adata = trained
    z = torch.as_tensor(model.get_latent_representation())
    batch = torch.as_tensor(adata.obs["batch"].cat.codes.to_numpy()).long()
    before = model.module.axes.undo(z)
    power = {"likelihood": 0.25, "both": 0.5, "squared_error": 0.5}[model.module.code_loss]
    root = fractional_matrix_power(covariance(before, batch), power)
    np.testing.assert_allclose(
        model.module.axes.root.numpy() / np.linalg.norm(model.module.axes.root.numpy()),
        root / np.linalg.norm(root),
        atol=1e-3,
    )


def test_aligning_again_changes_nothing(trained):
    model, _ = trained
    z = model.get_latent_representation()
    model.align()
    np.testing.assert_allclose(model.get_latent_representation(), z, rtol=1e-3, atol=1e-3)


def test_a_query_has_the_axes_of_its_reference(trained):
    model, adata = trained
    query = data.simulated(n_cells=120, n_genes=80, seed=2)
    query.var_names = adata.var_names
    query.obs["batch"] = "new"
    mapped = DisentangleModel.load_query_data(query, model)
    mapped.train(max_epochs=1, enable_progress_bar=False)
    assert mapped.module.axes.root.equal(model.module.axes.root)


@pytest.mark.parametrize(
    "options", [{"spherical": False}, {"kl_weight_bio": 0.5}, {"n_latent_bio": 2}]
)
def test_codes_that_are_not_spread_keep_their_axes(trained, options):
    _, adata = trained
    assert DisentangleModel(adata, **options).module.axes is None


def test_codes_of_a_model_with_labels_keep_their_axes():
    adata = data.simulated(n_cells=60, n_genes=40)
    DisentangleModel.setup_anndata(
        adata, batch_key="batch", labels_key="celltype", unlabeled_category="Unknown"
    )
    assert DisentangleModel(adata).module.axes is None
