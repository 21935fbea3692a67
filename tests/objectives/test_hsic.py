from __future__ import annotations

import numpy as np
import pytest
import torch
from hyppo.independence import Hsic
from sklearn.metrics.pairwise import rbf_kernel

from scdisentangle import InputError
from scdisentangle.objectives import build_objectives
from scdisentangle.objectives._kernels import gaussian_kernel
from scdisentangle.objectives.hsic import cka, hsic, weighted_hsic

SIZES = {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 3}


@pytest.fixture
def kernels():
    x = torch.randn(30, 3).double()
    y = x[:, :2].square() + 0.5 * torch.randn(30, 2).double()
    return tuple(torch.tensor(rbf_kernel(z, gamma=0.5)) for z in (x, y))


def test_biased_equals_the_trace(kernels):
    k, l = (kernel.numpy() for kernel in kernels)
    n = len(k)
    h = np.eye(n) - 1 / n
    assert hsic(*kernels).item() == pytest.approx(np.trace(k @ h @ l @ h) / n**2)


def test_unbiased_equals_the_mean_over_quadruples_of_distinct_cells(kernels):
    k, l = (kernel[:7, :7].numpy() for kernel in kernels)
    terms = [
        k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
        for i in range(7)
        for j in set(range(7)) - {i}
        for q in set(range(7)) - {i, j}
        for r in set(range(7)) - {i, j, q}
    ]
    value = hsic(torch.tensor(k), torch.tensor(l), "unbiased")
    assert value.item() == pytest.approx(np.mean(terms))


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_cka_equals_hyppo(kernels, estimator):
    biased = estimator == "biased"
    expected = Hsic(compute_kernel=None, bias=biased).statistic(
        *(1 - kernel.numpy() for kernel in kernels)
    )
    expected = expected**2 if biased else expected  # hyppo takes the root of the biased one
    assert cka(*kernels, estimator).item() == pytest.approx(expected)


def test_unbiased_estimate_is_zero_on_average_and_the_biased_one_is_not():
    values = {"biased": [], "unbiased": []}
    for _ in range(500):
        k, l = (gaussian_kernel(torch.randn(8, 2).double(), 1.0) for _ in range(2))
        for estimator, found in values.items():
            found.append(hsic(k, l, estimator).item())
    error = np.std(values["unbiased"]) / np.sqrt(500)
    assert abs(np.mean(values["unbiased"])) < 3 * error
    assert np.mean(values["biased"]) > 10 * error


def test_weights_equal_repeated_cells(kernels):
    counts = torch.randint(0, 3, (30, 2)).double()
    found = weighted_hsic(*kernels, counts / counts.sum(0))
    for g in range(2):
        rows = torch.arange(30).repeat_interleave(counts[:, g].long())
        k, l = (kernel[rows][:, rows] for kernel in kernels)
        assert found[g].item() == pytest.approx(hsic(k, l).item())


def test_gradient_equals_finite_differences():
    x = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    y = torch.randn(6, 2, dtype=torch.double, requires_grad=True)
    for measure in (hsic, cka):
        for estimator in ("biased", "unbiased"):
            assert torch.autograd.gradcheck(
                lambda x, y, m=measure, e=estimator: m(
                    gaussian_kernel(x, 1.0), gaussian_kernel(y, 1.5), e
                ),
                (x, y),
            )


def test_unbiased_needs_four_cells():
    with pytest.raises(InputError, match="at least 4 cells, got 3"):
        hsic(torch.eye(3), torch.eye(3), "unbiased")


def test_cka_of_a_code_with_itself_is_one(make_codes):
    z = torch.randn(40, 5)
    codes = make_codes(z_bio=z, z_nio=-3.0 * z)
    assert build_objectives("cka", **SIZES)(codes)["cka"].item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("spec", ["hsic", "cka", {"hsic": {"estimator": "unbiased"}}])
