"""Tables with a row for each image, a piece at a time, so that memory does not grow with them.

Here: reading a table in pieces, gathering one in a temporary file, joining sorted ones.
Not here: what the tables are: manifests (`manifest.py`) and indexes (`store/index.py`).
"""

import operator
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visdiv_assets.errors import VisdivError

# Rows that are in memory at a time.
PIECE_ROWS = 131_072

# Sorted tables that are joined at a time. Each has a file open, and some of its rows in memory.
MOST_JOINED = 16

IMAGE_ID = "image_id"


@dataclass(frozen=True, eq=False)
class Pieces:
    """A table that is read a piece at a time, any number of times.

    Attributes:
        read: gives some columns, so many rows at a time; of a table without rows, perhaps nothing.
        length: number of rows.
        schema: of all columns.

    Example:
        >>> pieces = Pieces.of(pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}))
        >>> [piece.to_pydict() for piece in pieces.read(["a"], 2)]
        [{'a': [1, 2]}, {'a': [3]}]
    """

    read: Callable[[Sequence[str], int], Iterator[pa.Table]]
    length: int
    schema: pa.Schema

    @classmethod
    def of(cls, table: pa.Table) -> "Pieces":
        """Of a table in memory."""

        def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
            for start in range(0, len(table), rows):
                yield table.select(columns).slice(start, rows)

        return cls(read, len(table), table.schema)

    def __call__(
        self, columns: Sequence[str] | None = None, rows: int | None = None
    ) -> Iterator[pa.Table]:
        """Some columns, or all of them, PIECE_ROWS or so many rows at a time."""
        return self.read(self.schema.names if columns is None else columns, rows or PIECE_ROWS)

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """One column, in pieces."""
        return (piece[name] for piece in self([name]))

    def table(self) -> pa.Table:
        """All of it in memory."""
        whole = pa.concat_tables([self.schema.empty_table(), *self()])
        return whole.replace_schema_metadata(self.schema.metadata)


