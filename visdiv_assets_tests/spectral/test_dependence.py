"""Images that are no independent draws: the same score, an honest interval, or too few to tell."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visdiv_assets.guidance.comparison import Scored, compare
from visdiv_assets.quality.ratings import NEARLY_ONE_IMAGE, Reading, rated
from visdiv_assets.spectral.corrected import CorrectedScore, corrected, corrected_score
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.sampling import near_duplicate_units, row_units, times_larger, units_of
from visdiv_assets.spectral.score import diversity
from visdiv_assets.spectral.vendi import alikeness
from visdiv_assets_tests.spectral.matrices import seeds

ICONS = Path(__file__).parents[1] / "data" / "embeddings_icons.npy"


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def alike(rows, cosine, seed=0):
    """Rows of which each has this cosine similarity with its own of `rows`."""
    noise = np.random.default_rng([seed, 1]).standard_normal(rows.shape)
    noise -= np.sum(noise * rows, axis=1, keepdims=True) * rows
    return cosine * rows + np.sqrt(1 - cosine**2) * unit(noise)


@pytest.fixture(scope="module")
def photos(demo):
    return unit(demo.rows.astype(np.float64))


@pytest.fixture(scope="module")
def icons():
    """Icons of which no two are near-duplicates."""
    rows = unit(np.load(ICONS).astype(np.float64))
    rows = rows[np.random.default_rng(0).permutation(len(rows))[:2000]]
    _, first = np.unique(near_duplicate_units(rows), return_index=True)
    return rows[first]


def of_images(rows):
    """As a dataset has them: each image has a content key of its own, whatever it looks like."""
    keys = np.random.default_rng(1).permutation(len(rows)).astype(np.uint64)
    return Sample.of(rows, keys=keys)


def covers(measured: CorrectedScore, truth: float) -> bool:
    return measured.low <= truth <= measured.high


def test_files_that_were_saved_again_without_change_change_nothing(photos):
    # 213 photographs, and the same with another comment in each file: other bytes, equal pixels
    once = corrected(of_images(photos))
    twice = of_images(np.concatenate([photos, photos]))
    for units in (None, row_units(twice.rows)):
        assert corrected(twice, units).score == pytest.approx(once.score, rel=1e-3)
        assert corrected(twice, units).n_units == pytest.approx(once.n_units, rel=0.03)
    assert corrected_score(np.concatenate([photos, photos])).score == pytest.approx(
        once.score, rel=1e-3
    )
    assert once.score == pytest.approx(0.79, abs=0.01)


@pytest.mark.parametrize("cosine", [0.99, 0.95, 0.92])
def test_photographs_in_two_sizes_score_as_in_one(photos, cosine):
    both = of_images(np.concatenate([photos, alike(photos, cosine)]))
    once, twice = corrected(of_images(photos)), corrected(both)
    assert twice.score == pytest.approx(once.score, rel=0.05)
    assert twice.n_units == pytest.approx(once.n_units, rel=0.05)
    assert covers(twice, once.score)
    # taken for independent images, they score far less, and that is said
    as_rows = corrected(both, row_units(both.rows))
    assert as_rows.high < twice.low


def test_some_near_copies_leave_an_interval_that_holds_the_truth(icons):
    covered = []
    for share in (0.05, 0.1, 0.2, 0.5):
        n = round(len(icons) * share)
        truth = corrected(of_images(np.concatenate([icons, alike(icons[:n], 0.95)]))).score
        for seed in range(10):
            rng = np.random.default_rng([n, seed])
            rows = icons[rng.choice(len(icons), 200, replace=False)]
            copies = alike(rows[: round(200 * share)], 0.95, seed)
            measured = corrected(of_images(np.concatenate([rows, copies])))
            covered.append(covers(measured, truth))
    assert np.mean(covered) >= 0.9


def test_one_photograph_with_noise_is_nearly_one_image(photos):
    noisy = alike(np.repeat(photos[:1], 80, axis=0), 0.9925)  # 0.985 to each other
    measured, spread = corrected(of_images(noisy)), alikeness(of_images(noisy).moments).spread
    assert measured.too_few
    assert round(measured.n_units) == 1
    assert spread == pytest.approx(0.015, abs=0.003)
    assert diversity(of_images(noisy).moments).score > 0.1  # whatever these numbers say
    for reading in (Reading(None, None, None), Reading(0.49, 0.48, 0.5)):
        assert rated(reading, 80, spread, 80).name == NEARLY_ONE_IMAGE
        assert not rated(reading, 80, spread, 80).stars


def test_few_photographs_with_copies_are_as_few_as_without(photos):
    once, twice = of_images(photos[:45]), of_images(np.concatenate([photos[:45]] * 2))
    assert corrected(once).too_few
    assert corrected(twice).too_few
    assert corrected(twice).n_units == corrected(once).n_units == pytest.approx(45)


@pytest.mark.parametrize("times", [2, 5, 20])
@pytest.mark.parametrize("heavy", [1, 8])
def test_one_image_more_makes_no_jump(icons, heavy, times):
    copies = np.repeat(icons[:heavy], times - 1, axis=0)
    scores = [
        corrected(of_images(np.concatenate([icons[:n], copies]))).score
        for n in (*range(210, 224), *range(300, 304))
    ]
    steps = np.abs(np.diff(np.log(scores)))[np.r_[0:13, 14:17]]
    assert steps.max() < 0.03


def test_a_picture_that_fills_a_dataset_is_a_part_of_the_population(icons):
    """Half of the images are one: that is how the dataset is, and its share is an estimate too."""
    others = icons[40:]
    half = np.concatenate([others, np.repeat(icons[:1], len(others), axis=0)])
    truth = corrected(of_images(alike(half, 0.99))).score
    covered, told = 0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rows = others[rng.choice(len(others), 400, replace=False)]
        rows[rng.random(400) < 0.5] = icons[0]
        measured = corrected(of_images(alike(rows, 0.99, seed)))
        covered += covers(measured, truth)
        told += not measured.too_few
    assert told == 12
    assert covered >= 11


@pytest.mark.parametrize("n", [100, 200, 500])
def test_a_tight_cluster_with_a_handful_of_others_cannot_be_told(icons, n):
    rows = np.concatenate(
        [alike(np.repeat(icons[:1], n - n // 100, axis=0), 0.99), icons[1 : 1 + n // 100]]
    )
    assert corrected(of_images(rows)).too_few


def test_clips_are_as_many_as_the_clips_also_where_few_of_their_frames_are_kept(icons):
    frames = np.concatenate([alike(icons[:1200], 0.96, seed) for seed in range(4)])
    sample = of_images(frames)
    assert not sample.complete
    measured = corrected(sample)
    assert measured.n_units == pytest.approx(1200, rel=0.15)
    assert covers(measured, corrected(of_images(alike(icons, 0.96))).score)


def test_halves_of_one_pool_of_clips_score_alike(icons):
    clips = alike(np.repeat(icons[:1200], 5, axis=0), 0.96)
    sure = 0
    for number in range(8):
        scored = []
        for half in range(2):
            part = clips.reshape(1200, 5, -1)[150 * number + 75 * half :][:75].reshape(375, -1)
            found = corrected(of_images(part))
            scored.append(Scored("ab"[half], found.score, found.low, found.high))
        sure += compare(scored)[0].sure
    assert sure <= 1


def test_the_source_may_say_what_one_piece_of_evidence_is(icons):
    rows = unit(np.repeat(icons[:300], 3, axis=0) + 0.9 * icons[300:1200])  # not alike enough
    album = np.repeat(np.arange(300, dtype=np.uint64), 3)
    order = np.random.default_rng(1).permutation(len(rows))
    sample = Sample.of(rows[order], keys=np.arange(len(rows), dtype=np.uint64))
    told = Sample(sample.moments, sample.keys, sample.rows, sample.counts, units=album[order])
    assert round(corrected(sample).n_units) > 800
    assert round(corrected(told).n_units) == 300
    assert len(np.unique(units_of(told))) == 300
    wide, narrow = corrected(told), corrected(sample)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


@given(seeds, st.integers(1, 6), st.floats(0.3, 0.9))
@settings(max_examples=30)
def test_the_size_of_units_is_known_from_a_part_of_their_rows(seed, size, kept):
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(2000), size)
    part = units[rng.random(len(units)) < kept]
    _, numbered = np.unique(part, return_inverse=True)
    factors = times_larger(numbered, kept)
    found = float(factors @ np.bincount(numbered))
    seen = len(np.unique(part))
    assert found == pytest.approx(size * seen, rel=0.25)
    assert (factors >= 1).all()


@given(seeds)
@settings(max_examples=10)
def test_units_do_not_depend_on_the_order_of_rows(seed):
    rng = np.random.default_rng(seed)
    rows = unit(rng.standard_normal((60, 16)) + 1e-9)
    rows = np.concatenate([rows, alike(rows[:20], 0.97, seed)])
    order = rng.permutation(len(rows))
    one, other = near_duplicate_units(rows)[order], near_duplicate_units(rows[order])
    assert len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist()))


def test_how_sure_a_score_is_does_not_depend_on_whether_a_placeholder_was_drawn(icons):
    rows = np.concatenate([icons[:1400], np.repeat(icons[1400:1401], 75, axis=0)])
    found = []
    for key in (0, 10_000):  # of the picture that is 5 % of all
        keys = np.r_[np.arange(1400) + 1, np.full(75, key)].astype(np.uint64)
        sample = Sample.of(rows, keys=keys, capacity=400)
        assert (sample.heavy is None) == (key == 0)
        found.append(corrected(sample))
    drawn, heavy = found
    assert heavy.score == pytest.approx(drawn.score, rel=5e-3)
    assert heavy.low == pytest.approx(drawn.low, rel=0.01)
    assert heavy.high == pytest.approx(drawn.high, rel=0.01)
    nowhere = corrected(Sample.of(icons[:1400], capacity=400))
    assert heavy.high - heavy.low > 1.2 * (nowhere.high - nowhere.low) * heavy.score / nowhere.score


def test_a_burst_of_different_pictures_counts_as_what_it_is_though_few_of_it_were_drawn(icons):
    burst = alike(np.repeat(icons[:1], 350, axis=0), 0.97)
    rows = unit(np.concatenate([icons[1:1401], burst]))
    keys = np.random.default_rng(5).permutation(len(rows)).astype(np.uint64)
    order = np.argsort(keys)
    few, all_of_it = (
        corrected(Sample.of(rows[order], keys=keys[order], capacity=capacity))
        for capacity in (600, 4000)
    )
    assert few.score == pytest.approx(all_of_it.score, rel=0.03)
    assert few.high - few.low == pytest.approx(all_of_it.high - all_of_it.low, rel=0.25)
    assert few.n_units == pytest.approx(all_of_it.n_units, rel=0.05)


def test_copies_change_no_interval_where_images_are_alike():
    rows = np.random.default_rng(0).standard_normal((300, 64)) / np.arange(1, 65) ** 0.5
    rows = unit(unit(rows) + 0.9 * np.eye(64)[63])
    once, tenfold = (
        corrected(Sample.of(rows, np.full(300, times), np.arange(300, dtype=np.uint64)))
        for times in (1, 10)
    )
    assert (tenfold.score, tenfold.high) == pytest.approx((once.score, once.high), rel=1e-6)
    assert once.high / once.score > once.score / once.low  # other images may be missing


def test_copies_of_one_picture_among_others_leave_a_score_that_falls(icons):
    others = corrected(of_images(icons[:60]))
    flooded = corrected(
        of_images(np.concatenate([icons[:60], np.repeat(icons[60:61], 400, axis=0)]))
    )
    assert not others.too_few
    assert not flooded.too_few  # though nearly all is one picture
    assert flooded.high < others.low
