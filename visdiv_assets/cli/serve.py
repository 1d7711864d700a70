"""The command `visdiv serve`: Dagster, kept going.

Here: starting `dagster dev`, starting it again when it ends, and loading code again whose server is
gone. Not here: what Dagster does with runs whose process is gone (`defs/workers.py`).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from visdiv_assets.cli.console import clear_errors, say
from visdiv_assets.cli.home import dagster_home
from visdiv_assets.errors import VisdivError

commands = typer.Typer()

LOOK_SECONDS = 15.0
ANSWER_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 300.0
# Whatever ended before was not a failure of starting.
STABLE_SECONDS = 300.0
# So long, a web server may take to end after `dagster dev`; the next one needs its port.
PORT_SECONDS = 60
# Dagster ends its processes in turn; runs have time to keep what they have embedded.
STOP_SECONDS = 120.0

LOCATIONS = """
{ workspaceOrError { ... on Workspace {
  locationEntries { name loadStatus locationOrLoadError { __typename } } } } }
"""
RELOAD = """
mutation ($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }
"""


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv serve
  visdiv serve --host 0.0.0.0 --port 8000"""
)
def serve(
    host: Annotated[str, typer.Option(help="Address that the UI listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Its port.")] = 3000,
) -> None:
    """Start Dagster for the project in this folder, and keep it going.

    Whatever of it is killed or crashes is started again. Ctrl-C ends it. Runs, events
    and schedules are kept in $DAGSTER_HOME; without one, in .visdiv/dagster/storage.
    """
    with clear_errors():
        here = Path.cwd()
        if not any((here / name).exists() for name in ("workspace.yaml", "pyproject.toml")):
            raise VisdivError(
                f"there is no workspace.yaml in {here}; start it in the project's folder"
            )
        home = os.environ.get("DAGSTER_HOME")
        if not home:
            home = str(dagster_home(here))
            say(
                f"Dagster's data is in {home}, where a link leads to dagster.yaml; "
                "Dagster's warning about that file means nothing"
            )
        dagster = Path(sys.executable).with_name("dagster")
        command = [str(dagster), "dev", "-h", host, "-p", str(port)]
        # Nothing of the current folder is imported instead of a library.
        environment = {**os.environ, "DAGSTER_HOME": home, "PYTHONSAFEPATH": "1"}
        if path := os.environ.get("PYTHONPATH"):
            # Dagster leaves out the first place, as if that were the current folder in any case.
            environment["PYTHONPATH"] = f"{home}{os.pathsep}{path}"
        address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/graphql"  # noqa: S104
        code = Keeper(command, environment, address).run()
    raise typer.Exit(code)


class Keeper:
    """Keeps `dagster dev` going.

    `dagster dev` ends when its webserver or its daemon does. When the process that has loaded the
    code is gone, it goes on without it, and nothing works: no sensor, no schedule, no run.

    Args:
        command: starts `dagster dev`.
        environment: its environment.
        address: of the web server's GraphQL.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], address: str) -> None:
        self._command, self._environment, self._address = command, environment, address
        self._ending = threading.Event()
        self._reloads: dict[str, tuple[int, float]] = {}

    def run(self) -> int:
        """Until a signal ends it; returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._end)
        failures = 0
        while True:
            begun = time.monotonic()
            # In a group of its own: it gets Ctrl-C from here, once, and not from the terminal.
            process = subprocess.Popen(  # noqa: S603  no part of it is from outside
                self._command, env=dict(self._environment), start_new_session=True
            )
            code = self._watch(process)
            if self._ending.is_set():
                return 0
            lived = time.monotonic() - begun
            if not failures and lived < LOOK_SECONDS:  # it cannot start: its port is taken, perhaps
                return code or 1
            failures = 0 if lived > STABLE_SECONDS else failures + 1
            pause = pause_after(failures)
            say(f"Dagster has ended (code {code}); it is started again in {pause:.0f} seconds")
            if self._ending.wait(pause):
                return 0

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ending.set()

    def _watch(self, process: "subprocess.Popen[bytes]") -> int:
        """Look at it every few seconds until it ends, or is to end; returns its exit code."""
        looked = time.monotonic()
        while process.poll() is None:
            if self._ending.wait(0.5):
                return self._stop(process)
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                self._mend()
        # It ends its processes itself, and those that work on runs when these are over. If it was
        # killed, they would go on, and two daemons would do everything twice.
        if process.returncode < 0:
            self._kill_all(process)
        for _ in range(PORT_SECONDS):
            if self._ask(LOCATIONS) is None or self._ending.wait(1):
                break
        return process.returncode

    def _stop(self, process: "subprocess.Popen[bytes]") -> int:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            say("Dagster does not end; it is killed")
            self._kill_all(process)
        return process.wait()

    def _kill_all(self, process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _mend(self) -> None:
        """Load the code again where its server is gone; with pauses, if that does not help."""
        now = time.monotonic()
        broken = broken_locations(self._ask(LOCATIONS))
        for name in [name for name in self._reloads if name not in broken]:
            del self._reloads[name]
        for name in broken:
            tried, last = self._reloads.get(name, (0, 0.0))
            if tried and now - last < pause_after(tried):
                continue
            self._reloads[name] = (tried + 1, now)
            say(f"the code of {name} is not loaded; it is loaded again")
            self._ask(RELOAD, {"name": name})

    def _ask(self, query: str, variables: Mapping[str, str] | None = None) -> Any:
        """The answer of the web server; None if it gives none, which others notice."""
        body = json.dumps({"query": query, "variables": variables or {}}).encode()
        request = urllib.request.Request(  # noqa: S310  it is our own
            self._address, body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
                return json.load(answer)
        except (OSError, ValueError):
            return None


def broken_locations(answer: Any) -> list[str]:
    """The code locations that are not loaded, of an answer to LOCATIONS.

    Example:
        >>> broken = {"name": "a", "loadStatus": "LOADED", "locationOrLoadError": None}
        >>> broken_locations({"data": {"workspaceOrError": {"locationEntries": [broken]}}})
        ['a']
    """
    try:
        entries = answer["data"]["workspaceOrError"]["locationEntries"]
        return [
            str(entry["name"])
            for entry in entries
            if entry["loadStatus"] != "LOADING"
            and (entry["locationOrLoadError"] or {}).get("__typename") != "RepositoryLocation"
        ]
    except (AttributeError, KeyError, TypeError):
        return []


def pause_after(failures: int) -> float:
    """Seconds to wait after a number of failures: 1, doubling up to five minutes.

    Example:
        >>> [pause_after(failures) for failures in (0, 1, 2, 20)]
        [1.0, 2.0, 4.0, 300.0]
    """
    return min(2.0 ** min(failures, 16), LONGEST_PAUSE_SECONDS)
