from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from scdisentangle._errors import InputError, check_choice, check_count, check_positive, check_share

from ._base import Codes, Objective

_EXCLUDED = -1e9
CLOSE = 0.7
"""Cosine similarity to a labelled cell, from which an unlabelled one may take its label."""
OTHER_BATCH = 0.15
"""What is taken from the similarity to a cell of another batch, where labels may mean another."""
AGREED = 0.9
"""Share that a label must have among the labelled cells around an unlabelled one."""


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
    against = to_negatives.masked_fill(~negatives, -torch.inf).logsumexp(1, keepdim=True)
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
        Expression or components, shape ``(n_cells, n_dimensions)``.
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
    alike = (labels.unsqueeze(1) == labels) & (labels >= 0)
    alike.fill_diagonal_(False)
    elsewhere = alike & (batch.unsqueeze(1) != batch)
    return torch.where(elsewhere.any(1, keepdim=True), elsewhere, alike)


@torch.no_grad()
def labels_around(labels: Tensor, z_bio: Tensor, batch: Tensor) -> Tensor:
    """Labels; an unlabelled cell takes that of the labelled cells around it, where they agree.

    Parameters
    ----------
    labels
        Integers, -1 where unlabelled, shape ``(n_cells,)``.
    z_bio
        Codes, ``(n_cells, n_latent_bio)``.
    batch
        Batch of each cell, shape ``(n_cells,)``.

    Returns
    -------
    Shape ``(n_cells,)``; -1 for cells that are far from any labelled one, or between labels.

    References
    ----------
    Lee (2013), Pseudo-label: the simple and efficient semi-supervised learning method for deep
    neural networks, ICML workshop on challenges in representation learning.
    """
    unit = functional.normalize(z_bio, dim=1, eps=1e-6)
    similarity = unit @ unit.T - OTHER_BATCH * (batch.unsqueeze(1) != batch)
    similarity = similarity.masked_fill(labels < 0, _EXCLUDED)
    nearest, which = similarity.max(1)
    voted = labels[which]
    votes = (10.0 * similarity).softmax(1)
    share = (votes * (labels == voted.unsqueeze(1))).sum(1)
    taken = (labels < 0) & (nearest > CLOSE) & (share > AGREED)
    return torch.where(taken, voted, labels)


@torch.no_grad()
def random_partners(batch: Tensor, cells: Tensor) -> Tensor:
    """A random cell of another batch for some cells, or the cell itself where there is no other.

    Parameters
    ----------
    batch
        Batch of each cell, shape ``(n_cells,)``.
    cells
        Indices of the cells that need a partner, ``(n_partners,)``.

    Returns
    -------
    Index of the partner of each of them, shape ``(n_partners,)``.
    """
    elsewhere = batch[cells].unsqueeze(1) != batch
    lots = torch.rand(elsewhere.shape, device=batch.device) * elsewhere
    most, partners = lots.max(1)
    return torch.where(most > 0, partners, cells)


class Contrastive(Objective):
    r"""InfoNCE on z_bio, :func:`info_nce`, with cosine similarity over a temperature.

    A share of the cells, drawn anew in each step, is encoded a second time, through other noise and
    gene dropout; for a share of these, this second view is a counterfactual: the cell as the
    decoder shows it in the batch of a random other cell. The positive of an anchor is its own view;
    or the views of its mutual nearest neighbours in other batches; or those of cells with its
    label, of other batches where there are any. Negatives are other cells of the anchor's own
    batch, and with labels those of another label. They share the batch with the anchor, so that the
    batch is no help to tell them from the positive; and where that is a counterfactual, whatever
    z_bio says of the batch sets it back, and drains. No unlike cells are compared: a type that one
    batch alone has is pulled to nobody.

    With labels, an unlabelled cell takes the one of the labelled cells around it in the minibatch
    where these agree, :func:`labels_around`.

    The default objective, with or without labels.

    Parameters
    ----------
    positives
        ``"labels"``; ``"mnn"``; ``"views"``, an anchor's own view; or ``"auto"``, the sum of the
        terms with views and, where labels are registered, with labels.
    viewed
        Share of the cells that are encoded a second time, in (0, 1]. All are negatives of others.
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
        viewed: float = 0.25,
        counterfactual: float = 0.5,
        temperature: float = 0.2,
        n_neighbors: int = 3,
        **sizes: int,
    ) -> None:
        super().__init__(**sizes)
        check_choice("positives", positives, ("auto", "labels", "mnn", "views"))
        check_positive(temperature=temperature)
        check_count(n_neighbors=n_neighbors)
        check_share(viewed=viewed, counterfactual=counterfactual)
        check_positive(viewed=viewed)
        self.positives = positives
        self.viewed = viewed
        self.counterfactual = counterfactual if self.n_batch > 1 else 0.0
        self.temperature = temperature
        self.n_neighbors = n_neighbors

    def forward(self, codes: Codes) -> Tensor:
        """Sum of the terms, each a mean over the anchors that have a positive."""
        anchors = functional.normalize(codes.z_bio, dim=1, eps=1e-6)
        cells, seen = self._seen_again(codes)
        views = functional.normalize(codes.encode_bio(seen, cells), dim=1, eps=1e-6)
        scaled = anchors / self.temperature
        return sum(
            info_nce(scaled[of] @ views.T, positives, negatives, scaled[of] @ anchors.T)
            for of, positives, negatives in self._pairs(codes, cells)
        )

    @torch.no_grad()
    def _seen_again(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """Some cells, and their expression, or for a share of them that in another batch."""
        n = len(codes.x)
        cells = torch.randperm(n, device=codes.x.device)[: _rounded(self.viewed * n)]
        seen = codes.x[cells]
        shown = cells[: _rounded(self.counterfactual * len(cells))]
        if len(shown) > 0:
            partners = random_partners(codes.batch, shown)
            seen[: len(shown)] = codes.as_partner(shown, partners).to(seen.dtype)
        return cells, seen

    def _pairs(self, codes: Codes, viewed: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each term anchors, and masks of positives among views and negatives among cells."""
        every = torch.arange(len(codes.batch), device=codes.batch.device)
        others = (codes.batch.unsqueeze(1) == codes.batch).fill_diagonal_(False)
        if self._uses("views"):
            itself = torch.eye(len(viewed), dtype=torch.bool, device=viewed.device)
            yield viewed, itself, others[viewed]
        if self.positives == "mnn":
            near = mutual_nearest_neighbours(codes.x, codes.batch, self.n_neighbors)
            yield every, near[:, viewed], others
        if self._uses("labels") and codes.labels is not None:
            labels = labels_around(codes.labels, codes.z_bio, codes.batch)
            unlike = (labels >= 0) & (labels.unsqueeze(1) != labels)
            yield every, label_positives(labels, codes.batch)[:, viewed], others & unlike
        elif self.positives == "labels":
            raise InputError(
                "The objective 'contrastive' with positives='labels' needs cells of two labels and "
                "more, and none or one is registered. Register a labels_key in setup_anndata, or "
                "take positives='auto'."
            )

    def _uses(self, kind: str) -> bool:
        return self.positives in ("auto", kind)


def _rounded(n: float) -> int:
    """The whole number above or below, at random so that the mean is ``n``."""
    return int(n) if n == int(n) else int(n + torch.rand(()).item())
