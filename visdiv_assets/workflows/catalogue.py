"""From the rows of a dataset to its images, and what searches for similar images share.

Here: ids and content keys of rows, progress. Not here: finding anything.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visdiv_assets.similarity.clusters import Members
from visdiv_assets.store.index import EmbeddingIndex
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation

# Reported beside whatever threshold is set.
REPORTED = (0.90, 0.95)

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much is done."""


class Catalogue:
    """The rows of a dataset, and the images that have them.

    Attributes:
        rows: one for each content.
        ids: the image ids of the index, an Arrow array.
        images: places in the index of the images of each row, row after row.
        offsets: where those of each row begin, shape (N + 1,).
        counts: how many images each row has, shape (N,).
        bytes: size of each content as listed, shape (N,); 0 where that is not known.
    """

    def __init__(self, index: EmbeddingIndex, rows: DatasetRows) -> None:
        self.rows = rows
        self.ids = index.table["image_id"].combine_chunks()
        self.images, self.offsets = rows.images_by_row()
        self.counts: NDArray[np.int64] = np.diff(self.offsets)
        listed = index.table["size"].fill_null(0).to_numpy()
        self.bytes: NDArray[np.int64] = listed[rows.first].astype(np.int64)

    def images_of(self, rows: Members) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All images of some rows: which of the rows each has, and where it is in the index."""
        counts = self.counts[rows]
        of = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        return of, self.images[self.offsets[rows[of]] + within]

    def row_of(self, place: int) -> int | None:
        """The row of an image of the index; None where it has none."""
        at = np.flatnonzero(self.images == place)
        return int(np.searchsorted(self.offsets, at[0], side="right")) - 1 if len(at) else None

    def ids_of(self, rows: NDArray[np.integer]) -> list[str]:
        """The first image of each row."""
        return list(self.ids.take(pa.array(self.rows.first[rows])).to_pylist())

    def keys_of(self, rows: NDArray[np.integer]) -> list[str]:
        """The content key of each row, in hex."""
        width = self.rows.keys.dtype.itemsize
        keys = self.rows.keys[rows].tobytes()
        return [keys[at : at + width].hex() for at in range(0, len(keys), width)]


def rows_of(evaluation: Evaluation, store: Store) -> tuple[EmbeddingIndex, DatasetRows]:
    """What an evaluation was made of; VisdivError where it is gone."""
    index = store.read_index(*evaluation.where)
    return index, DatasetRows(store, evaluation.model_id, index)


def as_text(threshold: float) -> str:
    """A threshold with two digits, or as many as it takes.

    Example:
        >>> as_text(0.9), as_text(0.755)
        ('0.90', '0.755')
    """
    return max(f"{threshold:.2f}", f"{threshold:g}", key=len)


def known_share(recall: float) -> float | None:
    """A recall, or None where it could not be measured."""
    return None if np.isnan(recall) else recall


def step(on_progress: OnProgress | None, what: str) -> Callable[[int, int], None] | None:
    """Progress of one step, as `similarity` tells it."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(what, done, total)
