"""Units of work whose workers are killed: on Ray, by hand, and in runs of Dagster.

    python -m visdiv_assets_tests.campaigns.workers

A round embeds a dataset in units, in a store on a disk or in a bucket, and sends SIGKILL ten times
to whoever is at work: a worker on Ray, the process that drives them, a process with a share of its
own; what was killed is started again. Of a run of Dagster, with the real model, all processes
are killed once. In the end, the evaluation must be that of one process that was never disturbed, to
the last bit, and no content may have two rows.

Here: what is killed, judging. Not here: playing rounds (`rounds.py`).
"""

import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from visdiv_assets.embedding.work import share
from visdiv_assets.settings.model import RayEngine
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.bucket import Bucket
from visdiv_assets.store.cache import Cache
from visdiv_assets.store.plans import parts_of, read_plan
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.engine import Job
from visdiv_assets.workflows.evaluate import evaluate, list_dataset
from visdiv_assets.workflows.plan import embed_units, make_plan, plan_of, planned_images
from visdiv_assets.workflows.ray_engine import Ray
from visdiv_assets_tests.campaigns.kills import family
from visdiv_assets_tests.campaigns.rounds import Round, main, random_of
from visdiv_assets_tests.dagster_dev import ROOT, project_environment
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image
from visdiv_assets_tests.store.homes import BucketHome, DiskHome, Home, homes

NAME = "birds"
IMAGES, UNIT, SEGMENT_ROWS = 240, 12, 4
KILLS, ROUNDS = 10, 24
KINDS = ("ray, disk", "by hand, disk", "ray, bucket", "by hand, bucket", "dagster run, disk")
# Nothing is decided by it; it ends a round that would never end.
PATIENCE = 300.0

PHOTOS = ROOT / "examples/demo/photos"
PHOTOS_USED = 48
SETTINGS = """\
store: store
engine: {engine}
datasets:
  birds: {{source: photos, watch: false, schedule: false}}
"""


class SlowEmbedder(FakeEmbedder):
    """Takes its time, so that there is something to kill; segments are short."""

    def __init__(self) -> None:
        super().__init__(batch_size=SEGMENT_ROWS)
        import visdiv_assets.store.segments

        visdiv_assets.store.segments.SEGMENT_ROWS = SEGMENT_ROWS

    def embed(self, pixels: Any) -> Any:
        time.sleep(0.2)
        return super().embed(pixels)


# --- in the processes that are killed ---


def store_at(told: dict[str, Any]) -> Store:
    """The store that the campaign has told of."""
    if told["folder"]:
        return Store(Path(told["folder"]))
    return Store(Bucket(told["uri"], told["options"], Cache(Path(told["cache"]), 10**9)))


def victim(told: dict[str, Any]) -> None:
    """Drive workers on Ray to the end, or embed a share of a plan."""
    images, store = Path(told["images"]), store_at(told)
    if told["share"]:
        plan = plan_of(NAME, store)
        numbers = share(told["share"], len(plan.units))
        embed_units(plan, numbers, DirectorySource(images), SlowEmbedder(), store)
        return
    job = Job(SlowEmbedder, partial(DirectorySource, images), partial(store_at, told))
    engine = Ray(RayEngine(address=told["address"], workers=2, unit_images=UNIT), job)
    warehouse = Warehouse(Path(told["results"]) / "visdiv.duckdb")
    evaluate(NAME, DirectorySource(images), SlowEmbedder(), store, warehouse, engine=engine)


# --- killing ---


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def workers_on_ray() -> list[int]:
    """The actors of this campaign's Ray."""
    found = []
    for pid in family(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_Worker"):
                found.append(pid)
    return sorted(found)


class Victims:
    """Processes that are started again until they have done what they were to do."""

    def __init__(self, told: list[dict[str, Any]], log: Path) -> None:
        self._told, self._log = told, log
        self.processes = [self._start(each) for each in told]

    def _start(self, told: dict[str, Any]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "visdiv_assets_tests.campaigns.workers"]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*command, "--victim", json.dumps(told)],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def are_done(self) -> bool:
        """Start again what was killed; whether all have ended well.

        Raises:
            RuntimeError: one has failed by itself.
        """
        for at, process in enumerate(self.processes):
            code = process.poll()
            if code == -signal.SIGKILL:
                self.processes[at] = self._start(self._told[at])
            elif code:
                raise RuntimeError(f"exit code {code}: {self._log.read_text()[-2000:]}")
        return all(process.returncode == 0 for process in self.processes)

    def kill_all(self) -> None:
        """The end, whatever has happened."""
        for process in self.processes:
            kill(process.pid)
            process.wait()


