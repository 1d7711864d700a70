"""Images in Parquet files, in the layout of Hugging Face datasets.

Here: rows and row groups. Not here: finding files (`containers.py`), what columns mean
(`tables.py`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visdiv_assets.sources.containers import ContainerSource
from visdiv_assets.sources.places import FileInfo
from visdiv_assets.sources.reaching import check_time
from visdiv_assets.sources.source import Item
from visdiv_assets.sources.tables import (
    encoded_images,
    image_column,
    images_of,
    is_label,
    labels_of,
)

ROWS_LISTED = 4096
ROWS_READ = 16  # that many images of a few megabytes are in memory together

# Columns with more bytes per row are texts, not labels, and cost too much to list.
MAX_LABEL_BYTES = 64


class ParquetSource(ContainerSource):
    """Images in a column of Parquet files: bytes, structs of bytes and path, or lists of either.

    An image's place is its row, followed by `.n` for the n-th image of a row with several.

    Args:
        place: the folder of the files.
        pattern: their names.
        selection: which images to take, and the column that holds them.
    """

    def _items(self, file: FileInfo) -> Iterator[Item]:
        with self._place.open(file.name) as content:
            parquet = pq.ParquetFile(content, pre_buffer=False, buffer_size=2**20)
            schema = parquet.schema_arrow
            column = image_column(schema, self._selection.column)
            labels = [each for each in _light_columns(parquet) if each != column]
            columns = [_lightest_leaf(parquet, column), *labels]
            row = 0
            for batch in parquet.iter_batches(ROWS_LISTED, columns=columns):
                check_time()
                cells = batch.column(column).to_pylist()
                said = list(labels_of(batch, labels, schema))
                for at, place, _ in images_of(cells, self._tally):
                    yield Item(f"{row + at}{place}", None, file.version, said[at] or None)
                row += len(cells)

    def _read(self, file: FileInfo, places: set[str]) -> Iterator[tuple[str, bytes | OSError]]:
        rows = {int(place.partition(".")[0]) for place in places}
        with self._place.open(file.name) as content:
            # A row group may be as large as memory, so its pages are read piece by piece.
            parquet = pq.ParquetFile(content, pre_buffer=False, buffer_size=2**20)
            column = image_column(parquet.schema_arrow, self._selection.column)
            leaf = _leaf(parquet, column, lambda path: path.endswith("bytes")) or column
            first = 0
            for group in range(parquet.num_row_groups):
                n_rows = parquet.metadata.row_group(group).num_rows
                if not rows.isdisjoint(range(first, first + n_rows)):
                    yield from self._read_group(parquet, group, first, leaf, places)
                first += n_rows

    def _read_group(
        self, parquet: pq.ParquetFile, group: int, row: int, leaf: str, places: set[str]
    ) -> Iterator[tuple[str, bytes | OSError]]:
        for batch in parquet.iter_batches(ROWS_READ, row_groups=[group], columns=[leaf]):
            for cell in batch.column(0):
                for at, data in encoded_images(_value(cell)):
                    if (place := f"{row}{at}") in places:
                        yield (
                            place,
                            OSError("its row contains no image bytes") if data is None else data,
                        )
                row += 1


def _value(cell: pa.Scalar) -> Any:
    return cell.as_py()


def _lightest_leaf(parquet: pq.ParquetFile, column: str) -> str:
    """A leaf of the column other than the images' bytes, to count the images cheaply."""
    return _leaf(parquet, column, lambda path: not path.endswith("bytes")) or column


def _leaf(parquet: pq.ParquetFile, column: str, fits: Callable[[str], bool]) -> str | None:
    if not pa.types.is_nested(parquet.schema_arrow.field(column).type):
        return None
    paths = (parquet.schema.column(at).path for at in range(len(parquet.schema)))
    below = [path for path in paths if path.startswith(f"{column}.")]
    # The leaf of a list of plain bytes is called `column.list.element`.
    return next((path for path in below if fits(path)), None) if len(below) > 1 else None


def _light_columns(parquet: pq.ParquetFile) -> list[str]:
    """Columns that may be labels and take few bytes per row."""
    metadata, schema = parquet.metadata, parquet.schema_arrow
    if not metadata.num_row_groups or not metadata.num_rows:
        return []
    group = metadata.row_group(0)
    sizes = {
        group.column(at).path_in_schema: group.column(at).total_uncompressed_size
        for at in range(group.num_columns)
    }
    return [
        field.name
        for field in schema
        if is_label(field.type)
        and sizes.get(field.name, 0) <= MAX_LABEL_BYTES * max(group.num_rows, 16)
    ]
