"""What comparing fifty datasets costs, once their embeddings are there.

    .venv/bin/python -m benchmarks.portfolio

For 50 datasets of 512 × 512 moments: corrected scores with intervals, the leaderboard with all
pairs, 20 slices of each of them, the best mixture, and the drift of each. Made-up embeddings: a
power-law spectrum for each dataset, turned differently. Prints seconds.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from visdiv_assets.guidance.comparison import Scored, compare
from visdiv_assets.guidance.drift import measure_drift
from visdiv_assets.guidance.mixtures import best_mixture
from visdiv_assets.guidance.slices import judge_slices
from visdiv_assets.spectral.corrected import CorrectedScore, corrected
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import diversity

DATASETS, DIMENSION, ROWS = 50, 512, 4000

T = TypeVar("T")


def make_sample(seed: int, rows: int = ROWS) -> Sample:
    """Moments and a sample of unit vectors with a power-law spectrum of their own."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1.0, DIMENSION + 1) ** -rng.uniform(0.2, 0.8)
    axes = rng.permutation(DIMENSION)
    vectors = rng.standard_normal((rows, DIMENSION)) * scales[axes]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Sample.of(vectors, keys=rng.integers(0, 2**63, rows).astype(np.uint64))


def timed(what: str, act: Callable[[], T]) -> tuple[float, T]:
    """Run it, and print how long it took."""
    started = time.perf_counter()
    result = act()
    seconds = time.perf_counter() - started
    print(f"{what:<56}{seconds:8.2f} s")
    return seconds, result


def main() -> None:
    """Measure and print."""
    samples = [make_sample(seed) for seed in range(DATASETS)]
    names = [f"d{at:02}" for at in range(DATASETS)]
    total = 0.0
    seconds, _ = timed("plain scores", lambda: [diversity(each.moments) for each in samples])
    total += seconds
    seconds, fair = timed("corrected scores, 95 % intervals", lambda: list(map(corrected, samples)))
    total += seconds

    def rank() -> list[object]:
        def scored(name: str, each: CorrectedScore) -> Scored:
            return Scored(name, each.score, each.low, each.high)

        return list(compare([scored(*each) for each in zip(names, fair, strict=True)]))

    seconds, _ = timed("leaderboard, 1,225 pairs", rank)
    total += seconds
    seconds, plan = timed("best mixture of all 50", lambda: best_mixture(names, samples))
    total += seconds
    print(
        f"{'':4}{np.count_nonzero(plan.weights)} parts, score {plan.corrected.score:.3f};", end=" "
    )
    print(f"equal weights {plan.even.score:.3f}")
    print(f"{'all of these':<56}{total:8.2f} s")
    parts = {f"s{at:02}": make_sample(1000 + at, 200) for at in range(20)}
    timed("20 slices of one dataset", lambda: judge_slices(parts))
    timed("drift of one dataset", lambda: measure_drift(samples[0], samples[1]))


if __name__ == "__main__":
    main()
