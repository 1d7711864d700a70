"""Conditions: which an evaluation is in, and the likely reason of a change."""

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.quality.conditions import (
    ENDS_ARE_TOLD,
    Condition,
    Facts,
    is_below,
    likely_reason,
    states_of_evaluation,
)
from visdiv_assets.quality.verdicts import judge_drop, judge_lost

BEFORE = Facts(n_images=100, n_distinct=100, n_failed=0, model_id="m")
STEADY = [0.5] * 10


def states(score: float, history: list[float], threshold: float = 0.30):
    judged = states_of_evaluation(
        score < threshold,
        judge_drop(score, history),
        judge_lost(100, [100]),
        threshold,
        "because",
        regained=True,
    )
    assert len(judged) == len({state.condition for state in judged})
    return {state.condition: state for state in judged}


@pytest.mark.parametrize(
    ("score", "history", "active"),
    [
        (0.5, [], set()),
        (0.35, [], set()),  # not good, but not below the threshold
        (0.30, [], set()),
        (0.29, [], {Condition.BELOW_THRESHOLD}),
        (0.45, STEADY, {Condition.DROPPED}),
        (0.2, STEADY, {Condition.BELOW_THRESHOLD, Condition.DROPPED}),
        (0.5, STEADY, set()),
    ],
)
def test_an_evaluation_is_in_the_conditions_that_its_verdicts_say(score, history, active):
    judged = states(score, history)
    assert {condition for condition, state in judged.items() if state.active} == active


@pytest.mark.parametrize("score", [0.0, 0.5])
def test_an_evaluation_says_something_of_every_condition_of_evaluations_so_that_each_can_end(score):
    judged = states(score, STEADY)
    others = {Condition.NOT_ANALYZED, Condition.UNREACHABLE, Condition.SETTINGS_BROKEN}
    assert set(judged) == set(Condition) - others
    assert not judged[Condition.NOT_EVALUATED].active
    assert not judged[Condition.STALE].active


# --- below the threshold ---


def waver(scores: Sequence[float], margin: float = 0.03) -> list[bool]:
    """Whether the dataset counts as below 0.30 after each nightly evaluation."""
    below, last_below, found = False, None, []
    for night, score in enumerate(scores):
        if score < 0.30:
            last_below = night
        first_above = 0 if last_below is None else last_below + 1
        above_for = timedelta(days=max(night - first_above, 0))
        below = is_below(score, 0.30, was_below=below, margin=margin, above_for=above_for)
        found.append(below)
    return found


def test_a_score_that_wavers_around_its_threshold_is_told_once_in_sixty_nights():
    for seed in range(20):
        wavering = 0.30 + np.random.default_rng(seed).normal(0, 0.003, 60)
        changes = int(np.sum(np.diff([False, *waver(wavering)])))
        assert changes <= 1, seed


def test_a_score_that_falls_is_below_at_once_and_one_that_rises_well_above_is_not():
    assert waver([0.5, 0.299, 0.31, 0.329, 0.331]) == [False, True, True, True, False]


def test_a_score_that_stays_above_for_two_weeks_has_recovered():
    assert waver([0.29, *[0.31] * 16]) == [True] * 15 + [False] * 2


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0, 0.2))
def test_below_the_threshold_is_always_below_and_far_above_never(scores, margin):
    for score, below in zip(scores, waver(scores, margin), strict=True):
        assert below or score >= 0.30
        assert not (below and score - margin > 0.30)


# --- images lost ---


def lost(counts: Sequence[int]) -> list[bool]:
    return [not judge_lost(n, counts[:at]).passed for at, n in enumerate(counts)]


def test_losing_more_than_half_of_the_images_is_a_loss_until_they_are_back():
    assert lost([1250, 1250, 100, 100, 625]) == [False, False, True, True, False]
    assert lost([1250, 626, 400, 200]) == [False, False, False, True]
    assert lost([0, 0]) == [False, False]


def test_a_loss_that_is_meant_becomes_the_history():
    assert lost([1250, *[100] * 40])[-1] is False
    assert lost([*[1250] * 30, *[100] * 40]).index(False, 30) < 50


def test_only_active_conditions_have_a_reason():
    judged = states(0.2, STEADY)
    assert {condition for condition, state in judged.items() if state.reason == "because"} == {
        Condition.BELOW_THRESHOLD,
        Condition.DROPPED,
    }
    assert not any(state.reason for state in states(0.5, STEADY).values())


@pytest.mark.parametrize("score", [0.2, 0.9])
def test_the_threshold_is_told_with_falling_below_it_and_with_recovering(score):
    assert states(score, [], threshold=0.25)[Condition.BELOW_THRESHOLD].threshold == 0.25


def test_the_end_of_a_drop_is_no_news():
    assert set(Condition) - ENDS_ARE_TOLD == {Condition.DROPPED}


# --- likely reasons ---


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (BEFORE, "the images became more similar to each other"),
        (Facts(100, 100, 0, "other"), "the embeddings come from a different model"),
        (Facts(150, 150, 0, "m"), "50 more images than before"),
        (Facts(60, 60, 0, "m"), "40 fewer images than before"),
        (Facts(100, 90, 0, "m"), "10 of 100 images are exact copies of others (before: 0)"),
        (Facts(100, 100, 7, "m"), "7 images could not be embedded"),
        (
            Facts(2100, 1100, 3, "other"),
            "the embeddings come from a different model; "
            "1,000 of 2,100 images are exact copies of others (before: 0); "
            "2,000 more images than before; 3 images could not be embedded",
        ),
    ],
)
def test_the_likely_reason_names_what_changed(now, reason):
    assert likely_reason(now, BEFORE) == reason


def test_without_an_earlier_evaluation_the_reason_compares_with_nothing():
    now = Facts(100, 40, 2, "m")
    assert likely_reason(now, None) == (
        "60 of 100 images are exact copies of others; 2 images could not be embedded"
    )
    assert likely_reason(BEFORE, None) == "the images became more similar to each other"


def test_failures_that_were_there_before_are_no_reason():
    before = Facts(100, 100, 7, "m")
    for n_failed in (0, 6, 7):
        assert "could not be embedded" not in likely_reason(Facts(100, 100, n_failed, "m"), before)
    assert "8 images could not be embedded" in likely_reason(Facts(100, 100, 8, "m"), before)


def test_copies_that_were_there_before_are_told_with_how_many_they_were():
    assert likely_reason(Facts(100, 80, 0, "m"), Facts(100, 90, 0, "m")) == (
        "20 of 100 images are exact copies of others (before: 10)"
    )
