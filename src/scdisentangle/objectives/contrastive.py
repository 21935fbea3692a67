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
    check_share,
)

_EXCLUDED = -1e9


def info_nce(
    similarity: Tensor, positives: Tensor, negatives: Tensor, to_negatives: Tensor | None = None
) -> Tensor:
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
        Masks of the same shape; that of negatives has the shape of ``to_negatives`` if given.
    to_negatives
        Similarity to the candidates for negatives, where they are others than for positives.

    Returns
    -------
    Scalar in nats; 0 where no anchor has a positive.

    References
    ----------
    van den Oord et al. (2018), Representation learning with contrastive predictive coding,
    arXiv:1807.03748; Khosla et al. (2020), Supervised contrastive learning, NeurIPS.
    """
    to_negatives = similarity if to_negatives is None else to_negatives
    against = to_negatives.masked_fill(~negatives, _EXCLUDED).logsumexp(1, keepdim=True)
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


@torch.no_grad()
def random_partners(batch: Tensor) -> Tensor:
    """A random cell of another batch for each cell, or the cell itself where there is no other.

    Parameters
    ----------
    batch
        Batch of each cell, shape ``(n_cells,)``.

    Returns
    -------
    Index of the partner of each cell, shape ``(n_cells,)``.
    """
    elsewhere = batch.unsqueeze(1) != batch
    lots = torch.rand(elsewhere.shape, device=batch.device) * elsewhere
    return torch.where(elsewhere.any(1), lots.argmax(1), torch.arange(len(batch)).to(batch))


class Contrastive(Objective):
    r"""InfoNCE on z_bio, :func:`info_nce`, with cosine similarity over a temperature.

    Every cell is encoded a second time, through other noise and gene dropout; for a share of them,
    drawn anew in each step, this second view is a counterfactual: the cell as the decoder shows it
    in the batch of a random other cell. The positives of an anchor are the views of cells with its
    label (of another batch where there are any), or of its mutual nearest neighbours in other
    batches, or of itself. Negatives are the other cells of the anchor's own batch, without its
    label; where the positives are by label, of those with another one, since cells without any may
    have the anchor's. They share the batch with the anchor, so that the batch is no help to tell
    them from the positive; and where that is a counterfactual, whatever z_bio says of the batch
    sets it back, and drains. No unlike cells are compared: a type that one batch alone has meets
    nobody.

    The default objective, with or without labels.

    Parameters
    ----------
    positives
        ``"labels"``; ``"mnn"``; ``"views"``, an anchor's own view; or ``"auto"``, labels for
        cells that have a positive by label and views for all others.
    counterfactual
        Share of the views that show the cell in another batch, in [0, 1].
    temperature
        Of the similarity.
    n_neighbors
        Mutual nearest neighbours per other batch.
    **sizes
        As in :class:`Objective`.
    """

    def __init__(
        self,
        *,
        positives: str = "auto",
        counterfactual: float = 0.5,
        temperature: float = 0.2,
        n_neighbors: int = 3,
        **sizes: int,
    ) -> None:
        super().__init__(**sizes)
        check_choice("positives", positives, ("auto", "labels", "mnn", "views"))
        check_positive(temperature=temperature)
        check_count(n_neighbors=n_neighbors)
        check_share(counterfactual=counterfactual)
        self.positives = positives
        self.counterfactual = counterfactual if self.n_batch > 1 else 0.0
        self.temperature = temperature
        self.n_neighbors = n_neighbors

    def forward(self, codes: Codes) -> Tensor:
        """Mean over the anchors that have a positive; 0 where none has."""
        positives, negatives = self._pairs(codes)
        anchors = functional.normalize(codes.z_bio, dim=1, eps=1e-6)
        views = functional.normalize(codes.encode_bio(self._seen_again(codes)), dim=1, eps=1e-6)
        scaled = anchors / self.temperature
        return info_nce(scaled @ views.T, positives, negatives, to_negatives=scaled @ anchors.T)

    @torch.no_grad()
    def _seen_again(self, codes: Codes) -> Tensor:
        """Expression of each cell, or for a share of them that in another batch, a constant."""
        if self.counterfactual == 0:
            return codes.x
        n = len(codes.x)
        n_shown = int(self.counterfactual * n + torch.rand(()).item())
        cells = torch.randperm(n, device=codes.x.device)[:n_shown]
        shown = codes.as_partner(cells, random_partners(codes.batch)[cells])
        return codes.x.index_copy(0, cells, shown.to(codes.x.dtype))

    def _pairs(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """Masks of positives among views and of negatives among anchors, anchors in rows."""
        itself = torch.eye(len(codes.batch), dtype=torch.bool, device=codes.batch.device)
        positives = torch.zeros_like(itself)
        negatives = (codes.batch.unsqueeze(1) == codes.batch) & ~itself
        if self._uses("labels") and codes.labels is not None:
            positives = label_positives(codes.labels, codes.batch)
            by_label = positives.any(1, keepdim=True)
            negatives = negatives & ~_alike(codes.labels) & ~(by_label & (codes.labels < 0))
        elif self.positives == "labels":
            raise InputError(
                "The objective 'contrastive' with positives='labels' needs labels. Register a "
                "labels_key in setup_anndata, or take positives='auto'."
            )
        if self.positives == "mnn":
            positives = mutual_nearest_neighbours(codes.x, codes.batch, self.n_neighbors)
        if self._uses("views"):
            positives = positives | (~positives.any(1, keepdim=True) & itself)
        return positives, negatives

    def _uses(self, kind: str) -> bool:
        return self.positives in ("auto", kind)
