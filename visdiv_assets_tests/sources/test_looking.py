"""Looks in threads: one that hangs costs itself only; and whose turn it is."""

import itertools
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.looking import (
    MAX_BACKOFF_SECONDS,
    REST,
    LastLook,
    Look,
    Looker,
    due,
    look_at,
    rest,
)

LONG = 60.0  # no test takes that long, unless it fails


def at(uri: str) -> SourceSettings:
    return SourceSettings(uri=uri)


def sources(*names: str) -> list[tuple[str, SourceSettings]]:
    return [(name, at(f"/data/{name}")) for name in names]


class World:
    """Sources that answer at once, or when they are let go; a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.results: list[Look] = []
        self.begun: list[str] = []
        self.running = 0
        self.most_running = 0
        self._hanging: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._begun = threading.Condition(self._lock)

    def hang(self, *uris: str) -> None:
        for uri in uris:
            self._hanging[uri] = threading.Event()

    def let_go(self, *uris: str) -> None:
        for uri in uris or list(self._hanging):
            self._hanging.pop(uri).set()

    def look(self, dataset: str, source: SourceSettings) -> str:
        with self._lock:
            self.begun.append(dataset)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self._begun.notify_all()
        if event := self._hanging.get(source.uri):
            event.wait(LONG)
        with self._lock:
            self.running -= 1
        return f"of {source.uri}"

    def wait_for(self, *names: str) -> None:
        """Until these looks have begun."""
        with self._begun:
            assert self._begun.wait_for(lambda: set(names) <= set(self.begun), LONG)

    def looker(self, **options: object) -> Looker:
        return Looker(self.look, self.results.append, clock=lambda: self.now, **options)  # type: ignore[arg-type]

    def ended(self) -> list[str]:
        return sorted(look.dataset for look in self.results)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.let_go()


@contextmanager
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG)
        assert not thread.is_alive()


def settle(looker: Looker, names: Iterable[str]) -> None:
    """Until the threads of these looks have ended."""
    with looker._changed:
        assert looker._changed.wait_for(lambda: not set(names) & set(looker._current), LONG)


# --- one that hangs ---


def test_every_source_is_looked_at_and_told_once(world):
    names = [f"{number:03}" for number in range(100)]
    looker = world.looker()
    with no_thread_is_left():
        looker.start(sources(*names))
        looker.wait(LONG)
    assert world.ended() == names
    assert {look.fingerprint for look in world.results} == {f"of /data/{name}" for name in names}
    assert {look.error for look in world.results} == {None}
    assert world.most_running <= 8
    assert looker.under_way() == {}


def test_a_source_that_hangs_costs_itself_only(world):
    world.hang("/data/a")
    looker = world.looker(at_once=2)
    looker.start(sources("a", "b", "c", "d"))
    world.wait_for("a", "b", "c", "d")
    settle(looker, "bcd")
    world.now = 5.0
    looker.wait(LONG)
    assert world.ended() == ["b", "c", "d"]
    assert looker.under_way() == {"a": 5.0}


def test_sources_that_all_hang_leave_places_for_others_once_patience_is_over(world):
    world.hang("/data/a", "/data/b", "/data/c", "/data/d")
    looker = world.looker(at_once=2, patience=5.0)
    order = sources("a", "b", "c", "d", "e")
    looker.start(order)
    world.wait_for("a", "b")
    looker.wait(0)
    assert world.begun == ["a", "b"]
    for now, expected in ((5.0, {"a", "b", "c", "d"}), (10.0, {"a", "b", "c", "d", "e"})):
        world.now = now
        looker.start(order)
        world.wait_for(*expected)
        assert set(world.begun) == expected
    looker.wait(LONG)
    assert world.ended() == ["e"]


def test_a_source_whose_look_hangs_is_not_looked_at_again(world):
    world.hang("/data/a")
    looker = world.looker()
    for now in (0.0, 15.0, 30.0, 700.0, 10_000.0):
        world.now = now
        looker.start(sources("a"))
        looker.wait(0)
    assert world.begun == ["a"]
    world.let_go()
    settle(looker, ["a"])
    looker.start(sources("a"))
    looker.wait(LONG)
    assert world.begun == ["a", "a"]


def test_a_look_that_takes_too_long_is_told_once_and_its_late_result_is_nobodys(world):
    world.hang("/data/a")
    looker = world.looker(limit=600.0)
    looker.start(sources("a"))
    world.wait_for("a")
    for world.now in (600.0, 601.0, 615.0):
        looker.wait(0)
    assert [(look.fingerprint, look.error) for look in world.results] == [
        (None, "looking at /data/a took longer than 10 minutes")
    ]
    assert world.results[0].seconds == 601.0
    assert list(looker.under_way()) == ["a"]
    world.let_go()
    settle(looker, ["a"])
    assert len(world.results) == 1


def test_what_takes_too_long_is_told_without_its_secrets(world):
    uri = "https://me:SECRETWORD@host/x.zip?sig=SECRETSIGN"
    world.hang(uri)
    looker = world.looker()
    looker.start([("a", at(uri))])
    world.wait_for("a")
    world.now = 1000.0
    looker.wait(0)
    [look] = world.results
    assert "SECRET" not in f"{look.error} {look!r}"
    assert "https://host/x.zip" in str(look.error)


def test_a_source_that_was_corrected_is_looked_at_though_the_old_one_hangs(world):
    world.hang("/old")
    looker = world.looker()
    looker.start([("a", at("/old"))])
    world.wait_for("a")
    looker.start([("a", at("/new"))])
    settle(looker, "a")
    world.now = 5.0
    looker.wait(LONG)
    assert [(look.source.uri, look.fingerprint) for look in world.results] == [("/new", "of /new")]
    with no_thread_is_left():
        world.let_go()
    assert len(world.results) == 1  # the old one's result is nobody's


def test_sources_that_hung_last_time_never_hold_more_than_half_of_the_places(world):
    slow = [f"/data/{name}" for name in "abcd"]
    world.hang(*slow)
    looker = world.looker(at_once=4, patience=5.0)
    looker.start(sources("a", "b", "c", "d"))
    world.wait_for("a", "b", "c", "d")
    world.now = 6.0
    world.let_go(*slow)
    settle(looker, "abcd")
    world.hang(*slow)
    world.begun.clear()
    looker.start(sources("a", "b", "c", "d", "e", "f"))
    world.wait_for("a", "b", "e", "f")
    assert sorted(world.begun) == ["a", "b", "e", "f"]
    settle(looker, "ef")
    world.now = 11.0
    looker.wait(0)
    world.wait_for("c", "d")


def test_no_more_threads_than_allowed_hang(world):
    names = [f"{number:02}" for number in range(30)]
    world.hang(*(f"/data/{name}" for name in names))
    looker = world.looker(at_once=4, patience=1.0, most_overdue=10)
    for _ in range(30):
        looker.start(sources(*names))
        looker.wait(0)
        world.now += 1.0
    assert len(looker.under_way()) == 10
    world.let_go()
    settle(looker, names)
    looker.start(sources(*names))
    looker.wait(LONG)
    assert set(world.ended()) == set(names)


# --- a tick after the other ---


def test_what_has_not_begun_when_the_time_is_over_is_forgotten(world):
    world.hang("/data/a")
    looker = world.looker(at_once=1)
    looker.start(sources("a", "b"))
    world.wait_for("a")
    looker.wait(0)
    world.let_go()
    settle(looker, "a")
    looker.wait(LONG)
    assert world.begun == ["a"]


def test_looks_begin_in_the_given_order(world):
    looker = world.looker(at_once=1)
    looker.start(sources("c", "a", "d", "b"))
    looker.wait(LONG)
    assert world.begun == ["c", "a", "d", "b"]


def test_a_new_order_replaces_the_one_that_queues(world):
    world.hang("/data/a")
    looker = world.looker(at_once=1)
    looker.start(sources("a", "b", "c"))
    looker.start(sources("a", "d", "c"))
    world.let_go()
    looker.wait(LONG)
    assert world.begun == ["a", "d", "c"]


def test_with_nothing_to_look_at_nothing_is_waited_for(world):
    looker = world.looker()
    looker.start([])
    looker.wait(math.inf)


# --- what goes wrong ---


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError


def deeper() -> None:
    deeper()


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (raising(VisdivError("no such folder: x")), "no such folder: x"),
        (raising(ValueError("odd")), "ValueError: odd"),
        (raising(MemoryError()), "MemoryError"),
        (deeper, "RecursionError: maximum recursion depth exceeded"),
        (raising(SystemExit(3)), "SystemExit: 3"),
        (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
        (raising(GeneratorExit()), "GeneratorExit"),
        (raising(OSError(5, "Input/output error", "/mnt/x")), "OSError: [Errno 5] Input/output"),
        (raising(MuteError()), "MuteError"),
        (raising(VisdivError("at https://me:SECRETWORD@host/x?sig=SECRETSIGN")), "https://host/x"),
    ],
    ids=range(10),
)
def test_whatever_a_look_raises_is_its_result(act, told):
    results: list[Look] = []

    def look(dataset: str, source: SourceSettings) -> str:
        if dataset == "bad":
            act()
        return "fine"

    looker = Looker(look, results.append)
    with no_thread_is_left():
        looker.start(sources("bad", "good"))
        looker.wait(LONG)
    bad, good = sorted(results, key=lambda look: look.dataset)
    assert bad.fingerprint is None
    assert told in str(bad.error)
    assert "SECRET" not in str(bad.error)
    assert (good.fingerprint, good.error) == ("fine", None)
    assert looker.under_way() == {}


def test_a_result_that_cannot_be_kept_is_logged_and_the_next_looks_go_on(world, caplog):
    def fail(look: Look) -> None:
        raise OSError("the disk is full")

    looker = Looker(world.look, fail, at_once=1)
    with no_thread_is_left(), caplog.at_level(logging.ERROR):
        looker.start(sources("a", "b"))
        looker.wait(LONG)
    assert world.begun == ["a", "b"]
    assert looker.under_way() == {}
    assert "the result of looking at a was lost" in caplog.text
    assert "the disk is full" in caplog.text


def test_a_system_without_threads_delays_looks_and_loses_none(world, monkeypatch):
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    looker = world.looker()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    looker.start(sources("a", "b"))
    looker.wait(0)
    assert looker.under_way() == {}
    monkeypatch.setattr(threading.Thread, "start", start)
    looker.start(sources("a", "b"))
    looker.wait(LONG)
    assert world.ended() == ["a", "b"]


def test_a_real_source_is_looked_at(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"an image")
    results: list[Look] = []
    looker = Looker(look_at, results.append)
    looker.start([("photos", at(str(tmp_path))), ("gone", at(f"{tmp_path}/gone"))])
    looker.wait(LONG)
    gone, photos = sorted(results, key=lambda look: look.dataset)
    assert gone.error == f"no such file or directory: {tmp_path}/gone"
    assert photos.fingerprint == look_at("photos", at(str(tmp_path)))


# --- whose turn it is ---

names = st.sets(st.text("abc", min_size=1, max_size=3), max_size=12)
times = st.floats(0, 1e6)
last_looks = st.builds(
    LastLook,
    ended=times | st.sampled_from([math.nan, math.inf, -math.inf]),
    seconds=st.floats(0, 1e4) | st.sampled_from([math.nan, math.inf, -1.0]),
    failures=st.integers(-1, 10**6),
)


@given(times, st.dictionaries(st.text("abc", min_size=1, max_size=3), last_looks), names)
def test_whose_turn_it_is_are_some_of_the_names_once_each(now, looks, watched):
    order = due(now, looks, watched)
    assert set(order) <= watched
    assert max(Counter(order).values(), default=1) == 1
    assert watched - set(looks) <= set(order)


@given(times, st.dictionaries(st.text("abc", min_size=1, max_size=3), last_looks), names)
def test_nothing_waits_longer_than_its_rest_whatever_was_noted(now, looks, watched):
    latest = max([now, *(look.ended for look in looks.values() if look.ended < math.inf)])
    longest = max([rest(look) for look in looks.values()], default=0.0)
    assert set(due(latest + longest + 1, looks, watched)) == watched


@given(last_looks, st.floats(1, 1000))
def test_a_rest_is_bounded_both_ways(last, interval):
    assert interval <= rest(last, interval) <= max(interval, MAX_BACKOFF_SECONDS, REST * 600)
    if last.failures > 0:
        assert rest(last, interval) <= max(interval, MAX_BACKOFF_SECONDS)


@given(
    st.lists(st.tuples(st.floats(0, 700), st.booleans()), min_size=1, max_size=15),
    st.integers(1, 4),
)
def test_no_dataset_starves_however_few_are_looked_at_in_a_tick(kinds, per_tick):
    """Each has its own duration, and fails or not; only a few are looked at in each tick."""
    looks: dict[str, LastLook] = {}
    seen: dict[str, list[float]] = {str(number): [] for number in range(len(kinds))}
    longest = max(
        rest(LastLook(0, seconds, 10 if fails else 0)) for seconds, fails in kinds
    ) + 15.0 * math.ceil(len(kinds) / per_tick)
    now = 0.0
    while now < 2 * longest + 30:
        for name in due(now, looks, seen)[:per_tick]:
            seconds, fails = kinds[int(name)]
            before = looks.get(name, LastLook(0)).failures
            looks[name] = LastLook(now, seconds, before + 1 if fails else 0)
            seen[name].append(now)
        now += 15.0
    for moments in seen.values():
        gaps = [after - before for before, after in itertools.pairwise(moments)]
        assert len(moments) >= 2
        assert max(gaps) <= longest + 15.0


def test_those_unseen_for_longest_come_first():
    looks = {name: LastLook(ended) for name, ended in (("a", 50.0), ("b", 10.0), ("c", 30.0))}
    assert due(100, looks, ["a", "b", "c", "new"]) == ["new", "b", "c", "a"]


def test_a_source_at_which_nothing_is_wrong_comes_each_interval():
    looks = {"a": LastLook(100)}
    assert due(109.9, looks, ["a"]) == []
    assert due(110, looks, ["a"]) == ["a"]
    assert due(110, looks, ["a"], interval=60) == []


def test_a_source_that_fails_comes_ever_more_rarely_up_to_15_minutes():
    rests = [rest(LastLook(0, failures=failures)) for failures in range(1, 10)]
    assert rests == [15, 30, 60, 120, 240, 480, 900, 900, 900]
    assert rest(LastLook(0, failures=10**9)) == 900


def test_an_expensive_listing_keeps_the_machine_busy_a_tenth_of_the_time():
    assert rest(LastLook(0, seconds=60)) == 600
    assert rest(LastLook(0, seconds=60, failures=1)) == 600
    assert rest(LastLook(0, seconds=600, failures=1)) == 900


@pytest.mark.parametrize("ended", [1e12, math.inf, math.nan])
def test_a_clock_that_was_set_back_keeps_nothing_waiting(ended):
    assert due(100, {"a": LastLook(ended)}, ["a"]) == ["a"]
