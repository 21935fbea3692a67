"""Decoded expression, in any batch, and what scvi-tools computes from it."""

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy.stats import nbinom, norm, poisson, spearmanr
from scvi.criticism import PosteriorPredictiveCheck
from sklearn.metrics import roc_auc_score

from scdisentangle import DisentangleModel, InputError, data

FLOWS = ("quantized", "detached", "variational", "free")


@pytest.fixture(scope="module")
def adata():
    return data.simulated(n_cells=200, n_genes=100, seed=0)


def fit(adata, max_epochs=5, seed=0, **kwargs):
    scvi.settings.seed = seed
    adata = adata.copy()
    DisentangleModel.setup_anndata(adata, batch_key="batch", labels_key="celltype")
    model = DisentangleModel(
        adata, **{"n_hidden": 32, "n_latent_bio": 5, "n_latent_nio": 3, **kwargs}
    )
    model.train(max_epochs, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def model(adata):
    return fit(adata)


@pytest.fixture(scope="module")
def variational(adata):
    return fit(adata, kl_weight_bio=0.5, nio_flow="variational")


def test_shares_of_a_cell_sum_to_the_library_size_asked_for(model):
    shares = model.get_normalized_expression()
    assert isinstance(shares, pd.DataFrame)
    assert list(shares.index) == list(model.adata.obs_names)
    assert list(shares.columns) == list(model.adata.var_names)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        model.get_normalized_expression(library_size=1e4).sum(axis=1), 1e4, rtol=1e-5
    )
    observed = np.asarray(model.adata.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(
        model.get_normalized_expression(library_size="latent").sum(axis=1), observed, rtol=1e-4
    )


def test_genes_cells_and_container_are_those_asked_for(model):
    whole = model.get_normalized_expression()
    genes, cells = ["gene_3", "gene_40"], [5, 2, 9]
    part = model.get_normalized_expression(indices=cells, gene_list=genes)
    pd.testing.assert_frame_equal(part, whole.iloc[cells][genes], rtol=1e-5)
    assert isinstance(model.get_normalized_expression(return_numpy=True), np.ndarray)
    several = model.get_normalized_expression(n_samples=3, return_mean=False, indices=cells)
    assert several.shape == (3, 3, 100)


@pytest.mark.parametrize("nio_flow", FLOWS)
def test_a_batch_asked_for_is_decoded_with_its_own_z_nio(adata, nio_flow):
    model = fit(adata, 20, nio_flow=nio_flow)
    module = model.module
    z_bio = torch.tensor(model.get_latent_representation())
    z_nio = model.get_latent_representation(representation="batch")
    names = list(model.adata.obs["batch"].cat.categories)
    for code, name in enumerate(names):
        stands_for = module.flow.of_batch[code].detach()
        z = torch.cat([z_bio, stands_for.expand(len(z_bio), -1)], dim=1)
        with torch.no_grad():
            output, *_ = module.decoder(z, torch.full((len(z), 1), code))
        np.testing.assert_allclose(
            model.get_normalized_expression(transform_batch=name),
            output.softmax(dim=1).numpy(),
            rtol=1e-4,
            atol=1e-7,
        )
        if nio_flow in ("detached", "free"):
            of_its_cells = z_nio[(model.adata.obs["batch"] == name).to_numpy()].mean(axis=0)
            np.testing.assert_allclose(stands_for, of_its_cells, atol=0.1 * z_nio.std())


def test_several_batches_are_averaged(model):
    names = list(model.adata.obs["batch"].cat.categories)
    each = [model.get_normalized_expression(transform_batch=name) for name in names]
    assert not np.allclose(each[0], each[1], rtol=1e-2)
    mean = sum(each) / len(each)
    for asked in (names, "all"):
        np.testing.assert_allclose(
            model.get_normalized_expression(transform_batch=asked), mean, rtol=1e-4
        )
    with pytest.raises(ValueError, match="batch_9"):
        model.get_normalized_expression(transform_batch="batch_9")


def test_draws_of_a_variational_code_spread_and_average(variational):
    draws = variational.get_normalized_expression(
        n_samples=200, return_mean=False, indices=np.arange(5), transform_batch="batch_0"
    )
    assert draws.shape == (200, 5, 100)
    assert (draws.std(axis=0) > 0).all()
    mean, var = variational.get_latent_representation(return_dist=True)
    assert (var > 0).all()
    scvi.settings.seed = 0
    drawn = np.stack([variational.get_latent_representation(give_mean=False) for _ in range(300)])
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=6 * np.sqrt(var.max() / 300))
    np.testing.assert_allclose(drawn.var(axis=0).mean(), var.mean(), rtol=0.05)


