"""`visdiv.yaml` → validated settings, with errors that name the key and the line.

Here: finding the file, environment variables, paths relative to the file, and that what is wrong
with one dataset costs that dataset only.
Not here: which settings there are (`model.py`); what holds while the file is broken
(`last_good.py`).
"""

import copy
import difflib
import functools
import json
import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import (
    VARIABLE,
    AlertSettings,
    BucketSettings,
    CoreSetSettings,
    DatasetSettings,
    EmbedderSettings,
    LeakageSettings,
    LimitSettings,
    NearDuplicateSettings,
    NightlySettings,
    SampleSettings,
    Settings,
    SourceSettings,
    fill_in,
    folder_path,
    store_place,
)
from visdiv_assets.settings.secrets import holds_secret, redacted

CONFIG_FILE = "visdiv.yaml"

# Settings that may contain secrets; error messages must not show their values.
SECRET_SETTINGS = {"options", "root", "uri", "urls", "weights"}

# More than any settings: a file that is larger is something else.
LARGEST_FILE = 16 * 1024 * 1024

# More than one dataset has, or all other settings together.
MOST_VALUES = 1_000_000

# Texts of the file in YAML's errors; not its own terms, as in '<block end>', nor single characters.
_QUOTED = re.compile(r"""(['"])(?!<)(?:(?!\1).){3,}\1""")


def find_settings() -> Path | None:
    """The default settings file: `$VISDIV_CONFIG`, else `./visdiv.yaml`, else None."""
    if os.environ.get("VISDIV_CONFIG"):
        return absolute_path(os.environ["VISDIV_CONFIG"])
    # A link that leads nowhere is a file that cannot be read, not one that nobody wanted.
    return Path(CONFIG_FILE) if os.path.lexists(CONFIG_FILE) else None


def load_settings(path: Path | None = None) -> Settings:
    """Read and validate settings.

    What is wrong with one dataset is kept in `Settings.faults` and stops no other.

    Args:
        path: the file to read. None means `find_settings()`, and without a file the defaults.
            `$VISDIV_STORE` and `$VISDIV_RESULTS` override these places in every case.

    Raises:
        VisdivError: the file is missing, is not YAML, or contains an invalid setting that is not
            one dataset's own.
    """
    path = path or find_settings()
    return _with_places(Settings()) if path is None else settings_of(read_text(path), path)


def absolute_path(path: Path | str, folder: Path | None = None) -> Path:
    """An absolute path without `..` and with `~` expanded; None means the current folder.

    Links are not resolved, except before a `..`, which means the parent of the link's target.

    Raises:
        VisdivError: there is a `..` after what cannot be followed, such as a link to itself.
    """
    # Unlike Path.expanduser, os.path.expanduser keeps the `~` of an unknown user.
    whole = (folder or Path()).absolute() / os.path.expanduser(path)  # noqa: PTH111
    try:
        return whole.resolve() if ".." in whole.parts else whole
    except (OSError, RuntimeError, ValueError) as error:
        raise VisdivError(f"the path {str(path)!r} leads nowhere") from error


