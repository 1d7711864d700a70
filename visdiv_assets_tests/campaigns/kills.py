"""Kills: processes end at random moments, and are run again.

    python -m visdiv_assets_tests.campaigns.kills

A round starts `visdiv score`, a Dagster run, or Dagster's daemon with a run that was requested, and
sends a signal at a random step of it. Then the same is run again, undisturbed. All results must be
those of a run that was never disturbed, to the last bit; rows that were finished must not be lost;
no process and no ever-growing heap of files may stay behind.

The moment is the n-th step that the process tells of, never a time.

Here: starting, killing, judging. Not here: playing rounds (`rounds.py`), steps (`victim.py`).
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq

from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.campaigns.datasets import (
    SEGMENT_ROWS,
    add_copies,
    write_birds,
    write_settings,
)
from visdiv_assets_tests.campaigns.rounds import Round, main, random_of
from visdiv_assets_tests.campaigns.victim import LISTENER, STORE
from visdiv_assets_tests.dagster_dev import ROOT, project_environment

NAME = "birds"
SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
# Who is killed. The worker is the process that works on a run, which the daemon started.
TARGETS = {
    "score": ("process", "group"),
    "run": ("process", "group"),
    "daemon": ("process", "group", "worker"),
}
MOMENTS = 3

# After kill -9: one segment that is being written, one that fills, and what is on its way there.
LOST_AT_MOST = 2 * SEGMENT_ROWS + 16
# A week: whoever tidies up by age must consider it left over.
OLD = 7 * 86_400
# Nothing is decided by these; they end a round that would never end.
PATIENCE = 240


# --- the moment ---


class Listener(socketserver.ThreadingTCPServer):
    """Counts the steps of all processes of a round, and holds the one at which to kill."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, hold_at: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Steps)
        self.hold_at, self.steps, self.rows, self.step, self.pid = hold_at, 0, 0, "", 0
        self.lock, self.held, self.go_on = threading.Lock(), threading.Event(), threading.Event()

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def note(self, pid: int, step: str) -> None:
        """Count a step; the one to hold returns only when it may go on."""
        with self.lock:
            self.steps += 1
            mine = self.steps == self.hold_at
            # Rows of the call that is held have not been handed on yet.
            if step.startswith("model ") and not mine and not self.held.is_set():
                self.rows += int(step.removeprefix("model "))
            if mine:
                self.step, self.pid = step, pid
                self.held.set()
        if mine:
            self.go_on.wait(PATIENCE)

    def __enter__(self) -> "Listener":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.go_on.set()
        self.shutdown()
        self.server_close()


class _Steps(socketserver.StreamRequestHandler):
    server: Listener

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.rfile:
                pid, _, step = line.decode().strip().partition(" ")
                self.server.note(int(pid), step)
                self.wfile.write(b".")


# --- processes ---


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and start time of each process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            values = (folder / "stat").read_text().rpartition(")")[2].split()
            if values[0] != "Z":
                found[int(folder.name)] = (int(values[1]), values[19])
    return found


def family(pid: int) -> dict[int, str]:
    """A process and all that descend from it, each with its start time."""
    processes = _processes()
    members = {pid}
    while more := {p for p, (parent, _) in processes.items() if parent in members} - members:
        members |= more
    return {member: processes[member][1] for member in members if member in processes}


def still_there(members: dict[int, str]) -> list[int]:
    """Those of a family that have not ended; numbers that were given again are others."""
    processes = _processes()
    return [pid for pid, started in members.items() if processes.get(pid, (0, ""))[1] == started]


def _command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    return "?"


def _wait_until(is_so: Callable[[], bool], every: float = 0.05) -> bool:
    for _ in range(round(PATIENCE / every)):
        if is_so():
            return True
        time.sleep(every)
    return False


# --- what is run ---