def test_a_point_has_no_variance(model):
    mean, var = model.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(mean, model.get_latent_representation(give_mean=False))
    assert (var == 0).all()


def test_the_code_of_a_batch_is_one_row(model):
    codes = model.get_batch_representation()
    batch = model.adata.obs["batch"].to_numpy()
    assert codes.shape == (200, 3)
    assert len(np.unique(codes, axis=0)) == 3
    for name in np.unique(batch):
        assert len(np.unique(codes[batch == name], axis=0)) == 1


@pytest.mark.parametrize("code_loss", ["likelihood", "both", "squared_error"])
def test_counterfactual_expression_is_close_to_the_truth(code_loss):
    options = {"code_loss": code_loss, "n_hidden": 128, "n_latent_bio": 30}
    model = fit(data.simulated(n_cells=900, n_genes=200, seed=0), 40, **options)
    simulated = model.adata
    rho, beta = simulated.layers["truth"], np.asarray(simulated.varm["batch_effect"])
    for code in range(3):
        truth = rho * np.exp(beta[:, code])
        truth /= truth.sum(axis=1, keepdims=True)
        decoded = model.get_normalized_expression(
            transform_batch=f"batch_{code}", return_numpy=True
        )
        elsewhere = (simulated.obs["batch"] != f"batch_{code}").to_numpy()
        logs = np.log(decoded[elsewhere]), np.log(truth[elsewhere])
        assert np.corrcoef(logs[0].ravel(), logs[1].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("mode", ["vanilla", "change"])
@pytest.mark.parametrize("likelihood", ["nb", "mse"])
def test_differential_expression_finds_the_markers(mode, likelihood):
    simulated = data.simulated(n_cells=600, n_genes=100, seed=0, marker_log_fold_change=2.0)
    model = fit(simulated, 60, gene_likelihood=likelihood, n_hidden=128, n_latent_bio=20)
    table = model.differential_expression(
        groupby="celltype", group1="type_1", mode=mode, batch_correction=True, silent=True
    )
    found = table.loc[simulated.var_names]
    score = found["bayes_factor"] if mode == "vanilla" else found["lfc_mean"]
    assert np.isfinite(score).all()
    assert roc_auc_score(simulated.var["marker_of"] == "type_1", score) > 0.95


@pytest.mark.parametrize(
    ("likelihood", "name"), [("nb", "batch_0"), ("mse", "batch_0"), ("nb", "all")]
)
def test_groups_are_compared_in_the_batches_asked_for(adata, likelihood, name):
    """The mean change is that of the means, whatever cells are drawn and paired."""
    adata = adata.copy()
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"batch_0": name})
    model = fit(adata, 20, gene_likelihood=likelihood)
    means, variances = [], []
    for group, batch in (("type_0", name), ("type_1", "batch_2")):
        cells = np.flatnonzero(model.adata.obs["celltype"] == group)
        values = model.get_normalized_expression(
            indices=cells, transform_batch=[batch], return_numpy=True
        )
        values = np.log2(values) if likelihood == "nb" else values / np.log(2)
        means.append(values.mean(axis=0))
        variances.append(values.var(axis=0))
    scvi.settings.seed = 0
    table = model.differential_expression(
        groupby="celltype",
        group1="type_0",
        group2="type_1",
        mode="change",
        batch_correction=True,
        batchid1=[name],
        batchid2=["batch_2"],
        pseudocounts=0.0,
        silent=True,
    )
    found = table.loc[model.adata.var_names, "lfc_mean"].to_numpy()
    error = (sum(variances) / 5_000) ** 0.5
    assert (np.abs(found - (means[0] - means[1])) < 6 * error + 1e-4).all()
    other = model.get_normalized_expression(transform_batch="batch_2", return_numpy=True)
    own = model.get_normalized_expression(transform_batch=[name], return_numpy=True)
    assert (np.abs(own - other).max(axis=0) > 1e-5).all()


