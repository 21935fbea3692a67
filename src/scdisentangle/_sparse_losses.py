r"""Likelihoods of counts, most of which are 0: log-gammas and digammas of the others only.

Exact, not approximate: where :math:`y = 0` the terms that are left out vanish. On a CPU they are
most of the cost of the dense forms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import softplus

ABOVE_ZERO_KEY = "X_above_zero"
"""Key in a minibatch: :func:`where_above_zero` of its values, where the loader knows it."""


SMALLEST_MEAN = 1e-30
"""Added to the mean of a count, whose gradient is not finite where a softmax has come to 0."""


def where_above_zero(counts: Tensor) -> Tensor:
    """Where counts are above 0, as an index of the flattened matrix, shape ``(n_above_zero,)``."""
    return (counts.reshape(-1) > 0).nonzero().squeeze(-1)


def negative_binomial_loss(
    mu: Tensor, theta: Tensor, counts: Tensor, above_zero: Tensor | None = None
) -> Tensor:
    r"""Negative log-likelihood of each cell's counts, with its gradient in closed form.

    .. math::

        -\log p &= \theta \log \frac{\theta + \mu}{\theta} + y \log \frac{\theta + \mu}{\mu}
            - \log \frac{\Gamma(y + \theta)}{\Gamma(\theta)\, \Gamma(y + 1)} \\
        -\frac{\partial \log p}{\partial \mu} &= \frac{\theta}{\theta + \mu}
            + y \left(\frac{1}{\theta + \mu} - \frac{1}{\mu}\right) \\
        -\frac{\partial \log p}{\partial \theta} &= \log \frac{\theta + \mu}{\theta}
            + \frac{\theta}{\theta + \mu} - 1 + \frac{y}{\theta + \mu}
            - \psi(y + \theta) + \psi(\theta)

    Parameters
    ----------
    mu, theta
        Mean :math:`\mu` and inverse dispersion :math:`\theta`, ``(n_cells, n_genes)``; the latter
        may be ``(n_genes,)``.
    counts
        Counts :math:`y`, ``(n_cells, n_genes)``.
    above_zero
        :func:`where_above_zero` of the counts, where it is known.

    Returns
    -------
    Shape ``(n_cells,)``.
    """
    at = where_above_zero(counts) if above_zero is None else above_zero
    return _NegativeBinomial.apply(mu, theta, counts, at)


class _NegativeBinomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, mu: Tensor, theta: Tensor, counts: Tensor, at: Tensor) -> Tensor:
        n_of_cell, cell, gene = _places(at, counts)
        ratio = mu / theta
        log_ratio = torch.log1p(ratio)
        y, mu_y = _at(counts, at), _at(mu, at).add_(SMALLEST_MEAN)
        theta_y = _of_counts(theta, at, gene)
        sum_y = theta_y + mu_y
        of_y = y * (mu_y / sum_y).log_()
        of_y += _log_binomial(y, theta_y, _of_counts(theta.lgamma(), at, gene))
        share = ratio.add_(1).reciprocal_()
        ctx.save_for_backward(theta, share, log_ratio, at, cell, gene, y, mu_y, theta_y, sum_y)
        with torch.autocast(mu.device.type, enabled=False):
            of_all = log_ratio @ theta if theta.dim() == 1 else (log_ratio * theta).sum(dim=-1)
        return of_all - _sum_of_cell(of_y, n_of_cell)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        theta, share, log_ratio, at, cell, gene, y, mu_y, theta_y, sum_y = ctx.saved_tensors
        by_cell, g_y = g.unsqueeze(-1), g.index_select(0, cell)
        y_share = y / sum_y
        shared = theta.dim() == 1
        alone = theta if shared else theta_y
        psi_y, psi = digamma(torch.cat([y + theta_y, alone])).split([len(y), len(alone)])
        if shared:
            with torch.autocast(g.device.type, enabled=False):
                d_theta = g @ log_ratio + g @ share - g.sum()
            of_y = g_y * (y_share - psi_y + psi.index_select(0, gene))
            d_theta.index_add_(0, gene, of_y)
        else:
            d_theta = (log_ratio + share).sub_(1).mul_(by_cell)
            d_theta.view(-1).index_add_(0, at, g_y * (y_share - psi_y + psi))
        d_mu = share * by_cell
        d_mu.view(-1).index_add_(0, at, g_y * (y_share - y / mu_y))
        return d_mu, d_theta, None, None


def zero_inflated_loss(
    mu: Tensor,
    theta: Tensor,
    zi_logits: Tensor,
    counts: Tensor,
    above_zero: Tensor | None = None,
) -> Tensor:
    r"""As :func:`negative_binomial_loss`, with zeros in excess.

    .. math::

        p(0) = \pi + (1 - \pi)\, p_{NB}(0), \quad p(y) = (1 - \pi)\, p_{NB}(y)

    Parameters
    ----------
    mu, theta, counts, above_zero
        As for :func:`negative_binomial_loss`.
    zi_logits
        Logits of :math:`\pi`, ``(n_cells, n_genes)``.

    Returns
    -------
    Shape ``(n_cells,)``.
    """
    at = where_above_zero(counts) if above_zero is None else above_zero
    n_of_cell, _, gene = _places(at, counts)
    log_ratio = torch.log1p(mu / theta)
    zeros = softplus(-zi_logits) - softplus(-zi_logits - theta * log_ratio)
    y, mu_y, zi_y, log_ratio_y, zeros_y = (
        _at(values, at) for values in (counts, mu, zi_logits, log_ratio, zeros)
    )
    theta_y = _of_counts(theta, at, gene)
    of_y = (
        y * ((mu_y + SMALLEST_MEAN) / theta_y).log()
        - (y + theta_y) * log_ratio_y
        + _log_binomial(y, theta_y, _of_counts(theta.lgamma(), at, gene))
        - softplus(zi_y)
    )
    return zeros.sum(dim=-1) - _sum_of_cell(of_y + zeros_y, n_of_cell)


def poisson_loss(rate: Tensor, counts: Tensor, above_zero: Tensor | None = None) -> Tensor:
    r"""Negative log-likelihood of each cell's counts, :math:`\mu - y \log \mu + \log y!`.

    Parameters
    ----------
    rate
        Mean :math:`\mu`, ``(n_cells, n_genes)``.
    counts, above_zero
        As for :func:`negative_binomial_loss`.

    Returns
    -------
    Shape ``(n_cells,)``.
    """
    at = where_above_zero(counts) if above_zero is None else above_zero
    n_of_cell, _, _ = _places(at, counts)
    y, rate_y = _at(counts, at), _at(rate, at) + SMALLEST_MEAN
    of_y = y * rate_y.log() - torch.lgamma(y + 1)
    return rate.sum(dim=-1) - _sum_of_cell(of_y, n_of_cell)


def digamma(x: Tensor) -> Tensor:
    r"""That of positive numbers; PyTorch's takes three times as long on a CPU.

    .. math::

        \psi(x) = \psi(x + 6) - \sum_{k=0}^5 \frac{1}{x + k}, \quad
        \psi(x) \approx \log x - \frac{1}{2 x} - \frac{1}{12 x^2} + \frac{1}{120 x^4}
            - \frac{1}{252 x^6}

    with an error below :math:`3 \cdot 10^{-9}` for :math:`x \geq 6`. The sum is taken by pairs,
    the first with the last.

    References
    ----------
    Abramowitz and Stegun (1964), Handbook of mathematical functions, 6.3.6 and 6.3.18.
    """
    pair = x * (x + 5)
    pairs = (2 * x + 5) * (pair.reciprocal() + (pair + 4).reciprocal() + (pair + 6).reciprocal())
    inverse = (x + 6).reciprocal()
    square = inverse * inverse
    series = inverse / 2 + square * (1 / 12 - square * (1 / 120 - square / 252))
    return -inverse.log() - series - pairs


def _places(at: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts above 0 of each cell, and the cell and the gene of each of them."""
    n_cells, n_genes = counts.shape
    ends = torch.arange(0, (n_cells + 1) * n_genes, n_genes, device=at.device)
    n_of_cell = torch.searchsorted(at, ends).diff()
    cell = torch.repeat_interleave(n_of_cell, output_size=len(at))
    return n_of_cell, cell, torch.add(at, cell, alpha=-n_genes)


def _sum_of_cell(values: Tensor, n_of_cell: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", lengths=n_of_cell)


def _at(values: Tensor, at: Tensor) -> Tensor:
    return values.reshape(-1).index_select(0, at)


def _of_counts(values: Tensor, at: Tensor, gene: Tensor) -> Tensor:
    """Those at some places of a matrix, or of a row that all cells share."""
    return values.index_select(0, gene) if values.dim() == 1 else _at(values, at)


def _log_binomial(y: Tensor, theta: Tensor, log_gamma_of_theta: Tensor) -> Tensor:
    return torch.lgamma(y + theta) - log_gamma_of_theta - torch.lgamma(y + 1)
