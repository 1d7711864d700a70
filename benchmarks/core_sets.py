"""What core-sets are worth, and what they cost.

    .venv/bin/python -m benchmarks.core_sets quality       # half a minute
    .venv/bin/python -m benchmarks.core_sets speed         # minutes, 2 GB
    .venv/bin/python -m benchmarks.core_sets speed --rows 100000 -k 200 --methods log-det leverage

`quality` compares every method with 20 random selections of the same size, on the real embeddings
of the tests, and writes the table into docs/core-sets.md, between its markers. `speed` chooses
1,000 of 1,000,000 × 512 made-up rows, float16 as the store keeps them, and prints seconds and peak
memory beside plain loops with one pass over all rows for each choice, extrapolated from a few.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from visdiv_assets.similarity.coreset import METHODS, covering_radius, select_diverse_samples
from visdiv_assets.spectral.score import DiversityCalculator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "core-sets.md"
ICONS = ROOT / "visdiv_assets_tests" / "data" / "embeddings_icons.npy"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

DRAWS, SIZES = 20, (50, 200)
PLAIN_STEPS = 5
BLOCK = 8192

Rows = NDArray[np.floating]


def quality() -> None:
    """Measure, print, and put the table into the page."""
    rows = np.load(ICONS)
    score = DiversityCalculator().calculate
    lines = [
        "| k | method | plain score | ÷ random | above random | covering radius | mean distance |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for k in SIZES:
        draws = [
            np.random.default_rng(seed).choice(len(rows), k, replace=False) for seed in range(DRAWS)
        ]
        plain = np.array([score(rows[draw]) for draw in draws])
        radius = np.mean([covering_radius(rows, draw) for draw in draws])
        apart = np.mean([mean_distance(rows, draw) for draw in draws])
        mean, spread = plain.mean(), plain.std(ddof=1)
        lines.append(
            f"| {k} | random, {DRAWS} draws | {mean:.4f} ± {spread:.4f} | 1.00 | "
            f"at most {(plain.max() - mean) / spread:+.1f} s.d. "
            f"| {radius:.3f} | {apart:.3f} |"
        )
        tried: list[tuple[str, dict[str, Any]]] = [(each, {"method": each}) for each in METHODS]
        tried += [
            ("k-centre, trim 0.02", {"method": "k-centre", "trim": 0.02}),
            ("log-det, trim 0.02", {"method": "log-det", "trim": 0.02}),
            (
                "facility-location, weights all 1",
                {"method": "facility-location", "weights": np.ones(len(rows))},
            ),
        ]
        for name, options in tried:
            chosen = select_diverse_samples(rows, k, **options)
            own = score(rows[chosen])
            above = (own - mean) / spread
            lines.append(
                f"| {k} | {name} | {own:.4f} | {own / mean:.2f} | {above:+.1f} s.d. "
                f"| {covering_radius(rows, chosen):.3f} | {mean_distance(rows, chosen):.3f} |"
            )
    table = "\n".join(lines)
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def mean_distance(rows: Rows, chosen: NDArray[np.int64]) -> float:
    """Mean Euclidean distance of all rows from their nearest chosen row."""
    return float(cdist(rows, rows[chosen]).min(axis=1).mean())


def make_rows(n: int, dimension: int = 512, clusters: int = 2000) -> NDArray[np.float16]:
    """Unit vectors in clusters, with a spectrum that falls as real ones do."""
    rng = np.random.default_rng(0)
    scales = np.arange(1.0, dimension + 1) ** -0.35
    centres = rng.standard_normal((clusters, dimension)) * scales
    rows = np.empty((n, dimension), dtype=np.float16)
    for start in range(0, n, BLOCK):
        here = rows[start : start + BLOCK]
        noise = rng.standard_normal(here.shape) * scales
        block = centres[rng.integers(clusters, size=len(here))] + 0.7 * noise
        here[:] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def by_differences(rows: Rows, centre: Rows, nearest: Rows) -> None:
    """One pass: ‖x − c‖² as it is written."""
    for start in range(0, len(rows), 512):
        between = rows[start : start + 512].astype(np.float32) - centre
        squares = np.einsum("ij,ij->i", between, between)
        here = nearest[start : start + 512]
        np.minimum(here, squares, out=here)


def by_product(rows: Rows, centre: Rows, nearest: Rows) -> None:
    """One pass: 2 − 2x·c of unit vectors, a matrix times a vector."""
    np.minimum(nearest, 2 - 2 * (rows @ centre), out=nearest)


def seconds_of_plain_loop(
    one_pass: Callable[[Rows, Rows, Rows], None], rows: Rows, k: int
) -> float:
    """Seconds that k passes take, from the median of a few."""
    nearest = np.full(len(rows), np.inf, dtype=np.float32)
    at, seconds = 0, []
    for _ in range(PLAIN_STEPS):
        started = time.perf_counter()
        one_pass(rows, rows[at].astype(np.float32), nearest)
        at = int(np.argmax(nearest))
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)) * k


def peak_gigabytes() -> float:
    """Most memory that this process ever had, rows and all."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def speed(n: int, k: int, methods: list[str]) -> None:
    """Measure and print."""
    rows = make_rows(n)
    print(f"{k:,} of {n:,} × {rows.shape[1]} rows, float16, {rows.nbytes / 1e9:.2f} GB")
    measured = {}
    for method in methods:
        started, busy = time.perf_counter(), time.process_time()
        select_diverse_samples(rows, k, method)  # type: ignore[arg-type]
        measured[method] = time.perf_counter() - started
        busy = time.process_time() - busy
        print(
            f"{method:<44}{measured[method]:9.1f} s   {busy:.0f} s of processors, "
            f"peak {peak_gigabytes():.2f} GB",
            flush=True,
        )
    if "k-centre" not in measured:
        return
    ours = measured["k-centre"]
    plain = seconds_of_plain_loop(by_differences, rows, k)
    print(f"{'k-centre, plain loop by differences':<44}{plain:9.1f} s   {plain / ours:.1f} times")
    single = rows.astype(np.float32)
    plain = seconds_of_plain_loop(by_product, single, k)
    what = "k-centre, plain loop of products, float32"
    print(f"{what:<44}{plain:9.1f} s   {plain / ours:.1f} times, {single.nbytes / 1e9:.2f} GB more")


def main() -> None:
    """Quality or speed, as the command line says."""
    parser = argparse.ArgumentParser(description="What core-sets are worth, and what they cost.")
    parser.add_argument("part", choices=["quality", "speed"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("-k", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["k-centre"])
    arguments = parser.parse_args()
    if arguments.part == "quality":
        quality()
    else:
        speed(arguments.rows, arguments.k, arguments.methods)


if __name__ == "__main__":
    main()