def test_genes_are_called_at_the_false_discovery_rate_asked_for(model):
    """As many of the likeliest as have, on average, this probability of no change."""
    scvi.settings.seed = 0
    table = model.differential_expression(
        groupby="celltype",
        group1="type_0",
        mode="change",
        fdr_target=0.4,
        delta=0.0,
        pseudocounts=0.0,
        silent=True,
    )
    unchanged = 1 - np.sort(table["proba_de"].to_numpy())[::-1]
    n_called = max(n for n in range(101) if unchanged[:n].sum() <= 0.4 * n)
    assert 0 < n_called < 100
    called = table["is_de_fdr_0.4"].to_numpy()
    assert called.sum() == n_called
    assert table["proba_de"][called].min() >= table["proba_de"][~called].max()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal", "mse"])
def test_samples_have_the_mean_of_the_likelihood(adata, likelihood):
    model = fit(adata, gene_likelihood=likelihood)
    scvi.settings.seed = 0
    cells = np.arange(20)
    drawn = model.posterior_predictive_sample(indices=cells, n_samples=4_000).todense()
    assert drawn.shape == (20, 100, 4_000)
    expected = model.get_normalized_expression(indices=cells, library_size="latent")
    if likelihood == "zinb":
        present = 1 - model.get_likelihood_parameters(indices=cells)["dropout"]
        expected = expected * present
    error = np.abs(drawn.mean(axis=2) - expected.to_numpy())
    standard_error = drawn.std(axis=2) / 4_000**0.5 + 0.01
    assert (error < 6 * standard_error).all()


def test_samples_of_one_batch_and_some_genes(model):
    drawn = model.posterior_predictive_sample(
        indices=np.arange(7), gene_list=["gene_1", "gene_2"], transform_batch="batch_1"
    )
    assert drawn.shape == (7, 2)


def test_posterior_predictive_checks_of_scvi_tools_run(model):
    adata = model.adata.copy()
    adata.X = adata.X.toarray()
    check = PosteriorPredictiveCheck(adata, {"ours": model}, n_samples=3)
    check.coefficient_of_variation("features")
    check.zero_fraction()
    metrics = check.metrics
    assert set(metrics) >= {"cv_cell", "zero_fraction"}
    parameters = model.get_likelihood_parameters()
    theta, mean = parameters["dispersions"], parameters["mean"]
    expected = 1 - nbinom.pmf(0, theta, theta / (theta + mean)).mean(axis=0)
    np.testing.assert_allclose(metrics["zero_fraction"]["ours"], expected, atol=0.1)


def test_likelihood_parameters_are_those_of_the_decoder(model):
    found = model.get_likelihood_parameters()
    np.testing.assert_allclose(
        found["mean"], model.get_normalized_expression(library_size="latent"), rtol=1e-4
    )
    theta = model.module.log_dispersion.detach().exp().numpy()
    np.testing.assert_allclose(found["dispersions"], np.tile(theta, (200, 1)), rtol=1e-5)


def test_feature_correlation_is_a_correlation(model):
    found = model.get_feature_correlation_matrix(n_samples=2, transform_batch="all")
    assert found.shape == (100, 100)
    np.testing.assert_allclose(np.diag(found), 1)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert (found.abs() <= 1 + 1e-12).all(axis=None)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_feature_correlations_are_those_of_the_kind_and_batches_asked_for(adata, kind):
    """With next to no dispersion, draws are the means."""
    model = fit(adata, 20)
    torch.nn.init.constant_(model.module.log_dispersion, 25.0)
    batches = ["batch_0", "batch_2"]
    expected = []
    for batch in batches:
        values = model.get_normalized_expression(transform_batch=batch, return_numpy=True)
        of_kind = {"pearson": np.corrcoef(values.T), "spearman": spearmanr(values).statistic}
        assert np.abs(of_kind["pearson"] - of_kind["spearman"]).max() > 0.05
        expected.append(of_kind[kind])
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    found = model.get_feature_correlation_matrix(
        n_samples=1, correlation_type=kind, transform_batch=batches
    )
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=5e-3)
    with pytest.raises(ValueError, match="Unknown correlation type"):
        model.get_feature_correlation_matrix(correlation_type="kendall")


