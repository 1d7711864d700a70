"""What is kept of a dataset so that its score can be corrected for its size.

Here: moments together with a random sample of distinct rows, drawn by content; building, merging.
Not here: what is estimated from them (`corrected.py`), where rows and their keys come from.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import FloatArray, Moments

# Distinct rows that are kept. More would change an interval by its third digit.
CAPACITY = 1024


def row_keys(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """A 64-bit key for the content of each row: equal rows have equal keys, whatever their dtype.

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


@dataclass(frozen=True, eq=False)
class Sample:
    """Moments of a dataset, and its distinct rows with the smallest keys.

    Keys are hashes of content, so these rows are a uniform random sample of the *distinct* rows,
    and the same one however the dataset was split and in whatever order its parts came. While
    there are no more than `capacity` distinct rows it is all of them.

    Attributes:
        moments: of every row, copies included.
        keys: shape (k,), uint64, strictly ascending, k ≤ `capacity`.
        rows: the rows with these keys, shape (k, D), float64.
        counts: how often each occurs in the dataset, shape (k,), positive; int64, but for
            mixtures, where weights make them other than whole.
        capacity: the most rows that are kept.

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
            rows: shape (N, D), any real dtype, also memory-mapped.
            counts: shape (N,), integers, how often each row occurs; once each when None.
            keys: shape (N,), uint64, uniformly distributed, equal where content is equal;
                `row_keys(rows)` when None.
            capacity: the most distinct rows to keep, at least 1.

        Raises:
            ValueError: `rows` is not a finite (N, D) matrix, or `counts`, `keys` or `capacity`
                do not fit.
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
        chosen = np.asarray(rows[present[first[:capacity]]], dtype=np.float64)
        return cls(moments, kept[:capacity], chosen, totals[:capacity], capacity)

    def __add__(self, other: "Sample") -> "Sample":
        if self.capacity != other.capacity:
            raise ValueError(f"samples of capacity {self.capacity} and {other.capacity} do not mix")
        moments = self.moments + other.moments
        keys, first, inverse = np.unique(
            np.concatenate([self.keys, other.keys]), return_index=True, return_inverse=True
        )
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, inverse, np.concatenate([self.counts, other.counts]))
        keys, first = keys[: self.capacity], first[: self.capacity]
        rows = np.concatenate([self.rows, other.rows])[first]
        return Sample(moments, keys, rows, counts[: self.capacity], self.capacity)

    @property
    def complete(self) -> bool:
        """Whether no distinct row was left out."""
        return round(float(self.counts.sum())) == self.moments.n
