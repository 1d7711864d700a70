"""The key index: what is found, whatever was added, merged, removed and damaged meanwhile."""

import errno
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.store import key_index, runs, store
from visdiv_assets.store.index import KEY_BYTES
from visdiv_assets.store.key_index import KeyIndex, RunFolder
from visdiv_assets.store.runs import DamagedRunError, Run
from visdiv_assets_tests.store.homes import DiskHome, new_home

# Few different halves, so that many keys begin alike and many segments share some.
halves = st.sampled_from([b"\0" * 8, b"\0" * 7 + b"\1", b"\x7f" * 8, b"\xff" * 8])
content_keys = st.tuples(halves, halves).map(b"".join)
segments_of_keys = st.lists(content_keys, max_size=7, unique=True)


def as_keys(keys):
    return np.array(keys, dtype=f"S{KEY_BYTES}")


def random_keys(n, seed):
    return np.frombuffer(np.random.default_rng(seed).bytes(n * KEY_BYTES), f"S{KEY_BYTES}")


class Segments:
    """Segments by name, and the folder of their runs; counts how often each is read."""

    def __init__(self, home, **keys):
        self.home, self.keys, self.reads = home, keys, []
        self.objects = home.objects()

    def index(self):
        return RunFolder(self.objects, "runs", lambda: sorted(self.keys), self._read).index()

    def _read(self, name):
        self.reads.append(name)
        return self.keys[name]

    def runs(self):
        paths = self.home.root.glob("runs/*.run")
        return sorted((path for path in paths if path.name[0] != "."), key=lambda path: path.name)

    def opened(self):
        return [Run.open(self.objects, f"runs/{path.name}") for path in self.runs()]

    def expected(self, key):
        """The first segment that has a key, and its row."""
        for name in sorted(self.keys):
            rows = np.flatnonzero(self.keys[name] == as_keys([key])[0])
            if len(rows):
                return name, int(rows[0])
        return None


def found(index, keys):
    return [
        (index.segments[segment], int(row)) if segment >= 0 else None
        for segment, row in zip(*index.find(as_keys(keys)), strict=True)
    ]


def small(block, at_once, few):
    """Limits so small that a few keys reach all of them."""
    patches = ExitStack()
    for module, name, value in (
        (runs, "BLOCK", block),
        (runs, "SEARCHED_AT_ONCE", at_once),
        (runs, "MERGED_AT_ONCE", at_once),
        (key_index, "READ_AT_ONCE", at_once),
        (key_index, "FEW", few),
    ):
        patches.enter_context(mock.patch.object(module, name, value))
    return patches


@pytest.fixture
def segments(place):
    """A run of three segments of 3,000 keys each, so of nine blocks."""
    made = Segments(place, **{name: random_keys(3000, at) for at, name in enumerate("abc")})
    made.index()
    assert len(made.runs()) == 1
    return made


# --- what is found ---


@given(
    st.lists(st.one_of(segments_of_keys, st.integers(0, 9), st.none()), max_size=12),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([0, 5, 100]),
)
def test_every_key_is_found_in_the_first_segment_that_is_there(
    make_home, steps, block, at_once, few
):
    """A step adds a segment, removes one, or opens the index."""
    with new_home(make_home) as home, small(block, at_once, few):
        made = Segments(home)
        for number, step in enumerate([*steps, None]):
            if isinstance(step, list):
                # Names are in no order, as hashes are not.
                made.keys[f"{number * 7 % 13:02}"] = as_keys(step)
            elif step is not None and made.keys:
                del made.keys[sorted(made.keys)[step % len(made.keys)]]
            else:
                index = made.index()
                asked = [a + b for a in (b"\0" * 8, b"\x7f" * 8) for b in (b"\0" * 8, b"\2" * 8)]
                asked += {bytes(key).ljust(16, b"\0") for own in made.keys.values() for key in own}
                assert found(index, asked) == [made.expected(key) for key in asked]
                assert [key in index for key in asked] == [
                    made.expected(key) is not None for key in asked
                ]
                assert len(index) == sum(map(len, made.keys.values()))
                assert list(index.segments) == sorted(made.keys)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=300), st.integers(1, 40), st.data())
def test_keys_are_found_among_many_blocks(make_home, heads, block, data):
    keys = [head.to_bytes(8, "big") + bytes([at % 5]) * 8 for at, head in enumerate(heads)]
    with new_home(make_home) as home, small(block, 3, 1000):
        made = Segments(home, a=as_keys(keys[::2]), b=as_keys(keys[1::2]))
        index = made.index()
        asked = data.draw(st.lists(st.sampled_from(keys), max_size=20)) if keys else []
        asked += [bytes(16), b"\xff" * 16]
        assert found(index, asked) == [made.expected(key) for key in asked]


