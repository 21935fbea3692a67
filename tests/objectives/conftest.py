from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch import Tensor, nn

from scdisentangle.objectives import Codes, build_objectives


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def make_codes() -> Callable[..., Codes]:
    """Random codes; every field can be given."""

    def make(n: int = 40, n_bio: int = 5, n_nio: int = 5, n_batch: int = 3, **fields) -> Codes:
        encoder, decoder = nn.Linear(20, n_bio), nn.Linear(n_bio + n_nio, 20)
        defaults = {
            "z_bio": torch.randn(n, n_bio).requires_grad_(),
            "z_nio": torch.randn(n, n_nio).requires_grad_(),
            "batch": torch.arange(n) % n_batch,
            "n_batch": n_batch,
            "labels": None,
            "x": torch.rand(n, 20),
            "encode_bio": lambda x, cells: encoder(x),
            "decode": lambda z_bio, z_nio: decoder(torch.cat([z_bio, z_nio], 1)),
            "as_partner": lambda cells, partners: torch.rand(len(cells), 20),
        }
        return Codes(**(defaults | fields))

    return make


class Mixture:
    """Two batches of four cell types around fixed centres, the second batch shifted.

    With unequal composition, the first type is in the first batch only and the last type in the
    second only.
    """

    def __init__(self, *, same_composition: bool, n: int = 240, d: int = 6, shift: float = 2.5):
        generator = torch.Generator().manual_seed(1)
        centres = 2.5 * torch.randn(4, d, generator=generator)
        direction = nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
        shares = [[0.4, 0.4, 0.2, 0.0], [0.0, 0.2, 0.4, 0.4]]
        if same_composition:
            shares = [[0.25] * 4] * 2
        self.batch = torch.arange(n) % 2
        draws = [torch.multinomial(torch.tensor(p), n, True, generator=generator) for p in shares]
        self.types = torch.where(self.batch == 0, *draws)
        noise = 0.6 * torch.randn(n, d, generator=generator)
        self.z = centres[self.types] + noise + shift * self.batch.unsqueeze(1) * direction

    def leakage(self, z: Tensor) -> float:
        """Mean balanced accuracy of the batch within the types that both batches have."""
        shared = [t for t in range(4) if len(self.batch[self.types == t].unique()) == 2]
        return float(np.mean([_probe(z, self.batch, self.types == t) for t in shared]))

    def type_accuracy(self, z: Tensor) -> float:
        """Balanced accuracy of the type."""
        return _probe(z, self.types, torch.ones_like(self.types, dtype=torch.bool))

    def train(self, spec, weight: float, steps: int = 100) -> Tensor:
        """Codes of a small conditional autoencoder of the mixture, trained with an objective."""
        n, d = self.z.shape
        condition = nn.functional.one_hot(self.batch, 2).float()
        encoder = nn.Sequential(nn.Linear(d + 2, 32), nn.SiLU(), nn.Linear(32, d))
        decoder = nn.Linear(d + 2, d)
        with torch.no_grad():
            decoder.weight.copy_(torch.eye(d, d + 2))
        loss = build_objectives(spec, n_latent_bio=d, n_latent_nio=2, n_batch=2)
        estimators = list(loss.estimator_parameters())
        modules = [encoder, decoder] if estimators else [encoder, decoder, loss]
        optimizer = torch.optim.Adam(nn.ModuleList(modules).parameters(), lr=1e-2)
        fitting = torch.optim.Adam(estimators, lr=1e-2) if estimators else None
        for _ in range(steps):
            index = torch.randperm(n)[:96]
            target, one_hot = self.z[index], condition[index]
            z = target + encoder(torch.cat([target, one_hot], 1))
            codes = Codes(
                z_bio=z,
                z_nio=one_hot + 0.5 * torch.randn_like(one_hot),
                batch=self.batch[index],
                n_batch=2,
                labels=None,
                x=target,
                encode_bio=lambda x, cells: x,
                decode=lambda z_bio, z_nio: decoder(torch.cat([z_bio, z_nio], 1)),
                as_partner=lambda cells, partners, shown=target: shown[cells],
            )
            if fitting:
                fitting.zero_grad()
                loss.estimator_loss(codes).backward()
                fitting.step()
            error = (decoder(torch.cat([z, one_hot], 1)) - target).square().sum(1).mean()
            optimizer.zero_grad()
            (error + weight * sum(loss(codes).values())).backward()
            optimizer.step()
        return (self.z + encoder(torch.cat([self.z, condition], 1))).detach()


def _probe(z: Tensor, y: Tensor, cells: Tensor) -> float:
    classifier = LogisticRegression(max_iter=1000, class_weight="balanced")
    scores = cross_val_score(
        classifier, z[cells].numpy(), y[cells].numpy(), cv=3, scoring="balanced_accuracy"
    )
    return float(scores.mean())


@pytest.fixture(scope="session")
def alike() -> Mixture:
    """Batches of the same composition."""
    return Mixture(same_composition=True)


@pytest.fixture(scope="session")
def unlike() -> Mixture:
    """Batches that each lack a type of the other."""
    return Mixture(same_composition=False)
