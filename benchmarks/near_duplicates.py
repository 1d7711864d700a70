"""Near-duplicates among a million embeddings: how long, in how much memory, and beside what.

    .venv/bin/python -m benchmarks.near_duplicates                      # a million, some 15 minutes
    .venv/bin/python -m benchmarks.near_duplicates --rows 100000 --methods exact,index

Rows are convex mixtures of two of 4,446 real SSCD embeddings plus noise, of unit length, float16 as
in the store; 1 % of them are near-copies, made at similarities of 0.85 to 0.99 to another row.
Flat search by FAISS and the naive loop in NumPy are measured with a slice of the rows, as two
threads do it, and extrapolated to all pairs. Beside the time by the clock stands that of all
processors, which other programs on the machine disturb less: half of it is what two threads need.
"""

import argparse
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.pairs import Method, Pairs, Similarities, similar_pairs

ICONS = Path(__file__).parents[1] / "visdiv_assets_tests/data/embeddings_icons.npy"
DIMENSION, BLOCK, NOISE = 512, 8192, 0.02
COPIES = 0.01


def make_rows(count: int, seed: int = 0) -> tuple[NDArray[np.float16], Pairs]:
    """Rows, and which of them (second) are near-copies of which (first)."""
    rng = np.random.default_rng(seed)
    icons = np.load(ICONS).astype(np.float32)
    rows = np.empty((count, DIMENSION), dtype=np.float16)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        first, second = rng.integers(len(icons), size=(2, size))
        weight = rng.uniform(0.3, 0.7, (size, 1)).astype(np.float32)
        noise = NOISE * rng.standard_normal((size, DIMENSION), dtype=np.float32)
        made = weight * icons[first] + (1 - weight) * icons[second] + noise
        rows[begin : begin + size] = made / np.linalg.norm(made, axis=1, keepdims=True)
    originals, copies = np.split(rng.permutation(count)[: 2 * int(COPIES * count)], 2)
    for at in range(0, len(copies), BLOCK):
        base = rows[originals[at : at + BLOCK]].astype(np.float32)
        base /= np.linalg.norm(base, axis=1, keepdims=True)
        other = rng.standard_normal(base.shape, dtype=np.float32)
        other -= np.sum(other * base, axis=1, keepdims=True) * base
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        cosine = rng.uniform(0.85, 0.99, (len(base), 1)).astype(np.float32)
        rows[copies[at : at + BLOCK]] = cosine * base + np.sqrt(1 - cosine**2) * other
    return rows, np.sort(np.stack([originals, copies], axis=1), axis=1)


class Memory:
    """Peak resident memory of this process while it is watched, ten looks a second."""

    def __enter__(self) -> "Memory":
        self.peak, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.peak = max(self.peak, pages * resource.getpagesize())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def line(what: str, wall: float, processor: float, note: str) -> None:
    """One line of the table."""
    print(f"{what:<34}{wall:>9,.0f} s {processor:>9,.0f} s   {note}", flush=True)


