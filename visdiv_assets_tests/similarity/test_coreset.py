"""Core-sets: distinct, repeatable, and never worse than twice the best."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_limits

from visdiv_assets.similarity import coreset_greedy, coreset_neighbours, coreset_rows
from visdiv_assets.similarity.coreset import (
    METHODS,
    RIDGE,
    covering_radius,
    select_diverse_samples,
)
from visdiv_assets.similarity.coreset_facility import greedy_facilities
from visdiv_assets.similarity.coreset_neighbours import nearest
from visdiv_assets.similarity.coreset_rows import BLOCK_ROWS, Rows
from visdiv_assets.spectral.score import DiversityCalculator

ICONS = Path(__file__).parents[1] / "data/embeddings_icons.npy"

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


@pytest.fixture(scope="module")
def icons():
    return np.load(ICONS)


def small_blocks(monkeypatch, size):
    for module in (coreset_rows, coreset_greedy):
        monkeypatch.setattr(module, "BLOCK_ROWS", size)
    monkeypatch.setattr(coreset_neighbours, "_PART", size)
    monkeypatch.setattr(coreset_neighbours, "_FIRST_PART", min(size, 64))


class OnDisk:
    """Rows by slice and by index array, and nothing else; notes how many were read at once."""

    def __init__(self, rows):
        self._rows, self.most = rows, 0

    @property
    def shape(self):
        return self._rows.shape

    def __getitem__(self, wanted):
        found = self._rows[wanted]
        self.most = max(self.most, len(found))
        return found


# --- k-centre ---


def plain_k_centre(rows, k):
    rows = rows.astype(np.float64)
    chosen = [int(np.argmin(((rows - rows.mean(axis=0)) ** 2).sum(axis=1)))]
    distance = np.full(len(rows), np.inf)
    while len(chosen) < k:
        distance = np.minimum(distance, ((rows - rows[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen] = -1
        chosen.append(int(np.argmax(distance)))
    return chosen


def test_k_centre_chooses_what_a_plain_loop_chooses_of_real_rows_with_copies(icons):
    rows = np.concatenate([icons[:1500], icons[:1500:3], icons[1500:2500]])
    assert select_diverse_samples(rows, 120).tolist() == plain_k_centre(rows, 120)


@pytest.mark.parametrize("size", [1, 7, 64])
@given(
    points=hnp.arrays(
        np.int8, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(-2, 2)
    ),
    data=st.data(),
)
def test_k_centre_breaks_ties_as_a_plain_loop_does_in_blocks_of_any_size(size, points, data):
    k = data.draw(st.integers(1, len(points)))
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, size)
        assert select_diverse_samples(points, k).tolist() == plain_k_centre(points, k)


# --- log-determinant ---


def greedy_slogdet(rows, k):
    """The determinant of every candidate set, from scratch."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    chosen = []
    while len(chosen) < k:

        def value(each, chosen=chosen):
            some = unit[[*chosen, each]]
            return np.linalg.slogdet(np.eye(len(some)) + some @ some.T / RIDGE)[1]

        values = [-np.inf if each in chosen else value(each) for each in range(len(rows))]
        best = max(values)
        chosen.append(next(at for at, each in enumerate(values) if each > best - 1e-9))
    return chosen


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 16), st.data())
def test_log_det_equals_the_determinants_computed_from_scratch(seed, dimension, n, data):
    """Also beyond as many rows as there are dimensions."""
    rows = np.random.default_rng(seed).standard_normal((n, dimension))
    k = data.draw(st.integers(1, n))
    assert select_diverse_samples(rows, k, "log-det").tolist() == greedy_slogdet(rows, k)


def test_log_det_fills_directions_evenly_beyond_the_dimension():
    rows = np.repeat(np.eye(3), 4, axis=0)
    directions = select_diverse_samples(rows, 12, "log-det") // 4
    for part in range(0, 12, 3):
        assert sorted(directions[part : part + 3]) == [0, 1, 2]


def test_log_det_looks_at_directions_alone_and_takes_zeros_last():
    rows = np.array([[0.0, 0.0], [1e-200, 0.0], [0.0, 1e200], [5.0, 5.0]])
    assert select_diverse_samples(rows, 4, "log-det").tolist() == [1, 2, 3, 0]


# --- leverage ---


def test_leverage_takes_the_greatest_ridge_leverage_scores(icons):
    rows = icons[:1000].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gram = rows.T @ rows
    ridge = 0.01 * np.trace(gram) / rows.shape[1]
    scores = np.diag(rows @ np.linalg.solve(gram + ridge * np.eye(len(gram)), rows.T))
    expected = np.argsort(-scores, kind="stable")[:100]
    assert select_diverse_samples(icons[:1000], 100, "leverage").tolist() == expected.tolist()


