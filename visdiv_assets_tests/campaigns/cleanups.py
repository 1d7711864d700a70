"""Clean-ups and compactions that are killed, each followed by an evaluation.

    python -m visdiv_assets_tests.campaigns.cleanups

A round starts a clean-up or a compaction of a store in a process of its own, on a disk or in a
bucket, and kills it (SIGKILL) before the n-th step that changes the store. Then everything that has
a checksum must be sound, each evaluation that is kept must have its rows to the last bit, and one
more evaluation must give the same score without embedding anything.

Here: the store, the process that is killed, judging. Not here: playing rounds (`rounds.py`).
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from visdiv_assets.settings.model import KeepSettings, Settings
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.bucket import Bucket
from visdiv_assets.store.cache import Cache
from visdiv_assets.store.cleaning import verify
from visdiv_assets.store.objects import Folder
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.maintenance import clean_up, compact_store, retained
from visdiv_assets.workflows.project import Project
from visdiv_assets_tests.campaigns.rounds import Round, main, random_of
from visdiv_assets_tests.dagster_dev import ROOT
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image
from visdiv_assets_tests.store.homes import BucketHome, DiskHome, Home, homes

NAME, NIGHTS, ROUNDS = "birds", 5, 100
KEEP = KeepSettings(evaluations=2, days=0)
# What a round kills, and what has gone before it.
TASKS = {
    "gc that sets aside": (),
    "gc that deletes": ("gc", "week"),
    "compact": (),
    "compact after gc": ("gc", "week"),
    "gc after compact": ("compact", "week"),
}


@dataclass(frozen=True)
class Stored:
    """A store with its history.

    Attributes:
        home: where it is.
        images: the dataset.
        project: as a process opens it.
    """

    home: Home
    images: Path
    project: Project

    def score(self) -> tuple[Evaluation, int]:
        """One more evaluation, and how many images were embedded."""
        source, warehouse = DirectorySource(self.images), self.project.warehouse
        evaluation, embedded = evaluate(NAME, source, FakeEmbedder(), self.home.store(), warehouse)
        return evaluation, embedded.n_new

    def rows(self) -> dict[tuple[str, str], bytes]:
        """The rows of the kept evaluations by evaluation and image."""
        history = self.project.warehouse.history(NAME)
        store, rows = self.home.store(), {}
        for each in retained(history, [], KEEP, NOW):
            table = store.read_index(*each.where).table
            columns = (table[name].to_pylist() for name in ("image_id", "segment", "row"))
            for image, segment, row in zip(*columns, strict=True):
                place = each.manifest_fingerprint, image
                rows[place] = store.rows(each.model_id, segment)[row].tobytes()
        return rows


NOW = datetime.now(UTC) + timedelta(hours=1)  # after all that a round does


def build(home: Home, folder: Path) -> Stored:
    """A dataset that changed each night, ten days ago."""
    settings = Settings(results=folder / "results", keep=KEEP)
    warehouse = Warehouse(settings.results_folder / "visdiv.duckdb")
    stored = Stored(home, folder / "images", Project(settings, home.store(), warehouse))
    for night in range(NIGHTS):
        for number in range(night, night + 3):
            for part in ("p", "q"):
                path = stored.images / part / f"{number}.png"
                write_image(path, seed=10 * number + ord(part))
        stored.score()
        for part in ("p", "q"):
            (stored.images / part / f"{night}.png").unlink()
    home.grow_old()
    return stored


def act(task: str, project: Project) -> None:
    """One clean-up or compaction."""
    (clean_up if task.startswith("gc") else compact_store)(project, NOW, apply=True)


def play(kind: str, task: str, seed: int, name: str, folder: Path) -> list[str]:
    """One round."""
    with homes(kind) as make:
        stored = build(make(folder), folder)
        for before in TASKS[task]:
            if before == "week":
                stored.home.grow_old()
            else:
                act(before, stored.project)
        expected, rows = stored.project.warehouse.history(NAME)[-1], stored.rows()
        saved = stored.home.saved()
        steps = _run(stored, task, None)
        stored.home.restore(saved)
        if not steps:
            return ["there was nothing to do"]
        at = random_of(seed, name).randrange(steps)
        if _run(stored, task, at) is not None:
            return [f"the process was not killed at step {at} of {steps}"]
        problems = verify(stored.home.store())
        if stored.rows() != rows:
            problems.append(f"rows are lost or others after step {at} of {steps}")
        act("gc", stored.project)
        act("compact", stored.project)
        # The images of the last night are gone, those of the last evaluation are not.
        for number in range(NIGHTS - 1, NIGHTS + 2):
            for part in ("p", "q"):
                path = stored.images / part / f"{number}.png"
                write_image(path, seed=10 * number + ord(part))
        evaluation, n_new = stored.score()
        if (evaluation.diversity_score, n_new) != (expected.diversity_score, 0):
            problems.append(f"{n_new} images were embedded again after step {at} of {steps}")
        return problems + verify(stored.home.store())


def _run(stored: Stored, task: str, kill_at: int | None) -> int | None:
    """Do it in a process of its own; how many steps it took, None if it was killed."""
    home = stored.home
    told = {
        "task": task,
        "kill_at": kill_at,
        "results": str(stored.project.settings.results_folder),
        "folder": str(home.root) if isinstance(home, DiskHome) else None,
        "uri": home.uri if isinstance(home, BucketHome) else None,
        "options": home.options if isinstance(home, BucketHome) else None,
        "cache": str(home.cache) if isinstance(home, BucketHome) else None,
    }
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--victim", json.dumps(told)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        return None
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])


def victim(told: dict[str, Any]) -> None:
    """What runs in the process that is killed: it kills itself before a step."""
    steps, kill_at = 0, told["kill_at"]

    def step() -> None:
        nonlocal steps
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

    if told["folder"] is not None:
        store = Store(Folder(Path(told["folder"])))

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.utime", "os.mkdir")
            if event == "open" and isinstance(arguments[2], int):
                changes = bool(arguments[2] & os.O_CREAT)
            if changes and str(arguments[0]).startswith(told["folder"]):
                step()

        sys.addaudithook(watch)
    else:
        import obstore

        store = Store(Bucket(told["uri"], told["options"], Cache(Path(told["cache"]), 10**9)))

        def watched(call: Callable[..., Any]) -> Callable[..., Any]:
            def calling(*arguments: Any, **options: Any) -> Any:
                step()
                return call(*arguments, **options)

            return calling

        copy, delete = watched(obstore.copy), watched(obstore.delete)

        def rename(bucket: Any, name: str, new: str) -> None:
            copy(bucket, name, new)
            delete(bucket, name)

        obstore.put, obstore.delete = watched(obstore.put), delete  # type: ignore[assignment]
        obstore.rename = rename  # type: ignore[assignment]
    results = Path(told["results"])
    settings = Settings(results=results, keep=KEEP)
    act(told["task"], Project(settings, store, Warehouse(results / "visdiv.duckdb")))
    print(steps)


def rounds_of(_: Path, seed: int, rounds: int = ROUNDS) -> list[Round]:
    """So many rounds, of each task on a disk and in a bucket in turn."""
    kinds = [(kind, task) for task in TASKS for kind in ("disk", "bucket")]
    played = []
    for number in range(rounds):
        kind, task = kinds[number % len(kinds)]
        name = f"{task}, {kind}, {number:03}"

        def one(folder: Path, kind: str = kind, task: str = task, name: str = name) -> list[str]:
            return play(kind, task, seed, name, folder)

        played.append(Round(name, one))
    return played


if __name__ == "__main__":
    if sys.argv[1:2] == ["--victim"]:
        victim(json.loads(sys.argv[2]))
    else:
        module = "visdiv_assets_tests.campaigns.cleanups"
        sys.exit(main(module, str(__doc__), rounds_of))
