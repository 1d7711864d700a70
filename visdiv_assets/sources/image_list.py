"""Images that are named in a list: .txt, .csv, .tsv, .jsonl, or COCO .json.

Here: parsing the lists. Not here: the files that they name (`places.py`).
"""

import csv
import io
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import ijson
import numpy as np

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import redacted, without_secrets
from visdiv_assets.sources.places import FileInfo, LocalPlace, Place
from visdiv_assets.sources.source import (
    Item,
    Read,
    from_image_id,
    read_concurrently,
    to_image_id,
)
from visdiv_assets.sources.tables import as_metadata
from visdiv_assets.sources.uris import scheme_of

READERS = 16

# Names of columns that hold paths, most likely first.
PATH_COLUMNS = (
    "path", "file_name", "filename", "file", "filepath", "file_path", "image_path", "image",
    "img", "img_path", "image_file", "url", "image_url", "name",
)  # fmt: skip


class ListSource:
    """The images named in a list; an image's id is its path relative to the root.

    The list's other columns become metadata. An image that is named several times counts once.

    Args:
        place: the folder of the list.
        name: name of the list in that folder.
        root: the folder that paths in the list start at; they must not lead outside it.
        wanted: whether to include an image id; None includes all.
        column: the column that holds the paths; None detects it.
    """

    def __init__(
        self,
        place: Place,
        name: str,
        root: Place,
        wanted: Callable[[str], bool] | None = None,
        column: str | None = None,
    ) -> None:
        self._place, self._name, self._root = place, name, root
        self._wanted, self._column = wanted, column

    @property
    def uri(self) -> str:
        """The URI of the list."""
        return f"{self._place.uri.rstrip('/')}/{self._name}"

    def items(self) -> Iterator[Item]:
        """Every image in the list, in its order; sizes and versions of local files are looked up.

        Raises:
            VisdivError: the list cannot be read, or names no images.
        """
        found = False
        listed = self._info()
        try:
            with self._place.open(self._name) as file:
                for path, metadata in _entries(file, self._name, self._column):
                    item = self._item(path, metadata, listed)
                    if self._wanted is None or self._wanted(item.image_id):
                        found = True
                        yield item
        except VisdivError as error:
            raise VisdivError(f"{self.uri}: {error}") from None
        except Exception as error:  # noqa: BLE001  each format's library has errors of its own
            raise VisdivError(f"cannot read {self.uri}: {redacted(str(error))}") from None
        if not found:
            raise VisdivError(f"{self.uri} names no images")

    def fingerprint(self) -> str | None:
        """The version of the list if the images are remote, else None."""
        if isinstance(self._root, LocalPlace):
            return None
        listed = self._info()
        return f"{listed.size:x}-{listed.version}"

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the given order, several at a time."""

        def read(image_id: str) -> bytes:
            name = from_image_id(image_id)
            if scheme_of(name):
                raise OSError(f"its address is not below {self._root.uri}; set `root`")
            return self._root.read(name)

        return read_concurrently(read, image_ids, READERS)

    def _info(self) -> FileInfo:
        try:
            return self._place.info(self._name)
        except FileNotFoundError:
            raise VisdivError(f"no such file: {self.uri}") from None
        except OSError as error:
            raise VisdivError(f"cannot read {self.uri}: {error.strerror or error}") from None

    def _item(self, path: str, metadata: dict[str, str], listed: FileInfo) -> Item:
        name = self._below_root(path)
        image_id = to_image_id(name)
        if not isinstance(self._root, LocalPlace):
            return Item(image_id, None, listed.version, metadata or None)
        try:
            _, size, version = self._root.info(name)
        except OSError:  # reading it will report the error
            return Item(image_id, None, "unreadable", metadata or None)
        return Item(image_id, size, version, metadata or None)

    def _below_root(self, path: str) -> str:
        """A path or address, relative to the root if it is below it, else unchanged."""
        whole = without_secrets(path) if scheme_of(path) else path
        base = self._root.uri.rstrip("/") + "/"
        if whole.startswith(base):
            whole = whole[len(base) :]
        return whole if scheme_of(whole) else posixpath.normpath(whole)


def _entries(
    file: IO[bytes], name: str, column: str | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Path and metadata of each entry of a list."""
    extension = name.rpartition(".")[2].lower()
    if extension == "json":
        yield from _json_entries(file, column)
        return
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    if extension == "txt":
        yield from ((path, {}) for line in lines if (path := line.strip("\r\n")))
        return
    rows: Iterable[Any]
    if extension == "jsonl":
        rows = (json.loads(line) for line in lines if line.strip())
    else:
        rows = csv.DictReader(lines, delimiter="\t" if extension == "tsv" else ",")
    yield from _row_entries(rows, column)


