"""Looking at as few images as a precision needs."""

import numpy as np
import pytest

from visdiv_assets.spectral.corrected import corrected
from visdiv_assets.spectral.progressive import precise_enough, sample_sizes
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio

TOTAL = 100_000
SEEDS = 50


def test_sizes_grow_to_everything():
    assert list(sample_sizes(100)) == [100]
    sizes = list(sample_sizes(TOTAL))
    assert sizes[-1] == TOTAL
    assert sizes == sorted(set(sizes))


@pytest.mark.slow
def test_a_hundred_thousand_are_scored_to_one_hundredth_from_under_5_percent():
    """Choosing the size by what was seen is in it. Of 200 seeds, the interval holds for 186."""
    dimension = 512
    eigenvalues = np.arange(1, dimension + 1) ** -0.5
    truth = np.sqrt(effective_rank(eigenvalues) * participation_ratio(eigenvalues)) / dimension
    scales = np.sqrt(eigenvalues / eigenvalues.sum()).astype(np.float32)
    inside, looked_at = 0, []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        whole: Sample | None = None
        done = 0
        for size in sample_sizes(TOTAL):
            rows = rng.standard_normal((size - done, dimension), dtype=np.float32) * scales
            keys = rng.integers(0, 2**63, len(rows)).astype(np.uint64)
            part = Sample.of(rows, keys=keys)
            whole, done = part if whole is None else whole + part, size
            measured = corrected(whole)
            if precise_enough(measured, 0.01):
                break
        looked_at.append(done)
        inside += measured.low <= truth <= measured.high
    print(f"looked at {np.mean(looked_at):,.0f} of {TOTAL:,}, at most {max(looked_at):,};", end=" ")
    print(f"the interval held {inside} times of {SEEDS}")
    assert max(looked_at) < 0.05 * TOTAL
    assert inside >= 45  # two standard deviations below 95 %
