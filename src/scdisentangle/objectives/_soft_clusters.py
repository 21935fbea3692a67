from __future__ import annotations

import torch
from torch import Tensor

from ._kernels import squared_distances


@torch.no_grad()
def soft_clusters(z: Tensor, n_clusters: int, n_steps: int = 5) -> Tensor:
    r"""Soft membership of each cell in clusters of the minibatch, a constant for the gradient.

    Centroids start at points far from one another and take ``n_steps`` of k-means. Then

    .. math::

        r_{ic} \propto \exp(-\|z_i - \mu_c\|^2 / s), \qquad
        s = \frac{1}{N} \sum_i \min_c \|z_i - \mu_c\|^2,

    so that memberships are soft between clusters that touch, and hard between clusters that are
    further apart than they are wide. Nothing is drawn at random.

    Parameters
    ----------
    z
        Code, shape ``(n_cells, d)``.
    n_clusters
        Number of clusters; at most one per cell.
    n_steps
        Steps of k-means.

    Returns
    -------
    Tensor of shape ``(n_cells, n_clusters)``, or fewer columns; rows sum to 1.
    """
    centroids = _spread_out(z, min(n_clusters, len(z)))
    for _ in range(n_steps):
        nearest = squared_distances(z, centroids).argmin(1)
        members = torch.nn.functional.one_hot(nearest, len(centroids)).to(z.dtype)
        sizes = members.sum(0).unsqueeze(1)
        means = (members.T @ z) / sizes.clamp_min(1.0)
        centroids = torch.where(sizes > 0, means, centroids)
    squared = squared_distances(z, centroids)
    scale = squared.min(1).values.mean()
    return torch.softmax(-squared / scale.clamp_min(1e-12), dim=1)


def _spread_out(z: Tensor, n: int) -> Tensor:
    """Farthest-point choice of ``n`` rows, starting at the one nearest to the mean."""
    squared = squared_distances(z)
    chosen = [squared.sum(1).argmin().view(1)]  # an index without a dimension waits for the device
    to_chosen = squared[chosen[0]]
    for _ in range(n - 1):
        chosen.append(to_chosen.argmax(1))
        to_chosen = torch.minimum(to_chosen, squared[chosen[-1]])
    return z[torch.cat(chosen)]
