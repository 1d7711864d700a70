"""Writing files atomically, and reading tables in pieces.

Not here: the layout of files (`store.py`).
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

# Rows of a manifest or an index that are in memory at a time when it is read in pieces.
PIECE_ROWS = 131_072


def read_pieces(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a Parquet file, PIECE_ROWS at a time."""
    with pq.ParquetFile(path, pre_buffer=False) as file:  # else all data read stays in memory
        for batch in file.iter_batches(PIECE_ROWS, columns=list(columns)):
            yield pa.Table.from_batches([batch])


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically."""
    write_atomically(path, lambda file: pq.write_table(table, file, row_group_size=PIECE_ROWS))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a hidden temporary file in the same folder, flush it to disk, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
