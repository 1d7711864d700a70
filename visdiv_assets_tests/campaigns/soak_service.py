"""The service of a soak: `dagster dev`, its processes, and who starts it again when it ends.

Here: starting, finding, killing and ending processes; their memory; the disk that becomes full.
Not here: when that happens.
"""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML

from visdiv_assets_tests.campaigns.kills import family
from visdiv_assets_tests.campaigns.soak_location import SOAK
from visdiv_assets_tests.dagster_dev import ROOT, copy_project, project_environment

# What the command line of each process has in it.
ROLES = {
    "dagster dev": "dagster dev ",
    "code server": "dagster api grpc",
    "code server's keeper": "dagster code-server start",
    "daemon": "dagster._daemon",
    "webserver": "dagster_webserver",
}
RUN_WORKER = "multiprocessing.spawn"

# Nothing is decided by these; they shorten what would only be waited for.
INTERVALS = {
    "poll_interval_seconds": 10,
    "start_timeout_seconds": 60,
    "cancel_timeout_seconds": 30,
    "free_slots_after_run_end_seconds": 10,
}

DISK_MIB = 384
STOP_SECONDS = 60
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Processes whose parent is killed become this process's own, so that none is lost."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def command_of(pid: int) -> str:
    """The command line of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Service:
    """`visdiv serve` in a folder; when it is killed, it is started again, as a system would.

    Args:
        folder: of the project, with `visdiv.yaml`.
        ended: is called when it has ended by itself, before it is started again.
    """

    def __init__(self, folder: Path, ended: Callable[[], None]) -> None:
        self.folder, self._ended = folder, ended
        self.environment = project_environment(folder) | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            SOAK: "1",
            "VISDIV_STATE_DIR": str(folder / "state"),
        }
        self.home = Path(self.environment["DAGSTER_HOME"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.starts = 0
        self._ending = threading.Event()
        self._main: subprocess.Popen[bytes] | None = None
        copy_project(folder)
        workspace = folder / "workspace.yaml"
        workspace.write_text(
            workspace.read_text().replace(
                "visdiv_assets.definitions", "visdiv_assets_tests.campaigns.soak_location"
            )
        )
        self._shorten_intervals()

    def _shorten_intervals(self) -> None:
        yaml, path = YAML(), self.home / "dagster.yaml"
        content = yaml.load(path)
        content.setdefault("run_monitoring", {}).update(INTERVALS)
        yaml.dump(content, path)

    def start(self) -> None:
        """And keep it running until `stop`."""
        self._launch()
        threading.Thread(target=self._supervise, daemon=True).start()

    def _launch(self) -> None:
        command = [str(Path(sys.executable).with_name("visdiv")), "serve", "-p", str(self.port)]
        with (self.folder / "dagster.log").open("ab") as log:
            self._main = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1

    def _supervise(self) -> None:
        while not self._ending.wait(1):
            if self._main and self._main.poll() is not None:
                # As systemd does: what the old one left is ended before a new one starts.
                for pid in self.processes():
                    kill(pid)
                if not self._ending.wait(1):
                    self._ended()
                    self._launch()

    def processes(self) -> list[int]:
        """All processes of the service, also those whose parents were killed."""
        mine, found = os.getsid(0), []
        for pid in sorted(family(os.getpid())):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) != mine:  # else it is no part of the service
                    found.append(pid)
        return found

    def of_role(self, role: str) -> list[int]:
        """The service's processes in one role; a run worker has begun a run."""
        pids = self.processes()
        if role != "run worker":
            return [pid for pid in pids if ROLES[role] in command_of(pid)]
        servers = [pid for pid in pids if ROLES["code server"] in command_of(pid)]
        return [
            pid for server in servers for pid in family(server) if RUN_WORKER in command_of(pid)
        ]

    def is_up(self) -> bool:
        """Whether it has all its processes."""
        commands = [command_of(pid) for pid in self.processes()]
        return all(any(part in each for each in commands) for part in ROLES.values())

    def kill(self, target: str) -> bool:
        """Kill -9; False if there is nobody in that role."""
        pids = self.processes() if target == "whole tree" else self.of_role(target)[:1]
        for pid in pids:
            kill(pid)
        return bool(pids)

    def memory(self) -> list[tuple[str, int, float]]:
        """Role, process and resident memory in MiB of all that should live for long."""
        found = []
        for pid in self.processes():
            command = command_of(pid)
            for role, part in ROLES.items():
                if part in command:
                    with contextlib.suppress(OSError, ValueError, IndexError):
                        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                        found.append((role, pid, pages * resource.getpagesize() / 2**20))
        return found

    def stop(self) -> list[str]:
        """End it as Ctrl-C would, then everything that is left; tells what was left."""
        self._ending.set()
        left: list[str] = []
        if self._main:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._main.pid, signal.SIGINT)
            deadline = time.monotonic() + STOP_SECONDS
            while self.processes() and time.monotonic() < deadline:
                self._main.poll()
                time.sleep(0.2)
        for pid in self.processes():
            left.append(command_of(pid)[:100])
            kill(pid)
        if self._main:
            self._main.wait()
        return left


class Disk:
    """A small file system at a folder, which can be filled; on a mounted tmpfs if that is allowed.

    Otherwise the service's processes get a limit on the size of files (RLIMIT_FSIZE) instead.
    """

    def __init__(self, folder: Path, service: Service) -> None:
        self.folder, self._service = folder, service
        folder.mkdir()
        options = f"size={DISK_MIB}m,mode=755"
        command = ["mount", "-t", "tmpfs", "-o", options, "visdiv-soak", str(folder)]
        self.mounted = not subprocess.run(command, capture_output=True, check=False).returncode
        self._full = threading.Event()
        self._filling: threading.Thread | None = None

    @property
    def kind(self) -> str:
        return "a tmpfs that is full" if self.mounted else "RLIMIT_FSIZE, as mounting is forbidden"

    def fill(self) -> None:
        """From now on nothing can be written, however much is deleted."""
        self._full.set()
        self._filling = threading.Thread(target=self._keep_full, daemon=True)
        self._filling.start()

    def _keep_full(self) -> None:
        if not self.mounted:
            self._limit(4096)
            return
        with (self.folder / ".ballast").open("ab", buffering=0) as ballast:
            while self._full.is_set():
                with contextlib.suppress(OSError):
                    for size in (2**20, 4096):
                        with contextlib.suppress(OSError):
                            while self._full.is_set():
                                ballast.write(bytes(size))
                time.sleep(0.2)

    def free(self) -> None:
        self._full.clear()
        if self._filling:
            self._filling.join()
        if self.mounted:
            (self.folder / ".ballast").unlink(missing_ok=True)
        else:
            self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        for pid in self._service.processes():
            with contextlib.suppress(OSError, ValueError):
                hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    def close(self, *, keep: bool) -> None:
        """Unmount; what is on it is kept in the folder, or not."""
        self.free()
        if not self.mounted:
            return
        kept = self.folder.with_name(f"{self.folder.name}-kept")
        if keep:
            shutil.copytree(self.folder, kept, dirs_exist_ok=True)
        subprocess.run(["umount", "-l", str(self.folder)], check=False)
        if keep:
            self.folder.rmdir()
            kept.rename(self.folder)