@dataclass(frozen=True)
class Project:
    """A folder with settings, images and Dagster's home."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.folder / "store/visdiv.duckdb")

    @contextlib.contextmanager
    def started(self, listener: Listener, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process in a group of its own; what it leaves behind is removed in the end."""
        environment = project_environment(self.folder) | {
            LISTENER: listener.address,
            STORE: str(self.folder / "store") + os.sep,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        members = {}
        try:
            yield process
        finally:
            members = family(process.pid)
            for pid in still_there(members):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    def finished_runs(self) -> list[bool]:
        """Whether each run that has ended succeeded, the newest first."""
        with _instance(self.folder) as instance:
            return [run.is_success for run in instance.get_runs() if run.is_finished]

    def run_command(self, listener: Listener, *command: str) -> None:
        with self.started(listener, *command) as process:
            process.wait(PATIENCE)
            assert process.returncode == 0, self.log()[-3000:]


@contextlib.contextmanager
def _instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


SCORE = (sys.executable, "-m", "visdiv_assets_tests.campaigns.victim", "score", NAME, "--json")
OF_THE_JOB = ("-j", "evaluate_dataset", "--tags", json.dumps({"dagster/partition": NAME}))
RUN = (
    *(_tool("dagster"), "job", "execute", "-m", "visdiv_assets_tests.campaigns.location"),
    *OF_THE_JOB,
)
LAUNCH = (_tool("dagster"), "job", "launch", "-w", "workspace.yaml", *OF_THE_JOB)
DAEMON = (_tool("dagster-daemon"), "run", "-w", "workspace.yaml")
COMMANDS = {"score": SCORE, "run": RUN, "daemon": DAEMON}


def prepare(folder: Path) -> Project:
    """Images that were never scored, and an empty home of Dagster's that knows the dataset."""
    write_settings(folder, "birds: {source: birds, watch: false, schedule: false}")
    write_birds(folder / NAME)
    add_copies(folder / NAME)
    shutil.copy(ROOT / "dagster.yaml", folder)
    workspace = (ROOT / "workspace.yaml").read_text()
    (folder / "workspace.yaml").write_text(
        workspace.replace("visdiv_assets.definitions", "visdiv_assets_tests.campaigns.location")
    )
    return Project(folder)


def run_to_the_end(project: Project, kind: str) -> Listener:
    """The same once more, undisturbed."""
    with Listener() as listener:
        if kind != "daemon":
            project.run_command(listener, *COMMANDS[kind])
            return listener
        done = sum(project.finished_runs())
        project.run_command(listener, *LAUNCH)
        with project.started(listener, *DAEMON) as daemon:
            succeeded = _wait_until(
                lambda: daemon.poll() is not None or sum(project.finished_runs()) > done
            )
            assert succeeded, f"the run that was requested again does not succeed\n{project.log()}"
            daemon.terminate()
            daemon.wait(PATIENCE)
    return listener


# --- results ---


def results(project: Project) -> dict[str, object]:
    """Everything that must be the same in the end, to the last bit."""
    store = project.store
    [evaluation] = project.warehouse.newest_evaluations([NAME])
    sample = store.read_sample(*evaluation.where)
    slices = store.read_slices(*evaluation.where)
    table = store.read_index(*evaluation.where).table.to_pylist()

    def bits_of(each: dict[str, object]) -> bytes | None:
        if each["segment"] is None:
            return None
        return store.rows(evaluation.model_id, str(each["segment"]))[each["row"]].tobytes()

    exported = pq.read_table(store.root / "exports/latest_evaluations.parquet").to_pylist()
    return {
        "plain score": evaluation.diversity_score,
        "corrected score": (
            evaluation.corrected_score,
            evaluation.corrected_low,
            evaluation.corrected_high,
        ),
        "images": (evaluation.n_images, evaluation.n_failed, evaluation.n_listed),
        "contents": evaluation.n_distinct,
        "moments": _bits(sample),
        "slices": {name: _bits(each) for name, each in slices.items()},
        "index": {each["image_id"]: (each["content_key"], each["reason"]) for each in table},
        "rows": {each["image_id"]: bits_of(each) for each in table},
        "failures": [(each.image_id, each.reason) for each in project.warehouse.failures(NAME)],
        "export": [(each["dataset"], each["diversity_score"]) for each in exported],
    }


def _bits(sample: object) -> tuple[object, ...]:
    moments = sample.moments
    arrays = (moments.total, moments.outer, sample.keys, sample.rows, sample.counts)
    return (moments.n, *(array.tobytes() for array in arrays))


def committed(project: Project) -> set[bytes]:
    """The content keys that the store has rows of."""
    store = project.store
    keys: set[bytes] = set()
    for model_id in store.model_ids():
        for name in store.segment_names(model_id):
            path = store.root / "embeddings" / model_id / f"{name}.parquet"
            keys.update(pq.read_table(path)["content_key"].to_pylist())
    return keys


def left_over(project: Project) -> list[str]:
    """Files that no one will ever read: temporary ones, and rows without their keys."""
    root = project.folder / "store"
    files = [path for path in root.rglob("*") if path.is_file()]
    return sorted(
        str(path.relative_to(root))
        for path in files
        if ".tmp" in path.name
        or (path.suffix == ".npy" and not path.with_suffix(".parquet").exists())
    )


# --- a round ---


@dataclass(frozen=True)
class Undisturbed:
    """What comes of it when nothing is killed; made when first needed.

    Attributes:
        project: as prepared, to be copied.
        folder: where the undisturbed runs are made.
    """

    project: Project
    folder: Path

    @functools.cached_property
    def results(self) -> dict[str, object]:
        self.steps("score")
        return results(Project(self.folder / "score"))

    def steps(self, kind: str) -> int:
        """How many steps it takes; the daemon's run is a run like any other."""
        return self._steps("run" if kind == "daemon" else kind)

    @functools.cache  # noqa: B019  # there is one for a campaign
    def _steps(self, kind: str) -> int:
        listener = run_to_the_end(self.copy(self.folder / kind, kind), kind)
        assert listener.rows, "the model tells of no step, so that nothing is killed at one"
        return listener.steps

    def copy(self, folder: Path, kind: str) -> Project:
        if kind != "score":
            self._add_partition()
        return Project(Path(shutil.copytree(self.project.folder, folder)))

    @functools.cache  # noqa: B019
    def _add_partition(self) -> None:
        """As the daemon's sensor does; the databases are made on the way."""
        with _instance(self.project.folder) as instance:
            instance.add_dynamic_partitions("datasets", [NAME])


def kill_and_run_again(
    undisturbed: Undisturbed, kind: str, by: str, target: str, moment: int, folder: Path
) -> list[str]:
    """One round.

    Args:
        undisturbed: what must come of it in the end.
        kind: what is run: `score`, `run` or `daemon`.
        by: name of the signal.
        target: who gets it: `process`, `group` or `worker`.
        moment: number of the step at which it is sent.
        folder: an empty folder.
    """
    project = undisturbed.copy(folder / "project", kind)
    if kind == "daemon":
        with Listener() as listener:
            project.run_command(listener, *LAUNCH)
    at, problems = _kill(project, kind, by, target, moment)
    where = f"at step {moment} ({at})"
    before = committed(project)
    run_to_the_end(project, kind)
    if lost := before - committed(project):
        problems.append(f"{len(lost)} committed rows are gone after the next run")
    found, expected = results(project), undisturbed.results
    problems += [f"another {what}" for what in expected if found[what] != expected[what]]
    problems += _what_stays(project)
    return [f"{where}: {problem}" for problem in problems]


def _kill(project: Project, kind: str, by: str, target: str, moment: int) -> tuple[str, list[str]]:
    """Start it, end it at this step; says at which, and what is wrong right afterwards."""
    problems = []
    written = len(project.log()) if (project.folder / "log.txt").exists() else 0
    with Listener(moment) as listener, project.started(listener, *COMMANDS[kind]) as process:
        over = _wait_until(lambda: listener.held.is_set() or _is_over(project, kind, process))
        assert over, f"nothing happens:\n{project.log()[written:]}"
        if not listener.held.is_set():
            return "it had ended before", []
        members = family(process.pid)
        for pid in {"process": [process.pid], "worker": [listener.pid]}.get(target, members):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, by))
        given, at = listener.rows, listener.step
        listener.go_on.set()
        if target == "worker":
            members = {pid: started for pid, started in members.items() if pid == listener.pid}
        gone = _wait_until(lambda: process.poll() is not None or target == "worker")
        if not gone or not _wait_until(lambda: not still_there(members)):
            left = [f"{pid} {_command_of(pid)}" for pid in still_there(members)]
            problems.append(f"still running long after {by}: {'; '.join(left)}")
    kept = len(committed(project))
    if by == "SIGKILL" and given - kept > LOST_AT_MOST:
        problems.append(f"{given - kept} rows lost, more than {LOST_AT_MOST}")
    if by != "SIGKILL" and kept < given:
        problems.append(f"{given - kept} of {given} rows that the model had given are lost")
    said = project.log()[written:]
    if kind == "score" and "Traceback" in said:
        problems.append(f"a traceback after {by}:\n{said[-1500:]}")
    return at, problems


