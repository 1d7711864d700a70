"""`visdiv.yaml` → validated settings, with errors that name the key and the line.

Here: finding the file, environment variables, paths relative to the file.
Not here: which settings there are (`model.py`).
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import (
    VARIABLE,
    AlertSettings,
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
)
from visdiv_assets.settings.secrets import holds_secret, redacted

CONFIG_FILE = "visdiv.yaml"

# Settings that may contain secrets; error messages must not show their values.
SECRET_SETTINGS = {"options", "root", "uri", "urls", "weights"}

# Texts of the file in YAML's errors; not its own terms, as in '<block end>', nor single characters.
_QUOTED = re.compile(r"""(['"])(?!<)(?:(?!\1).){3,}\1""")


def find_settings() -> Path | None:
    """The default settings file: `$VISDIV_CONFIG`, else `./visdiv.yaml`, else None."""
    if os.environ.get("VISDIV_CONFIG"):
        return absolute_path(os.environ["VISDIV_CONFIG"])
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).exists() else None


def load_settings(path: Path | None = None) -> Settings:
    """Read and validate settings.

    Args:
        path: the file to read. None means `find_settings()`, and without a file the defaults.
            `$VISDIV_STORE` overrides the store in every case.

    Raises:
        VisdivError: the file is missing, is not YAML, or contains an invalid setting.
    """
    path = path or find_settings()
    settings = Settings() if path is None else _read(path)
    if os.environ.get("VISDIV_STORE"):
        return settings.model_copy(update={"store": absolute_path(os.environ["VISDIV_STORE"])})
    return settings


def absolute_path(path: Path | str, folder: Path | None = None) -> Path:
    """An absolute path without `..` and with `~` expanded; None means the current folder.

    Links are not resolved, except before a `..`, which means the parent of the link's target.
    """
    # Unlike Path.expanduser, os.path.expanduser keeps the `~` of an unknown user.
    whole = (folder or Path()).absolute() / os.path.expanduser(path)  # noqa: PTH111
    return whole.resolve() if ".." in whole.parts else whole


def _read(path: Path) -> Settings:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VisdivError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        # ruamel's error holds an excerpt of the file.
        raise VisdivError(f"{path} is not a valid YAML file: {_yaml_problem(error)}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise VisdivError(f"{path} must hold settings as 'key: value' lines")
    try:
        settings = Settings.model_validate(_fill_in_all(content))
    except VisdivError as error:
        raise VisdivError(f"{path}: {error}") from None
    except RecursionError as error:
        raise VisdivError(f"{path} is not a valid YAML file: a value contains itself") from error
    except ValidationError as error:
        lines = YAML().load(path.read_text(encoding="utf-8"))
        problems = "; ".join(
            _describe(problem, _written(problem["loc"], lines)) + _line_of(problem["loc"], lines)
            for problem in error.errors()
        )
        raise VisdivError(f"{path}: {problems}") from None  # pydantic repeats values
    folder = path.absolute().parent
    return settings.model_copy(
        update={
            "store": absolute_path(settings.store, folder),
            "embedder": _embedder_beside(folder, settings.embedder),
            "datasets": {
                name: dataset.model_copy(
                    update={
                        "source": _source_beside(folder, dataset.source),
                        "embedder": dataset.embedder and _embedder_beside(folder, dataset.embedder),
                    }
                )
                for name, dataset in settings.datasets.items()
            },
        }
    )


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


def _fill_in_all(content: dict[str, Any]) -> dict[str, Any]:
    """Fill in environment variables, except in `alerts`, which few commands need."""

    def fill(value: Any, where: str) -> Any:
        if isinstance(value, str):
            return fill_in(value, where)
        if isinstance(value, dict):
            return {key: fill(each, f"{where}.{key}") for key, each in value.items()}
        if isinstance(value, list):
            return [fill(each, where) for each in value]
        return value

    return {
        key: value if key == "alerts" else fill(value, str(key)) for key, value in content.items()
    }


def _line_of(location: tuple[int | str, ...], node: Any) -> str:
    """` (line N)` of the deepest part of a setting's location that exists in the file."""
    line = None
    for part in location:
        try:
            marks = node.lc
            line = (marks.key(part) if isinstance(node, dict) else marks.item(part))[0]
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return "" if line is None else f" (line {line + 1})"


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
    where = ".".join(_shown_key(part) for part in problem["loc"] if part != "[key]")
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


def _shown_key(key: int | str) -> str:
    """A key of the file, unless something else has slipped into its place."""
    return "…" if ":/" in str(key) or "@" in str(key) else redacted(str(key))
