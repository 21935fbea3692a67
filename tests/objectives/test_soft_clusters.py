from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from torch.utils._python_dispatch import TorchDispatchMode

from scdisentangle.objectives._soft_clusters import soft_clusters


def test_finds_separate_clusters_and_is_hard_on_them():
    points, truth = make_blobs(200, 5, centers=4, cluster_std=0.3, random_state=0)
    members = soft_clusters(torch.tensor(points), 4)
    assert adjusted_rand_score(truth, members.argmax(1)) == 1.0
    assert members.max(1).values.min() > 0.99


def test_is_soft_between_clusters_that_touch():
    line = torch.linspace(0, 1, 101).unsqueeze(1)
    members = soft_clusters(line, 2)
    np.testing.assert_allclose(members.sum(1), np.ones(101), rtol=1e-6)
    assert 0.3 < members[50, 0] < 0.7  # the middle belongs to both
    assert members[0].max() > 0.9


def test_is_a_constant_that_does_not_change_from_call_to_call():
    z = torch.randn(50, 4, requires_grad=True)
    members = soft_clusters(z, 6)
    assert not members.requires_grad
    assert torch.equal(members, soft_clusters(z, 6))


def test_no_number_is_asked_for_on_the_way():
    """On a GPU each would wait for it; those of one_hot are checks that only a CPU makes."""

    class Asked(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    z = torch.randn(30, 4)
    with Asked() as of_one_hot:
        torch.nn.functional.one_hot(torch.arange(6), 6)
    with Asked() as asked:
        soft_clusters(z, 6, n_steps=3)
    assert asked.n == 3 * of_one_hot.n


def test_more_clusters_than_cells():
    members = soft_clusters(torch.randn(3, 2), 10)
    assert members.shape == (3, 3)
    np.testing.assert_allclose(members.sum(1), np.ones(3), rtol=1e-6)


def test_a_cell_of_its_own_is_the_centre_of_its_cluster():
    z = torch.cat([torch.zeros(9, 2) + 0.01 * torch.randn(9, 2), torch.tensor([[50.0, 0.0]])])
    members = soft_clusters(z, 2)
    assert members[9].max() > 0.99
    assert members[9].argmax() != members[0].argmax()


def test_centres_are_those_of_five_steps_of_k_means_from_points_far_apart():
    points = np.random.default_rng(1).normal(size=(400, 2))
    start = [np.square(points - points.mean(0)).sum(1).argmin()]
    for _ in range(7):
        start.append(cdist(points, points[start]).min(1).argmax())
    centres = points[start]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five steps are too few to converge, as they should be
        centres, six = (
            KMeans(8, init=points[start], n_init=1, max_iter=n, tol=0).fit(points).cluster_centers_
            for n in (5, 6)
        )
    assert np.abs(centres - six).max() > 1e-3
    squared = cdist(points, centres, "sqeuclidean")
    expected = softmax(-squared / squared.min(1).mean(), axis=1)
    np.testing.assert_allclose(soft_clusters(torch.tensor(points), 8), expected, atol=1e-6)


def test_clusters_in_one_place_share_its_cells():
    places = torch.tensor([[5.0, 5.0], [9.0, 5.0], [5.0, 9.0]])
    members = soft_clusters(places.repeat(4, 1), 5)
    n_sharing = (members > 0).sum(1)
    assert n_sharing[:3].sum() == 5
    np.testing.assert_allclose(members[members > 0], (1 / n_sharing).repeat_interleave(n_sharing))
