"""Rows of unit length on a grid, whose products are exact however they are computed.

Here: the definition of cosine similarity, to the last bit. Not here: which pairs are compared.

A row is divided by its length in float64 and rounded to multiples of 2⁻²⁴, which float32 represents
exactly. A product of two coordinates is a multiple of 2⁻⁴⁸, and so is every partial sum. As none
exceeds 1 in magnitude (Cauchy-Schwarz), float64 represents them all exactly. So blocks, threads,
BLAS and devices may add them in any order. Rounding to the grid changes a similarity by about 1e-8,
which is below the resolution of float32.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import check_embeddings

GRID = 2.0**24


class Rows(Protocol):
    """An (N, D) matrix that is read in parts: an array, or `store.rows.DatasetRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __len__(self) -> int: ...

    def __getitem__(self, wanted: Any, /) -> NDArray[Any]:
        """The rows of a slice, or of an array of row numbers."""


@dataclass(frozen=True, eq=False)
class Units:
    """Unit rows and their exact lengths.

    Attributes:
        rows: shape (n, D), float32, multiples of 2⁻²⁴.
        norms: lengths after rounding, about 1, shape (n,), float64; NaN for a row of zeros.
    """

    rows: NDArray[np.float32]
    norms: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> "Units":
        """Some of the rows."""
        return Units(self.rows[part], self.norms[part])


def check_rows(rows: Rows) -> None:
    """Check that rows are a non-empty real matrix. Their values are checked when they are read."""
    if rows.shape and rows.shape[0] == 0:
        raise ValueError("the set of embeddings is empty")
    check_embeddings(np.asarray(rows[:1]) if rows.shape else np.asarray(rows))


def units(rows: NDArray[Any], first: int = 0) -> Units:
    """Rows scaled to unit length and rounded to the grid.

    Args:
        rows: shape (n, D), any real dtype.
        first: number of the first row, for messages.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    points = np.array(rows, dtype=np.float64, order="C")
    largest = np.abs(points).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        row = first + int(np.argmin(np.isfinite(largest[:, 0])))
        raise ValueError(f"embeddings contain NaN or infinity (first in row {row})")
    largest[largest == 0] = 1
    points /= largest  # avoids overflow in the squares
    length = np.sqrt(np.square(points).sum(axis=1, keepdims=True))
    length[length == 0] = 1
    points *= GRID / length
    np.rint(points, out=points)
    points /= GRID
    norms = np.sqrt(np.square(points).sum(axis=1))
    norms[norms == 0] = np.nan
    return Units(points.astype(np.float32), norms)


def evenly(count: int, wanted: int) -> NDArray[np.int64]:
    """Numbers of at most `wanted` evenly spaced rows out of `count`, from first to last."""
    return np.linspace(0, count - 1, min(wanted, count)).astype(np.int64)


def similarities_of_pairs(
    left: Units, right: Units, i: NDArray[np.integer], j: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Cosine similarity of row i on the left and row j on the right, for each pair, float32."""
    dots = np.einsum("ij,ij->i", left.rows[i], right.rows[j], dtype=np.float64)
    similarities: NDArray[np.float64] = dots / (left.norms[i] * right.norms[j])
    return similarities.astype(np.float32)


def similarities_of_all(left: Units, right: Units) -> NDArray[np.float32]:
    """Cosine similarity of all rows on the left with all on the right, shape (n, m), float32."""
    dots = left.rows.astype(np.float64) @ right.rows.astype(np.float64).T
    dots /= left.norms[:, None] * right.norms
    return dots.astype(np.float32)
