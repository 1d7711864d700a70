"""The entries of a list of images: what is written in .txt, .csv, .tsv, .jsonl and .json files.

Here: text encodings, separators, headers, and which part of an entry is a path. Not here: the files
that entries name (`image_list.py`).
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import os
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple
from urllib.parse import unquote

import ijson
import numpy as np

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.source import is_image_name
from visdiv_assets.sources.tables import as_metadata

# Names of columns that hold paths, most likely first.
PATH_COLUMNS = (
    "path", "file_name", "filename", "file", "filepath", "file_path", "image_path", "image",
    "img", "img_path", "image_file", "url", "image_url", "name", "images", "image_name",
    "image_filename", "image_paths", "img_file", "coco_url", "filepaths", "file_names",
)  # fmt: skip

# Keys of a JSON object whose array may hold the entries, if it has no `images`.
ARRAYS = ("samples", "data", "items", "entries", "labels", "rows", "annotations", "files")

SEPARATORS = (",", "\t", ";", "|")
SEPARATOR_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}

SNIFFED_BYTES = 65_536
MAX_LISTED = 20

# csv's own limit is 131,072 for all readers of a process; masks and captions are longer.
MAX_FIELD_CHARACTERS = 2**28
ROWS_AT_ONCE = 1024
HEAD_LINES = 6
_field_limit = threading.Lock()


class Entry(NamedTuple):
    """One image of a list: its path as it is written, and what the list says about it.

    Attributes:
        written: the path, or a whole line of text that begins with it or ends in it.
        metadata: label, split, other columns.
        is_line: whether `written` is a line of text, which may hold more than the path.
    """

    written: str
    metadata: dict[str, str]
    is_line: bool = False


class Tally(Counter[str]):
    """What a list has beside images, counted, and sentences about how it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.sentences: dict[str, None] = {}

    def say(self, sentence: str) -> None:
        """Remember a sentence, once."""
        self.sentences[sentence] = None

    def notes(self) -> list[str]:
        """Everything that is told about the list."""
        return [*self.sentences, *(f"{what}: {count:,}" for what, count in self.items())]


def entries(file: IO[bytes], name: str, column: str | None, tally: Tally) -> Iterator[Entry]:
    """Each entry of a list.

    Args:
        file: the list, seekable.
        name: its name, whose extension says how it is written.
        column: the column that holds the paths; None detects it.
        tally: counts what is no image.

    Raises:
        VisdivError: it is not written as its name says, or does not say where the images are.
    """
    extension = name.rpartition(".")[2].lower()
    start = file.read(SNIFFED_BYTES)
    encoding = _encoding(start)
    file.seek(0)
    if extension in ("json", "jsonl", "ndjson") and not _is_lines(start, encoding, extension):
        if encoding.startswith("utf-16") or encoding.startswith("utf-32"):
            file = io.BytesIO(file.read().decode(encoding, "replace").encode())
        yield from _json_entries(file, column, tally)
        return
    lines = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
    if extension in ("json", "jsonl", "ndjson"):
        yield from _row_entries(_json_lines(lines), column, tally)
    elif extension in ("csv", "tsv"):
        yield from _csv_entries(lines, "\t" if extension == "tsv" else ",", column, tally)
    else:
        for line in lines:
            if line := line.rstrip("\r\n"):
                yield Entry(line, {}, is_line=True)


