from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def batch_cross_entropy(logits: Tensor, batch: Tensor, balanced: bool = False) -> Tensor:
    r"""Cross-entropy of the batch given logits, averaged over cells or over batches.

    .. math::

        \ell_i = -\log \mathrm{softmax}(l_i)_{b_i}, \qquad
        L = \frac{1}{N} \sum_i \ell_i
        \quad \text{or} \quad
        L_\text{balanced} = \frac{1}{|B|} \sum_{b \in B} \frac{1}{N_b} \sum_{i: b_i = b} \ell_i

    where :math:`B` are the batches present in the minibatch. The softmax is part of the loss: the
    classifier returns plain logits.

    Parameters
    ----------
    logits
        Shape ``(n_cells, n_batch)``.
    batch
        Batch of each cell, integers, shape ``(n_cells,)``.
    balanced
        Give every batch of the minibatch the same weight, whatever its number of cells. For batches
        of very unequal size.

    Returns
    -------
    Scalar in nats.

    Examples
    --------
    A classifier that knows nothing of two batches loses log 2:

    >>> import torch
    >>> from scdisentangle.objectives import batch_cross_entropy
    >>> round(float(batch_cross_entropy(torch.zeros(4, 2), torch.tensor([0, 1, 1, 1]))), 4)
    0.6931
    """
    if not balanced:
        return functional.cross_entropy(logits, batch)
    counts = functional.one_hot(batch, logits.shape[-1]).sum(dim=0)
    weights = 1.0 / counts.clamp_min(1)
    # with class weights, the mean is the weighted one: sum_i w_i l_i / sum_i w_i
    return functional.cross_entropy(logits, batch, weight=weights.to(logits.dtype))
