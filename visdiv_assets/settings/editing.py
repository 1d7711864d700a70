"""Editing `visdiv.yaml` without losing comments or formatting.

Here: the initial file, adding and removing datasets, the JSON Schema for editors.
Not here: what settings mean (`model.py`).
"""

import fcntl
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import Settings
from visdiv_assets.settings.reading import as_written, load_settings, parsed

TEMPLATE = """\
# Settings of visdiv. Relative paths start at this file's folder. ${NAME} is replaced by the
# environment variable NAME. Run `visdiv schema > visdiv.schema.json` to get completion and
# validation in your editor:
# yaml-language-server: $schema=visdiv.schema.json

store: .visdiv              # embeddings, results and history

# embedder:
#   weights: auto           # or sscd_disc_mixup, a path, a URL
#   device: auto            # or cpu, cuda, cuda:1, [cuda:0, cuda:1]

# nightly:
#   time: "02:00"
#   timezone: Europe/Berlin

# limits: {seconds: 30, pixels: 178956970}    # an image that exceeds these is not decoded

# alerts:
#   urls:                   # slack://…, mailto://…, json://host/path; Apprise supports 70 more
#     - ${VISDIV_ALERT_URL}
#   dagster_url: http://localhost:3000

datasets:
#   pictures:
#     source: /data/pictures  # or s3://bucket/prefix/, hf/*.parquet, shards/{000..099}.tar …
#     # source: {uri: list.csv, root: /data, column: file, include: ["cats/**"]}
#     threshold: 0.30       # send an alert when the score falls below this
#     watch: true           # evaluate it again when its source changes
#     schedule: true        # evaluate it every night
#     slices: folder        # or {column: label}
#     role: training        # or benchmark: its images must not appear in other datasets
#     near_duplicates: {threshold: 0.75, warn_rate: 0.05}
#     tags: {team: vision}
"""


