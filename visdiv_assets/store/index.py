"""The index: for each image of a manifest, its row in the store, or why there is none.

Here: the table and its queries. Not here: building it (`embedding/incremental.py`), storing it
(`store.py`).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.sources.manifest import TEXT

KEY_BYTES = 16
Keys = NDArray[np.bytes_]
"""Content keys, dtype S16. NumPy strips trailing zero bytes from single elements."""

INDEX_SCHEMA = pa.schema(
    [
        ("image_id", TEXT),
        ("size", pa.int64()),
        ("version", TEXT),
        ("content_key", pa.binary(KEY_BYTES)),
        ("segment", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int32()),
        ("reason", TEXT),
        ("exception", TEXT),
        ("flat", pa.bool_()),
    ]
)

# The columns of INDEX_SCHEMA that indexes of all versions have.
KEPT_COLUMNS = tuple(INDEX_SCHEMA.names[:-1])

# Between the fingerprint of a manifest and the id of a unit of work, in the name of an index.
PART_MARK = "+"

# Key in the schema metadata of an index: `Decoding.judge` of its failures.
JUDGE = b"visdiv.judge"


def content_key(data: bytes) -> bytes:
    """128-bit BLAKE2b of an image's encoded bytes; equal files have equal keys everywhere.

    Example:
        >>> content_key(b"abc").hex()
        'cf4ab791c62b8d2b2109c90275287816'
    """
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def to_keys(column: pa.ChunkedArray) -> Keys:
    """Content keys of an Arrow column without nulls."""
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=f"S{KEY_BYTES}")[chunk.offset :][: len(chunk)]
        for chunk in column.chunks
    ]
    return np.concatenate([np.empty(0, dtype=f"S{KEY_BYTES}"), *parts])


def sample_keys(keys: Keys) -> NDArray[np.uint64]:
    """The first half of each content key, a uniformly distributed number, as `Sample` needs."""
    return np.frombuffer(keys.tobytes(), dtype=">u8")[::2].astype(np.uint64)


@dataclass(frozen=True, eq=False)
class EmbeddingIndex:
    """One row per image, in the order of the manifest.

    Attributes:
        table: a table with INDEX_SCHEMA. An embedded image has `content_key`, `segment` and `row`.
            A failed one has a `reason`, the class of the `exception`, and a `content_key` if it
            could be read. `flat` tells whether a picture is one flat colour; indexes of older
            versions lack it.
    """

    table: pa.Table

    @property
    def judge(self) -> str:
        """The decoder that the failures come from, as in `Decoding.judge`."""
        return str((self.table.schema.metadata or {}).get(JUDGE, b""), "utf-8")

    @property
    def n_images(self) -> int:
        """Number of embedded images."""
        return len(self.table) - self.n_failed

    @property
    def n_failed(self) -> int:
        """Number of images that could not be read or decoded."""
        return int(self.table["row"].null_count)

    @property
    def n_distinct(self) -> int:
        """Number of distinct contents among the embedded images."""
        return int(pc.count_distinct(self._embedded()["content_key"]).as_py())

    @property
    def n_flat(self) -> int:
        """Number of embedded images whose pictures are one flat colour, as far as is known."""
        return len(self.flat())

    def flat(self) -> list[str]:
        """Ids of the embedded images whose pictures are one flat colour, in order of ids."""
        if "flat" not in self.table.column_names:
            return []
        ids: list[str] = self.table["image_id"].filter(self.table["flat"]).to_pylist()
        return ids

    def segments(self) -> list[str]:
        """Names of the segments that hold its rows, sorted."""
        used = self._embedded()["segment"].unique().to_pylist()
        return sorted(used)

    def failures(self) -> list[tuple[str, str]]:
        """Image id and error of every failed image, in order of ids."""
        failed = self.failed()
        told = zip(failed["exception"].to_pylist(), failed["reason"].to_pylist(), strict=True)
        reasons = [f"{kind}: {reason}" if kind else reason for kind, reason in told]
        return list(zip(failed["image_id"].to_pylist(), reasons, strict=True))

    def failed(self) -> pa.Table:
        """The rows of the failed images, in order of ids."""
        return self.table.filter(pc.is_null(self.table["row"]))

    def content_fingerprint(self) -> str:
        """Hex hash of the multiset of embedded contents, independent of names and places."""
        keys = np.sort(to_keys(self._embedded()["content_key"]), kind="stable")
        return hashlib.blake2b(keys.tobytes(), digest_size=KEY_BYTES).hexdigest()

    def _embedded(self) -> pa.Table:
        return self.table.filter(pc.is_valid(self.table["row"]))
