"""Greedy selection with gains that only fall: k-centre and log-determinant.

Here: the lazy search for the row with the greatest gain, and the two gains. Not here: validation,
excluded rows (`coreset.py`).

Choosing a row lowers the gains of others and never raises one. So an old gain is an upper bound of
the current one, and a block of rows can be skipped as long as its greatest old gain is below the
best known one. A visited block is updated with all choices since its last visit in one matrix
product. So a thousand passes over all rows become a few, which are bound by arithmetic instead of
memory.

The last bits of matrix products depend on the number of threads and the size of blocks. So products
only select the rows that may be the best, within a bound of their rounding error. For these rows,
gains are recomputed in a fixed order, and the greatest is chosen; ties go to the lowest index. So
the result is identical to that of a plain loop over all rows.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.coreset_rows import BLOCK_ROWS, OnProgress, Rows, lengths, unit
from visdiv_assets.spectral.moments import FloatArray

EPS = float(np.finfo(np.float64).eps)


class Gains(Protocol):
    """The gain of choosing a row, given the rows chosen before; gains only fall."""

    tolerance: float
    """Upper bound of the difference between `lower` and `lower_exactly`."""

    def begin(self, here: slice, block: FloatArray) -> FloatArray:
        """Exact initial gains of the rows in `block`, whose positions are `here`."""

    def choose(self, row: FloatArray) -> None:
        """Record that a row is chosen."""

    def lower(self, here: slice, block: FloatArray, gains: FloatArray, since: int) -> FloatArray:
        """Current gains of rows, from their gains after `since` choices, by matrix products."""

    def lower_exactly(self, row: FloatArray, gain: float, since: int) -> float:
        """The current gain of one row, computed in a fixed order."""


def greedy(
    rows: Rows,
    k: int,
    gains: Gains,
    first: Sequence[int] = (),
    on_progress: OnProgress | None = None,
) -> NDArray[np.int64]:
    """Choose k rows, each time the one with the greatest gain; ties go to the lowest index.

    Args:
        rows: N rows.
        k: number of rows to choose.
        gains: the gains to maximise.
        first: positions that are chosen first, regardless of their gains.
        on_progress: called with the progress.

    Returns:
        positions in the order of choice, shape (k,).
    """
    search = _Search(rows, gains)
    chosen = np.empty(k, dtype=np.int64)
    for step in range(k):
        chosen[step] = first[step] if step < len(first) else search.best()
        search.choose(int(chosen[step]))
        if on_progress:
            on_progress(step + 1, k)
    return chosen


class _Search:
    """Upper bounds of all gains, and the number of choices that each bound accounts for."""

    def __init__(self, rows: Rows, gains: Gains) -> None:
        self.rows, self.gains = rows, gains
        self.choices = 0
        starts = range(0, len(rows), BLOCK_ROWS)
        self.places = [slice(start, min(start + BLOCK_ROWS, len(rows))) for start in starts]
        self.known = np.empty(len(rows))
        for here, block in rows.blocks():
            self.known[here] = gains.begin(here, block)
        self.known_since = np.zeros(len(self.places), dtype=np.int64)
        self.ceiling = np.array([self.known[here].max() for here in self.places])
        self.exact = self.known.copy()
        self.exact_since = np.zeros(len(rows), dtype=np.int64)

    def choose(self, position: int) -> None:
        self.gains.choose(self.rows.take(np.array([position]))[0])
        self.choices += 1
        self.known[position] = self.exact[position] = -np.inf  # not to be chosen again

    def best(self) -> int:
        """The position of the greatest gain."""
        best, at = -np.inf, -1
        open_ = self.ceiling.copy()
        while True:
            number = int(np.argmax(open_))
            if (at >= 0 and open_[number] + self.gains.tolerance < best) or open_[
                number
            ] == -np.inf:
                return at
            open_[number] = -np.inf
            here = self.places[number]
            block = self._refresh(number)
            known = self.known[here]
            promising = np.flatnonzero((known + self.gains.tolerance >= best) & (known > -np.inf))
            for candidate in promising[np.argsort(-known[promising], kind="stable")]:
                if known[candidate] + self.gains.tolerance < best:
                    break
                position = here.start + int(candidate)
                gain = self._exactly(position, block[candidate])
                if gain > best or (gain == best and position < at):
                    best, at = gain, position

    def _refresh(self, number: int) -> FloatArray:
        here, since = self.places[number], int(self.known_since[number])
        block = self.rows.block(here.start, here.stop)
        if since < self.choices:
            gone = self.known[here] == -np.inf
            self.known[here] = self.gains.lower(here, block, self.known[here], since)
            self.known[here][gone] = -np.inf
            self.known_since[number] = self.choices
        self.ceiling[number] = self.known[here].max()
        return block

    def _exactly(self, position: int, row: FloatArray) -> float:
        since = int(self.exact_since[position])
        if since < self.choices:
            gain = self.gains.lower_exactly(row, float(self.exact[position]), since)
            self.exact[position], self.exact_since[position] = gain, self.choices
        return float(self.exact[position])


class _Vectors:
    """A growing array of vectors."""

    def __init__(self, dimension: int) -> None:
        self._array = np.empty((64, dimension))
        self._n = 0

    def append(self, vector: FloatArray) -> None:
        if self._n == len(self._array):
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
        self._array[self._n] = vector
        self._n += 1

    def since(self, first: int) -> FloatArray:
        return self._array[first : self._n]


class CentreGains:
    """k-centre: the squared distance of a row from the nearest chosen one.

    Products use centres minus the mean of all rows, because x·x − 2x·c + c·c would lose digits far
    from the origin. The exact gain uses differences, which are 0 for equal rows.
    """

    def __init__(self, rows: Rows) -> None:
        # The result depends on the size of blocks, except for rows on the store's grid, whose sums
        # are exact.
        total = np.zeros(rows.dimension)
        longest = 0.0
        for _, block in rows.blocks():
            total += block.sum(axis=0)
            longest = max(longest, float(lengths(block).max()))
        self.mean = total / len(rows)
        self.distances = np.empty(len(rows))
        for here, block in rows.blocks():
            self.distances[here] = _squared_distances(block, self.mean)
        radius = float(np.sqrt(self.distances.max()))
        self.tolerance = 8 * (rows.dimension + 8) * EPS * radius * (radius + longest)
        if not np.isfinite(self.tolerance):
            raise ValueError("embeddings are too large: squared distances overflow")
        self._chosen = _Vectors(rows.dimension)
        self._centred = _Vectors(rows.dimension)

    @property
    def most_central(self) -> int:
        """The position of the row nearest to the mean."""
        return int(np.argmin(self.distances))

    def begin(self, here: slice, block: FloatArray) -> FloatArray:
        """Infinite."""
        return np.full(len(block), np.inf)

    def choose(self, row: FloatArray) -> None:
        """Add a centre."""
        self._chosen.append(row)
        self._centred.append(row - self.mean)

    def lower(self, here: slice, block: FloatArray, gains: FloatArray, since: int) -> FloatArray:
        """Squared distances from the nearest centre."""
        new = self._centred.since(since)
        # ‖x − c‖² = ‖x − x̄‖² + ‖c − x̄‖² + 2 x̄·(c − x̄) − 2 x·(c − x̄)
        of_centre = np.einsum("ij,ij->i", new, new) + 2 * np.einsum("ij,j->i", new, self.mean)
        products = block @ (-2 * new.T)
        products += of_centre
        lowered: FloatArray = np.minimum(gains, self.distances[here] + products.min(axis=1))
        return lowered

    def lower_exactly(self, row: FloatArray, gain: float, since: int) -> float:
        """Squared distance, by differences."""
        return min(gain, float(_squared_distances(self._chosen.since(since), row).min()))


def _squared_distances(points: FloatArray, centre: FloatArray) -> FloatArray:
    """‖x − centre‖² of each row x, by differences, without BLAS."""
    between = points - centre
    squares: FloatArray = np.einsum("ij,ij->i", between, between)
    return squares


class DeterminantGains:
    """Log-determinant: the ridge residual of a row's direction, given those chosen.

    For f(S) = log det(I + X_S X_Sᵀ/ε) with rows of unit length, choosing x adds log(1 + r/ε) with
    r = ε xᵀ(εI + X_SᵀX_S)⁻¹x, so the greatest r adds most. With M = (εI + X_SᵀX_S)⁻¹, choosing s
    changes M to M − wwᵀ with w = Ms/√(1 + sᵀMs), so r falls by ε(w·x)², where √ε·w·x is an entry
    of the incremental Cholesky factor of X_S X_Sᵀ + εI. Storing w takes D numbers per choice
    instead of N, and r stays positive beyond D choices.
    """

    def __init__(self, rows: Rows, k: int, ridge: float) -> None:
        self.ridge = ridge
        self.tolerance = (8 * (rows.dimension + 8) * (k + 8) ** 0.5 + 2 * k) * EPS
        self._factors = _Vectors(rows.dimension)
        self.lengths = np.empty(len(rows))

    def begin(self, here: slice, block: FloatArray) -> FloatArray:
        """1, or 0 for rows of zeros."""
        self.lengths[here] = lengths(block)
        return block.any(axis=1).astype(np.float64)

    def choose(self, row: FloatArray) -> None:
        """Add a factor √ε·w."""
        [direction] = unit(row[None])
        before = self._factors.since(0)
        along = np.einsum("ij,j->i", before, direction)
        # ε M s, and ε (1 + sᵀMs).
        solved = direction - np.einsum("ij,i->j", before, along)
        left = self.ridge + float(np.einsum("j,j->", solved, direction))
        self._factors.append(solved / left**0.5)

    def lower(self, here: slice, block: FloatArray, gains: FloatArray, since: int) -> FloatArray:
        """Residuals."""
        along = block @ self._factors.since(since).T
        along /= self.lengths[here, None]
        lowered: FloatArray = gains - np.einsum("ij,ij->i", along, along)
        return lowered

    def lower_exactly(self, row: FloatArray, gain: float, since: int) -> float:
        """Apply one factor at a time, so that the result does not depend on earlier updates."""
        along = np.einsum("ij,j->i", self._factors.since(since), unit(row[None])[0])
        return float(np.subtract.accumulate(np.concatenate([[gain], along * along]))[-1])
