"""Verdicts: each at its boundaries, and none that fails without advice."""

import json
import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.quality.verdicts import (
    DROP_HISTORY,
    DROP_WARM_UP,
    NORM_TOLERANCE,
    Verdict,
    judge_age,
    judge_count,
    judge_drift,
    judge_drop,
    judge_embeddings,
    judge_failures,
    judge_leakage,
    judge_model,
    judge_near_duplicates,
    judge_score,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEADY = [0.40, 0.41, 0.40, 0.39, 0.40]

scores = st.floats(0, 1)
counts = st.integers(0, 10**7)


def outcome(verdict: Verdict) -> str:
    return "ok" if verdict.passed else verdict.severity


# --- every verdict ---

FAILING = {
    "score below": judge_score(0.1, 0.3),
    "score not good": judge_score(0.35, 0.3),
    "drop": judge_drop(0.2, STEADY),
    "drift": judge_drift(True, "200 images came: more than chance"),
    "failures, some": judge_failures(98, 2),
    "failures, many": judge_failures(50, 50),
    "embeddings": judge_embeddings(1, 2, 3, 4, math.nan),
    "count": judge_count(1),
    "never": judge_age(None, NOW),
    "old": judge_age(NOW - timedelta(days=2), NOW),
    "model": judge_model("b", "a"),
    "near-duplicates": judge_near_duplicates(100, 3, 3, 0.75, 0.05),
    "leakage": judge_leakage({"test": 1}, {}, 0.95),
    "leakage unknown": judge_leakage({}, {"test": "it has never been evaluated"}, 0.95),
}


@pytest.mark.parametrize("verdict", FAILING.values(), ids=FAILING)
def test_a_verdict_that_fails_says_what_was_found_and_what_to_do(verdict):
    assert not verdict.passed
    assert verdict.finding
    assert verdict.advice


PASSING = {
    "score": judge_score(0.9, 0.3),
    "drop": judge_drop(0.4, STEADY),
    "drop, warming up": judge_drop(0.4, []),
    "drift": judge_drift(False, "3 images came", {"came": 3}),
    "failures": judge_failures(100, 0),
    "embeddings": judge_embeddings(4, 4, 1, 5, 0.0),
    "count": judge_count(10**6),
    "age": judge_age(NOW, NOW),
    "model": judge_model("a", "a"),
}


@pytest.mark.parametrize("verdict", PASSING.values(), ids=PASSING)
def test_a_verdict_that_passes_says_what_was_found_and_gives_no_advice(verdict):
    assert verdict.passed
    assert verdict.finding
    assert verdict.measured
    assert not verdict.advice


# --- score_above_threshold ---


@pytest.mark.parametrize(
    ("score", "threshold", "expected"),
    [
        (0.0, 0.30, "ERROR"),
        (math.nextafter(0.30, 0), 0.30, "ERROR"),
        (0.30, 0.30, "WARN"),
        (math.nextafter(0.40, 0), 0.30, "WARN"),
        (0.40, 0.30, "ok"),
        (1.0, 0.30, "ok"),
        (0.0, 0.0, "WARN"),
        (0.45, 0.50, "ERROR"),  # a threshold above what is called good has no WARN
        (0.50, 0.50, "ok"),
        (1.0, 1.0, "ok"),
    ],
)
def test_a_score_is_an_error_below_its_threshold_and_a_warning_below_good(
    score, threshold, expected
):
    verdict = judge_score(score, threshold)
    assert outcome(verdict) == expected
    assert verdict.measured == {"diversity score": score, "threshold": threshold}


# --- score_drop ---


def test_a_drop_is_judged_from_the_warm_up_on():
    history = [0.5] * DROP_WARM_UP
    for n in range(DROP_WARM_UP):
        assert judge_drop(0.0, history[:n]).passed
        assert judge_drop(0.0, history[:n]).measured == {"earlier evaluations": n}
    assert outcome(judge_drop(0.0, history)) == "WARN"


def test_a_drop_that_is_large_but_usual_for_a_restless_history_passes():
    restless = [0.30, 0.40, 0.50, 0.60, 0.70]  # median 0.50, robust deviation 0.148
    assert judge_drop(0.01, restless).passed
    assert not judge_drop(0.01, STEADY).passed


def test_a_drop_far_out_of_a_narrow_range_but_tiny_in_itself_passes():
    narrow = [0.4000, 0.4001, 0.4000, 0.3999, 0.4000]
    assert judge_drop(0.385, narrow).passed
    assert not judge_drop(0.375, narrow).passed


def test_the_robust_z_score_alone_decides_when_the_change_is_large():
    history = [0.40, 0.45, 0.50, 0.55, 0.60]  # median absolute deviation 0.05
    limit = 0.50 - 3.5 * 1.4826 * 0.05
    assert judge_drop(limit + 1e-6, history).passed
    assert not judge_drop(limit - 1e-6, history).passed


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.51, "ok"), (0.5, "ok"), (0.4801, "ok"), (0.4799, "WARN"), (0.0, "WARN")],
)
def test_after_a_history_that_never_moved_the_absolute_change_decides(score, expected):
    assert outcome(judge_drop(score, [0.5] * 10)) == expected


