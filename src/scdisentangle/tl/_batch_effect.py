from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scdisentangle._model import DisentangleModel
from scdisentangle._registration import measurements

from ._checks import check_is_model

_SMALLEST_SHARE = 1e-8


def batch_effect(model: DisentangleModel, *, max_cells: int = 2000, seed: int = 0) -> pd.DataFrame:
    r"""What the batch does to each gene, as the decoder has learned it.

    The same cells, with their ``z_bio``, are decoded as if they came from each batch in turn
    (``model.get_normalized_expression(transform_batch=…)``). Composition plays no part in it.

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
        Seed of the draw, and of draws from a variational ``z_bio``.

    Returns
    -------
    Genes by batches; each row sums to 0. In log2 units for counts, and ``attrs["unit"]`` says so.

    Raises
    ------
    InputError
        If the model holds no cells, because it was made from a registry, or there is no model.

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
    check_is_model(model)
    adata = model.adata
    state = model.registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]
    present = np.unique(model.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY))
    batches = [state["categorical_mapping"][number] for number in present]
    cells = np.sort(np.random.default_rng(seed).permutation(adata.n_obs)[:max_cells])
    counts = model.module.fits_counts
    device = model.module.gene_shifts.shifts.device
    means = {}
    for batch in batches:
        on_cpu = device.type == "cpu"  # where no GPU is seeded, either
        with torch.random.fork_rng([] if on_cpu else range(torch.cuda.device_count())):
            # the same draw of a variational code for each batch
            (torch.default_generator if on_cpu else torch).manual_seed(seed)
            values = model.get_normalized_expression(
                indices=cells, transform_batch=[batch], return_numpy=True, silent=True
            )
        if counts:
            values = np.log2(np.maximum(values, _SMALLEST_SHARE))
        means[str(batch)] = values.mean(axis=0, dtype=np.float64)
    genes = measurements(adata, model.registry["setup_args"])[0].var_names
    table = pd.DataFrame(means, index=genes)
    effect = table.sub(table.mean(axis=1), axis=0)
    if counts:
        effect.attrs["unit"] = "log2"
    return effect
