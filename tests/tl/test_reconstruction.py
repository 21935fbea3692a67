import numpy as np
import pytest
import scvi
import torch

from scdisentangle import DisentangleModel
from scdisentangle.data import simulated
from scdisentangle.tl import _reconstruction
from scdisentangle.tl._reconstruction import reconstruction_shares


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


def test_shares_add_up_and_can_be_repeated(model):
    shares = reconstruction_shares(model, max_cells=100)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares == reconstruction_shares(model, max_cells=100)


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
