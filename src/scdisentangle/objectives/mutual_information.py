from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from scdisentangle._errors import check_choice, check_count

from ._base import Codes, Objective, differentiable_zero
from ._estimators import frozen_call, mlp, standardise

_MAX_LOG_VARIANCE = 6.0


def gaussian_log_likelihoods(mean: Tensor, log_variance: Tensor, y: Tensor) -> Tensor:
    r"""Log density of every :math:`y_j` under every diagonal Gaussian :math:`q_i`.

    Three matrix products, without the ``(n, m, d)`` tensor of differences.

    Parameters
    ----------
    mean, log_variance
        Of the Gaussians, shape ``(n, d)``.
    y
        Points, shape ``(m, d)``.

    Returns
    -------
    Tensor of shape ``(n, m)``, in nats.
    """
    precision = torch.exp(-log_variance)
    quadratic = (
        precision @ y.square().T
        - 2.0 * (mean * precision) @ y.T
        + (mean.square() * precision).sum(1, keepdim=True)
    )
    constant = log_variance.sum(1, keepdim=True) + y.shape[1] * math.log(2.0 * math.pi)
    return -0.5 * (quadratic + constant)


def club(log_likelihoods: Tensor) -> Tensor:
    r"""Contrastive log-ratio upper bound on the mutual information.

    .. math::

        \frac{1}{n} \sum_i \log q(y_i \mid x_i)
            - \frac{1}{n^2} \sum_{ij} \log q(y_j \mid x_i) \; \ge \; I(x; y)

    in expectation, where q is the true conditional. Loose where the dependence is strong.

    Parameters
    ----------
    log_likelihoods
        :math:`\log q(y_j \mid x_i)` in row i and column j, shape ``(n, n)``.

    Examples
    --------
    Where x says nothing about y, all rows are the same and the bound is 0:

    >>> import torch
    >>> from scdisentangle.objectives.mutual_information import club
    >>> round(float(club(torch.tensor([[-1.0, -2.0], [-1.0, -2.0]]))), 6)
    0.0

    References
    ----------
    Cheng et al. (2020), CLUB: a contrastive log-ratio upper bound of mutual information, ICML.
    """
    return log_likelihoods.diagonal().mean() - log_likelihoods.mean()


def leave_one_out(log_likelihoods: Tensor) -> Tensor:
    r"""Leave-one-out upper bound on the mutual information, tighter than :func:`club`.

    .. math::

        \frac{1}{n} \sum_i \left[ \log q(y_i \mid x_i)
            - \log \frac{1}{n - 1} \sum_{j \ne i} q(y_i \mid x_j) \right] \; \ge \; I(x; y)

    in expectation, where q is the true conditional: the other cells' conditionals stand in for the
    marginal of y.

    Parameters
    ----------
    log_likelihoods
        :math:`\log q(y_j \mid x_i)` in row i and column j, shape ``(n, n)`` with n > 1.

    Examples
    --------
    >>> import torch
    >>> from scdisentangle.objectives.mutual_information import leave_one_out
    >>> round(float(leave_one_out(torch.tensor([[-1.0, -2.0], [-1.0, -2.0]]))), 6)
    0.0

    References
    ----------
    Poole et al. (2019), On variational bounds of mutual information, ICML, section 2.3.
    """
    n = len(log_likelihoods)
    own = torch.eye(n, dtype=torch.bool, device=log_likelihoods.device)
    others = log_likelihoods.masked_fill(own, -math.inf).logsumexp(0) - math.log(n - 1)
    return (log_likelihoods.diagonal() - others).mean()


class MutualInformation(Objective):
    r"""Upper bound on the mutual information :math:`I(z_\text{bio}; z_\text{nio})` in nats.

    A small network fits :math:`q(z_\text{nio} \mid z_\text{bio})`, a Gaussian with diagonal
    covariance, by maximum likelihood on detached codes (:meth:`estimator_loss`, its own optimiser).
    The codes are then moved so that z_bio says nothing about z_nio. Both codes are standardised
    within the minibatch, which leaves the mutual information as it is and keeps the codes from
    escaping by scale.

    Sees every dependence that a network can predict, in any dimension, where kernels lose power;
    costs a network to train, and is a bound only as far as the network is fitted.

    Parameters
    ----------
    bound
        ``"club"`` (:func:`club`) or ``"leave_one_out"`` (:func:`leave_one_out`).
    n_hidden
        Hidden units of the network.
    **sizes
        As in :class:`Objective`.
    """

    def __init__(self, *, bound: str = "club", n_hidden: int = 64, **sizes: int) -> None:
        super().__init__(**sizes)
        check_choice("bound", bound, ("club", "leave_one_out"))
        check_count(n_hidden=n_hidden)
        self.bound = {"club": club, "leave_one_out": leave_one_out}[bound]
        self.network = mlp(self.n_latent_bio, n_hidden, 2 * self.n_latent_nio)

    def forward(self, codes: Codes) -> Tensor:
        """The bound under the network as it stands; 0 for a single cell."""
        if len(codes.z_bio) < 2:
            return differentiable_zero(codes.z_bio)
        x, y = standardise(codes.z_bio), standardise(codes.z_nio)
        return self.bound(gaussian_log_likelihoods(*_split(frozen_call(self.network, x)), y))

    def estimator_loss(self, codes: Codes) -> Tensor:
        """Negative log likelihood of z_nio given z_bio, mean over cells."""
        x, y = standardise(codes.z_bio.detach()), standardise(codes.z_nio.detach())
        return -gaussian_log_likelihoods(*_split(self.network(x)), y).diagonal().mean()

    def estimator_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the network."""
        return self.network.parameters()


def _split(output: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = output.chunk(2, dim=1)
    return mean, _MAX_LOG_VARIANCE * torch.tanh(raw / _MAX_LOG_VARIANCE)
