"""The summary of a dataset from which its size-corrected score is computed.

Here: moments with a random sample of distinct rows, drawn by content; building and merging them.
Not here: the estimates (`corrected.py`), where rows and their keys come from.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import FloatArray, Moments

# Number of distinct rows to keep. More would change only the third digit of an interval.
CAPACITY = 1024

# A content that is so large a share of a dataset, a placeholder for instance, is kept whatever its
# key: how uncertain that share is dominates the interval.
HEAVY_SHARE = 0.01


def row_keys(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """A 64-bit key for the content of each row; equal rows have equal keys, for any dtype.

    Args:
        rows: shape (N, D), any real dtype.

    Returns:
        BLAKE2b of each row as little-endian float64, shape (N,), uint64.

    Example:
        >>> import numpy as np
        >>> keys = row_keys(np.array([[0.5, 0.0], [1.0, 2.0], [0.5, -0.0]]))
        >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
        (True, False)
    """
    digests = b"".join(
        # −0.0 + 0.0 is 0.0
        hashlib.blake2b(np.add(row, 0.0, dtype="<f8"), digest_size=8).digest()
        for row in rows
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


class Kept(NamedTuple):
    """Distinct rows that are kept; shapes and types as those of `Sample`."""

    keys: NDArray[np.uint64]
    rows: FloatArray
    counts: NDArray[Any]
    units: NDArray[np.uint64] | None = None

    def part(self, which: slice | NDArray[Any]) -> "Kept":
        """Some of the rows."""
        units = None if self.units is None else self.units[which]
        return Kept(self.keys[which], self.rows[which], self.counts[which], units)


@dataclass(frozen=True, eq=False)
class Sample:
    """Moments of a dataset, and its distinct rows with the smallest keys.

    Keys are hashes of content, so these rows are a uniform random sample of the *distinct* rows.
    The sample does not depend on how the dataset is split or on the order of its parts. If there
    are at most `capacity` distinct rows, the sample contains all of them.

    Beside these, whatever makes up 1 % or more of the dataset is kept. In a sum of samples, what is
    less than 1 % of one of them may not be counted, or be missing where that leaves less than 1 %.

    Attributes:
        moments: moments of all rows, copies included.
        keys: shape (k,), uint64, strictly ascending, k ≤ `capacity`.
        rows: the rows with these keys, shape (k, D), float64.
        counts: how often each row occurs in the dataset, shape (k,), positive; int64, or floats
            for mixtures, whose weights make counts fractional.
        capacity: the largest number of rows to keep.
        units: the sampling unit of each row, as its source says, shape (k,), uint64; equal for
            rows of one unit. None means that near-duplicates are one unit.
        heavy: rows of 1 % or more of the dataset whose keys are larger; None if there are none.

    References:
        Bar-Yossef et al., "Counting distinct elements in a data stream", RANDOM 2002 (the k
        smallest hashes as a mergeable sample of distinct elements).

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> both = Sample.of(rows[:2]) + Sample.of(rows[2:])
        >>> both.moments.n, len(both.rows), sorted(both.counts.tolist()), both.complete
        (3, 2, [1, 2], True)
    """

    moments: Moments
    keys: NDArray[np.uint64]
    rows: FloatArray
    counts: NDArray[Any]
    capacity: int = CAPACITY
    units: NDArray[np.uint64] | None = None
    heavy: Kept | None = None

    @classmethod
    def of(
        cls,
        rows: NDArray[Any],
        counts: NDArray[np.integer[Any]] | None = None,
        keys: NDArray[np.uint64] | None = None,
        *,
        capacity: int = CAPACITY,
    ) -> "Sample":
        """The sample of the rows of a matrix.

        Args:
            rows: shape (N, D), any real dtype; may be memory-mapped.
            counts: shape (N,), integers, how often each row occurs; None means once each.
            keys: shape (N,), uint64, uniformly distributed, equal for equal content; None means
                `row_keys(rows)`.
            capacity: the largest number of distinct rows to keep, at least 1.

        Raises:
            ValueError: `rows` is not a finite (N, D) matrix, or `counts`, `keys` or `capacity`
                are invalid.
        """
        if capacity < 1:
            raise ValueError(f"a sample must keep at least 1 row; got capacity {capacity}")
        moments = Moments.of(rows, counts)
        keys = row_keys(rows) if keys is None else np.asarray(keys)
        if keys.shape != (len(rows),) or keys.dtype != np.uint64:
            raise ValueError(
                f"keys must be uint64 of shape ({len(rows)},); got {keys.dtype} {keys.shape}"
            )
        weights = np.ones(len(rows), np.int64) if counts is None else counts.astype(np.int64)
        present = np.flatnonzero(weights)
        kept, first, inverse = np.unique(keys[present], return_index=True, return_inverse=True)
        totals = np.zeros(len(kept), np.int64)
        np.add.at(totals, inverse, weights[present])
        at = np.r_[: min(capacity, len(kept)), _heavy(totals, moments.n, capacity)]
        chosen = np.asarray(rows[present[first[at]]], dtype=np.float64)
        return _split(moments, Kept(kept[at], chosen, totals[at]), capacity)

    def __add__(self, other: "Sample") -> "Sample":
        if self.capacity != other.capacity:
            raise ValueError(
                f"cannot combine samples of capacity {self.capacity} and {other.capacity}"
            )
        moments = self.moments + other.moments
        both = _joined(self.everything, other.everything)
        keys, first, inverse = np.unique(both.keys, return_index=True, return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, inverse, both.counts)
        at = np.r_[: min(self.capacity, len(keys)), _heavy(counts, moments.n, self.capacity)]
        units = None if both.units is None else both.units[first[at]]
        kept = Kept(keys[at], both.rows[first[at]], counts[at], units)
        return _split(moments, kept, self.capacity)

    def with_units(self, units: NDArray[np.uint64]) -> "Sample":
        """The same with the sampling unit of each kept row, heavy ones last."""
        own, rest = np.split(units, [len(self.keys)])
        heavy = None if self.heavy is None else self.heavy._replace(units=rest)
        return replace(self, units=own, heavy=heavy)

    @property
    def uniform(self) -> Kept:
        """The rows with the smallest keys."""
        return Kept(self.keys, self.rows, self.counts, self.units)

    @property
    def everything(self) -> Kept:
        """All rows that are kept: those with the smallest keys, then heavy ones."""
        return self.uniform if self.heavy is None else _joined(self.uniform, self.heavy)

    @property
    def complete(self) -> bool:
        """Whether the sample contains all distinct rows."""
        return round(float(self.counts.sum())) == self.moments.n


def _heavy(counts: NDArray[np.int64], n: int, capacity: int) -> NDArray[np.int64]:
    """Places of heavy rows after the first `capacity`."""
    return capacity + np.flatnonzero(counts[capacity:] >= HEAVY_SHARE * n)


def _joined(one: Kept, other: Kept) -> Kept:
    units = None
    if one.units is not None and other.units is not None:
        units = np.concatenate([one.units, other.units])
    keys, rows, counts = (np.concatenate(pair) for pair in zip(one[:3], other[:3], strict=True))
    return Kept(keys, rows, counts, units)


def _split(moments: Moments, kept: Kept, capacity: int) -> Sample:
    """A sample of rows in order of their keys, of which those after the first ones are heavy."""
    first, rest = kept.part(slice(capacity)), kept.part(slice(capacity, None))
    heavy = rest if len(rest.keys) else None
    return Sample(moments, first.keys, first.rows, first.counts, capacity, first.units, heavy)
