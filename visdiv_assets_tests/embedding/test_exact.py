"""Integer products give the moments that float64 gives, to the last bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.embedding import exact
from visdiv_assets.embedding.exact import LIMIT, PRODUCT_ROWS, IntegerMoments, Scratch
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.store.store import GRID
from visdiv_assets_tests.spectral.test_moments import same_bits


def rows_of(integers):
    """Rows on the grid that float16 holds; of larger numbers it keeps the first 11 bits."""
    return (np.asarray(integers) * GRID).astype(np.float16)


def added_up(*blocks, counts=None):
    """Moments, and the largest error of a norm."""
    integers, scratch = IntegerMoments(blocks[0].shape[1]), Scratch(blocks[0].shape[1])
    error = 0.0
    for rows in blocks:
        times = np.ones(len(rows), dtype=np.int64) if counts is None else counts
        error = max(error, integers.add(rows, times, scratch))
    return integers.moments(), error


@given(
    n=st.integers(1, 700),
    dimension=st.sampled_from([8, 136, 512]),
    seed=st.integers(0, 2**32),
    largest=st.sampled_from([3, 300, LIMIT - 16, LIMIT + 16, 20_000, 32_752]),
)
def test_integer_products_give_the_bits_of_float64(n, dimension, seed, largest):
    rng = np.random.default_rng(seed)
    rows = rows_of(rng.integers(-largest, largest + 1, (n, dimension)))
    moments, _ = added_up(rows, rows[::-1].copy())
    assert same_bits(moments, Moments.of(rows) + Moments.of(rows))


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_coordinates_beyond_8_bits_here_and_there_cost_no_bit(seed, large):
    rng = np.random.default_rng(seed)
    integers = rng.integers(-1500, 1500, (3000, 16))
    integers[rng.integers(0, 3000, large), rng.integers(0, 16, large)] = 8 * rng.integers(
        -4096, 4096
    )
    rows = rows_of(integers)
    assert same_bits(added_up(rows)[0], Moments.of(rows))


@pytest.mark.parametrize("largest", [LIMIT, 32_752], ids=["within", "beyond"])
def test_the_largest_numbers_do_not_overflow_however_many_they_are(largest, monkeypatch):
    signs = np.where(np.random.default_rng(0).random((PRODUCT_ROWS, 16)) < 0.5, -1, 1)
    signs[:, 0] = -1
    rows = rows_of(signs * (largest // 8 * 8))
    moments, _ = added_up(*[rows] * 40)  # more than 32 bits hold
    assert same_bits(moments, Moments.of(rows, np.full(len(rows), 40)))


def test_copies_count_as_often_as_they_occur():
    rng = np.random.default_rng(0)
    rows, counts = rows_of(rng.integers(-1500, 1500, (5000, 16))), rng.integers(1, 4, 5000)
    assert same_bits(added_up(rows, counts=counts)[0], Moments.of(rows, counts))


def test_the_norm_error_is_that_of_the_rows():
    assert added_up(rows_of(np.eye(16) * 16384))[1] == pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize("large", [2.0**-16, 7.0, -60_000.0])
def test_rows_that_are_not_on_the_grid_are_added_in_float64(large):
    rows = rows_of(np.ones((PRODUCT_ROWS + 600, 16)))
    rows[555, 3] = large
    moments, error = added_up(rows)
    assert moments.n == len(rows)
    assert np.allclose(moments.outer, Moments.of(rows).outer, rtol=1e-12)
    assert error == pytest.approx(np.abs(np.linalg.norm(rows.astype(float), axis=1) - 1).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(bad):
    rows = rows_of(np.ones((600, 16)))
    rows[555, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        added_up(rows)


def test_a_processor_that_cannot_multiply_integers_is_found_out(monkeypatch):
    import torch

    def wrong(a, b, out):
        return torch.mm(a.float(), b.float()).clamp(-32768, 32767).int()

    exact._faster_and_exact.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", wrong)
    monkeypatch.setattr(exact.time, "perf_counter", iter(range(0, 1000, 1)).__next__)
    assert not exact._faster_and_exact()
    exact._faster_and_exact.cache_clear()