def log_likelihood(model, likelihood):
    mean = model.get_normalized_expression(library_size="latent", return_numpy=True)
    values = model.adata.X.toarray()
    dispersion = model.module.log_dispersion.detach().exp().numpy()
    if likelihood == "nb":
        return nbinom.logpmf(values, dispersion, dispersion / (dispersion + mean)).sum(axis=1)
    if likelihood == "poisson":
        return poisson.logpmf(values, mean).sum(axis=1)
    target = model.module.target_sum.item()
    seen = np.log1p(values / values.sum(axis=1, keepdims=True) * target)
    return norm.logpdf(seen, mean, dispersion).sum(axis=1)


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal"])
def test_reconstruction_error_is_the_negative_log_likelihood(adata, likelihood):
    model = fit(adata, gene_likelihood=likelihood)
    error = model.get_reconstruction_error(return_mean=False)["reconstruction_loss"]
    np.testing.assert_allclose(error, -log_likelihood(model, likelihood), rtol=1e-4)


def test_elbo_is_below_the_marginal_likelihood(variational):
    scvi.settings.seed = 0
    elbo = np.mean([variational.get_elbo().item() for _ in range(20)])
    loose, tight = (
        variational.get_marginal_ll(n_mc_samples=n, n_mc_samples_per_pass=50) for n in (1, 500)
    )
    assert elbo == pytest.approx(loose, rel=0.01)
    assert elbo < tight
    each = variational.get_marginal_ll(n_mc_samples=2, return_mean=False)
    assert each.shape == (200,)


def test_the_marginal_likelihood_of_points_is_their_likelihood(model):
    """Each of seven draws, three at once, is the code itself: so is their mean."""
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=200)))
    options = {"n_mc_samples": 7, "n_mc_samples_per_pass": 3}
    expected = log_likelihood(model, "nb")
    found = model.module.marginal_ll(tensors, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.02)
    mean = model.module.marginal_ll(tensors, **options, return_mean=True)
    assert mean == pytest.approx(expected.mean(), rel=1e-5)


def test_elbo_is_reconstruction_and_divergence(variational):
    mean, var = (
        torch.tensor(x)
        for x in variational.get_latent_representation(representation="joint", return_dist=True)
    )
    module = variational.module
    batch = variational.adata.obs["batch"].cat.codes.to_numpy().copy()
    prior_mean = torch.cat([torch.zeros(200, 5), module.flow.mean.detach()[batch]], dim=1)
    prior_sd = torch.cat([torch.ones(200, 5), module.flow.log_scale.detach().exp()[batch]], 1)
    ratio = var / prior_sd**2
    kl = 0.5 * (ratio + ((mean - prior_mean) / prior_sd) ** 2 - 1 - ratio.log()).sum(dim=1)
    scvi.settings.seed = 0
    error = np.mean(
        [
            variational.get_reconstruction_error(inference_kwargs={"n_samples": 1})[
                "reconstruction_loss"
            ].item()
            for _ in range(30)
        ]
    )
    elbo = np.mean([variational.get_elbo().item() for _ in range(30)])
    assert elbo == pytest.approx(-error - kl.mean().item(), rel=2e-3)


def test_importance_weights_need_a_posterior(model, variational):
    options = {"n_samples_overall": 50, "weights": "importance", "indices": np.arange(20)}
    expression = variational.get_normalized_expression(
        **options, return_numpy=True, n_mc_samples=5, n_mc_samples_per_pass=5
    )
    assert expression.shape == (50, 100)
    np.testing.assert_allclose(expression.sum(axis=1), 1, rtol=1e-5)
    with pytest.raises(InputError, match="kl_weight_bio"):
        model.get_normalized_expression(**options)


@pytest.mark.parametrize("what", ["get_elbo", "get_marginal_ll", "get_aggregated_posterior"])
def test_what_needs_a_posterior_says_so(model, what):
    with pytest.raises(InputError, match=f"{what}.*kl_weight_bio > 0"):
        getattr(model, what)()


def test_arguments_by_position_are_checked_too(model):
    genes = ["gene_1", "gene_3"]
    with pytest.raises(InputError, match="library_size=-3"):
        model.get_normalized_expression(None, None, None, None, -3)
    before = {model.get_normalized_expression: (), model.posterior_predictive_sample: (1,)}
    for call, n_samples in before.items():
        with pytest.raises(InputError, match="1 genes that the model does not know: 'nope'"):
            call(None, None, None, *n_samples, ["nope", "gene_1"])
        with pytest.raises(InputError, match=r"must be a list of genes: \['gene_3'\]"):
            call(gene_list="gene_3")
    by_position = model.get_normalized_expression(None, None, None, genes, 1e4)
    by_name = model.get_normalized_expression(gene_list=genes, library_size=1e4)
    pd.testing.assert_frame_equal(by_position, by_name)


