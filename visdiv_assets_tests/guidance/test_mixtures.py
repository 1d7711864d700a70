"""Mixtures: their score follows from moments, and no grid finds better weights.

A known spectrum has a known best mixture; what is drawn from it must lead close to that.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visdiv_assets.guidance.mixtures import (
    best_mixture,
    mix_samples,
    mixture_covariance,
    mixture_score,
)
from visdiv_assets.spectral.corrected import corrected, score_influences
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample, row_keys
from visdiv_assets.spectral.score import diversity
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio
from visdiv_assets_tests.spectral.matrices import power_law, rotation, seeds


def by_rows(rows):
    """A sample whose rows are independent, however alike rows of few dimensions are."""
    sample = Sample.of(rows)
    return replace(sample, units=row_keys(sample.rows))


def weighted(draws):
    return np.array(draws, dtype=float) / np.sum(draws)


def some_parts(count, dimension, seed):
    """Parts of too few rows for a corrected score, of different rank, spread and place."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(count):
        n, rank = rng.integers(8, 1 + min(40, 48 // count)), rng.integers(1, dimension + 1)
        flat = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, dimension))
        parts.append(rng.exponential() * flat + rng.standard_normal(dimension))
    return parts


def normal(n, spectrum, seed, turn=None):
    """Rows with a known spectrum, along the axes or turned."""
    rows = np.random.default_rng(seed).standard_normal((n, len(spectrum))) * np.sqrt(spectrum)
    return rows if turn is None else rows @ turn.T


def true_score(spectra, turns, weights):
    """The score of a mixture of populations without means, from their covariances."""
    covariance = sum(
        w * (turn * spectrum) @ turn.T
        for w, spectrum, turn in zip(weights, spectra, turns, strict=True)
    )
    eigenvalues = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    product = effective_rank(eigenvalues) * participation_ratio(eigenvalues)
    return float(np.sqrt(product)) / len(eigenvalues)


def grid(count, step):
    ticks = round(1 / step)
    for some in itertools.product(range(ticks + 1), repeat=count - 1):
        if sum(some) <= ticks:
            yield np.array([*some, ticks - sum(some)]) / ticks


@given(st.lists(st.integers(0, 100), min_size=1, max_size=4).filter(any), seeds)
def test_a_mixtures_moments_give_what_its_weighted_rows_give(draws, seed):
    weights, rows = weighted(draws), some_parts(len(draws), 8, seed)
    parts = [Moments.of(part) for part in rows]
    each = np.concatenate(
        [np.full(len(part), w / len(part)) for w, part in zip(weights, rows, strict=True)]
    )
    covariance = np.cov(np.concatenate(rows), rowvar=False, aweights=each, ddof=0)
    p = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    p = p / p.sum()
    entropy = -sum(share * np.log(share) for share in p if share > 0)
    expected = np.sqrt(np.exp(entropy) / np.sum(p**2)) / 8
    np.testing.assert_allclose(mixture_covariance(parts, weights), covariance, rtol=1e-9, atol=1e-9)
    assert mixture_score(parts, weights) == pytest.approx(expected, rel=1e-9)


def test_shares_of_images_give_the_score_of_all_images_together():
    parts = [Moments.of(part) for part in some_parts(3, 8, seed=1)]
    weights = weighted([part.n for part in parts])
    assert mixture_score(parts, weights) == pytest.approx(
        diversity(Moments.sum(parts)).score, rel=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "step"), [(2, 0.01), (3, 0.02)])
def test_no_weights_of_a_fine_grid_are_better(count, step, seed):
    samples = [Sample.of(part) for part in some_parts(count, 6, seed)]
    parts = [sample.moments for sample in samples]
    found = best_mixture("abc"[:count], samples)
    best = max(mixture_score(parts, weights) for weights in grid(count, step))
    assert mixture_score(parts, found.weights) >= best * (1 - 1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(100, 2000), (30, 600)])
def test_a_small_part_gets_the_weight_that_its_population_deserves(sizes, seed):
    index = np.arange(1.0, 97)
    spectra = [np.where(index <= 64, 1.0, 0.0), np.where(index > 72, 1.0, 0.0)]
    turns = [np.eye(96), np.eye(96)]
    samples = [
        Sample.of(normal(n, spectrum, 10 * seed + at))
        for at, (n, spectrum) in enumerate(zip(sizes, spectra, strict=True))
    ]
    found = best_mixture(["photographs", "screenshots"], samples)
    best = max(true_score(spectra, turns, weights) for weights in grid(2, 0.01))
    assert true_score(spectra, turns, found.weights) >= 0.98 * best


