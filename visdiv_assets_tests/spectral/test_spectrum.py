"""Spectrum, effective rank and participation ratio: what they are, and what leaves them alone."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio, spectrum
from visdiv_assets_tests.spectral.matrices import matrices, rotation, seeds

eigenvalues = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e9)).filter(
    lambda values: values.sum() > 0
)


@given(matrices())
def test_the_spectrum_is_descending_and_not_negative(rows):
    values = spectrum(Moments.of(rows))
    assert values.shape == (rows.shape[1],)
    assert (values >= 0).all()
    assert (np.diff(values) <= 0).all()


def test_the_spectrum_of_uncorrelated_coordinates_is_their_variances():
    rows = np.random.default_rng(0).standard_normal((50, 3))
    rows = np.linalg.qr(rows - rows.mean(axis=0))[0] * np.sqrt(49) * [2.0, 3.0, 1.0]
    np.testing.assert_allclose(spectrum(Moments.of(rows)), [9, 4, 1], rtol=1e-12)


@given(matrices())
def test_the_spectrum_adds_up_to_the_total_variance(rows):
    variance = rows.astype(np.float64).var(axis=0, ddof=1).sum()
    assert spectrum(Moments.of(rows)).sum() == pytest.approx(variance, rel=1e-6, abs=1e-6)


def test_fewer_than_two_vectors_have_no_spectrum():
    with pytest.raises(ValueError, match="at least 2 vectors; got 1"):
        spectrum(Moments.of(np.ones((1, 4))))


@given(eigenvalues)
def test_one_is_at_most_pr_is_at_most_er_is_at_most_d(values):
    er, pr = effective_rank(values), participation_ratio(values)
    assert 1 <= pr <= values.size
    assert 1 <= er <= values.size
    assert pr <= er * (1 + 1e-12)


@given(eigenvalues, st.floats(1e-3, 1e3), st.randoms())
def test_scale_and_order_of_eigenvalues_do_not_matter(values, scale, random):
    assume(values[values > 0].min() > 1e-200)
    other = scale * values
    random.shuffle(other)
    assert effective_rank(other) == pytest.approx(effective_rank(values), rel=1e-9)
    assert participation_ratio(other) == pytest.approx(participation_ratio(values), rel=1e-9)


@given(st.integers(1, 64), st.integers(0, 64), st.floats(1e-9, 1e9))
def test_k_equal_eigenvalues_count_as_k(k, zeros, value):
    values = np.r_[np.full(k, value), np.zeros(zeros)]
    assert effective_rank(values) == pytest.approx(k, rel=1e-12)
    assert participation_ratio(values) == pytest.approx(k, rel=1e-12)


@given(st.integers(1, 12), st.integers(0, 12), seeds)
def test_k_orthogonal_directions_of_equal_variance_count_as_k(k, more, seed):
    axes = rotation(k + more, seed)[:k]
    values = spectrum(Moments.of(np.concatenate([axes, -axes])))
    assert effective_rank(values) == pytest.approx(k, rel=1e-9)
    assert participation_ratio(values) == pytest.approx(k, rel=1e-9)


def test_no_variance_counts_as_nothing():
    assert effective_rank(np.zeros(5)) == 0.0
    assert participation_ratio(np.zeros(5)) == 0.0


@pytest.mark.parametrize("values", [[1.0, -1e-9], [np.nan, 1.0], [np.inf], [[1.0]]])
@pytest.mark.parametrize("measure", [effective_rank, participation_ratio])
def test_only_finite_eigenvalues_that_are_not_negative_are_taken(measure, values):
    with pytest.raises(ValueError, match="vector of finite, non-negative numbers"):
        measure(values)