def create(path: Path) -> None:
    """Write the initial settings file.

    Raises:
        VisdivError: the file already exists.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # it is empty until it is closed
            file.write(TEMPLATE)
    except FileExistsError:
        raise VisdivError(f"{path} already exists; it was not changed") from None


def add_dataset(path: Path, name: str, source: str, **options: Any) -> None:
    """Register a dataset.

    Args:
        path: the settings file.
        name: a name that no other dataset has.
        source: the source, exactly as it will appear in the file.
        options: further keys, such as `threshold`.

    Raises:
        VisdivError: the name is taken, or the result would not be valid. The file is unchanged.
    """
    if not source.isprintable():  # unquoted, some characters would be lost
        source = DoubleQuotedScalarString(source)
    entry = {"source": source, **options}

    def change(content: dict[str, Any]) -> None:
        if content.get("datasets") is None:
            content["datasets"] = CommentedMap()
        content["datasets"][name] = CommentedMap(entry)

    with _turn(path):
        settings = load_settings(path)
        if name in settings.datasets or name in settings.faults:
            raise VisdivError(f"the dataset {name!r} already exists")
        _edit(path, change, lambda text: _with_entry(text, name, entry), adds=name)


def remove_dataset(path: Path, name: str) -> None:
    """Remove a dataset from the file, also one whose settings are wrong.

    Its data in the store stays. Comments between its lines are removed too; those above and below
    it stay.

    Raises:
        VisdivError: there is no such dataset.
    """

    def change(content: dict[str, Any]) -> None:
        datasets = content["datasets"]
        # A number in a name's place is one of the things that can be wrong.
        keys = [name] if name in datasets else [key for key in datasets if as_written(key) == name]
        if not keys:
            raise VisdivError(f"{name!r} is not written in {path} as it is shown; remove it there")
        for key in keys:
            del datasets[key]

    with _turn(path):
        settings = load_settings(path)
        if name not in settings.faults:
            settings.dataset(name)
        _edit(path, change, lambda text: _without_entry(text, name))


def json_schema() -> str:
    """JSON Schema of the settings file, for editors."""
    schema = Settings.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        for name, field in model["properties"].items():
            if name not in model.get("required", []):
                model["properties"][name] = _or_empty(field)
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2
    )


def _or_empty(field: dict[str, Any]) -> dict[str, Any]:
    """Allow null: a key without a value means the default, so editors must accept it."""
    about = {key: field[key] for key in field if key in ("title", "description", "default")}
    rest = {key: value for key, value in field.items() if key not in about}
    kinds = [kind for kind in rest.get("anyOf", [rest]) if kind != {"type": "null"}]
    return {**about, "anyOf": [*kinds, {"type": "null"}]}


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait until no other command edits the file: each must see what the one before wrote.

    The file itself is locked, so that no lock file lies beside it. Whoever got the lock of a file
    that was replaced in the meantime waits for the new one.
    """
    target = path.resolve()
    while True:
        try:
            file = target.open("r+b")
        except OSError as error:
            raise VisdivError(f"cannot edit the settings file {path}: {error.strerror}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if target.exists() and os.path.samestat(os.fstat(file.fileno()), target.stat()):
                yield
                return


def _edit(
    path: Path,
    change: Callable[[dict[str, Any]], None],
    rewrite: Callable[[str], str | None],
    *,
    adds: str | None = None,
) -> None:
    """Change a valid settings file atomically.

    Args:
        path: the file; if it is a link, its target is replaced.
        change: applies the change to the parsed content.
        rewrite: applies the change to the text and leaves all other lines as they are. If it
            returns None or a text with a different meaning, because it does not support the
            file's layout, ruamel.yaml rewrites the whole file and keeps most comments.
        adds: the dataset that the change adds, which has to be valid; others need not be.
    """
    target = path.resolve()
    text = target.read_bytes().decode("utf-8-sig")
    wanted = _content(text, path)
    change(wanted)
    edited = rewrite(text)
    lossy = VisdivError(f"{path} cannot be edited before what is wrong in it is corrected")
    if edited is None or not _means(edited, wanted, path):
        try:
            edited = _written_anew(text, change)
        except Exception:  # noqa: BLE001  of values that ruamel cannot make sense of
            raise lossy from None
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=".yaml", dir=target.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(edited)
            file.flush()
            os.fsync(file.fileno())
        try:
            settings = load_settings(partial)
            if adds is not None and adds not in settings.datasets:
                raise VisdivError(list(settings.faults.values())[-1])
        except VisdivError as error:
            # Line numbers of a file that was never written would mislead.
            problem = re.sub(r" \(line \d+\)", "", str(error).replace(str(partial), str(path)))
            raise VisdivError(problem) from error
        if not _means(edited, wanted, path):
            raise lossy
        partial.chmod(target.stat().st_mode)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _with_entry(text: str, name: str, entry: dict[str, Any]) -> str | None:
    """The text with a dataset added after the last one, or None if the layout is unsupported."""
    lines = text.splitlines(keepends=True)
    newline = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    key, datasets = _datasets_node(text)
    indent = 2
    if key is None:
        lines.append(f"datasets:{newline}")
        place = len(lines)
    elif isinstance(datasets, MappingNode) and not datasets.flow_style:
        indent = datasets.value[0][0].start_mark.column
        place = _last_line(datasets) + 1
        # Comments indented like the last dataset's keys belong to that dataset.
        while place < len(lines) and re.match(rf" {{{indent + 1},}}#", lines[place]):
            place += 1
    elif datasets is not None and not datasets.value:  # empty, null, ~ or {}
        number, begin, end = key.start_mark.line, datasets.start_mark, datasets.end_mark
        if begin.line == end.line == number:
            line = lines[number]
            left, right = line[: begin.column].rstrip(), line[end.column :]
            lines[number] = left + right if right.strip() else left + newline
        indent, place = key.start_mark.column + 2, number + 1
    else:
        return None
    lines[place:place] = [
        " " * indent + line + newline for line in _dump({name: entry}).splitlines()
    ]
    return "".join(lines)


def _without_entry(text: str, name: str) -> str | None:
    """The text without a dataset's lines, or None if the layout is unsupported."""
    parent, datasets = _datasets_node(text)
    if parent is None or not isinstance(datasets, MappingNode) or datasets.flow_style:
        return None
    lines = text.splitlines(keepends=True)
    left = [pair for pair in datasets.value if pair[0].value != name]
    for key, value in reversed(datasets.value):  # a name that is there twice is one of the faults
        if key.value == name:
            first = key.start_mark.line
            del lines[first : max(first, _last_line(value)) + 1]
    if not left:  # without a value, the file would look as if it were cut off
        number, column = parent.end_mark.line, parent.end_mark.column
        before, after = lines[number][:column], lines[number][column:]
        if not re.match(r"\s*:\s*(#|$)", after):
            return None
        colon = after.index(":") + 1
        lines[number] = f"{before}{after[:colon]} {{}}{after[colon:]}"
    return "".join(lines)


def _datasets_node(text: str) -> tuple[Node | None, Node | None]:
    """The nodes of the key `datasets` and its value, which know their positions in the text."""
    document = YAML().compose(text)
    if isinstance(document, MappingNode):
        for key, value in document.value:
            if key.value == "datasets":
                return key, value
    return None, None


def _last_line(node: Node) -> int:
    """The last line of a node's content, without comments below it."""
    if node.start_mark.index == node.end_mark.index:
        return -1  # an empty node is positioned somewhere below its key
    if isinstance(node, ScalarNode) or getattr(node, "flow_style", False) or not node.value:
        end = node.end_mark
        return int(
            end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line
        )
    if isinstance(node, MappingNode):
        return max(_last_line(each) for pair in node.value for each in pair)
    return max(_last_line(each) for each in node.value)


def _content(text: str, path: Path) -> dict[str, Any]:
    """What a text says; a problem instead of each dataset that is not valid YAML."""
    written = parsed(text, path)
    content = dict(written.content)
    if written.datasets is not None:
        content["datasets"] = {
            entry.key: re.sub(r"\bline \d+", "", entry.problem) if entry.problem else entry.value
            for entry in written.datasets
        }
    return content


def _means(text: str, wanted: dict[str, Any], path: Path) -> bool:
    try:
        return _content(text, path) == wanted
    except VisdivError:  # no longer valid
        return False


def _written_anew(text: str, change: Callable[[dict[str, Any]], None]) -> str:
    yaml = _writer()
    content = yaml.load(text)
    content = CommentedMap() if content is None else content
    change(content)
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _dump(content: dict[str, Any]) -> str:
    stream = io.StringIO()
    _writer().dump(content, stream)
    return stream.getvalue()


def _writer() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # do not wrap long lines
    return yaml
