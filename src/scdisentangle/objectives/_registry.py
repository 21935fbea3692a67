from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, TypeAlias

from torch import Tensor, nn

from scdisentangle._errors import (
    InputError,
    argument_names,
    check_not_negative,
    check_options,
    did_you_mean,
)

from ._base import Codes, Objective
from .adversary import BatchAdversary
from .contrastive import Contrastive
from .gradient_penalty import GradientPenalty
from .hsic import BatchHSIC, CodeCKA, CodeHSIC, LocalBatchHSIC
from .mmd import BatchMMD, CodeMMD, LocalBatchMMD
from .mutual_information import MutualInformation

OBJECTIVES: dict[str, type[Objective]] = {
    "mmd": CodeMMD,
    "batch_mmd": BatchMMD,
    "local_batch_mmd": LocalBatchMMD,
    "hsic": CodeHSIC,
    "cka": CodeCKA,
    "batch_hsic": BatchHSIC,
    "local_batch_hsic": LocalBatchHSIC,
    "mutual_information": MutualInformation,
    "gradient_penalty": GradientPenalty,
    "contrastive": Contrastive,
    "adversary": BatchAdversary,
}

ObjectiveSpec: TypeAlias = "str | Mapping[str, float | Mapping[str, Any]] | None"


class DisentanglementLoss(nn.Module):
    """Several objectives, each with a name and a weight.

    Parameters
    ----------
    objectives
        Objectives by name.
    weights
        Weight of each in the total loss.
    """

    def __init__(self, objectives: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.objectives = nn.ModuleDict(objectives)
        self.weights = dict(weights)

    def forward(self, codes: Codes) -> dict[str, Tensor]:
        """Raw value of each objective by name, before its weight."""
        return {name: objective(codes) for name, objective in self.objectives.items()}

    def estimator_loss(self, codes: Codes) -> Tensor:
        """Sum of the losses that fit the objectives' own estimators."""
        losses = (objective.estimator_loss(codes) for objective in self.objectives.values())
        return sum(losses, start=codes.z_bio.new_zeros(()))

    def estimator_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the objectives' own estimators, for an optimiser of their own."""
        return chain.from_iterable(o.estimator_parameters() for o in self.objectives.values())

    @property
    def has_estimators(self) -> bool:
        """Whether any objective has an estimator to fit."""
        return next(self.estimator_parameters(), None) is not None


def build_objectives(
    spec: ObjectiveSpec, *, n_latent_bio: int, n_latent_nio: int, n_batch: int
) -> DisentanglementLoss:
    """Build the objectives that a specification names.

    Parameters
    ----------
    spec
        ``None`` for none; a name, with weight 1; or a mapping of names to weights, or to options
        with an optional ``"weight"`` (1 by default) among them.
    n_latent_bio
        Dimensions of ``z_bio``.
    n_latent_nio
        Dimensions of ``z_nio``.
    n_batch
        Number of batches.

    Raises
    ------
    InputError
        If a name, an option or a weight is not valid, or an objective cannot serve the sizes.

    Examples
    --------
    >>> sizes = dict(n_latent_bio=30, n_latent_nio=8, n_batch=3)
    >>> loss = build_objectives({"hsic": 0.2, "local_batch_hsic": {"n_clusters": 5}}, **sizes)
    >>> loss.weights
    {'hsic': 0.2, 'local_batch_hsic': 1.0}
    """
    sizes = {"n_latent_bio": n_latent_bio, "n_latent_nio": n_latent_nio, "n_batch": n_batch}
    objectives, weights = {}, {}
    for name, value in _as_mapping(spec).items():
        if name not in OBJECTIVES:
            raise InputError(f"Unknown objective {name!r}. {did_you_mean(str(name), OBJECTIVES)}")
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = options.pop("weight", 1.0)
        check_not_negative(**{f"weight of the objective {name!r}": weight})
        weights[name] = float(weight)
        known = ["weight", *_option_names(OBJECTIVES[name])]
        check_options(options, known, f"{name!r} objective")
        objectives[name] = OBJECTIVES[name](**options, **sizes)
    return DisentanglementLoss(objectives, weights)


def _as_mapping(spec: ObjectiveSpec) -> Mapping[str, Any]:
    if spec is None:
        return {}
    if isinstance(spec, str):
        return {spec: 1.0}
    if isinstance(spec, Mapping):
        return spec
    raise InputError(
        "The objective must be None, a name, or a mapping of names to weights or options, "
        f"not {spec!r}."
    )


def _option_names(objective: type[Objective]) -> set[str]:
    """Keywords of the class and its bases, without the sizes that the builder passes."""
    kinds = [cls for cls in objective.__mro__ if issubclass(cls, Objective)]
    return argument_names(*kinds) - argument_names(Objective)
