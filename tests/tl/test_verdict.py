"""Verdicts on evidence made by hand, whose severities are known."""

import pandas as pd
import pytest

from scdisentangle.tl._verdict import Evidence, above, judge

BATCHES, TYPES = ["one", "two"], ["a", "b", "c"]
CLEAN = {
    ("z_bio", "batch", "mean over labels"): 0.5,
    ("z_bio", "batch", "a"): 0.5,
    ("z_nio", "batch", "all"): 1.0,
    ("unintegrated", "batch", "all"): 1.0,
    ("z_nio", "label", "mean over batches"): 0.4,
    ("z_bio", "label", "mean over batches"): 0.9,
    ("unintegrated", "label", "mean over batches"): 0.9,
}
"""Balanced accuracies by code, target and group of cells."""
LUCK = {"batch": 0.5, "label": 0.4, "cluster": 0.4}


def confusion(*rows):
    return pd.DataFrame(rows, index=TYPES, columns=TYPES)


def evidence(accuracies=None, *, uncertain=(), upper=0.6, labelled=True, composition=None, **after):
    """Of clean codes, but for what is given."""
    rows = [
        {
            "code": code,
            "target": target,
            "within": within,
            "balanced_accuracy": accuracy,
            "luck": LUCK[target],
            "upper": upper,
            "p_value": 0.05 if (code, target, within) in uncertain else 0.049,
            "logistic": accuracy,
            "neighbors": accuracy,
        }
        for (code, target, within), accuracy in {**CLEAN, **(accuracies or {})}.items()
    ]
    if composition is None:
        composition = [[10, 10, 10], [10, 10, 10]]
    perfect = confusion([100, 0, 0], [0, 100, 0], [0, 0, 100])
    return Evidence(
        table=pd.DataFrame(rows),
        confusion={"unintegrated": perfect, "z_bio": perfect, **after},
        composition=pd.DataFrame(composition, index=BATCHES, columns=TYPES),
        labelled=labelled,
        min_cells=10,
    )


def test_shares_of_the_way_from_a_floor_to_one():
    assert above(0.75, 0.5) == 0.5
    assert above(0.4, 0.5) == 0.0
    assert above(1.0, 0.9) == pytest.approx(1.0)
    assert above(1.0, 1.0) == 0.0


def test_clean_codes_are_good_and_nothing_is_advised():
    verdict = judge(evidence())
    assert (verdict.status, verdict.score, verdict.advice) == ("good", 1.0, [])
    assert verdict.words == "z_bio holds the biology and next to nothing of the batch."


@pytest.mark.parametrize(
    ("accuracy", "status"), [(0.574, "good"), (0.576, "fair"), (0.749, "fair"), (0.751, "poor")]
)
def test_the_status_says_how_far_the_batch_is_readable(accuracy, status):
    """From luck, 0.5, to certainty: 0.15 of the way is no longer good, the half is poor."""
    verdict = judge(evidence({("z_bio", "batch", "mean over labels"): accuracy}))
    assert verdict.score == pytest.approx(1 - 2 * (accuracy - 0.5))
    assert verdict.status == status
    assert bool(verdict.advice) == (status != "good")


def test_a_single_type_counts_by_what_is_above_the_quantile_of_luck():
    accuracies = {("z_bio", "batch", "a"): 0.9, ("z_bio", "batch", "b"): 0.55}
    verdict = judge(evidence({**accuracies, ("z_bio", "batch", "c"): 0.65}, upper=0.6))
    assert verdict.severities["batch in z_bio"] == pytest.approx((0.9 - 0.6) / 0.4)
    assert "in 2 of 3 types ('a', 'c')" in verdict.words
    uncertain = [("z_bio", "batch", "c")]
    verdict = judge(
        evidence({**accuracies, ("z_bio", "batch", "c"): 0.65}, uncertain=uncertain, upper=0.6)
    )
    assert "in 1 of 3 types ('a')" in verdict.words


def test_biology_in_z_nio_needs_to_be_more_than_luck():
    question = ("z_nio", "label", "mean over batches")
    sure = judge(evidence({question: 0.7}))
    assert sure.severities["biology in z_nio"] == pytest.approx(0.5)
    assert "is readable from z_nio within batches" in sure.words
    unsure = judge(evidence({question: 0.7}, uncertain=[question]))
    assert unsure.severities["biology in z_nio"] == pytest.approx(0.15)
    assert unsure.status == "good"
    assert "z_nio within batches" not in unsure.words


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [(0.9, 0.65, 0.5), (0.9, 0.95, 0.0), (0.9, 0.3, 1.0), (0.51, 0.4, None), (0.53, 0.4, 1.0)],
)
def test_lost_biology_is_the_share_of_what_there_was(before, after, lost):
    """Luck is 0.4; of less than a fifth of the way to certainty no loss can be told."""
    accuracies = {
        ("unintegrated", "label", "mean over batches"): before,
        ("z_bio", "label", "mean over batches"): after,
    }
    verdict = judge(evidence(accuracies))
    assert verdict.severities.get("biology lost") == (lost and pytest.approx(lost))
    assert ("holds the biology cannot be told" in verdict.words) == (lost is None)
    assert not (lost is None and "holds the biology and" in verdict.words)


