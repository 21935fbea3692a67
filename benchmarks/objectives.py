"""Time one training step of the module with and without each objective; print a Markdown table.

The step is forward, loss, backward and Adam of :class:`~scdisentangle.DisentangleModule` with its
defaults (2,000 genes, 4 batches, counts of which 10 % are not zero), and the fit of the objective's
own estimator where it has one.

    python benchmarks/objectives.py --repeats 30
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from scvi import REGISTRY_KEYS

from scdisentangle import DisentangleModule
from scdisentangle.objectives import OBJECTIVES

N_GENES, N_BATCH = 2000, 4


def minibatch(n_cells: int) -> dict[str, torch.Tensor]:
    """Counts and batches of so many cells, as scvi-tools' data loaders give them."""
    counts = torch.poisson(torch.distributions.Gamma(0.2, 1.0).sample((n_cells, N_GENES)))
    return {
        REGISTRY_KEYS.X_KEY: counts * (torch.rand_like(counts) < 0.85),
        REGISTRY_KEYS.BATCH_KEY: (torch.arange(n_cells) % N_BATCH).unsqueeze(1),
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(n_cells, 1),
    }


def make_step(objective: str | None, tensors: dict[str, torch.Tensor]) -> Callable[[], None]:
    """One training step of a module with this objective, or with none."""
    torch.manual_seed(0)
    # The two codes of -MMD have one size.
    sizes = {"n_latent_nio": 30} if objective == "mmd" else {}
    module = DisentangleModule(N_GENES, N_BATCH, objective=objective, **sizes).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def step() -> None:
        _, _, losses = module(tensors, inference_kwargs={"noise_level": 0.1})
        optimizer.zero_grad()
        (losses.loss + losses.extra_metrics.get("estimator_loss", 0.0)).backward()
        optimizer.step()

    return step


def interleaved_medians(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each step, taken in turns so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--minibatch", type=int, nargs="+", default=[128, 1024])
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so that processor time, which a busy machine leaves alone, is time

    table = {}
    for n_cells in arguments.minibatch:
        tensors = minibatch(n_cells)
        steps = {name: make_step(name, tensors) for name in (None, *OBJECTIVES)}
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
