"""The model that users meet: what it is made of."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from copy import deepcopy

from anndata import AnnData
from scvi import REGISTRY_KEYS

from . import _validation, _values
from ._data_modules import is_of_data_module
from ._errors import InputError, check_options, warn_user
from ._expression import ExpressionMixin
from ._labels import LabelMixin
from ._latents import LatentMixin
from ._likelihoods import COUNT_LIKELIHOODS, GeneLikelihood
from ._minification import MinificationMixin
from ._module import DisentangleModule
from ._query_mapping import QueryMappingMixin
from ._registration import RegistrationMixin, description, measurements
from ._saving import SavingMixin
from ._training import TrainingMixin
from ._training_plan import DisentangleTrainingPlan
from .data._loading import DataSplitter
from .objectives import ObjectiveSpec

logger = logging.getLogger(__name__)
SETTLED = {
    "use_observed_lib_size": (
        True,
        "A cell's library size is its sum over genes, or a registered size factor; it is no latent "
        "variable here.",
    ),
    "latent_distribution": (
        "normal",
        "Variational codes are normal, others are points; neither is mapped to a simplex.",
    ),
    "use_batch_norm": (
        "none",
        "A cell's code is to be the same whatever cells are beside it in a minibatch.",
    ),
    "use_layer_norm": ("both", "All hidden layers of the encoders and the decoder have it."),
    "deeply_inject_covariates": (
        False,
        "Covariates are seen by the first hidden layer; the decoder has one.",
    ),
}
"""Options of scVI that the method leaves no choice in: their value here, and why."""
IN_SUMMARY = (
    "n_latent_bio",
    "n_latent_nio",
    "n_hidden",
    "n_layers",
    "dropout_rate",
    "gene_likelihood",
    "objective",
)
N_LATENT_BIO = 30
NOTHING_REGISTERED = {"field_registries": {}, "setup_args": {}}
"""Registry of a model that learns of its data as it is trained."""


class DisentangleModel(
    RegistrationMixin,
    SavingMixin,
    LatentMixin,
    ExpressionMixin,
    LabelMixin,
    QueryMappingMixin,
    TrainingMixin,
    MinificationMixin,
):
    r"""Splits each cell's code in two: ``z_bio`` for biology, ``z_nio`` for the batch.

    Parameters
    ----------
    adata
        AnnData that was registered with :meth:`setup_anndata`.
    registry
        Registry of a data module, in place of ``adata``, for data that does not fit into memory.
        With neither, the networks are made as training begins, from the ``n_vars`` and ``n_batch``
        of its data module, and the model cannot be saved.
    n_latent_bio
        Dimensions of ``z_bio``.
    n_latent_nio
        Dimensions of ``z_nio``.
    n_latent
        ``n_latent_bio`` by the name that it has in scvi-tools' models; give one of the two.
    n_hidden
        Units of each hidden layer of the encoder of ``z_bio`` and of the decoder; the encoder of
        ``z_nio`` has ``n_hidden_nio``.
    n_layers
        Hidden layers of each encoder. The decoder has one.
    dropout_rate
        Share of the encoders' hidden units that is dropped in training, in [0, 1).
    gene_likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"`` for counts; ``"mse"``, ``"normal"`` for normalised
        values, or for counts that are then normalised. ``None`` takes ``"nb"`` where the
        registered values are counts and ``"mse"`` where they are not, and says which. Values are
        taken for counts if none is negative and either all are whole or some are above 30, which
        no logarithm of a count is.
    objective
        What makes ``z_bio`` and ``z_nio`` carry different things: a name, a mapping of names to
        weights or options, or ``None``; see :data:`~scdisentangle.objectives.OBJECTIVES`.
    **module_kwargs
        Further options of :class:`~scdisentangle.DisentangleModule`: ``n_components``,
        ``n_hidden_nio``, ``input_dropout``, ``nio_noise_factor``, ``dispersion``, ``encoder``,
        ``nio_flow``, ``batch_in_decoder``, ``batch_representation``, ``encode_covariates``,
        ``lambda_cls``, ``lambda_dis``, ``kl_weight_bio``, ``kl_weight_nio``, ``spherical``,
        ``axes``, ``alignment``, ``class_balanced``, …

    Raises
    ------
    InputError
        If an option is unknown, or the registered values do not suit the likelihood.

    Examples
    --------
    >>> import scdisentangle
    >>> adata = scdisentangle.data.simulated(n_cells=200, n_genes=100)
    >>> scdisentangle.DisentangleModel.setup_anndata(adata, batch_key="batch")
    >>> model = scdisentangle.DisentangleModel(adata)
    >>> model.train(max_epochs=2)
    >>> adata.obsm["X_disentangle"] = model.get_latent_representation()
    """

    _module_cls = DisentangleModule
    _training_plan_cls = DisentangleTrainingPlan
    _data_splitter_cls = DataSplitter

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        n_latent_bio: int = N_LATENT_BIO,
        n_latent_nio: int = 8,
        n_latent: int | None = None,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.0,
        gene_likelihood: GeneLikelihood | None = None,
        objective: ObjectiveSpec = "contrastive",
        **module_kwargs,
    ):
        if n_latent is not None and n_latent_bio not in (N_LATENT_BIO, n_latent):
            raise InputError(
                f"n_latent={n_latent} is another name of n_latent_bio={n_latent_bio}: give one."
            )
        objective, module_kwargs = deepcopy((objective, module_kwargs))  # which are kept
        n_latent_bio = n_latent_bio if n_latent is None else n_latent
        for option, (settled, reason) in SETTLED.items():
            if module_kwargs.pop(option, settled) != settled:
                warn_user(f"{option}={settled!r} always, whatever is asked for. {reason}")
        check_options(module_kwargs, {"n_latent", *_module_options()}, "DisentangleModel")
        knows_nothing = adata is None and registry is None
        super().__init__(adata, NOTHING_REGISTERED if knows_nothing else registry)
        self._module_init_on_train = knows_nothing
        gene_likelihood, module_kwargs = self._suited_to_values(gene_likelihood, module_kwargs)
        self._module_kwargs = {
            "n_latent_bio": n_latent_bio,
            "n_latent_nio": n_latent_nio,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "gene_likelihood": gene_likelihood,
            "objective": objective,
            "use_size_factor_key": bool(self.registry_["setup_args"].get("size_factor_key")),
            "unlabeled_code": self._unlabeled_code(),
            **module_kwargs,
        }
        self.module = None
        if not knows_nothing:
            self.module = self._module_cls(**self._sizes(), **self._module_kwargs)
            self.module.minified_data_type = self.minified_data_type
        self._model_summary_string = self._summary()
        if is_of_data_module(self.registry_):
            self._module_cls = self._module_as_made
        self.init_params_ = self._get_init_params(locals())
        if not knows_nothing:
            self._note_settled_options()

    def _module_as_made(self) -> DisentangleModule:
        """For scvi-tools, which as it loads would make it anew from less than all options."""
        return self.module

    def _suited_to_values(
        self, gene_likelihood: GeneLikelihood | None, options: Mapping
    ) -> tuple[GeneLikelihood, dict]:
        """The likelihood and options of the module, with what follows from the values."""
        if self.adata is None or self.minified_data_type is not None:
            return gene_likelihood or self._default_likelihood(options, None), dict(options)
        values, layer = measurements(self.adata, self.registry_["setup_args"])
        kind = self.value_kind_ = _values.kind_of_values(values, layer)
        options = {"log_normalize": kind != "others", **options}
        if gene_likelihood is None:
            gene_likelihood = self._default_likelihood(options, kind)
            if kind == "others":
                _validation.warn_of_counts_elsewhere(values, layer)
        of_counts = gene_likelihood in COUNT_LIKELIHOODS
        if of_counts:
            _validation.check_counts(values, layer, gene_likelihood, kind)
        if of_counts or options["log_normalize"]:
            options = {**self._sizes_of_counts(values, layer), **options}
        return gene_likelihood, options

    def _summary(self) -> str:
        parameters = [f"{name}: {self._module_kwargs[name]}" for name in IN_SUMMARY]
        weights = "its weights in the loss follow from the number of genes"
        if (module := self.module) is not None:
            weights = f"lambda_cls: {module.lambda_cls:g}, lambda_dis: {module.lambda_dis:g}"
        return (
            f"DisentangleModel with the following parameters:\n{', '.join([*parameters, weights])}."
        )

    def _note_settled_options(self) -> None:
        """Keep what labels and batches chose for the module, for data that have others."""
        self.init_params_["kwargs"]["module_kwargs"] |= {
            "n_components": self.module.encoder.n_components,
            "axes": self.module.axes is not None,
            "code_loss": self.module.code_loss,
        }

    def _sizes(self) -> dict:
        return {
            "n_input": self.summary_stats.n_vars,
            "n_batch": self.summary_stats.n_batch,
            "n_labels": self.summary_stats.get("n_labels", 1),
            "n_continuous_cov": self.summary_stats.get("n_extra_continuous_covs", 0),
            "n_cats_per_cov": self._state_of(REGISTRY_KEYS.CAT_COVS_KEY).get("n_cats_per_key"),
        }

    @staticmethod
    def _default_likelihood(
        module_kwargs: Mapping, kind: _values.ValueKind | None
    ) -> GeneLikelihood:
        counts = module_kwargs.get("log_normalize", True)
        likelihood = "nb" if counts else "mse"
        found = "counts" if counts else "not counts, and taken as already normalised"
        if counts and kind == "counts":
            found = "too large for logarithms, and taken as counts, though not all are whole"
        if kind is None:
            found = "taken as counts, without a look at them; pass gene_likelihood= if they are not"
        logger.info("gene_likelihood='%s': the registered values are %s.", likelihood, found)
        return likelihood

    def _sizes_of_counts(self, values: AnnData, layer: str | None) -> dict[str, float]:
        """The median library size, and what size factors are, which have a scale of their own."""
        median = _values.median_sum(values, layer)
        sizes = {"median_library": median}
        setup_args = self.registry_["setup_args"]
        if (key := setup_args.get("size_factor_key")) is not None:
            of_cells = description(self.adata, setup_args, "size_factor_key").obs[key]
            sizes["counts_per_size_factor"] = median / float(of_cells.median())
        return sizes

    def _state_of(self, key: str) -> Mapping:
        return self.registry_["field_registries"].get(key, {}).get("state_registry", {})

    def _unlabeled_code(self) -> int | None:
        labels = self._state_of(REGISTRY_KEYS.LABELS_KEY)
        mapping = list(labels.get("categorical_mapping", []))
        unlabeled = labels.get("unlabeled_category")  # as data modules note it
        unlabeled = self.registry_["setup_args"].get("unlabeled_category", unlabeled)
        return mapping.index(unlabeled) if unlabeled in mapping else None

    @classmethod
    def as_written(cls, adata: AnnData, n_latent: int = 16, **kwargs) -> DisentangleModel:
        r"""The method exactly as it was first written; on real data it loses the biology.

        One shared encoder for two codes of equal size, squared error, the decoder reading
        ``z_nio`` freely beside the batch one-hot, and
        :math:`-\mathrm{MMD}(z_{bio}, z_{nio})` with the multi-scale kernel on L2-normalised
        codes, each term with weight 1. Train it with the default plan: input noise from 0.1 to
        0.02, warm-up of the disentanglement term. Here to be compared with: biology flees into
        ``z_nio``, at no cost to the reconstruction.

        Parameters
        ----------
        adata
            AnnData that was registered with :meth:`setup_anndata`.
        n_latent
            Dimensions of each of the two codes.
        **kwargs
            Other options of :class:`DisentangleModel`.
        """
        options = {
            "n_latent_bio": n_latent,
            "n_latent_nio": n_latent,
            "gene_likelihood": "mse",
            "encoder": "shared",
            "n_components": 0,
            "kl_weight_bio": 0.0,
            "spherical": False,
            "alignment": False,
            "input_dropout": 0.0,
            "nio_noise_factor": 1.0,
            "nio_flow": "free",
            "batch_in_decoder": True,
            "objective": {"mmd": {"weight": 1.0, "kernel": "multiscale", "normalize": True}},
            "lambda_cls": 1.0,
            "lambda_dis": 1.0,
        }
        return cls(adata, **{**options, **kwargs})


def _module_options() -> set[str]:
    return {
        name
        for name, parameter in inspect.signature(DisentangleModule.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    } - {"use_size_factor_key", "unlabeled_code"}
