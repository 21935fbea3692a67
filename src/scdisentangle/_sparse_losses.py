r"""Likelihoods of counts, most of which are 0: log-gammas and digammas of the others only.

Exact, not approximate: where :math:`y = 0` the terms that are left out vanish. On a CPU they are
most of the cost of the dense forms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import softplus


def where_above_zero(counts: Tensor) -> Tensor:
    """Where counts are not 0, as an index of the flattened matrix, shape ``(n_above_zero,)``."""
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
    return _NegativeBinomial.apply(mu, theta.expand_as(mu), counts, at)


class _NegativeBinomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, mu: Tensor, theta: Tensor, counts: Tensor, at: Tensor) -> Tensor:
        cell, _ = _cell_and_gene(at, counts)
        ratio = mu / theta
        log_ratio = torch.log1p(ratio)
        y, mu_y, theta_y, log_ratio_y = (_at(v, at) for v in (counts, mu, theta, log_ratio))
        mu_y += torch.finfo(mu.dtype).tiny
        of_y = y * ((mu_y / theta_y).log_() - log_ratio_y) + _log_binomial(y, theta_y)
        ctx.save_for_backward(ratio, log_ratio, at, cell, y, mu_y, theta_y)
        return (log_ratio * theta).sum(dim=-1).index_add_(0, cell, of_y, alpha=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ratio, log_ratio, at, cell, y, mu_y, theta_y = ctx.saved_tensors
        by_cell, g_y = g.unsqueeze(-1), g[cell]
        share = y / (theta_y + mu_y)
        d_mu = (ratio + 1).reciprocal_()
        d_theta = (log_ratio + d_mu).sub_(1).mul_(by_cell)
        of_theta = share - digamma(y + theta_y) + digamma(theta_y)
        d_theta.view(-1).index_add_(0, at, g_y * of_theta)
        d_mu.mul_(by_cell).view(-1).index_add_(0, at, g_y * (share - y / mu_y))
        return d_mu, d_theta, None, None


def decoded_negative_binomial_loss(
    logits: Tensor,
    library: Tensor,
    log_theta: Tensor,
    counts: Tensor,
    above_zero: Tensor | None = None,
) -> Tensor:
    r"""As :func:`negative_binomial_loss`, of the decoder's logits :math:`o`.

    With :math:`\mu = \ell\, s`, :math:`s = \mathrm{softmax}(o)` and
    :math:`r = \theta / (\theta + \mu)`

    .. math::

        -\frac{\partial \log p}{\partial o} = w - s \sum w, \quad w = r\, (\mu - y)

    Parameters
    ----------
    logits
        :math:`o`, ``(n_cells, n_genes)``.
    library
        :math:`\log \ell`, ``(n_cells, 1)``, a constant.
    log_theta
        :math:`\log \theta`, ``(n_genes,)``.
    counts, above_zero
        As for :func:`negative_binomial_loss`.

    Returns
    -------
    Shape ``(n_cells,)``.
    """
    at = where_above_zero(counts) if above_zero is None else above_zero
    with torch.autocast(logits.device.type, enabled=False):
        return _DecodedNegativeBinomial.apply(
            logits.to(log_theta.dtype), library, log_theta, counts, at
        )


class _DecodedNegativeBinomial(torch.autograd.Function):
    """Takes the gradient, but for its factor of each cell, on the way, in passes that are warm."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        library: Tensor,
        log_theta: Tensor,
        counts: Tensor,
        at: Tensor,
    ) -> Tensor:
        cell, gene = _cell_and_gene(at, counts)
        theta = log_theta.exp()
        scale = logits.softmax(dim=-1)
        ratio = (scale / theta).mul_(library.exp())
        log_ratio = torch.log1p(ratio)
        y, ratio_y, log_ratio_y = (_at(values, at) for values in (counts, ratio, log_ratio))
        theta_y = theta.index_select(0, gene)
        sum_y = y + theta_y
        of_y = y * ((ratio_y + torch.finfo(ratio.dtype).tiny).log_() - log_ratio_y)
        of_y += torch.lgamma(sum_y) - torch.lgamma(theta).index_select(0, gene)
        of_y -= torch.lgamma(y + 1)
        loss = (log_ratio @ theta).index_add_(0, cell, of_y, alpha=-1)
        if any(ctx.needs_input_grad):
            r = (ratio + 1).reciprocal_()
            r_y = y / (ratio_y + 1)
            w = ratio.mul_(r).mul_(theta)
            w.view(-1).index_add_(0, at, r_y, alpha=-1)
            w -= scale.mul_(w.sum(dim=-1, keepdim=True))
            of_theta = digamma(theta).index_select(0, gene) - digamma(sum_y)
            of_log_theta = r_y.addcmul_(theta_y, of_theta)
            ctx.save_for_backward(w, log_ratio.add_(r), theta, of_log_theta, cell, gene)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        w, of_theta, theta, of_log_theta, cell, gene = ctx.saved_tensors
        d_log_theta = (g @ of_theta - g.sum()) * theta
        d_log_theta.index_add_(0, gene, of_log_theta.mul(g.index_select(0, cell)))
        return w * g.unsqueeze(-1), None, d_log_theta, None, None


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
    cell, gene = _cell_and_gene(at, counts)
    log_ratio = torch.log1p(mu / theta)
    zeros = softplus(-zi_logits) - softplus(-zi_logits - theta * log_ratio)
    y, mu_y, zi_y, log_ratio_y, zeros_y = (
        _at(values, at) for values in (counts, mu, zi_logits, log_ratio, zeros)
    )
    theta_y = theta[gene] if theta.dim() == 1 else _at(theta, at)
    of_y = (
        y * ((mu_y + torch.finfo(mu.dtype).tiny) / theta_y).log()
        - (y + theta_y) * log_ratio_y
        + _log_binomial(y, theta_y)
        - softplus(zi_y)
    )
    return zeros.sum(dim=-1).index_add(0, cell, of_y + zeros_y, alpha=-1)


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
    cell, _ = _cell_and_gene(at, counts)
    y, rate_y = _at(counts, at), _at(rate, at) + torch.finfo(rate.dtype).tiny
    return rate.sum(dim=-1).index_add(0, cell, y * rate_y.log() - torch.lgamma(y + 1), alpha=-1)


