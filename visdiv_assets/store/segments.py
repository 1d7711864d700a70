"""Writing embeddings: rounding them to a grid, and committing them as segments.

Not here: reading segments (`store.py`), finding rows in them (`key_index.py`).
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.store.files import writing
from visdiv_assets.store.index import KEY_BYTES, content_key
from visdiv_assets.store.objects import Objects

# Rows are rounded to a grid of 2⁻¹⁵ and stored as float16. Products of two such numbers are
# multiples of 2⁻³⁰, which float64 adds without rounding, so moments are the same in any order. The
# grid moves a unit vector by about 3e-4, as float16 alone does, and a score by less than 1e-6.
GRID = 2.0**-15

SEGMENT_ROWS = 4096
SEGMENT_SECONDS = 30.0

# Key in the schema metadata of a segment's keys: `digest_of` its rows. Older segments lack it.
ROWS_DIGEST = b"visdiv.rows"


def to_grid(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round vectors with entries in [-1, 1] to the store's grid, as float16; same shape.

    Example:
        >>> to_grid(np.array([0.1, -1.0], dtype=np.float32)).tolist()
        [0.0999755859375, -1.0]
    """
    return (np.round(vectors.astype(np.float64) / GRID) * GRID).astype(np.float16)


def digest_of(rows: NDArray[np.float16]) -> bytes:
    """128-bit BLAKE2b of the rows of a segment, in hex."""
    return _hash(np.ascontiguousarray(rows)).hexdigest().encode()


def _hash(data: NDArray[np.float16] | bytes = b"") -> "hashlib.blake2b":
    return hashlib.blake2b(data, digest_size=16)


def write_segment(
    objects: Objects,
    folder: str,
    keys: Sequence[bytes],
    parts: Callable[[], Iterable[NDArray[np.float16]]],
    flat: NDArray[np.bool_],
) -> str:
    """Write a segment, and return its name: a hash of its keys and rows.

    So no other content ever has that name, and whoever writes it again writes the same.

    Args:
        objects: where to.
        folder: of the model.
        keys: content keys, whole.
        parts: yields their vectors on the grid, in parts of shape (rows, D); called twice.
        flat: which pictures are one flat colour, shape (rows,).
    """
    hashed, dimension = _hash(), 0
    for part in parts():
        hashed.update(np.ascontiguousarray(part))
        dimension = part.shape[1]
    digest = hashed.hexdigest().encode()

    def write(file: IO[bytes]) -> None:
        shape = (len(keys), dimension)
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts():
            file.write(np.ascontiguousarray(part).data)

    table = pa.table(
        {
            "content_key": pa.array(keys, type=pa.binary(KEY_BYTES)),
            "flat": pa.array(flat, type=pa.bool_()),
        }
    ).replace_schema_metadata({ROWS_DIGEST: digest})
    name = content_key(b"".join(keys) + digest).hex()
    objects.write(f"{folder}/{name}.npy", write)
    objects.write(f"{folder}/{name}.parquet", writing(table))  # this commits it
    return name


class SegmentWriter:
    """Collects rows and commits them as segments of up to SEGMENT_ROWS, in its own thread.

    It also commits rows that have waited SEGMENT_SECONDS, even if no other row comes, and on any
    exit from the `with` block, so an interrupted run keeps everything that it has finished.

    Attributes:
        committed: names of the segments that it has written.
    """

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, folder
        self.committed = list[str]()
        self._waiting: list[tuple[bytes, NDArray[np.float32], bool]] = []
        self._due = 0.0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._committing: Future[None] | None = None

    def add(self, key: bytes, vector: NDArray[np.float32], *, flat: bool = False) -> None:
        """Add one row; waits while a segment is full, and raises the error of an earlier one.

        Args:
            key: content key of the image.
            vector: its embedding, shape (D,).
            flat: whether the picture is one flat colour.
        """
        if self._committing is None:
            raise RuntimeError("rows are added inside the `with` block")
        with self._changed:
            if not self._waiting:
                self._due = time.monotonic() + SEGMENT_SECONDS
            self._waiting.append((key, vector, flat))
            # Waking the other thread for each row would take longer than everything else here.
            if len(self._waiting) in (1, SEGMENT_ROWS):
                self._changed.notify_all()
            self._changed.wait_for(self._has_room)
        if self._committing.done():
            self._committing.result()

    def _has_room(self) -> bool:
        assert self._committing is not None
        return len(self._waiting) < SEGMENT_ROWS or self._committing.done()

    def _is_due(self) -> bool:
        return self._closing or len(self._waiting) >= SEGMENT_ROWS

    def _commit_as_due(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._is_due():
                        left = self._due - time.monotonic() if self._waiting else None
                        if left is not None and left <= 0:
                            break
                        self._changed.wait(left)
                    waiting, self._waiting = self._waiting, []
                    self._changed.notify_all()
                if not waiting:
                    return
                try:
                    self._commit(waiting)
                except BaseException:
                    self._waiting = [*waiting, *self._waiting]  # for another try on the way out
                    raise
        finally:
            with self._changed:
                self._changed.notify_all()

    def _commit(self, waiting: Sequence[tuple[bytes, NDArray[np.float32], bool]]) -> None:
        """Write rows as one segment."""
        keys, vectors, flat = zip(*waiting, strict=True)
        rows = to_grid(np.stack(vectors))
        name = write_segment(
            self._objects, self._folder, keys, lambda: [rows], np.array(flat, dtype=np.bool_)
        )
        self.committed.append(name)

    def close(self) -> None:
        """Commit the remaining rows, and wait until everything is on disk."""
        with self._thread:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            if self._committing is None:
                return
            try:
                self._committing.result()
            except (OSError, VisdivError):  # a disk may have room again, a bucket may answer
                if self._waiting:
                    self._commit(self._waiting)
                raise

    def __enter__(self) -> Self:
        # Here and not with the first row: a signal that comes meanwhile can lose none.
        try:
            self._committing = self._thread.submit(self._commit_as_due)
        except BaseException:
            self.close()  # ends the thread, which may have started
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