def _row_entries(rows: Iterable[Any], column: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    for row in rows:
        if isinstance(row, str):
            yield row, {}
            continue
        if not isinstance(row, dict):
            raise VisdivError("an entry is neither a path nor an object with a path")
        column = column or _path_column(row)
        if path := row.get(column):
            rest = {key: value for key, value in row.items() if key not in (column, None)}
            yield str(path), as_metadata(rest)


def _path_column(row: dict[str, Any]) -> str:
    by_lower = {str(name).strip().lower(): name for name in row}
    for name in PATH_COLUMNS:
        if name in by_lower:
            return str(by_lower[name])
    if len(row) == 1:
        return str(next(iter(row)))
    shown = ", ".join(repr(name) for name in list(row)[:20])
    raise VisdivError(f"cannot tell which column holds the paths; set `column` to one of {shown}")


# Deeper than any real list. The parser's time grows with the square of the depth.
MAX_DEPTH = 200


class _Shallow:
    """A JSON file that raises an error where it is nested too deeply.

    Brackets in strings count too; no real list has hundreds more opening than closing ones.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._depth = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        codes = np.frombuffer(data, dtype=np.uint8)
        opens = (codes == ord("[")) | (codes == ord("{"))
        closes = (codes == ord("]")) | (codes == ord("}"))
        depths = self._depth + np.cumsum(opens.astype(np.int64) - closes)
        if depths.size:
            if depths.max() > MAX_DEPTH:
                raise VisdivError("its JSON is nested too deeply")
            self._depth = int(depths[-1])
        return data


def _json_entries(file: IO[bytes], column: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Entries of a COCO file, with categories from its annotations, or of a plain array."""
    start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    if start.startswith(b"["):
        yield from _row_entries(ijson.items(_Shallow(file), "item", use_float=True), column)
        return
    names = {
        each.get("id"): str(each.get("name"))
        for each in ijson.items(_Shallow(file), "categories.item", use_float=True)
        if isinstance(each, dict)
    }
    file.seek(0)
    categories: dict[Any, Any] = {}  # the first annotation of an image counts
    for prefix, image, category in _annotations(file):
        del prefix
        categories.setdefault(image, category)
    file.seek(0)
    for image in ijson.items(_Shallow(file), "images.item", use_float=True):
        if isinstance(image, dict) and image.get("file_name"):
            rest = {key: value for key, value in image.items() if key != "file_name"}
            category = names.get(categories.get(image.get("id")))
            labelled = {"category": category} if category else {}
            yield str(image["file_name"]), as_metadata({**rest, **labelled})


def _annotations(file: IO[bytes]) -> Iterator[tuple[str, Any, Any]]:
    """Image and category of each annotation; outlines, most of the file, are skipped."""
    image = category = None
    for prefix, event, value in ijson.parse(_Shallow(file), use_float=True):
        if prefix == "annotations.item.image_id":
            image = value
        elif prefix == "annotations.item.category_id":
            category = value
        elif prefix == "annotations.item" and event == "end_map":
            yield prefix, image, category
            image = category = None
