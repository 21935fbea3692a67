from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

from scdisentangle.objectives._kernels import (
    base_bandwidth,
    gaussian_kernel,
    median_sigma,
    multiscale_kernel,
    squared_distances,
)


def test_squared_distances_equal_scikit_learn():
    x, y = torch.randn(7, 3).double(), torch.randn(5, 3).double()
    np.testing.assert_allclose(squared_distances(x, y), euclidean_distances(x, y, squared=True))
    np.testing.assert_allclose(squared_distances(x), euclidean_distances(x, squared=True))


def test_squared_distances_are_exact_far_from_the_origin():
    x = torch.randn(50, 4)
    far = squared_distances(x + 1000.0)
    rounded = ((x + 1000.0).double() - 1000.0).numpy()  # what float32 leaves of x
    np.testing.assert_allclose(far, euclidean_distances(rounded, squared=True), atol=1e-4)
    assert (far >= 0).all() and (far.diagonal() == 0).all()


def test_squared_distances_have_a_finite_gradient_at_identical_points():
    x = torch.ones(6, 3, requires_grad=True)
    squared_distances(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.7, 3.0])
def test_gaussian_kernel_equals_scikit_learn(sigma):
    z = torch.randn(20, 4).double()
    np.testing.assert_allclose(gaussian_kernel(z, sigma), rbf_kernel(z, gamma=0.5 / sigma**2))


def test_median_sigma_is_the_median_distance_of_distinct_points():
    z = torch.randn(31, 4).double()  # 465 pairs, an odd number
    assert median_sigma(squared_distances(z)).item() == pytest.approx(np.median(pdist(z)))
    assert median_sigma(squared_distances(torch.ones(5, 2))).item() == 1.0
    assert median_sigma(torch.zeros(1, 1)).item() == 1.0


def test_median_sigma_of_rows_that_are_mostly_the_same_is_not_their_rounding():
    for seed in range(20):
        torch.manual_seed(seed)
        of_batch = (torch.rand(128) > 0.8).long()
        kernel = gaussian_kernel((torch.randn(2, 8) * 2)[of_batch])
        same = of_batch[:, None] == of_batch
        np.testing.assert_allclose(kernel[same], 1.0, atol=1e-5)
        assert median_sigma(squared_distances((torch.randn(2, 8) * 2)[of_batch])) == 1.0


@pytest.mark.parametrize("kernel", [gaussian_kernel, multiscale_kernel])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_in_half_precision_are_those_of_the_same_codes_in_single(kernel, dtype):
    z = torch.randn(20, 4).to(dtype)
    half, single = z.clone().requires_grad_(), z.float().requires_grad_()
    weights = torch.randn(20, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = kernel(half)
    expected = kernel(single)
    torch.testing.assert_close(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), single.grad, rtol=0.01, atol=0.01)


def test_median_sigma_of_many_points_uses_some_of_them():
    z = torch.randn(900, 3).double()
    sampled = median_sigma(squared_distances(z), max_cells=300).item()
    assert sampled == pytest.approx(np.median(pdist(z[::3])), rel=1e-4)
    assert sampled == pytest.approx(np.median(pdist(z)), rel=0.05)


@pytest.mark.parametrize(("kernel_num", "kernel_mul"), [(5, 2.0), (4, 3.0), (2, 3.0), (1, 2.0)])
def test_multiscale_kernel_from_its_definition(kernel_num, kernel_mul):
    z = torch.randn(15, 4).double()
    mean = np.mean(pdist(z) ** 2)
    base = mean / kernel_mul ** (kernel_num // 2)
    expected = sum(rbf_kernel(z, gamma=1 / (base * kernel_mul**u)) for u in range(kernel_num))
    np.testing.assert_allclose(multiscale_kernel(z, kernel_num, kernel_mul), expected)


def test_fix_sigma_takes_the_place_of_the_base_bandwidth():
    z = torch.randn(15, 4).double()
    expected = sum(rbf_kernel(z, gamma=1 / (0.3 * 2.0**u)) for u in range(5))
    np.testing.assert_allclose(multiscale_kernel(z, fix_sigma=0.3), expected)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda z: gaussian_kernel(z, 0.9),
        lambda z: multiscale_kernel(z, fix_sigma=0.4),
        lambda z: multiscale_kernel(z, 3, 2.5, fix_sigma=0.4),
    ],
)
def test_gradient_equals_finite_differences(kernel):
    z = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    mix = torch.randn(6, 6).double()  # not symmetric
    assert torch.autograd.gradcheck(lambda z: (mix * kernel(z)).sum(), z)


def test_no_gradient_flows_through_the_bandwidth():
    z = torch.randn(8, 3, dtype=torch.double, requires_grad=True)
    constant = base_bandwidth(squared_distances(z.detach())).item()
    mix = torch.randn(8, 8).double()

    def gradient(**options):
        return torch.autograd.grad((mix * multiscale_kernel(z, **options)).sum(), z)[0]

    torch.testing.assert_close(gradient(), gradient(fix_sigma=constant))
    # with the bandwidth in the graph, the kernel would not see the scale of z at all
    assert (gradient() * z).sum().abs() > 1e-3


def test_median_distance_of_two_points_is_their_distance():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(median_sigma(squared_distances(points)), torch.tensor(5.0))