def timed(act: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, seconds by the clock, and seconds of all processors."""
    wall, processor = time.perf_counter(), time.process_time()
    result = act()
    return result, time.perf_counter() - wall, time.process_time() - processor


def measure(
    rows: NDArray[np.float16], planted: Pairs, threshold: float, method: Method
) -> tuple[Pairs, float]:
    """Find pairs, print what it took, and how many planted copies were found."""
    kept: list[Pairs] = []

    def keep(pairs: Pairs, _: Similarities) -> None:
        kept.append(pairs)

    began, busy, told = time.perf_counter(), time.process_time(), [0.0]

    def progress(done: int, total: int) -> None:
        seconds = time.perf_counter() - began
        if seconds > told[0] + 30:
            told[0] = seconds
            spent = time.process_time() - busy
            text = f"{method}: {done / total:.1%} after {seconds:,.0f} s, processors {spent:,.0f} s"
            print(f"    {text}", file=sys.stderr)

    with Memory() as memory:
        found, wall, processor = timed(
            lambda: similar_pairs(
                rows, threshold, method=method, on_pairs=keep, on_progress=progress
            )
        )
    pairs = np.concatenate([np.empty((0, 2), np.int64), *kept])
    base, copy = rows[planted[:, 0]].astype(np.float64), rows[planted[:, 1]].astype(np.float64)
    cosine = np.sum(base * copy, axis=1)
    cosine /= np.linalg.norm(base, axis=1) * np.linalg.norm(copy, axis=1)
    due = planted[cosine >= threshold + 1e-6]
    share = np.isin(_code(due, len(rows)), _code(pairs, len(rows))).mean()
    note = (
        f"{found.count:,} pairs, {share:.2%} of {len(due):,} planted copies, "
        f"recall {found.recall:.4f}, peak memory {memory.peak / 1e9:.2f} GB"
    )
    line(f"visdiv {threshold}, {method} → {found.method}", wall, processor, note)
    return pairs, wall


def _code(pairs: Pairs, count: int) -> NDArray[np.int64]:
    return pairs[:, 0] * count + pairs[:, 1]


def describe(what: str, rows: NDArray[np.float16]) -> None:
    """How alike rows are to each other, and how much their leading directions hold."""
    points = rows[:: max(1, len(rows) // 4000)].astype(np.float64)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    similarities = (points @ points.T)[np.triu_indices(len(points), 1)]
    held = np.linalg.eigvalsh(points.T @ points)[::-1] / len(points)
    quantiles = np.quantile(similarities, [0.5, 0.99, 0.9999])
    print(
        f"{what:<12}similarity of two rows: median {quantiles[0]:.2f}, 99 % {quantiles[1]:.2f}, "
        f"99.99 % {quantiles[2]:.2f}; 64 directions hold {held[:64].sum():.0%}"
    )


def flat_search(rows: NDArray[np.float16], threshold: float) -> None:
    """FAISS's flat index of a slice, asked for each row of the slice."""
    points = rows[: min(len(rows), 20_000)].astype(np.float32)
    index = faiss.IndexFlatIP(points.shape[1])
    index.add(points)
    _, wall, processor = timed(lambda: index.range_search(points, threshold))
    factor = (len(rows) / len(points)) ** 2
    note = (
        f"extrapolated ×{factor:,.0f} from {len(points):,} rows; needs {4 * rows.size / 1e9:.1f} GB"
    )
    line("FAISS IndexFlatIP.range_search", wall * factor, processor * factor, note)


def naive_loop(rows: NDArray[np.float16], threshold: float) -> None:
    """Each row with all later ones, a product of matrix and vector at a time."""
    points = rows.astype(np.float32) if len(rows) <= 100_000 else rows[:100_000].astype(np.float32)
    asked = 100

    def loop() -> None:
        for row in range(asked):
            np.flatnonzero(points[row + 1 :] @ points[row] >= threshold)

    _, wall, processor = timed(loop)
    compared = asked * len(points)
    factor = len(rows) * (len(rows) - 1) / 2 / compared
    note = f"extrapolated ×{factor:,.0f} from {asked} rows against {len(points):,}"
    line("NumPy, row by row", wall * factor, processor * factor, note)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--methods", default="exact,index")
    arguments = parser.parse_args()
    count, threshold = arguments.rows, arguments.threshold
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, ", end="")
    print(f"NumPy {np.__version__}, FAISS {faiss.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"{count:,} × {DIMENSION}, pairs at {threshold}")
    rows, planted = make_rows(count)
    describe("real rows", np.load(ICONS))
    describe("made rows", rows)
    print(f"\n{'':<34}{'clock':>11} {'processors':>11}")
    flat_search(rows, threshold)
    naive_loop(rows, threshold)
    truth: Pairs | None = None
    for method in arguments.methods.split(","):
        pairs, _ = measure(rows, planted, threshold, method)
        if method == "exact":
            truth = pairs
        elif truth is not None and len(truth):
            share = np.isin(_code(truth, count), _code(pairs, count)).mean()
            print(f"{'':4}found {share:.4%} of the {len(truth):,} pairs of the exact method")


if __name__ == "__main__":
    main()
