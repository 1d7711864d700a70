"""Two processes that share a plan, beside one process: images a second, with the int8 model.

    .venv/bin/python -m benchmarks.work_units [--images 1000]

Twice: with files on the disk, where the CPUs are the limit; and with a source that gives one image
after the other, each after 50 ms, where waiting is. Two processes have half of the CPUs each.
Times are of whole processes, from their start to their end. Both ways must give the same moments.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.work import share
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.source import Read
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.plan import embed_units, make_plan, plan_of, planned_images

LATENCY = 0.05
TARGETS = {"files on the disk": 0.9, "50 ms for each image": 1.8}


class Waiting(DirectorySource):
    """Gives one image after the other, each after some time."""

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the given order."""
        for at, image_id in enumerate(image_ids):
            time.sleep(LATENCY)
            yield Read(at, self.place.read(image_id))


def source_of(files: Path, name: str) -> DirectorySource:
    """Where the images are."""
    return DirectorySource(files) if name == next(iter(TARGETS)) else Waiting(files)


def work(files: Path, store: Store, name: str, text: str) -> None:
    """Embed one share: what each process does."""
    plan = plan_of("files", store)
    source = source_of(files, name)
    embed_units(plan, share(text, len(plan.units)), source, SSCDEmbedder(), store)


def timed(files: Path, folder: Path, name: str, processes: int) -> tuple[float, bytes]:
    """Images a second of so many processes, and the moments of all."""
    store, source = Store(folder), source_of(files, name)
    embedder = SSCDEmbedder()
    plan, count = make_plan("files", source, embedder, store, most=50)
    environment = {**os.environ, "VISDIV_CPUS": str(max(1, usable_cpus() // processes))}
    begin = time.perf_counter()
    started = [
        subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-m", "benchmarks.work_units", "--files", str(files)),
                *("--store", str(folder), "--source", name, "--share", f"{k}/{processes}"),
            ],
            env=environment,
        )
        for k in range(1, processes + 1)
    ]
    if any(process.wait() for process in started):
        raise SystemExit("a process has failed")
    seconds = time.perf_counter() - begin
    images = planned_images(plan, store)
    warehouse = Warehouse(folder / "visdiv.duckdb")
    evaluation, _ = evaluate("files", source, embedder, store, warehouse, manifest=images)
    moments = store.read_sample(*evaluation.where).moments
    return count / seconds, moments.outer.tobytes()


def main() -> int:
    """Measure and print; exit code 1 if moments differ."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=1000)
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
        for kind, target in TARGETS.items():
            one, moments = timed(folder / "files", folder / f"one {kind}", kind, 1)
            two, again = timed(folder / "files", folder / f"two {kind}", kind, 2)
            same &= moments == again
            verdict = "met" if two / one >= target else "MISSED"
            bits = "the same" if moments == again else "DIFFERENT"
            print(
                f"{kind:22} one process {one:5.1f} images/s, two {two:5.1f}: {two / one:.2f} times "
                f"(target {target}: {verdict}), {bits} moments"
            )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