def test_makes_the_codes_independent(make_codes, spec):
    z = torch.randn(80, 5)
    codes = make_codes(z_bio=z.clone().requires_grad_(), z_nio=z.square().requires_grad_())

    def dependence():
        return Hsic().statistic(*(c.detach().double().numpy() for c in (codes.z_bio, codes.z_nio)))

    before = dependence()
    objective = build_objectives(spec, **SIZES)
    optimizer = torch.optim.Adam([codes.z_bio, codes.z_nio], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        sum(objective(codes).values()).backward()
        optimizer.step()
    assert dependence() < 0.3 * before


class TestBatchHSIC:
    def test_every_gaussian_kernel_on_the_one_hot_batch_is_equivalent(self, make_codes):
        codes = make_codes()
        value = build_objectives("batch_hsic", **SIZES)(codes)["batch_hsic"].item()
        one_hot = np.eye(3)[codes.batch]
        kernel = gaussian_kernel(codes.z_bio.detach().double())
        for gamma in (0.1, 2.0):
            gaussian = hsic(kernel, torch.tensor(rbf_kernel(one_hot, gamma=gamma))).item()
            assert value * (1 - np.exp(-2 * gamma)) == pytest.approx(gaussian, rel=1e-4)

    def test_of_two_batches_is_their_mmd_up_to_a_factor(self, make_codes):
        from scdisentangle.objectives.mmd import mmd2

        batch = torch.tensor([0] * 10 + [1] * 14)
        codes = make_codes(n=24, batch=batch)
        value = build_objectives("batch_hsic", **SIZES)(codes)["batch_hsic"]
        z = codes.z_bio.detach()
        sigma = torch.pdist(z).median().item()
        factor = 2 * 10**2 * 14**2 / 24**4
        assert value.item() == pytest.approx(
            factor * mmd2(z[:10], z[10:], "gaussian", sigma=sigma).item(), rel=1e-4
        )

    def test_aligns_batches_of_one_composition(self, alike):
        z = alike.train("batch_hsic", weight=600.0)
        assert alike.leakage(alike.z) > 0.9
        assert alike.leakage(z) < 0.7
        assert alike.type_accuracy(z) > 0.95


class TestLocalBatchHSIC:
    def test_with_one_cluster_is_the_hsic_at_its_bandwidth(self, make_codes):
        codes = make_codes()
        spec = {"local_batch_hsic": {"n_clusters": 1}}
        value = build_objectives(spec, **SIZES)(codes)["local_batch_hsic"]
        z = codes.z_bio.detach()
        mean = 2 * z.var(0, correction=0).sum().item()  # mean squared distance of two draws
        same = (codes.batch[:, None] == codes.batch).float()
        expected = hsic(torch.tensor(rbf_kernel(z, gamma=1 / mean)), same)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)

    def test_asks_nothing_of_a_type_that_one_batch_lacks(self, make_codes):
        batch = torch.tensor([0] * 20 + [1] * 20 + [0] * 20)
        z = torch.randn(60, 5)
        z[40:] += 30.0
        pull = {}
        for name in ("batch_hsic", "local_batch_hsic"):
            codes = make_codes(n=60, batch=batch, z_bio=z.clone().requires_grad_())
            build_objectives(name, **SIZES)(codes)[name].backward()
            norms = codes.z_bio.grad.norm(dim=1)
            pull[name] = (norms[40:].mean() / norms[:40].mean()).item()
        assert pull["local_batch_hsic"] < 1e-6 < 0.05 < pull["batch_hsic"]

    def test_aligns_batches_of_different_composition_where_the_global_form_fails(self, unlike):
        local = unlike.train("local_batch_hsic", weight=600.0)
        overall = unlike.train("batch_hsic", weight=600.0)
        assert unlike.leakage(unlike.z) > 0.9
        assert unlike.leakage(local) < 0.7 < unlike.leakage(overall)
        assert unlike.type_accuracy(local) > 0.95


@pytest.mark.parametrize("spec", ["hsic", "cka", "batch_hsic"])
def test_four_cells_are_enough_for_the_unbiased_estimate(make_codes, spec):
    objective = build_objectives({spec: {"estimator": "unbiased"}}, **SIZES)
    three, four = (
        objective(make_codes(n, batch=torch.arange(n) // 2))[spec].item() for n in (3, 4)
    )
    assert three == 0
    assert four != 0


@pytest.mark.parametrize("n", [6, 40, 128])
def test_a_code_that_is_the_same_everywhere_is_aligned_with_nothing(n):
    for seed in range(20):
        torch.manual_seed(seed)
        assert cka(gaussian_kernel(torch.randn(n, 30)), torch.ones(n, n)) == 0.0