def read_text(path: Path) -> str:
    """The text of a settings file.

    Raises:
        VisdivError: it cannot be read, or is not text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise VisdivError(f"{path} is too large for a settings file")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise VisdivError(f"cannot read the settings file {path}: {error.strerror}") from error
    except ValueError as error:
        raise VisdivError(f"{path} is not a valid YAML file: {_yaml_problem(error)}") from None


def settings_of(text: str, path: Path) -> Settings:
    """The settings that a text means, as `load_settings` has them.

    Args:
        text: what a settings file holds.
        path: that file; relative paths start at its folder, and messages name it.

    Raises:
        VisdivError: the text is not YAML, or contains an invalid setting that is not one dataset's
            own.
    """
    written, folder = parsed(text, path), path.absolute().parent
    datasets: dict[str, DatasetSettings] = {}
    wrong: list[tuple[Entry, str]] = []
    try:
        settings = _validated(written.content, written.node)
        settings = settings.model_copy(
            update={
                **_places_beside(folder, settings),
                "embedder": _embedder_beside(folder, settings.embedder),
            }
        )
    except VisdivError as error:
        raise VisdivError(f"{path}: {error}") from None
    for entry in written.datasets or ():
        try:
            datasets[entry.key] = _dataset_beside(folder, entry)
        except VisdivError as error:
            wrong.append((entry, redacted(f"{path}: {error}")))
    settings = settings.model_copy(update={"datasets": datasets})
    faults = _by_name(wrong, datasets)
    settings.note_faults(
        {name: message for name, (_, message) in faults.items()},
        {name for name, (entry, _) in faults.items() if _may_be_benchmark(entry)},
    )
    return _with_places(settings)


@dataclass(frozen=True)
class Entry:
    """One dataset as it is written, before variables are filled in.

    Attributes:
        key: its name, or what stands in a name's place.
        value: what is written below it.
        node: the same as YAML's nodes, which know their lines, from the key `datasets` on.
        problem: why it cannot be understood as YAML; None if it can.
    """

    key: Any
    value: Any
    node: MappingNode
    problem: str | None = None


@dataclass(frozen=True)
class Written:
    """A settings file as it is written. All who read that text share it: nothing may be changed.

    Attributes:
        content: everything but the datasets; those only if they are no mapping.
        node: the same as YAML's nodes, which know their lines.
        datasets: one by one; None where the key `datasets` is missing or has no value.
        is_empty: whether there is nothing but comments.
    """

    content: dict[str, Any]
    node: Node | None
    datasets: tuple[Entry, ...] | None
    is_empty: bool = False


def parsed(text: str, path: Path) -> Written:
    """The content of a settings file, not yet validated.

    Raises:
        VisdivError: the text is not YAML, or not of a settings file at all.
    """
    try:
        return _parsed(text)
    except VisdivError as error:
        raise VisdivError(f"{path} {error}") from None


_MAP, _NULL = "tag:yaml.org,2002:map", "tag:yaml.org,2002:null"


# With 1,000 datasets, parsing takes most of the time that loading does, and sensors load often.
@functools.lru_cache(4)
def _parsed(text: str) -> Written:
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
        if node is None:
            return Written({}, None, None, is_empty=True)
        if not isinstance(node, MappingNode):
            content = _constructed(node, yaml)
            if content is None:  # a `~`
                return Written({}, None, None, is_empty=True)
            raise VisdivError("must hold settings as 'key: value' lines")
        SafeConstructor(loader=yaml).flatten_mapping(node)
        rest, entries = copy.copy(node), None
        for number, (key, value) in enumerate(node.value):
            if key.value == "datasets" and isinstance(value, MappingNode) and value.tag == _MAP:
                entries = _entries(key, value, yaml)
                nothing = ScalarNode(_NULL, "", value.start_mark, value.end_mark)
                rest.value = [*rest.value]
                rest.value[number] = (key, nothing)  # its key stays: it may be there twice
        content = _constructed(rest, yaml)
        if not isinstance(content, dict):
            raise VisdivError("must hold settings as 'key: value' lines")
        if isinstance(content.get("datasets"), dict):  # with a tag: an `!!omap`
            raise VisdivError("must hold its datasets as 'key: value' lines")
    except (YAMLError, ValueError, RecursionError) as error:
        # ruamel's error holds an excerpt of the file.
        raise VisdivError(f"is not a valid YAML file: {_yaml_problem(error)}") from None
    return Written(content, node, entries)


def _entries(datasets: Node, mapping: MappingNode, yaml: YAML) -> tuple[Entry, ...]:
    """The datasets one by one, so that one that is not valid YAML stops no other."""
    SafeConstructor(loader=yaml).flatten_mapping(mapping)
    merged = getattr(mapping, "merge", None) is not None  # its keys may be there twice
    entries: dict[Any, Entry] = {}
    for key_node, value_node in mapping.value:
        one = copy.copy(mapping)
        one.value = [(key_node, value_node)]
        node = copy.copy(mapping)
        node.value = [(datasets, one)]
        key: Any = "…"
        value, problem = None, None
        if isinstance(key_node, ScalarNode):
            key = key_node.value  # until it is understood
        try:
            key = _constructed(key_node, yaml)
            value = _constructed(value_node, yaml)
        except (YAMLError, ValueError, RecursionError) as error:
            problem = _yaml_problem(error)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            key, problem = "…", f"line {line}: a list or a mapping is no name"
        if key in entries and not merged:
            problem = f'line {line}: found duplicate key "{_shown(key)}"'
        entries[key] = Entry(key, value, node, problem)
    return tuple(entries.values())


def _constructed(node: Node, yaml: YAML) -> Any:
    """What a node means. Each has a constructor of its own: an error leaves work behind in it."""
    if _size(node, {}) > MOST_VALUES:
        raise ValueError("there are too many values")
    constructor = SafeConstructor(loader=yaml)
    constructor.allow_duplicate_keys = False
    try:
        return constructor.construct_document(node)
    except (YAMLError, ValueError, RecursionError):
        raise
    except Exception:  # noqa: BLE001  `!!bool maybe` is a KeyError, `!!int ""` an IndexError
        line = node.start_mark.line + 1
        raise ValueError(f"a value does not fit its tag, in what begins at line {line}") from None


def _size(node: Node, known: dict[int, int]) -> int:
    """How many values a node stands for. Through aliases, a short text may stand for billions."""
    if id(node) not in known:
        known[id(node)] = 0  # until it is known
        nodes = (
            [each for pair in node.value for each in pair]
            if isinstance(node, MappingNode)
            else (node.value if isinstance(node, SequenceNode) else [])
        )
        known[id(node)] = 1 + sum(_size(each, known) for each in nodes)
    if not known[id(node)]:
        raise ValueError("a value contains itself")
    return known[id(node)]


def as_written(key: Any) -> str:
    """A key of the file as a text: a number, `true` or `null` in a name's place."""
    return json.dumps(key) if isinstance(key, int | float | None) else str(key)


