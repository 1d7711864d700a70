"""What a dataset, or a part of it, is made of: rows of the store, and how often each occurs.

Here: reading that off an index, comparing two of them, drawing the sample, moments from the rows.
Not here: which moments are kept (`evaluation.py`), how they are multiplied out (`exact.py`).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.exact import IntegerMoments, integers_pay
from visdiv_assets.embedding.index import KEY_BYTES, EmbeddingIndex, sample_keys, to_keys
from visdiv_assets.embedding.store import Store
from visdiv_assets.spectral.moments import BLOCK_ROWS, Moments
from visdiv_assets.spectral.sample import CAPACITY, Sample

# A place is the number of a segment and of a row in it: segment << 32 | row.
ROW_BITS = 32


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
        return split(index, np.zeros(len(index.table), dtype=np.int64), 1)[0]

    def __len__(self) -> int:
        return len(self.places)

    def digest(self) -> bytes:
        """Hash of the multiset: places by the names of their segments, and counts."""
        digest = hashlib.blake2b("\n".join(self.segments).encode(), digest_size=KEY_BYTES)
        digest.update(self.places.tobytes())
        digest.update(self.counts.tobytes())
        return digest.digest()

    def minus(self, other: "Contents") -> "tuple[Contents, Contents]":
        """What is in this and not in the other, and what is in the other and not in this."""
        names = tuple(sorted({*self.segments, *other.segments}))
        number = {name: at for at, name in enumerate(names)}

        def renumbered(contents: Contents) -> NDArray[np.int64]:
            numbers = np.array([number[name] for name in contents.segments], dtype=np.int64)
            own = contents.places >> ROW_BITS
            moved: NDArray[np.int64] = contents.places + ((numbers[own] - own) << ROW_BITS)
            return moved

        places, first, inverse = np.unique(
            np.concatenate([renumbered(self), renumbered(other)]),
            return_index=True,
            return_inverse=True,
        )
        keys = np.concatenate([self.keys, other.keys])[first]
        change = np.zeros(len(places), dtype=np.int64)
        change[inverse[: len(self)]] += self.counts
        change[inverse[len(self) :]] -= other.counts

        def those(sign: int) -> Contents:
            chosen = np.flatnonzero(sign * change > 0)
            return Contents(names, places[chosen], sign * change[chosen], keys[chosen])

        return those(1), those(-1)

    def read(
        self, store: Store, model_id: str, chosen: NDArray[np.int64] | slice
    ) -> NDArray[np.float16]:
        """Some of the rows, shape (n, D), float16, from disk."""
        places = self.places[chosen]
        numbers, rows = places >> ROW_BITS, places & (1 << ROW_BITS) - 1
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
        numbers, rows = self.places >> ROW_BITS, self.places & (1 << ROW_BITS) - 1
        for start in range(0, len(self), BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, len(self))
            first = start
            while first < stop:
                last = min(stop, int(np.searchsorted(numbers, numbers[first], side="right")))
                stored = store.rows(model_id, self.segments[numbers[first]])
                if not block.size:
                    block = np.empty((BLOCK_ROWS, stored.shape[1]), dtype=np.float16)
                low, high = int(rows[first]), int(rows[last - 1]) + 1
                consecutive = high - low == last - first
                block[first - start : last - start] = (
                    stored[low:high] if consecutive else stored[rows[first:last]]
                )
                first = last
            yield block[: stop - start], self.counts[start:stop]

    def moments(self, store: Store, model_id: str) -> tuple[Moments | None, float]:
        """Moments of the rows, and their largest | ‖x‖ − 1 |; None and 0 where there are none.

        To the last bit the same on every road, for rows on the store's grid.
        """
        integers: IntegerMoments | None = None
        rest: Moments | None = None
        norm_error, first = 0.0, True
        for rows, counts in self.blocks(store, model_id):
            if first:
                integers = IntegerMoments(rows.shape[1]) if integers_pay(len(self)) else None
                first = False
            if integers is not None and (error := integers.add(rows)) is not None:
                norm_error = max(norm_error, error)
                more = np.flatnonzero(counts > 1)
                rows, counts = rows[more], counts[more] - 1
            else:
                exact = rows.astype(np.float32)
                norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
                norm_error = max(norm_error, float(np.abs(norms - 1).max()))
            if len(rows):
                part = Moments.of(rows, counts)
                rest = part if rest is None else rest + part
        if integers is None:
            return rest, norm_error
        return integers.moments() if rest is None else integers.moments() + rest, norm_error

    def sample(self, store: Store, model_id: str, moments: Moments) -> Sample:
        """The sample that goes with these moments: keys say which rows, and only those are read."""
        size = min(CAPACITY, len(self))
        smallest = np.argpartition(self.keys, size - 1)[:size] if size else np.arange(0)
        chosen = smallest[np.argsort(self.keys[smallest])]
        rows = self.read(store, model_id, chosen).astype(np.float64)
        return Sample(moments, self.keys[chosen], rows, self.counts[chosen])


def split(index: EmbeddingIndex, codes: NDArray[np.int64], parts: int) -> list[Contents]:
    """The contents of each part of a dataset.

    Args:
        index: of the dataset.
        codes: which part each row of the index belongs to, below `parts`.
        parts: how many there are.
    """
    valid = pc.is_valid(index.table["row"])
    placed = index.table.select(["content_key", "segment", "row"]).filter(valid)
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
