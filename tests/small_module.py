"""A module small enough for any test, and a minibatch for it."""

import torch
from scvi import REGISTRY_KEYS

from scdisentangle import DisentangleModule

N_CELLS, N_GENES, N_BATCH = 24, 10, 3


def minibatch():
    generator = torch.Generator().manual_seed(0)
    return {
        REGISTRY_KEYS.X_KEY: torch.poisson(
            torch.full((N_CELLS, N_GENES), 5.0), generator=generator
        ),
        REGISTRY_KEYS.BATCH_KEY: torch.arange(N_CELLS).remainder(N_BATCH).unsqueeze(1),
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(N_CELLS, 1, dtype=torch.long),
    }


def make(**kwargs):
    torch.manual_seed(0)
    sizes = {"n_latent_bio": 4, "n_latent_nio": 3, "n_hidden": 16, "objective": None}
    sizes |= {"nio_flow": "detached", "input_dropout": 0.0, "kl_weight_bio": 0.0}
    return DisentangleModule(N_GENES, N_BATCH, **{**sizes, **kwargs})


def gradient_norm(parameters):
    return sum(0.0 if p.grad is None else p.grad.abs().sum().item() for p in parameters)