def _by_name(
    wrong: list[tuple[Entry, str]], datasets: Mapping[str, DatasetSettings]
) -> dict[str, tuple[Entry, str]]:
    """What is wrong by name. `2024` and `"2024"` are two keys of YAML, but one name."""
    faults: dict[str, tuple[Entry, str]] = {}
    for entry, message in wrong:
        name = _shown(entry.key)
        while name in faults or name in datasets:
            name += _line_of(("datasets", entry.key), entry.node)
        faults[name] = entry, message
    return faults


def _may_be_benchmark(entry: Entry) -> bool:
    """Whether it cannot be ruled out that a faulty dataset is meant to be a benchmark."""
    if entry.problem or not isinstance(entry.value, dict):
        return True
    role = entry.value.get("role") or "training"
    return role != "training" or "benchmark" in entry.value.values()


def _validated(content: dict[str, Any], node: Node | None) -> Settings:
    """Settings with their variables filled in; VisdivError, without the file's name, if invalid."""
    try:
        return Settings.model_validate(_fill_in_all(content, node))
    except RecursionError:
        raise VisdivError("the values are nested too deeply") from None
    except ValidationError as error:
        problems = "; ".join(
            _describe(problem, _written(problem["loc"], content)) + _line_of(problem["loc"], node)
            for problem in map(_as_in_file, error.errors())
        )
        raise VisdivError(problems) from None  # pydantic repeats values


def _as_in_file(problem: Any) -> Any:
    """A problem without what pydantic adds to the location of a store: how it took it."""
    where, *rest = problem["loc"]
    if where != "store" or not rest or rest[0] not in ("folder", "bucket"):
        return problem
    rest = rest[1:]
    if problem["type"] != "extra_forbidden" and rest == ["uri"]:  # it may be all that was written
        rest = []
    return {**problem, "loc": (where, *rest)}


def _dataset_beside(folder: Path, entry: Entry) -> DatasetSettings:
    if entry.problem:
        raise VisdivError(f"'{_shown('datasets', entry.key)}': {entry.problem}")
    content = {"datasets": {entry.key: entry.value}}
    [dataset] = _validated(content, entry.node).datasets.values()
    return dataset.model_copy(
        update={
            "source": _source_beside(folder, dataset.source),
            "embedder": dataset.embedder and _embedder_beside(folder, dataset.embedder),
        }
    )


def _places_beside(folder: Path, settings: Settings) -> dict[str, Any]:
    """Where things are kept, with relative paths starting at a folder."""
    places: dict[str, Any] = {}
    if isinstance(settings.store, Path):
        places["store"] = absolute_path(settings.store, folder)
    if settings.results is not None:
        places["results"] = absolute_path(settings.results, folder)
    cached = absolute_path(settings.cache.folder, folder)
    return {**places, "cache": settings.cache.model_copy(update={"folder": cached})}


def _with_places(settings: Settings) -> Settings:
    """The settings with the places that the environment names, if it names any.

    Raises:
        VisdivError: one cannot be used, or there is none for the results.
    """
    places: dict[str, Any] = {}
    try:
        if named := os.environ.get(variable := "VISDIV_STORE"):
            place = store_place(named)
            if isinstance(place, dict):
                before = settings.store
                options = before.options if isinstance(before, BucketSettings) else {}
                places["store"] = BucketSettings(uri=named, options=options)
            else:
                places["store"] = absolute_path(str(place))
        if named := os.environ.get(variable := "VISDIV_RESULTS"):
            places["results"] = absolute_path(str(folder_path(named)))
    except ValueError as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise VisdivError(f"${variable} {told}") from None
    settings = settings.model_copy(update=places)
    _ = settings.results_folder  # raises
    return settings


def _beside(folder: Path, path: str) -> str:
    return path if "://" in path else str(absolute_path(path, folder))


