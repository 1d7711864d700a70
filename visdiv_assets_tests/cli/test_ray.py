"""`visdiv score` with the engine ray, as people start and stop it: real model, real processes."""

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
MARK = "VISDIV_TEST_MARK"
PATIENCE = 300


class Runs:
    """`visdiv score photos` in a folder; its processes, and theirs, carry a mark."""

    def __init__(self, folder):
        self.folder, self.mark = folder, uuid.uuid4().hex

    def start(self, store, engine=RAY):
        path = self.folder / f"{store}.yaml"
        path.write_text(SETTINGS.format(store=store, engine=engine, photos=PHOTOS))
        command = ["-m", "visdiv_assets.cli.main", "score", "photos", "--json", "--config", path]
        signals = ["env", "--default-signal=INT,TERM"]
        return subprocess.Popen(
            [*signals, sys.executable, *command],
            cwd=self.folder,
            env={**os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT)},
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
        """The processes that are left."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
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
    subprocess.run(["pkill", "-9", "-f", str(tmp_path)], check=False)


def test_the_score_is_that_of_one_process_and_nothing_is_left_behind(runs):
    alone, _ = runs.score("alone", "local")
    shared, said = runs.score("shared")
    assert shared == alone
    assert said == ""
    assert runs.committed("shared") == 0
    runs.until_all_are_gone()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_run_that_is_stopped_leaves_no_process_and_goes_on_where_it_was(runs, number, code):
    run = runs.start("store")
    runs.until_committed("store", run)
    run.send_signal(number)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == code
    assert "Traceback" not in said
    runs.until_all_are_gone()
    kept = runs.committed("store")
    assert kept
    shared, _ = runs.score("store")
    assert shared == runs.score("alone", "local")[0]
