"""Clusters of near-identical rows beside those of different ones: how long, and how many pairs.

    .venv/bin/python -m benchmarks.alike                     # 16,000 rows, a minute
    .venv/bin/python -m benchmarks.alike --rows 100000 --without-all-pairs

Rows have unit length and 512 dimensions, float16 as in the store. They are different, all alike
(frames of one camera), alike in some shuffled groups (of many cameras), alike only between two of
the thresholds, or a chain (a film). Beside it stands what all pairs take at the same thresholds,
as clusters were found before. Between two sets, the most similar rows are searched.
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.clusters import Components
from visdiv_assets.similarity.pairs import Method, similar_components, similar_pairs

DIMENSION, BLOCK = 512, 8192
THRESHOLDS = (0.75, 0.90, 0.95)
Rows = NDArray[np.float16]


def around(centres: NDArray[np.float64], group: NDArray[np.int64], cosine: float) -> Rows:
    """Rows whose similarity to others of their group is about `cosine`."""
    rng = np.random.default_rng(1)
    rows = np.empty((len(group), DIMENSION), dtype=np.float16)
    for at in range(0, len(group), BLOCK):
        part = group[at : at + BLOCK]
        noise = rng.standard_normal((len(part), DIMENSION)) / DIMENSION**0.5
        rows[at : at + BLOCK] = cosine**0.5 * centres[part] + (1 - cosine) ** 0.5 * noise
    return rows


def made(count: int) -> dict[str, Rows]:
    """Each kind of rows by name."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((count, DIMENSION))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    steps = np.cumsum(rng.standard_normal((count, 64)), axis=0) @ centres[:64] / 64
    film = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    return {
        "different": centres.astype(np.float16),
        "all alike": around(centres, np.zeros(count, np.int64), 0.99),
        "10 groups": around(centres, rng.integers(10, size=count), 0.99),
        "300 groups": around(centres, rng.integers(300, size=count), 0.99),
        "alike at 0.93": around(centres, np.zeros(count, np.int64), 0.93),
        "half alike": around(centres, np.maximum(np.arange(count) - count // 2, 0), 0.99),
        "film": film.astype(np.float16),
    }


def all_pairs(rows: Rows) -> int:
    """Clusters by all pairs."""
    graphs = {level: Components(len(rows)) for level in THRESHOLDS}

    def join(pairs: NDArray[np.int64], similarities: NDArray[np.float32]) -> None:
        for level, graph in graphs.items():
            graph.join(pairs[similarities >= np.float32(level)])

    return similar_pairs(rows, min(THRESHOLDS), on_pairs=join).count


def timed(act: Callable[[], int]) -> str:
    """Seconds by the clock and of all processors, and the number of pairs."""
    began, busy = time.perf_counter(), time.process_time()
    count = act()
    wall, processor = time.perf_counter() - began, time.process_time() - busy
    return f"{wall:>8.1f} s {processor:>8.1f} s {count:>14,}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--method", default="auto", choices=["auto", "exact", "index"])
    parser.add_argument("--without-all-pairs", action="store_true")
    arguments = parser.parse_args()
    method: Method = arguments.method
    print(f"{os.cpu_count()} processors, NumPy {np.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.rows:,} × {DIMENSION}, at {', '.join(map(str, THRESHOLDS))}, {method}\n")
    print(f"{'':<32}{'clock':>10} {'processors':>10} {'pairs':>14}")
    for name, rows in made(arguments.rows).items():
        if arguments.kinds and name not in arguments.kinds.split(","):
            continue
        found = timed(lambda rows=rows: similar_components(rows, THRESHOLDS, method=method).pairs)
        print(f"{name:<14}{'components':<18}{found}", flush=True)
        if not arguments.without_all_pairs:
            print(f"{name:<14}{'all pairs':<18}{timed(lambda rows=rows: all_pairs(rows))}")
            half = len(rows) // 2
            between = timed(
                lambda rows=rows, half=half: (
                    similar_pairs(
                        rows[:half],
                        0.75,
                        others=rows[half:],
                        strongest=True,
                        on_pairs=lambda *_: None,
                    ).count
                )
            )
            print(f"{name:<14}{'between halves':<18}{between}", flush=True)


if __name__ == "__main__":
    main()
