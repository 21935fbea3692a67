"""Encoders and decoder; the classifier is scvi-tools'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from scvi.nn import FCLayers
from torch import Tensor, nn
from torch.distributions import Normal

from ._products import Linear
from ._relevant_components import RelevantComponents

SHORTCUT = 0.375
"""Weight of the first components in ``z_bio``, which at first is then mostly these."""


class Layers(FCLayers):
    """Those of scvi-tools, which copy their input to put no covariates beside it."""

    def forward(self, x: Tensor, *cat_list: Tensor, cont: Tensor | None = None) -> Tensor:
        """Hidden units of each cell, ``(n_cells, n_hidden)``."""
        if self.n_cov > 0:
            return super().forward(x, *cat_list, cont=cont)
        for layer in self.fc_layers:
            for part in filter(None, layer):
                x = part(x)
        return x


class CodeHead(nn.Module):
    r"""Last layer of an encoder: hidden units to a code, with or without a variance.

    Parameters
    ----------
    n_hidden
        Number of input units.
    n_latent
        Dimensions of the code.
    variational
        Whether to learn a variance too.
    var_activation
        Maps the last layer's output to a variance, the exponential if ``None``.
    spherical
        Whether codes are scaled to the length :math:`\sqrt{\mathrm{n\_latent}}`.
    """

    def __init__(
        self,
        n_hidden: int,
        n_latent: int,
        variational: bool,
        var_activation: Callable[[Tensor], Tensor] | None = None,
        spherical: bool = False,
    ):
        super().__init__()
        self.var_activation = var_activation
        self.spherical = spherical
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_variance = nn.Linear(n_hidden, n_latent) if variational else None

    def forward(self, h: Tensor, start: Tensor | float = 0.0) -> tuple[Tensor, Normal | None]:
        """Code of each cell, ``(n_cells, n_latent)``, and its posterior if variational.

        The last layer's output is added to ``start``, of the same shape.
        """
        mean = self.mean(h) + start
        if self.spherical:
            mean = nn.functional.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5
        if self.log_variance is None:
            return mean, None
        output = self.log_variance(h)
        if self.var_activation is None:
            scale = (0.5 * output).exp() + 1e-4
        else:
            scale = self.var_activation(output).sqrt() + 1e-4
        return mean, Normal(mean, scale, validate_args=False)  # which would wait for the device


class TwoCodeEncoder(nn.Module):
    r"""The encoder :math:`E(x) = [z_{bio}, z_{nio}]`.

    Parameters
    ----------
    n_input
        Number of genes.
    n_latent_bio, n_latent_nio
        Dimensions of the two codes.
    n_components
        Components that the encoder of ``z_bio`` sees in place of the genes; 0 for the genes.
    n_hidden, n_hidden_nio
        Units of each hidden layer of the encoder of ``z_bio``, and of that of ``z_nio``.
    n_cat_list, n_cont
        Categories of each categorical covariate, and number of continuous covariates, that the
        encoder sees.
    shared
        One trunk with two heads, instead of two encoders.
    variational_bio, variational_nio
        Whether each code has a posterior variance.
    var_activation
        As in :class:`CodeHead`.
    spherical_bio
        Whether ``z_bio`` is on a sphere, as in :class:`CodeHead`.
    **layers
        Keyword arguments for :class:`scvi.nn.FCLayers`.
    """

    def __init__(
        self,
        n_input: int,
        n_latent_bio: int,
        n_latent_nio: int,
        *,
        n_components: int,
        n_cat_list: Sequence[int],
        n_cont: int,
        shared: bool,
        variational_bio: bool,
        variational_nio: bool,
        var_activation: Callable[[Tensor], Tensor] | None,
        spherical_bio: bool,
        n_hidden: int,
        n_hidden_nio: int,
        **layers,
    ):
        super().__init__()
        trunk = partial(
            Layers,
            n_cat_list=n_cat_list,
            n_cont=n_cont,
            use_batch_norm=False,
            use_layer_norm=True,
            inject_covariates=False,
            **layers,
        )
        self.n_components = int(n_components)
        self.components = RelevantComponents(n_input, n_components) if n_components else None
        self.register_buffer("shortcut", torch.tensor(SHORTCUT))
        self.bio_encoder = trunk(n_components or n_input, n_hidden, n_hidden=n_hidden)
        self.bio_head = CodeHead(
            n_hidden, n_latent_bio, variational_bio, var_activation, spherical_bio
        )
        n_hidden_nio = n_hidden if shared else n_hidden_nio
        self.nio_encoder = (
            self.bio_encoder if shared else trunk(n_input, n_hidden_nio, n_hidden=n_hidden_nio)
        )
        self.nio_head = CodeHead(n_hidden_nio, n_latent_nio, variational_nio, var_activation)

    def centered(self, x: Tensor) -> Tensor:
        """Expression as :meth:`encode_bio` takes it, of the shape of ``x``."""
        return x if self.components is None else self.components.centered(x)

    def encode_bio(self, centered: Tensor, cats: Sequence[Tensor], cont: Tensor | None):
        """``z_bio``, shape ``(n_cells, n_latent_bio)``, and its posterior or ``None``."""
        if self.components is None:
            return self.bio_head(self.bio_encoder(centered, *cats, cont=cont))
        components = self.components(centered)
        first = components[:, : self.bio_head.mean.out_features]
        n_lacking = self.bio_head.mean.out_features - first.shape[1]
        start = self.shortcut * nn.functional.pad(first, (0, n_lacking))
        return self.bio_head(self.bio_encoder(components, *cats, cont=cont), start)

    def encode_nio(self, x: Tensor, cats: Sequence[Tensor], cont: Tensor | None):
        """``z_nio``, shape ``(n_cells, n_latent_nio)``, and its posterior or ``None``."""
        return self.nio_head(self.nio_encoder(x, *cats, cont=cont))


class Decoded(NamedTuple):
    """What the decoder says of each cell, ``(n_cells, n_genes)`` each; ``None`` if it has not."""

    output: Tensor
    """What the likelihood makes a mean of."""
    zi_logits: Tensor | None
    """Logits of an excess zero."""
    log_dispersion: Tensor | None
    """Logarithms of the dispersions."""
    normalized: Tensor | None
    """Values as the encoders see them, where the squared error to these helps train the codes."""

    @property
    def of_codes(self) -> Tensor:
        """What objectives compare of decoded cells: normalised values, if there are."""
        return self.output if self.normalized is None else self.normalized


class Decoder(nn.Module):
    r"""The decoder :math:`D(z_{bio}, z_{nio}, b)`.

    Parameters
    ----------
    n_latent
        Dimensions of the joint code.
    n_output
        Number of genes.
    n_cat_list, n_cont
        Categories of each categorical covariate (the batch first), and number of continuous
        covariates.
    zero_inflated, dispersed
        Whether to give logits of an excess zero, and log dispersions, too.
    normalized
        Whether to give normalised values, too.
    normalized_alone
        Whether these, if there are, alone train the codes and the hidden units: no gradient of the
        other outputs then reaches them.
    **layers
        Keyword arguments for :class:`scvi.nn.FCLayers`.
    """

    def __init__(
        self,
        n_latent: int,
        n_output: int,
        *,
        n_cat_list: Sequence[int],
        n_cont: int,
        zero_inflated: bool,
        dispersed: bool,
        normalized: bool,
        normalized_alone: bool,
        n_hidden: int,
        **layers,
    ):
        super().__init__()
        self.trunk = Layers(
            n_latent,
            n_hidden,
            n_cat_list=n_cat_list,
            n_cont=n_cont,
            n_hidden=n_hidden,
            use_batch_norm=False,
            use_layer_norm=True,
            **layers,
        )
        self.output = Linear(n_hidden, n_output)
        self.zi_logits = Linear(n_hidden, n_output) if zero_inflated else None
        self.log_dispersion = Linear(n_hidden, n_output) if dispersed else None
        self.normalized = Linear(n_hidden, n_output) if normalized else None
        self.normalized_alone = normalized and normalized_alone

    def forward(self, z: Tensor, *cats: Tensor, cont: Tensor | None = None) -> Decoded:
        """Decode joint codes, ``(n_cells, n_latent)``."""
        h = self.trunk(z, *cats, cont=cont)
        normalized = None if self.normalized is None else self.normalized(h)
        h = h.detach() if self.normalized_alone else h
        heads = (self.zi_logits, self.log_dispersion)
        others = (None if head is None else head(h) for head in heads)
        return Decoded(self.output(h), *others, normalized)
