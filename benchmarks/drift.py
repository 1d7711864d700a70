"""How often drift is found where there is some, and where there is none.

    .venv/bin/python -m benchmarks.drift
    .venv/bin/python -m benchmarks.drift --rounds 200 --only clips

Embeddings of 4,446 icons, which are of several kinds: 3,100 of one, 230 of another. Keys are
drawn at random in each round, as hashes are. Prints the share of rounds in which `measure_drift`
finds more than chance, then how long it takes for two samples of 1,024 rows.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.made_up import machine, rows_on_the_grid, seconds
from visdiv_assets.guidance.drift import measure_drift
from visdiv_assets.spectral.sample import CAPACITY, Sample

ROOT = Path(__file__).parents[1]
ICONS = np.load(ROOT / "visdiv_assets_tests" / "data" / "embeddings_icons.npy").astype(np.float64)
KIND, OTHER = ICONS[800:3900], ICONS[3960:4190]

Rows = NDArray[np.float64]
Which = NDArray[np.bool_]


def picked(rng: np.random.Generator, pool: Rows, n: int) -> Rows:
    """So many rows of a pool, each once."""
    return pool[rng.choice(len(pool), n, replace=False)]


def copies(rng: np.random.Generator, rows: Rows, noise: float = 0.01) -> Rows:
    """Rows with a little noise: cosines to the originals are about 0.975 at 0.01."""
    noisy = rows + noise * rng.standard_normal(rows.shape)
    return np.asarray(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))


def one_after_another(n_before: int, n_now: int, came_from: int) -> tuple[Which, Which]:
    """Which of n_now rows were there before, and which are there now, as rows are added."""
    at = np.arange(n_now)
    return at < n_before, at >= came_from


# Each makes rows, and says which were there before, and which are there now.


def another_kind(rng: np.random.Generator, n: int = 200) -> tuple[Rows, Which, Which]:
    """1,000 of one kind, then others are added."""
    rows = np.concatenate([picked(rng, KIND, 1000), picked(rng, OTHER, n)])
    return rows, *one_after_another(1000, len(rows), 0)


def ten_of_another_kind(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """1,000 of one kind, then 10 others are added."""
    return another_kind(rng, 10)


def another_kind_among_the_same(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """1,000 of one kind, then 80 of it and 20 others are added."""
    rows = np.concatenate([picked(rng, KIND, 1080), picked(rng, OTHER, 20)])
    return rows, *one_after_another(1000, len(rows), 0)


def a_kind_goes(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """1,000 of one kind and 50 others, then the others are removed."""
    rows = np.concatenate([picked(rng, KIND, 1000), picked(rng, OTHER, 50)])
    at = np.arange(len(rows))
    return rows, at >= 0, at < 1000


def noisier(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """1,000 of one kind, then 200 of it with noise: another camera."""
    rows = picked(rng, KIND, 1200)
    rows[1000:] = copies(rng, rows[1000:], 0.015)
    return rows, *one_after_another(1000, len(rows), 0)


def halves_of_clips(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """150 clips of 8 near-copies; half of the clips before, the others now."""
    rows = copies(rng, np.repeat(picked(rng, KIND, 150), 8, axis=0))
    before = np.repeat(rng.permutation(150) < 75, 8)
    return rows, before, ~before


def more_clips(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """120 clips of 1 to 20 near-copies, then 30 more."""
    clip = np.repeat(np.arange(150), rng.integers(1, 21, 150))
    rows = copies(rng, picked(rng, KIND, 150)[clip])
    return rows, clip < 120, clip >= 0


def more_of_the_same(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """1,000 of all icons, of which some are near-copies, then 200 more."""
    return picked(rng, ICONS, 1200), *one_after_another(1000, 1200, 0)


def partly_replaced(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """1,000 of all icons, then 300 are replaced by others."""
    return picked(rng, ICONS, 1300), *one_after_another(1000, 1300, 300)


def all_replaced(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """1,000 of all icons, then 1,000 others."""
    return picked(rng, ICONS, 2000), *one_after_another(1000, 2000, 1000)


def one_kind_compressed_anew(rng: np.random.Generator) -> tuple[Rows, Which, Which]:
    """800 of one kind and 200 of another; the files of the 200 are then compressed anew."""
    others = picked(rng, OTHER, 200)
    rows = np.concatenate([others, picked(rng, KIND, 800), copies(rng, others, 0.002)])
    return rows, *one_after_another(1000, 1200, 200)


DRIFT = [another_kind, ten_of_another_kind, another_kind_among_the_same, a_kind_goes, noisier]
NONE = [
    halves_of_clips,
    more_clips,
    more_of_the_same,
    partly_replaced,
    all_replaced,
    one_kind_compressed_anew,
]


def found(make: Callable[[np.random.Generator], tuple[Rows, Which, Which]], seed: int) -> bool:
    """Whether more than chance is found in one round."""
    rng = np.random.default_rng(seed)
    rows, before, now = make(rng)
    keys = rng.integers(0, 2**64, len(rows), dtype=np.uint64)
    one, other = (Sample.of(rows[which], keys=keys[which]) for which in (before, now))
    return measure_drift(one, other).large


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="", help="cases whose functions have this in their names")
    options = parser.parse_args()
    rounds = options.rounds
    print(machine())
    for heading, cases in (("there is drift", DRIFT), ("there is none", NONE)):
        print(f"\n{heading}: found in so many of {rounds} rounds")
        for make in (each for each in cases if options.only in each.__name__):
            n_found = sum(found(make, seed) for seed in range(rounds))
            told = (make.__doc__ or "").splitlines()[0].rstrip(".")
            print(f"{n_found:6}   {told}", flush=True)
    rows = rows_on_the_grid(4 * CAPACITY, 0).astype(np.float64)
    halves = [Sample.of(rows[: 2 * CAPACITY]), Sample.of(rows[2 * CAPACITY :])]
    shared = [Sample.of(rows[: 2 * CAPACITY]), Sample.of(rows[200 : 2 * CAPACITY + 200])]
    print(f"\n{seconds(lambda: measure_drift(*halves)):6.2f} s for samples without common rows")
    print(f"{seconds(lambda: measure_drift(*shared)):6.2f} s for samples with 90 % in common")


if __name__ == "__main__":
    main()
