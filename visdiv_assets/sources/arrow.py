"""Images in Arrow files, as `save_to_disk` of the `datasets` library writes them.

Here: the folder's list of files, record batches. Not here: what columns mean (`tables.py`).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyarrow as pa

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.containers import ContainerSource
from visdiv_assets.sources.places import FileInfo, LocalPlace, find_files
from visdiv_assets.sources.reaching import check_time, unlisted
from visdiv_assets.sources.source import Item
from visdiv_assets.sources.tables import (
    encoded_images,
    image_column,
    images_of,
    is_label,
    labels_of,
)

STATE = "state.json"
SPLITS = "dataset_dict.json"
MAX_JSON_BYTES = 16 * 2**20


class ArrowSource(ContainerSource):
    """Images in a column of Arrow files or streams; places are as in Parquet files.

    Args:
        place: the folder of the files.
        pattern: their names; "" to read them from the folder's own list.
        selection: which images to take, and the column that holds them.
    """

    @property
    def uri(self) -> str:
        """The folder, and the pattern if there is one."""
        return super().uri if self._pattern else self._place.uri

    @cached_property
    def files(self) -> list[FileInfo]:
        """The files that match the pattern, or those in the folder's own list."""
        if self._pattern:
            return find_files(self._place, self._pattern)
        try:
            splits = [f"{split}/" for split in self._json(SPLITS)["splits"]]
        except FileNotFoundError:
            splits = [""]
        names = [
            f"{split}{file['filename']}"
            for split in splits
            for file in self._json(f"{split}{STATE}")["_data_files"]
        ]
        return [self._place.info(name) for name in sorted(names)]

    def _json(self, name: str) -> dict[str, Any]:
        with self._place.open(name) as file:
            content = json.loads(file.read(MAX_JSON_BYTES))
        if not isinstance(content, dict):
            raise VisdivError(f"{self._uri_of(name)} is not in the format of save_to_disk")
        return content

    def items(self) -> Iterator[Item]:
        """Every image; as `ContainerSource.items`."""
        self._checked_files()
        return super().items()

    def fingerprint(self) -> str:
        """As `ContainerSource.fingerprint`."""
        self._look_again()
        self._checked_files()
        return super().fingerprint()

    def _checked_files(self) -> None:
        try:
            _ = self.files
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            told = f"{type(error).__name__}: {error}"
            raise unlisted(
                f"{self.uri} is not a complete folder written by save_to_disk: {told}", error
            ) from None

    def _items(self, file: FileInfo) -> Iterator[Item]:
        row = 0
        for batch in self._batches(file):
            column = image_column(batch.schema, self._selection.column)
            labels = [each.name for each in batch.schema if is_label(each.type)]
            named = list(labels_of(batch, labels, batch.schema))
            cells = (cell.as_py() for cell in batch.column(column))
            for at, place, data in images_of(cells, self._tally):
                size = None if data is None else len(data)
                yield Item(f"{row + at}{place}", size, file.version, named[at] or None)
            row += batch.num_rows

    def _read(self, file: FileInfo, places: set[str]) -> Iterator[tuple[str, bytes | OSError]]:
        rows = {int(place.partition(".")[0]) for place in places}
        first = 0
        for batch in self._batches(file):
            column = batch.column(image_column(batch.schema, self._selection.column))
            for row in sorted(rows.intersection(range(first, first + batch.num_rows))):
                for at, data in encoded_images(column[row - first].as_py()):
                    if (place := f"{row}{at}") in places:
                        yield (
                            place,
                            OSError("its row contains no image bytes") if data is None else data,
                        )
            first += batch.num_rows

    def _batches(self, file: FileInfo) -> Iterator[pa.RecordBatch]:
        with self._opened(file) as content:
            for batch in _batches_of(content):
                check_time()
                # Arrow trusts every offset; a damaged one would crash the process.
                batch.validate(full=True)
                yield batch

    @contextmanager
    def _opened(self, file: FileInfo) -> Iterator[pa.NativeFile]:
        """Open a file; local files are memory-mapped, so that only the parts in use are read."""
        if isinstance(self._place, LocalPlace):
            with pa.memory_map(str(self._place.path(file.name))) as content:
                yield content
        else:
            with self._place.open(file.name) as far:
                yield pa.PythonFile(far)


def _batches_of(content: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    try:
        stream = pa.ipc.open_stream(content)
    except pa.ArrowInvalid:
        content.seek(0)
        reader = pa.ipc.open_file(content)
        yield from (reader.get_batch(at) for at in range(reader.num_record_batches))
    else:
        yield from stream
