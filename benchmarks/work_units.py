"""Two processes or two workers on Ray that share a plan, beside one without, with the int8 model.

    .venv/bin/python -m benchmarks.work_units [--images 1000] [--latency 50]

Twice: with files on the disk, where the CPUs are the limit; and with a source that gives one image
after the other, each after some milliseconds, where waiting is, unless the CPUs take longer. Of
two, each has half of the CPUs. Times are of whole processes, from their start to their end; of
Ray, from the moment in which its first worker takes a unit, and what it took to start is printed.
All must give the same moments.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.work import share
from visdiv_assets.settings.model import RayEngine
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.source import Read
from visdiv_assets.store.plans import Plan
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.engine import Job
from visdiv_assets.workflows.evaluate import embed_dataset, evaluate, list_dataset
from visdiv_assets.workflows.plan import embed_units, make_plan, plan_of, planned_images
from visdiv_assets.workflows.ray_engine import Ray

UNIT = 250
ON_DISK, WAITING = "files on the disk", "ms for each image"
TARGETS = {ON_DISK: 0.9, WAITING: 1.8}
ALL, RESULTS = "all", "visdiv.duckdb"


class Waiting(DirectorySource):
    """Gives one image after the other, each after some time."""

    def __init__(self, files: Path, seconds: float) -> None:
        super().__init__(files)
        self._seconds = seconds

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the given order."""
        for at, image_id in enumerate(image_ids):
            time.sleep(self._seconds)
            yield Read(at, self.place.read(image_id))


def source_of(files: Path, name: str) -> DirectorySource:
    """Where the images are."""
    if name == ON_DISK:
        return DirectorySource(files)
    return Waiting(files, int(name.removesuffix(WAITING)) / 1000)


def work(files: Path, store: Store, name: str, text: str) -> None:
    """Embed one share, or all of it without units: what each process does."""
    source = source_of(files, name)
    if text == ALL:
        embed_dataset("files", list_dataset("files", source, store), source, SSCDEmbedder(), store)
        return
    plan = plan_of("files", store)
    embed_units(plan, share(text, len(plan.units)), source, SSCDEmbedder(), store)


def alone(files: Path, folder: Path, name: str) -> tuple[float, bytes]:
    """Images a second of the engine `local`, and the moments of all."""
    seconds = in_processes(files, folder, name, [ALL])
    evaluation, _ = evaluate(
        "files", source_of(files, name), SSCDEmbedder(), Store(folder), Warehouse(folder / RESULTS)
    )
    moments = Store(folder).read_sample(*evaluation.where).moments
    return moments.n / seconds, moments.outer.tobytes()


def timed(files: Path, folder: Path, name: str, processes: int) -> tuple[float, bytes]:
    """Images a second of so many processes that share a plan, and the moments of all."""
    plan = planned(files, folder, name)
    shares = [f"{k}/{processes}" for k in range(1, processes + 1)]
    seconds = in_processes(files, folder, name, shares)
    return sum(plan.sizes) / seconds, merged(plan, files, folder, name)


def in_processes(files: Path, folder: Path, name: str, shares: Sequence[str]) -> float:
    """The seconds that processes take, from the start of the first to the end of the last."""
    processes = len(shares)
    environment = {**os.environ, "VISDIV_CPUS": str(max(1, usable_cpus() // processes))}
    begin = time.perf_counter()
    started = [
        subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-m", "benchmarks.work_units", "--files", str(files)),
                *("--store", str(folder), "--source", name, "--share", each),
            ],
            env=environment,
        )
        for each in shares
    ]
    if any(process.wait() for process in started):
        raise SystemExit("a process has failed")
    return time.perf_counter() - begin


def on_ray(files: Path, folder: Path, name: str, workers: int) -> tuple[float, bytes, float]:
    """The same of workers on Ray, and the seconds until the first of them took a unit."""
    plan = planned(files, folder, name)
    job = Job(SSCDEmbedder, partial(source_of, files, name), partial(Store, folder))
    settings = RayEngine(workers=workers, cpus=max(1, usable_cpus() // workers))
    begin, began = time.perf_counter(), 0.0

    def on_progress(*_: object) -> None:
        nonlocal began
        began = began or time.perf_counter()

    Ray(settings, job)(plan, on_progress)
    seconds = time.perf_counter() - began
    return sum(plan.sizes) / seconds, merged(plan, files, folder, name), began - begin


def planned(files: Path, folder: Path, name: str) -> Plan:
    """A plan in a new store."""
    store, source = Store(folder), source_of(files, name)
    listed = list_dataset("files", source, store)
    return make_plan("files", listed, source, SSCDEmbedder(), store, lambda _: UNIT)


def merged(plan: Plan, files: Path, folder: Path, name: str) -> bytes:
    """The moments of all images."""
    store = Store(folder)
    images = planned_images(plan, store)
    warehouse = Warehouse(folder / RESULTS)
    evaluation, _ = evaluate(
        "files", source_of(files, name), SSCDEmbedder(), store, warehouse, manifest=images
    )
    return store.read_sample(*evaluation.where).moments.outer.tobytes()


def main() -> int:
    """Measure and print; exit code 1 if moments differ."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=1000)
    arguments.add_argument("--latency", type=int, default=50, help="milliseconds")
    for name in ("--files", "--store", "--source", "--share"):
        arguments.add_argument(name, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.share:
        work(Path(chosen.files), Store(chosen.store), chosen.source, chosen.share)
        return 0
    from benchmarks.gpu import FILE_SIDE, make_files  # PyTorch: seconds, which no process needs

    same = True
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        make_files(folder / "files", chosen.images, FILE_SIDE)
        cpus, load = usable_cpus(), os.getloadavg()[0]
        print(f"{chosen.images:,} photographs, {cpus} CPUs, load before: {load:.1f}")
        for kind in (ON_DISK, f"{chosen.latency} {WAITING}"):
            target = TARGETS[ON_DISK if kind == ON_DISK else WAITING]
            one, moments = alone(folder / "files", folder / f"one {kind}", kind)
            two, again = timed(folder / "files", folder / f"two {kind}", kind, 2)
            ray, of_ray, start = on_ray(folder / "files", folder / f"ray {kind}", kind, 2)
            same &= moments == again == of_ray
            print(f"{kind}: one process {one:.1f} images/s")
            for what, rate in (("two processes", two), ("two workers on Ray", ray)):
                verdict = "met" if rate / one >= target else "MISSED"
                print(
                    f"  {what:18} {rate:5.1f} images/s, {rate / one:.2f} times "
                    f"(target {target}: {verdict})"
                )
            print(f"  Ray took {start:.1f} s to start")
    print("all have the same moments" if same else "the moments DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
