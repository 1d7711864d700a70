"""A dataset's distinct embeddings as one matrix that is never fully in memory.

Here: reading rows by number from memory-mapped segments. Not here: what is computed from them.
"""

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.store.index import EmbeddingIndex, Keys, to_keys
from visdiv_assets.store.store import Store

# Segments of a dataset that stay mapped: Linux allows 65,530 maps to a process.
MAPPED = 4096


class DatasetRows:
    """The embeddings of a dataset, one row per distinct content, in order of image ids.

    Indexing with slices and arrays of row numbers reads float16 matrices from disk, so functions
    that work in blocks accept this in place of an array.

    Attributes:
        keys: content key of each row, shape (N,).
        first: position in the index of the first image with this content, shape (N,), ascending.
    """

    def __init__(self, store: Store, model_id: str, index: EmbeddingIndex) -> None:
        valid = pc.is_valid(index.table["row"])
        placed = index.table.filter(valid)
        positions = np.flatnonzero(valid.to_numpy())
        all_keys = to_keys(placed["content_key"])
        _, first, of_image = np.unique(all_keys, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        first = first[order]
        self.keys: Keys = all_keys[first]
        self.first: NDArray[np.int64] = positions[first]
        self._positions = positions
        self._row_of_image: NDArray[np.int64] = rank[of_image]
        self._row = placed["row"].to_numpy()[first].astype(np.int64)
        segments = placed["segment"].combine_chunks()
        if isinstance(segments, pa.ChunkedArray):  # no rows
            segments = pa.array([], pa.dictionary(pa.int32(), pa.string()))
        self._segment = segments.indices.to_numpy()[first]
        names = segments.dictionary.to_pylist()
        self._n_segments = len(names)
        self._stored = functools.lru_cache(MAPPED)(
            lambda code: _mapped(store.rows(model_id, names[code]))
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self._stored(0).shape[1] if self._n_segments else 0

    @property
    def dtype(self) -> np.dtype[np.float16]:
        """float16, as in the store."""
        return np.dtype(np.float16)

    def __getitem__(
        self, wanted: slice | NDArray[np.integer] | Sequence[int]
    ) -> NDArray[np.float16]:
        """The rows of a slice or of an array of row numbers, shape (n, D)."""
        numbers = (
            np.arange(*wanted.indices(len(self)))
            if isinstance(wanted, slice)
            else np.asarray(wanted, dtype=np.int64)
        )
        rows = np.empty((len(numbers), self.shape[1]), dtype=np.float16)
        segment, row = self._segment[numbers], self._row[numbers]
        for code in np.unique(segment):
            here = np.flatnonzero(segment == code)
            rows[here] = self._stored(int(code))[row[here]]
        return rows

    def images_by_row(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The images of each row: positions in the index, and where each row's positions start.

        Returns:
            positions, shape (images,), and offsets, shape (N + 1,): the images of row r are
            `positions[offsets[r]:offsets[r + 1]]`, in order of ids.
        """
        order = np.argsort(self._row_of_image, kind="stable")
        counts = np.bincount(self._row_of_image, minlength=len(self))
        return self._positions[order], np.concatenate([[0], np.cumsum(counts)])


def _mapped(stored: NDArray[np.float16]) -> NDArray[np.float16]:
    """The same rows without an open file, of which a process may have only some hundreds.

    Python keeps a file open as long as it is mapped; Arrow's map remains when its file is closed.
    """
    if not isinstance(stored, np.memmap):
        return stored
    with pa.memory_map(str(stored.filename)) as file:
        data = file.read_buffer()
    return np.ndarray(
        stored.shape, stored.dtype, buffer=data, offset=stored.offset, strides=stored.strides
    )
