"""The meaning of a table's columns: which one holds images, and which ones describe them.

Here: Arrow types and Hugging Face's metadata in a schema. Not here: reading files (`parquet.py`,
`arrow.py`).
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import redacted

# If several columns could hold the images, these names decide.
IMAGE_COLUMNS = ("image", "images", "img", "jpg", "png", "picture", "photo")

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
    # Structs of bytes and path are images; plain bytes may be anything.
    structs = [name for name in candidates if not _is_binary(_element(schema.field(name).type))]
    for choice in (declared, structs, candidates):
        named = [name for name in choice if name.lower() in IMAGE_COLUMNS]
        if len(choice) == 1 or named:
            return str((named or choice)[0])
        if choice:
            raise VisdivError(
                f"several columns may hold images; set `column` to one of {_listed(choice)}"
            )
    raise VisdivError(
        f"no column holds encoded images; there are the columns {_listed(schema.names)}"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:20]))


def _element(kind: pa.DataType) -> pa.DataType:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return kind.value_type if lists or pa.types.is_fixed_size_list(kind) else kind


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def holds_images(kind: pa.DataType) -> bool:
    """Whether a type can hold images: bytes, a struct with bytes, or a list of either."""
    kind = _element(kind)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


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
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    fits = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_boolean,
    )
    return any(is_such(kind) for is_such in fits)


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
            for _, data in encoded_images(element):
                yield f".{at}", data
    elif isinstance(value, dict):
        yield "", value.get("bytes")
    elif value is not None:
        yield "", value
