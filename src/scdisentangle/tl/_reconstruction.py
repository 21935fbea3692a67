"""What each code contributes to the reconstruction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scdisentangle._likelihoods import reconstruction_loss
from scdisentangle._model import DisentangleModel


@torch.inference_mode()
def reconstruction_shares(
    model: DisentangleModel, *, max_cells: int = 2000, seed: int = 0
) -> dict[str, float]:
    r"""Share of the reconstruction that each code explains; the two add up to 1.

    With :math:`E_{11}` the reconstruction error, :math:`E_{01}` the error where each cell is given
    the ``z_bio`` of another, :math:`E_{10}` where it is given the ``z_nio`` and the batch of
    another, and :math:`E_{00}` where it is given both (of two different cells),

    .. math::

        \mathrm{share}(z_{bio}) =
        \frac{\tfrac12 (E_{00} - E_{10}) + \tfrac12 (E_{01} - E_{11})}{E_{00} - E_{11}},

    the Shapley value of the code: what it adds alone and what it adds last, averaged. The batch
    that the decoder is given goes with ``z_nio``.

    Parameters
    ----------
    model
        Trained.
    max_cells
        A random draw of so many of the model's cells, if there are more.
    seed
        Seed of the draw, and of who is given whose code.

    Returns
    -------
    ``{"z_bio": …, "z_nio": …}``, both NaN where the codes explain nothing.

    References
    ----------
    Shapley (1953), A value for n-person games, Contributions to the Theory of Games 2.
    """
    rng = np.random.default_rng(seed)
    cells = rng.permutation(model.adata.n_obs)[:max_cells]
    module = model.module
    module.eval()
    errors = {(bio, nio): 0.0 for bio in (True, False) for nio in (True, False)}
    for tensors in model._make_data_loader(adata=model.adata, indices=cells):
        inputs = module._get_inference_input(tensors, full_forward_pass=True)
        inferred = module.inference(**inputs)
        own = module._get_generative_input(tensors, inferred)
        n = len(own["z_bio"])
        of_bio, of_nio = others(n, rng)
        target = module.likelihood_target(tensors, inferred)
        for own_bio, own_nio in errors:
            given = dict(own)
            if not own_bio:
                given["z_bio"] = own["z_bio"][of_bio]
            if not own_nio:
                given["z_nio"] = own["z_nio"][of_nio]
                given["batch_index"] = own["batch_index"][of_nio]
            px = module.generative(**given)["px"]
            loss = reconstruction_loss(module.gene_likelihood, px, target.to(px.mean.device))
            errors[own_bio, own_nio] += float(loss.sum())
    explained = errors[False, False] - errors[True, True]
    if explained <= 0:
        return {"z_bio": float("nan"), "z_nio": float("nan")}
    alone = errors[False, False] - errors[True, False]
    last = errors[False, True] - errors[True, True]
    share = (alone + last) / (2 * explained)
    return {"z_bio": share, "z_nio": 1.0 - share}


def others(n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """For each of ``n`` cells two other ones, ``(n,)`` each, and each cell once in either."""
    in_a_ring = torch.as_tensor(rng.permutation(n))
    after, before = torch.empty_like(in_a_ring), torch.empty_like(in_a_ring)
    after[in_a_ring], before[in_a_ring] = in_a_ring.roll(-1), in_a_ring.roll(1)
    return after, before
