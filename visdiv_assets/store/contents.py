"""What a dataset, or a part of it, is made of: rows of the store, and how often each occurs.

Here: reading that off an index, comparing and joining them, drawing the sample, moments from rows.
Not here: which moments are kept (`accumulation.py`), how they are multiplied out (`exact.py`).
"""

import hashlib
import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.exact import IntegerMoments, Scratch, integers_pay
from visdiv_assets.spectral.moments import BLOCK_ROWS, Moments
from visdiv_assets.spectral.sample import CAPACITY, Sample
from visdiv_assets.store.index import EmbeddingIndex, sample_keys, to_keys
from visdiv_assets.store.store import Store

# A place is the number of a segment and of a row in it: segment << 32 | row.
ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1

# Of moments: each has 4 MB for each part of a dataset.
MOST_THREADS = 8


@dataclass(frozen=True, eq=False)
class Contents:
    """A multiset of rows of the store.

    Attributes:
        segments: names of segments, sorted.
        places: number of the segment << 32 | row, shape (R,), int64, strictly ascending.
        counts: how often each occurs, shape (R,), int64, positive.
        keys: the first half of each content key, shape (R,), uint64; uniformly distributed.
    """

    segments: tuple[str, ...]
    places: NDArray[np.int64]
    counts: NDArray[np.int64]
    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, index: EmbeddingIndex) -> "Contents":
        """Of all images of an index that are embedded."""
        return split(index.table, np.zeros(len(index.table), dtype=np.int64), 1)[0]

    @classmethod
    def union(cls, parts: Sequence["Contents"]) -> "Contents":
        """Of several together: what occurs in more than one counts as often as in all of them."""
        return cls._signed([(part, 1) for part in parts])[0]

    @classmethod
    def _signed(cls, parts: Sequence[tuple["Contents", int]]) -> "tuple[Contents, Contents]":
        """What is left where counts are added or taken away, and what is wanting."""
        names = tuple(sorted({name for part, _ in parts for name in part.segments}))
        number = {name: at for at, name in enumerate(names)}
        placed, keys, counts = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], []
        for part, sign in parts:
            numbers = np.array([number[name] for name in part.segments], dtype=np.int64)
            own = part.places >> ROW_BITS
            placed.append(part.places + ((numbers[own] - own) << ROW_BITS))
            keys.append(part.keys)
            counts.append(sign * part.counts)
        places, first, inverse = np.unique(
            np.concatenate(placed), return_index=True, return_inverse=True
        )
        change = np.zeros(len(places), dtype=np.int64)
        np.add.at(change, inverse, np.concatenate([np.empty(0, np.int64), *counts]))
        of_first = np.concatenate(keys)[first]

        def those(sign: int) -> Contents:
            chosen = np.flatnonzero(sign * change > 0)
            return cls(names, places[chosen], sign * change[chosen], of_first[chosen])

        return those(1), those(-1)

    def __len__(self) -> int:
        return len(self.places)

    def minus(self, other: "Contents") -> "tuple[Contents, Contents]":
        """What is in this and not in the other, and what is in the other and not in this."""
        return self._signed([(self, 1), (other, -1)])

    def smallest(self, count: int) -> "Contents":
        """The rows with the smallest keys, so many at most, and only the segments they are in."""
        places, counts, keys = self.places, self.counts, self.keys
        if len(self) > count:
            chosen = np.sort(np.argpartition(keys, count - 1)[:count])
            places, counts, keys = places[chosen], counts[chosen], keys[chosen]
        used, numbers = np.unique(places >> ROW_BITS, return_inverse=True)
        names = tuple(self.segments[number] for number in used)
        return Contents(names, numbers << ROW_BITS | places & ROW_MASK, counts, keys)

    def checksum(self) -> NDArray[np.uint64]:
        """128 bits that tell multisets apart, shape (2,); those of a union are its parts' sum."""
        digests = [hashlib.blake2b(name.encode(), digest_size=16) for name in self.segments]
        seeds = np.frombuffer(b"".join(each.digest() for each in digests), "<u8").reshape(-1, 2)
        rows = (self.places & ROW_MASK).astype(np.uint64)
        mixed = _mixed(seeds[self.places >> ROW_BITS] + rows[:, None])
        return np.sum(mixed * self.counts.astype(np.uint64)[:, None], axis=0, dtype=np.uint64)

    def read(
        self, store: Store, model_id: str, chosen: NDArray[np.int64] | slice
    ) -> NDArray[np.float16]:
        """Some of the rows, shape (n, D), float16, from disk."""
        places = self.places[chosen]
        numbers, rows = places >> ROW_BITS, places & ROW_MASK
        order = np.argsort(places, kind="stable")
        ends = np.flatnonzero(np.diff(numbers[order], append=-1)) + 1
        read: NDArray[np.float16] | None = None
        for mine in np.split(order, ends[:-1]):
            stored = store.rows(model_id, self.segments[numbers[mine[0]]])
            if read is None:
                read = np.empty((len(places), stored.shape[1]), dtype=np.float16)
            read[mine] = stored[rows[mine]]
        return np.empty((0, 0), dtype=np.float16) if read is None else read

    def blocks(
        self, store: Store, model_id: str
    ) -> Iterator[tuple[NDArray[np.float16], NDArray[np.int64]]]:
        """All of the rows, up to BLOCK_ROWS at a time, and how often each occurs.

        Yields:
            rows of shape (R, D), float16, good until the next ones, and counts, shape (R,).
        """
        block = np.empty((0, 0), dtype=np.float16)
        numbers, rows = self.places >> ROW_BITS, self.places & ROW_MASK
        for start in range(0, len(self), BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, len(self))
            first = start
            while first < stop:
                last = min(stop, int(np.searchsorted(numbers, numbers[first], side="right")))
                stored = store.rows(model_id, self.segments[numbers[first]])
                if not block.size:
                    size = min(BLOCK_ROWS, len(self))
                    block = np.empty((size, stored.shape[1]), dtype=np.float16)
                low, high = int(rows[first]), int(rows[last - 1]) + 1
                consecutive = high - low == last - first
                place = block[first - start : last - start]
                if consecutive:
                    _read(stored, low, place)
                else:
                    place[...] = stored[rows[first:last]]
                first = last
            yield block[: stop - start], self.counts[start:stop]

    def moments(self, store: Store, model_id: str) -> tuple[Moments | None, float]:
        """Moments of the rows, and their largest | ‖x‖ − 1 |; None and 0 where there are none."""
        with closing(Accumulator(store, model_id, len(self))) as accumulator:
            accumulator.add({"": self})
            return accumulator.moments(""), accumulator.norm_error

    def shares(self, count: int) -> "list[Contents]":
        """So many parts of about the same size, one after the other."""
        ends = [len(self) * at // count for at in range(count + 1)]
        return [
            Contents(self.segments, self.places[own], self.counts[own], self.keys[own])
            for own in (slice(*pair) for pair in itertools.pairwise(ends))
        ]

    def sample(self, store: Store, model_id: str, moments: Moments) -> Sample:
        """The sample that goes with these moments: keys say which rows, and only those are read."""
        size = min(CAPACITY, len(self))
        smallest = np.argpartition(self.keys, size - 1)[:size] if size else np.arange(0)
        chosen = smallest[np.argsort(self.keys[smallest])]
        rows = self.read(store, model_id, chosen).astype(np.float64)
        return Sample(moments, self.keys[chosen], rows, self.counts[chosen])


def _read(stored: NDArray[np.float16], start: int, into: NDArray[np.float16]) -> None:
    """Copy rows one after the other from where they are mapped from."""
    if not isinstance(stored, np.memmap):
        into[...] = stored[start : start + len(into)]
        return
    # Reading takes half the time of mapping page by page.
    with Path(str(stored.filename)).open("rb") as file:
        file.seek(stored.offset + start * stored.strides[0])
        file.readinto(into)


EMPTY = Contents.union([])


class Accumulator:
    """Moments of contents that come in pieces, kept apart by part; holds no rows.

    To the last bit the same on every road and in every order, for rows on the store's grid.
    To be closed after use.

    Args:
        store: holds the rows.
        model_id: of the rows.
        expected: rows to come, of all parts; a guess will do. It decides on the road.
    """

    def __init__(self, store: Store, model_id: str, expected: int) -> None:
        self._store, self._model_id = store, model_id
        self._in_float64: dict[str, Moments] = {}
        # By part and number of the share of it: each is added to by one thread at a time.
        self._in_integers: dict[tuple[str, int], IntegerMoments] = {}
        self._threads = 1
        self._pool: ThreadPoolExecutor | None = None
        self._own = threading.local()
        if integers_pay(expected):
            self._threads = min(usable_cpus(), MOST_THREADS)
            self._pool = ThreadPoolExecutor(
                self._threads, thread_name_prefix="moments", initializer=_limit_to_this_thread
            )
        self._adding: list[Future[float]] = []
        self._norm_error = 0.0

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def add(self, parts: Mapping[str, Contents]) -> None:
        """Read the rows of one or several parts and add them up; may return before it is done."""
        if self._pool is None:
            for part, contents in parts.items():
                self._add_in_float64(part, contents)
            return
        own = sum(map(len, parts.values())) / self._threads  # what each thread has to do
        self._wait()  # no two threads add to one share
        self._adding = [
            self._pool.submit(self._add_in_integers, (part, number), share)
            for part, contents in parts.items()
            if len(contents)
            for number, share in enumerate(contents.shares(math.ceil(len(contents) / own)))
        ]

    def _wait(self) -> None:
        adding, self._adding = self._adding, []
        self._norm_error = max([self._norm_error, *(each.result() for each in adding)])

    def _add_in_float64(self, part: str, contents: Contents) -> None:
        """NumPy's product has threads of its own."""
        for rows, counts in contents.blocks(self._store, self._model_id):
            exact = rows.astype(np.float32)
            norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
            self._norm_error = max(self._norm_error, float(np.abs(norms - 1).max()))
            moments, so_far = Moments.of(rows, counts), self._in_float64.get(part)
            self._in_float64[part] = moments if so_far is None else so_far + moments

    def _add_in_integers(self, share: tuple[str, int], contents: Contents) -> float:
        error = 0.0
        for rows, counts in contents.blocks(self._store, self._model_id):
            if not hasattr(self._own, "scratch"):
                self._own.scratch = Scratch(rows.shape[1])
            if share not in self._in_integers:
                self._in_integers[share] = IntegerMoments(rows.shape[1])
            error = max(error, self._in_integers[share].add(rows, counts, self._own.scratch))
        return error

    @property
    def norm_error(self) -> float:
        """Largest | ‖x‖ − 1 | of all rows so far."""
        self._wait()
        return self._norm_error

    def moments(self, part: str) -> Moments | None:
        """Of all rows of a part so far; None where there were none."""
        if self._pool is None:
            return self._in_float64.get(part)
        self._wait()
        shares = [sums.moments() for (its, _), sums in self._in_integers.items() if its == part]
        return Moments.sum(shares) if shares else None


def _limit_to_this_thread() -> None:
    """Let torch use no other threads than the one that calls."""
    import torch

    torch.get_num_threads()  # it takes what it may use at its first call
    threadpool_limits(1, user_api="openmp")


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number as one that looks random, and others for others.

    References:
        Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
    """
    numbers = numbers * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


def split(table: pa.Table, codes: NDArray[np.int64], parts: int) -> list[Contents]:
    """The contents of each part of a dataset.

    Args:
        table: of an index, or some rows of it; columns `content_key`, `segment`, `row`.
        codes: which part each row of the table belongs to, below `parts`.
        parts: how many there are.
    """
    valid = pc.is_valid(table["row"])
    placed = table.select(["content_key", "segment", "row"]).filter(valid)
    codes = codes[valid.to_numpy()]
    column = placed["segment"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no rows at all
        column = pa.array([], pa.dictionary(pa.int32(), pa.string()))
    told = column.dictionary.to_pylist()
    names = tuple(sorted({told[code] for code in np.unique(column.indices.to_numpy())}))
    number = {name: at for at, name in enumerate(names)}
    numbers = np.array([number.get(name, 0) for name in told], dtype=np.int64)
    places = numbers[column.indices.to_numpy()] if told else np.empty(0, dtype=np.int64)
    places = places << ROW_BITS | placed["row"].to_numpy().astype(np.int64)
    keys = sample_keys(to_keys(placed["content_key"]))
    by_part = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=parts))
    contents = []
    for members in np.split(by_part, ends[:-1]) if parts > 1 else [slice(None)]:
        own, first, counts = np.unique(places[members], return_index=True, return_counts=True)
        contents.append(Contents(names, own, counts.astype(np.int64), keys[members][first]))
    return contents