def _cell_and_gene(at: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    n_genes = counts.shape[-1]
    cell = at.div(n_genes, rounding_mode="floor")
    return cell, at - cell * n_genes


def _at(values: Tensor, at: Tensor) -> Tensor:
    return values.reshape(-1).index_select(0, at)


def digamma(x: Tensor) -> Tensor:
    r"""Logarithmic derivative of the gamma function for :math:`x > 0`, to an error of 1e-8.

    That of PyTorch is five times as slow on a CPU. Here, of :math:`x + 4`,

    .. math::

        \psi(x) = \log x - \frac{1}{2x} - \frac{1}{12x^2} + \frac{1}{120x^4} - \frac{1}{252x^6}
            + \frac{1}{240x^8} - \ldots, \quad \psi(x) = \psi(x + 1) - \frac{1}{x}

    References
    ----------
    Abramowitz and Stegun (1972), Handbook of mathematical functions, 6.3.5 and 6.3.18.
    """
    outer = x * (x + 3)
    steps = (2 * x + 3) * (outer.reciprocal() + (outer + 2).reciprocal_())
    inverse = (x + 4).reciprocal_()
    square = inverse.square()
    series = square.mul(1 / 240).sub_(1 / 252).mul_(square).add_(1 / 120).mul_(square)
    series = series.sub_(1 / 12).mul_(square)
    return series.sub_(inverse, alpha=0.5).sub_(inverse.log_()).sub_(steps)


def _log_binomial(y: Tensor, theta: Tensor) -> Tensor:
    return torch.lgamma(y + theta) - torch.lgamma(theta) - torch.lgamma(y + 1)