def test_groups_need_not_be_named_by_strings(model):
    model.adata.obs["number"] = np.arange(200) % 3
    model.adata.obs["name"] = model.adata.obs["number"].astype(str)
    scvi.settings.seed = 0
    found = model.differential_expression(groupby="number", group1=1, group2=2)
    scvi.settings.seed = 0
    expected = model.differential_expression(groupby="name", group1="1", group2="2")
    numbers = found.select_dtypes("number").columns.difference(["group1", "group2"])
    pd.testing.assert_frame_equal(found[numbers], expected[numbers])
    with pytest.raises(InputError, match="no cells of group '1'. Groups are of type int there"):
        model.differential_expression(groupby="number", group1=["1"])


def test_what_needs_a_likelihood_says_so(adata):
    model = fit(adata, 1, gene_likelihood="mse", kl_weight_bio=0.1)
    for call in (
        model.get_elbo,
        model.get_marginal_ll,
        model.get_likelihood_parameters,
        model.get_feature_correlation_matrix,
        lambda: model.get_normalized_expression(library_size=1e4),
    ):
        with pytest.raises(InputError, match="gene_likelihood='mse'"):
            call()
    free = fit(adata, 1, nio_flow="free", kl_weight_bio=0.1)
    with pytest.raises(InputError, match="nio_flow='free'"):
        free.get_elbo()


def test_differential_abundance_of_a_variational_model(variational):
    variational.differential_abundance(sample_key="batch")
    table = variational.adata.obsm["da_log_probs"]
    assert table.shape == (200, 3)
    assert np.isfinite(table.to_numpy()).all()


def test_observed_library_sizes(model):
    found = model.get_latent_library_size(give_mean=False)
    np.testing.assert_allclose(found, model.adata.X.sum(axis=1), rtol=1e-5)


def test_dispersions_are_as_many_as_asked_for(adata):
    for dispersion, group in {
        "gene": None,
        "gene-batch": "batch",
        "gene-label": "celltype",
    }.items():
        model = fit(adata, 2, dispersion=dispersion)
        found = model.get_likelihood_parameters()["dispersions"]
        groups = np.zeros(200) if group is None else model.adata.obs[group].cat.codes.to_numpy()
        assert len(np.unique(found, axis=0)) == len(np.unique(groups))
        for code in np.unique(groups):
            assert len(np.unique(found[groups == code], axis=0)) == 1
    new = model.adata.copy()
    new.obs["celltype"] = new.obs["celltype"].astype(str).replace({"type_1": "new"})
    assert np.isfinite(model.get_latent_representation(new)).all()
    with pytest.raises(InputError, match="a label that training did not have"):
        model.get_normalized_expression(new)
    found = fit(adata, 2, dispersion="gene-cell").get_likelihood_parameters()["dispersions"]
    assert len(np.unique(found, axis=0)) == 200


@pytest.mark.parametrize(
    ("option", "ours", "other"),
    [
        ("use_observed_lib_size", True, False),
        ("latent_distribution", "normal", "ln"),
        ("use_batch_norm", "none", "both"),
        ("use_layer_norm", "both", "none"),
        ("deeply_inject_covariates", False, True),
    ],
)
def test_options_of_scvi_without_a_choice_say_why(adata, option, ours, other):
    adata = adata.copy()
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    DisentangleModel(adata, **{option: ours})
    with pytest.warns(UserWarning, match=f"{option}={ours!r} always, whatever is asked for. [A-Z]"):
        DisentangleModel(adata, **{option: other})


