"""The contents of a dataset or slice: rows of the store, and how often each occurs.

Here: reading contents from an index, joining them, drawing the sample, moments of the rows.
Not here: slices of a dataset, and storing moments (`workflows/moments.py`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import BLOCK_ROWS, Moments
from visdiv_assets.spectral.sample import CAPACITY, HEAVY_SHARE, Kept, Sample
from visdiv_assets.store.index import EmbeddingIndex, sample_keys, to_keys
from visdiv_assets.store.store import Store

# A place combines the number of a segment and of a row in it: segment << 32 | row.
ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1


@dataclass(frozen=True, eq=False)
class Contents:
    """A multiset of rows of the store.

    Attributes:
        segments: names of segments, sorted.
        places: number of the segment << 32 | row, shape (R,), int64, strictly ascending.
        counts: how often each row occurs, shape (R,), int64, positive.
        keys: the first half of each content key, shape (R,), uint64; uniformly distributed.
    """

    segments: tuple[str, ...]
    places: NDArray[np.int64]
    counts: NDArray[np.int64]
    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, index: EmbeddingIndex) -> "Contents":
        """The contents of all embedded images of an index."""
        return split(index.table, np.zeros(len(index.table), dtype=np.int64), 1)[0]

    @classmethod
    def union(cls, parts: Sequence["Contents"]) -> "Contents":
        """The union of several multisets; the counts of a row are added."""
        names = tuple(sorted({name for part in parts for name in part.segments}))
        number = {name: at for at, name in enumerate(names)}
        placed, keys, counts = (
            [np.empty(0, np.int64)],
            [np.empty(0, np.uint64)],
            [np.empty(0, np.int64)],
        )
        for part in parts:
            numbers = np.array([number[name] for name in part.segments], dtype=np.int64)
            own = part.places >> ROW_BITS
            placed.append(part.places + ((numbers[own] - own) << ROW_BITS))
            keys.append(part.keys)
            counts.append(part.counts)
        places, first, inverse = np.unique(
            np.concatenate(placed), return_index=True, return_inverse=True
        )
        together = np.zeros(len(places), dtype=np.int64)
        np.add.at(together, inverse, np.concatenate(counts))
        return cls(names, places, together, np.concatenate(keys)[first])

    def __len__(self) -> int:
        return len(self.places)

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    def smallest(self, count: int) -> "Contents":
        """At most `count` rows, those with the smallest keys, and the segments that they use."""
        if len(self) <= count:
            return self.part(np.arange(len(self)))
        return self.part(np.sort(np.argpartition(self.keys, count - 1)[:count]))

    def part(self, chosen: NDArray[np.int64]) -> "Contents":
        """Some of the rows, in this order, and the segments that they use."""
        places = self.places[chosen]
        used, numbers = np.unique(places >> ROW_BITS, return_inverse=True)
        names = tuple(self.segments[number] for number in used)
        places = numbers << ROW_BITS | places & ROW_MASK
        return Contents(names, places, self.counts[chosen], self.keys[chosen])

    def heavy(self, n: int, known: NDArray[np.uint64] | None = None) -> "Contents":
        """The rows that make up 1 % of `n` images or more, and those whose keys are known."""
        chosen = self.counts >= HEAVY_SHARE * n
        if known is not None:
            chosen |= np.isin(self.keys, known)
        return self.part(np.flatnonzero(chosen))

    def checksum(self) -> NDArray[np.uint64]:
        """A 128-bit checksum, shape (2,); the checksum of a union is the sum of its parts'."""
        digests = [hashlib.blake2b(name.encode(), digest_size=16) for name in self.segments]
        seeds = np.frombuffer(b"".join(each.digest() for each in digests), "<u8").reshape(-1, 2)
        rows = (self.places & ROW_MASK).astype(np.uint64)
        mixed = _mixed(seeds[self.places >> ROW_BITS] + rows[:, None])
        return np.sum(mixed * self.counts.astype(np.uint64)[:, None], axis=0, dtype=np.uint64)

    def read(
        self, store: Store, model_id: str, chosen: NDArray[np.int64] | slice
    ) -> NDArray[np.float16]:
        """Read some of the rows from disk, shape (n, D), float16."""
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
        """Read all rows, up to BLOCK_ROWS at a time, with their counts.

        Yields:
            rows, shape (R, D), float16, valid until the next iteration, and counts, shape (R,).
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
        """Moments of the rows, and their largest | ‖x‖ − 1 |; None and 0 if there are no rows."""
        moments, norm_error = None, 0.0
        for rows, counts in self.blocks(store, model_id):
            exact = rows.astype(np.float32)
            norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
            norm_error = max(norm_error, float(np.abs(norms - 1).max()))
            block = Moments.of(rows, counts)
            moments = block if moments is None else moments + block
        return moments, norm_error

    def sample(
        self, store: Store, model_id: str, moments: Moments, heavy: "Contents | None" = None
    ) -> Sample:
        """The sample that belongs to these moments; reads only the rows that are kept.

        Args:
            store: holds the rows.
            model_id: of the rows.
            moments: of all rows.
            heavy: those that may be heavy, if not all contents are here.
        """
        size = min(CAPACITY, len(self))
        smallest = np.argpartition(self.keys, size - 1)[:size] if size else np.arange(0)
        chosen = smallest[np.argsort(self.keys[smallest])]
        rows = self.read(store, model_id, chosen).astype(np.float64)
        drawn = Sample(moments, self.keys[chosen], rows, self.counts[chosen])
        return (self if heavy is None else heavy).beside(drawn, store, model_id)

    def beside(self, drawn: Sample, store: Store, model_id: str) -> Sample:
        """The same sample, with all heavy rows of these contents that are not in it."""
        heavy = self.heavy(drawn.moments.n)
        chosen = np.flatnonzero(~np.isin(heavy.keys, drawn.keys))
        if not len(chosen):
            return drawn
        chosen = chosen[np.argsort(heavy.keys[chosen])]
        rows = heavy.read(store, model_id, chosen).astype(np.float64)
        return replace(drawn, heavy=Kept(heavy.keys[chosen], rows, heavy.counts[chosen]))


def _read(stored: NDArray[np.float16], start: int, into: NDArray[np.float16]) -> None:
    """Copy consecutive rows from the file that is memory-mapped."""
    if not isinstance(stored, np.memmap):
        into[...] = stored[start : start + len(into)]
        return
    # Reading takes half the time of page faults.
    try:
        with Path(str(stored.filename)).open("rb") as file:
            file.seek(stored.offset + start * stored.strides[0])
            file.readinto(into)
    except FileNotFoundError:  # its copy of the bucket's had to make room; the map still holds it
        into[...] = stored[start : start + len(into)]


EMPTY = Contents.union([])


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix each number by a bijection with random-looking output.

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
        table: table of an index, or some of its rows; columns `content_key`, `segment`, `row`.
        codes: the part that each row of the table belongs to, in [0, parts).
        parts: number of parts.
    """
    valid = pc.is_valid(table["row"])
    placed = table.select(["content_key", "segment", "row"]).filter(valid)
    codes = codes[valid.to_numpy()]
    column = placed["segment"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no rows
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
