import numpy as np
import pytest
import scvi
import torch

from scdisentangle import DisentangleModel, InputError, pl
from scdisentangle.data import simulated
from scdisentangle.tl import batch_effect, disentanglement_report


def trained(adata, max_epochs=20, **options):
    scvi.settings.seed = 0
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, **options)
    model.train(max_epochs, enable_progress_bar=False)
    return model


def test_the_effect_that_was_simulated_is_found():
    adata = simulated(n_cells=600, n_genes=100, n_batches=3, strength=1.0)
    found = batch_effect(trained(adata, max_epochs=90))
    truth = adata.varm["batch_effect"]
    truth = truth.sub(truth.mean(axis=1), axis=0) / np.log(2)
    assert list(found.index) == list(adata.var_names)
    assert list(found.columns) == list(truth.columns)
    assert np.corrcoef(found.to_numpy().ravel(), truth.to_numpy().ravel())[0, 1] > 0.9
    slope = np.polyfit(truth.to_numpy().ravel(), found.to_numpy().ravel(), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.35)
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-6)


def test_each_batch_has_the_same_draws_of_a_variational_code(monkeypatch):
    """A decoder that does not see the batch has no effect, whatever is drawn."""
    adata = simulated(n_cells=150, n_genes=40, n_types=2)
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"batch_0": "all"})
    model = trained(adata, kl_weight_bio=1.0, batch_in_decoder=False, n_latent_bio=5)
    model.module.decoder.trunk.fc_layers[0][0].weight.data[:, 5:] = 0.0
    before, seeded = torch.random.get_rng_state(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    effect = batch_effect(model, max_cells=100, seed=3)
    np.testing.assert_allclose(effect, 0.0, atol=1e-6)
    assert effect.attrs["unit"] == "log2"
    assert torch.random.get_rng_state().equal(before)
    assert not seeded  # the model is on a CPU
    assert "unit" not in batch_effect(trained(adata, 1, gene_likelihood="mse")).attrs


@pytest.mark.parametrize("likelihood", ["mse", "zinb"])
def test_a_decoder_that_does_not_see_the_batch_has_no_effect(likelihood):
    adata = simulated(n_cells=150, n_genes=40, n_types=2)
    model = trained(adata, gene_likelihood=likelihood, batch_in_decoder=False, n_latent_bio=5)
    assert np.abs(batch_effect(model)).to_numpy().max() > 1e-3
    model.module.decoder.trunk.fc_layers[0][0].weight.data[:, 5:] = 0.0
    np.testing.assert_allclose(batch_effect(model), 0.0, atol=1e-6)


def test_what_is_no_model_is_told():
    with pytest.raises(InputError, match="Pass a trained DisentangleModel, not str"):
        batch_effect("model")
    of_report = "Pass a report, or the trained DisentangleModel or AnnData that it is of, not str"
    for draw in (pl.report, pl.leakage):
        with pytest.raises(InputError, match=of_report):
            draw("model")
    message = "Pass a trained DisentangleModel, or an AnnData with codes in obsm, not str"
    with pytest.raises(InputError, match=message):
        disentanglement_report("model", "batch")
    model = trained(simulated(n_cells=60, n_genes=20), 1)
    model._adata = None
    for ask in (batch_effect, pl.report, pl.leakage, lambda x: disentanglement_report(x, "batch")):
        with pytest.raises(InputError, match="has no AnnData: put its codes into the obsm"):
            ask(model)