def test_a_rise_is_no_drop_however_large():
    assert judge_drop(1.0, [0.1] * 10).passed


def test_one_outlier_in_the_history_changes_nothing():
    assert outcome(judge_drop(0.30, [*STEADY, 0.99])) == "WARN"
    assert judge_drop(0.40, [*STEADY, 0.01]).passed


def test_only_the_last_of_a_long_history_count():
    assert judge_drop(0.2, [0.9] * 100 + [0.2] * DROP_HISTORY).passed
    assert not judge_drop(0.2, [0.2] * 100 + [0.9] * DROP_HISTORY).passed


@given(scores, st.lists(scores, max_size=40))
def test_a_drop_needs_an_absolute_change_and_nothing_measured_is_nan(score, history):
    verdict = judge_drop(score, history)
    assert all(math.isfinite(value) for value in verdict.measured.values())
    if not verdict.passed:
        assert verdict.measured["drop"] >= 0.02
        assert len(history) >= DROP_WARM_UP


def test_a_fall_that_the_intervals_explain_is_no_drop_and_a_larger_one_is():
    for history in ([0.40], STEADY):
        assert judge_drop(0.36, history, by_chance=0.05).passed
        assert outcome(judge_drop(0.34, history, by_chance=0.05)) == "WARN"


def test_with_intervals_a_drop_is_judged_from_the_second_evaluation_on():
    assert judge_drop(0.1, [], by_chance=0.05).passed
    assert not judge_drop(0.1, [0.5], by_chance=0.05).passed
    assert judge_drop(0.1, [0.5]).passed


def test_narrow_intervals_make_no_drop_of_a_tiny_change_or_of_a_usual_one():
    assert judge_drop(0.385, [0.40], by_chance=0.001).passed
    assert judge_drop(0.01, [0.30, 0.40, 0.50, 0.60, 0.70], by_chance=0.001).passed


def test_a_score_that_has_dropped_must_come_back_to_within_half_of_the_limit():
    for score, was_dropped, passed in (
        (0.455, False, True),
        (0.445, False, False),
        (0.455, True, False),
        (0.470, True, False),
        (0.476, True, True),
    ):
        assert judge_drop(score, [0.5], 0.05, was_dropped=was_dropped).passed == passed


# --- decode_failures ---


@pytest.mark.parametrize(
    ("n_images", "n_failed", "expected"),
    [
        (0, 0, "ok"),
        (100, 0, "ok"),
        (99, 1, "ok"),  # exactly 1 %
        (9899, 101, "WARN"),
        (95, 5, "WARN"),  # exactly 5 %
        (9499, 501, "ERROR"),
        (0, 3, "ERROR"),
    ],
)
def test_failures_warn_over_one_percent_and_are_an_error_over_five(n_images, n_failed, expected):
    verdict = judge_failures(n_images, n_failed)
    assert outcome(verdict) == expected
    assert verdict.measured["images"] == n_images + n_failed
    assert verdict.measured["failed"] == n_failed


# --- embeddings_valid ---

VALID = {"n_rows": 98, "n_images": 98, "n_failed": 2, "n_listed": 100, "norm_error": 0.001}


@pytest.mark.parametrize("norm_error", [0.0, 0.001, NORM_TOLERANCE])
def test_a_unit_vector_for_each_image_that_did_not_fail_is_valid(norm_error):
    assert judge_embeddings(**{**VALID, "norm_error": norm_error}).passed


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n_listed": 101}, "the index lists 100 images, but the manifest lists 101"),
        ({"n_listed": 99}, "the index lists 100 images, but the manifest lists 99"),
        ({"n_rows": 97}, "there are 97 vectors for 98 images"),
        ({"n_rows": 99}, "there are 99 vectors for 98 images"),
        (
            {"norm_error": math.nextafter(NORM_TOLERANCE, 1)},
            "norm of a vector differs from 1 by 0.002",
        ),
        ({"norm_error": math.inf}, "norm of a vector differs from 1 by inf"),
        ({"norm_error": math.nan}, "norm of a vector differs from 1 by nan"),
    ],
)
def test_each_problem_of_embeddings_is_an_error_that_says_which(changes, problem):
    verdict = judge_embeddings(**{**VALID, **changes})
    assert outcome(verdict) == "ERROR"
    assert problem in verdict.finding
    assert ";" not in verdict.finding


