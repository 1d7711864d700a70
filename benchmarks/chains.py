"""Images that are listed to go but resemble nothing that is kept; and what dividing chains costs.

    .venv/bin/python -m benchmarks.chains icons              # seconds
    .venv/bin/python -m benchmarks.chains cost               # minutes
    .venv/bin/python -m benchmarks.chains cost --rows 20000

`icons` lists near-duplicates among the real embeddings of the tests, by whole clusters and by
divided ones, and compares each row that may go with all rows that stay. `cost` divides one cluster
of many rows in random order: near-identical ones, and chains in which each row is similar to the
next, and to hardly any other. Rows are float16, as the store keeps them.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.clusters import cover, groups_of
from visdiv_assets.similarity.pairs import similar_components
from visdiv_assets.similarity.units import similarities_of_all, units

ICONS = Path(__file__).parents[1] / "visdiv_assets_tests/data/embeddings_icons.npy"
THRESHOLDS = (0.60, 0.75, 0.90)
THRESHOLD = 0.75
DIMENSION, BLOCK = 512, 8192
Rows = NDArray[np.float16]


def icons() -> None:
    """Print what whole and divided clusters list."""
    rows = np.load(ICONS)
    found = similar_components(rows, THRESHOLDS)
    print(f"{len(rows):,} icons\n")
    print(f"{'threshold':>9} {'clusters':>9} {'largest':>8} {'may go':>7} {'unlike all kept':>16}")
    for threshold in THRESHOLDS:
        for split in (False, True):
            rank = np.arange(len(rows))
            groups = groups_of(rows, found.labels[threshold], rank, threshold, split=split)
            going = np.concatenate([group[1:] for group in groups])
            kept = np.setdiff1d(rank, going)
            nearest = similarities_of_all(units(rows[going]), units(rows[kept])).max(axis=1)
            unlike = np.mean(nearest < np.float32(threshold))
            print(
                f"{threshold:>9.2f} {'divided' if split else 'whole':>9} "
                f"{max(map(len, groups)):>8,} {len(going):>7,} {unlike:>16.1%}"
            )


def near_identical(count: int) -> Rows:
    """Rows whose similarity to each other is about 0.99."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(DIMENSION)
    centre /= np.linalg.norm(centre)
    rows = np.empty((count, DIMENSION), dtype=np.float16)
    for at in range(0, count, BLOCK):
        here = rows[at : at + BLOCK]
        here[:] = centre + 0.1 * rng.standard_normal(here.shape) / DIMENSION**0.5
    return rows


def chain(count: int, cosine: float) -> Rows:
    """A random walk on the sphere: the similarity of rows that are k steps apart is cosineᵏ."""
    rng = np.random.default_rng(0)
    rows = np.empty((count, DIMENSION), dtype=np.float16)
    at = np.eye(1, DIMENSION)[0]
    for row in rows:
        aside = rng.standard_normal(DIMENSION)
        aside -= (aside @ at) * at
        at = cosine * at + (1 - cosine**2) ** 0.5 * aside / np.linalg.norm(aside)
        row[:] = at
    return rows


def cost(count: int) -> None:
    """Print how long it takes to divide one cluster of so many rows."""
    kinds = {
        "near-identical": near_identical(count),
        "chain, 0.90 to the next": chain(count, 0.90),
        "chain, 0.76 to the next": chain(count, 0.76),
    }
    print(f"{count:,} rows, at {THRESHOLD}\n")
    print(f"{'':<24} {'groups':>8} {'clock':>9} {'processors':>11} {'more memory':>12}")
    members = np.random.default_rng(1).permutation(count)
    for name, rows in kinds.items():
        before = _peak_megabytes()
        began, busy = time.perf_counter(), time.process_time()
        groups = cover(rows, members, THRESHOLD)
        wall, processor = time.perf_counter() - began, time.process_time() - busy
        print(
            f"{name:<24} {len(groups):>8,} {wall:>7.1f} s {processor:>9.1f} s "
            f"{_peak_megabytes() - before:>9.0f} MB",
            flush=True,
        )


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Icons or cost, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["icons", "cost"])
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    if arguments.part == "icons":
        icons()
    else:
        cost(arguments.rows)


if __name__ == "__main__":
    main()
