"""`visdiv serve`: whatever of Dagster is killed is started again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from visdiv_assets.cli.main import app
from visdiv_assets.cli.serve import LOCATIONS, broken_locations
from visdiv_assets_tests.campaigns.kills import family
from visdiv_assets_tests.campaigns.soak_service import command_of
from visdiv_assets_tests.dagster_dev import ROOT, copy_project, project_environment

PATIENCE = 240


class Served:
    """A project that is served on a port of its own."""

    def __init__(self, folder: Path) -> None:
        copy_project(folder)
        (folder / "visdiv.yaml").write_text("store: store\ndatasets: {}\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("visdiv"), "serve", "-p", str(self.port)],
                cwd=folder,
                env={**project_environment(folder), "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def locations(self) -> list[str] | None:
        """The code locations that are not loaded; None if nobody answers."""
        body = json.dumps({"query": LOCATIONS}).encode()
        url = f"http://127.0.0.1:{self.port}/graphql"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found = json.load(answer)
        except OSError:
            return None
        return broken_locations(found)

    def of(self, part: str) -> list[int]:
        """Its processes that have a text in their command line."""
        return [pid for pid in family(self.process.pid) if part in command_of(pid)]

    def wait(self, is_so: Callable[[], bool]) -> None:
        for _ in range(PATIENCE * 2):
            if is_so():
                return
            time.sleep(0.5)
        pytest.fail(self.log.read_text()[-3000:])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    members = {}
    try:
        served.wait(lambda: served.locations() == [])
        yield served
        members = family(served.process.pid)
    finally:
        served.process.send_signal(signal.SIGINT)
        try:
            served.process.wait(PATIENCE)
        finally:
            for pid in members:
                if "dagster" in command_of(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_of_dagster_is_killed_is_started_again(served):
    for part in ("dagster api grpc", "dagster._daemon", "dagster_webserver", "dagster dev"):
        [killed, *_] = served.of(part)
        os.kill(killed, signal.SIGKILL)
        served.wait(
            lambda part=part, killed=killed: (
                bool(set(served.of(part)) - {killed}) and served.locations() == []
            )
        )
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE) == 0
    served.wait(lambda: served.locations() is None)


def test_in_a_folder_without_a_project_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 1
    assert "there is no workspace.yaml in" in result.stderr


def test_what_cannot_start_ends_with_its_exit_code(tmp_path, monkeypatch):
    shutil.copy(ROOT / "workspace.yaml", tmp_path)
    environment = {**project_environment(tmp_path), "DAGSTER_HOME": str(tmp_path / "gone")}
    served = subprocess.run(
        [Path(sys.executable).with_name("visdiv"), "serve", "-p", "1"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert served.returncode != 0
    assert "gone" in served.stderr


@pytest.mark.parametrize("answer", [None, {}, {"data": None}, {"data": {"workspaceOrError": {}}}])
def test_a_web_server_that_says_nothing_of_locations_has_none_that_are_broken(answer):
    assert broken_locations(answer) == []
