"""Numbers near the ends of float64: the right score or a refusal, never 0.0 in silence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.spectral.corrected import corrected_score
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import (
    DiversityCalculator,
    diversity,
    diversity_score,
    get_diversity_components,
)
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio, spectrum

ROWS = np.random.default_rng(0).standard_normal((80, 16))

# All powers of 2 that leave these rows exactly as they are: none exceeds 2⁵, none is below 2⁻¹².
POWERS = st.integers(-1022 + 12 + 53, 1023 - 5)


@given(POWERS)
def test_the_score_does_not_change_when_vectors_are_scaled(power):
    scaled = np.ldexp(ROWS, power)
    assert DiversityCalculator().calculate(scaled) == pytest.approx(
        DiversityCalculator().calculate(ROWS), rel=1e-12
    )


@given(POWERS)
def test_the_components_do_not_change_when_vectors_are_scaled(power):
    ours, known = get_diversity_components(np.ldexp(ROWS, power)), get_diversity_components(ROWS)
    assert ours == pytest.approx(known, rel=1e-12)


@given(POWERS)
def test_the_corrected_score_does_not_change_when_vectors_are_scaled(power):
    ours, known = corrected_score(np.ldexp(ROWS, power)), corrected_score(ROWS)
    assert ours.score == pytest.approx(known.score, rel=1e-12)
    # Single precision is enough for errors.
    assert (ours.low, ours.high) == pytest.approx((known.low, known.high), rel=1e-6)


@given(POWERS)
def test_a_spectrum_is_exact_or_refused(power):
    try:
        measured = DiversityCalculator().measure(np.ldexp(ROWS, power))
    except ValueError:
        assert not -500 < power < 500
    else:
        whole = DiversityCalculator().measure(ROWS)
        assert measured.score == pytest.approx(whole.score, rel=1e-12)
        np.testing.assert_allclose(
            measured.spectrum, np.ldexp(whole.spectrum, 2 * power), rtol=1e-12, atol=5e-324
        )


@given(POWERS)
def test_moments_are_exact_or_refused(power):
    try:
        moments = Moments.of(np.ldexp(ROWS, power))
    except ValueError:
        assert not -400 < power < 400
    else:
        assert diversity(moments).score == pytest.approx(
            diversity(Moments.of(ROWS)).score, rel=1e-12
        )


@pytest.mark.parametrize("unit", [1.7e308, 1e200, 1e-200, 5e-324])
def test_four_corners_are_fully_diverse_however_far_apart(unit):
    corners = np.array([[unit, 0], [-unit, 0], [0, unit], [0, -unit]])
    assert DiversityCalculator().calculate(corners) == 1.0


@pytest.mark.parametrize("constant", [1.7e308, 1.0, 1e-300])
def test_what_varies_by_little_beside_a_large_constant_still_varies(constant):
    rows = np.array([[constant, 0.0], [constant, 5e-324], [constant, 1e-323]])
    assert DiversityCalculator().calculate(rows) == 0.5  # one direction of two


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-200, 1e200, 1.7e308])
def test_equal_rows_score_zero_at_any_length(value):
    assert DiversityCalculator().calculate(np.full((5, 3), value)) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "measure",
    [
        DiversityCalculator().calculate,
        DiversityCalculator().measure,
        get_diversity_components,
        corrected_score,
        Moments.of,
        Sample.of,
    ],
)
def test_what_is_no_number_is_refused(measure, value):
    rows = ROWS.copy()
    rows[3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        measure(rows)


def test_moments_that_lost_their_digits_are_refused():
    tiny = Moments(2, np.array([1e-200, 0.0]), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="too small"):
        spectrum(tiny)


def test_moments_that_exceed_float64_are_refused():
    for outer in (np.inf, np.nan):
        with pytest.raises(ValueError, match="exceed float64"):
            spectrum(Moments(2, np.zeros(2), np.full((2, 2), outer)))


@pytest.mark.parametrize("value", [1.7e308, 1.0, 1e-200, 5e-324])
def test_shares_of_eigenvalues_do_not_depend_on_their_size(value):
    assert effective_rank(np.full(4, value)) == pytest.approx(4)
    assert participation_ratio(np.full(4, value)) == pytest.approx(4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 513.0])
def test_a_score_of_impossible_components_is_refused(value):
    for components in ((value, 2.0), (2.0, value)):
        with pytest.raises(ValueError, match="lie between 0 and the dimension"):
            diversity_score(*components, 512)
