"""What a module is made of, how it encodes and decodes, and the noise."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import torch
from scvi import REGISTRY_KEYS
from sklearn.neighbors import NearestNeighbors
from small_module import N_BATCH, N_CELLS, N_GENES, gradient_norm, make, minibatch

from scdisentangle import InputError


@pytest.fixture
def tensors():
    return minibatch()


@pytest.mark.parametrize("factor", [1.0, 0.005])
def test_normalisation_is_scanpys(tensors, factor):
    """Of counts that were corrected too, whose sums may be below 1."""
    x = tensors[REGISTRY_KEYS.X_KEY] = factor * tensors[REGISTRY_KEYS.X_KEY]
    adata = ad.AnnData(x.numpy().copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    module = make(target_sum=1e4).eval()
    outputs, *_ = module(tensors)
    np.testing.assert_allclose(outputs["normalized"], adata.X, rtol=1e-5)


@pytest.mark.parametrize(("encoder", "one"), [("shared", True), ("separate", False)])
def test_shared_or_separate_encoders(encoder, one):
    module = make(encoder=encoder).encoder
    assert (module.bio_encoder is module.nio_encoder) == one


@pytest.mark.parametrize("seen", [True, False])
def test_whether_the_decoder_sees_the_batch(tensors, seen):
    module = make(batch_in_decoder=seen).eval()
    outputs, generated, _ = module(tensors)
    inputs = module._get_generative_input(tensors, outputs)
    inputs["batch_index"] = (inputs["batch_index"] + 1) % N_BATCH
    moved = module.generative(**inputs)["px"].mean - generated["px"].mean
    assert (moved.abs().max().item() > 1e-3) == seen


def test_noise_is_on_the_input_in_training_only(tensors):
    module = make(dropout_rate=0.0, gene_likelihood="mse")
    kwargs = module._get_inference_input(tensors)
    clean = module.train().inference(**kwargs, noise_level=0.0)
    noisy = module.train().inference(**kwargs, noise_level=0.5)
    calm = module.eval().inference(**kwargs, noise_level=0.5)
    assert not torch.allclose(noisy["z_bio"], clean["z_bio"])
    assert not torch.allclose(noisy["z_nio"], clean["z_nio"])
    torch.testing.assert_close(calm["z_bio"], clean["z_bio"])
    torch.testing.assert_close(noisy["normalized"], clean["normalized"])


@pytest.mark.parametrize(("code", "level"), [("bio", 0.3), ("nio", 0.6)])
def test_noise_has_the_level_asked_for(tensors, code, level):
    module = make(nio_noise_factor=2.0, n_components=0).train()
    seen = []
    encoder = getattr(module.encoder, f"{code}_encoder")
    encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    kwargs = module._get_inference_input(tensors)
    for _ in range(200):
        outputs = module.inference(**kwargs, noise_level=0.3)
    noise = torch.stack(seen) - outputs["normalized"]
    assert noise.std().item() == pytest.approx(level, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize(
    ("options", "per_gene"),
    [
        ({}, 0.03),
        ({"code_loss": "likelihood"}, 0.01),
        ({"kl_weight_bio": 0.1}, 0.01),
        ({"gene_likelihood": "mse"}, 0.05),
        ({"gene_likelihood": "normal"}, 0.05),
        ({"gene_likelihood": "mse", "n_components": 0}, 0.01),
        ({"code_loss": "squared_error"}, 0.05),
        ({"code_loss": "squared_error", "n_components": 0}, 0.01),
        ({"code_loss": "both", "n_components": 0}, 0.01),
        ({"gene_likelihood": "mse", "lambda_dis": 0.6}, 0.6 / N_GENES),
    ],
)
def test_the_weight_of_the_disentanglement_follows_the_genes(options, per_gene):
    assert make(**options).lambda_dis == pytest.approx(per_gene * N_GENES)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("n_latent_bio", [0, 2.5, True, "many"]),
        ("n_latent_nio", [0, 2.5]),
        ("n_hidden", [0, 12.5]),
        ("n_hidden_nio", [-1]),
        ("n_components", [-1, 2.5, True]),
        ("n_layers", [0, -1]),
        ("dropout_rate", [1.0, -0.1]),
        ("input_dropout", [1.0, 1.5]),
        ("target_sum", [0, -5.0]),
        ("counts_per_size_factor", [0]),
        ("lambda_cls", [-1.0, "x", float("nan")]),
        ("lambda_dis", [-1.0, float("nan")]),
        ("kl_weight_bio", [-1.0]),
        ("kl_weight_nio", [-1.0]),
        ("nio_noise_factor", [-1.0]),
    ],
)
def test_options_out_of_their_range(option, values):
    for value in values:
        with pytest.raises(InputError, match=f"{option}=.* must be a"):
            make(**{option: value})


def test_numbers_of_numpy_are_numbers():
    module = make(n_components=np.int64(20), n_hidden=np.int64(8), dropout_rate=np.float32(0.1))
    assert module.encoder.n_components == 20


def test_size_factors_take_the_place_of_the_sum(tensors):
    tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY] = torch.full((N_CELLS, 1), 7.0)
    module = make(use_size_factor_key=True, gene_likelihood="poisson").eval()
    outputs, generated, _ = module(tensors)
    expected = torch.log1p(tensors[REGISTRY_KEYS.X_KEY] / 7.0 * 1e4)
    torch.testing.assert_close(outputs["normalized"], expected)
    torch.testing.assert_close(generated["px"].mean.sum(1), torch.full((N_CELLS,), 7.0))


@pytest.mark.parametrize("encoded", [True, False])
def test_covariates_are_decoded_and_encoded_if_asked(tensors, encoded):
    module = make(n_continuous_cov=1, n_cats_per_cov=[2], encode_covariates=encoded).eval()
    tensors[REGISTRY_KEYS.CONT_COVS_KEY] = torch.zeros(N_CELLS, 1)
    tensors[REGISTRY_KEYS.CAT_COVS_KEY] = torch.zeros(N_CELLS, 1, dtype=torch.long)
    before, px_before, _ = module(tensors)
    for key, value in {REGISTRY_KEYS.CONT_COVS_KEY: 1.0, REGISTRY_KEYS.CAT_COVS_KEY: 1}.items():
        moved = {**tensors, key: torch.full_like(tensors[key], value)}
        after, px_after, _ = module(moved)
        assert torch.equal(after["z_bio"], before["z_bio"]) != encoded
        assert not torch.allclose(px_after["px"].mean, px_before["px"].mean)


def test_sample_is_a_draw_of_counts(tensors):
    module = make(gene_likelihood="poisson").eval()
    torch.manual_seed(0)
    draws = torch.stack([module.sample(tensors) for _ in range(400)])
    mean = module(tensors)[1]["px"].mean
    assert (draws == draws.round()).all()
    torch.testing.assert_close(draws.mean(0), mean.detach(), rtol=0.3, atol=0.5)


def test_a_quantised_code_is_the_nearest_and_learns_straight_through(tensors):
    module = make(nio_flow="quantized").train()
    outputs, _, losses = module(tensors)
    book, encoded = (t.detach().numpy() for t in (module.flow.codes, outputs["encoded_nio"]))
    nearest = NearestNeighbors(n_neighbors=1).fit(book).kneighbors(encoded)[1].ravel()
    np.testing.assert_allclose(outputs["z_nio"].detach(), book[nearest], rtol=1e-5)
    own = book[tensors[REGISTRY_KEYS.BATCH_KEY].ravel()]
    assert losses.extra_metrics["commitment"].item() == pytest.approx(
        np.square(encoded - own).sum(1).mean(), rel=1e-5
    )
    losses.extra_metrics["classification_loss"].backward()
    assert gradient_norm(module.encoder.nio_encoder.parameters()) > 0


@pytest.mark.parametrize("flow", ["quantized", "detached", "variational", "free"])
def test_z_nio_that_is_not_encoded_is_that_of_the_batch_and_learns_nothing(tensors, flow):
    module = make(nio_flow=flow).train()
    module(tensors)
    of_batch = module.flow.of_batch
    kwargs = module._get_inference_input(tensors)
    outputs = module.inference(**kwargs, encode_nio=False)
    batch = tensors[REGISTRY_KEYS.BATCH_KEY].ravel()
    assert torch.equal(outputs["z_nio"], of_batch[batch])
    generated = module.generative(**module._get_generative_input(tensors, outputs))
    losses = module.loss(tensors, outputs, generated, classification_weight=None)
    losses.loss.backward()
    for part in (module.encoder.nio_encoder, module.encoder.nio_head, module.classifier):
        assert all(parameter.grad is None for parameter in part.parameters())
    if of_batch.requires_grad:
        assert of_batch.grad is None
    assert gradient_norm(module.encoder.bio_encoder.parameters()) > 0


def test_genes_are_hidden_from_the_encoder_of_z_bio_in_training_only(tensors):
    module = make(input_dropout=0.4, n_components=0)
    seen = {"bio": [], "nio": []}
    for name, found in seen.items():
        encoder = getattr(module.encoder, f"{name}_encoder")
        encoder.register_forward_pre_hook(lambda _, args, found=found: found.append(args[0]))
    kwargs = module._get_inference_input(tensors)
    for _ in range(50):
        normalized = module.train().inference(**kwargs)["normalized"]
    hidden = (torch.stack(seen["bio"]) == 0) & (normalized > 0)
    assert hidden.float().mean().item() / (normalized > 0).float().mean().item() == pytest.approx(
        0.4, abs=0.02
    )
    torch.testing.assert_close(seen["nio"][0], normalized)
    module.eval().inference(**kwargs)
    torch.testing.assert_close(seen["bio"][-1], normalized)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "both"),
        ({"gene_likelihood": "mse", "log_normalize": False}, "both"),
        ({"gene_likelihood": "normal"}, "likelihood"),
        ({"log_normalize": False}, "likelihood"),
        ({"kl_weight_bio": 0.1}, "likelihood"),
        ({"n_components": 0}, "likelihood"),
        ({"n_labels": 3}, "likelihood"),
        ({"encoder": "shared"}, "likelihood"),
        ({"n_labels": 3, "code_loss": "both"}, "both"),
    ],
)
def test_what_trains_the_codes_by_default(options, expected):
    assert make(**options).code_loss == expected


def test_with_squared_error_objectives_see_decoded_values_and_train_by_them(tensors):
    module = make(code_loss="squared_error").eval()
    outputs, generated, _ = module(tensors)
    codes = module.codes(tensors, outputs)
    torch.testing.assert_close(codes.decode(codes.z_bio, codes.z_nio), generated["normalized"])
    cells = torch.arange(3)
    shown = codes.as_partner(cells, cells)
    torch.testing.assert_close(shown, generated["normalized"][cells], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1e4),
        ({"median_library": 300.0}, 300.0),
        ({"median_library": 3.0}, 2.0 * N_GENES),
        ({"median_library": 3.0, "code_loss": "likelihood"}, 3.0),
        ({"median_library": 3.0, "code_loss": "squared_error"}, 5.0 * N_GENES),
        ({"median_library": 300.0, "code_loss": "squared_error"}, 300.0),
        ({"median_library": 3.0, "target_sum": 7.0}, 7.0),
    ],
)
def test_what_counts_are_scaled_to(options, expected):
    assert make(**options).target_sum == expected


@pytest.mark.parametrize(
    ("likelihood", "log_normalize"), [("nb", True), ("mse", True), ("nb", False)]
)
def test_a_counterfactual_shows_the_partners_batch(tensors, likelihood, log_normalize):
    """The partner's z_nio and batch with the cell's own z_bio, on the encoder's scale."""
    options = {"log_normalize": log_normalize, "code_loss": "likelihood"}
    module = make(gene_likelihood=likelihood, **options).eval()
    outputs, *_ = module(tensors)
    partner = (torch.arange(N_CELLS) + 1) % N_CELLS
    cells = torch.randperm(N_CELLS)[: N_CELLS // 2]
    shown = module.codes(tensors, outputs).as_partner(cells, partner[cells])
    swapped = module._get_generative_input(tensors, outputs)
    swapped["z_nio"] = swapped["z_nio"][partner]
    swapped["batch_index"] = swapped["batch_index"][partner]
    mean = module.generative(**swapped)["px"].mean
    shares = mean / mean.sum(1, keepdim=True)
    expected = torch.log1p(shares * 1e4) if likelihood == "nb" and log_normalize else mean
    torch.testing.assert_close(shown, expected[cells], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("n_labels", "unlabeled", "seen"),
    [(1, None, None), (3, None, [0, 1, 2]), (3, 1, [0, -1, 2])],
)
def test_objectives_see_labels_only_where_there_are_any(tensors, n_labels, unlabeled, seen):
    labels = torch.arange(N_CELLS) % n_labels
    tensors[REGISTRY_KEYS.LABELS_KEY] = labels.unsqueeze(1)
    module = make(n_labels=n_labels, unlabeled_code=unlabeled)
    outputs, *_ = module(tensors)
    found = module.codes(tensors, outputs).labels
    assert found is None if seen is None else found[:3].tolist() == seen


@pytest.mark.parametrize(
    ("options", "spherical"),
    [
        ({}, True),
        ({"n_latent_bio": 2}, False),
        ({"kl_weight_bio": 1.0}, False),
        ({"spherical": False}, False),
        ({"spherical": True, "n_latent_bio": 2}, True),
    ],
)
def test_when_z_bio_is_on_a_sphere(tensors, options, spherical):
    module = make(**options).eval()
    z = module(tensors)[0]["z_bio"].detach().numpy()
    radii = np.linalg.norm(z, axis=1)
    assert np.allclose(radii, np.sqrt(z.shape[1]), rtol=1e-5) == spherical


def test_a_sphere_keeps_the_direction(tensors):
    spherical, plane = (make(spherical=on).eval()(tensors)[0]["z_bio"] for on in (True, False))
    cosine = torch.nn.functional.cosine_similarity(spherical, plane)
    np.testing.assert_allclose(cosine.detach(), 1.0, rtol=1e-5)


def test_variance_is_what_its_activation_makes_of_the_encoder(tensors):
    module = make(kl_weight_bio=1.0, var_activation=torch.nn.Softplus())
    head = module.encoder.bio_head
    torch.nn.init.zeros_(head.log_variance.weight)
    torch.nn.init.constant_(head.log_variance.bias, 2.0)
    outputs = module.inference(**module._get_inference_input(tensors))
    expected = np.full((N_CELLS, 4), np.log1p(np.exp(2.0)))
    np.testing.assert_allclose(outputs["q_bio"].variance.detach(), expected, rtol=1e-3)


def test_objectives_see_the_labels_of_two_kinds(tensors):
    tensors[REGISTRY_KEYS.LABELS_KEY] = torch.arange(N_CELLS).remainder(2).unsqueeze(1)
    module = make(n_labels=2)
    codes = module.codes(tensors, module.inference(**module._get_inference_input(tensors)))
    assert codes.labels.tolist() == [0, 1] * (N_CELLS // 2)


def test_objectives_see_counts_decoded_as_logarithms_around_zero(tensors):
    module = make(gene_likelihood="nb", code_loss="likelihood")
    codes = module.codes(tensors, module.inference(**module._get_inference_input(tensors)))
    decoded = codes.decode(codes.z_bio, codes.z_nio)
    rates = module(tensors)[1]["px"].mean.log()
    expected = rates - rates.mean(dim=1, keepdim=True)
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_of_z_nio_has_a_width_of_its_own_unless_it_is_shared():
    def widths(**options):
        encoder = make(n_hidden=16, n_hidden_nio=6, **options).encoder
        return encoder.bio_head.mean.in_features, encoder.nio_head.mean.in_features

    assert widths() == (16, 6)
    assert widths(encoder="shared") == (16, 16)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_encoders_have_the_layers_asked_for_and_the_decoder_one(tensors, n_layers):
    module = make(n_layers=n_layers)
    assert len(module.encoder.bio_encoder.fc_layers) == n_layers
    assert len(module.encoder.nio_encoder.fc_layers) == n_layers
    assert len(module.decoder.trunk.fc_layers) == 1
    assert module(tensors)[2].loss.isfinite()


def test_a_variational_code_has_no_axes():
    assert make(kl_weight_bio=0.1).axes is None
    with pytest.raises(InputError, match=r"axes=True is not for.*kl_weight_bio=0\.1"):
        make(kl_weight_bio=0.1, axes=True)
