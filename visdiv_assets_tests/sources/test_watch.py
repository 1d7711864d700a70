"""Watching sources: a request at the end of a change, and again if nothing comes of it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.sources.watch import Sighting, is_settled, may_ask_again

SETTLE = 60.0


class Watch:
    """Looks as the sensor does, a request being followed by an evaluation."""

    def __init__(self, evaluated: str | None) -> None:
        self.evaluated = evaluated
        self.sighting: Sighting | None = None
        self.requests: list[tuple[float, str]] = []

    def look(self, fingerprint: str, now: float) -> None:
        settled, self.sighting = is_settled(fingerprint, self.evaluated, self.sighting, now, SETTLE)
        if settled:
            self.requests.append((now, fingerprint))
            self.evaluated = fingerprint


# --- settling ---


def test_a_copy_in_progress_asks_for_nothing_and_exactly_once_at_its_end():
    watch = Watch(evaluated="before")
    for step in range(50):
        watch.look(f"copying {step}", now=step * 30)
    assert watch.requests == []
    for step in range(50, 100):
        watch.look("copying 49", now=step * 30)
    assert watch.requests == [(49 * 30 + SETTLE, "copying 49")]


def test_a_copy_in_progress_never_settles_even_when_looks_are_rare():
    watch = Watch(evaluated="before")
    for step in range(50):
        watch.look(f"copying {step}", now=step * 86_400)
    assert watch.requests == []


def test_an_unchanged_source_asks_for_nothing():
    watch = Watch(evaluated="a")
    for step in range(100):
        watch.look("a", now=step * 30)
    assert watch.requests == []
    assert watch.sighting is None


def test_a_source_that_was_never_evaluated_is_asked_for_once_it_is_at_rest():
    watch = Watch(evaluated=None)
    for now in (0, 30, 60, 90):
        watch.look("a", now)
    assert watch.requests == [(60, "a")]


def test_back_to_the_evaluated_state_asks_nothing_and_forgets_the_change():
    watch = Watch(evaluated="a")
    for now, fingerprint in [(0, "b"), (30, "a"), (60, "b"), (90, "a"), (500, "a")]:
        watch.look(fingerprint, now)
    assert watch.requests == []
    watch.look("b", 600)
    watch.look("b", 659)
    assert watch.requests == []
    watch.look("b", 660)
    assert watch.requests == [(660, "b")]


def test_back_to_a_state_that_was_passed_through_waits_anew():
    watch = Watch(evaluated="a")
    for now, fingerprint in [(0, "b"), (30, "c"), (60, "b")]:
        watch.look(fingerprint, now)
    assert watch.requests == []
    watch.look("b", 120)
    assert watch.requests == [(120, "b")]


def test_the_request_comes_exactly_when_the_time_is_over():
    _, first = is_settled("b", "a", None, now=100, settle=SETTLE)
    assert not is_settled("b", "a", first, now=math.nextafter(160, 0), settle=SETTLE)[0]
    assert is_settled("b", "a", first, now=160, settle=SETTLE)[0]


def test_without_a_time_to_settle_a_change_is_asked_for_at_once():
    assert is_settled("b", "a", None, now=5, settle=0) == (True, Sighting("b", 5))


def test_what_nobody_evaluated_is_asked_for_again():
    first = Sighting("b", 0)
    assert is_settled("b", "a", first, now=60, settle=SETTLE) == (True, first)
    assert is_settled("b", "a", first, now=90, settle=SETTLE) == (True, first)


@pytest.mark.parametrize("since", [1e12, math.inf, math.nan])
def test_a_time_that_will_not_come_is_not_waited_for(since):
    settled, sighting = is_settled("b", "a", Sighting("b", since), now=100, settle=SETTLE)
    assert not settled
    assert is_settled("b", "a", sighting, now=160, settle=SETTLE)[0]


# --- asking again ---


@given(st.integers(1, 10**6), st.floats(0, 1e9))
def test_the_pause_before_asking_again_grows_and_has_an_end(requests, seconds):
    if may_ask_again(requests + 1, seconds):
        assert may_ask_again(requests, seconds)
    assert may_ask_again(requests, 6 * 3600)
    assert may_ask_again(1, 0)
    assert not may_ask_again(requests + 1, 59)
