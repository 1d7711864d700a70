"""`dagster dev` as a user starts it: webserver and daemon on loopback, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def project_environment(project: Path) -> dict[str, str]:
    """The environment in which commands run in a project's folder."""
    mine = {"DAGSTER_HOME", "VISDIV_CONFIG", "VISDIV_STORE"}
    kept = {name: value for name, value in os.environ.items() if name not in mine}
    return {"VISDIV_STATE_DIR": str(project / "state"), **kept, "DAGSTER_HOME": str(project)}


def copy_project(folder: Path) -> None:
    """The project's own Dagster files."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, folder)


@contextmanager
def dagster_dev(project: Path) -> Iterator[str]:
    """Start it, wait until it answers, yield its address, stop it and all that it started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("dagster"), "dev", "-p", str(port)]
    log = project / "dagster.log"
    with log.open("ab") as output:
        server = subprocess.Popen(
            command,
            cwd=project,
            env=project_environment(project),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/server_info", server, log)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=60).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    pytest.fail(f"dagster dev did not come up:\n{log.read_text()}")