class Gathering:
    """Pieces of a table that is being made: in memory up to PIECE_ROWS, else in a temporary file.

    The file is gone when nothing refers to this, or to what `pieces` returned, any more.

    Args:
        schema: of the table.
        in_file: whether it is in a file however small it is.
    """

    def __init__(self, schema: pa.Schema, *, in_file: bool = False) -> None:
        self._schema, self._in_memory, self._length = schema, [schema.empty_table()], 0
        self._in_file = in_file
        self._writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Add rows behind those before.

        Raises:
            VisdivError: the temporary file cannot be written.
        """
        self._length += len(table)
        self._in_memory.append(table.cast(self._schema))
        if self._writer is None and not self._in_file and self._length <= PIECE_ROWS:
            return
        with _writing():
            self._writer = self._writer or pq.ParquetWriter(self._path, self._schema)
            for each in self._in_memory:
                self._writer.write_table(each, row_group_size=PIECE_ROWS)
        self._in_memory = []

    @cached_property
    def _folder(self) -> "tempfile.TemporaryDirectory[str]":
        return tempfile.TemporaryDirectory(prefix="visdiv-", ignore_cleanup_errors=True)

    @property
    def _path(self) -> Path:
        return Path(self._folder.name) / "gathered.parquet"

    def pieces(self) -> Pieces:
        """What was added; nothing can be added any more."""
        if self._writer is None:
            whole = pa.concat_tables(self._in_memory)
            return Pieces.of(whole.replace_schema_metadata(self._schema.metadata))
        with _writing():
            self._writer.close()

        def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
            with pq.ParquetFile(self._path, pre_buffer=False) as file:
                for batch in file.iter_batches(rows, columns=list(columns)):
                    yield pa.Table.from_batches([batch])

        return Pieces(read, self._length, self._schema)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VisdivError(
            f"cannot write temporary files to {tempfile.gettempdir()} ({error.strerror or error}); "
            "make room there, or name another folder in TMPDIR"
        ) from error


class Reader:
    """Reads rows of a sorted table up to one id after the other, each larger than the one before.

    Args:
        pieces: a table whose rows are sorted by a column `image_id`.
        rows: so many are read at a time; PIECE_ROWS when None.
        columns: those that are wanted, and `image_id`; all when None.

    Attributes:
        is_over: whether all that is left is held.
    """

    def __init__(
        self, pieces: Pieces, rows: int | None = None, columns: Sequence[str] | None = None
    ) -> None:
        names = pieces.schema.names if columns is None else columns
        self._coming = pieces(names, rows)
        self._held: pa.Table = pieces.schema.empty_table().select(names)
        self.is_over = False
        self._read_on()

    def _read_on(self) -> None:
        more = next(self._coming, None)
        self.is_over = more is None
        if more is not None:
            self._held = pa.concat_tables([self._held, more])

    @property
    def last(self) -> str | None:
        """The last id of what is held; None if nothing is."""
        return self._held[IMAGE_ID][-1].as_py() if len(self._held) else None

    def up_to(self, last: str | None) -> pa.Table:
        """The rows up to an id and with it, that were not given before; all if that is None."""
        while not self.is_over and (last is None or self.last is None or self.last <= last):
            self._read_on()
        count = len(self._held)
        if last is not None and count:
            ids = self._held[IMAGE_ID]
            count = int(pc.sum(pc.less_equal(ids, pa.scalar(last, ids.type))).as_py())
        given, self._held = self._held.slice(0, count), self._held.slice(count)
        return given


def joined(tables: Sequence[Pieces], tidied: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
    """The rows of several sorted tables in order of ids.

    Args:
        tables: each sorted by `image_id`, which it has once each.
        tidied: puts rows in order, and leaves out what is not wanted of those with the same id. It
            gets those of the first table first.
    """
    readers = [Reader(each, max(1024, PIECE_ROWS // len(tables))) for each in tables]
    while any(reader.last is not None for reader in readers):
        # Of what is up to the least of the last ids, each reader holds all it has.
        lasts = [each.last for each in readers if not each.is_over and each.last is not None]
        bound = min(lasts, default=None)
        yield tidied(pa.concat_tables([reader.up_to(bound) for reader in readers]))


class Sorting:
    """Sorts a table that need not fit in memory.

    Args:
        schema: of the table, with a column `image_id`.
        tidied: as in `joined`.
    """

    def __init__(self, schema: pa.Schema, tidied: Callable[[pa.Table], pa.Table]) -> None:
        self._schema, self._tidied = schema, tidied
        # What was added last is in memory. All else is in files, the older first; each level has
        # tables of MOST_JOINED of the one below.
        self._held: pa.Table = schema.empty_table()
        self._levels: list[list[Pieces]] = [[]]

    def add(self, table: pa.Table) -> None:
        """Add rows in any order, as many as may be in memory."""
        if len(self._held):
            self._put([self._held], 0)
        self._held = self._tidied(table)

    def _put(self, tables: Iterable[pa.Table], level: int) -> None:
        """Keep one sorted table in a file."""
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(_gathered(Gathering(self._schema, in_file=True), tables))
        if len(self._levels[level]) == MOST_JOINED:
            full, self._levels[level] = self._levels[level], []
            self._put(joined(full, self._tidied), level + 1)

    def sorted(self) -> Pieces:
        """All of it, sorted."""
        in_files: list[Pieces] = reduce(operator.add, reversed(self._levels))
        if not in_files:
            return Pieces.of(self._held)
        tables = [*in_files, Pieces.of(self._held)]
        return _gathered(Gathering(self._schema), joined(tables, self._tidied))


def _gathered(gathering: Gathering, tables: Iterable[pa.Table]) -> Pieces:
    for table in tables:
        gathering.add(table)
    return gathering.pieces()
