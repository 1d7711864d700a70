"""Watching sources: one request at the end of a change, whatever is forgotten on the way."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.sources.watch import Sighting, WatchMemory, is_settled, rotate

SETTLE = 60.0

names = st.text(max_size=5)
numbers = st.integers() | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
# What looks like a cursor: the right keys, and anything below them.
almost_cursors = st.fixed_dictionaries({}, optional={"next": json_values, "sightings": json_values})


class Watch:
    """Looks as the sensor does: through a cursor, a request being followed by an evaluation."""

    def __init__(self, evaluated: str | None) -> None:
        self.evaluated = evaluated
        self.cursor: str | None = None
        self.requests: list[tuple[float, str]] = []

    def look(self, fingerprint: str, now: float) -> None:
        memory = WatchMemory.from_cursor(self.cursor)
        settled, sighting = is_settled(
            fingerprint, self.evaluated, memory.sightings.get("birds"), now, SETTLE
        )
        if settled:
            self.requests.append((now, fingerprint))
            self.evaluated = fingerprint
        memory.sightings = {"birds": sighting} if sighting else {}
        self.cursor = memory.to_cursor()


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
    assert WatchMemory.from_cursor(watch.cursor) == WatchMemory()


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


# --- the cursor ---


@given(names, st.dictionaries(names, st.builds(Sighting, names, st.floats(0, 1e11))))
def test_a_cursor_holds_all_that_is_remembered(next_name, sightings):
    memory = WatchMemory(next_name, sightings)
    assert WatchMemory.from_cursor(memory.to_cursor()) == memory


@pytest.mark.parametrize(
    "cursor",
    [
        None,
        "",
        "null",
        "[]",
        "3",
        '"text"',
        "{",
        '{"sightings": null}',
        '{"sightings": []}',
        '{"sightings": {"birds": 3}}',
        '{"sightings": {"birds": ["a"]}}',
        '{"sightings": {"birds": ["a", "yesterday"]}}',
        '{"sightings": {"birds": ["a", null]}}',
        '{"sightings": {"birds": ["a", 1' + "0" * 400 + "]}}",
        "[" * 100_000,
    ],
    ids=range(15),
)
def test_a_cursor_that_is_lost_or_garbage_is_an_empty_memory(cursor):
    assert WatchMemory.from_cursor(cursor) == WatchMemory()


@given(st.none() | st.text() | json_values.map(json.dumps) | almost_cursors.map(json.dumps))
def test_whatever_the_cursor_the_next_change_is_found(cursor):
    watch = Watch(evaluated="a")
    watch.cursor = cursor
    watch.look("changed", now=1000)
    watch.requests.clear()  # a cursor may say by chance that it has been there for long
    watch.evaluated = "a"
    watch.look("changed", now=1000 + SETTLE)
    assert watch.requests == [(1000 + SETTLE, "changed")]


def test_a_cursor_lost_during_a_change_delays_the_request_and_doubles_nothing():
    watch = Watch(evaluated="a")
    watch.look("b", now=0)
    watch.cursor = None
    for now in (60, 90, 120, 150):
        watch.look("b", now)
    assert watch.requests == [(120, "b")]


# --- taking turns ---


@given(st.sets(names), names)
def test_every_round_visits_all_from_where_it_is_to_begin(datasets, first):
    order = rotate(datasets, first)
    assert sorted(order) == sorted(datasets)
    later = [name >= first for name in order]
    assert later == sorted(later, reverse=True)


@given(st.sets(names, min_size=1, max_size=20), st.integers(1, 5))
def test_rounds_cut_short_visit_all_in_turn(datasets, per_round):
    visited: list[str] = []
    first = ""
    for _ in range(math.ceil(len(datasets) / per_round)):
        order = rotate(datasets, first)
        visited += order[:per_round]
        first = order[per_round % len(order)]
    assert set(visited) == datasets
