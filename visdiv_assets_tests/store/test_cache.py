"""Copies of what is in a bucket: found again, verified, and no more than they may be."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.errors import VisdivError
from visdiv_assets.store import cache as module
from visdiv_assets.store.cache import Cache, key_of


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(tmp_path, clock):
    return Cache(tmp_path / "cache", 1000, clock)


def put(cache, name, content):
    return cache.put(key_of(name), lambda file: file.write(content))


def get(cache, name):
    path = cache.get(key_of(name))
    return None if path is None else path.read_bytes()


def test_what_was_put_is_found_by_others(cache, tmp_path):
    put(cache, "a", b"content")
    assert get(cache, "a") == b"content"
    assert get(Cache(tmp_path / "cache", 1000), "a") == b"content"
    assert get(cache, "b") is None
    put(cache, "a", b"another")
    assert get(cache, "a") == b"another"


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_keys_are_alike_only_of_the_same_parts(one, other):
    if not any("\0" in part for part in one + other):
        assert (key_of(*one) == key_of(*other)) == (one == other)


@pytest.mark.parametrize("damage", [b"", b"contenT", b"content and more"])
def test_a_damaged_copy_is_none(cache, tmp_path, damage):
    put(cache, "a", b"content").write_bytes(damage)
    again = Cache(tmp_path / "cache", 1000)  # as a new process sees it
    assert get(again, "a") is None
    put(again, "a", b"content")
    assert get(again, "a") == b"content"


def test_the_least_recently_used_goes_first(cache, clock):
    for name in "abc":
        os.utime(put(cache, name, bytes(300)), (clock.now, clock.now))
        clock.now += 100
    assert get(cache, "a") is not None  # used now
    clock.now += 100
    put(cache, "d", bytes(300))
    assert [name for name in "abcd" if get(cache, name)] == ["a", "c", "d"]


def test_what_was_used_within_a_minute_stays_though_there_is_too_much(cache, clock):
    clock.now = time.time()
    for name in "abcde":
        put(cache, name, bytes(300))
    assert all(get(cache, name) for name in "abcde")
    clock.now += 1000
    put(cache, "f", bytes(300))
    assert sum(get(cache, name) is not None for name in "abcdef") == 3


def test_what_another_process_has_put_counts_too(tmp_path, clock):
    ours, theirs = (Cache(tmp_path / "cache", 1000, clock) for _ in range(2))
    put(ours, "a", bytes(600))
    for path in (tmp_path / "cache").glob("*/*"):
        os.utime(path, (clock.now, clock.now))
    put(theirs, "b", bytes(300))
    clock.now += 1000
    put(ours, "c", bytes(500))
    assert get(ours, "a") is None


def test_what_a_killed_process_left_goes_after_a_day(cache, tmp_path, clock):
    put(cache, "a", b"x")
    left = tmp_path / "cache/.tmp-left"
    left.write_bytes(bytes(5))
    os.utime(left, (clock.now - 2 * 86_400,) * 2)
    put(cache, "b", bytes(2000))
    assert not left.exists()
    assert get(cache, "b") is not None


def test_what_is_not_ours_stays_however_full_it_is(cache, tmp_path, clock):
    others = [tmp_path / "cache" / name for name in ("photo.jpg", "folder/visdiv.duckdb", "a" * 32)]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(5000))
        os.utime(path, (0, 0))
    for name in "abc":
        put(cache, name, bytes(900))
        clock.now += 1000
    assert all(path.exists() for path in others)


def test_the_copy_that_is_returned_is_there_however_long_it_took(cache, clock):
    def slow(file):
        file.write(bytes(2000))
        clock.now += 1000

    assert cache.put(key_of("a"), slow).exists()


def test_a_folder_that_cannot_be_written_to_is_said_with_what_to_set(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(VisdivError, match=r"file.*set cache\.folder"):
        put(Cache(tmp_path / "file", 1000), "a", b"x")


def test_a_write_that_fails_leaves_nothing(cache, tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cache.put(key_of("a"), fail)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_folder_may_be_emptied_at_any_time(cache, tmp_path):
    put(cache, "a", b"x")
    for folder in (tmp_path / "cache").iterdir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    (tmp_path / "cache").rmdir()
    assert get(cache, "a") is None
    put(cache, "a", b"x")
    assert get(cache, "a") == b"x"


def test_many_may_use_one_folder_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IN_USE_SECONDS", 0.0)
    wrong, lock = [], threading.Lock()

    def work(number):
        own = Cache(tmp_path / "cache", 2000)
        for turn in range(60):
            name = str((number + turn) % 9)
            content = name.encode() * 300
            put(own, name, content)
            try:
                found = get(own, name)
            except FileNotFoundError:  # between finding and reading; a minute is far longer
                continue
            if found not in (None, content):
                with lock:
                    wrong.append(name)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert wrong == []


def test_a_key_is_never_a_path(cache):
    for key in ("../x", "x", "a" * 31 + "/", ""):
        with pytest.raises(ValueError, match="not a key"):
            cache.get(key)
