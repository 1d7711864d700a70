"""Mixtures: their score follows from moments, and no grid finds better weights."""

import itertools

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
from visdiv_assets.spectral.corrected import corrected
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import diversity
from visdiv_assets_tests.spectral.matrices import power_law, seeds


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


@pytest.mark.parametrize("seed", range(8))
def test_parts_in_different_directions_are_all_taken(seed):
    rng = np.random.default_rng(seed)
    samples = [
        Sample.of(rng.standard_normal((100, 6)) * (np.arange(6) // 2 == at)) for at in range(3)
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
    found = best_mixture(["flat", "full"], [Sample.of(flat), Sample.of(full)])
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
    assert found.adds.tolist() == pytest.approx([mixture_score([sample.moments], np.ones(1))])
    assert found.corrected.score == pytest.approx(corrected(sample).score, rel=1e-6)


@settings(max_examples=15)
@given(st.lists(st.floats(0.05, 1), min_size=3, max_size=3).filter(lambda most: sum(most) >= 1))
def test_no_part_weighs_more_than_a_budget_allows(most):
    samples = [Sample.of(part) for part in some_parts(3, 6, seed=3)]
    weights = best_mixture(["a", "b", "c"], samples, np.array(most)).weights
    assert (weights <= np.array(most) * 1.002).all()
    assert weights.sum() == pytest.approx(1)


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


def test_a_mixture_of_copies_is_as_unsure_as_its_images_are_few():
    rows = power_law(10, 6)
    sample = Sample.of(np.repeat(rows, 30, axis=0))
    own, found = corrected(sample), best_mixture(["a"], [sample]).corrected
    assert found.score == pytest.approx(own.score, rel=1e-6)
    assert found.high - found.low == pytest.approx(own.high - own.low, rel=0.02)


def test_a_mixture_of_one_picture_scores_0():
    found = best_mixture(["a"], [Sample.of(np.ones((100, 4)))])
    assert (found.corrected.score, found.corrected.high) == (0.0, 0.0)
