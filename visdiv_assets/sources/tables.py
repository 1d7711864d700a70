"""The meaning of a table's columns: which one holds images, and which ones describe them.

Here: Arrow types and Hugging Face's metadata in a schema. Not here: reading files (`parquet.py`,
`arrow.py`).
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import redacted

# If several columns could hold the images, these names decide.
IMAGE_COLUMNS = ("image", "images", "img", "jpg", "png", "picture", "photo")

# Columns of these names may hold paths instead.
PATH_COLUMNS = frozenset({*IMAGE_COLUMNS, "path", "file_name", "filename", "file", "url"})

# Longer texts are not labels, and a manifest should not hold a dataset's texts.
MAX_VALUE_CHARACTERS = 200

# A signed address is shorter.
SEARCHED_CHARACTERS = 8192


def as_metadata(values: Mapping[Any, Any]) -> dict[str, str]:
    """The values that can be labels, as strings: scalars only, long ones truncated.

    Example:
        >>> as_metadata({"label": "cat", "id": 7, "boxes": [1, 2], "note": None})
        {'label': 'cat', 'id': '7'}
    """
    return {
        _text(name): _text(value)
        for name, value in values.items()
        if isinstance(value, str | bool | int | float)
        and not (isinstance(value, float) and not math.isfinite(value))
    }


def _text(value: Any) -> str:
    """The value as valid Unicode, even if JSON escapes made it invalid, and without secrets."""
    text = str(value)
    # Addresses in columns may be signed. A whole text takes longer to search than it is worth.
    if ":/" in text[:MAX_VALUE_CHARACTERS]:
        text = redacted(text[:SEARCHED_CHARACTERS])
    text = text[:MAX_VALUE_CHARACTERS]
    return text.encode("utf-8", "replace").decode()


def image_column(schema: pa.Schema, wanted: str | None) -> str:
    """The column that holds the encoded images.

    Raises:
        VisdivError: no column holds images, the wanted one does not, or several might.
    """
    candidates = [field.name for field in schema if holds_images(field.type)]
    if wanted is not None:
        if wanted not in candidates:
            raise VisdivError(
                f"the column {wanted!r} holds no images; there are the columns "
                f"{_listed(candidates or schema.names)}"
            )
        return wanted
    features = hugging_face_features(schema)
    declared = [name for name in candidates if _declares_image(features.get(name))]
    # Structs of bytes and path are images; plain bytes may be anything, and other structs more so.
    plain = [name for name in candidates if _is_binary(_element(schema.field(name).type))]
    structs = [name for name in candidates if name not in plain]
    usual = [name for name in structs if bytes_field(_element(schema.field(name).type)) == "bytes"]
    for choice in (declared, usual, plain, structs):
        named = [name for name in choice if name.lower() in IMAGE_COLUMNS]
        if len(choice) == 1 or named:
            return str((named or choice)[0])
        if choice:
            raise VisdivError(
                f"several columns may hold images; set `column` to one of {_listed(choice)}"
            )
    paths = [field.name for field in schema if _holds_paths(field)]
    hint = f"; {paths[0]!r} holds paths, which only lists are read for" if paths else ""
    raise VisdivError(
        f"no column holds encoded images; there are the columns {_listed(schema.names)}{hint}"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:20]))


LISTS = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view,
    pa.types.is_large_list_view,
)  # fmt: skip
# Other ways of writing the values of another type.
WRAPPERS = (pa.types.is_dictionary, pa.types.is_run_end_encoded)
BINARIES = (
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
)  # fmt: skip
MAX_HASH_BYTES = 64  # bytes of a fixed size up to this are hashes or ids, not images
LABELS = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer,
    pa.types.is_boolean,
)  # fmt: skip


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, whatever way they are written."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif any(is_such(kind) for is_such in WRAPPERS):
            kind = kind.value_type
        else:
            return kind


def _element(kind: pa.DataType) -> pa.DataType:
    """The type of one image of a column, which may hold lists of images."""
    kind = _plain(kind)
    while any(is_such(kind) for is_such in LISTS):
        kind = _plain(kind.value_type)
    return kind


def _is_binary(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    if pa.types.is_fixed_size_binary(kind):
        return bool(kind.byte_width > MAX_HASH_BYTES)
    return any(is_such(kind) for is_such in BINARIES)


def _holds_paths(field: pa.Field) -> bool:
    kind = _element(field.type)
    if pa.types.is_struct(kind):
        return any(each.name == "path" for each in kind)
    return field.name.lower() in PATH_COLUMNS and is_label(kind) and not pa.types.is_integer(kind)


def holds_images(kind: pa.DataType) -> bool:
    """Whether a type can hold images: bytes, a struct with bytes, or a list of either."""
    kind = _element(kind)
    if pa.types.is_struct(kind):
        return bytes_field(kind) is not None
    return _is_binary(kind)


def bytes_field(kind: pa.StructType) -> str | None:
    """The field of a struct with the encoded image: `bytes`, or the only one of bytes."""
    names = [field.name for field in kind if _is_binary(field.type)]
    return "bytes" if "bytes" in names else names[0] if len(names) == 1 else None


def hugging_face_features(schema: pa.Schema) -> dict[str, Any]:
    """Column features recorded by the `datasets` library; empty if it did not write the file."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _declares_image(feature: Any) -> bool:
    if isinstance(feature, list) and feature:
        feature = feature[0]
    while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    return isinstance(feature, dict) and feature.get("_type") == "Image"


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The class names of a label column, if the schema records them."""
    feature = hugging_face_features(schema).get(column)
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None


def is_label(kind: pa.DataType) -> bool:
    """Whether the values of a column may be labels."""
    return any(is_such(_plain(kind)) for is_such in LABELS)


def labels_of(batch: pa.RecordBatch, columns: list[str], schema: pa.Schema) -> Iterator[Any]:
    """The metadata of each row, taken from these columns."""
    names = {column: class_names(schema, column) for column in columns}

    def named(column: str, value: Any) -> Any:
        known = names[column]
        if known and isinstance(value, int) and 0 <= value < len(known):
            return known[value]
        return value

    values = {column: batch.column(column).to_pylist() for column in columns}
    for row in range(batch.num_rows):
        yield as_metadata({column: named(column, values[column][row]) for column in columns})


def images_of(cells: Iterable[Any], notes: Counter[str]) -> Iterator[tuple[int, str, bytes | None]]:
    """Row, place within it and bytes of each image in some cells; counts rows without one."""
    for row, cell in enumerate(cells):
        place = None
        for place, data in encoded_images(cell):
            yield row, place, data
        if place is None:
            notes["rows without an image"] += 1
        elif isinstance(cell, list) and (empty := sum(each is None for each in cell)):
            notes["empty places in lists of images"] += empty


def encoded_images(value: Any) -> Iterator[tuple[str, bytes | None]]:
    """The place within its row and the bytes of each image in a cell.

    Example:
        >>> list(encoded_images({"bytes": b"one", "path": None}))
        [('', b'one')]
        >>> list(encoded_images([b"one", None, b"two"]))
        [('.0', b'one'), ('.2', b'two')]
    """
    if isinstance(value, list):
        for at, element in enumerate(value):
            for place, data in encoded_images(element):
                yield f".{at}{place}", data
    elif isinstance(value, dict):
        held = (each for each in value.values() if isinstance(each, bytes))
        yield "", value["bytes"] if "bytes" in value else next(held, None)
    elif value is not None:
        yield "", value
