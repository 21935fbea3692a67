"""Encoders, decoder, and what batches have in both; the classifier is scvi-tools'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from scvi.nn import FCLayers
from torch import Tensor, nn
from torch.distributions import Normal

from ._relevant_components import RelevantComponents

SHORTCUT = 0.25
"""Weight of the first components in ``z_bio``, which at first is then mostly these."""
WEIGHT_OF_LATEST = 0.3
"""Weight of the latest minibatch in a running mean."""


class AddedLater(nn.Module):
    """A part that the files of an earlier version lack: they load without it."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        own = dict(self.named_buffers()) | dict(self.named_parameters())
        for name, values in own.items():
            state_dict.setdefault(prefix + name, values)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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
        self.shared = shared
        self._trunk = partial(
            Layers,
            n_cat_list=n_cat_list,
            n_cont=n_cont,
            use_batch_norm=False,
            use_layer_norm=True,
            inject_covariates=False,
            **layers,
        )
        self._nio_head = partial(
            CodeHead,
            n_latent=n_latent_nio,
            variational=variational_nio,
            var_activation=var_activation,
        )
        self._trunk_of_genes = partial(self._trunk, n_input)
        self.components = None
        if n_components > 0:
            self.components = RelevantComponents(n_input, n_components)
            self.bio_encoder = self._trunk(n_components, n_hidden, n_hidden=n_hidden)
        else:
            self._see_genes(n_hidden)
        self.bio_head = CodeHead(
            n_hidden, n_latent_bio, variational_bio, var_activation, spherical_bio
        )
        self._add_nio_encoder(n_hidden if shared else n_hidden_nio)

    @property
    def n_components(self) -> int:
        """Components that the encoder of ``z_bio`` sees, 0 where it sees the genes."""
        return 0 if self.components is None else len(self.components.weight)

    def _see_genes(self, n_hidden: int) -> None:
        self.components = None
        self.bio_encoder = self._trunk_of_genes(n_hidden, n_hidden=n_hidden)

    def _add_nio_encoder(self, n_hidden: int) -> None:
        trunk = self.bio_encoder
        if not self.shared:
            trunk = self._trunk_of_genes(n_hidden, n_hidden=n_hidden)
        self.nio_encoder, self.nio_head = trunk, self._nio_head(n_hidden)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Be as the encoders in the file are.

        That of ``z_nio`` once had ``n_hidden`` units, and that of ``z_bio`` once saw the genes.
        """
        if self.components is not None and f"{prefix}components.weight" not in state_dict:
            self._see_genes(self.bio_head.mean.in_features)
        head = state_dict.get(f"{prefix}nio_head.mean.weight", self.nio_head.mean.weight)
        if head.shape[1] != self.nio_head.mean.in_features:
            self._add_nio_encoder(head.shape[1])
        self.to(self.bio_head.mean.weight.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

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
        start = SHORTCUT * nn.functional.pad(first, (0, n_lacking))
        return self.bio_head(self.bio_encoder(components, *cats, cont=cont), start)

    def encode_nio(self, x: Tensor, cats: Sequence[Tensor], cont: Tensor | None):
        """``z_nio``, shape ``(n_cells, n_latent_nio)``, and its posterior or ``None``."""
        return self.nio_head(self.nio_encoder(x, *cats, cont=cont))


class GeneShifts(AddedLater):
    """What the genes of a batch that came after training are off by, for the encoder of ``z_bio``.

    Only query mapping learns it, as scArches learns its batch's column of the encoder (Lotfollahi
    et al. 2022, Nature Biotechnology 40:121), with a ridge that keeps it small. For the batches of
    the reference it is 0.

    Parameters
    ----------
    n_batch, n_genes
        Number of batches and of genes.
    """

    def __init__(self, n_batch: int, n_genes: int):
        super().__init__()
        self.shifts = nn.Parameter(torch.zeros(n_batch, n_genes), requires_grad=False)
        self.learned = False

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        """Expression as the reference's batches would show it, ``(n_cells, n_genes)``."""
        return x - self.shifts[batch] if self.learned else x

    def ridge(self) -> Tensor:
        """Half the squared length of all shifts, to be added to the loss of a cell."""
        return 0.5 * self.shifts.square().sum()

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.learned |= bool(self.shifts.any())


