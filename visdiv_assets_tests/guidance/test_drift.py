"""Drift: distances as textbooks have them, and the line between movement and chance."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.guidance.drift import frechet_distance, measure_drift, principal_angles
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets_tests.spectral.matrices import power_law, rotation, seeds

ICONS = Path(__file__).parents[1] / "data" / "embeddings_icons.npy"


@pytest.fixture(scope="module")
def icons():
    return np.load(ICONS)


def textbook(one, other):
    s, t = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    overlap = np.trace(scipy.linalg.sqrtm(s @ t)).real
    apart = np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2)
    return apart + np.trace(s) + np.trace(t) - 2 * overlap


def test_a_set_has_not_moved_from_itself(icons):
    drift = measure_drift(Sample.of(icons[:600]), Sample.of(icons[:600]))
    assert drift.centroid == 0
    assert drift.frechet == pytest.approx(0, abs=1e-6)
    assert drift.sampled == pytest.approx(0, abs=1e-6)
    assert drift.angles == pytest.approx(np.zeros(10), abs=1e-4)
    assert not drift.large


def test_halves_of_one_dataset_differ_by_chance_only(icons):
    large = 0
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(icons))
        halves = (Sample.of(icons[half]) for half in np.array_split(order, 2))
        large += measure_drift(*halves).large
    assert large <= 1


def shifted(rows):
    moved = rows + 0.05
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def of_fewer_things(rows):
    rows = rows.copy()
    rows[: len(rows) // 2] = rows[:20].repeat(len(rows) // 40, axis=0)
    return rows


def of_other_things(rows):
    rows = rows.copy()
    rows[: len(rows) // 2] = power_law(len(rows) // 2, rows.shape[1], exponent=0.5)
    return rows


@pytest.mark.parametrize("change", [shifted, of_fewer_things, of_other_things])
def test_a_half_that_was_changed_is_more_than_chance(icons, change):
    order = np.random.default_rng(0).permutation(len(icons))[:1600]
    before, now = icons[order[:800]], change(icons[order[800:]].astype(np.float64))
    assert measure_drift(Sample.of(before), Sample.of(now)).large


def test_copies_count_in_proportion():
    rows = power_law(300, 16)
    times = np.ones(300, dtype=np.int64)
    times[0] = 1000
    once, often = Sample.of(rows), Sample.of(rows, times)
    assert measure_drift(once, often).large
    for seed in range(3):
        times = np.random.default_rng(seed).multinomial(10_000, np.full(300, 1 / 300))
        assert not measure_drift(once, Sample.of(rows, times)).large


def test_a_picture_of_which_there_are_many_does_not_hide_the_others():
    same, gone, come = power_law(1, 16), power_law(50, 16, seed=1), power_law(50, 16, seed=2)
    times = np.array([100, *[20] * 50])
    before, now = (Sample.of(np.concatenate([same, rows]), times) for rows in (gone, come))
    assert measure_drift(before, now).large


def test_a_picture_without_end_takes_no_memory():
    rows = power_law(60, 16)
    sample = Sample.of(rows, np.array([10**12, *[1] * 59]))
    assert not measure_drift(sample, sample).large


@given(st.integers(20, 60), st.integers(20, 60), st.integers(1, 12), seeds)
def test_the_frechet_distance_is_the_textbooks(n, m, dimension, seed):
    one = power_law(n, dimension + 1, seed=seed)
    other = power_law(m, dimension + 1, exponent=0.5, seed=seed + 1) + 0.3
    found = frechet_distance(Moments.of(one), Moments.of(other))
    assert found == pytest.approx(textbook(one, other), rel=1e-6)


def test_from_rows_it_is_what_it_is_from_moments():
    one, other = power_law(100, 16), power_law(90, 16, exponent=0.5, seed=1)
    drift = measure_drift(Sample.of(one), Sample.of(other))
    assert drift.sampled == pytest.approx(drift.frechet, rel=1e-6)


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
    assert (one.centroid, one.frechet, one.sampled, one.by_chance) == (
        two.centroid,
        two.frechet,
        two.sampled,
        two.by_chance,
    )
    assert one.angles.tolist() == two.angles.tolist()