def test_leverage_orders_equal_rows_by_index_wherever_they_stand(icons):
    rows = np.tile(icons[:50], (90, 1))
    chosen = select_diverse_samples(rows, len(rows), "leverage").reshape(50, 90)
    assert (np.diff(chosen, axis=1) == 50).all()


def test_leverage_of_zeros_is_nothing_to_choose_by():
    assert select_diverse_samples(np.zeros((4, 3)), 2, "leverage").tolist() == [0, 1]


# --- facility location ---


def naive_facilities(n, demand, server, similarity, k):
    served, chosen = np.zeros(demand.max() + 1), []
    while len(chosen) < k:
        gains = np.bincount(server, np.maximum(similarity - served[demand], 0), minlength=n)
        gains[chosen] = -1
        best = int(np.argmax(gains))
        chosen.append(best)
        mine = server == best
        np.maximum.at(served, demand[mine], similarity[mine])
    return chosen


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 5))
def test_lazy_facility_location_equals_naive_greedy_on_the_same_graph(seed, n, degree):
    rng = np.random.default_rng(seed)
    demand = np.r_[np.arange(n), np.repeat(np.arange(n), degree)]
    server = np.r_[np.arange(n), rng.integers(n, size=n * degree)]
    similarity = np.r_[np.ones(n), rng.integers(0, 5, n * degree) / 4]  # many ties
    edges = dict(zip(zip(demand.tolist(), server.tolist(), strict=True), similarity, strict=True))
    demand, server = np.array(list(edges)).T
    graph = (n, demand, server, np.array(list(edges.values())))
    assert greedy_facilities(*graph, n).tolist() == naive_facilities(*graph, n)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 6))
def test_nearest_neighbours_equal_brute_force(seed, n, m):
    rows = np.random.default_rng(seed).integers(-2, 3, (n, 3)).astype(np.float64)
    queries = np.arange(0, n, 2)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, 8)
        number, at, cosine = nearest(Rows(rows), queries, m)
    grid = coreset_neighbours.directions(rows)
    every = grid[queries] @ grid.T
    for each, query in enumerate(queries):
        order = [other for other in np.lexsort((np.arange(n), -every[each])) if other != query]
        assert at[number == each].tolist() == order[:m]
        assert cosine[number == each].tolist() == every[each][order[:m]].tolist()


def test_facility_location_chooses_one_of_each_group():
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(4), [90, 10, 15, 5], axis=0) + 0.1 * rng.standard_normal((120, 4))
    chosen = select_diverse_samples(rows, 4, "facility-location")
    assert sorted(np.searchsorted([90, 100, 115], chosen, side="right")) == [0, 1, 2, 3]


def test_weights_say_what_is_to_be_represented():
    rows = np.repeat(np.eye(3), [50, 5, 20], axis=0)
    counted = select_diverse_samples(rows, 1, "facility-location", weights=np.ones(75))
    assert counted.tolist() == [0]
    wanted = np.r_[np.zeros(50), np.ones(5), np.zeros(20)]
    assert select_diverse_samples(rows, 1, "facility-location", weights=wanted).tolist() == [50]


# --- all methods ---


