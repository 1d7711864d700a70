"""Writing embeddings: rounding them to a grid, and committing them as segments.

Not here: reading segments (`store.py`), finding rows in them (`key_index.py`).
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visdiv_assets.store.files import write_atomically, write_table
from visdiv_assets.store.index import KEY_BYTES, content_key

# Rows are rounded to a grid of 2⁻¹⁵ and stored as float16. Products of two such numbers are
# multiples of 2⁻³⁰, which float64 adds without rounding, so moments are the same in any order. The
# grid moves a unit vector by about 3e-4, as float16 alone does, and a score by less than 1e-6.
GRID = 2.0**-15

SEGMENT_ROWS = 4096
SEGMENT_SECONDS = 30.0


def to_grid(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round vectors with entries in [-1, 1] to the store's grid, as float16; same shape.

    Example:
        >>> to_grid(np.array([0.1, -1.0], dtype=np.float32)).tolist()
        [0.0999755859375, -1.0]
    """
    return (np.round(vectors.astype(np.float64) / GRID) * GRID).astype(np.float16)


class SegmentWriter:
    """Collects rows and commits them as segments of up to SEGMENT_ROWS, in its own thread.

    It also commits rows that have waited SEGMENT_SECONDS, and on any exit from the `with` block,
    so an interrupted run keeps everything that it has finished.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[tuple[bytes, NDArray[np.float32]]] = []
        self._oldest = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._committing: Future[None] | None = None

    def add(self, key: bytes, vector: NDArray[np.float32]) -> None:
        """Add one row, shape (D,); raises the error of the previous segment, if any."""
        now = time.monotonic()
        if not self._waiting:
            self._oldest = now
        self._waiting.append((key, vector))
        if len(self._waiting) >= SEGMENT_ROWS or now - self._oldest >= SEGMENT_SECONDS:
            self._commit_soon()

    def _commit_soon(self) -> None:
        """Start writing the collected rows once the previous segment is written."""
        before, self._committing = self._committing, None
        if before is not None:
            before.result()
        waiting, self._waiting = self._waiting, []
        self._committing = self._thread.submit(self._commit, waiting)

    def _commit(self, waiting: Sequence[tuple[bytes, NDArray[np.float32]]]) -> None:
        """Write rows as one segment, named by a hash of its keys."""
        keys, vectors = zip(*waiting, strict=True)
        rows = to_grid(np.stack(vectors))
        column = pa.array(keys, type=pa.binary(KEY_BYTES))
        name = content_key(b"".join(keys)).hex()
        write_atomically(self._folder / f"{name}.npy", lambda file: np.save(file, rows))
        write_table(self._folder / f"{name}.parquet", pa.table({"content_key": column}))

    def close(self) -> None:
        """Commit the remaining rows, and wait until everything is on disk."""
        with self._thread:
            if self._waiting:
                self._commit_soon()
            if self._committing is not None:
                self._committing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
