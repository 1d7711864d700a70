"""Core-sets: distinct, repeatable, and never worse than twice the best."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_limits

from visdiv_assets.similarity.coreset import select_diverse_samples
from visdiv_assets.similarity.coreset_rows import BLOCK_ROWS

coordinates = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))
few_points = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 7), st.integers(1, 3)), elements=coordinates
)


def radius(points, chosen):
    """Distance of the point farthest from all chosen ones."""
    between = np.linalg.norm(points[:, None] - points[None, list(chosen)], axis=2)
    return between.min(axis=1).max()


@given(few_points, st.data())
def test_the_chosen_cover_all_within_twice_the_best_radius(points, data):
    k = data.draw(st.integers(1, len(points)))
    best = min(radius(points, few) for few in itertools.combinations(range(len(points)), k))
    assert radius(points, select_diverse_samples(points, k)) <= 2 * best * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
@given(points=few_points, data=st.data())
def test_k_distinct_rows_are_chosen_the_same_every_time(dtype, points, data):
    points = np.clip(points, -100, 100).astype(dtype)
    k = data.draw(st.integers(1, len(points)))
    chosen = select_diverse_samples(points, k)
    assert chosen.dtype == np.int64
    assert len(set(chosen.tolist())) == k
    assert set(chosen.tolist()) <= set(range(len(points)))
    assert np.array_equal(chosen, select_diverse_samples(points, k))


@given(few_points, st.data())
def test_a_smaller_selection_begins_a_larger_one(points, data):
    k = data.draw(st.integers(1, len(points)))
    everything = select_diverse_samples(points, len(points))
    assert np.array_equal(select_diverse_samples(points, k), everything[:k])


@pytest.mark.parametrize("value", [0.0, 1 / 3, -1e30])
def test_equal_rows_are_chosen_in_order_and_once_each(value):
    assert select_diverse_samples(np.full((6, 4), value), 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_duplicates_come_last():
    rows = np.repeat(np.eye(4, dtype=np.float16), 3, axis=0)
    chosen = select_diverse_samples(rows, 12)
    assert sorted(chosen[:4] // 3) == [0, 1, 2, 3]


def test_of_equal_candidates_the_first_is_chosen():
    square = np.array([[1.0, 1], [1, -1], [-1, -1], [-1, 1], [0, 0]])
    assert select_diverse_samples(square, 5).tolist() == [4, 0, 1, 2, 3]


def test_points_far_from_the_origin_are_told_apart():
    points = np.array([[0.0], [1], [2], [3], [9]]) + 1e9
    assert select_diverse_samples(points, 3).tolist() == [3, 4, 0]


def test_no_number_of_threads_changes_the_selection():
    rows = np.random.default_rng(0).standard_normal((3 * BLOCK_ROWS + 1, 64), dtype=np.float32)
    selections = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            selections.append(select_diverse_samples(rows, 40).tolist())
    assert selections[0] == selections[1]


def test_ten_of_the_demo_photographs_are_less_alike_than_any_random_ten(demo):
    def closest(chosen):
        rows = demo.rows[chosen].astype(np.float64)
        return np.max(rows @ rows.T - 2 * np.eye(len(rows)))

    rng = np.random.default_rng(0)
    random = [closest(rng.choice(len(demo.rows), 10, replace=False)) for _ in range(20)]
    assert closest(select_diverse_samples(demo.rows, 10)) < min(random)


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_k_must_be_between_1_and_the_number_of_rows(k):
    with pytest.raises(ValueError, match=f"between 1 and the number of embeddings, 3; got {k}"):
        select_diverse_samples(np.zeros((3, 2)), k)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(3), "got 1 dimension(s)"),
        (np.zeros((0, 3)), "the number of embeddings, 0; got 1"),
        (np.array([[np.nan]]), "NaN or infinity"),
        (np.zeros((2, 2), complex), "real numbers"),
    ],
)
def test_anything_but_a_finite_real_matrix_is_refused_with_the_reason(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        select_diverse_samples(rows, 1)
