"""The manifest: the list of a dataset's images at one point in time.

Here: listing a source into a table, and the fingerprint.
Not here: where manifests are kept (`store/store.py`).
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.pieces import Gathering, Pieces, Sorting
from visdiv_assets.sources.reaching import TookTooLongError, check_time, time_limit
from visdiv_assets.sources.source import Item, Source

# With offsets of 64 bits: those of 32 bits end at 2 GiB of text, which millions of ids exceed.
TEXT = pa.large_string()
METADATA = pa.map_(TEXT, TEXT)
SCHEMA = pa.schema(
    [
        ("image_id", TEXT),
        ("size", pa.int64()),
        ("version", TEXT),
        ("metadata", METADATA),
    ]
)

# Part of the fingerprints of samples.
SAMPLE_MARK = ".sample"

# Items converted to Arrow columns at a time, so that memory never holds millions of objects.
BATCH_ITEMS = 16_384
# Batches that are sorted at a time.
BATCHES_SORTED = 4


class Manifest:
    """One row per image, sorted by image id.

    Args:
        rows: columns `image_id`, `size` (bytes; null if unknown), `version`, `metadata` (a map of
            strings, or null); a table in memory, or one that is read in pieces.
        fingerprint: the source's own fingerprint if it has one, else a 128-bit hash of the rows
            in hex; equal images have equal hashes.
        notes: sentences about what the source holds beside these images; they are not stored.
    """

    def __init__(
        self, rows: pa.Table | Pieces, fingerprint: str, notes: tuple[str, ...] = ()
    ) -> None:
        self.pieces = rows if isinstance(rows, Pieces) else Pieces.of(rows)
        self.fingerprint, self.notes = fingerprint, notes

    @classmethod
    def of(
        cls, table: pa.Table, fingerprint: str | None = None, *, last_counts: bool = False
    ) -> "Manifest":
        """The manifest of a table with the columns of SCHEMA and rows in any order.

        One row is kept per image id; the last one if `last_counts`. Without a fingerprint from the
        source, the table is hashed.
        """
        pieces = Pieces.of(_in_order(table.select(SCHEMA.names).cast(SCHEMA), last_counts))
        return cls(pieces, fingerprint or _fingerprint(pieces))

    def __len__(self) -> int:
        return self.pieces.length

    @cached_property
    def table(self) -> pa.Table:
        """All of it in memory."""
        return self.pieces.table()

    def sample(self, rows: NDArray[np.int64]) -> "Manifest":
        """Some of the images, with a fingerprint of their own; itself if those are all.

        Args:
            rows: positions of the images, ascending.
        """
        if len(rows) == len(self):
            return self
        gathering, start = Gathering(SCHEMA), 0
        for piece in self.pieces():
            low, high = np.searchsorted(rows, [start, start + len(piece)])
            gathering.add(piece.take(pa.array(rows[low:high] - start)))
            start += len(piece)
        return Manifest(gathering.pieces(), f"{self.fingerprint}{SAMPLE_MARK}{len(rows)}")

    @property
    def total_bytes(self) -> int:
        """Encoded size of all images."""
        return sum(int(pc.sum(sizes).as_py() or 0) for sizes in self.pieces.column("size"))


def _in_order(table: pa.Table, last_counts: bool) -> pa.Table:
    """One row for each image id, in order of ids; the last one if `last_counts`."""
    # Arrow cannot sort a column of maps.
    keys = table.drop_columns("metadata").append_column(
        "at", pa.array(np.arange(len(table), dtype=np.int64))
    )
    by = [(name, "ascending") for name in keys.column_names]
    if last_counts:
        by = [("image_id", "ascending"), ("at", "descending")]
    order = pc.sort_indices(keys, sort_keys=by)
    ids = table["image_id"].take(order)
    if len(ids) > 1:
        first = pc.not_equal(ids[1:], ids[:-1])
        order = order.filter(pa.chunked_array([[True], *first.chunks]).combine_chunks())
    return table.take(order).combine_chunks()


def list_images(source: Source, *, within_seconds: float | None = None) -> Manifest:
    """List a source into a manifest.

    Many images are sorted in temporary files, so that memory does not grow with their number.

    Args:
        source: the source to list.
        within_seconds: give up if listing takes longer.

    Raises:
        VisdivError: the source cannot be listed, contains no images, or takes too long.
        Unreachable: where it is does not answer.
    """
    # Such a source counts those that it has twice itself.
    last_counts = getattr(source, "last_counts", False)
    with _told_of(source, within_seconds):
        fingerprint = source.fingerprint()
        sorting = Sorting(SCHEMA, partial(_in_order, last_counts=last_counts))
        n_listed = 0
        listed = _in_time(source.items())
        while batches := [*itertools.islice(_batches(listed), BATCHES_SORTED)]:
            n_listed += sum(map(len, batches))
            sorting.add(pa.Table.from_batches(batches, schema=SCHEMA))
        pieces = sorting.sorted()
    notes = list(getattr(source, "notes", ()))
    if (repeated := n_listed - pieces.length) and not last_counts:
        notes.append(f"entries with the name of an earlier one, which count once: {repeated:,}")
    return Manifest(pieces, fingerprint or _fingerprint(pieces), tuple(notes))


def look(source: Source, *, within_seconds: float | None = None) -> str:
    """The fingerprint that a manifest of the source would have now, computed the cheapest way.

    Raises:
        VisdivError: as `list_images`.
    """
    with _told_of(source, within_seconds):
        return source.fingerprint() or list_images(source).fingerprint


@contextmanager
def _told_of(source: Source, seconds: float | None) -> Iterator[None]:
    """Within, a listing must not take longer than some seconds; None sets no limit."""
    try:
        with time_limit(seconds):
            yield
    except TookTooLongError:
        if seconds is None:  # whoever has set the limit tells of it
            raise
        raise VisdivError(f"listing {source.uri} took longer than {seconds:.0f} seconds") from None


def _in_time(items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        check_time()
        yield item


def _batches(items: Iterator[Item]) -> Iterator[pa.RecordBatch]:
    while some := tuple(itertools.islice(items, BATCH_ITEMS)):
        image_ids, sizes, versions, metadata = zip(*some, strict=True)
        pairs = (None if each is None else list(each.items()) for each in metadata)
        said = pa.array(pairs, METADATA) if any(metadata) else pa.nulls(len(metadata), METADATA)
        yield pa.record_batch([image_ids, sizes, versions, said], schema=SCHEMA)


def _fingerprint(rows: Pieces) -> str:
    """Hash of all columns; lengths are hashed too, so that neighbouring values cannot blend.

    It is that of the whole columns, one after the other, in however many pieces they are.
    """
    digest = hashlib.blake2b(str(rows.length).encode(), digest_size=16)
    for name in ("image_id", "version"):
        for chunk in _chunks(rows, name):
            lengths = pc.binary_length(chunk).cast(pa.int32())  # as in columns of older versions
            digest.update(lengths.to_numpy().tobytes())
        for chunk in _chunks(rows, name):
            start, stop = chunk.offset, chunk.offset + len(chunk)
            offsets = np.frombuffer(chunk.buffers()[1], dtype=np.int64)
            digest.update(memoryview(chunk.buffers()[2])[offsets[start] : offsets[stop]])
    for chunk in _chunks(rows, "size"):
        digest.update(pc.fill_null(chunk, -1).to_numpy().tobytes())
    if any(chunk.null_count < len(chunk) for chunk in _chunks(rows, "metadata")):
        for chunk in _chunks(rows, "metadata"):
            for row in chunk:
                digest.update(repr(row.as_py()).encode())
    return digest.hexdigest()


def _chunks(rows: Pieces, name: str) -> Iterator[pa.Array]:
    for column in rows.column(name):
        yield from column.chunks
