"""The rows that a core-set is chosen from, in blocks of float64.

Here: reading blocks of a matrix or a matrix-like object, and excluding rows. Not here: choosing.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import FloatArray, check_embeddings

# Rows in memory at a time as float64: 2,048 × 512 × 8 bytes = 8 MiB.
BLOCK_ROWS = 2048

OnProgress = Callable[[int, int], None]
"""Called with the number of rows chosen and the total."""


class Matrix(Protocol):
    """A matrix-like object of shape (N, D), which can be indexed by slices and index arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __getitem__(self, wanted: Any) -> Any:
        """The rows of a slice, or of an array of row numbers."""


class Rows:
    """The rows of a matrix that are kept, indexed by position among them.

    Args:
        matrix: shape (N, D).
        kept: row numbers, ascending; None keeps all.
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
        """Rows start … stop − 1 as float64, valid until the next block is read."""
        wanted = slice(start, stop) if self._kept is None else self._kept[start:stop]
        # Reuse the same memory, since new pages would cost as much as the conversion.
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
        """The row numbers in the matrix at some positions."""
        return positions if self._kept is None else self._kept[positions]

    def of_kept(self, values: FloatArray) -> FloatArray:
        """The values of the kept rows, given values of all rows, shape (N,)."""
        return values if self._kept is None else values[self._kept]

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """All rows, block by block, with the slice of positions of each block."""
        for start in range(0, self.n, BLOCK_ROWS):
            here = slice(start, min(start + BLOCK_ROWS, self.n))
            yield here, self.block(here.start, here.stop)


def lengths(block: FloatArray) -> FloatArray:
    """Euclidean lengths of rows, shape (n,); 1 for a row of zeros, to avoid division by zero."""
    squares = np.einsum("ij,ij->i", block, block)
    far = np.flatnonzero(~((squares > 1e-200) & (squares < 1e200)))
    found: FloatArray = np.sqrt(squares)
    for row in far:  # their squares may have overflowed or underflowed
        largest = np.abs(block[row]).max() or 1.0
        found[row] = largest * np.sqrt(np.sum((block[row] / largest) ** 2)) or 1.0
    return found


def unit(block: FloatArray) -> FloatArray:
    """Rows divided by their lengths; a row of zeros stays zero."""
    divided: FloatArray = block / lengths(block)[:, None]
    return divided


def as_matrix(embeddings: Any) -> Matrix:
    """Check that embeddings are a finite real matrix.

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