def _is_over(project: Project, kind: str, process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None or (kind == "daemon" and bool(project.finished_runs()))


def _what_stays(project: Project) -> list[str]:
    """What is left over a week later, after one more run."""
    left = left_over(project)
    if not left:
        return []
    for name in left:
        path = project.folder / "store" / name
        then = path.stat().st_mtime - OLD
        os.utime(path, (then, then))
    run_to_the_end(project, "score")
    stays = sorted(set(left_over(project)) & set(left))
    return [f"left over for good: {', '.join(stays)}"] if stays else []


def rounds_of(shared: Path, seed: int) -> list[Round]:
    """All signals to all targets, each at some random moments."""
    (shared / "prepared").mkdir()
    undisturbed = Undisturbed(prepare(shared / "prepared"), shared)
    return [
        Round(name, functools.partial(_at_random, undisturbed, kind, by, target, seed, name))
        for number in range(1, MOMENTS + 1)
        for kind, targets in TARGETS.items()
        for target in targets
        for by in SIGNALS
        for name in [f"{kind}, {by} to the {target}, moment {number}"]
    ]


def _at_random(
    undisturbed: Undisturbed,
    kind: str,
    by: str,
    target: str,
    seed: int,
    name: str,
    folder: Path,
) -> list[str]:
    moment = random_of(seed, name).randint(1, undisturbed.steps(kind))
    return kill_and_run_again(undisturbed, kind, by, target, moment, folder)


if __name__ == "__main__":
    about = (__doc__ or "").partition("\n\nThe moment")[0]
    sys.exit(main("visdiv_assets_tests.campaigns.kills", about, rounds_of))
