"""The index: for each image of a manifest, its row in the store, or why there is none.

Here: the table and its queries. Not here: building it (`embedding/incremental.py`), storing it
(`store.py`).
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.sources.manifest import TEXT
from visdiv_assets.sources.pieces import PIECE_ROWS, Pieces

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

# What counting different contents may take, beyond which DuckDB uses a disk.
DISTINCT_MEMORY = "128MB"

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


class EmbeddingIndex:
    """One row per image, in the order of the manifest.

    Args:
        rows: a table with INDEX_SCHEMA, in memory or read in pieces. An embedded image has
            `content_key`, `segment` and `row`. A failed one has a `reason`, the class of the
            `exception`, and a `content_key` if it could be read. `flat` tells whether a picture is
            one flat colour; indexes of older versions lack it.
    """

    def __init__(self, rows: pa.Table | Pieces) -> None:
        self.pieces = rows if isinstance(rows, Pieces) else Pieces.of(rows)

    def __len__(self) -> int:
        return self.pieces.length

    @cached_property
    def table(self) -> pa.Table:
        """All of it in memory."""
        return self.pieces.table()

    @property
    def judge(self) -> str:
        """The decoder that the failures come from, as in `Decoding.judge`."""
        return str((self.pieces.schema.metadata or {}).get(JUDGE, b""), "utf-8")

    @property
    def n_images(self) -> int:
        """Number of embedded images."""
        return len(self) - self.n_failed

    @cached_property
    def n_failed(self) -> int:
        """Number of images that could not be read or decoded."""
        return sum(int(rows.null_count) for rows in self.pieces.column("row"))

    @cached_property
    def n_distinct(self) -> int:
        """Number of distinct contents among the embedded images."""
        if len(self) <= PIECE_ROWS:
            return int(pc.count_distinct(self._embedded("content_key")["content_key"]).as_py())
        import duckdb  # takes time, and few need it

        # DuckDB writes to a disk what does not fit.
        schema = pa.schema([self.pieces.schema.field("content_key")])
        with (
            TemporaryDirectory(prefix="visdiv-", ignore_cleanup_errors=True) as folder,
            duckdb.connect(
                config={"memory_limit": DISTINCT_MEMORY, "temp_directory": folder}
            ) as sql,
        ):
            batches = (
                batch
                for keys in self._embedded_pieces("content_key")
                for batch in keys.to_batches()
            )
            sql.register("keys", pa.RecordBatchReader.from_batches(schema, batches))
            [[count]] = sql.sql("SELECT count(DISTINCT content_key) FROM keys").fetchall()
            return int(count)

    @cached_property
    def n_flat(self) -> int:
        """Number of embedded images whose pictures are one flat colour, as far as is known."""
        if "flat" not in self.pieces.schema.names:
            return 0
        return sum(int(pc.sum(flat).as_py() or 0) for flat in self.pieces.column("flat"))

    def flat(self) -> list[str]:
        """Ids of the embedded images whose pictures are one flat colour, in order of ids."""
        if "flat" not in self.pieces.schema.names:
            return []
        pieces = self.pieces(["image_id", "flat"])
        return [
            each for some in pieces for each in some["image_id"].filter(some["flat"]).to_pylist()
        ]

    def segments(self) -> list[str]:
        """Names of the segments that hold its rows, sorted."""
        used = set[str]()
        for piece in self._embedded_pieces("segment"):
            used.update(piece["segment"].unique().to_pylist())
        return sorted(used)

    def failures(self) -> list[tuple[str, str]]:
        """Image id and error of every failed image, in order of ids."""
        failed = self.failed()
        told = zip(failed["exception"].to_pylist(), failed["reason"].to_pylist(), strict=True)
        reasons = [f"{kind}: {reason}" if kind else reason for kind, reason in told]
        return list(zip(failed["image_id"].to_pylist(), reasons, strict=True))

    def failed(self) -> pa.Table:
        """The rows of the failed images, in order of ids."""
        schema = self.pieces.schema
        failed = (piece.filter(pc.is_null(piece["row"])) for piece in self.pieces())
        return pa.concat_tables([schema.empty_table(), *failed])

    def content_fingerprint(self) -> str:
        """Hex hash of the multiset of embedded contents, independent of names and places."""
        total = np.zeros(2, dtype=np.uint64)
        for piece in self._embedded_pieces("content_key"):
            halves = np.frombuffer(to_keys(piece["content_key"]).tobytes(), "<u8").reshape(-1, 2)
            total += halves.sum(axis=0, dtype=np.uint64)
        told = f"{self.n_images} ".encode() + total.tobytes()
        return hashlib.blake2b(told, digest_size=KEY_BYTES).hexdigest()

    def _embedded(self, *columns: str) -> pa.Table:
        return pa.concat_tables(
            [self.pieces.schema.empty_table().select(columns), *self._embedded_pieces(*columns)]
        )

    def _embedded_pieces(self, *columns: str) -> Iterator[pa.Table]:
        """Some columns of the embedded images."""
        for piece in self.pieces(list(dict.fromkeys([*columns, "row"]))):
            yield piece.filter(pc.is_valid(piece["row"])).select(columns)