@pytest.mark.parametrize("method", METHODS)
def test_no_number_of_threads_and_no_size_of_blocks_changes_the_selection(method, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((2 * BLOCK_ROWS + 1, 64), dtype=np.float32)
    rows = np.concatenate([rows, rows[::7]])
    selections = []
    for threads, size in ((1, BLOCK_ROWS), (2, BLOCK_ROWS), (2, 999)):
        small_blocks(monkeypatch, size)
        with threadpool_limits(threads):
            selections.append(select_diverse_samples(rows, 40, method).tolist())
    assert selections[0] == selections[1] == selections[2]


@pytest.fixture(scope="module")
def best_at_random(icons):
    """The highest score of twenty random selections, by their size."""
    score = DiversityCalculator().calculate
    draws = [np.random.default_rng(seed).permutation(len(icons)) for seed in range(20)]
    return {k: max(score(icons[draw[:k]]) for draw in draws) for k in (50, 200)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_beats_each_of_twenty_random_selections_of_real_embeddings(
    icons, best_at_random, method
):
    chosen = select_diverse_samples(icons, 200, method)
    for k, best in best_at_random.items():
        assert DiversityCalculator().calculate(icons[chosen[:k]]) > best


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_read_in_blocks_and_give_what_an_array_gives(icons, method, monkeypatch):
    small_blocks(monkeypatch, 100)
    rows = OnDisk(icons[:1100])
    expected = select_diverse_samples(icons[:1100], 30, method, trim=0.1)
    assert np.array_equal(select_diverse_samples(rows, 30, method, trim=0.1), expected)
    assert rows.most <= 100


@pytest.mark.parametrize("method", METHODS)
def test_what_is_excluded_is_as_if_it_were_not_there(icons, method):
    exclude = np.arange(0, 600, 4)
    left = np.setdiff1d(np.arange(600), exclude)
    chosen = select_diverse_samples(icons[:600], 25, method, exclude=exclude)
    expected = left[select_diverse_samples(icons[left], 25, method)]
    assert chosen.tolist() == expected.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_included_comes_first_and_the_others_are_chosen_beside_it(icons, method):
    chosen = select_diverse_samples(icons[:600], 25, method, include=[17, 3], exclude=[0])
    assert chosen[:2].tolist() == [17, 3]
    assert len(set(chosen.tolist())) == 25
    same = select_diverse_samples(icons[:600], 2, method, include=[17, 3])
    assert same.tolist() == [17, 3]


def test_an_included_row_is_not_chosen_again_as_a_copy_of_itself():
    rows = np.eye(3)[[0, 0, 1, 2]]
    for method in ("k-centre", "log-det", "facility-location"):
        assert 1 not in select_diverse_samples(rows, 3, method, include=[0])


@pytest.mark.parametrize("method", ["k-centre", "leverage"])
def test_trimming_leaves_out_rows_that_are_like_no_other(method):
    rng = np.random.default_rng(0)
    common = rng.standard_normal((5, 64))[rng.integers(5, size=195)]
    rows = np.concatenate([common + 0.2 * rng.standard_normal((195, 64)), np.eye(64)[:5]])
    outliers = set(range(195, 200))
    assert outliers & set(select_diverse_samples(rows, 10, method).tolist())
    assert not outliers & set(select_diverse_samples(rows, 10, method, trim=0.025).tolist())
    kept = select_diverse_samples(rows, 10, method, trim=0.025, include=[197])
    assert kept[0] == 197


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [np.ones((1, 3)), np.zeros((5, 2)), np.full((5, 2), 3.0)])
def test_rows_that_do_not_differ_are_chosen_in_order(method, rows):
    n = len(rows)
    assert select_diverse_samples(rows, n, method).tolist() == list(range(n))


@pytest.mark.parametrize("method", METHODS)
def test_progress_never_passes_k(icons, method):
    told = []
    select_diverse_samples(icons[:100], 5, method, on_progress=lambda *each: told.append(each))
    assert all(done <= 5 == total for done, total in told)


def test_the_covering_radius_is_the_greatest_distance_from_the_nearest():
    rows = np.random.default_rng(0).standard_normal((50, 3)) + 100
    assert covering_radius(rows, np.array([1, 5, 7])) == pytest.approx(radius(rows, [1, 5, 7]))


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "one of k-centre, log-det, leverage, facility-location; got 'best'"),
        ({"include": [4]}, "include: there is no row 4 among 4"),
        ({"exclude": [-1]}, "exclude: there is no row -1 among 4"),
        ({"include": [1, 1]}, "include: row 1 is repeated"),
        ({"include": [1.5]}, "include must be row indices"),
        ({"include": [1], "exclude": [1]}, "row 1 is both included and excluded"),
        ({"include": [0, 1, 2]}, "3 rows are included, more than k = 2"),
        ({"exclude": [0, 1, 2]}, "the number of embeddings that are not excluded, 1; got 2"),
        ({"trim": 1.0}, "in [0, 1); got 1.0"),
        ({"trim": 0.75}, "the number of embeddings and not trimmed, 1; got 2"),
        (
            {"weights": np.ones(4)},
            "weights work only with facility-location; the method is k-centre",
        ),
        ({"weights": np.ones(3), "method": "facility-location"}, "4 finite, non-negative numbers"),
        ({"weights": -np.ones(4), "method": "facility-location"}, "finite, non-negative numbers"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_reason(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        select_diverse_samples(np.eye(4), 2, **options)


def test_rows_on_disk_are_checked_too():
    rows = np.zeros((3000, 2))
    rows[2999, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        select_diverse_samples(OnDisk(rows), 1)
    with pytest.raises(ValueError, match="the number of embeddings, 0; got 1"):
        select_diverse_samples(OnDisk(np.zeros((0, 0))), 1)
