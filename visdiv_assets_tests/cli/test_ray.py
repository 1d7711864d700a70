"""`visdiv score` with the engine ray, as people start and stop it: real model, real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from visdiv_assets_tests.dagster_dev import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PHOTOS = ROOT / "examples/demo/photos"
SETTINGS = """\
store: {store}
engine: {engine}
datasets:
  photos: {{source: {photos}}}
"""
RAY = "{ray: {workers: 2, unit_images: 24}}"
VISDIV = Path(sys.executable).with_name("visdiv")
MARK = "VISDIV_TEST_MARK"
PATIENCE = 300


class Runs:
    """`visdiv score photos` in a folder; its processes, and theirs, carry a mark."""

    def __init__(self, folder):
        self.folder, self.mark = folder, uuid.uuid4().hex

    def start(self, store, engine=RAY):
        path = self.folder / f"{store}.yaml"
        path.write_text(SETTINGS.format(store=store, engine=engine, photos=PHOTOS))
        command = [VISDIV, "score", "photos", "--json", "--config", path]
        return subprocess.Popen(
            ["env", "--default-signal=INT,TERM", *command],
            cwd=self.folder,
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def score(self, store, engine=RAY):
        run = self.start(store, engine)
        told, said = run.communicate(timeout=PATIENCE)
        assert run.returncode == 0, said
        found = json.loads(told)
        return {key: found[key] for key in ("score", "corrected_low", "n_images")}, said

    def committed(self, store):
        return len([*(self.folder / store / "indexes").rglob("*+*.parquet")])

    def until_committed(self, store, run):
        deadline = time.monotonic() + PATIENCE
        while not self.committed(store):
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def alive(self):
        """The processes that are left, with their commands."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(process.name)] = command
            except OSError:
                continue
        return found

    def until_all_are_gone(self):
        deadline = time.monotonic() + PATIENCE
        while alive := self.alive():
            assert time.monotonic() < deadline, alive
            time.sleep(0.2)


@pytest.fixture
def runs(tmp_path):
    runs = Runs(tmp_path)
    yield runs
    for pid in runs.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_score_is_that_of_one_process_and_nothing_is_left_behind(runs):
    alone, _ = runs.score("alone", "local")
    shared, said = runs.score("shared")
    assert shared == alone
    assert "ray" not in said.lower()
    assert runs.committed("shared") == 0
    runs.until_all_are_gone()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_run_that_is_stopped_leaves_no_process_and_goes_on_where_it_was(runs, number, code):
    run = runs.start("store")
    runs.until_committed("store", run)
    assert any("raylet" in command for command in runs.alive().values())
    run.send_signal(number)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == code
    assert "Traceback" not in said
    runs.until_all_are_gone()
    kept = runs.committed("store")
    assert kept
    shared, _ = runs.score("store")
    assert shared == runs.score("alone", "local")[0]


def test_a_worker_that_is_killed_changes_neither_the_score_nor_what_is_printed(runs):
    run = runs.start("store")
    runs.until_committed("store", run)
    [worker, *_] = [pid for pid, command in runs.alive().items() if "ray::_Worker" in command]
    os.kill(worker, signal.SIGKILL)
    told, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, said
    assert json.loads(told)["score"] == runs.score("alone", "local")[0]["score"]


def test_workers_import_nothing_from_the_current_folder(runs):
    for name in ("numpy", "visdiv_assets", "pyarrow"):
        hostile = f"from pathlib import Path; Path({str(runs.folder)!r}, 'imported').touch()"
        (runs.folder / f"{name}.py").write_text(hostile)
    runs.score("store")
    assert not (runs.folder / "imported").exists()


def test_a_run_that_is_terminated_while_ray_starts_ends_as_any_other(runs):
    run = runs.start("store")
    deadline = time.monotonic() + PATIENCE
    while not any("gcs_server" in command for command in runs.alive().values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.terminate()
    run.communicate(timeout=PATIENCE)
    assert run.returncode == 143
    runs.until_all_are_gone()
