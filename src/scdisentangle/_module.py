"""The model's network: what it is made of, how it encodes and how it decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from scvi import REGISTRY_KEYS
from scvi.module import Classifier
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import BaseMinifiedModeModuleClass, EmbeddingModuleMixin, auto_move_data
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from ._alignment import Alignment
from ._axes import Axes
from ._codes import CodesMixin
from ._defaults import (
    default_axes,
    default_code_loss,
    default_lambda_cls,
    default_lambda_dis,
    default_n_components,
    default_power_of_axes,
    default_spherical,
    default_target_sum,
)
from ._errors import (
    InputError,
    check_choice,
    check_count,
    check_not_negative,
    check_options,
    check_positive,
    check_rate,
)
from ._freezing import FreezingMixin
from ._gene_shifts import GeneShifts
from ._input_noise import add_noise
from ._inputs import InputsMixin
from ._likelihoods import GENE_LIKELIHOODS, GeneLikelihood, expression_distribution
from ._loss import LossMixin
from ._networks import Decoded, Decoder, TwoCodeEncoder
from ._nio_flows import NIO_FLOWS
from ._sampling import SamplingMixin
from ._settling import SettlingMixin
from .objectives import ObjectiveSpec, build_objectives

ENCODERS = ("separate", "shared")
CODE_LOSSES = ("both", "likelihood", "squared_error")
BATCH_REPRESENTATIONS = ("one-hot", "embedding")
DISPERSIONS = ("gene", "gene-batch", "gene-label", "gene-cell")


class DisentangleModule(
    InputsMixin,
    LossMixin,
    CodesMixin,
    SamplingMixin,
    SettlingMixin,
    FreezingMixin,
    EmbeddingModuleMixin,
    BaseMinifiedModeModuleClass,
):
    r"""Conditional autoencoder whose code is :math:`z = [z_{bio}, z_{nio}]`.

    Its three-term loss is in :meth:`loss`. Components are random until
    :class:`~scdisentangle.DisentangleTrainingPlan` finds them as training begins; in a loop of your
    own, call ``module.encoder.components.fit`` first.

    Parameters
    ----------
    n_input
        Number of genes.
    n_batch
        Number of batches.
    n_labels
        Number of labels, 1 if there are none.
    n_continuous_cov
        Number of further continuous covariates.
    n_cats_per_cov
        Number of categories of each further categorical covariate.
    n_latent_bio, n_latent_nio
        Dimensions of ``z_bio`` and of ``z_nio``.
    n_components
        Relevant components of expression, which the encoder of ``z_bio`` sees in place of the genes
        (Bar-Hillel et al. 2003; see the user guide); 0 for the genes themselves.
        ``None`` is 200, and 0 with a shared encoder, which must see the batch, with labels,
        which say more than matched cells do, or with one batch, which has none to match.
    n_hidden
        Units of each hidden layer of the encoder of ``z_bio``, or of a shared one, and of the
        decoder.
    n_hidden_nio
        Units of each hidden layer of a separate encoder of ``z_nio``. To tell batches it needs few.
    n_layers
        Hidden layers of each encoder. The decoder has one.
    dropout_rate
        Share of hidden units of the encoders that is dropped in training, in [0, 1).
    input_dropout
        Share of genes that is hidden from the encoder of ``z_bio`` in training, in [0, 1). They are
        at their mean, or at 0 with ``n_components=0``.
    nio_noise_factor
        Noise on the input of the encoder of ``z_nio``, as a multiple of that on ``z_bio``'s.
        Without it, that encoder learns the cells of small batches by heart.
    gene_likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts; ``"mse"`` (squared error) or ``"normal"``
        on the normalised scale.
    code_loss
        What of the reconstruction trains the codes: ``"likelihood"``, that of ``gene_likelihood``;
        ``"squared_error"`` on the normalised scale,
        :func:`~scdisentangle.objectives.calibrated`; or ``"both"``. For squared error the decoder
        shows normalised values beside the distribution of counts. With ``"squared_error"`` the
        likelihood trains the decoder's output layers, and no gradient of it reaches the codes.
        ``None`` is ``"both"`` where the encoder of ``z_bio`` sees components, and
        ``"likelihood"`` where it sees genes or is variational, or the likelihood is ``"normal"``;
        see the user guide.
    dispersion
        Whether a gene has one dispersion, or one in each batch, label or cell.
    log_normalize
        Whether values are counts, which the encoder sees as ``log1p(x / library * target_sum)``,
        or are taken as they are.
    target_sum
        Library size that counts are scaled to before the logarithm. ``None`` is
        ``median_library``, but at least 2 per gene, 4,000 for 2,000 genes, where squared error
        helps train the codes, and 5 where it does alone: at less, the logarithm weighs genes by
        their counts.
    median_library
        Median library size of the cells.
    use_size_factor_key
        Whether a registered size factor takes the place of the sum over genes as library size.
    counts_per_size_factor
        Library size of a cell whose size factor is 1.
    encoder
        ``"separate"`` encoders for the two codes, or one ``"shared"`` with two heads.
    nio_flow
        What the decoder reads of ``z_nio``: ``"detached"``, no gradient returns, so that only the
        classifier shapes ``z_nio`` and biology gains nothing by moving there; ``"quantized"``, the
        same, and ``z_nio`` is the nearest of one learned code per batch, so that nothing but the
        batch fits in; ``"variational"``, a sample of a posterior that is held to a learned prior
        per batch :math:`N(\mu_b, \sigma_b^2)`; ``"free"``, as it is.
    batch_in_decoder
        Whether the decoder sees the batch.
    batch_representation
        How the decoder reads the batch: ``"one-hot"``, or ``"embedding"``, a learned vector for
        each, of fewer numbers where there are many.
    batch_embedding_kwargs
        ``embedding_dim``, the size of these vectors; 5 if ``None``.
    encode_covariates
        Whether the encoders see the further covariates; the decoder always does.
    objective
        What makes up :math:`L_{dis}`: ``None``, a name, or a mapping of names to weights or
        options; see :data:`~scdisentangle.objectives.OBJECTIVES`.
    lambda_cls, lambda_dis
        Weights :math:`\lambda` of the classification and the disentanglement term. ``None`` is
        0.01 per gene: the reconstruction term is a sum over genes, and so keeps its share. That of
        the disentanglement is more if the encoder of ``z_bio`` sees components and normalised
        values, by squared error or ``"normal"``, train it, whose gradients are larger: 0.05, and
        0.03 beside a likelihood of counts.
    kl_weight_bio, kl_weight_nio
        Weight of the Kullback-Leibler term of each code, as a share of the evidence lower bound's.
        ``z_bio`` is variational if its weight is positive, ``z_nio`` if ``nio_flow`` says so.
    var_activation
        Maps the output of a variational encoder to a variance, the exponential if ``None``. A model
        can be saved with ``torch.nn``'s ``Softplus()``, ``ReLU()`` or ``Sigmoid()``.
    spherical
        Whether ``z_bio`` is on a sphere, of radius :math:`\sqrt{\mathrm{n\_latent\_bio}}`, while
        it is trained: its contrast compares directions. After training, unless ``z_bio`` is
        variational or there are labels, the axes along which cells differ most are made longer.
        ``None`` is a sphere where ``z_bio`` is not variational and has more than two dimensions.
    axes
        Whether, after training, the axes along which cells differ most are made longer. ``None``
        does where ``z_bio`` is on a sphere and not variational, and there are no labels. Of a
        variational ``z_bio`` it cannot.
    alignment
        Whether, out of training, ``z_bio`` is moved by the shifts between batches that
        :class:`~scdisentangle.DisentangleModel` finds within clusters after training.
    class_balanced
        Whether every batch weighs the same in :math:`L_{cls}`, whatever its number of cells.
    unlabeled_code
        Code of the label that means "not labelled".
    """

    def __init__(
        self,
        n_input: int,
        n_batch: int,
        n_labels: int = 1,
        n_continuous_cov: int = 0,
        n_cats_per_cov: Sequence[int] | None = None,
        *,
        n_latent_bio: int = 30,
        n_latent_nio: int = 8,
        n_components: int | None = None,
        n_hidden: int = 128,
        n_hidden_nio: int = 32,
        n_layers: int = 2,
        dropout_rate: float = 0.0,
        input_dropout: float = 0.3,
        nio_noise_factor: float = 10.0,
        gene_likelihood: GeneLikelihood = "nb",
        code_loss: Literal["both", "likelihood", "squared_error"] | None = None,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        log_normalize: bool = True,
        target_sum: float | None = None,
        median_library: float = 1e4,
        use_size_factor_key: bool = False,
        counts_per_size_factor: float = 1.0,
        encoder: Literal["separate", "shared"] = "separate",
        nio_flow: Literal["quantized", "detached", "variational", "free"] = "quantized",
        batch_in_decoder: bool = True,
        batch_representation: Literal["one-hot", "embedding"] = "one-hot",
        batch_embedding_kwargs: Mapping[str, int] | None = None,
        encode_covariates: bool = False,
        objective: ObjectiveSpec = "contrastive",
        lambda_cls: float | None = None,
        lambda_dis: float | None = None,
        kl_weight_bio: float = 0.0,
        kl_weight_nio: float = 1.0,
        var_activation: Callable[[Tensor], Tensor] | None = None,
        spherical: bool | None = None,
        axes: bool | None = None,
        alignment: bool = True,
        class_balanced: bool = False,
        unlabeled_code: int | None = None,
    ):
        super().__init__()
        check_count(n_latent_bio=n_latent_bio, n_latent_nio=n_latent_nio, n_layers=n_layers)
        check_count(n_hidden=n_hidden, n_hidden_nio=n_hidden_nio)
        check_rate(dropout_rate=dropout_rate, input_dropout=input_dropout)
        check_positive(median_library=median_library, counts_per_size_factor=counts_per_size_factor)
        check_not_negative(kl_weight_bio=kl_weight_bio, kl_weight_nio=kl_weight_nio)
        check_not_negative(nio_noise_factor=nio_noise_factor)
        check_choice("gene_likelihood", gene_likelihood, GENE_LIKELIHOODS)
        if code_loss is not None:
            check_choice("code_loss", code_loss, CODE_LOSSES)
        check_choice("dispersion", dispersion, DISPERSIONS)
        check_choice("encoder", encoder, ENCODERS)
        check_choice("nio_flow", nio_flow, NIO_FLOWS)
        check_choice("batch_representation", batch_representation, BATCH_REPRESENTATIONS)
        embedding = dict(batch_embedding_kwargs or {})
        check_options(embedding, {"embedding_dim"}, "batch_embedding_kwargs")
        check_count(**embedding)
        self.embeds_batch = batch_in_decoder and batch_representation == "embedding"
        if self.embeds_batch:  # first, because scvi-tools' class loads the file's first weights
            self.init_embedding(REGISTRY_KEYS.BATCH_KEY, n_batch, **embedding)
            n_embedding = self.get_embedding(REGISTRY_KEYS.BATCH_KEY).embedding_dim
        cats = list(n_cats_per_cov or [])
        self.n_batch, self.n_labels = n_batch, n_labels
        self.gene_likelihood = gene_likelihood
        self.dispersion = dispersion
        self.log_normalize = log_normalize
        self.use_size_factor_key = use_size_factor_key
        self.counts_per_size_factor = counts_per_size_factor
        self.nio_flow = nio_flow
        self.input_dropout = input_dropout
        self.nio_noise_factor = nio_noise_factor
        self.encode_covariates = encode_covariates
        self.lambda_cls = default_lambda_cls(n_input) if lambda_cls is None else lambda_cls
        self.kl_weights = {"kl_bio": kl_weight_bio, "kl_nio": kl_weight_nio}
        self.class_balanced = class_balanced
        self.unlabeled_code = unlabeled_code
        if n_components is None:
            n_components = default_n_components(encoder, n_labels, n_batch)
        if n_components != 0:
            check_count(n_components=n_components)
            if encoder == "shared":
                raise InputError(
                    f"n_components={n_components} leave out what the batch does, which the encoder "
                    "of z_nio must see, and it is one with encoder='shared'. Leave n_components "
                    "out, or take encoder='separate'."
                )
        if code_loss is None:
            code_loss = default_code_loss(
                gene_likelihood, log_normalize, n_components, kl_weight_bio
            )
        self.code_loss = code_loss
        if target_sum is None:
            target_sum = default_target_sum(median_library, code_loss, n_input)
        check_positive(target_sum=target_sum)
        if lambda_dis is None:
            lambda_dis = default_lambda_dis(gene_likelihood, code_loss, n_components, n_input)
        self.lambda_dis = lambda_dis
        check_not_negative(lambda_cls=self.lambda_cls, lambda_dis=self.lambda_dis)
        if spherical is None:
            spherical = default_spherical(kl_weight_bio, n_latent_bio)

        self.encoder = TwoCodeEncoder(
            n_input,
            n_latent_bio,
            n_latent_nio,
            n_components=n_components,
            n_cat_list=cats if encode_covariates else [],
            n_cont=n_continuous_cov if encode_covariates else 0,
            shared=encoder == "shared",
            variational_bio=kl_weight_bio > 0,
            variational_nio=NIO_FLOWS[nio_flow].is_variational,
            var_activation=var_activation,
            spherical_bio=spherical,
            n_hidden=n_hidden,
            n_hidden_nio=n_hidden_nio,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
        )
        self.gene_shifts = GeneShifts(n_batch, n_input)
        self.decoder = Decoder(
            n_latent_bio + n_latent_nio + (n_embedding if self.embeds_batch else 0),
            n_input,
            n_cat_list=[n_batch if batch_in_decoder and not self.embeds_batch else 0, *cats],
            n_cont=n_continuous_cov,
            zero_inflated=gene_likelihood == "zinb",
            dispersed=dispersion == "gene-cell",
            normalized=code_loss != "likelihood" and gene_likelihood != "mse",
            normalized_alone=code_loss == "squared_error",
            n_hidden=n_hidden,
            n_layers=1,
            dropout_rate=0.0,
        )
        self.classifier = Classifier(
            n_latent_nio,
            n_hidden=128,
            n_labels=n_batch,
            n_layers=1,
            dropout_rate=dropout_rate,
            logits=True,
            use_batch_norm=False,
            use_layer_norm=True,
        )
        self.alignment = (
            Alignment(n_latent_bio, n_batch, spherical=spherical) if alignment else None
        )
        if axes is None:
            axes = default_axes(spherical, kl_weight_bio, n_labels)
        elif axes and kl_weight_bio > 0:
            raise InputError(
                f"axes=True is not for a variational z_bio (kl_weight_bio={kl_weight_bio}): the "
                "posterior of each dimension on its own would be none along the axes. Leave axes "
                "out."
            )
        self.axes = Axes(n_latent_bio, default_power_of_axes(code_loss)) if axes else None
        self.disentanglement = build_objectives(
            objective, n_latent_bio=n_latent_bio, n_latent_nio=n_latent_nio, n_batch=n_batch
        )
        if dispersion != "gene-cell":
            rows = {"gene-batch": (n_batch,), "gene-label": (n_labels,)}.get(dispersion, ())
            self.log_dispersion = nn.Parameter(torch.randn(*rows, n_input))
        self.flow = NIO_FLOWS[nio_flow](n_batch, n_latent_nio)
        self.register_buffer("target_sum", torch.tensor(float(target_sum)))

    def on_load(self, model, **kwargs) -> None:
        """Take from a model that was loaded or mapped which batches were added, and what stays."""
        n_reference_batches = getattr(model, "n_reference_batches_", 0)
        self.flow.added(getattr(model, "n_learned_batches_", self.n_batch), n_reference_batches)
        if self.alignment is not None:
            self.alignment.first_new = n_reference_batches
        if self.axes is not None:
            self.axes.of_reference = n_reference_batches > 0
        if n_reference_batches > 0:
            self.freeze(**getattr(model, "frozen_", {"known": {}}))

    @auto_move_data
    def _regular_inference(
        self,
        x: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        noise_level: float = 0.0,
        n_samples: int | None = None,
        above_zero: Tensor | None = None,
        encode_nio: bool = True,
    ) -> dict[str, Tensor | Distribution | None]:
        r"""Encode: ``x`` to ``z_bio`` and ``z_nio``.

        Parameters
        ----------
        x
            Registered values, ``(n_cells, n_genes)``.
        library
            Logarithm of the library size, ``(n_cells, 1)``.
        batch_index
            Batch of each cell, ``(n_cells, 1)``; read for the alignment of ``z_bio``, and for
            batches that were added to a trained model.
        cont_covs, cat_covs
            Further covariates, ``(n_cells, n_covariates)``.
        noise_level
            Standard deviation of the Gaussian noise on the normalised values, in training only.
        n_samples
            Draws from the posterior of variational codes; more than one come first in the shape.
            ``None`` takes the mean, and one draw in training.
        above_zero
            Where ``x`` is above 0, as an index of the flattened matrix, where it is known.
        encode_nio
            Whether to encode ``z_nio``. If not, it is that of the cell's batch,
            :attr:`NioFlow.of_batch`, and no gradient reaches what it is made of.
        """
        normalized = self.normalize(x, library, above_zero)
        batch = batch_index.squeeze(-1)
        encoded_nio, q_nio = None, None
        if encode_nio:
            seen = normalized
            if self.training:
                seen = add_noise(normalized, self.nio_noise_factor * noise_level)
            encoded_nio, q_nio = self.encoder.encode_nio(seen, *self._encoded(cont_covs, cat_covs))
            z_nio = self.flow(encoded_nio, batch)
        else:
            z_nio = self.flow.of_batch.detach()[batch]
        z_nio = self._draw(z_nio, q_nio, n_samples)
        comparable = self.gene_shifts(normalized, batch)
        z_bio, q_bio = self.encode_bio(
            comparable, noise_level, batch_index, cont_covs, cat_covs, n_samples
        )
        return {
            **self._inferred(z_bio, z_nio, q_bio, q_nio, library, n_samples),
            "normalized": normalized,
            "comparable": comparable,
            "encoded_nio": encoded_nio,
            "noise_level": noise_level,
        }

    def _encoded(self, cont_covs: Tensor | None, cat_covs: Tensor | None):
        return (self._split(cat_covs), cont_covs) if self.encode_covariates else ((), None)

    def encode_bio(
        self,
        seen: Tensor,
        noise_level: float,
        batch_index: Tensor,
        cont_covs: Tensor | None,
        cat_covs: Tensor | None,
        n_samples: int | None = None,
    ) -> tuple[Tensor, Normal | None]:
        """Encode ``z_bio`` alone: the code, ``(n_cells, n_latent_bio)``, and its posterior if any.

        Parameters
        ----------
        seen
            Normalised values without noise, ``(n_cells, n_genes)``.
        noise_level, batch_index, cont_covs, cat_covs, n_samples
            As for inference.
        """
        seen = self.encoder.centered(seen)
        if self.training:
            seen = add_noise(seen, noise_level, hidden=self.input_dropout)
        z_bio, q_bio = self.encoder.encode_bio(seen, *self._encoded(cont_covs, cat_covs))
        if self.alignment is not None and not self.training:
            z_bio = self.alignment(z_bio, batch_index.squeeze(-1))
            q_bio = None if q_bio is None else Normal(z_bio, q_bio.scale, validate_args=False)
        if self.axes is not None and not self.training:
            z_bio = self.axes(z_bio)
        return self._draw(z_bio, q_bio, n_samples), q_bio

    def decode(
        self,
        z_bio: Tensor,
        z_nio: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> Decoded:
        """Outputs of the decoder, ``(n_cells, n_genes)``; see :meth:`generative`.

        Parameters
        ----------
        z_bio, z_nio, batch_index, cont_covs, cat_covs
            As for :meth:`generative`.
        """
        if not self.training:
            z_bio = self.as_trained(z_bio)
        z = torch.cat([z_bio, z_nio], dim=-1)
        if self.embeds_batch:
            embedded = self.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch_index)
            z = torch.cat([z, embedded.expand(*z.shape[:-1], -1)], dim=-1)
        return self.decoder(z, batch_index, *self._split(cat_covs), cont=cont_covs)

    @auto_move_data
    def generative(
        self,
        z_bio: Tensor,
        z_nio: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        y: Tensor | None = None,
        transform_batch: int | None = None,
    ) -> dict[str, Distribution | Tensor | None]:
        r"""Decode: ``z_bio``, ``z_nio`` and the batch to a distribution of each gene's values.

        Parameters
        ----------
        z_bio, z_nio
            The two codes, ``(n_cells, n_latent_bio)`` and ``(n_cells, n_latent_nio)``; several
            draws of them come first in the shape.
        library
            Logarithm of the library size, ``(n_cells, 1)``.
        batch_index
            Batch of each cell, ``(n_cells, 1)``.
        cont_covs, cat_covs
            Further covariates, ``(n_cells, n_covariates)``.
        y
            Label of each cell, ``(n_cells, 1)``, for ``dispersion="gene-label"``.
        transform_batch
            Batch to decode all cells in, with :attr:`NioFlow.of_batch` as ``z_nio``. ``None``
            leaves each in its own.
        """
        if transform_batch is not None:
            batch_index = torch.full_like(batch_index, transform_batch)
            z_nio = self.flow.of_batch[batch_index.squeeze(-1)].expand_as(z_nio)
        decoded = self.decode(z_bio, self.flow.as_read(z_nio), batch_index, cont_covs, cat_covs)
        log_dispersion = decoded.log_dispersion
        if log_dispersion is None:
            group = {"gene-batch": batch_index, "gene-label": y}.get(self.dispersion)
            log_dispersion = self.log_dispersion
            if group is not None:
                log_dispersion = log_dispersion[group.squeeze(-1)]
        px = expression_distribution(
            self.gene_likelihood, decoded.output, library, log_dispersion, decoded.zi_logits
        )
        return {MODULE_KEYS.PX_KEY: px, "normalized": decoded.normalized}