def disturb(victims: Victims, rng: random.Random, *, on_ray: bool) -> int:
    """Kill at random moments until all is done; how often something was killed."""
    kills, next_at, deadline = 0, time.monotonic() + 2, time.monotonic() + PATIENCE
    while not victims.are_done():
        if time.monotonic() > deadline:
            raise RuntimeError("it does not come to an end")
        if kills < KILLS and time.monotonic() >= next_at:
            drivers = [process.pid for process in victims.processes if process.poll() is None]
            workers = workers_on_ray() if on_ray and rng.random() < 0.7 else []
            if targets := workers or drivers:
                kill(rng.choice(targets))
                kills += 1
            next_at = time.monotonic() + rng.uniform(0.5, 3.5)
        time.sleep(0.05)
    return kills


# --- judging ---


def results(evaluation: Evaluation, store: Store) -> dict[str, object]:
    """All that must be the same to the last bit."""
    sample = store.read_sample(*evaluation.where)
    table = store.read_index(*evaluation.where).table.to_pylist()
    rows = {
        each["image_id"]: store.rows(evaluation.model_id, each["segment"])[each["row"]].tobytes()
        for each in table
        if each["segment"] is not None
    }
    moments = sample.moments
    return {
        "evaluation": replace(
            evaluation, evaluation_id="", number=0, evaluated_at=None, seconds=0.0, run_id=None
        ),
        "moments": (moments.n, moments.total.tobytes(), moments.outer.tobytes()),
        "sample": (sample.keys.tobytes(), sample.rows.tobytes(), sample.counts.tobytes()),
        "contents": {each["image_id"]: each["content_key"] for each in table},
        "failures": {each["image_id"]: each["reason"] for each in table},
        "rows": rows,
    }


def contents_with_two_rows(store: Store) -> int:
    """How many contents were committed more often than once."""
    keys: list[bytes] = []
    for model_id in store.model_ids():
        for name in store.segment_names(model_id):
            found = store.segment_keys(model_id, name)
            keys += found[0].tolist() if found else []
    return len(keys) - len(set(keys))


def judge(evaluation: Evaluation, store: Store, expected: dict[str, object]) -> list[str]:
    """What is wrong with what came of it."""
    found = results(evaluation, store)
    problems = [f"another {what}" for what in expected if found[what] != expected[what]]
    if twice := contents_with_two_rows(store):
        problems.append(f"{twice} contents have two rows")
    if read_plan(store, NAME) is not None or parts_of(store, NAME):
        problems.append("the plan is still there")
    return problems


# --- rounds ---