def test_an_index_in_memory_finds_the_place_in_the_segment_that_comes_first():
    keys = as_keys([b"x" * 16, b"y" * 16, b"x" * 16])
    index = KeyIndex.of(["late", "early"], keys, np.array([1, 1, 0]), np.array([7, 8, 9]))
    assert found(index, [b"x" * 16, b"y" * 16, b"z" * 16]) == [("late", 9), ("early", 8), None]


def test_of_a_segment_that_is_left_out_nothing_is_found(segments):
    segments.keys["d"] = segments.keys["a"][:10]
    index = segments.index()
    index.leave_out(["a"])
    assert found(index, segments.keys["a"][9:11]) == [("d", 9), None]


# --- what is read and written ---


def test_each_segment_is_read_once(segments):
    assert segments.reads == ["a", "b", "c"]
    segments.keys["d"] = random_keys(10, 9)
    index = segments.index()
    assert segments.reads == ["a", "b", "c", "d"]
    assert found(index, segments.keys["d"][:2]) == [("d", 0), ("d", 1)]
    segments.index()
    assert segments.reads == ["a", "b", "c", "d"]


def test_a_damaged_segment_is_in_no_run_and_tried_again(segments):
    keys, segments.keys["d"] = random_keys(10, 9), None
    assert "d" not in segments.index().segments
    segments.keys["d"] = keys
    assert found(segments.index(), keys[:1]) == [("d", 0)]


def test_a_look_up_reads_only_the_blocks_that_may_hold_the_key(tmp_path, monkeypatch):
    segments = Segments(DiskHome(tmp_path), a=random_keys(3000, 0), b=random_keys(3000, 1))
    index, read, pread = segments.index(), [], os.pread

    def watched(descriptor, length, start):
        read.append(length)
        return pread(descriptor, length, start)

    monkeypatch.setattr(os, "pread", watched)
    assert segments.keys["b"][17] in index
    assert read == [runs.BLOCK * runs.ENTRY.itemsize]


def test_runs_are_as_few_as_doublings_and_each_entry_is_written_as_often(place, monkeypatch):
    monkeypatch.setattr(key_index, "FEW", 0)
    made, written, write = Segments(place), [], runs._sums

    def watched(entries):
        written.append(len(entries))
        return write(entries)

    monkeypatch.setattr(runs, "_sums", watched)
    for number in range(200):
        made.keys[f"{number:03}"] = random_keys(3, number)
        made.index()
        assert len(made.runs()) <= math.log2(number + 1) + 1
    # Entries that are merged are looked at twice, when they are read and when they are written.
    assert sum(written) <= 2 * 600 * (math.log2(200) + 1)


def test_runs_of_segments_that_are_gone_are_removed(segments):
    segments.keys = {"d": random_keys(10, 9)}
    segments.index()
    assert [run.segments for run in segments.opened()] == [("d",)]


