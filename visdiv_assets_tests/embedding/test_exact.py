"""Integer products give the moments that float64 gives, to the last bit, or decline."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.embedding.exact import LIMIT, IntegerMoments
from visdiv_assets.embedding.store import GRID
from visdiv_assets.spectral.moments import BLOCK_ROWS, Moments
from visdiv_assets_tests.spectral.test_moments import same_bits


def rows_of(integers):
    """Rows on the grid that float16 holds; of larger numbers it keeps the first 11 bits."""
    return (np.asarray(integers) * GRID).astype(np.float16)


@given(st.integers(1, 700), st.integers(0, 2**32), st.sampled_from([3, 300, LIMIT - 16]))
def test_integer_products_give_the_bits_of_float64(n, seed, largest):
    rng = np.random.default_rng(seed)
    rows = rows_of(rng.integers(-largest, largest + 1, (n, 16)))
    integers = IntegerMoments(16)
    assert integers.add(rows) is not None
    assert integers.add(rows[::-1].copy()) is not None
    assert same_bits(integers.moments(), Moments.of(rows) + Moments.of(rows))


def test_the_largest_numbers_and_a_full_block_do_not_overflow():
    rows = rows_of(np.where(np.random.default_rng(0).random((BLOCK_ROWS, 16)) < 0.5, -1, 1) * 32624)
    integers = IntegerMoments(16)
    for _ in range(3):
        assert integers.add(rows) is not None
    whole = Moments.of(rows)
    assert same_bits(integers.moments(), whole + whole + whole)


def test_the_norm_error_is_that_of_the_rows():
    rows = rows_of(np.eye(16) * 16384)
    assert IntegerMoments(16).add(rows) == pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize("bad", [2.0**-16, 1.0, -1.0, 7.0, np.nan, np.inf])
def test_rows_that_8_bits_cannot_hold_are_left_to_float64(bad):
    rows = rows_of(np.ones((600, 16)))
    rows[555, 3] = bad
    integers = IntegerMoments(16)
    assert integers.add(rows) is None
    assert integers.moments().n == 0
