"""Evaluating a small dataset beside many millions of keys of others, and looking keys up.

    .venv/bin/python -m benchmarks.key_index [--millions 20] [--rounds 5]

The demo's photographs are evaluated in a store of their own and in one that also holds segments of
other datasets: random keys, and rows that nobody reads. The int8 model embeds what is new. Each
step runs in a process of its own, whose peak memory is its own. Before the look-up, the system is
told to forget the files. "All keys in memory" is what versions up to 0.2 did in every evaluation.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.made_up import DIMENSION, machine, peak_megabytes, random_keys
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.files import writing
from visdiv_assets.store.index import KEY_BYTES, Keys
from visdiv_assets.store.key_index import RUNS_FOLDER
from visdiv_assets.store.objects import write_atomically
from visdiv_assets.store.segments import SEGMENT_ROWS
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate

PHOTOS = sorted((Path(__file__).parents[1] / "examples/demo/photos").glob("*.jpg"))
SOUGHT = 100_000


def keys_of(number: int) -> Keys:
    """The keys of a segment of others."""
    return random_keys(SEGMENT_ROWS, seed=number)


def write_others(folder: Path, n_segments: int) -> None:
    """Segments of others, whose rows take no place on disk."""
    for number in range(n_segments):
        keys = pa.Array.from_buffers(
            pa.binary(KEY_BYTES), SEGMENT_ROWS, [None, pa.py_buffer(keys_of(number).tobytes())]
        )
        flat = pa.array(np.zeros(SEGMENT_ROWS, dtype=np.bool_))
        with (folder / f"{number:032x}.npy").open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (SEGMENT_ROWS, DIMENSION)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + SEGMENT_ROWS * DIMENSION * 2)
        table = pa.table({"content_key": keys, "flat": flat})
        write_atomically(folder / f"{number:032x}.parquet", writing(table))


def sought_keys(n_segments: int) -> Keys:
    """Keys to look up: one half is known, in all segments alike, the other is not."""
    rng = np.random.default_rng(0)
    of_each = np.bincount(rng.integers(n_segments, size=SOUGHT // 2), minlength=n_segments)
    known = [keys_of(number)[:count].copy() for number, count in enumerate(of_each)]
    return rng.permutation(np.concatenate([*known, random_keys(SOUGHT // 2, seed=10**9)]))


def all_keys_in_memory(store: Store, model_id: str) -> None:
    """What versions up to 0.2 did: read the keys of all segments, and sort them."""
    found = [store.segment_keys(model_id, name) for name in store.segment_names(model_id)]
    keys = np.concatenate([each[0] for each in found if each is not None])
    sizes = [len(each[0]) for each in found if each is not None]
    segment = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    row = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    flat = np.concatenate([each[1] for each in found if each is not None])
    order = np.argsort(keys, kind="stable")
    keys, _ = keys[order], (segment[order], row[order], flat[order])
    np.frombuffer(keys.tobytes(), dtype=">u8")[::2].astype(np.uint64)


def do(step: str, root: Path, images: Path, n_segments: int) -> None:
    """One step, measured; prints its seconds and its peak memory."""
    store, embedder = Store(root), SSCDEmbedder(ONNX_CHECKPOINT)
    model_id = embedder.model_id
    if step == "look up":
        keys = sought_keys(n_segments)
        for path in (root / "embeddings" / model_id / RUNS_FOLDER).iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    if step == "evaluate":
        warehouse = Warehouse(root / "visdiv.duckdb")
        evaluate("photos", DirectorySource(images), embedder, store, warehouse)
    elif step == "all keys in memory":
        all_keys_in_memory(store, model_id)
    else:
        index = store.key_index(model_id)
        if step == "look up":
            assert (index.find(keys)[0] >= 0).sum() == SOUGHT // 2
    print(json.dumps([time.perf_counter() - started, peak_megabytes()]))


def measured(step: str, root: Path, images: Path, n_segments: int) -> tuple[float, float]:
    """Seconds and peak memory of a step, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.key_index", "--do", step, str(root), str(images)]
    command.append(str(n_segments))
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def main() -> None:
    """Build both stores, and measure each step in both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--do", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.do:
        step, root, images, n_segments = chosen.do
        do(step, Path(root), Path(images), int(n_segments))
        return
    n = round(chosen.millions * 1e6 / SEGMENT_ROWS)
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = folder / "images"
        shutil.copytree(PHOTOS[0].parent, images)
        alone, shared = folder / "alone", folder / "shared"
        measured("evaluate", alone, images, n)
        shutil.copytree(alone, shared)
        [segments] = (shared / "embeddings").iterdir()
        write_others(segments, n)

        def show(what: str, *figures: tuple[float, float]) -> None:
            told = [f"{seconds:8.2f} s {megabytes:6.0f} MB" for seconds, megabytes in figures]
            print(f"{what:<44}", *told, flush=True)

        print(f"{n * SEGMENT_ROWS:,} keys of others in {n:,} segments")
        show("all keys in memory", measured("all keys in memory", shared, images, n))
        # A new image, so that the index is needed: it is made of the segments.
        (images / "new.jpg").write_bytes(PHOTOS[0].read_bytes() + b"new")
        measured("evaluate", alone, images, n)
        show("one new image, and no runs yet", measured("evaluate", shared, images, n))
        show("opening the index", measured("open", shared, images, n))
        show(f"looking up {SOUGHT:,} keys, cold", measured("look up", shared, images, n))

        def compared(what: str, change: bool) -> None:
            found: dict[Path, list[tuple[float, float]]] = {alone: [], shared: []}
            for number in range(chosen.rounds):
                if change:
                    new = PHOTOS[number].read_bytes() + b"another"
                    (images / f"new{number}.jpg").write_bytes(new)
                for root, figures in found.items():
                    figures.append(measured("evaluate", root, images, n))
            medians = [
                tuple(statistics.median(values) for values in zip(*figures, strict=True))
                for figures in found.values()
            ]
            more = tuple(there - own for own, there in zip(*medians, strict=True))
            show(what, *medians, more)

        print(f"{'':<44} {'alone':>19} {'beside others':>19} {'more':>19}")
        compared("213 images, unchanged", change=False)
        compared("213 images, and one new", change=True)


if __name__ == "__main__":
    main()
