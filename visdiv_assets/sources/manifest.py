"""The manifest: the list of a dataset's images as of one look at its source.

Here: listing a source into a table, the fingerprint of both.
Not here: where manifests are kept (`embedding/store.py`).
"""

import hashlib
import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.source import Item, Source

METADATA = pa.map_(pa.string(), pa.string())
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("metadata", METADATA),
    ]
)

# Items turned into Arrow columns at a time, so that millions never stand in memory as objects.
BATCH_ITEMS = 65_536


@dataclass(frozen=True, eq=False)
class Manifest:
    """One row per image, sorted by image id.

    Attributes:
        table: columns `image_id`, `size` (bytes; null where unknown), `version`, `metadata` (a map
            of texts, or null).
        fingerprint: of the source, where it has one of its own; else 128-bit hash of the table, in
            hex: the same images give the same one.
    """

    table: pa.Table
    fingerprint: str

    @classmethod
    def of(cls, table: pa.Table, fingerprint: str | None = None) -> "Manifest":
        """The manifest that a table with the columns of SCHEMA, in any order of rows, makes.

        Of rows with the same image id, one is kept. The fingerprint is that of the table, unless
        the source has one of its own.
        """
        table = table.select(SCHEMA.names).cast(SCHEMA)
        # A column of maps cannot be sorted along.
        keys = table.drop_columns("metadata").append_column(
            "at", pa.array(np.arange(len(table), dtype=np.int64))
        )
        order = keys.sort_by([(name, "ascending") for name in keys.column_names])
        ids = order["image_id"].combine_chunks()
        if len(ids) > 1:
            first = pc.not_equal(ids[1:], ids[:-1])
            order = order.filter(pa.concat_arrays([pa.array([True]), first]))
        table = table.take(order["at"]).combine_chunks()
        return cls(table, fingerprint or _fingerprint(table))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def total_bytes(self) -> int:
        """Size of all images, encoded."""
        return int(pc.sum(self.table["size"]).as_py() or 0)


def list_images(source: Source, *, within_seconds: float | None = None) -> Manifest:
    """Look at a source and write down what is there.

    Args:
        source: where to look.
        within_seconds: give up when it takes longer.

    Raises:
        VisdivError: the source cannot be listed, holds no images, or takes too long.
    """
    deadline = None if within_seconds is None else time.monotonic() + within_seconds
    fingerprint = source.fingerprint()
    batches = []
    listed = iter(source.items())
    while items := tuple(itertools.islice(listed, BATCH_ITEMS)):
        batches.append(_batch(items))
        if deadline is not None and time.monotonic() > deadline:
            raise VisdivError(
                f"listing {source.uri} takes longer than {within_seconds:.0f} seconds"
            )
    return Manifest.of(pa.Table.from_batches(batches, schema=SCHEMA), fingerprint)


def look(source: Source, *, within_seconds: float | None = None) -> str:
    """The fingerprint that the manifest of a source would have now, in the cheapest way.

    Raises:
        VisdivError: as `list_images`.
    """
    own = source.fingerprint()
    return own or list_images(source, within_seconds=within_seconds).fingerprint


def _batch(items: Iterable[Item]) -> pa.RecordBatch:
    image_ids, sizes, versions, metadata = zip(*items, strict=True)
    pairs = (None if each is None else list(each.items()) for each in metadata)
    said = pa.array(pairs, METADATA) if any(metadata) else pa.nulls(len(metadata), METADATA)
    return pa.record_batch([image_ids, sizes, versions, said], schema=SCHEMA)


def _fingerprint(table: pa.Table) -> str:
    """Hash of the columns one after the other; lengths keep neighbours apart."""
    digest = hashlib.blake2b(str(len(table)).encode(), digest_size=16)
    for name in ("image_id", "version"):
        for chunk in table[name].chunks:
            digest.update(pc.binary_length(chunk).to_numpy().tobytes())
        for chunk in table[name].chunks:
            start, stop = chunk.offset, chunk.offset + len(chunk)
            offsets = np.frombuffer(chunk.buffers()[1], dtype=np.int32)
            digest.update(memoryview(chunk.buffers()[2])[offsets[start] : offsets[stop]])
    for chunk in table["size"].chunks:
        digest.update(pc.fill_null(chunk, -1).to_numpy().tobytes())
    if table["metadata"].null_count < len(table):
        for row in table["metadata"]:
            digest.update(repr(row.as_py()).encode())
    return digest.hexdigest()
