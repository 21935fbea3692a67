from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch.nn import functional

from scdisentangle import InputError
from scdisentangle.objectives import build_objectives
from scdisentangle.objectives.contrastive import (
    _rounded,
    info_nce,
    label_positives,
    labels_around,
    mutual_nearest_neighbours,
    random_partners,
)

SIZES = {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 3}


def test_info_nce_equals_a_loop():
    similarity = torch.randn(6, 7).double()
    positives, negatives = torch.rand(6, 7) < 0.3, torch.rand(6, 7) < 0.5
    positives[0] = False  # no anchor
    negatives[1] = False  # nothing against it
    losses = []
    for i in range(6):
        against = sum(np.exp(similarity[i, j].item()) for j in range(7) if negatives[i, j])
        terms = [
            -np.log(np.exp(similarity[i, j].item()) / (np.exp(similarity[i, j].item()) + against))
            for j in range(7)
            if positives[i, j]
        ]
        if terms:
            losses.append(np.mean(terms))
    assert info_nce(similarity, positives, negatives).item() == pytest.approx(np.mean(losses))


def test_info_nce_with_one_positive_is_the_cross_entropy():
    similarity = torch.randn(5, 8).double()
    positives = torch.zeros(5, 8, dtype=torch.bool)
    positives[:, 0] = True
    expected = functional.cross_entropy(similarity, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(info_nce(similarity, positives, ~positives), expected)


def test_info_nce_takes_negatives_among_other_candidates():
    to_positives, to_negatives = torch.randn(6, 4).double(), torch.randn(6, 7).double()
    positives, negatives = torch.rand(6, 4) < 0.5, torch.rand(6, 7) < 0.5
    value = info_nce(to_positives, positives, negatives, to_negatives)
    together = info_nce(
        torch.cat([to_positives, to_negatives], dim=1),
        torch.cat([positives, torch.zeros_like(negatives)], dim=1),
        torch.cat([torch.zeros_like(positives), negatives], dim=1),
    )
    torch.testing.assert_close(value, together)


def test_info_nce_gradient_equals_finite_differences():
    similarity = torch.randn(4, 5, dtype=torch.double, requires_grad=True)
    positives, negatives = torch.rand(4, 5) < 0.4, torch.rand(4, 5) < 0.5
    assert torch.autograd.gradcheck(lambda s: info_nce(s, positives, negatives), similarity)


def test_an_anchor_without_negatives_has_no_gradient():
    similarity = torch.randn(3, 4, requires_grad=True)
    negatives = torch.ones(3, 4, dtype=torch.bool)
    negatives[1] = False
    info_nce(similarity, torch.ones_like(negatives), negatives).backward()
    assert similarity.grad.isfinite().all()
    assert torch.equal(similarity.grad.any(dim=1), torch.tensor([True, False, True]))


def test_mutual_nearest_neighbours_equal_scikit_learn():
    x, batch = torch.rand(60, 10), torch.arange(60) % 3
    found = mutual_nearest_neighbours(x, batch, 4).numpy()
    near = np.zeros((60, 60), dtype=bool)
    for b in range(3):
        members = np.flatnonzero(batch == b)
        search = NearestNeighbors(n_neighbors=4, metric="cosine").fit(x[members])
        for i, nearest in enumerate(search.kneighbors(x, return_distance=False)):
            near[i, members[nearest]] = True
    expected = near & near.T & (batch[:, None] != batch).numpy()
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


def test_label_positives_prefer_other_batches():
    labels = torch.tensor([0, 0, 0, 1, 1, -1, -1])
    batch = torch.tensor([0, 0, 1, 0, 0, 0, 1])
    expected = {(0, 2), (1, 2), (2, 0), (2, 1), (3, 4), (4, 3)}
    assert {tuple(pair) for pair in label_positives(labels, batch).nonzero().tolist()} == expected


def test_positives_are_as_many_mutual_neighbours_as_are_asked_for(make_codes):
    """All views are of all cells, so that the loss is that of scikit-learn's mutual neighbours."""
    batch = torch.arange(40) % 2
    x, z_bio = torch.rand(40, 6), torch.randn(40, 5)
    losses = {}
    for k in (1, 4):
        spec = {
            "contrastive": {
                "positives": "mnn",
                "n_neighbors": k,
                "viewed": 1.0,
                "counterfactual": 0.0,
                "temperature": 0.5,
            }
        }
        codes = make_codes(
            n=40, batch=batch, x=x, z_bio=z_bio, encode_bio=lambda _, cells: z_bio[cells]
        )
        losses[k] = build_objectives(spec, **SIZES)(codes)["contrastive"]
        unit, near = functional.normalize(x, dim=1).numpy(), np.zeros((40, 40), dtype=bool)
        for one, other in ((0, 1), (1, 0)):
            rows, columns = (np.flatnonzero(batch == b) for b in (one, other))
            found = NearestNeighbors(n_neighbors=k).fit(unit[columns]).kneighbors(unit[rows])[1]
            near[rows[:, None], columns[found]] = True
        positives = torch.tensor(near & near.T)
        z = functional.normalize(z_bio, dim=1)
        similarity = (z @ z.T / 0.5).exp()
        negatives = (batch[:, None] == batch).fill_diagonal_(False)
        against = (similarity * negatives).sum(1, keepdim=True)
        terms = -(similarity / (similarity + against)).log() * positives
        has = positives.any(1)
        expected = (terms.sum(1) / positives.sum(1).clamp(min=1))[has].mean()
        assert losses[k].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses[1] != losses[4]


@pytest.mark.parametrize("positives", ["labels", "mnn"])
def test_the_batch_is_no_shortcut(make_codes, positives):
    """A code of the batch costs more than a random one, a code of the type almost nothing."""
    batch, types = torch.arange(90) % 3, torch.arange(90) // 3 % 5
    x = torch.rand(90, 20) * 0.1 + 3.0 * functional.one_hot(types, 20)
    spec = {"contrastive": {"positives": positives, "temperature": 0.1}}
    objective = build_objectives(spec, **SIZES)

    def loss(z_bio):
        codes = make_codes(
            n=90,
            batch=batch,
            labels=types,
            x=x,
            z_bio=z_bio,
            encode_bio=lambda _, cells: z_bio[cells],
        )
        return objective(codes)["contrastive"].item()

    noise = 0.01 * torch.randn(90, 5)
    of_batch = loss(functional.one_hot(batch, 5) + noise)
    of_type = loss(functional.one_hot(types, 5) + noise)
    assert of_batch > loss(torch.randn(90, 5)) > of_type
    if positives == "labels":
        assert of_type < 0.01


def test_brings_types_together_across_batches(make_codes):
    batch, types = torch.arange(120) % 2, torch.arange(120) // 2 % 4
    z = torch.randn(120, 5) + 0.5 * functional.one_hot(types, 5) + 3.0 * batch[:, None]
    z = z.requires_grad_()
    codes = make_codes(
        n=120, batch=batch, labels=types, z_bio=z, encode_bio=lambda _, cells: z[cells]
    )

    def transfer():
        found = z.detach().numpy()
        classifier = KNeighborsClassifier(5).fit(found[batch == 0], types[batch == 0])
        return classifier.score(found[batch == 1], types[batch == 1])

    assert transfer() < 0.5
    objective = build_objectives("contrastive", **SIZES)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        objective(codes)["contrastive"].backward()
        optimizer.step()
    assert transfer() > 0.9


def test_labels_of_the_cells_around():
    """Angles on a circle; a cell of the other batch counts as 0.15 less alike."""
    degrees = torch.tensor([0.0, 5, 90, 95, 8, 45, 91, 180, 30, 30])
    z_bio = torch.stack([torch.cos(degrees.deg2rad()), torch.sin(degrees.deg2rad())], dim=1)
    labels = torch.tensor([0, 0, 1, 1, -1, -1, -1, -1, -1, -1])
    batch = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    found = labels_around(labels, 3.0 * z_bio, batch)
    expected = labels.clone()
    expected[4], expected[6], expected[8], expected[9] = 0, 1, 0, 0  # 45 is between, 180 is far
    assert found.tolist() == expected.tolist()
    far = torch.tensor([0.0, 40.0]).deg2rad()  # cosine 0.77, with another batch 0.62
    z_bio = torch.stack([torch.cos(far), torch.sin(far)], dim=1)
    for other, label in ((0, 3), (1, -1)):
        found = labels_around(torch.tensor([3, -1]), z_bio, torch.tensor([0, other]))
        assert found.tolist() == [3, label]
    nobody = torch.full((2,), -1)
    assert labels_around(nobody, z_bio, nobody).tolist() == [-1, -1]


def test_cells_are_told_by_label_from_those_of_another_label_only(make_codes):
    """By hand: cells 0 and 1 share a label, cell 3 has none, and is no negative of theirs."""
    z_bio, views = torch.eye(5), torch.rand(5, 5)
    codes = make_codes(
        n=5,
        batch=torch.zeros(5, dtype=torch.long),
        labels=torch.tensor([0, 0, 1, -1, 2]),
        z_bio=z_bio,
        encode_bio=lambda _, cells: views[cells],
    )
    spec = {"contrastive": {"positives": "labels", "viewed": 1.0}}
    value = build_objectives(spec, **SIZES | {"n_batch": 1})(codes)["contrastive"]
    like = np.exp(functional.normalize(views).T.numpy() / 0.2)
    losses = [-np.log(like[i, p] / (like[i, p] + 2.0)) for i, p in ((0, 1), (1, 0))]
    assert value.item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("viewed", [0.5, 1.0])
@pytest.mark.parametrize("counterfactual", [0.0, 1.0])
def test_a_view_of_a_cell_is_told_from_the_cells_of_its_batch(make_codes, counterfactual, viewed):
    """Against PyTorch's cross-entropy over the cell's view and the other cells of its batch."""
    batch = torch.arange(40) % 3
    own, shown = torch.rand(40, 20), torch.rand(40, 20)
    partners, anchors_of_views = [], []
    codes = make_codes(
        x=own,
        batch=batch,
        encode_bio=lambda x, cells: anchors_of_views.append(cells) or x[:, :5],
        as_partner=lambda cells, p: partners.append((cells, p)) or shown[cells],
    )
    options = {"positives": "views", "counterfactual": counterfactual, "viewed": viewed}
    spec = {"contrastive": options}
    value = build_objectives(spec, **SIZES)(codes)["contrastive"]
    anchors = functional.normalize(codes.z_bio, dim=1)
    views = (shown if counterfactual else own)[:, :5]
    logits = (anchors @ anchors.T / 0.2).masked_fill(batch[:, None] != batch, -torch.inf)
    logits = logits.diagonal_scatter(functional.cosine_similarity(anchors, views) / 0.2)
    cells = anchors_of_views[0]
    assert len(set(cells.tolist())) == 40 * viewed
    torch.testing.assert_close(value, functional.cross_entropy(logits[cells], cells))
    assert len(partners) == counterfactual
    assert all((batch[p] != batch[cells]).all() for cells, p in partners)


def test_both_a_cell_and_its_view_learn(make_codes):
    """Gradients are those of PyTorch's cross-entropy."""
    batch, views = torch.arange(40) % 3, torch.randn(40, 5, requires_grad=True)
    codes = make_codes(batch=batch, encode_bio=lambda _, cells: views[cells])
    options = {"positives": "views", "counterfactual": 0.0, "viewed": 1.0}
    value = build_objectives({"contrastive": options}, **SIZES)(codes)["contrastive"]
    anchors = functional.normalize(codes.z_bio, dim=1)
    logits = (anchors @ anchors.T / 0.2).masked_fill(batch[:, None] != batch, -torch.inf)
    logits = logits.diagonal_scatter(functional.cosine_similarity(codes.z_bio, views) / 0.2)
    expected = functional.cross_entropy(logits, torch.arange(40))
    for leaf in (views, codes.z_bio):
        (found,) = torch.autograd.grad(value, leaf, retain_graph=True)
        (reference,) = torch.autograd.grad(expected, leaf, retain_graph=True)
        torch.testing.assert_close(found, reference, rtol=1e-3, atol=1e-6)


def test_a_share_of_few_cells_is_right_on_average():
    draws = [_rounded(2.3) for _ in range(2000)]
    assert set(draws) == {2, 3}
    assert np.mean(draws) == pytest.approx(2.3, abs=4 * (0.3 * 0.7 / 2000) ** 0.5)
    assert {_rounded(3.0) for _ in range(50)} == {3}


@pytest.mark.parametrize(
    ("options", "viewed", "counterfactual"),
    [({"viewed": 0.7, "counterfactual": 0.3}, 0.7, 0.3), ({}, 0.25, 0.5)],
)
def test_the_share_of_counterfactuals_is_the_one_asked_for(
    make_codes, options, viewed, counterfactual
):
    n, seen = 2000, []
    codes = make_codes(
        n=n,
        x=torch.zeros(n, 20),
        batch=torch.arange(n) % 3,
        encode_bio=lambda x, cells: seen.append((x, cells)) or torch.randn(len(x), 5),
        as_partner=lambda cells, _: torch.ones(len(cells), 20),
    )
    build_objectives({"contrastive": options}, **SIZES)(codes)
    x, cells = seen[0]
    assert len(set(cells.tolist())) == pytest.approx(viewed * n, abs=1)
    shares = x.unique(dim=1)
    assert shares.shape == (len(cells), 1)  # a cell is shown as a whole
    assert shares.mean() == pytest.approx(counterfactual, abs=0.04)


def test_a_counterfactual_drains_the_batch_that_views_leave(make_codes):
    """Codes with a shift by the batch, which the decoder shows as that of the partner's batch."""
    batch = torch.arange(90) % 3
    shifts, biology = 2.0 * torch.eye(3), torch.randn(90, 4)
    x = torch.cat([biology, shifts[batch]], dim=1)

    def share_of_the_batch(counterfactual):
        torch.manual_seed(0)
        encoder = torch.nn.Linear(7, 5, bias=False)
        optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
        spec = {"contrastive": {"counterfactual": counterfactual}}
        objective = build_objectives(spec, **SIZES)
        for _ in range(200):
            codes = make_codes(
                x=x,
                batch=batch,
                labels=None,
                z_bio=encoder(x),
                encode_bio=lambda x, _: encoder(x + 0.1 * torch.randn_like(x)),
                as_partner=lambda c, p: torch.cat([biology[c], shifts[batch[p]]], dim=1),
            )
            optimizer.zero_grad()
            objective(codes)["contrastive"].backward()
            optimizer.step()
        squared = encoder.weight.detach().square().sum(0)
        return squared[4:].sum() / squared.sum()

    assert share_of_the_batch(0.5) < 0.5 * share_of_the_batch(0.0)


def test_one_batch_has_no_counterfactual(make_codes):
    codes = make_codes(n=10, batch=torch.zeros(10, dtype=torch.long), as_partner=None)
    objective = build_objectives("contrastive", **{**SIZES, "n_batch": 1})
    assert objective(codes)["contrastive"] > 0


def test_partners_are_random_cells_of_other_batches():
    batch = torch.tensor([0, 0, 1, 2])
    draws = torch.stack([random_partners(batch, torch.arange(4)) for _ in range(500)])
    assert (batch[draws] != batch).all()
    assert set(draws[:, 0].tolist()) == {2, 3}
    assert set(draws[:, 3].tolist()) == {0, 1, 2}
    some = torch.tensor([3, 1])
    assert (batch[random_partners(batch, some)] != batch[some]).all()
    alone = torch.zeros(3, dtype=torch.long)
    assert random_partners(alone, torch.tensor([2, 0])).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("labelled", "batches", "terms"),
    [(True, 2, ["views", "labels"]), (False, 2, ["views"]), (False, 1, ["views"])],
)
def test_auto_is_the_sum_of_views_and_labels(make_codes, labelled, batches, terms):
    n = 40
    codes = make_codes(
        n=n,
        x=functional.one_hot(torch.arange(n) // 2, 20).float(),
        batch=torch.arange(n) % batches,
        labels=torch.arange(n) // 4 if labelled else None,
    )
    views = torch.randn(n, 5)
    values = {
        kind: build_objectives({"contrastive": {"positives": kind, "viewed": 1.0}}, **SIZES)(
            dataclasses.replace(codes, encode_bio=lambda _, cells: views[cells])
        )["contrastive"]
        for kind in ("auto", *terms)
    }
    torch.testing.assert_close(values["auto"], sum(values[kind] for kind in terms))


def test_labels_have_to_be_there(make_codes):
    objective = build_objectives({"contrastive": {"positives": "labels"}}, **SIZES)
    with pytest.raises(InputError, match="labels_key"):
        objective(make_codes())


def test_cells_are_not_shown_in_other_batches_unless_asked(make_codes):
    def as_partner(cells, partners):
        raise AssertionError

    objective = build_objectives({"contrastive": {"counterfactual": 0.0}}, **SIZES)
    assert objective(make_codes(as_partner=as_partner))["contrastive"] > 0
