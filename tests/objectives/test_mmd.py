from __future__ import annotations

import itertools
from math import exp

import numpy as np
import pytest
import torch
from hyppo.independence import Hsic
from hyppo.ksample import MMD
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import rbf_kernel

from scdisentangle import InputError
from scdisentangle.objectives import build_objectives, mmd
from scdisentangle.objectives.mmd import mmd2, pairwise_mmd2

SIZES = {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 3}


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.double).unsqueeze(1)


def reference(x, y, gammas, unbiased=False):
    """Mean by mean over explicit pairs."""
    x, y = np.asarray(x), np.asarray(y)

    def mean(a, b, skip_own):
        kernel = sum(rbf_kernel(a, b, gamma=gamma) for gamma in gammas)
        pairs = [
            kernel[i, j]
            for i, j in itertools.product(range(len(a)), range(len(b)))
            if not (skip_own and i == j)
        ]
        return np.mean(pairs)

    return mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False)


def test_two_points_by_hand():
    x, y = column(0.0), column(1.0)
    gaussian = mmd2(x, y, "gaussian", sigma=1.0)
    assert gaussian.item() == pytest.approx(2 - 2 * exp(-0.5))
    # mean squared distance 1, base 1 / 2 ** 2, scales 1/4, 1/2, 1, 2, 4
    expected = sum(2 - 2 * exp(-1 / h) for h in (0.25, 0.5, 1, 2, 4))
    assert mmd2(x, y, "multiscale").item() == pytest.approx(expected)


def test_unbiased_by_hand():
    def k(distance):
        return exp(-(distance**2) / 2)

    value = mmd2(column(0.0, 1.0), column(2.0, 3.0), "gaussian", estimator="unbiased")
    assert value.item() == pytest.approx(2 * k(1) - 2 / 4 * (k(2) + k(3) + k(1) + k(2)))


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_equals_a_loop_over_pairs(estimator):
    x, y = torch.randn(7, 3).double(), 0.5 + torch.randn(5, 3).double()
    unbiased = estimator == "unbiased"
    single = mmd2(x, y, "gaussian", sigma=1.3, estimator=estimator)
    assert single.item() == pytest.approx(reference(x, y, [0.5 / 1.3**2], unbiased))
    base = np.mean(pdist(torch.cat([x, y])) ** 2) / 4
    gammas = [1 / (base * 2**u) for u in range(5)]
    assert mmd2(x, y, estimator=estimator).item() == pytest.approx(
        reference(x, y, gammas, unbiased)
    )


def test_equals_hyppo_after_undoing_its_normalisation():
    n, m = 12, 9
    x, y = torch.randn(n, 3).double(), 0.5 + torch.randn(m, 3).double()
    kernel = rbf_kernel(torch.cat([x, y]), gamma=0.5)
    groups = np.repeat([[0.0], [1.0]], [n, m], axis=0)
    dependence = Hsic(compute_kernel=None, bias=True).statistic(
        1 - kernel, (groups != groups.T).astype(float)
    )
    total = n + m
    centring = np.eye(total) - 1 / total
    variance = np.sum((centring @ kernel @ centring) ** 2) / total**2
    group_variance = 4 * n**2 * m**2 / total**4
    hsic = dependence**2 * np.sqrt(variance * group_variance)
    expected = hsic * total**4 / (2 * n**2 * m**2)
    assert mmd2(x, y, "gaussian").item() == pytest.approx(expected)


def test_unbiased_estimate_is_zero_on_average_and_the_biased_one_is_not():
    draws = [(torch.randn(6, 2).double(), torch.randn(6, 2).double()) for _ in range(600)]
    values = {
        estimator: np.array([mmd2(x, y, "gaussian", estimator=estimator) for x, y in draws])
        for estimator in ("biased", "unbiased")
    }
    error = values["unbiased"].std() / np.sqrt(len(draws))
    assert abs(values["unbiased"].mean()) < 3 * error
    assert values["biased"].mean() > 10 * error


def test_gradient_equals_finite_differences():
    x = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    y = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    for estimator in ("biased", "unbiased"):
        assert torch.autograd.gradcheck(
            lambda x, y, e=estimator: mmd2(x, y, fix_sigma=0.5, estimator=e), (x, y)
        )


