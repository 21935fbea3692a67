"""Time one training step with and without each objective, and print a Markdown table.

The plain step is forward, backward and Adam of an encoder and a decoder (2,000 genes, 128 hidden
units, z_bio of 30 and z_nio of 8 dimensions). With an objective, the step also takes its value and
gradient, and fits its estimator where it has one.

    python benchmarks/objectives.py --threads 2 --repeats 30
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from scdisentangle.objectives import OBJECTIVES, Codes, build_objectives, squared_error

N_GENES, N_HIDDEN, N_BATCH = 2000, 128, 4
N_LATENT = {"n_latent_bio": 30, "n_latent_nio": 8}


def make_step(objective: str | None, n_cells: int) -> Callable[[], None]:
    torch.manual_seed(0)
    n_bio, n_nio = N_LATENT.values()
    if objective == "mmd":  # defined for codes of one size only
        n_nio = n_bio
    encoder = nn.Sequential(
        nn.Linear(N_GENES, N_HIDDEN), nn.ReLU(), nn.Linear(N_HIDDEN, n_bio + n_nio)
    )
    decoder = nn.Sequential(
        nn.Linear(n_bio + n_nio, N_HIDDEN), nn.ReLU(), nn.Linear(N_HIDDEN, N_GENES)
    )
    loss = build_objectives(objective, n_latent_bio=n_bio, n_latent_nio=n_nio, n_batch=N_BATCH)
    estimator = list(loss.estimator_parameters())
    known = {id(parameter) for parameter in estimator}
    main = [p for p in nn.ModuleList([encoder, decoder, loss]).parameters() if id(p) not in known]
    optimizer = torch.optim.Adam(main, lr=1e-3)
    estimator_optimizer = torch.optim.Adam(estimator, lr=1e-3) if estimator else None
    x = torch.rand(n_cells, N_GENES)
    batch = torch.arange(n_cells) % N_BATCH

    def step() -> None:
        z_bio, z_nio = encoder(x).split([n_bio, n_nio], 1)
        codes = Codes(
            z_bio=z_bio,
            z_nio=z_nio,
            batch=batch,
            n_batch=N_BATCH,
            labels=None,
            x=x,
            encode_bio=lambda view: encoder(view)[:, :n_bio],
            decode=lambda bio, nio: decoder(torch.cat([bio, nio], 1)),
        )
        if estimator_optimizer:
            estimator_optimizer.zero_grad()
            loss.estimator_loss(codes).backward()
            estimator_optimizer.step()
        optimizer.zero_grad()
        total = squared_error(codes.decode(z_bio, z_nio), x).mean() + sum(loss(codes).values())
        total.backward()
        optimizer.step()

    return step


def interleaved_medians(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each step, taken in turns so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--minibatch", type=int, nargs="+", default=[128, 1024])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    table = {}
    for n_cells in arguments.minibatch:
        steps = {name: make_step(name, n_cells) for name in (None, *OBJECTIVES)}
        table[n_cells] = interleaved_medians(steps, arguments.repeats)

    print("| objective | " + " | ".join(f"ms at {n} | +%" for n in table) + " |")
    print("| --- |" + " ---: |" * (2 * len(table)))
    for name in (None, *OBJECTIVES):
        cells = (
            f"{column[name]:.1f} | {100 * (column[name] / column[None] - 1):.0f}"
            for column in table.values()
        )
        print(f"| {name or 'none'} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
