import numpy as np
import pytest
import scvi
import torch
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.distributions import NegativeBinomial

from scdisentangle import DisentangleModel
from scdisentangle.data import simulated
from scdisentangle.tl import _reconstruction
from scdisentangle.tl._reconstruction import others, reconstruction_shares


@pytest.fixture
def model():
    scvi.settings.seed = 0
    adata = simulated(n_cells=150, n_genes=40, n_types=2)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_latent_bio=5, n_latent_nio=3)
    model.train(20, enable_progress_bar=False)
    return model


def cut(model, columns):
    """Keep the decoder from reading these columns of [z_bio, z_nio, batch]."""
    with torch.no_grad():
        model.module.decoder.trunk.fc_layers[0][0].weight[:, columns] = 0.0


def test_a_code_that_the_decoder_does_not_read_explains_nothing(model):
    cut(model, slice(5, None))
    assert reconstruction_shares(model) == pytest.approx({"z_bio": 1.0, "z_nio": 0.0}, abs=1e-6)


def test_the_batch_goes_with_z_nio(model):
    cut(model, slice(0, 8))
    assert reconstruction_shares(model) == pytest.approx({"z_bio": 0.0, "z_nio": 1.0}, abs=1e-6)


def test_nothing_is_explained_by_a_decoder_that_reads_neither(model):
    cut(model, slice(None))
    assert np.isnan(list(reconstruction_shares(model).values())).all()


def test_errors_are_those_of_cells_that_are_given_the_codes_of_others(model):
    """By hand, on one minibatch, with scvi-tools' distribution."""
    rng = np.random.default_rng(0)
    cells = rng.permutation(150)[:100]
    of_bio, of_nio = others(100, rng)
    adata, module, own = model.adata[cells], model.module, np.arange(100)
    z_bio, z_nio = (
        torch.tensor(model.get_latent_representation(indices=cells, representation=code))
        for code in ("bio", "batch")
    )
    batch = torch.tensor(adata.obs["batch"].cat.codes.to_numpy(copy=True)).long()[:, None]
    counts = torch.tensor(adata.X.toarray())

    @torch.no_grad()
    def error(bio, nio):
        library = counts.sum(1, keepdim=True)
        rate = library * module.decode(z_bio[bio], z_nio[nio], batch[nio]).output.softmax(-1)
        px = NegativeBinomial(mu=rate, theta=module.log_dispersion.exp())
        return -px.log_prob(counts).sum().item()

    neither, both = error(of_bio, of_nio), error(own, own)
    with_bio, with_nio = error(own, of_nio), error(of_bio, own)
    alone, last = neither - with_bio, with_nio - both
    expected = (alone + last) / 2 / (neither - both)
    shares = reconstruction_shares(model, max_cells=100)
    assert shares["z_bio"] == pytest.approx(expected, rel=1e-4)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares == reconstruction_shares(model, max_cells=100)


@pytest.mark.parametrize("n", [3, 5, 40])
def test_nobody_is_given_an_own_code_nor_two_of_one_cell(n):
    for seed in range(20):
        of_bio, of_nio = others(n, np.random.default_rng(seed))
        own = torch.arange(n)
        assert of_bio.sort().values.equal(own)
        assert of_nio.sort().values.equal(own)
        assert (of_bio != own).all()
        assert (of_nio != own).all()
        assert (of_bio != of_nio).all()


@pytest.mark.parametrize("likelihood", ["nb", "mse", "normal"])
def test_minified_data_that_kept_their_counts_have_the_shares_of_the_data(likelihood):
    adata = simulated(n_cells=150, n_genes=40, n_types=2)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16, gene_likelihood=likelihood)
    model.train(60, enable_progress_bar=False)
    expected = reconstruction_shares(model)
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = model.get_latent_representation(
        return_dist=True
    )
    model.minify_adata(ADATA_MINIFY_TYPE.LATENT_POSTERIOR_WITH_COUNTS)
    assert reconstruction_shares(model) == pytest.approx(expected, rel=1e-5)


def test_shares_are_shapley_values_of_the_errors(model, monkeypatch):
    """With z_bio first and then z_nio, and the other way round: the mean of what each adds."""
    errors = {(True, True): 1.0, (False, True): 5.0, (True, False): 2.0, (False, False): 11.0}
    module, own, seen = model.module, {}, []
    inference, generative = module.inference, module.generative

    def inferred(**inputs):
        own.update(inference(**inputs), batch_index=inputs["batch_index"])
        return own

    def generated(**given):
        seen.append(tuple(given[name].equal(own[name]) for name in ("z_bio", "batch_index")))
        return generative(**given)

    monkeypatch.setattr(module, "inference", inferred)
    monkeypatch.setattr(module, "generative", generated)
    loss = "reconstruction_loss"
    monkeypatch.setattr(_reconstruction, loss, lambda *_: torch.tensor(errors[seen[-1]]))
    bio = ((11 - 2) + (5 - 1)) / 2 / (11 - 1)
    assert reconstruction_shares(model) == pytest.approx({"z_bio": bio, "z_nio": 1 - bio})
    assert set(seen) == set(errors)
