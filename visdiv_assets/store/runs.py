"""Sorted runs: where content keys are, in immutable files that are searched where they lie.

Here: the format of a run, searching one, merging several. Not here: which runs a model has
(`key_index.py`), reading segments (`store.py`).

    entries   ENTRY, in order of keys, segments and rows
    footer    head of the first entry and sum of each block of BLOCK entries; segments
    TAIL      how long all of this is, and a hash of the footer

Only blocks that may hold a key are read, and each of them is verified. They are read, not mapped:
mapped pages would count as memory of the process, and a file cut short would end it.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.store.index import Keys
from visdiv_assets.store.objects import Objects

# The two halves of a key as numbers, which sort like the key, and its place.
ENTRY = np.dtype([("head", "<u8"), ("tail", "<u8"), ("segment", "<u4"), ("row", "<u4")])
Entries = NDArray[np.void]
BLOCK = 1024
# Blocks that one search or one step of a merge reads at a time: 1.5 and 12 MiB.
SEARCHED_AT_ONCE = 64
MERGED_AT_ONCE = 512

# Numbers of entries and segments, length of the names, hash of the footer, format.
TAIL = struct.Struct("<QQQ16s8s")
FORMAT = b"vd-run 1"

Halves = tuple[NDArray[np.uint64], NDArray[np.uint64]]
Places = tuple[NDArray[np.int32], NDArray[np.int32]]


class DamagedRunError(VisdivError):
    """What was written to a run cannot be read. Nothing is lost: it is made of segments."""

    def __init__(self, shown: str, name: str) -> None:
        super().__init__(f"{shown} is damaged; it is made again")
        self.name = name


def halves(keys: Keys) -> Halves:
    """The first and the last 8 bytes of each key as numbers, which sort like the bytes."""
    numbers = np.frombuffer(keys.tobytes(), dtype=">u8").astype(np.uint64)
    return numbers[::2], numbers[1::2]


def entries_of(keys: Keys, segment: NDArray[np.int64], row: NDArray[np.int64]) -> Entries:
    """Entries in the order of a run: by key, then by segment and row."""
    entries = np.empty(len(keys), dtype=ENTRY)
    entries["head"], entries["tail"] = halves(keys)
    entries["segment"], entries["row"] = segment, row
    return _sorted(entries)


def _sorted(entries: Entries) -> Entries:
    heads = np.ascontiguousarray(entries["head"])
    order = np.argsort(heads, kind="stable")
    heads = heads[order]
    if (heads[1:] == heads[:-1]).any():  # rare: content that was embedded twice
        order = np.lexsort([entries[name] for name in ("row", "segment", "tail", "head")])
    return entries[order]


class Run:
    """Entries of some segments, on disk or in memory. Several threads may search it at once.

    Attributes:
        segments: names of its segments, sorted; `segment` of an entry is a position in them.
        sizes: number of entries of each segment.
        name: its file in the store; None if it is in memory.
    """

    def __init__(
        self,
        segments: Sequence[str],
        sizes: NDArray[np.uint32],
        summary: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        read: Callable[[int, int], bytes | memoryview],
        name: str | None = None,
        shown: str = "",
    ) -> None:
        self.segments, self.sizes, self.name = tuple(segments), sizes, name
        self._shown = shown
        self._n = int(sizes.sum())
        self._fences, self._sums = summary
        self._read = read

    @classmethod
    def of(cls, segments: Sequence[str], entries: Entries) -> "Run":
        """A run in memory.

        Args:
            segments: their names; where two hold one key, the first of them is found.
            entries: as `entries_of` returns them.
        """
        data = memoryview(entries.view(np.uint8))
        sizes = np.bincount(entries["segment"], minlength=len(segments)).astype(np.uint32)
        return cls(segments, sizes, _summary(entries), lambda start, end: data[start:end])

    @classmethod
    def open(cls, objects: Objects, name: str) -> "Run":
        """A run in the store, of which only the footer is read.

        Raises:
            DamagedRunError: it is not what was written.
            OSError: it is gone, or cannot be opened.
        """
        damaged = DamagedRunError(objects.shown(name), name)
        try:
            size, read = objects.ranges(name)
        except IsADirectoryError:
            raise damaged from None
        start = size - TAIL.size
        if start < 0:
            raise damaged
        n, n_segments, n_names, digest, form = TAIL.unpack(read(start, size))
        n_blocks = math.ceil(n / BLOCK)
        length = 16 * n_blocks + 4 * n_segments + n_names
        if form != FORMAT or start != n * ENTRY.itemsize + length:
            raise damaged
        footer = read(start - length, start)
        if _hash(footer) != digest:
            raise damaged
        numbers = np.frombuffer(footer, dtype="<u8", count=2 * n_blocks)
        sizes = np.frombuffer(footer, dtype="<u4", count=n_segments, offset=16 * n_blocks)
        names = json.loads(footer[length - n_names :])
        summary = (numbers[:n_blocks], numbers[n_blocks:])
        return cls(names, sizes, summary, read, name, objects.shown(name))

    def __len__(self) -> int:
        return self._n

    def find(self, keys: Halves, position: NDArray[np.int32]) -> Places:
        """For each key, the position of the first segment that has it and its row, or -1.

        Args:
            keys: as `halves` returns them, in order of the first halves.
            position: of each of the segments, as it is returned; -1 for those that are gone.

        Raises:
            DamagedRunError: a block that may hold one of them is not what was written.
        """
        heads, tails = keys
        found, rows = (np.full(len(heads), -1, dtype=np.int32) for _ in range(2))
        if not self._n or not len(heads):
            return found, rows
        # Entries of one key may begin in the block before the one that begins with it.
        first = np.maximum(np.searchsorted(self._fences, heads, "left") - 1, 0)
        last = np.maximum(np.searchsorted(self._fences, heads, "right") - 1, 0)
        cuts = np.flatnonzero(np.diff(first // SEARCHED_AT_ONCE)) + 1
        for start, end in zip([0, *cuts], [*cuts, len(heads)], strict=True):
            here = slice(start, end)
            entries = self._blocks_between(first[here], last[here])
            at = np.searchsorted(entries["head"], heads[here])
            left = np.arange(start, end)
            while len(left):
                inside = at < len(entries)
                at, left = at[inside], left[inside]
                entry = entries[at]
                alike = entry["head"] == heads[left]
                at, left, entry = at[alike], left[alike], entry[alike]
                there = position[entry["segment"]]
                right = (entry["tail"] == tails[left]) & (there >= 0)
                found[left[right]], rows[left[right]] = there[right], entry["row"][right]
                at, left = at[~right] + 1, left[~right]
        return found, rows

    def between(self, start: int, end: int | None) -> Entries:
        """The entries whose heads are at least `start` and less than `end`."""
        if not self._n:
            return np.empty(0, dtype=ENTRY)
        low = np.uint64(start)
        first = max(int(np.searchsorted(self._fences, low, "left")) - 1, 0)
        last = len(self._fences)
        if end is not None:
            last = max(int(np.searchsorted(self._fences, np.uint64(end), "left")), first + 1)
        entries = self._blocks(first, last)
        inside = entries["head"] >= low
        if end is not None:
            inside &= entries["head"] < np.uint64(end)
        return entries[inside]

    def cuts(self, blocks: int) -> list[int]:
        """Heads that divide the run into parts of about so many blocks each."""
        return sorted({int(head) for head in self._fences[blocks::blocks]})

    def _blocks_between(self, first: NDArray[np.intp], last: NDArray[np.intp]) -> Entries:
        """All blocks between a first and a last one each, as one array."""
        base, end = int(first[0]), int(last[-1]) + 1  # the keys are in order
        if end - base <= 2 * len(first):
            return self._blocks(base, end)
        steps = np.zeros(end - base + 1, dtype=np.int64)
        np.add.at(steps, first - base, 1)
        np.add.at(steps, last - base + 1, -1)
        wanted = np.cumsum(steps) > 0  # the last is False
        edges = np.flatnonzero(np.diff(wanted, prepend=False)) + base
        parts = [
            self._blocks(int(start), int(end))
            for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _blocks(self, first: int, end: int) -> Entries:
        """Consecutive blocks, verified."""
        stop = min(end * BLOCK, self._n)
        try:
            data = self._read(first * BLOCK * ENTRY.itemsize, stop * ENTRY.itemsize)
        except OSError as error:  # a bad sector, or others have merged it
            assert self.name is not None
            raise DamagedRunError(self._shown, self.name) from error
        if self.name is None:
            return np.frombuffer(data, dtype=ENTRY)
        if len(data) != (stop - first * BLOCK) * ENTRY.itemsize:
            raise DamagedRunError(self._shown, self.name)
        entries = np.frombuffer(data, dtype=ENTRY)
        if (_sums(entries) != self._sums[first:end]).any():
            raise DamagedRunError(self._shown, self.name)
        return entries


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _summary(entries: Entries) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """For each block, its first head and its sum."""
    return np.ascontiguousarray(entries["head"][::BLOCK]), _sums(entries)


def _sums(entries: Entries) -> NDArray[np.uint64]:
    """For each block, the sum of its bytes as numbers of 64 bits.

    A sum finds what disks do to bytes as surely as a hash does, at the speed of memory.
    """
    words = entries.view(np.uint64)
    starts = np.arange(0, len(words), BLOCK * (ENTRY.itemsize // 8))
    sums: NDArray[np.uint64] = np.add.reduceat(words, starts)
    return sums


def write_run(
    objects: Objects, folder: str, segments: Sequence[str], parts: Iterable[Entries]
) -> str:
    """Write a run of these segments, whose entries come in order; the name of its file.

    Its name follows from those of its segments, so whoever writes it writes the same.
    """
    names = json.dumps(list(segments)).encode()
    name = f"{folder}/{_hash(names).hex()}.run"
    objects.write(name, lambda file: _write(file, names, len(segments), parts))
    return name


def _write(file: IO[bytes], names: bytes, n_segments: int, parts: Iterable[Entries]) -> None:
    n, fences, sums = 0, list[bytes](), list[bytes]()
    sizes = np.zeros(n_segments, dtype=np.uint32)
    for part in _in_blocks(parts):
        file.write(part.view(np.uint8).data)
        n += len(part)
        sizes += np.bincount(part["segment"], minlength=n_segments).astype(np.uint32)
        for kept, more in zip((fences, sums), _summary(part), strict=True):
            kept.append(more.astype("<u8").tobytes())
    footer = b"".join([*fences, *sums, sizes.astype("<u4").tobytes(), names])
    file.write(footer)
    file.write(TAIL.pack(n, n_segments, len(names), _hash(footer), FORMAT))


def _in_blocks(parts: Iterable[Entries]) -> Iterator[Entries]:
    """The same entries in parts of whole blocks, except for the last."""
    rest = np.empty(0, dtype=ENTRY)
    for part in parts:
        joined = np.concatenate([rest, part])
        whole = len(joined) // BLOCK * BLOCK
        if whole:
            yield joined[:whole]
        rest = joined[whole:]
    if len(rest):
        yield rest


def merged(runs: Sequence[Run], there: Collection[str]) -> tuple[list[str], Iterator[Entries]]:
    """The segments and the entries of several runs as of one, a part at a time.

    Args:
        runs: at least one; segments that several of them have are taken once.
        there: the segments that there are; others are left out.
    """
    owner = {name: at for at, run in reversed(list(enumerate(runs))) for name in run.segments}
    segments = sorted(name for name in owner if name in there)
    number = {name: at for at, name in enumerate(segments)}
    numbers = [
        np.array(
            [number.get(name, -1) if owner[name] == at else -1 for name in run.segments],
            dtype=np.int64,
        )
        for at, run in enumerate(runs)
    ]

    def parts() -> Iterator[Entries]:
        largest, total = max(runs, key=len), sum(map(len, runs))
        step = max(1, MERGED_AT_ONCE * len(largest) // max(total, 1))
        cuts = largest.cuts(step)
        for start, end in zip([0, *cuts], [*cuts, None], strict=True):
            yield _sorted(
                np.concatenate(
                    [
                        _renumbered(run.between(start, end), new)
                        for run, new in zip(runs, numbers, strict=True)
                    ]
                )
            )

    return segments, parts()


def _renumbered(entries: Entries, numbers: NDArray[np.int64]) -> Entries:
    """The entries with other numbers for their segments, without those that have none."""
    new = numbers[entries["segment"]]
    kept: Entries = entries[new >= 0]
    kept["segment"] = new[new >= 0]
    return kept