class Campaign:
    """What the rounds share: images, what one process makes of them, and a Ray."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def images(self) -> Path:
        folder = self.folder / "images"
        for seed in range(IMAGES):
            write_image(folder / f"{seed:03}.png", seed)
        (folder / "broken.png").write_bytes(b"I am not an image")
        return folder

    @functools.cached_property
    def undisturbed(self) -> dict[str, object]:
        store, source = Store(self.folder / "alone"), DirectorySource(self.images)
        warehouse = Warehouse(self.folder / "alone.duckdb")
        evaluation, _ = evaluate(NAME, source, FakeEmbedder(), store, warehouse)
        return results(evaluation, store)

    @functools.cached_property
    def address(self) -> str:
        os.environ["PYTHONPATH"] = str(ROOT)  # of the workers
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback only
        import ray

        context = ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
        )
        return str(context.address_info["gcs_address"])

    def play(self, kind: str, seed: int, name: str, folder: Path) -> list[str]:
        """One round."""
        rng = random_of(seed, name)
        what, _, where = kind.partition(", ")
        if what == "dagster run":
            return kill_a_run(folder, rng, self.of_photos)
        with homes(where) as make:
            home = make(folder)
            told = [self._told(home, folder, share) for share in _shares(what)]
            if what == "ray":
                told = [{**each, "address": self.address} for each in told]
            else:
                store, source = home.store(), DirectorySource(self.images)
                listed = list_dataset(NAME, source, store)
                make_plan(NAME, listed, source, FakeEmbedder(), store, lambda _: UNIT)
            victims = Victims(told, folder / "log.txt")
            try:
                kills = disturb(victims, rng, on_ray=what == "ray")
            finally:
                victims.kill_all()
            print(f"{kills} kills … ", end="", flush=True)
            store = home.store()
            warehouse = Warehouse(folder / "results" / "visdiv.duckdb")
            evaluation = self._merged(store, warehouse) if what == "by hand" else None
            [evaluation] = [evaluation] if evaluation else warehouse.newest_evaluations([NAME])
            return judge(evaluation, store, self.undisturbed)

    def _told(self, home: Home, folder: Path, share: str) -> dict[str, Any]:
        on_disk = isinstance(home, DiskHome)
        bucket = {"uri": home.uri, "options": home.options} if isinstance(home, BucketHome) else {}
        return {
            "images": str(self.images),
            "share": share,
            "folder": str(home.root) if on_disk else None,
            "cache": str(folder / f"cache {share.replace('/', ' of ')}"),
            "results": str(folder / "results"),
            **bucket,
        }

    def _merged(self, store: Store, warehouse: Warehouse) -> Evaluation:
        from visdiv_assets.store.plans import forget_plan

        plan, source = plan_of(NAME, store), DirectorySource(self.images)
        images = planned_images(plan, store)
        evaluation, embedded = evaluate(
            NAME, source, FakeEmbedder(), store, warehouse, manifest=images
        )
        assert embedded.n_new == 0
        forget_plan(store, plan)
        return evaluation

    @functools.cached_property
    def of_photos(self) -> dict[str, object]:
        """What one undisturbed run makes of the photographs."""
        folder = self.folder / "photos alone"
        folder.mkdir()
        run = Run(folder, "local")
        run.start().wait(PATIENCE)
        return run.results()


def _shares(what: str) -> tuple[str, ...]:
    return ("1/2", "2/2") if what == "by hand" else ("",)


class Run:
    """A run of Dagster's in a project of its own."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder = folder
        (folder / "photos").mkdir()
        for path in sorted(PHOTOS.glob("*.jpg"))[:PHOTOS_USED]:
            shutil.copy2(path, folder / "photos")
        (folder / "visdiv.yaml").write_text(SETTINGS.format(engine=engine))
        shutil.copy(ROOT / "dagster.yaml", folder)
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            instance.add_dynamic_partitions("datasets", [NAME])

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def start(self) -> "subprocess.Popen[bytes]":
        command = [Path(sys.executable).with_name("dagster"), "job", "execute"]
        tags = json.dumps({"dagster/partition": NAME})
        options = ["-m", "visdiv_assets.definitions", "-j", "evaluate_dataset", "--tags", tags]
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*command, *options],
                cwd=self.folder,
                env={**project_environment(self.folder), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def results(self) -> dict[str, object]:
        warehouse = Warehouse(self.folder / "store/visdiv.duckdb")
        [evaluation] = warehouse.newest_evaluations([NAME])
        return results(evaluation, self.store)


def kill_a_run(folder: Path, rng: random.Random, expected: dict[str, object]) -> list[str]:
    """Kill all processes of a run but Ray's, and run it once more."""
    run = Run(folder, "{ray: {workers: 2, unit_images: 4}}")
    process, wanted = run.start(), rng.randrange(1, PHOTOS_USED // 4)
    deadline = time.monotonic() + PATIENCE
    while len([*(folder / "store").glob("indexes/**/*+*.parquet")]) < wanted:
        if process.poll() is not None or time.monotonic() > deadline:
            break  # whoever is killed too late is killed in vain
        time.sleep(0.02)
    for pid in family(process.pid):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if not (command.startswith(b"ray::") or b"/ray/" in command):
                kill(pid)
    process.wait()
    print(f"1 kill after {wanted} units … ", end="", flush=True)
    with dg.DagsterInstance.from_config(str(folder)) as instance:  # as dead_run_sensor does
        for each in instance.get_runs():
            instance.event_log_storage.free_concurrency_slots_for_run(each.run_id)
    if code := run.start().wait(PATIENCE):
        return [f"exit code {code}: {(folder / 'log.txt').read_text()[-2000:]}"]
    [evaluation] = Warehouse(folder / "store/visdiv.duckdb").newest_evaluations([NAME])
    return judge(evaluation, run.store, expected)


def rounds_of(shared: Path, seed: int, count: int = ROUNDS) -> list[Round]:
    """So many rounds, of each kind in turn."""
    campaign = Campaign(shared)

    def rounds() -> Iterator[Round]:
        for number, kind in zip(range(count), itertools.cycle(KINDS), strict=False):
            name = f"{kind}, {number:03}"
            play: Callable[[Path], list[str]] = partial(campaign.play, kind, seed, name)
            yield Round(name, play)

    return list(rounds())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--victim"]:
        victim(json.loads(sys.argv[2]))
    else:
        about = (__doc__ or "").partition("\n\nHere")[0]
        sys.exit(main("visdiv_assets_tests.campaigns.workers", about, rounds_of))
