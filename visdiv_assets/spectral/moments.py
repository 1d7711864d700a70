"""Moments `(n, Σx, Σxxᵀ)`: the mergeable statistic from which every spectrum follows.

Here: accumulating moments from rows, adding and subtracting them, mean and covariance.
Not here: eigenvalues (`spectrum.py`), scores (`score.py`), where rows come from.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Rows converted to float64 at a time: 8,192 × 512 × 8 bytes = 32 MiB.
BLOCK_ROWS = 8192


def check_embeddings(embeddings: NDArray[Any], *, dimension: int | None = None) -> None:
    """Refuse anything that is not a finite (N, D) matrix.

    Args:
        embeddings: the array to judge.
        dimension: D that the caller expects; any when None.

    Raises:
        ValueError: not 2-dimensional, not real numbers, D is zero or not `dimension`, or a value
            is NaN or infinite. The message says which.
    """
    if embeddings.ndim != 2:
        raise ValueError(
            f"embeddings must be a matrix of shape (N, D); got {embeddings.ndim} dimension(s), "
            f"shape {embeddings.shape}"
        )
    if embeddings.dtype.kind not in "iuf":
        raise ValueError(f"embeddings must be real numbers; got dtype {embeddings.dtype}")
    if dimension is not None and embeddings.shape[1] != dimension:
        raise ValueError(f"embeddings must have dimension {dimension}; got {embeddings.shape[1]}")
    if embeddings.shape[1] == 0:
        raise ValueError("embeddings have dimension 0")
    for start in range(0, len(embeddings), BLOCK_ROWS):
        finite = np.isfinite(embeddings[start : start + BLOCK_ROWS]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(f"embeddings contain NaN or infinity (first in row {row})")


@dataclass(frozen=True, eq=False)
class Moments:
    """The zeroth, first and second moment of a multiset of vectors, in float64.

    Moments of a union are the sum of the moments of its parts, so they can be accumulated in any
    order, in parallel, and updated when images come or go. For rows that lie on the embedding
    store's grid (multiples of 2⁻¹⁵, |x| ≤ 1) every sum is *exact* as long as no Σxᵢ² exceeds 2²³,
    so the result does not depend on the order to the last bit. For unit vectors that holds for
    any 8.3 million rows, and for several hundred million in practice, where no coordinate
    carries all of the norm.

    Attributes:
        n: number of vectors.
        total: Σx, shape (D,), float64.
        outer: Σxxᵀ, shape (D, D), float64, symmetric.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> parts = Moments.of(rows[:1]) + Moments.of(rows[1:])
        >>> parts.n, parts.total.tolist(), parts.outer.tolist()
        (3, [2.0, 2.0], [[2.0, 1.0], [1.0, 2.0]])
    """

    n: int
    total: FloatArray
    outer: FloatArray

    @classmethod
    def zero(cls, dimension: int) -> "Moments":
        """Moments of no vectors at all, of dimension D."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, rows: NDArray[Any], counts: NDArray[np.integer[Any]] | None = None) -> "Moments":
        """Moments of the rows of a matrix, read in blocks so that no float64 copy of it is made.

        Args:
            rows: shape (N, D), any real dtype, also memory-mapped.
            counts: shape (N,), integers, how often each row occurs; once each when None.

        Raises:
            ValueError: `rows` is not a finite (N, D) matrix, or `counts` does not fit it.
        """
        if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "iuf":
            check_embeddings(rows)
        if counts is not None:
            if counts.shape != (len(rows),):
                raise ValueError(f"counts must have shape ({len(rows)},); got {counts.shape}")
            if counts.dtype.kind not in "iu" or (counts < 0).any():
                raise ValueError("counts must be integers, none of them negative")
        n = len(rows) if counts is None else int(counts.sum())
        dimension = rows.shape[1]
        total, outer = np.zeros(dimension), np.zeros((dimension, dimension))
        buffer = np.empty((min(BLOCK_ROWS, len(rows)), dimension))
        for start in range(0, len(rows), BLOCK_ROWS):
            given = rows[start : start + BLOCK_ROWS]
            block = buffer[: len(given)]
            block[...] = given
            # NaN and infinity show in the sum; a look of its own at each number costs a sixth.
            with np.errstate(invalid="ignore", over="ignore"):
                sums = block.sum(axis=0)
            if not np.isfinite(sums).all():
                check_embeddings(rows)
            if counts is not None:
                times = counts[start : start + BLOCK_ROWS]
                if not times.all():
                    block, times = block[times > 0], times[times > 0]
                    sums = block.sum(axis=0)
                # Once for every row, since BLAS takes half the time for a matrix with itself,
                # and then once more for the copies.
                more = np.flatnonzero(times > 1)
                copies, weights = block[more], (times[more] - 1).astype(np.float64)
                total += weights @ copies
                outer += (copies * weights[:, None]).T @ copies
            total += sums
            outer += block.T @ block
        return cls(n, total, outer)

    @classmethod
    def sum(cls, parts: Iterable["Moments"]) -> "Moments":
        """Add up moments as they stream by; one (D, D) matrix is held at a time.

        Raises:
            ValueError: there are no parts, or their dimensions differ.
        """
        whole: Moments | None = None
        for part in parts:
            whole = part if whole is None else whole + part
        if whole is None:
            raise ValueError("no moments to add up")
        return whole

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.total)

    def __add__(self, other: "Moments") -> "Moments":
        self._check_same_dimension(other)
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: "Moments") -> "Moments":
        self._check_same_dimension(other)
        if other.n > self.n:
            raise ValueError(f"cannot take {other.n} vectors away from {self.n}")
        return Moments(self.n - other.n, self.total - other.total, self.outer - other.outer)

    def _check_same_dimension(self, other: "Moments") -> None:
        if self.dimension != other.dimension:
            raise ValueError(
                f"moments of dimension {self.dimension} and {other.dimension} do not mix"
            )

    @property
    def mean(self) -> FloatArray:
        """x̄, shape (D,). ValueError when n = 0."""
        if self.n < 1:
            raise ValueError("no vectors, no mean")
        return self.total / self.n

    def covariance(self) -> FloatArray:
        """Centred sample covariance, `ddof = 1`, shape (D, D), exactly symmetric.

        Raises:
            ValueError: n < 2.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 vectors; got {self.n}")
        centred = self.outer - np.outer(self.total, self.total) / self.n
        return (centred + centred.T) / (2 * (self.n - 1))
