"""The rows that a core-set is chosen from, as blocks of float64.

Here: reading blocks of a matrix, or of anything that gives rows by slice and index; leaving rows
out. Not here: choosing.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import FloatArray, check_embeddings

# Rows in memory at a time, as float64: 4,096 × 512 × 8 bytes = 16 MiB.
BLOCK_ROWS = 4096

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

    def __len__(self) -> int:
        return self.n

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows start … stop − 1 as float64; not to be written to."""
        wanted = slice(start, stop) if self._kept is None else self._kept[start:stop]
        return np.ascontiguousarray(self._matrix[wanted], dtype=np.float64)

    def take(self, positions: NDArray[np.int64]) -> FloatArray:
        """The rows at some positions, as float64."""
        numbers = positions if self._kept is None else self._kept[positions]
        return np.ascontiguousarray(self._matrix[numbers], dtype=np.float64)

    def numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row numbers in the matrix of some positions."""
        return positions if self._kept is None else self._kept[positions]

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """All rows, block by block, and where each block stands."""
        for start in range(0, self.n, BLOCK_ROWS):
            here = slice(start, min(start + BLOCK_ROWS, self.n))
            yield here, self.block(here.start, here.stop)


def unit(block: FloatArray) -> FloatArray:
    """Rows divided by their lengths; a row of zeros stays one."""
    # Scaled first, so that no square overflows or vanishes.
    largest = np.abs(block).max(axis=1, keepdims=True)
    scaled = np.divide(block, largest, out=np.zeros_like(block), where=largest > 0)
    lengths = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    np.divide(scaled, lengths, out=scaled, where=lengths > 0)
    return scaled


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
