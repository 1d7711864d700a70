"""Writing tables and arrays, reading them back, and noticing damage.

Not here: the layout of files (`store.py`), where they are (`objects.py`).
"""

import errno
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources import pieces
from visdiv_assets.sources.manifest import METADATA, TEXT
from visdiv_assets.sources.pieces import Pieces
from visdiv_assets.store.objects import Write


class DamagedError(VisdivError):
    """A file of the store that does not hold what was written to it."""


@contextmanager
def noticing_damage(path: Path | str, cure: str) -> Iterator[None]:
    """Turn whatever damaged bytes raise into a DamagedError that names the file.

    Args:
        path: the file that the block reads.
        cure: what to do about it, as the end of a sentence.

    Raises:
        OSError, MemoryError: what the system refused, as it is, since the bytes may be sound.
    """
    try:
        yield
    except (FileNotFoundError, MemoryError, VisdivError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EISDIR, errno.EINVAL):
            raise
        # Parsers of Parquet, NumPy and zip files raise almost anything on damaged bytes: OSError,
        # ValueError, KeyError, EOFError, ArrowException, BadZipFile, zlib.error …
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DamagedError(f"{path} is damaged ({reason}); {cure}") from error


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, whole or some of its columns, with its checksums verified."""
    # `pq.read_table` would read a folder of that name as an empty dataset.
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return _with_long_texts(file.read(None if columns is None else list(columns)))


def stored_pieces(opened: Callable[[], AbstractContextManager[Path]]) -> Pieces:
    """A Parquet file that is read in pieces, with their checksums verified.

    Args:
        opened: gives the file, and tells of what reading it raises.
    """
    with opened() as path, pq.ParquetFile(path) as file:
        length = int(file.metadata.num_rows)
        schema = _with_long_texts(file.schema_arrow.empty_table()).schema

    def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        with (
            opened() as path,
            # With `pre_buffer`, all data read would stay in memory.
            pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file,
        ):
            for batch in file.iter_batches(rows, columns=list(columns)):
                yield _with_long_texts(pa.Table.from_batches([batch]))

    return Pieces(read, length, schema)


def _with_long_texts(table: pa.Table) -> pa.Table:
    """The table with the types of text that manifests and indexes have now.

    Older versions wrote text with offsets of 32 bits.
    """
    schema = table.schema
    for at, field in enumerate(schema):
        if field.type == pa.string():
            schema = schema.set(at, field.with_type(TEXT))
        elif field.type == pa.map_(pa.string(), pa.string()):
            schema = schema.set(at, field.with_type(METADATA))
    return table if schema.equals(table.schema) else table.cast(schema)


def writing(table: pa.Table | Pieces) -> Write:
    """What writes a table as a Parquet file, with a checksum for each page."""
    rows = table if isinstance(table, Pieces) else Pieces.of(table)

    def write(file: IO[bytes]) -> None:
        with pq.ParquetWriter(file, rows.schema, write_page_checksum=True) as writer:
            for piece in rows():
                writer.write_table(piece, row_group_size=pieces.PIECE_ROWS)

    return write


def write_joined(file: IO[bytes], arrays: Mapping[str, tuple[int, Iterable[NDArray[Any]]]]) -> None:
    """Write what `np.savez` would write of joined arrays, with one part of each in memory.

    Args:
        file: where to.
        arrays: by name, the number of rows of the whole, and its parts, at least one, of one type.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, (length, parts) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for at, part in enumerate(parts):
                    if at == 0:
                        header = {**header_data_from_array_1_0(part), "fortran_order": False}
                        header["shape"] = (length, *part.shape[1:])
                        write_array_header_1_0(member, header)
                    member.write(np.ascontiguousarray(part).data)
