"""What `visdiv doctor` says about Dagster's own settings, `dagster.yaml`.

Here: the settings without which runs get stuck or data goes astray. Not here: whether Dagster
accepts the file, which Dagster says itself.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

# The longest that places in pools may be kept for a run that has ended.
FREED_SECONDS = 60


def settings_file() -> Path | None:
    """The `dagster.yaml` that Dagster would use here, or should; None in a folder without one."""
    if home := os.environ.get("DAGSTER_HOME"):
        return Path(home).expanduser() / "dagster.yaml"
    here = Path("dagster.yaml")
    return here if here.exists() else None


def advice(path: Path) -> list[str]:
    """What to set in a `dagster.yaml`, and why, in a sentence each; empty if all is well.

    Examples:
        >>> advice(Path("nowhere/dagster.yaml"))
        ['it is missing; copy the one of the project there']
    """
    try:
        settings = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ["it is missing; copy the one of the project there"]
    except (OSError, UnicodeDecodeError, YAMLError):
        return ["it cannot be read"]
    return list(_advice(settings if isinstance(settings, Mapping) else {}))


def _advice(settings: Mapping[str, Any]) -> Iterator[str]:
    # A value may be taken from the environment, as {env: NAME}; what it is then, is not known.
    monitoring = _section(settings, "run_monitoring")
    if monitoring.get("enabled") in (None, False):
        yield "set run_monitoring.enabled to true, or runs that do not start wait for ever"
    freed = monitoring.get("free_slots_after_run_end_seconds")
    if not freed or (isinstance(freed, int) and freed > FREED_SECONDS):
        yield (
            f"set run_monitoring.free_slots_after_run_end_seconds to {FREED_SECONDS}, or runs that "
            "end keep their places in pools for longer"
        )
    if not _section(settings, "run_queue").get("max_user_code_failure_retries"):
        yield (
            "set run_queue.max_user_code_failure_retries to 60, or a run fails whose turn comes "
            "while the code is not loaded"
        )
    retries = _section(settings, "run_retries")
    if retries.get("enabled") in (None, False) or not retries.get("max_retries"):
        yield (
            "set run_retries.enabled to true and run_retries.max_retries to 2, or a killed run is "
            "not tried again"
        )
    elif retries.get("retry_on_asset_or_op_failure") in (None, True):
        yield (
            "set run_retries.retry_on_asset_or_op_failure to false, or what fails is tried again "
            "though it would fail the same way"
        )
    if _section(_section(settings, "concurrency"), "pools").get("default_limit") != 1:
        yield (
            "set concurrency.pools.default_limit to 1, or several runs use the GPU and write to "
            "DuckDB at once"
        )
    for where, folder in _folders(settings):
        if not Path(folder).is_absolute():
            yield (
                f"remove {where} or make it an absolute path, or each folder in which Dagster is "
                f"started has runs of its own"
            )


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, Mapping) else {}


def _folders(settings: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """All values of `base_dir`, with their place in the file."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _folders(value, f"{where}{key}.")
        elif key == "base_dir" and isinstance(value, str):
            yield f"{where}{key}", value
