"""Moments `(n, Σx, Σxxᵀ)`: the mergeable statistic from which every spectrum follows.

Here: accumulating moments from rows, adding and subtracting them, mean and covariance.
Not here: eigenvalues (`spectrum.py`), scores (`score.py`), where rows come from.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Rows converted to float64 at a time: 8,192 × 512 × 8 bytes = 32 MiB.
BLOCK_ROWS = 8192

# Sums of squares below this have lost digits, or all of them: a square below 2⁻¹⁰²² has fewer
# than 53 bits, and one below 2⁻¹⁰⁷⁴ is 0.
SMALLEST_SQUARES = 2.0**-900

# Vectors whose largest number is within these powers of 2 have squares with all their digits.
SAFE_POWERS = range(-400, 400)


def check_embeddings(embeddings: NDArray[Any], *, dimension: int | None = None) -> None:
    """Check that an array is a finite (N, D) matrix.

    Args:
        embeddings: the array to check.
        dimension: the expected D; None allows any.

    Raises:
        ValueError: it is not 2-dimensional, not real, D is zero or not `dimension`, or a value is
            NaN or infinite. The message says which.
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


class Shift(NamedTuple):
    """A translation and a scaling of rows by a power of 2, neither of which changes diversity.

    After the translation, sums keep more digits, equal rows are exactly 0, and the minimum does
    not depend on the order of the rows. Rows that differ by so much or so little that squares
    would leave float64 are scaled; all others are not.

    Attributes:
        origin: shape (D,), the least number of each column.
        power: of 2, with which differences are multiplied.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[0.0, 1.0], [2.0**900, 1.0]])
        >>> Shift.of(rows).apply(rows).tolist()
        [[0.0, 0.0], [0.5, 0.0]]
    """

    origin: FloatArray
    power: int

    @classmethod
    def of(cls, rows: NDArray[Any]) -> "Shift":
        """The shift for a finite (N, D) matrix with N ≥ 1."""
        lowest, highest = (each.astype(np.float64) for each in (rows.min(axis=0), rows.max(axis=0)))
        with np.errstate(over="ignore"):
            spread = float((highest - lowest).max())
        _, power = np.frexp(min(spread, np.finfo(np.float64).max))
        return cls(lowest, 0 if not spread or power in SAFE_POWERS else -int(power))

    def apply(self, rows: NDArray[Any]) -> FloatArray:
        """Some of these rows, shifted, in float64."""
        if not self.power:
            return np.asarray(rows - self.origin, dtype=np.float64)
        if self.power > -1000:
            return np.asarray(np.ldexp(rows - self.origin, self.power), dtype=np.float64)
        # Their difference may itself exceed float64.
        quarters = np.ldexp(rows, -2) - np.ldexp(self.origin, -2)
        return np.asarray(np.ldexp(quarters, self.power + 2), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Moments:
    """The zeroth, first and second moment of a multiset of vectors, in float64.

    The moments of a union are the sum of the moments of its parts, so you can accumulate them in
    any order, in parallel, and update them when images come or go. For rows on the store's grid
    (multiples of 2⁻¹⁵, |x| ≤ 1), every sum is *exact* as long as no Σxᵢ² exceeds 2²³, so the
    result is bit-identical for any order. For unit vectors, that holds for any 8.3 million rows,
    and in practice for several hundred million, since no coordinate carries all of the norm.

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
        """Moments of an empty set of vectors of dimension D."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, rows: NDArray[Any], counts: NDArray[np.integer[Any]] | None = None) -> "Moments":
        """Moments of the rows of a matrix, which is converted to float64 block by block.

        Args:
            rows: shape (N, D), any real dtype; may be memory-mapped.
            counts: shape (N,), integers, how often each row occurs; None means once each.

        Raises:
            ValueError: `rows` is not a finite (N, D) matrix, its squares exceed float64 or vanish
                in it, or `counts` does not match it.
        """
        if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "iuf":
            check_embeddings(rows)
        if counts is not None:
            if counts.shape != (len(rows),):
                raise ValueError(f"counts must have shape ({len(rows)},); got {counts.shape}")
            if counts.dtype.kind not in "iu" or (counts < 0).any():
                raise ValueError("counts must be non-negative integers")
        n = len(rows) if counts is None else int(counts.sum())
        dimension = rows.shape[1]
        total, outer = np.zeros(dimension), np.zeros((dimension, dimension))
        buffer = np.empty((min(BLOCK_ROWS, len(rows)), dimension))
        # What leaves float64 shows up in the sums below.
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for start in range(0, len(rows), BLOCK_ROWS):
                given = rows[start : start + BLOCK_ROWS]
                block = buffer[: len(given)]
                block[...] = given
                # NaN and infinity show up in the sum; checking each number takes a sixth more time.
                sums = block.sum(axis=0)
                if not np.isfinite(sums).all():
                    check_embeddings(rows)
                if counts is not None:
                    times = counts[start : start + BLOCK_ROWS]
                    if not times.all():
                        block, times = block[times > 0], times[times > 0]
                        sums = block.sum(axis=0)
                    # First every row once, since BLAS multiplies a matrix with itself in half the
                    # time, and then the copies.
                    more = np.flatnonzero(times > 1)
                    copies, weights = block[more], (times[more] - 1).astype(np.float64)
                    total += weights @ copies
                    outer += (copies * weights[:, None]).T @ copies
                total += sums
                outer += block.T @ block
        squares = float(np.trace(outer))
        if not np.isfinite(squares):
            raise ValueError("embeddings are too large: their squares exceed float64")
        if squares < SMALLEST_SQUARES and np.any(rows if counts is None else rows[counts > 0]):
            raise ValueError("embeddings are too small: their squares vanish in float64")
        return cls(n, total, outer)

    def about(self, origin: FloatArray | float) -> "Moments":
        """Moments of the same vectors, as seen from another origin; not exact.

        Example:
            >>> Moments.of(np.array([[1.0], [3.0]])).about(1.0).outer.tolist()
            [[4.0]]
        """
        if not np.any(origin):
            return self
        shift = np.zeros_like(self.total) + origin
        with np.errstate(invalid="ignore", over="ignore"):
            crossed = np.outer(self.total, shift)
            outer = self.outer - crossed - crossed.T + self.n * np.outer(shift, shift)
            return Moments(self.n, self.total - self.n * shift, outer)

    @classmethod
    def sum(cls, parts: Iterable["Moments"]) -> "Moments":
        """Sum a stream of moments; only one part is in memory at a time.

        Raises:
            ValueError: there are no parts, or their dimensions differ.
        """
        whole: Moments | None = None
        for part in parts:
            whole = part if whole is None else whole + part
        if whole is None:
            raise ValueError("no moments to sum")
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
            raise ValueError(f"cannot subtract {other.n} vectors from {self.n}")
        return Moments(self.n - other.n, self.total - other.total, self.outer - other.outer)

    def _check_same_dimension(self, other: "Moments") -> None:
        if self.dimension != other.dimension:
            raise ValueError(
                f"cannot combine moments of dimension {self.dimension} and {other.dimension}"
            )

    @property
    def mean(self) -> FloatArray:
        """x̄, shape (D,); raises ValueError if n = 0."""
        if self.n < 1:
            raise ValueError("a mean needs at least 1 vector")
        return self.total / self.n

    def covariance(self) -> FloatArray:
        """Centred sample covariance, `ddof = 1`, shape (D, D), exactly symmetric.

        Raises:
            ValueError: n < 2, or the moments exceed float64.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 vectors; got {self.n}")
        with np.errstate(invalid="ignore", over="ignore"):
            centred = self.outer - np.outer(self.total, self.total) / self.n
            covariance: FloatArray = (centred + centred.T) / (2 * (self.n - 1))
        if not np.isfinite(covariance).all():
            raise ValueError("the moments exceed float64, or are not numbers")
        return covariance
