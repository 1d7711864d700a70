"""The corrected score: right at any size on real and made-up rows, and what must not change it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visdiv_assets.spectral.corrected import ENOUGH_UNITS, corrected, corrected_score
from visdiv_assets.spectral.sample import Sample, row_keys
from visdiv_assets.spectral.score import DiversityCalculator
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio
from visdiv_assets_tests.spectral.matrices import power_law, rotation, seeds

ICONS = Path(__file__).parents[1] / "data" / "embeddings_icons.npy"
DRAWS = 20


def gaussian(n, spectrum, seed):
    spectrum = np.asarray(spectrum, dtype=float)
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, len(spectrum))) * np.sqrt(spectrum)


def true_score(spectrum):
    er, pr = effective_rank(spectrum), participation_ratio(spectrum)
    return min(float(np.sqrt(er * pr)) / len(spectrum), 1.0)


def numbers(measured):
    return np.array(
        [
            measured.score,
            measured.low,
            measured.high,
            measured.effective_rank,
            measured.participation_ratio,
        ]
    )


SPECTRA = {
    "flat": np.ones(256),
    "power law 1/2": np.arange(1, 257) ** -0.5,
    "power law 1": np.arange(1, 257) ** -1.0,
    "spiked": np.r_[np.full(10, 20.0), np.ones(246)],
    "low rank": np.r_[np.ones(40), np.zeros(216)],
}


@pytest.fixture(scope="module")
def icons():
    return np.load(ICONS)


@pytest.fixture(scope="module")
def all_icons(icons):
    return corrected_score(icons)


@pytest.mark.parametrize("n", [100, 400, 1600])
def test_a_part_of_a_real_dataset_has_the_score_of_the_whole(icons, all_icons, n):
    rng = np.random.default_rng(n)
    parts = [corrected_score(icons[rng.choice(len(icons), n, False)]) for _ in range(DRAWS)]
    assert np.mean([part.score for part in parts]) == pytest.approx(all_icons.score, rel=0.05)
    assert np.mean([part.low <= all_icons.score <= part.high for part in parts]) >= 0.9


@pytest.mark.parametrize("n", [100, 400, 1600])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_score_of_a_known_spectrum_is_found_at_any_size(name, n):
    truth = true_score(SPECTRA[name])
    found = [corrected_score(gaussian(n, SPECTRA[name], seed)) for seed in range(DRAWS)]
    assert np.mean([each.score for each in found]) == pytest.approx(truth, rel=0.05)
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.9


@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("name", SPECTRA)
def test_copies_are_no_evidence(name, n):
    truth, scores, covered = true_score(SPECTRA[name]), [], []
    for seed in range(DRAWS):
        rows = gaussian(n * 6 // 10, SPECTRA[name], seed)
        copies = np.random.default_rng(seed).integers(len(rows), size=n - len(rows))
        measured = corrected_score(np.concatenate([rows, rows[copies]]))
        scores.append(measured.score)
        covered.append(measured.low <= truth <= measured.high)
    assert np.mean(scores) == pytest.approx(truth, rel=0.05)
    assert np.mean(covered) >= 0.9


def test_rows_of_very_different_length_do_not_bias_it():
    spectrum, truth, scores = np.arange(1, 257) ** -0.5, true_score(np.arange(1, 257) ** -0.5), []
    for seed in range(DRAWS):
        lengths = 1 + np.random.default_rng(seed).exponential(size=(200, 1))
        scores.append(corrected_score(gaussian(200, spectrum, seed) * lengths).score)
    assert np.mean(scores) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("dimension", [1, 2, 32, 64])
def test_plain_and_corrected_agree_where_rows_abound(dimension):
    rows = power_law(100 * dimension, dimension, exponent=0.8, seed=dimension)
    rows = rows + np.arange(len(rows))[:, None] * 1e-9 if dimension == 1 else rows
    plain = DiversityCalculator().measure(rows)
    measured = corrected_score(rows, sampling_unit="row")
    assert measured.score == pytest.approx(plain.score, rel=0.01)
    assert measured.effective_rank == pytest.approx(plain.effective_rank, rel=0.01)
    assert measured.participation_ratio == pytest.approx(plain.participation_ratio, rel=0.02)


def test_other_kept_rows_of_the_same_images_give_a_score_within_the_interval():
    rows = gaussian(3600, np.ones(256), 0)
    rows = np.concatenate([rows, rows[np.random.default_rng(1).integers(len(rows), size=2400)]])
    _, first, of = np.unique(row_keys(rows), return_index=True, return_inverse=True)
    counts = np.bincount(of)
    found = []
    for seed in range(DRAWS):  # the rows with the smallest keys are kept
        keys = np.random.default_rng(seed).permutation(len(counts)).astype(np.uint64)
        found.append(corrected(Sample.of(rows[first], counts, keys)))
    mean = np.mean([each.score for each in found])
    held = [each.low <= mean <= each.high for each in found]
    assert sum(held) >= 0.9 * DRAWS


def test_few_rows_leave_more_room_below_the_score_than_above():
    # What they do not resolve is extrapolated close to the largest that is possible.
    for name in ("power law 1/2", "spiked"):
        measured = corrected_score(gaussian(60, SPECTRA[name], 3), sampling_unit="row")
        down, up = measured.score / measured.low, measured.high / measured.score
        assert np.log(down) > 1.1 * np.log(up)


def test_more_rows_than_are_kept_give_a_narrower_interval_around_the_same_score():
    spectrum = SPECTRA["power law 1"]
    few, many = (Sample.of(gaussian(n, spectrum, 1), capacity=200) for n in (200, 5000))
    assert few.complete
    assert not many.complete
    few, many = corrected(few), corrected(many)
    assert few.low < true_score(spectrum) < few.high
    assert many.low < true_score(spectrum) < many.high
    assert many.high - many.low < (few.high - few.low) / 3


@given(seeds)
@settings(max_examples=10)
def test_the_order_of_rows_does_not_change_a_bit(seed):
    rows = power_law(1300, 16).astype(np.float32)
    shuffled = rows[np.random.default_rng(seed).permutation(len(rows))]
    assert corrected_score(shuffled) == corrected_score(rows)


@given(st.integers(2, 5), seeds)
@settings(max_examples=10)
def test_every_row_several_times_changes_nothing(times, seed):
    rows = power_law(200, 64, seed=seed)
    repeated = corrected_score(np.repeat(rows, times, axis=0))
    assert numbers(repeated) == pytest.approx(numbers(corrected_score(rows)), rel=1e-6)
    assert repeated.n == 200 * times


@given(seeds, st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([0.0, 1.0, 100.0]))
@settings(max_examples=20)
def test_turning_scaling_and_shifting_change_nothing(seed, scale, shift):
    rows = power_law(150, 32, seed=seed)
    moved = scale * (rows @ rotation(32, seed) + shift)
    # Near-duplicates are no more the same ones, as shifted rows have other cosines.
    found, due = (corrected_score(each, sampling_unit="row") for each in (moved, rows))
    assert numbers(found) == pytest.approx(numbers(due), rel=1e-6)


def test_a_row_that_is_the_mean_itself_counts_as_any_other():
    rows = power_law(60, 8)
    measured = corrected_score(np.concatenate([rows, -rows, np.zeros((1, 8))]), sampling_unit="row")
    assert not np.isnan(numbers(measured)).any()


@given(st.integers(50, 400), st.integers(1, 60), st.integers(1, 60), seeds)
@settings(max_examples=60)
def test_what_is_reported_is_in_range_and_in_order(n, dimension, rank, seed):
    rng = np.random.default_rng(seed)
    rank = min(rank, dimension)
    rows = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, dimension))
    measured = corrected_score(rows * rng.exponential(size=(n, 1)), sampling_unit="row")
    assert not measured.too_few
    er, pr = measured.effective_rank, measured.participation_ratio
    for value, (low, high) in (
        (er, measured.effective_rank_interval),
        (pr, measured.participation_ratio_interval),
    ):
        assert 1 <= low <= value <= high <= dimension
    assert 0 <= measured.low <= measured.score <= measured.high <= 1
    assert 1 <= measured.participation_ratio <= measured.effective_rank <= dimension
    assert measured.score == pytest.approx(
        np.sqrt(measured.effective_rank * measured.participation_ratio) / dimension
    )


@pytest.mark.parametrize(
    "rows",
    [
        power_law(2, 8),
        power_law(ENOUGH_UNITS - 1, 8),
        np.repeat(power_law(10, 8), 4, axis=0),
        np.ones((ENOUGH_UNITS - 1, 8)),
    ],
    ids=["two", "one too few", "few copies of ten", "one picture"],
)
def test_too_few_distinct_rows_have_no_score(rows):
    measured = corrected_score(rows)
    assert measured.too_few
    assert np.isnan(numbers(measured)).all()
    assert measured.n == len(rows)


@pytest.mark.parametrize("times", [2, 10, 100])
def test_copies_of_few_pictures_are_as_few_as_the_pictures(times):
    measured = corrected_score(np.repeat(power_law(45, 512), times, axis=0))
    assert measured.too_few
    assert measured.n_units == pytest.approx(45)


def test_where_pictures_may_still_be_unseen_copies_are_no_score():
    copies = np.repeat(power_law(10, 8), 3, axis=0)
    assert corrected_score(np.concatenate([copies, power_law(30, 8, seed=1)])).too_few


def test_just_enough_rows_have_a_score():
    assert not corrected_score(power_law(ENOUGH_UNITS, 8), sampling_unit="row").too_few


def test_rows_may_be_memory_mapped_float16(icons, all_icons):
    assert corrected_score(np.load(ICONS, mmap_mode="r")) == all_icons
    assert corrected_score(icons.astype(np.float64)) == all_icons


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones(5), "matrix of shape"),
        (np.ones((1, 5)), "at least 2 embeddings"),
        (np.ones((0, 5)), "at least 2 embeddings"),
        (np.full((60, 5), np.nan), "NaN or infinity"),
        (np.ones((60, 5), complex), "real numbers"),
        (np.ones((60, 0)), "dimension 0"),
    ],
)
def test_what_is_no_set_of_embeddings_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        corrected_score(rows)


def test_a_sample_of_one_row_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        corrected(Sample.of(np.ones((1, 4))))


def test_a_large_content_is_counted_wherever_its_key_lies():
    rows = np.random.default_rng(0).standard_normal((10_100, 16))
    order = np.argsort(row_keys(rows))
    for at in (8100, 8180, 10_000):  # rows are added up in blocks of 8,192, in order of keys
        given = np.concatenate([rows, np.repeat(rows[order[at]][None], 120, axis=0)])
        whole = corrected(Sample.of(given), np.arange(1025), origin=None)
        added = corrected_score(given, sampling_unit="row")
        assert (added.low, added.high) == pytest.approx((whole.low, whole.high), rel=1e-5)
