from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scdisentangle._errors import InputError
from scdisentangle._likelihoods import COUNT_LIKELIHOODS

if TYPE_CHECKING:
    from scdisentangle import DisentangleModel

_SMALLEST_SHARE = 1e-8


@torch.inference_mode()
def batch_effect(model: DisentangleModel, *, max_cells: int = 2000, seed: int = 0) -> pd.DataFrame:
    r"""What the batch does to each gene, as the decoder has learned it.

    The same cells, with their ``z_bio``, are decoded as if they came from each batch in turn: with
    the mean ``z_nio`` of that batch, and the batch itself. Composition plays no part in it.

    .. math::

        \beta_{gb} = \frac{1}{N} \sum_i \left( \log_2 \hat x_{ig}^{(b)}
            - \frac{1}{B} \sum_{b'} \log_2 \hat x_{ig}^{(b')} \right)

    with :math:`\hat x^{(b)}` the share of the gene in the cell's counts. Under
    ``gene_likelihood="mse"`` and ``"normal"``, values are on the normalised scale already, and are
    taken without a logarithm.

    Parameters
    ----------
    model
        Trained.
    max_cells
        A random draw of so many of the model's cells, if there are more.
    seed
        Seed of the draw.

    Returns
    -------
    Genes by batches; each row sums to 0. In log2 units for counts.

    Raises
    ------
    InputError
        If the model holds no cells, because it was made from a registry.

    Examples
    --------
    >>> import scdisentangle as sd
    >>> adata = sd.data.simulated(n_cells=200, n_genes=100)
    >>> sd.DisentangleModel.setup_anndata(adata, batch_key="batch")
    >>> model = sd.DisentangleModel(adata)
    >>> model.train(max_epochs=2)
    >>> sd.tl.batch_effect(model).shape
    (100, 3)
    """
    adata = model.adata
    if adata is None:
        raise InputError("The model was made from a registry and holds no cells to decode.")
    module = model.module
    module.eval()
    state = model.registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]
    codes = _mean_codes(model)
    batches = [str(state["categorical_mapping"][number]) for number in codes]
    cells = np.random.default_rng(seed).permutation(adata.n_obs)[:max_cells]
    totals = np.zeros((len(batches), adata.n_vars))
    for tensors in model._make_data_loader(adata=adata, indices=cells):
        inferred = module.inference(**module._get_inference_input(tensors))
        own = module._get_generative_input(tensors, inferred)
        for row, (number, code) in enumerate(codes.items()):
            given = dict(own)
            given["z_nio"] = code.to(own["z_nio"].device).expand_as(own["z_nio"])
            given["batch_index"] = torch.full_like(own["batch_index"], number)
            px = module.generative(**given)["px"]
            if module.gene_likelihood in COUNT_LIKELIHOODS:
                values = (px.mean / given["library"].exp().to(px.mean.device)).double()
                values = values.clamp_min(_SMALLEST_SHARE).log2()
            else:
                values = px.mean.double()
            totals[row] += values.sum(dim=0).cpu().numpy()
    effect = (totals - totals.mean(axis=0)) / len(cells)
    return pd.DataFrame(effect.T, index=adata.var_names, columns=batches)


def _mean_codes(model: DisentangleModel) -> dict[int, torch.Tensor]:
    """Mean ``z_nio`` of each batch that has cells, by the number of the batch."""
    code = torch.as_tensor(model.get_latent_representation(representation="batch"))
    batch = np.asarray(model.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).ravel()
    return {int(number): code[batch == number].mean(dim=0) for number in np.unique(batch)}