def test_all_problems_of_embeddings_are_named_at_once():
    verdict = judge_embeddings(n_rows=1, n_images=2, n_failed=0, n_listed=3, norm_error=0.5)
    assert len(verdict.finding.split("; ")) == 3


# --- enough_images ---


@pytest.mark.parametrize(
    ("n_images", "expected"), [(0, "WARN"), (999, "WARN"), (1000, "ok"), (10**6, "ok")]
)
def test_fewer_than_a_thousand_images_are_a_warning(n_images, expected):
    assert outcome(judge_count(n_images)) == expected


def test_how_many_images_are_enough_can_be_said():
    assert judge_count(10, least=10).passed
    assert not judge_count(9, least=10).passed


# --- not_stale ---


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (timedelta(0), "ok"),
        (timedelta(hours=26), "ok"),
        (timedelta(hours=26, microseconds=1), "ERROR"),
        (timedelta(days=400), "ERROR"),
        (-timedelta(hours=1), "ok"),  # a clock that is ahead is not an old evaluation
    ],
)
def test_an_evaluation_is_stale_after_26_hours(age, expected):
    assert outcome(judge_age(NOW - age, NOW)) == expected


def test_a_dataset_that_was_never_evaluated_is_stale():
    verdict = judge_age(None, NOW)
    assert outcome(verdict) == "ERROR"
    assert verdict.finding == "the dataset has never been evaluated"


def test_ages_are_right_across_time_zones():
    evaluated_at = NOW.astimezone(ZoneInfo("Asia/Seoul")) - timedelta(hours=3)
    assert judge_age(evaluated_at, NOW).measured["hours"] == pytest.approx(3)


# --- model_unchanged ---


def test_another_model_is_a_warning_that_names_both():
    verdict = judge_model("new", "old")
    assert outcome(verdict) == "WARN"
    assert verdict.measured == {"model": "new", "previous model": "old"}


@pytest.mark.parametrize("previous", [None, "same"])
def test_the_first_model_and_the_same_model_pass(previous):
    assert judge_model("same", previous).passed


# --- whatever the numbers ---


@given(scores, scores, counts, counts)
def test_what_was_measured_can_be_written_as_json(score, threshold, n_images, n_failed):
    for verdict in (
        judge_score(score, threshold),
        judge_failures(n_images, n_failed),
        judge_count(n_images),
        judge_embeddings(n_images, n_images, n_failed, n_images, score),
    ):
        json.dumps(verdict.measured, allow_nan=False)
        assert bool(verdict.advice) is not verdict.passed


# --- near-duplicates and leakage ---


@pytest.mark.parametrize(
    ("n_exact", "n_near", "expected"),
    [(0, 0, "ok"), (0, 5, "ok"), (5, 0, "ok"), (3, 2, "ok"), (0, 6, "WARN"), (3, 3, "WARN")],
)
def test_over_the_rate_copies_and_near_duplicates_together_are_a_warning(n_exact, n_near, expected):
    assert outcome(judge_near_duplicates(100, n_exact, n_near, 0.75, 0.05)) == expected


def test_a_verdict_on_duplicates_names_both_kinds_and_the_threshold():
    verdict = judge_near_duplicates(1000, 20, 103, 0.75, 0.05)
    assert verdict.finding == (
        "12.3% of 1,000 images repeat others, more than 5.0%: "
        "20 exact copies, 103 near-duplicates (similarity ≥ 0.75)"
    )
    assert "visdiv duplicates" in verdict.advice


def test_no_images_repeat_nothing():
    assert judge_near_duplicates(0, 0, 0, 0.75, 0.0).passed


def test_an_image_in_a_benchmark_is_an_error_that_names_every_benchmark():
    verdict = judge_leakage({"clean": 0, "test": 1, "val": 1200}, {"old": "it is gone"}, 0.95)
    assert outcome(verdict) == "ERROR"
    assert verdict.finding == (
        "1 image is in the benchmark test, 1,200 images are in the benchmark val "
        "(similarity ≥ 0.95); old was not compared because it is gone"
    )
    assert verdict.measured == {"threshold": 0.95, "in clean": 0, "in test": 1, "in val": 1200}


def test_a_benchmark_that_was_not_compared_is_a_warning():
    verdict = judge_leakage({"clean": 0}, {"old": "it has never been evaluated"}, 0.95)
    assert outcome(verdict) == "WARN"
    assert verdict.finding == "old was not compared because it has never been evaluated"


def test_without_leaks_or_without_benchmarks_all_is_well():
    assert (
        judge_leakage({"a": 0, "b": 0}, {}, 0.95).finding == "no image is in the benchmarks (a, b)"
    )
    assert judge_leakage({}, {}, 0.95).passed
