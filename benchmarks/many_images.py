"""Planning, embedding and merging of many images in tar shards: time and memory of each step.

    .venv/bin/python -m benchmarks.many_images [--images 10000 100000] [--processes 2]

Small JPEGs, each with bytes of its own, are read, hashed and decoded for real. A stub takes 1 ms
for an image in place of the model. Each step is a process of its own; its memory is the most that
was resident at any time, decoders not counted.
"""

import argparse
import io
import json
import multiprocessing
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.embedding.work import UNIT_IMAGES, share
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate, list_dataset
from visdiv_assets.workflows.plan import embed_units, make_plan, plan_of, planned_images

NAME, A_SHARD, SIDE, STUB_SECONDS = "many", 10_000, 16, 0.001
STEPS = ("plan", "embed", "merge")


class Stub:
    """Takes its time; vectors are made of the pixels."""

    model_id, decoding, calls_at_once, batch_size = "stub", Decoding(), 1, 64

    def embed(self, pixels: Any) -> Any:
        """Shape (B, 48), unit vectors."""
        time.sleep(STUB_SECONDS * len(pixels))
        small = np.asarray(pixels)[:, 40::80, 40::80].reshape(len(pixels), -1) / 255 - 0.5
        return (small / np.linalg.norm(small, axis=1, keepdims=True)).astype(np.float32)


def write_shard(path: Path, first: int, count: int) -> None:
    """Pictures of noise, each another."""
    with tarfile.open(path, "w") as archive:
        for seed in range(first, first + count):
            noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(noise).save(file, "JPEG")
            member = tarfile.TarInfo(f"{seed:09}.jpg")
            member.size = file.tell()
            file.seek(0)
            archive.addfile(member, file)


def step(what: str, folder: Path) -> None:
    """One step, in this process; prints its seconds and its memory in MiB."""
    begin = time.perf_counter()
    source, store = open_source(f"{folder}/*.tar"), Store(folder / "store")
    if what == "plan":
        listed = list_dataset(NAME, source, store)
        make_plan(NAME, listed, source, Stub(), store, lambda _: UNIT_IMAGES)
    elif what == "merge":
        images = planned_images(plan_of(NAME, store), store)
        warehouse = Warehouse(folder / "visdiv.duckdb")
        _, embedded = evaluate(NAME, source, Stub(), store, warehouse, manifest=images)
        assert embedded.n_new == 0
    else:
        plan = plan_of(NAME, store)
        embed_units(plan, share(what, len(plan.units)), source, Stub(), store)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([time.perf_counter() - begin, memory]))


def measured(folder: Path, *steps: str) -> tuple[float, float]:
    """Seconds and MiB of steps beside each other, each in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.many_images", "--folder", str(folder), "--step"]
    begin = time.perf_counter()
    started = [
        subprocess.Popen([*command, each], stdout=subprocess.PIPE, text=True)  # noqa: S603
        for each in steps
    ]
    told = [json.loads(process.communicate()[0]) for process in started]
    return time.perf_counter() - begin, max(memory for _, memory in told)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    arguments.add_argument("--processes", type=int, default=2)
    for name in ("--folder", "--step"):
        arguments.add_argument(name, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.step:
        step(chosen.step, Path(chosen.folder))
        return
    print("| images | step | s | µs/image | MiB |\n|--:|---|--:|--:|--:|")
    for count in chosen.images:
        with TemporaryDirectory() as name, multiprocessing.Pool() as pool:
            folder = Path(name)
            shards = [
                (folder / f"{at:09}.tar", at, min(A_SHARD, count - at))
                for at in range(0, count, A_SHARD)
            ]
            pool.starmap(write_shard, shards)
            shares = [f"{at}/{chosen.processes}" for at in range(1, chosen.processes + 1)]
            for what in STEPS:
                seconds, memory = measured(folder, *(shares if what == "embed" else [what]))
                print(
                    f"| {count:,} | {what} | {seconds:.1f} | {seconds / count * 1e6:.0f} "
                    f"| {memory:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
