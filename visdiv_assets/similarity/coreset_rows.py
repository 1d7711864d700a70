"""The rows that a core-set is chosen from, as blocks of float64.

Here: reading blocks of a matrix, or of anything that gives rows by slice and index; leaving rows
out. Not here: choosing.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import FloatArray, check_embeddings

# Rows in memory at a time, as float64: 2,048 × 512 × 8 bytes = 8 MiB.
BLOCK_ROWS = 2048

OnProgress = Callable[[int, int], None]
"""Told how many rows are chosen, and how many are to be."""


class Matrix(Protocol):
    """What embeddings may be besides an array: (N, D), read by slice and by array of indices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __getitem__(self, wanted: Any) -> Any:
        """Rows of a slice, or of an array of row numbers."""


class Rows:
    """Rows of a matrix, without those that are left out; by position among the others.

    Args:
        matrix: shape (N, D).
        kept: row numbers, ascending; all when None.
    """

    def __init__(self, matrix: Matrix, kept: NDArray[np.int64] | None = None) -> None:
        self._matrix = matrix
        self._kept = kept
        self.n = matrix.shape[0] if kept is None else len(kept)
        self.dimension = matrix.shape[1]
        self._buffer = np.empty((0, self.dimension))

    def __len__(self) -> int:
        return self.n

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows start … stop − 1 as float64, to be read until the next block is."""
        wanted = slice(start, stop) if self._kept is None else self._kept[start:stop]
        # The same memory each time: new pages would cost as much as the conversion.
        if len(self._buffer) < stop - start:
            self._buffer = np.empty((stop - start, self.dimension))
        block = self._buffer[: stop - start]
        block[:] = self._matrix[wanted]
        return block

    def take(self, positions: NDArray[np.int64]) -> FloatArray:
        """The rows at some positions, as float64."""
        numbers = positions if self._kept is None else self._kept[positions]
        return np.ascontiguousarray(self._matrix[numbers], dtype=np.float64)

    def numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row numbers in the matrix of some positions."""
        return positions if self._kept is None else self._kept[positions]

    def of_kept(self, values: FloatArray) -> FloatArray:
        """Of values of all rows of the matrix, shape (N,), those of the rows kept."""
        return values if self._kept is None else values[self._kept]

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """All rows, block by block, and where each block stands."""
        for start in range(0, self.n, BLOCK_ROWS):
            here = slice(start, min(start + BLOCK_ROWS, self.n))
            yield here, self.block(here.start, here.stop)


def lengths(block: FloatArray) -> FloatArray:
    """Euclidean lengths of rows, shape (n,); 1 for a row of zeros, so that it can be divided by."""
    squares = np.einsum("ij,ij->i", block, block)
    far = np.flatnonzero(~((squares > 1e-200) & (squares < 1e200)))
    found: FloatArray = np.sqrt(squares)
    for row in far:  # whose squares may have overflowed or vanished
        largest = np.abs(block[row]).max() or 1.0
        found[row] = largest * np.sqrt(np.sum((block[row] / largest) ** 2)) or 1.0
    return found


def unit(block: FloatArray) -> FloatArray:
    """Rows divided by their lengths; a row of zeros stays one."""
    divided: FloatArray = block / lengths(block)[:, None]
    return divided


def as_matrix(embeddings: Any) -> Matrix:
    """The embeddings, checked: a finite real matrix.

    Raises:
        ValueError: they are not; the message says why.
    """
    if isinstance(embeddings, np.ndarray) or not hasattr(embeddings, "shape"):
        array = np.asarray(embeddings)
        check_embeddings(array)
        return array
    matrix: Matrix = embeddings
    if len(matrix.shape) != 2:
        raise ValueError(f"embeddings must be a matrix of shape (N, D); got shape {matrix.shape}")
    for start in range(0, matrix.shape[0], BLOCK_ROWS):
        block = np.asarray(matrix[start : start + BLOCK_ROWS])
        try:
            check_embeddings(block)
        except ValueError as error:
            raise ValueError(f"{error}, counted from row {start}") from None
    return matrix