def test_a_type_loses_what_is_beyond_two_standard_errors():
    before = confusion([90, 10, 0], [0, 100, 0], [0, 0, 100])
    after = confusion([50, 20, 30], [0, 100, 0], [5, 0, 95])
    verdict = judge(evidence(unintegrated=before, z_bio=after))
    error = (0.9 * 0.1 / 100 + 0.5 * 0.5 / 100) ** 0.5
    assert verdict.severities["biology lost"] == pytest.approx(0.4 - 2 * error)
    assert "1 of 3 types is told apart less well" in verdict.words
    assert "a (taken for c)." in verdict.words


def test_three_merged_types_are_named_and_others_counted():
    names = [f"t{i}" for i in range(4)]
    perfect = pd.DataFrame([[100 * (i == j) for j in range(4)] for i in range(4)], names, names)
    merged = pd.DataFrame([[25] * 4] * 4, names, names)
    words = judge(evidence(unintegrated=perfect, z_bio=merged)).words
    assert "4 of 4 types" in words
    assert "t0 (taken for t1), t1 (taken for t0), t2 (taken for t0) and 1 more." in words


@pytest.mark.parametrize(("accuracy", "told"), [(0.86, False), (0.84, True), (0.5, True)])
def test_a_z_nio_without_the_batch_is_a_note_that_costs_nothing(accuracy, told):
    """Of 0.5 to 1: 0.3 less of the way than before integration is told."""
    verdict = judge(evidence({("z_nio", "batch", "all"): accuracy}))
    assert (verdict.status, verdict.score) == ("good", 1.0)
    assert ("z_nio holds little of the batch" in verdict.words) == told
    assert len(verdict.advice) == told


def test_the_worst_comes_first():
    accuracies = {
        ("z_bio", "batch", "mean over labels"): 0.7,
        ("z_nio", "label", "mean over batches"): 0.9,
    }
    verdict = judge(evidence(accuracies))
    assert list(verdict.severities)[:2] == ["biology in z_nio", "batch in z_bio"]
    assert verdict.score == pytest.approx(1 - 0.5 / 0.6)
    assert verdict.words.index("from z_nio within") < verdict.words.index("still readable")
    assert [line.split(":")[0] for line in verdict.advice] == [
        "Against biology in z_nio",
        "Against the batch in z_bio",
    ]


def test_a_type_counts_as_shared_from_min_cells_in_two_batches():
    shared = judge(evidence(composition=[[10, 10, 10], [10, 10, 10]]))
    assert "cells in two batches" not in shared.words
    partly = judge(evidence(composition=[[10, 10, 10], [10, 10, 9]]))
    assert "1 of 3 types ('c') does not have 10 cells in two batches" in partly.words
    assert (partly.status, partly.score) == ("good", 1.0)
    few = judge(evidence(composition=[[10, 9, 50], [9, 10, 0]]))
    assert (few.status, few.score) == ("undecided", 0.0)
    assert "No type has 10 cells in two batches, though 2 of 3 are in two or more" in few.words
    none = judge(evidence(composition=[[10, 0, 50], [0, 10, 0]]))
    assert (none.status, none.score) == ("confounded", 0.0)


def test_without_labels_a_cluster_of_one_batch_is_no_finding():
    accuracies = {(code, "cluster", "mean over batches"): 0.9 for code in ("z_bio", "unintegrated")}
    accuracies[("z_bio", "batch", "mean over clusters")] = 0.5
    verdict = judge(evidence(accuracies, labelled=False, composition=[[10, 10, 10], [10, 10, 0]]))
    assert (verdict.status, verdict.score) == ("good", 1.0)
    assert "one batch only" not in verdict.words


@pytest.mark.parametrize(("accuracy", "either"), [(0.94, False), (0.96, True)])
def test_without_labels_batches_far_apart_may_be_biology(accuracy, either):
    accuracies = {("z_bio", "batch", "mean over clusters"): accuracy}
    words = judge(evidence(accuracies, labelled=False)).words
    assert ("pass label_key to know which of the two it is" in words) == either
    accuracies = {("z_bio", "batch", "mean over labels"): accuracy}
    assert "pass label_key" not in judge(evidence(accuracies)).words
