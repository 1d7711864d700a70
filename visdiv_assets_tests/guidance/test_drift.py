"""Drift: distances as textbooks have them, and the line between movement and chance."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.guidance.drift import frechet_distance, is_large, measure_drift, principal_angles
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets_tests.spectral.matrices import power_law, rotation, seeds

ICONS = Path(__file__).parents[1] / "data" / "embeddings_icons.npy"

# Rows of the icons that look alike, and some that look different.
KIND, OTHER = slice(800, 3900), slice(3960, 4190)


@pytest.fixture(scope="module")
def icons():
    return np.load(ICONS)


def textbook(one, other):
    s, t = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    overlap = np.trace(scipy.linalg.sqrtm(s @ t)).real
    apart = np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2)
    return apart + np.trace(s) + np.trace(t) - 2 * overlap


def keyed(rows, *parts, seed=0):
    """Samples of parts of a matrix; keys are random, as hashes of files are."""
    keys = np.random.default_rng(seed).integers(0, 2**64, len(rows), dtype=np.uint64)
    return [Sample.of(rows[part], keys=keys[part]) for part in parts]


def picked(rng, rows, n):
    return rows[rng.choice(len(rows), n, replace=False)].astype(np.float64)


def with_noise(rng, rows, noise=0.01):
    """Near-copies: cosines to the originals are about 0.975."""
    noisy = rows + noise * rng.standard_normal(rows.shape)
    return noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


def test_a_set_has_not_moved_from_itself(icons):
    drift = measure_drift(Sample.of(icons[:600]), Sample.of(icons[:600]))
    assert drift.centroid == 0
    assert drift.frechet == pytest.approx(0, abs=1e-6)
    assert drift.angles == pytest.approx(np.zeros(10), abs=1e-4)
    assert (drift.came.images, drift.went.images, drift.stayed) == (0, 0, 600)
    assert (drift.p, drift.large, drift.finding()) == (None, False, "no image came or went")


# --- what is found ---


def test_200_of_another_kind_among_1000_are_always_found(icons):
    icons = icons[:, :128].astype(np.float64)  # fewer dimensions are faster
    icons /= np.linalg.norm(icons, axis=1, keepdims=True)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = np.concatenate([picked(rng, icons[KIND], 1000), picked(rng, icons[OTHER], 200)])
        drift = measure_drift(*keyed(rows, slice(1000), slice(None), seed=seed))
        assert drift.large
        assert (drift.went.images, drift.went.p) == (0, None)


def test_a_kind_that_went_is_found(icons):
    rng = np.random.default_rng(0)
    rows = np.concatenate([picked(rng, icons[KIND], 950), picked(rng, icons[OTHER], 50)])
    drift = measure_drift(*keyed(rows, slice(None), slice(950)))
    assert drift.large
    assert (drift.came.p, drift.went.images) == (None, 50)


def test_a_few_of_another_kind_among_more_of_the_same_are_found(icons):
    rng = np.random.default_rng(0)
    rows = np.concatenate([picked(rng, icons[KIND], 1080), picked(rng, icons[OTHER], 20)])
    assert measure_drift(*keyed(rows, slice(1000), slice(None))).large


def shifted(rows):
    moved = rows + 0.05
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def less_spread(rows):
    mean = rows.mean(axis=0)
    return mean + 0.8 * (rows - mean)


def of_other_things(rows):
    rows = rows.copy()
    rows[: len(rows) // 2] = power_law(len(rows) // 2, rows.shape[1], exponent=0.5)
    return rows


@pytest.mark.parametrize("change", [shifted, less_spread, of_other_things])
def test_a_half_that_was_changed_is_more_than_chance(icons, change):
    rows = picked(np.random.default_rng(0), icons, 1600)
    rows[800:] = change(rows[800:])
    assert measure_drift(*keyed(rows, slice(800), slice(800, None))).large


# --- what is chance ---


def clips(rng, n, most=20):
    """Near-copies of n rows, 1 to `most` of each; and the clip that each row is of."""
    clip = np.repeat(np.arange(n), rng.integers(1, most + 1, n))
    originals = power_law(n, 32, exponent=0.5, seed=int(rng.integers(2**32)))
    return with_noise(rng, originals[clip], 0.03), clip


def halves_of_clips(rng):
    rows, clip = clips(rng, 100)
    first = (rng.permutation(100) < 50)[clip]
    return rows, first, ~first


def more_clips(rng):
    rows, clip = clips(rng, 100)
    return rows, clip < 70, clip >= 0


def more_of_the_same(rng):
    rows, _ = clips(rng, 400, most=3)
    return rng.permutation(rows), slice(500), slice(None)


def partly_replaced(rng):
    rows, _ = clips(rng, 400, most=3)
    return rng.permutation(rows), slice(500), slice(200, None)


@pytest.mark.parametrize("make", [halves_of_clips, more_clips, more_of_the_same, partly_replaced])
def test_what_is_of_the_same_kind_is_more_than_chance_1_time_in_20(make):
    found = 0
    for seed in range(100):
        rows, *parts = make(np.random.default_rng(seed))
        found += measure_drift(*keyed(rows, *parts, seed=seed)).large
    assert found <= 11  # more have a probability of 0.4 % if each has one of 5 %


def test_files_of_one_kind_that_are_compressed_anew_have_not_moved(icons):
    rng = np.random.default_rng(0)
    others = picked(rng, icons[OTHER], 100)
    rows = np.concatenate([others, picked(rng, icons[KIND], 400), with_noise(rng, others, 0.002)])
    drift = measure_drift(*keyed(rows, slice(500), slice(100, None)))
    assert (drift.came.images, drift.went.images) == (100, 100)
    assert not drift.large


def test_more_copies_of_what_was_there_are_nothing_new():
    rows = power_law(300, 16)
    times = np.ones(300, dtype=np.int64)
    times[0] = 1000
    drift = measure_drift(Sample.of(rows), Sample.of(rows, times))
    assert (drift.came.images, drift.came.units, drift.stayed) == (999, 0, 300)
    assert not drift.large


# --- what cannot be told ---


def test_few_images_tell_nothing_and_it_says_so(icons):
    rng = np.random.default_rng(0)
    rows = np.concatenate([picked(rng, icons[KIND], 500), picked(rng, icons[OTHER], 4)])
    drift = measure_drift(*keyed(rows, slice(500), slice(3, None)))
    assert (drift.p, drift.large) == (None, False)
    assert drift.finding() == ("cannot tell from 4 new images; cannot tell from 3 removed images")


def test_many_near_copies_of_one_picture_tell_no_more_than_one(icons):
    rng = np.random.default_rng(0)
    clip = with_noise(rng, np.repeat(picked(rng, icons[OTHER], 1), 200, axis=0))
    rows = np.concatenate([picked(rng, icons[KIND], 500), clip])
    drift = measure_drift(*keyed(rows, slice(500), slice(None)))
    assert (drift.came.images, drift.came.units, drift.large) == (200, 1, False)
    assert drift.finding() == "cannot tell from 200 new images, which count as 1"


def test_what_cannot_be_told_is_said_beside_what_can(icons):
    rows = picked(np.random.default_rng(0), icons[KIND], 500)
    rows = np.concatenate([rows, icons[OTHER][:100]])
    drift = measure_drift(*keyed(rows, slice(500), slice(3, None)))
    assert drift.finding() == "more than chance; cannot tell from 3 removed images"


def test_if_nothing_stayed_there_is_one_test():
    rows = power_law(100, 16)
    drift = measure_drift(*keyed(rows, slice(50), slice(50, None)))
    assert drift.p == drift.came.p == drift.went.p


def test_the_more_comparisons_the_less_probable_must_each_be():
    assert [is_large(0.02, times) for times in (1, 2, 3)] == [True, True, False]


# --- how many ---


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=40), seeds)
def test_every_image_came_went_or_stayed(times, seed):
    before, now = np.array([*times, (1, 1), (1, 1)]).T
    rows = power_law(len(now), 8, seed=seed)
    drift = measure_drift(Sample.of(rows, before), Sample.of(rows, now))
    assert drift.exact
    assert drift.came.images == np.maximum(now - before, 0).sum()
    assert drift.went.images == np.maximum(before - now, 0).sum()
    assert drift.stayed == now.sum() - drift.came.images == before.sum() - drift.went.images


def test_of_large_sets_it_is_estimated_how_many_came_and_went():
    rows = power_law(6000, 16)
    drift = measure_drift(*keyed(rows, slice(5000), slice(1000, None)))
    assert not drift.exact
    assert drift.came.images == pytest.approx(1000, rel=0.25)
    assert drift.went.images == pytest.approx(1000, rel=0.25)
    assert drift.stayed == 5000 - drift.came.images


def test_a_large_set_and_a_small_one_are_compared_as_far_as_both_are_known():
    rows = power_law(3000, 16)
    drift = measure_drift(*keyed(rows, slice(None), slice(300)))
    assert drift.came.images == 0
    assert drift.went.images == pytest.approx(2700, rel=0.05)


def test_sets_without_common_contents_are_compared_whatever_their_sizes():
    rows = power_law(5060, 16)
    rows[5030:] = power_law(30, 16, exponent=0.0)
    keys = np.random.default_rng(0).integers(0, 2**64, len(rows), dtype=np.uint64)
    keys[5000:] |= np.uint64(1 << 63)  # beyond all that is known of the large one
    large, same, other = (
        Sample.of(rows[part], keys=keys[part])
        for part in (slice(5000), slice(5000, 5030), slice(5030, None))
    )
    for small, found in ((same, False), (other, True)):
        for drift in (measure_drift(large, small), measure_drift(small, large)):
            assert (drift.large, drift.stayed, drift.exact) == (found, 0, False)
            assert {drift.came.images, drift.went.images} == {5000, 30}


def test_rows_that_are_all_the_same_have_not_moved():
    rows = np.ones((60, 8))
    keys = np.arange(60, dtype=np.uint64)
    same = [Sample.of(rows[part], keys=keys[part]) for part in (slice(40), slice(20, None))]
    assert not measure_drift(*same).large


def test_a_picture_without_end_takes_no_memory():
    rows = power_law(60, 16)
    sample = Sample.of(rows, np.array([10**12, *[1] * 59]))
    assert not measure_drift(sample, sample).large


# --- distances ---


@given(st.integers(20, 60), st.integers(20, 60), st.integers(1, 12), seeds)
def test_the_frechet_distance_is_the_textbooks(n, m, dimension, seed):
    one = power_law(n, dimension + 1, seed=seed)
    other = power_law(m, dimension + 1, exponent=0.5, seed=seed + 1) + 0.3
    found = frechet_distance(Moments.of(one), Moments.of(other))
    assert found == pytest.approx(textbook(one, other), rel=1e-6)


@given(seeds)
def test_the_way_there_is_as_far_as_the_way_back(seed):
    one = Moments.of(power_law(50, 12, seed=seed))
    other = Moments.of(power_law(40, 12, exponent=0.3, seed=seed + 1))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-6)
    assert principal_angles(one, other) == pytest.approx(principal_angles(other, one), abs=1e-4)


@given(seeds, st.floats(0, 90))
def test_a_plane_that_is_tilted_by_an_angle_is_found_to_be(seed, angle):
    rng = np.random.default_rng(seed)
    flat = np.zeros((50, 6))
    flat[:, :2] = rng.standard_normal((50, 2))
    turn, tilt = np.eye(6), np.radians(angle)
    turn[1, 1] = turn[2, 2] = np.cos(tilt)
    turn[1, 2], turn[2, 1] = np.sin(tilt), -np.sin(tilt)
    axes = rotation(6, seed)
    found = principal_angles(Moments.of(flat @ axes), Moments.of(flat @ turn @ axes), leading=2)
    assert found == pytest.approx([0, angle], abs=1e-4)


def test_there_are_no_more_angles_than_dimensions():
    one, other = Moments.of(power_law(20, 3)), Moments.of(power_law(20, 3, seed=1))
    assert principal_angles(one, other).shape == (3,)


def test_the_same_sets_have_the_same_drift_each_time(icons):
    one, two = (measure_drift(Sample.of(icons[:500]), Sample.of(icons[500:1000])) for _ in range(2))
    assert (one.centroid, one.frechet, one.came, one.went) == (
        two.centroid,
        two.frechet,
        two.came,
        two.went,
    )
    assert one.angles.tolist() == two.angles.tolist()


def test_a_new_placeholder_is_counted_whatever_its_key():
    rows = np.random.default_rng(0).standard_normal((3001, 16))
    for key in (0, 10_000):
        keys = np.r_[np.arange(1, 3001), key].astype(np.uint64)
        before = Sample.of(rows[:3000], keys=keys[:3000], capacity=500)
        now = Sample.of(rows, np.r_[np.ones(3000, int), 1000], keys, capacity=500)
        came, went = measure_drift(before, now), measure_drift(now, before)
        assert (came.came.images, came.went.images, came.stayed) == (1000, 0, 3000)
        assert (went.came.images, went.went.images, went.stayed) == (0, 1000, 3000)
