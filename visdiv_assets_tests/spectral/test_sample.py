"""What is kept of a dataset: the same however its parts come, and a fair sample of its contents."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample, row_keys
from visdiv_assets_tests.spectral.matrices import grid_rows, power_law, seeds


def same(a, b):
    return (
        a.moments.n == b.moments.n
        and np.array_equal(a.moments.total, b.moments.total)
        and np.array_equal(a.moments.outer, b.moments.outer)
        and np.array_equal(a.keys, b.keys)
        and np.array_equal(a.rows, b.rows)
        and np.array_equal(a.counts, b.counts)
        and a.capacity == b.capacity
    )


@given(grid_rows(), st.integers(1, 12), st.integers(2, 5), seeds)
def test_parts_in_any_order_add_up_to_the_sample_of_the_whole(rows, capacity, parts, seed):
    rng = np.random.default_rng(seed)
    rows = rows[rng.integers(len(rows), size=2 * len(rows))]
    part_of = rng.integers(parts, size=len(rows))
    samples = [Sample.of(rows[part_of == part], capacity=capacity) for part in range(parts)]
    whole = Sample.of(rows, capacity=capacity)
    forwards, backwards = samples[0], samples[-1]
    for sample in samples[1:]:
        forwards = forwards + sample
    for sample in samples[-2::-1]:
        backwards = sample + backwards
    assert same(forwards, whole)
    assert same(backwards, whole)


@given(grid_rows(), seeds)
def test_counts_are_copies(rows, seed):
    counts = np.random.default_rng(seed).integers(0, 4, size=len(rows))
    counts[0] = 1
    assert same(Sample.of(rows, counts), Sample.of(np.repeat(rows, counts, axis=0)))


def test_moments_are_those_of_all_rows_and_copies_of_a_kept_row_are_counted():
    rows = np.repeat(power_law(300, 8), 3, axis=0)
    sample = Sample.of(rows, capacity=20)
    assert np.allclose(sample.moments.outer, Moments.of(rows).outer)
    assert sample.moments.n == 900
    assert sample.counts.tolist() == [3] * 20
    assert not sample.complete
    assert Sample.of(rows).complete


def test_a_row_that_is_1_percent_of_a_dataset_is_kept_whatever_its_key():
    rows, keys = power_law(3000, 8), np.arange(3000, dtype=np.uint64)
    counts = np.ones(3000, dtype=np.int64)
    counts[[2500, 2700]] = 30, 36  # 0.98 and 1.2 %
    whole = Sample.of(rows, counts, keys, capacity=20)
    assert whole.keys.tolist() == list(range(20))
    assert (whole.heavy.keys.tolist(), whole.heavy.counts.tolist()) == ([2700], [36])
    assert np.array_equal(whole.heavy.rows, rows[[2700]])
    single = counts == 1
    one = np.where(single, np.arange(3000) % 2, counts // 2)
    halves = [Sample.of(rows, each, keys, capacity=20) for each in (one, counts - one)]
    both = halves[0] + halves[1]
    assert both.keys.tolist() == list(range(20))
    assert (both.heavy.keys.tolist(), both.heavy.counts.tolist()) == ([2700], [36])
    assert not whole.complete
    assert Sample.of(rows, counts, keys, capacity=3000).heavy is None


def test_copies_do_not_make_a_row_more_likely_to_be_kept():
    rows = np.arange(1000, dtype=float)[:, None]
    once = Sample.of(rows, capacity=100)
    often = Sample.of(rows, 1 + np.arange(1000) ** 2, capacity=100)
    assert np.array_equal(once.rows, often.rows)
    assert 400 < once.rows.mean() < 600


def test_keys_decide_what_is_kept():
    rows = np.array([[1.0], [2.0], [3.0]])
    sample = Sample.of(rows, keys=np.array([30, 10, 20], np.uint64), capacity=2)
    assert sample.rows.tolist() == [[2.0], [3.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_rows_have_equal_keys_in_every_dtype(dtype):
    rows = np.array([[0.5, -0.25], [0.0, 1.0], [-0.0, 1.0]])
    keys = row_keys(rows.astype(dtype))
    assert np.array_equal(keys, row_keys(rows))
    assert keys[1] == keys[2] != keys[0]


def test_a_key_is_the_hash_of_a_row_as_little_endian_doubles():
    digest = hashlib.blake2b(struct.pack("<2d", 0.5, 0.0), digest_size=8).digest()
    assert row_keys(np.array([[0.5, 0.0]])).tolist() == [int.from_bytes(digest, "little")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "at least 1 row"),
        ({"keys": np.zeros(2, np.uint64)}, "keys must be uint64 of shape"),
        ({"keys": np.zeros(3)}, "keys must be uint64 of shape"),
        ({"counts": np.array([1, 2])}, "counts must have shape"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sample.of(np.eye(3), **arguments)


def test_samples_that_do_not_fit_do_not_mix():
    with pytest.raises(ValueError, match="cannot combine samples of capacity 5 and 6"):
        _ = Sample.of(np.eye(3), capacity=5) + Sample.of(np.eye(3), capacity=6)
    with pytest.raises(ValueError, match="cannot combine moments of dimension 3 and 4"):
        _ = Sample.of(np.eye(3)) + Sample.of(np.eye(4))