def test_the_decoder_may_read_an_embedding_of_the_batch(adata, tmp_path):
    """Its first layer by hand, on the codes and the batch's vector."""
    options = {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 4}}
    model = fit(adata, 2, **options)
    codes = model.get_batch_representation()
    batch = adata.obs["batch"].to_numpy()
    assert codes.shape == (adata.n_obs, 4)
    assert len(np.unique(codes, axis=0)) == 3
    seen = []
    layer = model.module.decoder.trunk.fc_layers[0][0]
    layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    for transform_batch in (None, "batch_1"):
        seen.clear()
        model.get_normalized_expression(transform_batch=transform_batch)
        read = torch.cat(seen).numpy()
        of_batch = codes if transform_batch is None else codes[batch == transform_batch][:1]
        z = model.get_latent_representation()
        np.testing.assert_allclose(read[:, : z.shape[1]], z, atol=1e-6)
        np.testing.assert_allclose(read[:, -4:], np.broadcast_to(of_batch, (len(z), 4)))
    model.save(tmp_path / "model")
    loaded = DisentangleModel.load(tmp_path / "model", adata=model.adata)
    np.testing.assert_array_equal(loaded.get_batch_representation(), codes)
    np.testing.assert_array_equal(
        loaded.get_normalized_expression(return_numpy=True),
        model.get_normalized_expression(return_numpy=True),
    )
    for wrong in ({"embeding_dim": 3}, {"max_norm": 1.0}):
        with pytest.raises(InputError, match="batch_embedding_kwargs.*embedding_dim"):
            fit(adata, 1, batch_embedding_kwargs=wrong)
    with pytest.raises(InputError, match="embedding_dim=0 must be"):
        fit(adata, 1, batch_embedding_kwargs={"embedding_dim": 0})


def test_the_bound_that_validation_logs_is_that_of_draws():
    """scvi-tools' metric, on the cells that validated; at the posterior's mean it is no bound."""
    adata = data.simulated(n_cells=400, n_genes=100, seed=0)
    options = {"gene_likelihood": "poisson", "kl_weight_bio": 1.0, "alignment": False}
    scvi.settings.seed = 0
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_latent_bio=10, **options)
    model.train(40, batch_size=64, train_size=0.5, enable_progress_bar=False)
    cells = model.validation_indices
    bounds = [-float(model.get_elbo(indices=cells)) for _ in range(20)]
    logged = model.history["elbo_validation"].iloc[-1].item()
    assert logged == pytest.approx(np.mean(bounds), abs=4 * np.std(bounds))
    errors = [
        float(model.get_reconstruction_error(indices=cells)["reconstruction_loss"])
        for _ in range(2)
    ]
    assert errors[0] != errors[1]


@pytest.mark.parametrize("options", [{}, {"group2": "type_1"}])
def test_what_to_compare_must_be_named(adata, options):
    model = fit(adata, 1)
    with pytest.raises(InputError, match="Name what to compare: groupby=.*or idx1="):
        model.differential_expression(**options)


def test_what_a_data_loader_has_cannot_be_narrowed(adata):
    model = fit(adata, 1)
    cells = list(model._make_data_loader(model.adata))
    for method, options in (
        (model.get_normalized_expression, {"transform_batch": "batch_0"}),
        (model.get_normalized_expression, {"gene_list": ["gene_1"]}),
        (model.posterior_predictive_sample, {"transform_batch": "batch_0"}),
        (model.posterior_predictive_sample, {"gene_list": ["gene_1"]}),
        (model.get_latent_representation, {"indices": [0, 1]}),
        (model.get_latent_representation, {"adata": model.adata}),
    ):
        with pytest.raises(InputError, match=f"{next(iter(options))}= is not for cells of a data"):
            method(dataloader=cells, **options)


def test_a_missing_key_is_a_key_error(adata):
    for keys in ({"batch_key": "bach"}, {"layer": "count"}):
        with pytest.raises(KeyError, match=f"{next(iter(keys.values()))}.*Did you mean") as error:
            DisentangleModel.setup_anndata(adata.copy(), **keys)
        assert isinstance(error.value, InputError)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"n_sample": 3}, "'n_sample'. Did you mean 'n_samples'"),
        ({"gene_list": ["gene_1", "nope"]}, "1 genes.*'nope'.*get_var_names"),
        ({"library_size": -1}, "library_size=-1 must be a number above zero"),
    ],
)
def test_options_of_expression_that_cannot_be_meant(model, options, problem):
    with pytest.raises(InputError, match=problem):
        model.get_normalized_expression(**options)