def _source_beside(folder: Path, source: SourceSettings) -> SourceSettings:
    root = None if source.root is None else _beside(folder, source.root)
    return source.model_copy(update={"uri": _beside(folder, source.uri), "root": root})


def _embedder_beside(folder: Path, embedder: EmbedderSettings) -> EmbedderSettings:
    """Resolve weights only if they look like a path: `sscd_disc_mixup` is a checkpoint's name."""
    weights = embedder.weights
    looks_like_path = "/" in weights or "." in weights
    if not looks_like_path:
        return embedder
    return embedder.model_copy(update={"weights": _beside(folder, weights)})


class _Item(int):
    """The number of a list's item, as a part of a location that messages do not name."""


def _fill_in_all(content: dict[str, Any], node: Node | None) -> dict[str, Any]:
    """Fill in environment variables, except in `alerts`, which few commands need."""

    def fill(value: Any, at: tuple[Any, ...]) -> Any:
        if isinstance(value, str) and VARIABLE.search(value):
            try:
                return fill_in(value, _shown(*(part for part in at if not isinstance(part, _Item))))
            except VisdivError as error:
                raise VisdivError(f"{error}{_line_of(at, node)}") from None
        if isinstance(value, dict):
            return {key: fill(each, (*at, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [fill(each, (*at, _Item(number))) for number, each in enumerate(value)]
        return value

    return {
        key: value if key == "alerts" else fill(value, (key,)) for key, value in content.items()
    }


def _line_of(location: tuple[Any, ...], node: Node | None) -> str:
    """` (line N)` of the deepest part of a setting's location that exists in the file."""
    line = None
    for part in location:
        found = _part_of(node, part)
        if found is None:
            break
        line, node = found
    return "" if line is None else f" (line {line + 1})"


def _part_of(node: Node | None, part: Any) -> tuple[int, Node] | None:
    """Line and node of a key's value or of a list's item."""
    if isinstance(node, MappingNode):
        for key, value in reversed(node.value):  # what is merged comes first
            if key.value == part or key.value == as_written(part):
                return key.start_mark.line, value
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line, node.value[part]
    return None


def _yaml_problem(error: Exception) -> str:
    """The problem and its line, without ruamel's excerpt and advice for programmers."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    problem = problem.partition(" with value ")[0]
    if problem.startswith("found duplicate key") and _shown_key(problem) == problem:
        return where + problem
    # A password that begins with `*` or `!` is an alias or a tag to YAML.
    return where + _QUOTED.sub(r"\1…\1", problem)


def _did_you_mean(location: tuple[int | str, ...]) -> str:
    models = (
        Settings,
        DatasetSettings,
        EmbedderSettings,
        AlertSettings,
        BucketSettings,
        NightlySettings,
        SourceSettings,
        LimitSettings,
        SampleSettings,
        NearDuplicateSettings,
        LeakageSettings,
        CoreSetSettings,
    )
    names = {name for model in models for name in model.model_fields}
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _written(location: tuple[int | str, ...], node: Any) -> Any:
    """What the file has at a setting's location, before variables are filled in, if anything."""
    for part in location:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return None
    return node


def _describe(problem: Any, written: Any) -> str:
    where = _shown(*(part for part in problem["loc"] if part != "[key]"))
    match problem["type"]:
        case "extra_forbidden":
            return f"'{where}' is not a setting{_did_you_mean(problem['loc'])}"
        case "missing":
            return f"'{where}' is missing"
        case "model_type" | "dict_type":
            return f"'{where}' must hold 'key: value' lines"
        case "path_type":
            return f"'{where}' must be a path{_got(problem['input'], written)}"
    finding = f"'{where}': {problem['msg'].removeprefix('Value error, ')}"
    if any(part in SECRET_SETTINGS or holds_secret(str(part)) for part in problem["loc"]):
        return finding
    return f"{finding}{_got(problem['input'], written)}"


def _got(value: Any, written: Any) -> str:
    """`; got VALUE` as it is in the file, unless it may hold a secret, as addresses may."""
    if VARIABLE.search(str(written)):
        value = written
    named_secret = isinstance(value, dict) and any(holds_secret(str(key)) for key in value)
    if named_secret or ":/" in str(value) or "@" in str(value):
        return ""
    return f"; got {redacted(repr(value))}"


def _shown(*location: Any) -> str:
    """A setting's location, as messages name it."""
    return ".".join(_shown_key(as_written(part)) for part in location)


def _shown_key(key: str) -> str:
    """A key of the file, unless something else has slipped into its place."""
    return "…" if ":/" in key or "@" in key else redacted(key)
