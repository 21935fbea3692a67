"""How the decoder's output becomes a distribution of a cell's values."""

from __future__ import annotations

from typing import Literal

import torch
from scvi import distributions
from scvi.distributions import Normal
from torch import Tensor
from torch.distributions import Distribution

from ._sparse_losses import negative_binomial_loss, poisson_loss, zero_inflated_loss
from .objectives import squared_error

GeneLikelihood = Literal["mse", "nb", "zinb", "poisson", "normal"]
COUNT_LIKELIHOODS = ("nb", "zinb", "poisson")
GENE_LIKELIHOODS = ("mse", *COUNT_LIKELIHOODS, "normal")


class NegativeBinomial(distributions.NegativeBinomial):
    """That of scvi-tools, which gives each cell a copy of the dispersion; ``dispersion`` is it."""

    def __init__(self, *, theta: Tensor, **parameters: Tensor):
        super().__init__(theta=theta, **parameters)
        self.dispersion = theta


class ZeroInflatedNegativeBinomial(distributions.ZeroInflatedNegativeBinomial):
    """As :class:`NegativeBinomial`, with zeros in excess."""

    def __init__(self, *, theta: Tensor, **parameters: Tensor):
        super().__init__(theta=theta, **parameters)
        self.dispersion = theta


def expression_distribution(
    gene_likelihood: GeneLikelihood,
    output: Tensor,
    library: Tensor,
    log_dispersion: Tensor,
    zi_logits: Tensor | None = None,
) -> Distribution:
    r"""Distribution of the values of each gene in each cell.

    Count likelihoods have mean :math:`\ell_i\,\mathrm{softmax}(o_i)`, with :math:`\ell_i` the
    library size; ``"normal"`` and ``"mse"`` have mean :math:`o_i` on the normalised scale, the
    latter with unit variance.

    Parameters
    ----------
    gene_likelihood
        Name of the likelihood.
    output
        Output of the decoder :math:`o`, shape ``(n_cells, n_genes)``.
    library
        Logarithm of the library size, shape ``(n_cells, 1)``.
    log_dispersion
        Logarithm of the inverse dispersion (counts) or of the standard deviation (normal),
        shape ``(n_genes,)`` or ``(n_cells, n_genes)``.
    zi_logits
        Logits of an excess zero, shape ``(n_cells, n_genes)``, for ``"zinb"``.
    """
    if gene_likelihood in ("mse", "normal"):
        scale = torch.ones_like(output) if gene_likelihood == "mse" else log_dispersion.exp()
        return Normal(output, scale, normal_mu=output, validate_args=False)
    scale = output.softmax(dim=-1)
    rate = library.exp() * scale
    if gene_likelihood == "poisson":
        # counts need not be whole
        return distributions.Poisson(rate=rate, scale=scale, validate_args=False)
    theta = log_dispersion.exp()
    if gene_likelihood == "nb":
        return NegativeBinomial(mu=rate, theta=theta, scale=scale)
    return ZeroInflatedNegativeBinomial(mu=rate, theta=theta, zi_logits=zi_logits, scale=scale)


def reconstruction_loss(
    gene_likelihood: GeneLikelihood,
    px: Distribution,
    target: Tensor,
    above_zero: Tensor | None = None,
) -> Tensor:
    """Reconstruction error of each cell, summed over genes, shape ``(n_cells,)``.

    Parameters
    ----------
    gene_likelihood
        ``"mse"`` takes the squared error to the mean, any other the negative log-likelihood.
    px
        What :func:`expression_distribution` returned.
    target
        Counts, or normalised values for ``"mse"`` and ``"normal"``, ``(n_cells, n_genes)``.
    above_zero
        Where counts are above 0, as an index of the flattened target, where it is known.

    Returns
    -------
    Of several draws of the codes, which come first in the shape of ``px``, the error of each.
    """
    if gene_likelihood == "mse":
        return squared_error(px.mean, target)
    if _takes_sparse_form(gene_likelihood, px, target):
        if gene_likelihood == "nb":
            return negative_binomial_loss(px.mu, px.dispersion, target, above_zero)
        if gene_likelihood == "zinb":
            return zero_inflated_loss(px.mu, px.dispersion, px.zi_logits, target, above_zero)
        return poisson_loss(px.rate, target, above_zero)
    return -px.log_prob(target).sum(dim=-1)


def _takes_sparse_form(gene_likelihood: GeneLikelihood, px: Distribution, target: Tensor) -> bool:
    """Whether there is one draw of counts on a CPU; a GPU would wait to find those above 0."""
    if gene_likelihood not in COUNT_LIKELIHOODS or target.device.type != "cpu":
        return False
    mean = px.rate if gene_likelihood == "poisson" else px.mu
    return mean.shape == target.shape
