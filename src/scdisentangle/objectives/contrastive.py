from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from scdisentangle._errors import InputError, check_choice

from ._base import (
    Codes,
    Objective,
    check_count,
    check_positive,
    differentiable_zero,
)

_EXCLUDED = -1e9


def info_nce(similarity: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    r"""InfoNCE with several positives per anchor, each against all of the anchor's negatives.

    .. math::

        L = \frac{1}{|A|} \sum_{i \in A} \frac{1}{|P_i|} \sum_{p \in P_i}
            -\log \frac{e^{s_{ip}}}{e^{s_{ip}} + \sum_{n \in N_i} e^{s_{in}}}

    over the anchors :math:`A` that have a positive.

    Parameters
    ----------
    similarity
        :math:`s`, already divided by the temperature, shape ``(n_anchors, n_candidates)``.
    positives, negatives
        Masks of the same shape.

    Returns
    -------
    Scalar in nats; 0 where no anchor has a positive.

    References
    ----------
    van den Oord et al. (2018), Representation learning with contrastive predictive coding,
    arXiv:1807.03748; Khosla et al. (2020), Supervised contrastive learning, NeurIPS.
    """
    against = similarity.masked_fill(~negatives, _EXCLUDED).logsumexp(1, keepdim=True)
    losses = functional.softplus(against - similarity)
    counts = positives.sum(1, keepdim=True)
    per_anchor = (losses * positives / counts.clamp_min(1)).sum(1)
    return per_anchor.sum() / (counts > 0).sum().clamp_min(1)


@torch.no_grad()
def mutual_nearest_neighbours(x: Tensor, batch: Tensor, n_neighbors: int) -> Tensor:
    r"""Pairs of cells of two batches that are among each other's nearest, by cosine similarity.

    Parameters
    ----------
    x
        Normalised expression, shape ``(n_cells, n_genes)``.
    batch
        Batch of each cell, shape ``(n_cells,)``.
    n_neighbors
        Neighbours that a cell may have in each other batch.

    Returns
    -------
    Symmetric mask of shape ``(n_cells, n_cells)``.

    References
    ----------
    Haghverdi et al. (2018), Batch effects in single-cell RNA-sequencing data are corrected by
    matching mutual nearest neighbors, Nature Biotechnology 36:421.
    """
    unit = functional.normalize(x, dim=1)
    similarity = unit @ unit.T
    near = torch.zeros_like(similarity, dtype=torch.bool)
    for b in batch.unique():
        members = (batch == b).nonzero().squeeze(1)
        nearest = similarity[:, members].topk(min(n_neighbors, len(members)), dim=1).indices
        near.scatter_(1, members[nearest], True)
    return near & near.T & (batch.unsqueeze(1) != batch)


def label_positives(labels: Tensor, batch: Tensor) -> Tensor:
    """Pairs of one label, in other batches where an anchor has any there, else in its own.

    Parameters
    ----------
    labels
        Integers, -1 where unlabelled, shape ``(n_cells,)``.
    batch
        Batch of each cell, shape ``(n_cells,)``.

    Returns
    -------
    Mask of shape ``(n_cells, n_cells)``, anchors in rows.
    """
    alike = _alike(labels)
    elsewhere = alike & (batch.unsqueeze(1) != batch)
    return torch.where(elsewhere.any(1, keepdim=True), elsewhere, alike)


def _alike(labels: Tensor) -> Tensor:
    pairs = (labels.unsqueeze(1) == labels) & (labels >= 0)
    return pairs.fill_diagonal_(False)


class Contrastive(Objective):
    r"""InfoNCE on z_bio, :func:`info_nce`, with cosine similarity over a temperature.

    Positives are cells of the anchor's label (of another batch where there are any), or its mutual
    nearest neighbours in other batches, or another noisy view of the anchor itself. Negatives are
    cells of the anchor's own batch without its label, so that they share the batch with the anchor
    and its batch is no shortcut to tell them from the positive.

    With labels, for annotated atlases; without, weaker, since cells of the anchor's own type are
    among its negatives.

    Parameters
    ----------
    positives
        ``"labels"``, ``"mnn"``, ``"views"``, or ``"auto"``: for each cell the first of the three
        that finds a positive.
    temperature
        Of the similarity.
    n_neighbors
        Mutual nearest neighbours per other batch.
    noise
        Standard deviation of the Gaussian noise that makes a view, in units of the normalised
        expression.
    **sizes
        As in :class:`Objective`.
    """

    def __init__(
        self,
        *,
        positives: str = "auto",
        temperature: float = 0.1,
        n_neighbors: int = 3,
        noise: float = 0.1,
        **sizes: int,
    ) -> None:
        super().__init__(**sizes)
        check_choice("positives", positives, ("auto", "labels", "mnn", "views"))
        check_positive(temperature=temperature, noise=noise)
        check_count(n_neighbors=n_neighbors)
        self.positives = positives
        self.temperature = temperature
        self.n_neighbors = n_neighbors
        self.noise = noise

    def forward(self, codes: Codes) -> Tensor:
        """Mean over the anchors that have a positive; 0 where none has."""
        n = len(codes.z_bio)
        positives = torch.zeros(n, n, dtype=torch.bool, device=codes.z_bio.device)
        negatives = (codes.batch.unsqueeze(1) == codes.batch).fill_diagonal_(False)
        if self._uses("labels") and codes.labels is not None:
            positives = label_positives(codes.labels, codes.batch)
            negatives = negatives & ~_alike(codes.labels)
        elif self.positives == "labels":
            raise InputError(
                "The objective 'contrastive' with positives='labels' needs labels. Register a "
                "labels_key in setup_anndata, or take positives='auto'."
            )
        if self._uses("mnn"):
            lacking = ~positives.any(1, keepdim=True)
            neighbours = mutual_nearest_neighbours(codes.x, codes.batch, self.n_neighbors)
            positives = positives | (lacking & neighbours)

        unit = functional.normalize(codes.z_bio, dim=1, eps=1e-6)
        similarity = unit @ unit.T
        lacking = ~positives.any(1, keepdim=True)
        if self._uses("views") and lacking.any():
            view = codes.encode_bio(codes.x + self.noise * torch.randn_like(codes.x))
            to_view = (unit * functional.normalize(view, dim=1, eps=1e-6)).sum(1, keepdim=True)
            similarity = torch.cat([similarity, to_view], 1)
            positives = torch.cat([positives, lacking], 1)
            negatives = torch.cat([negatives, torch.zeros_like(lacking)], 1)
        if not positives.any():
            return differentiable_zero(codes.z_bio)
        return info_nce(similarity / self.temperature, positives, negatives)

    def _uses(self, kind: str) -> bool:
        return self.positives in ("auto", kind)