def _encoding(start: bytes) -> str:
    """The encoding of a text by its first bytes; bytes that are not UTF-8 are kept as they are."""
    marks = {
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    for mark, encoding in marks.items():  # the longer ones come first, since they begin alike
        if start.startswith(mark):
            return encoding
    even, odd = start[0:2000:2], start[1:2000:2]
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if len(zeros) > 4 and zeros.count(0) > 0.8 * len(zeros) and others.count(0) == 0:
            return encoding
    return "utf-8-sig"


# --- how a path may be meant ---


def readings(entry: Entry, *, local: bool) -> Iterator[tuple[str, dict[str, str], str]]:
    """Paths that an entry may mean, the likeliest first.

    Yields:
        a path, what the entry says about the image, and how the path differs from what is written;
        "" if it is written so.

    Example:
        >>> [path for path, *_ in readings(Entry("a.jpg 7", {}, is_line=True), local=False)][:2]
        ['a.jpg 7', 'a.jpg']
    """
    seen = set()
    for path, label in _fields(entry):
        metadata = {**entry.metadata, "label": label} if label else entry.metadata
        for spelled, how in _spellings(path, local):
            if spelled and spelled not in seen:
                seen.add(spelled)
                yield spelled, metadata, how


def _fields(entry: Entry) -> Iterator[tuple[str, str]]:
    """The whole entry, and its fields that may be a path, each with the rest as a label."""
    written = entry.written
    yield written, ""
    yield written.strip(), ""
    yield _unquoted(written), ""
    if not entry.is_line:
        return
    for separator in ("\t", ";", "|", ","):
        fields = [_unquoted(field) for field in written.split(separator)]
        for at, field in enumerate(fields):
            if len(fields) > 1 and _looks_like_an_image(field):
                yield field, " ".join(each for other, each in enumerate(fields) if other != at)
    words = written.split()
    for count in range(1, len(words)):  # a path may contain spaces, and labels follow it
        path = _unquoted(written.rsplit(None, count)[0])
        if _looks_like_an_image(path):
            yield path, " ".join(words[-count:])
            return


def _unquoted(text: str) -> str:
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _spellings(path: str, local: bool) -> Iterator[tuple[str, str]]:
    """A path as written, and as other systems write it, with what differs."""
    yield path, ""
    if path.lower().startswith("file://"):
        path = unquote(re.sub(r"^file://(localhost)?", "", path, flags=re.IGNORECASE))
        yield path, ""
    forms = [(path, "")]
    if "\\" in path and "://" not in path:
        forms.append((path.replace("\\", "/"), "with / for \\"))
        yield forms[-1]
    if not local:
        return
    if path.startswith("~/"):
        forms.append((os.path.expanduser(path), ""))  # noqa: PTH111  Path raises without a home
    for each, _ in list(forms):
        if not each.isascii():  # macOS writes names decomposed, and Windows in a code page
            for form in ("NFC", "NFD"):
                forms.append((unicodedata.normalize(form, each), "with their accents as on disk"))
            if legacy := legacy_text(each):
                forms.append((legacy, "read as Windows-1252"))
    for each, how in forms:
        yield each, how
        stem, dot, extension = each.rpartition(".")
        if dot:
            for cased in (extension.lower(), extension.upper()):
                yield f"{stem}.{cased}", "with their extension in the other case"


def legacy_text(text: str) -> str | None:
    r"""A text that is not UTF-8, read as Windows' Western code page; None if it is UTF-8.

    Example:
        >>> legacy_text("caf\udce9")
        'café'
    """
    if text.isascii() or not re.search("[\udc80-\udcff]", text):
        return None
    try:
        return text.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    except UnicodeEncodeError:
        return None


# --- rows and objects ---


def _row_entries(rows: Iterable[Any], column: str | None, tally: Tally) -> Iterator[Entry]:
    """The entries of objects with a path, of paths, or of arrays that hold paths."""
    seen: dict[str, None] = {}
    found, taken = False, column
    for row in rows:
        if isinstance(row, dict):
            name = taken if taken in row else _column_of(row, column)
            if name is None:
                seen.update(dict.fromkeys(list(map(str, row))[:MAX_LISTED]))
                tally["entries without an image"] += 1
                continue
            if taken is None:
                taken = name
                _tell_others(row, name, tally)
            metadata = {key: value for key, value in row.items() if key not in (name, None)}
            paths = _paths(row[name])
        elif isinstance(row, list) and row and isinstance(row[0], str):
            paths = [each for each in row if isinstance(each, str) and is_image_name(each)]
            rest = [str(each) for each in row[len(paths) or 1 :] if isinstance(each, str | int)]
            paths, metadata = paths or row[:1], {"label": " ".join(rest)} if rest else {}
        elif isinstance(row, str):
            paths, metadata = [row] if row else [], {}
        else:
            raise VisdivError("an entry is neither a path nor an object with a path")
        embedded = sum(each.startswith("data:") for each in paths)
        if embedded:
            tally["images written into the list itself (data:), which are not read"] += embedded
        elif not paths:
            tally["entries without an image"] += 1
        said = _told(metadata, tally)
        for path in paths:
            if not path.startswith("data:"):
                found = True
                yield Entry(path, said)
    if seen and not found:
        raise VisdivError(_no_column(list(seen), column))


def _told(values: dict[Any, Any], tally: Tally) -> dict[str, str]:
    """What an entry says beside its path, as metadata."""
    for key, value in values.items():
        if isinstance(value, str) and (legacy := legacy_text(value)):
            tally.say("it is not UTF-8; its texts are read as Windows-1252 (Latin-1)")
            values = {**values, key: legacy}
    return as_metadata(values)


def _paths(value: Any) -> list[str]:
    """The paths in a cell: a path, an object with one, or an array of either."""
    if isinstance(value, list):
        return [path for each in value for path in _paths(each)]
    if isinstance(value, dict):
        name = _column_of(value, None)
        return [] if name is None else _paths(value[name])
    if value is None or isinstance(value, bool | float) or not str(value):
        return []
    return [str(value)]


def _column_of(row: dict[str, Any], wanted: str | None) -> str | None:
    """The key of a row that holds the path, or None."""
    by_name = {str(name).strip().lower(): name for name in reversed(row)}
    if wanted is not None:
        return wanted if wanted in row else by_name.get(wanted.strip().lower())
    known = [by_name[name] for name in PATH_COLUMNS if name in by_name]
    fitting = [name for name, value in row.items() if any(map(_looks_like_an_image, _paths(value)))]
    if len(fitting) == 1 and [str(name).strip().lower() for name in known] == ["name"]:
        return fitting[0]  # `name` may be that of a class
    if known:
        return next((name for name in known if _paths(row[name])), known[0])
    if len(row) == 1:
        return next(iter(row))
    return fitting[0] if len(fitting) == 1 else None


def _looks_like_an_image(text: str) -> bool:
    return is_image_name(text.strip().partition("?")[0].replace("\\", "/"))


def _tell_others(row: dict[str, Any], name: str, tally: Tally) -> None:
    """Say which of several columns with images is taken."""
    others = [
        str(key)
        for key, value in row.items()
        if key != name and any(map(_looks_like_an_image, _paths(value)))
    ]
    if others:
        tally.say(
            f"its images are taken from {name!r}; {_listed(others)} may hold paths, too: set "
            "`column` to use another one"
        )


def _no_column(names: list[str], wanted: str | None) -> str:
    if wanted is None:
        shown = _listed(names)
        return f"cannot tell which column holds the paths; set `column` to one of {shown}"
    return f"there is no column {wanted!r}; there are {_listed(names)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:100]) for name in itertools.islice(names, MAX_LISTED))


# --- CSV ---


def _csv_entries(lines: IO[str], usual: str, column: str | None, tally: Tally) -> Iterator[Entry]:
    """The entries of a table, with or without a header."""
    head = list(itertools.islice(lines, HEAD_LINES))
    while head and head[0].startswith("#") and not _names_paths(head[0][1:], usual, column):
        tally["comments"] += 1
        head = head[1:] + list(itertools.islice(lines, 1))
    separator, spaced = _separator(head, usual, column)
    if separator != usual:
        tally.say(f"its columns are separated by {SEPARATOR_NAMES[separator]}")
    rows = _csv_rows(itertools.chain(head, lines), separator, spaced)
    header = next(rows, None)
    if header is None:
        return
    if _is_header(header, column):
        names = [name.strip() for name in header] if spaced else header
        if len(header) == 1 and names[0].strip().lower() not in PATH_COLUMNS and not column:
            tally.say(f"its first line, {names[0][:100]!r}, is taken for the name of its column")
        first: list[list[str]] = []
    else:
        names = [str(at) for at in range(len(header))]
        tally.say("it has no header, so its first line is an image like the others")
        first = [header]
        if column is None:
            column = next(str(at) for at, cell in enumerate(header) if _looks_like_an_image(cell))
    if column is not None and not any(
        column.strip().lower() == name.strip().lower() for name in names
    ):
        raise VisdivError(_no_column(names, column))
    content = itertools.chain(first, rows)
    some = next(content, None)
    if some is None:
        return
    if column is None:
        column = _column_of(dict(zip(names, some, strict=False)), None)
        if column is None:
            raise VisdivError(_no_column(names, None))
        _tell_others(dict(zip(names, some, strict=False)), column, tally)
    content = itertools.chain([some], content)
    yield from _row_entries((_as_object(names, row, tally) for row in content), column, tally)


def _as_object(names: list[str], row: list[str], tally: Tally) -> dict[str, str]:
    if len(row) > len(names):
        tally["rows with more fields than there are columns"] += 1
    padded = itertools.chain(row, itertools.repeat(""))
    return dict(zip(names, padded, strict=False))


def _names_paths(line: str, separator: str, column: str | None) -> bool:
    names = {name.strip().lower() for name in line.split(separator)}
    return bool(names & {*PATH_COLUMNS, (column or "path").strip().lower()})


def _is_header(row: list[str], column: str | None) -> bool:
    known = {name.strip().lower() for name in row}
    if (column is not None and column.strip().lower() in known) or known & set(PATH_COLUMNS):
        return True
    return not any(map(_looks_like_an_image, row))


def _separator(head: list[str], usual: str, column: str | None) -> tuple[str, bool]:
    """What separates the fields of a table, and whether a space follows it."""
    wanted = {*PATH_COLUMNS, *([] if column is None else [column.strip().lower()])}
    fitting = []
    for separator in dict.fromkeys((usual, *SEPARATORS)):
        with _long_fields():
            rows = [row for row in csv.reader(head[:1], delimiter=separator) if row]
        if not rows or len(rows[0]) < 2:
            continue
        names = {name.strip().lower() for name in rows[0]}
        spaced = all(name.startswith(" ") for name in rows[0][1:])
        if names & wanted:
            return separator, spaced
        if len({line.count(separator) for line in head if line.strip()}) == 1:
            fitting.append((separator, spaced))
    return fitting[0] if fitting else (usual, False)


def _csv_rows(lines: Iterable[str], separator: str, spaced: bool) -> Iterator[list[str]]:
    """The rows of a table, without empty ones.

    Raises:
        VisdivError: a quotation mark is never closed, so that the rest of the file is one field.
    """
    end = "\x00end of the list"
    reader = csv.reader(
        itertools.chain(lines, ["\r\n", end]), delimiter=separator, skipinitialspace=spaced
    )
    last: list[str] | None = None
    while True:
        with _long_fields():
            rows = list(itertools.islice(reader, ROWS_AT_ONCE))
        if not rows:
            break
        for row in rows:
            if last:
                yield last
            last = row
    if last != [end]:
        raise VisdivError("a quotation mark in it is never closed")


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Let csv read long fields; its limit is one for the whole process, and is put back."""
    with _field_limit:
        usual = csv.field_size_limit(MAX_FIELD_CHARACTERS)
        try:
            yield
        finally:
            csv.field_size_limit(usual)


# --- JSON ---


def _is_lines(start: bytes, encoding: str, extension: str) -> bool:
    """Whether a file holds a JSON value a line, rather than one that spans all lines."""
    text = start.decode(encoding, "replace").lstrip()
    line, newline, rest = text.partition("\n")
    if extension != "json" and not text.startswith("["):
        return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return bool(newline and rest.strip()) or (extension != "json" and not text.startswith("["))


def _json_lines(lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise VisdivError(f"its line {number:,} is not JSON ({error})") from None


# Deeper than any real list. The parser's time grows with the square of the depth.
MAX_DEPTH = 200


class _Shallow:
    """A JSON file that raises an error where it is nested too deeply.

    Brackets in strings count too; no real list has hundreds more opening than closing ones.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._depth = file, 0
        file.seek(0)
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)

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


