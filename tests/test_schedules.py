"""Schedules against their formulas, evaluated by hand."""

import math

import numpy as np
import pytest

from scdisentangle import _schedules


@pytest.mark.parametrize(("progress", "level"), [(0, 0.1), (0.25, 0.08), (0.5, 0.06), (1, 0.02)])
def test_linear_noise_falls_from_a_tenth_to_a_fiftieth(progress, level):
    assert _schedules.noise_level(progress, 0.1, 0.02) == pytest.approx(level)


@pytest.mark.parametrize(
    ("progress", "level"), [(0, 0.3), (0.25, 0.2 + 0.1 / math.sqrt(2)), (0.5, 0.2), (1, 0.1)]
)
def test_cosine_noise_is_flat_at_both_ends(progress, level):
    assert _schedules.noise_level(progress, 0.3, 0.1, "cosine") == pytest.approx(level)
    slope = _schedules.noise_level(1e-4, 0.3, 0.1, "cosine") - 0.3
    assert abs(slope) < 1e-7


def test_constant_noise_stays():
    assert {_schedules.noise_level(p, 0.3, 0.1, "constant") for p in (0, 0.3, 1)} == {0.3}


@pytest.mark.parametrize(
    ("progress", "floor", "weight"),
    [(0.7, None, 1), (0, 0.2, 1), (0.3, 0.2, 0.7), (0.9, 0.2, 0.2), (1, 0, 0)],
)
def test_reconstruction_weight_is_what_is_left_of_training(progress, floor, weight):
    assert _schedules.reconstruction_weight(progress, floor) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("progress", "warmup", "ramp", "weight"),
    [
        (0.09, 0.1, 0.2, 0),
        (0.1, 0.1, 0.2, 0),
        (0.2, 0.1, 0.2, 0.5),
        (0.3, 0.1, 0.2, 1),
        (0.9, 0.1, 0.2, 1),
        (0.1, 0.1, 0, 1),
        (0, 0, 0, 1),
    ],
)
def test_disentanglement_waits_and_ramps(progress, warmup, ramp, weight):
    assert _schedules.disentanglement_weight(progress, warmup, ramp) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("length", "share"), [(5, 0.1), (0.1, 0.1), (0, 0), (1.0, 1.0), (50, 1.0), (np.int64(5), 0.1)]
)
def test_lengths_are_epochs_or_shares(length, share):
    assert _schedules.as_share(length, max_epochs=50) == pytest.approx(share)


@pytest.mark.parametrize(
    ("progress", "schedule", "factor"),
    [(0, "cosine", 1), (1 / 3, "cosine", 0.75), (0.5, "cosine", 0.5), (1, "cosine", 0)]
    + [(p, "constant", 1) for p in (0, 0.5, 1)],
)
def test_learning_rate_falls_to_nothing_or_stays(progress, schedule, factor):
    assert _schedules.learning_rate_factor(progress, schedule) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("progress", "warmup", "factor"),
    [(0.01, 0.05, 0.2), (0.05, 0.05, 1), (0.5, 0.05, 1), (0.01, 0.0, 1), (1.0, 1.0, 1)],
)
def test_learning_rate_rises_in_its_warm_up(progress, warmup, factor):
    assert _schedules.warmup_factor(progress, warmup) == pytest.approx(factor)


def test_without_warm_up_the_disentanglement_term_is_whole_from_the_start():
    assert _schedules.disentanglement_weight(0.0) == 1.0


@pytest.mark.parametrize(
    ("n_steps", "interval", "factors"),
    [
        (4, 1, [1, 1, 1, 1]),
        (4, 2, [2, None, 2, None]),
        (5, 2, [5 / 3, None, 5 / 3, None, 5 / 3]),
        (5, 3, [5 / 2, None, None, 5 / 2, None]),
        (2, 7, [2, None]),
    ],
)
def test_a_term_of_some_steps_has_the_same_share_of_an_epoch(n_steps, interval, factors):
    found = [_schedules.interval_factor(step, n_steps, interval) for step in range(n_steps)]
    assert found == factors
    assert sum(factor or 0 for factor in found) / n_steps == pytest.approx(1)


def test_epochs_of_unknown_length_have_the_term_at_the_interval():
    found = [_schedules.interval_factor(step, math.inf, 3) for step in range(4)]
    assert found == [3, None, None, 3]
