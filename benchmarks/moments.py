"""Moments of 2,000,000 rows from the store, beside a bare product of the same rows in memory.

    .venv/bin/python -m benchmarks.moments [--rows 2000000] [--rounds 3]

Writes a store of float16 rows (1 KB each) into a temporary folder, sums it up as an evaluation
does (index, segments, norms, moments, sample, files), and beside it lets BLAS multiply one float32
matrix of as many rows with itself, which is in memory and needs no reading, converting or
checking: `X.T @ X`, for which NumPy calls SYRK, and the general product GEMM. The matrix is a
million rows at most, multiplied as often as needed, so that it takes no more than 2 GB.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.made_up import (
    DIMENSION,
    MODEL,
    index_of,
    machine,
    manifest_of,
    peak_megabytes,
    random_keys,
    told,
    write_segments,
)
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store.contents import Contents
from visdiv_assets.store.store import Store
from visdiv_assets.workflows.moments import accumulate_moments

SYRK, GEMM = "float32, SYRK: X.T @ X", "float32, GEMM: X.T @ Y"
FROM_STORE = "from the store"
PIECE = 1_000_000  # rows of the matrix in memory: 2 GB


def prepare(store: Store, rows: int) -> None:
    """A dataset of so many images, embedded and indexed."""
    keys, manifest = random_keys(rows), manifest_of(rows)
    write_segments(store, keys)
    store.write_manifest("dataset", manifest)
    store.name_latest("dataset", manifest.fingerprint)
    store.write_index("dataset", MODEL, manifest.fingerprint, index_of(manifest, keys))


def sum_up(root: Path) -> Moments:
    """As an evaluation does, with nothing to start from."""
    for kept in root.glob("moments/*/*/*"):
        kept.unlink()
    store = Store(root)
    fingerprint = store.latest_manifest("dataset").fingerprint
    return accumulate_moments("dataset", MODEL, fingerprint, store).moments


def in_float64(root: Path) -> Moments:
    """The moments of all segments, one after the other, in float64 and nothing else."""
    outer, total, n = np.zeros((DIMENSION, DIMENSION)), np.zeros(DIMENSION), 0
    for path in sorted(root.glob("embeddings/*/*.npy")):
        rows = np.load(path).astype(np.float64)
        outer += rows.T @ rows
        total += rows.sum(axis=0)
        n += len(rows)
    return Moments(n, total, outer)


def peak(root: Path) -> float:
    """Memory that summing up takes in a process of its own, in MB."""
    command = [sys.executable, "-m", "benchmarks.moments", "--peak", str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return float(done.stdout)


class Took(NamedTuple):
    """Seconds on the clock, and seconds of CPUs, which other processes hardly lengthen."""

    wall: float
    cpu: float


def took(work: Callable[[], object], times: float = 1.0) -> Took:
    """Do it once, and say what doing it so many times would take."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(times * (time.perf_counter() - wall), times * (time.process_time() - cpu))


def in_turns(root: Path, rows: int, rounds: int) -> dict[str, list[Took]]:
    """What each way took, for all rows."""
    store, piece = Store(root), min(rows, PIECE)
    fingerprint = store.latest_fingerprint("dataset")
    whole = Contents.of(store.read_index("dataset", MODEL, fingerprint or ""))
    x = whole.read(store, MODEL, slice(0, piece)).astype(np.float32)
    found: dict[str, list[Took]] = {SYRK: [], FROM_STORE: [], GEMM: []}
    for _ in range(rounds):
        found[SYRK].append(took(lambda: x.T @ x, rows / piece))
        found[FROM_STORE].append(took(lambda: sum_up(root)))
    half, other = x[: piece // 2], x[: piece // 2].copy()
    for _ in range(rounds):
        found[GEMM].append(took(lambda: half.T @ other, rows / len(half)))
    return found


def main() -> None:
    """Prepare, then measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        sum_up(arguments.peak)
        print(peak_megabytes())
        return
    print(machine())
    rows = arguments.rows
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "whole"
        prepare(Store(root), rows)
        memory = [peak(root)]
        if rows >= 8 * 4096:
            small = Path(folder) / "half"
            prepare(Store(small), rows // 2)
            memory.insert(0, peak(small))
        sum_up(root)  # warms the page cache
        found = in_turns(root, rows, arguments.rounds)
        moments, exact = sum_up(root), in_float64(root)
    bare = Took(*(statistics.median(each) for each in zip(*found[SYRK], strict=True)))
    print(f"{rows:,} rows of {DIMENSION}")
    for name, measured in found.items():
        wall, cpu = (list(each) for each in zip(*measured, strict=True))
        print(
            f"{name:<26}{told(wall)}   {statistics.median(wall) / bare.wall:.2f} × SYRK   "
            f"{statistics.median(cpu):.2f} s of CPU, {statistics.median(cpu) / bare.cpu:.2f} ×"
        )
    same = moments.outer.tobytes() == exact.outer.tobytes()
    score, reference = diversity(moments).score, diversity(exact).score
    print(
        f"score {score:.9f}, in float64 {reference:.9f}; moments the same to the last bit: {same}"
    )
    sizes = [rows // 2, rows][-len(memory) :]
    told_memory = (
        f"{n:,} rows {megabytes:.0f} MB" for n, megabytes in zip(sizes, memory, strict=True)
    )
    print("peak memory:", ", ".join(told_memory))


if __name__ == "__main__":
    main()