class Codebook(nn.Module):
    r"""One learned code per batch; each cell takes the nearest.

    A code of ``n_batch`` values can hold the batch and nothing else of a cell. Gradients pass
    straight through to the encoder (van den Oord et al. 2017, arXiv:1711.00937).

    Parameters
    ----------
    n_batch
        Number of batches.
    n_latent
        Dimensions of a code.
    """

    def __init__(self, n_batch: int, n_latent: int):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(n_batch, n_latent))
        self.n_learned = n_batch

    def forward(self, z: Tensor, batch: Tensor) -> Tensor:
        """Nearest code of each cell, shape ``(n_cells, n_latent)``.

        A cell of a batch that was added later, ``n_learned`` or above, takes the code of its
        batch: the encoder, which learned without it, cannot tell.
        """
        encoded, learned = z.detach(), self.codes.detach()[: self.n_learned]
        squares = learned.square().sum(dim=1)
        nearest = torch.addmm(squares, encoded, learned.T, alpha=-2).argmin(dim=1)
        if self.n_learned < len(self.codes):
            nearest = torch.where(batch < self.n_learned, nearest, batch)
        return self.codes[nearest] + (z - encoded)

    def commitment(self, z: Tensor, batch: Tensor) -> Tensor:
        """Squared distance of each cell to the code of its own batch, shape ``(n_cells,)``.

        Cells come to the code, which would lose its distance to that of a like batch if it came
        to them; only that of a batch that was added later does, whose cells stay where they are.
        """
        codes = self.codes[batch]
        codes = torch.where(batch[:, None] < self.n_learned, codes.detach(), codes)
        return (z - codes).square().sum(dim=1)


class RunningMeans(nn.Module):
    """Mean code of each batch's cells, followed through training from its first minibatch on.

    Parameters
    ----------
    n_batch
        Number of batches.
    n_latent
        Dimensions of a code.
    """

    def __init__(self, n_batch: int, n_latent: int):
        super().__init__()
        self.first_new = 0
        self.register_buffer("means", torch.zeros(n_batch, n_latent))

    @torch.no_grad()
    def update(self, z: Tensor, batch: Tensor) -> None:
        """Move to a minibatch's means; batches that it lacks, or below ``first_new``, stay."""
        members = nn.functional.one_hot(batch, len(self.means)).to(z.dtype).T
        counts = members.sum(dim=1, keepdim=True)
        is_first = (self.means == 0).all(dim=1, keepdim=True)
        weight = torch.where(is_first, 1.0, WEIGHT_OF_LATEST) * (counts > 0)
        change = weight * (members @ z / counts.clamp(min=1) - self.means)
        self.means[self.first_new :] += change[self.first_new :]


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
        self.output = nn.Linear(n_hidden, n_output)
        self.zi_logits = nn.Linear(n_hidden, n_output) if zero_inflated else None
        self.log_dispersion = nn.Linear(n_hidden, n_output) if dispersed else None
        self.normalized = nn.Linear(n_hidden, n_output) if normalized else None
        self.normalized_alone = normalized and normalized_alone

    def forward(self, z: Tensor, *cats: Tensor, cont: Tensor | None = None) -> Decoded:
        """Decode joint codes, ``(n_cells, n_latent)``."""
        h = self.trunk(z, *cats, cont=cont)
        normalized = None if self.normalized is None else self.normalized(h)
        h = h.detach() if self.normalized_alone else h
        heads = (self.zi_logits, self.log_dispersion)
        others = (None if head is None else head(h) for head in heads)
        return Decoded(self.output(h), *others, normalized)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Be as the decoder in the file is, which once gave no normalised values."""
        if f"{prefix}normalized.weight" not in state_dict:
            self.normalized = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