def _values(file: IO[bytes], prefix: str) -> Iterator[Any]:
    return iter(ijson.items(_Shallow(file), prefix, use_float=True))


def _json_entries(file: IO[bytes], column: str | None, tally: Tally) -> Iterator[Entry]:
    """Entries of a COCO file, with categories from its annotations, or of an array."""
    start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        yield from _row_entries(_values(file, "item"), column, tally)
        return
    images = _coco_images(file)
    first = next(images, None)
    if first is not None:
        if isinstance(first, dict) and "file_name" in first:
            column = column or "file_name"
        yield from _row_entries(itertools.chain([first], images), column, tally)
        return
    keys = [
        value
        for prefix, event, value in ijson.parse(_Shallow(file), use_float=True)
        if not prefix and event == "map_key"
    ]
    if "images" in keys:
        return
    if "shardlist" in keys:
        raise VisdivError(
            "it lists the archives of a dataset, not images; name the archives themselves, such as "
            "'shards/{00000..00099}.tar'"
        )
    array = next((key for key in ARRAYS if key in keys), None)
    if array is None:
        raise VisdivError(
            f"it is neither an array nor an object with `images`; it has the keys {_listed(keys)}"
        )
    tally.say(f"its images are taken from {array!r}")
    yield from _row_entries(_values(file, f"{array}.item"), column, tally)


def _coco_images(file: IO[bytes]) -> Iterator[Any]:
    """The images of a COCO file, each with the category of its first annotation."""
    names = {
        each.get("id"): str(each.get("name"))
        for each in _values(file, "categories.item")
        if isinstance(each, dict)
    }
    categories: dict[Any, Any] = {}
    for image, category in _annotations(file):
        categories.setdefault(image, category)
    for image in _values(file, "images.item"):
        category = names.get(categories.get(image.get("id"))) if isinstance(image, dict) else None
        yield {**image, "category": category} if category else image


def _annotations(file: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    """Image and category of each annotation; outlines, most of the file, are skipped."""
    image = category = None
    for prefix, event, value in ijson.parse(_Shallow(file), use_float=True):
        if prefix == "annotations.item.image_id":
            image = value
        elif prefix == "annotations.item.category_id":
            category = value
        elif prefix == "annotations.item" and event == "end_map":
            yield image, category
            image = category = None