def test_whoever_writes_a_run_writes_the_same(segments, make_home, tmp_path):
    other = Segments(make_home(tmp_path / "other"), **segments.keys)
    other.index()
    [one], [two] = segments.runs(), other.runs()
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_where_no_run_can_be_written_the_index_is_in_memory(place, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(key_index, "write_run", refuse)
    made = Segments(place, a=random_keys(2000, 1), b=random_keys(2000, 2))
    index = made.index()
    assert made.runs() == []
    assert found(index, [made.keys["b"][1999], b"?" * 16]) == [("b", 1999), None]
    assert len(index) == 4000


def test_a_file_in_place_of_the_folder_costs_time_only(tmp_path):
    home = DiskHome(tmp_path)
    home.root.mkdir()
    (home.root / "runs").write_text("no folder")
    made = Segments(home, a=random_keys(5, 1))
    assert found(made.index(), made.keys["a"][4:]) == [("a", 4)]


# --- damage ---


def halved(content):
    return content[: len(content) // 2]


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << at % 8
    path.write_bytes(content)


DAMAGE = {
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
    "cut in half": lambda path: path.write_bytes(halved(path.read_bytes())),
    "cut at its end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "one bit of the entries": lambda path: flipped(path, 100_001),
    "one bit of the footer": lambda path: flipped(path, -100),
    "deleted": lambda path: path.unlink(),
    "a folder instead": lambda path: (path.unlink(), path.mkdir()),
    "unreadable": lambda path: path.chmod(0),
}
OF_DISKS = {"a folder instead", "unreadable"}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_whatever_happens_to_a_run_all_keys_are_found(segments, kind, when):
    if kind in OF_DISKS and segments.home.kind != "disk":
        pytest.skip("buckets know no such thing")
    index = segments.index()
    [path] = segments.runs()
    DAMAGE[kind](path)
    if when == "before it is opened":
        index = segments.index()
    for name, keys in segments.keys.items():
        assert found(index, keys) == [(name, row) for row in range(len(keys))]
    segments.index()
    [run] = segments.opened()  # in order again
    assert len(run) == 9000


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_run_that_the_disk_no_longer_gives_is_made_again(tmp_path, monkeypatch, number):
    segments = Segments(DiskHome(tmp_path), a=random_keys(3000, 0), b=random_keys(3000, 1))
    index, pread, refused = segments.index(), os.pread, []

    def refuse_once(*arguments):
        if not refused:
            refused.append(arguments)
            raise OSError(number, os.strerror(number))
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", refuse_once)
    assert found(index, segments.keys["b"][:9]) == [("b", row) for row in range(9)]
    assert refused


@given(st.integers(0, 10**6))
def test_any_bit_that_is_flipped_hides_no_key(make_home, at):
    with new_home(make_home) as home, small(16, 2, 0):
        made = Segments(home, a=random_keys(100, 1), b=random_keys(100, 2))
        made.index()
        [path] = made.runs()
        flipped(path, at)
        index = made.index()
        asked = [*made.keys["a"], *made.keys["b"]]
        assert found(index, asked) == [made.expected(key) for key in asked]


def test_a_damaged_run_is_no_part_of_a_merged_one(segments):
    flipped(segments.runs()[0], 100_001)
    segments.keys["d"] = random_keys(10, 9)
    index = segments.index()
    assert len(segments.runs()) == 1
    assert found(index, segments.keys["a"][:1]) == [("a", 0)]


def test_a_damaged_run_that_cannot_be_removed_is_passed_over(segments, monkeypatch):
    flipped(segments.runs()[0], 100_001)

    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(segments.objects), "delete", refuse)
    monkeypatch.setattr(key_index, "write_run", refuse)
    index = segments.index()
    for name, keys in segments.keys.items():
        assert found(index, keys) == [(name, row) for row in range(len(keys))]


def test_a_disk_that_keeps_nothing_is_an_error_in_the_end(tmp_path, monkeypatch):
    segments = Segments(DiskHome(tmp_path), a=random_keys(3000, 0))
    index = segments.index()
    monkeypatch.setattr(os, "pread", lambda descriptor, length, start: bytes(length))
    monkeypatch.setattr(RunFolder, "_repaired", lambda folder, error: folder._opened())
    monkeypatch.setattr(Run, "open", lambda objects, name: index._runs[0][0])
    with pytest.raises(DamagedRunError, match="is damaged"):
        index.find(segments.keys["a"])


# --- several at once ---


def test_an_open_index_survives_that_another_process_merges_its_runs(segments):
    index = segments.index()
    before = segments.runs()
    segments.keys["d"] = random_keys(10, 9)
    segments.index()
    assert segments.runs() != before
    for name in "abc":
        assert found(index, segments.keys[name][:9]) == [(name, row) for row in range(9)]


def test_many_may_add_and_merge_runs_of_one_folder_at_once(place):
    keys = {f"{at:02}": random_keys(50, at) for at in range(40)}
    everything = {}

    def work(worker):
        own = Segments(place)
        own.keys = everything
        for name in list(keys)[worker::4]:
            everything[name] = keys[name]
            index = own.index()
            assert found(index, keys[name]) == [(name, row) for row in range(50)]

    with small(8, 2, 0), ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
        made = Segments(place, **keys)
        index = made.index()
        assert len(index) == 2000
        for name, own in keys.items():
            assert found(index, own[:3]) == [(name, 0), (name, 1), (name, 2)]


# --- in a store ---


@pytest.fixture
def filled(place):
    """A place with a store of three segments of two rows, the store, and all keys."""
    made = place.store()
    keys = [bytes([number]) * KEY_BYTES for number in range(6)]
    for start in (0, 2, 4):
        with made.segment_writer("model") as writer:
            for key in keys[start : start + 2]:
                writer.add(key, np.array([0.5, 0.5], dtype=np.float32))
    return place, made, keys


def test_a_store_of_the_previous_version_gets_its_runs(filled, monkeypatch):
    place, made, keys = filled
    folder = place.root / "embeddings/model/.keys"
    assert not folder.exists()
    index = made.key_index("model")
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(store, "read_table", None)  # no segment is read again
    again = made.key_index("model")
    assert found(again, keys) == found(index, keys)
    assert len(again) == 6


def test_runs_are_no_segments_and_belong_to_one_model(filled):
    place, made, keys = filled
    made.key_index("model")
    assert len(made.segment_names("model")) == 3
    assert made.model_ids() == ["model"]
    assert keys[0] not in made.key_index("other")
    assert not (place.root / "embeddings/other").exists()


def test_the_index_is_made_again_from_the_segments(filled):
    place, made, keys = filled
    before = found(made.key_index("model"), keys)
    for path in place.root.glob("embeddings/model/.keys/*"):
        path.unlink()
    assert found(made.key_index("model"), keys) == before


def test_a_segment_that_is_taken_out_of_use_is_found_no_more(filled):
    place, made, keys = filled
    index = made.key_index("model")
    name, _ = found(index, keys[:1])[0]
    (place.root / f"embeddings/model/{name}.npy").unlink()
    assert made.retire_damaged("model", [name]) == 1
    again = made.key_index("model")
    assert len(again) == 4
    assert sum(key in again for key in keys) == 4