@settings(max_examples=10, deadline=None)
@given(
    seeds,
    st.lists(st.tuples(st.integers(30, 300), st.floats(0, 2)), min_size=2, max_size=3),
)
def test_a_mixtures_score_changes_as_the_influences_of_its_rows_say(seed, shapes):
    turns = [rotation(24, seed + at) for at in range(len(shapes))]
    spectra = [np.arange(1.0, 25) ** -exponent for _, exponent in shapes]
    samples = [
        Sample.of(normal(n + 60, spectrum, seed + at, turn))
        for at, ((n, _), spectrum, turn) in enumerate(zip(shapes, spectra, turns, strict=True))
    ]
    weights, step = np.full(len(shapes), 1 / len(shapes)), 1e-4
    mixed = mix_samples(samples, weights)
    value, influence = score_influences(mixed)
    assert corrected(mixed).score <= np.exp(value) * (1 + 1e-9)  # which is not clipped
    moved = weights + step * np.eye(len(shapes))[0] - step / len(shapes)
    slope = (score_influences(mix_samples(samples, moved))[0] - value) / step
    own = influence[np.searchsorted(mixed.keys, samples[0].keys)].mean()
    # The influence is an estimate of what the population would do, and not the exact derivative.
    assert own == pytest.approx(slope, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_found_is_no_worse_than_equal_weights_among_many_parts(seed):
    rng = np.random.default_rng(seed)
    samples = [
        Sample.of(power_law(int(rng.integers(5, 200)), 12, exponent=rng.uniform(0, 3), seed=at))
        for at in range(12)
    ]
    found = best_mixture([str(at) for at in range(12)], samples)
    alone = [corrected(sample).score for sample in samples]
    assert found.corrected.score >= max(found.even.score, np.nanmax(alone)) - 1e-9


def test_a_part_of_too_few_rows_to_be_judged_alone_still_counts_in_a_mixture():
    few, many = np.arange(16) < 6, np.arange(16) >= 6
    samples = [Sample.of(normal(n, axes, n)) for n, axes in ((40, few), (400, many))]
    assert corrected(samples[0]).too_few
    found = best_mixture(["few", "many"], samples)
    assert 0.2 < found.weights[0] < 0.6
    assert found.adds[0] > 0.2


def test_what_was_found_so_far_is_told_and_only_rises():
    told = []
    samples = [Sample.of(power_law(100, 8, exponent=at, seed=at)) for at in range(2)]
    found = best_mixture(["a", "b"], samples, on_found=told.append)
    assert told == sorted(set(told))
    assert told[-1] >= found.corrected.score


def test_the_same_samples_give_the_same_weights_to_the_last_bit():
    samples = [Sample.of(power_law(100, 8, exponent=at, seed=at)) for at in range(3)]
    once, again = (best_mixture(["a", "b", "c"], samples).weights for _ in range(2))
    assert once.tobytes() == again.tobytes()


@pytest.mark.parametrize("seed", range(8))
def test_parts_in_different_directions_are_all_taken(seed):
    rng = np.random.default_rng(seed)
    samples = [
        by_rows(rng.standard_normal((100, 6)) * (np.arange(6) // 2 == at)) for at in range(3)
    ]
    found = best_mixture(["a", "b", "c"], samples)
    assert found.weights == pytest.approx(np.full(3, 1 / 3), abs=0.1)
    assert found.dropped == ()
    assert (found.adds > 0).all()


def test_a_part_that_adds_no_direction_is_dropped():
    rng = np.random.default_rng(0)
    full, flat = rng.standard_normal((500, 6)), rng.standard_normal((100, 6))
    full = np.linalg.qr(full - full.mean(axis=0))[0]  # the same in all directions
    flat[:, 2:] = 0
    found = best_mixture(["flat", "full"], [by_rows(flat), by_rows(full)])
    assert found.dropped == ("flat",)
    assert found.weights[0] == 0
    assert found.adds[0] == 0
    assert found.adds[1] > 0


def test_the_best_mixture_is_no_worse_than_equal_weights_or_any_part_alone():
    samples = [Sample.of(power_law(200, 16, exponent=at, seed=at)) for at in range(3)]
    found = best_mixture(["a", "b", "c"], samples)
    alone = [corrected(sample).score for sample in samples]
    assert found.corrected.score >= max(found.even.score, *alone) - 1e-9


def test_a_mixture_names_its_parts_and_has_a_number_for_each():
    found = best_mixture(["a", "b"], [Sample.of(power_law(60, 8, seed=seed)) for seed in range(2)])
    assert found.names == ("a", "b")
    assert found.weights.shape == found.adds.shape == (2,)
    assert found.weights.sum() == pytest.approx(1)
    assert (found.weights >= 0).all()


def test_one_part_is_the_whole_mixture():
    sample = Sample.of(power_law(80, 8))
    found = best_mixture(["a"], [sample])
    assert found.weights.tolist() == [1.0]
    assert found.adds.tolist() == [found.corrected.score]
    assert found.corrected.score == pytest.approx(corrected(sample).score, rel=1e-6)


@settings(max_examples=15)
@given(st.lists(st.floats(0.05, 1), min_size=3, max_size=3).filter(lambda most: sum(most) >= 1))
def test_no_part_weighs_more_than_a_budget_allows(most):
    samples = [Sample.of(part) for part in some_parts(3, 6, seed=3)]
    weights = best_mixture(["a", "b", "c"], samples, np.array(most)).weights
    assert (weights <= np.array(most) * 1.002).all()
    assert weights.sum() == pytest.approx(1)


@settings(max_examples=15)
@given(st.lists(st.floats(0, 0.33), min_size=3, max_size=3), seeds)
def test_no_part_weighs_less_than_its_floor(least, seed):
    samples = [Sample.of(power_law(100, 6, exponent=2 * at, seed=seed + at)) for at in range(3)]
    weights = best_mixture(["a", "b", "c"], samples, least=np.array(least)).weights
    assert (weights >= np.array(least) - 1e-9).all()
    assert weights.sum() == pytest.approx(1)


def test_floors_and_caps_hold_where_they_cost_score():
    first, second = np.eye(8)[:4].sum(axis=0), np.eye(8)[4:].sum(axis=0)
    samples = [by_rows(normal(200, axes, seed)) for seed, axes in enumerate([first, second])]
    free = best_mixture(["a", "b"], samples)
    bound = best_mixture(["a", "b"], samples, np.array([1.0, 0.1]))
    assert bound.weights == pytest.approx([0.9, 0.1], abs=0.01)
    assert np.isnan(bound.adds[0])  # the other may not fill the mixture
    assert bound.adds[1] > 0
    bound = best_mixture(["a", "b"], samples, least=np.array([0.8, 0.0]))
    assert bound.weights == pytest.approx([0.8, 0.2], abs=0.01)
    assert bound.corrected.score < free.corrected.score


@pytest.mark.parametrize("least", [[0.6, 0.6], [0.5, 0.0]])
def test_floors_that_no_mixture_has_are_refused(least):
    samples = [Sample.of(part) for part in some_parts(2, 6, seed=0)]
    with pytest.raises(ValueError, match="smallest weights are too large"):
        best_mixture(["a", "b"], samples, np.array([0.4, 1.0]), np.array(least))


def test_a_budget_that_the_parts_cannot_fill_is_refused():
    samples = [Sample.of(part) for part in some_parts(2, 6, seed=0)]
    with pytest.raises(ValueError, match="cannot fill the mixture"):
        best_mixture(["a", "b"], samples, np.array([0.5, 0.4]))


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one part"):
        best_mixture([], [])


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ([1.0], "2 parts need 2 weights"),
        ([0.2, 0.3, 0.5], "2 parts need 2 weights"),
        ([0.6, 0.6], "sum to 1"),
        ([1.5, -0.5], "must not be negative"),
        ([np.nan, 1.0], "sum to 1"),
        ([np.inf, 0.0], "sum to 1"),
    ],
)
def test_weights_that_are_no_shares_are_refused(weights, problem):
    samples = [Sample.of(part) for part in some_parts(2, 6, seed=0)]
    with pytest.raises(ValueError, match=problem):
        mixture_score([sample.moments for sample in samples], np.array(weights))
    with pytest.raises(ValueError, match=problem):
        mix_samples(samples, np.array(weights))


def test_a_mixture_of_one_part_has_the_parts_corrected_score():
    sample = Sample.of(power_law(120, 16))
    for samples, weights in [([sample], [1.0]), ([sample, sample], [0.3, 0.7])]:
        mixed, own = corrected(mix_samples(samples, np.array(weights))), corrected(sample)
        assert (mixed.score, mixed.low, mixed.high) == pytest.approx(
            (own.score, own.low, own.high), rel=1e-6
        )


def test_a_mixed_sample_has_the_moments_of_the_mixture():
    samples = [Sample.of(part) for part in some_parts(3, 6, seed=2)]
    weights = np.array([0.2, 0.0, 0.8])
    mixed = mix_samples(samples, weights).moments
    expected = mixture_covariance([sample.moments for sample in samples], weights)
    np.testing.assert_allclose(mixed.outer / mixed.n - np.outer(mixed.mean, mixed.mean), expected)


def test_a_mixture_of_too_few_rows_has_no_corrected_score():
    samples = [Sample.of(power_law(20, 6, seed=seed)) for seed in range(2)]
    found = best_mixture(["a", "b"], samples)
    assert found.corrected.too_few
    assert found.even.too_few


def test_a_mixture_of_copies_of_few_images_has_no_score():
    sample = Sample.of(np.repeat(power_law(10, 6), 30, axis=0))
    assert best_mixture(["a"], [sample]).corrected.too_few


def test_a_mixture_of_one_picture_has_no_score():
    assert best_mixture(["a"], [Sample.of(np.ones((100, 4)))]).corrected.too_few
