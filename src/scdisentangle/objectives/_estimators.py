from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Multi-layer perceptron with two smooth hidden layers, which has second derivatives."""
    return nn.Sequential(
        nn.Linear(n_in, n_hidden),
        nn.SiLU(),
        nn.Linear(n_hidden, n_hidden),
        nn.SiLU(),
        nn.Linear(n_hidden, n_out),
    )


def frozen_call(module: nn.Module, *inputs: Tensor) -> Any:
    """Call ``module`` so that gradients reach the inputs but not its parameters."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, parameters, inputs)


def standardise(z: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Mean 0 and variance 1 in every dimension over the minibatch, shape of ``z``.

    Gradients flow through the mean and the scale, so that an objective of the standardised code
    cannot be lowered by shrinking or stretching the code. A dimension without variance gives 0.
    """
    centred = z - z.mean(0)
    return centred * (centred.square().mean(0) + eps).rsqrt()