def test_draws_over_all_cells_have_no_cell(model):
    genes = list(model.adata.var_names[:4])
    drawn = model.get_normalized_expression(n_samples_overall=7, gene_list=np.array(genes))
    every = model.get_normalized_expression(gene_list=genes).to_numpy()
    assert drawn.shape == (7, 4)
    assert all((every == row).all(axis=1).any() for row in drawn)


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ({"groupby": "cell"}, "groupby='cell' is not in adata.obs.*'celltype'"),
        ({"groupby": "celltype", "group1": "type_9"}, "no cells of group 'type_9'.*type_0"),
        ({"groupby": "celltype", "group1": ["type_0"], "group2": "x"}, "no cells of group 'x'"),
    ],
)
def test_groups_that_are_not_there(model, groups, problem):
    with pytest.raises(InputError, match=problem):
        model.differential_expression(**groups)


def test_expression_needs_training(adata):
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    untrained = DisentangleModel(adata, n_hidden=8)
    for ask in (untrained.get_normalized_expression, untrained.get_batch_representation):
        with pytest.raises(RuntimeError, match="train"):
            ask()


def test_cells_without_a_group_are_compared_with_none(model):
    adata = model.adata
    adata.obs["partly"] = adata.obs["celltype"].astype(str).where(np.arange(adata.n_obs) % 5 > 0)
    table = model.differential_expression(groupby="partly", group1="type_0", silent=True)
    assert set(table["comparison"]) == {"type_0 vs Rest"}
    adata.obs["none"] = np.nan
    with pytest.raises(InputError, match=r"obs\['none'\] \(groupby\) has no value"):
        model.differential_expression(groupby="none")
    with pytest.raises(InputError, match="no cells of group 'nan'"):
        model.differential_expression(groupby="partly", group1="nan")


def test_sizes_that_are_no_number_and_batches_that_are_none(model):
    with pytest.raises(InputError, match="library_size=.* must be a number above zero"):
        model.get_normalized_expression(library_size=np.ones(len(model.adata)))
    for call in (model.get_normalized_expression, model.posterior_predictive_sample):
        with pytest.raises(InputError, match=r"transform_batch=\[\] names no batch"):
            call(transform_batch=[])


@pytest.mark.parametrize(
    ("method", "positional", "named"),
    [
        (
            "posterior_predictive_sample",
            (None, [0, 1], None, 5, ["gene_1"]),
            {"indices": [0, 1], "n_samples": 5, "gene_list": ["gene_1"]},
        ),
        (
            "get_feature_correlation_matrix",
            (None, [0, 1, 2], 2, 64, 1000, ["batch_0"]),
            {"indices": [0, 1, 2], "n_samples": 2, "transform_batch": ["batch_0"]},
        ),
        (
            "differential_expression",
            (None, "celltype", "type_0", "type_1", None, None, "change"),
            {"groupby": "celltype", "group1": "type_0", "group2": "type_1", "mode": "change"},
        ),
    ],
)
def test_arguments_stand_where_scvi_tools_has_them(model, method, positional, named):
    found = []
    for arguments, options in ((positional, {}), ((), named)):
        scvi.settings.seed = 0
        found.append(getattr(model, method)(*arguments, **options))
    if method == "posterior_predictive_sample":
        assert found[0].shape == (2, 1, 5)
        np.testing.assert_array_equal(*(draws.todense() for draws in found))
    else:
        pd.testing.assert_frame_equal(*found)


@pytest.mark.parametrize("cells", [np.arange(200) < 20, np.arange(20) - 200])
def test_a_mask_and_positions_from_the_end_name_cells_for_importance_weights(variational, cells):
    options = {"n_samples_overall": 50, "weights": "importance", "return_numpy": True}
    draws = []
    for indices in (cells, np.arange(20)):
        scvi.settings.seed = 0
        draws.append(variational.get_normalized_expression(indices=indices, **options))
    np.testing.assert_allclose(*draws, rtol=1e-5)


@pytest.mark.parametrize("batches", ["batch_9", ["batch_0", "batch_9"]])
def test_a_batch_that_is_none_of_the_models_is_told(model, batches):
    with pytest.raises(InputError, match="transform_batch='batch_9' is no batch.*batch_2"):
        model.get_normalized_expression(transform_batch=batches)


def test_a_group_without_its_column_is_told(model):
    with pytest.raises(InputError, match="group1='type_0' needs groupby="):
        model.differential_expression(group1="type_0")