def test_refuses_what_it_cannot_compare():
    with pytest.raises(InputError, match="3 dimensions and y 2"):
        mmd2(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(InputError, match="at least 2"):
        mmd2(torch.zeros(1, 3), torch.zeros(4, 3), estimator="unbiased")
    with pytest.raises(InputError, match="kernel='rbf'"):
        mmd2(torch.zeros(4, 3), torch.zeros(4, 3), "rbf")


def test_pairs_of_weighted_groups_equal_repeated_points():
    x = torch.randn(5, 2).double()
    counts = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [2.0, 0.0]]).double()
    kernel = torch.tensor(rbf_kernel(x, gamma=0.5))
    table = pairwise_mmd2(kernel, counts / counts.sum(0))
    first, second = (x.repeat_interleave(counts[:, g].long(), 0) for g in (0, 1))
    assert table[0, 1].item() == pytest.approx(reference(first, second, [0.5]))


class TestCodeMMD:
    def test_is_minus_the_mmd_of_normalised_codes(self, make_codes):
        codes = make_codes()
        value = build_objectives("mmd", **SIZES)(codes)["mmd"]
        unit = [
            z.detach() / z.detach().norm(dim=1, keepdim=True) for z in (codes.z_bio, codes.z_nio)
        ]
        base = np.mean(pdist(torch.cat(unit)) ** 2) / 4
        expected = reference(*unit, [1 / (base * 2**u) for u in range(5)])
        assert value.item() == pytest.approx(-expected, rel=1e-4)

    def test_without_normalisation_and_with_one_kernel(self, make_codes):
        codes = make_codes()
        options = {"normalize": False, "kernel": "gaussian", "sigma": 2.0, "estimator": "unbiased"}
        value = build_objectives({"mmd": options}, **SIZES)(codes)["mmd"]
        expected = reference(codes.z_bio.detach(), codes.z_nio.detach(), [0.5 / 4], unbiased=True)
        assert value.item() == pytest.approx(-expected, rel=1e-4)

    def test_refuses_codes_of_different_sizes_and_says_what_to_set(self):
        with pytest.raises(InputError, match="n_latent_bio=5 and n_latent_nio=2.*Set them equal"):
            build_objectives("mmd", **(SIZES | {"n_latent_nio": 2}))

    def test_pushes_the_codes_apart(self, make_codes):
        codes = make_codes(n=60)

        def distance():
            return MMD().statistic(
                *(z.detach().double().numpy() for z in (codes.z_bio, codes.z_nio))
            )

        before = distance()
        objective = build_objectives("mmd", **SIZES)
        optimizer = torch.optim.Adam([codes.z_bio, codes.z_nio], lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            objective(codes)["mmd"].backward()
            optimizer.step()
        assert distance() > before + 0.1


class TestBatchMMD:
    def test_is_the_mean_over_pairs_of_batches_large_enough(self, make_codes):
        batch = torch.tensor([0] * 12 + [1] * 9 + [2] * 3)
        codes = make_codes(n=24, batch=batch)
        options = {"kernel": "gaussian", "sigma": 2.0, "min_cells": 3}
        parts = [codes.z_bio.detach()[batch == b] for b in range(3)]
        pairs = {p: reference(parts[p[0]], parts[p[1]], [0.125]) for p in [(0, 1), (0, 2), (1, 2)]}
        value = build_objectives({"batch_mmd": options}, **SIZES)(codes)["batch_mmd"]
        assert value.item() == pytest.approx(np.mean(list(pairs.values())), rel=1e-4)
        options["min_cells"] = 4
        value = build_objectives({"batch_mmd": options}, **SIZES)(codes)["batch_mmd"]
        assert value.item() == pytest.approx(pairs[0, 1], rel=1e-4)

    def test_aligns_batches_of_one_composition(self, alike):
        z = alike.train("batch_mmd", weight=30.0)
        assert alike.leakage(alike.z) > 0.9
        assert alike.leakage(z) < 0.7
        assert alike.type_accuracy(z) > 0.95


class TestLocalBatchMMD:
    def test_with_one_cluster_is_the_mmd_of_two_batches(self, make_codes):
        codes = make_codes(n=30, n_batch=2)
        spec = {"local_batch_mmd": {"n_clusters": 1, "estimator": "unbiased"}}
        value = build_objectives(spec, **SIZES)(codes)["local_batch_mmd"]
        expected = mmd2(codes.z_bio[::2], codes.z_bio[1::2], estimator="unbiased")
        torch.testing.assert_close(value, expected)

    @pytest.mark.parametrize("min_cells", [3, 4])
    def test_pairs_of_batches_large_enough_count_by_their_cells(self, make_codes, min_cells):
        batch = torch.tensor([0] * 12 + [1] * 9 + [2] * 3)
        codes = make_codes(n=24, batch=batch)
        options = {"kernel": "gaussian", "sigma": 2.0, "n_clusters": 1, "min_cells": min_cells}
        value = build_objectives({"local_batch_mmd": options}, **SIZES)(codes)["local_batch_mmd"]
        parts = [codes.z_bio.detach()[batch == b] for b in range(3)]
        pairs = [(0, 1), (0, 2), (1, 2)] if min_cells == 3 else [(0, 1)]
        each = [reference(parts[i], parts[j], [0.125]) for i, j in pairs]
        weights = [
            len(parts[i]) * len(parts[j]) / (len(parts[i]) + len(parts[j])) for i, j in pairs
        ]
        assert value.item() == pytest.approx(np.average(each, weights=weights), rel=1e-4)

    def test_asks_nothing_of_a_type_that_one_batch_lacks(self, make_codes):
        # a shared type at 0, and far from it a type of the first batch alone
        batch = torch.tensor([0] * 20 + [1] * 20 + [0] * 20)
        z = torch.randn(60, 5)
        z[40:] += 30.0
        for name, ratio in (("batch_mmd", 0.05), ("local_batch_mmd", 0.0)):
            codes = make_codes(n=60, batch=batch, z_bio=z.clone().requires_grad_())
            options = {"fix_sigma": 100.0}
            build_objectives({name: options}, **SIZES)(codes)[name].backward()
            pull = codes.z_bio.grad.norm(dim=1)
            shared, alone = pull[:40].mean(), pull[40:].mean()
            assert shared > 0
            assert (alone > ratio * shared) if ratio else (alone < 1e-6 * shared)

    def test_aligns_batches_of_different_composition_where_the_global_form_fails(self, unlike):
        local = unlike.train("local_batch_mmd", weight=30.0)
        overall = unlike.train("batch_mmd", weight=30.0)
        assert unlike.leakage(unlike.z) > 0.9
        assert unlike.leakage(local) < 0.7 < unlike.leakage(overall)
        assert unlike.type_accuracy(local) > 0.95


def test_two_cells_of_each_batch_are_enough(make_codes):
    codes = make_codes(4, batch=torch.tensor([0, 0, 1, 1]), n_batch=2)
    z = codes.z_bio.detach().numpy()
    spec = {"batch_mmd": {"kernel": "gaussian", "sigma": 2.0}}
    value = build_objectives(spec, n_latent_bio=5, n_latent_nio=5, n_batch=2)(codes)["batch_mmd"]
    assert value.item() == pytest.approx(reference(z[:2], z[2:], [1 / 8]), rel=1e-4)


def test_clusters_weigh_by_how_much_both_batches_have_of_them(make_codes, monkeypatch):
    cluster, batch = np.array([0] * 6 + [1] * 10), np.array([0, 0, 1, 1, 1, 1] + [0] * 7 + [1] * 3)
    codes = make_codes(16, batch=torch.tensor(batch), n_batch=2)
    hard = torch.nn.functional.one_hot(torch.tensor(cluster)).float()
    monkeypatch.setattr(mmd, "soft_clusters", lambda *_: hard)
    spec = {"local_batch_mmd": {"kernel": "gaussian", "sigma": 2.0}}
    sizes = {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 2}
    value = build_objectives(spec, **sizes)(codes)["local_batch_mmd"]
    z = codes.z_bio.detach().numpy()
    terms = [
        reference(z[(cluster == c) & (batch == 0)], z[(cluster == c) & (batch == 1)], [1 / 8])
        for c in (0, 1)
    ]
    weights = [2 * 4 / (2 + 4), 7 * 3 / (7 + 3)]
    assert value.item() == pytest.approx(np.average(terms, weights=weights), rel=1e-4)


def test_unbiased_estimate_of_two_cells(make_codes):
    codes = make_codes(n=2)
    options = {"kernel": "gaussian", "estimator": "unbiased", "normalize": False}
    spec, sizes = {"mmd": options}, {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 3}
    bio, nio = codes.z_bio.detach().numpy(), codes.z_nio.detach().numpy()
    within = rbf_kernel(bio, gamma=0.5)[0, 1] + rbf_kernel(nio, gamma=0.5)[0, 1]
    expected = 2 * rbf_kernel(bio, nio, gamma=0.5).mean() - within
    found = build_objectives(spec, **sizes)(codes)["mmd"].item()
    assert found == pytest.approx(expected, abs=1e-5)
