"""What scores mean, night after night, given their intervals."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.workflows.judge import states_of

START = datetime(2026, 3, 1, 2, tzinfo=UTC)


def evaluation(night, score, width=0.03, **changes):
    values = {
        "evaluation_id": f"e{night}",
        "dataset": "birds",
        "evaluated_at": START + timedelta(days=night),
        "run_id": None,
        "model_id": "model",
        "n_images": 1000,
        "n_failed": 0,
        "dimension": 512,
        "effective_rank": 1.0,
        "participation_ratio": 1.0,
        "diversity_score": 0.1,
        "rating": "Good",
        "stars": 3,
        "manifest_fingerprint": f"f{night}",
        "seconds": 1.0,
        "n_distinct": 1000,
        "corrected_score": score,
        "corrected_low": score - width,
        "corrected_high": score + width,
        "basis": "corrected",
    }
    return Evaluation(**{**values, **changes})


def told(nights, threshold=0.30):
    """What begins (+) and ends (-), by night, as the states of all conditions follow."""
    active, news = set(), []
    for at, each in enumerate(nights):
        for state in states_of(each, nights[:at], threshold, active):
            if state.active != (state.condition in active):
                news.append((at, "+" if state.active else "-", state.condition.value))
                active ^= {state.condition}
    return news


def nights_of(scores, width=0.03):
    return [evaluation(night, float(score), width) for night, score in enumerate(scores)]


@pytest.mark.parametrize("seed", range(5))
def test_a_score_of_0_300_give_or_take_0_003_is_told_of_once_and_never_as_a_drop(seed):
    scores = 0.300 + np.random.default_rng(seed).uniform(-0.003, 0.003, 60)
    [(_, sign, condition)] = told(nights_of(scores))
    assert (sign, condition) == ("+", "below_threshold")


def test_of_scores_that_waver_within_their_intervals_hardly_any_drops_in_60_nights():
    rng = np.random.default_rng(0)
    histories = (nights_of(rng.normal(0.60, 0.03 / 1.96, 60)) for _ in range(50))
    assert sum(told(each) != [] for each in histories) <= 3


def test_a_fall_is_a_drop_where_the_intervals_do_not_overlap():
    for earlier in (1, 10):  # both intervals reach 0.03
        assert told(nights_of([0.60] * earlier + [0.55])) == []
        assert told(nights_of([0.60] * earlier + [0.53])) == [(earlier, "+", "dropped")]


def test_each_end_of_an_interval_counts_for_its_own_side():
    before = evaluation(0, 0.60, corrected_low=0.59, corrected_high=0.90)
    now = evaluation(1, 0.55, corrected_low=0.20, corrected_high=0.56)
    assert told([before, now]) == [(1, "+", "dropped")]


def test_a_drop_is_told_once_while_the_score_wavers_around_its_limit():
    scores = [0.60] * 20 + [0.539, 0.541, 0.539, 0.541, 0.539]
    assert told(nights_of(scores)) == [(20, "+", "dropped")]


def test_a_drop_ends_when_the_score_is_back_or_when_it_has_become_usual():
    back = nights_of([0.60] * 10 + [0.50, 0.59])
    assert told(back) == [(10, "+", "dropped"), (11, "-", "dropped")]
    [_, (night, sign, _)] = told(nights_of([0.60] * 10 + [0.50] * 20))
    assert (10 < night < 25, sign) == (True, "-")


def test_scores_on_another_basis_or_of_another_model_are_no_usual_range():
    others = [
        evaluation(0, 0.90, basis="plain", diversity_score=0.90),
        evaluation(1, 0.90, model_id="other"),
    ]
    assert told([*others, evaluation(2, 0.60)]) == []


def test_without_intervals_a_drop_takes_five_earlier_scores():
    changes = {"corrected_low": None, "corrected_high": None}
    nights = [evaluation(night, 0.60, **changes) for night in range(4)]
    assert told([*nights, evaluation(4, 0.40, **changes)]) == []
    nights.append(evaluation(4, 0.60, **changes))
    assert told([*nights, evaluation(5, 0.40, **changes)]) == [(5, "+", "dropped")]
