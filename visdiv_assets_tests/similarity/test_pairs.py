"""Near-duplicates: what is found equals brute force, to the last pair, however it is found."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_limits

from visdiv_assets import find_near_duplicates
from visdiv_assets.similarity import exact, ivf, pairs
from visdiv_assets.similarity.pairs import nearest, similar_pairs
from visdiv_assets.similarity.sketch import Sketch, choose_sketch, margin
from visdiv_assets.similarity.units import similarities_of_all, units

ICONS = Path(__file__).parents[1] / "data" / "embeddings_icons.npy"
THRESHOLDS = [0.5, 0.75, 0.9, 0.99]


class Many(NamedTuple):
    """7,000 rows, and all pairs with a similarity of 0.49 or more, by brute force in float64."""

    rows: np.ndarray
    pairs: np.ndarray
    similarities: np.ndarray

    def assert_equal_at(self, threshold, found):
        """The same pairs, but for those that rounding may put on either side."""
        due, there = _codes(self.pairs), _codes(found.pairs)
        different = np.setxor1d(due[self.similarities >= threshold], there)
        place = np.searchsorted(due, different)
        assert np.array_equal(due[place], different)
        assert (np.abs(self.similarities[place] - threshold) < 1e-7).all()
        expected = self.similarities[np.searchsorted(due, there)]
        np.testing.assert_allclose(found.similarities, expected, rtol=0, atol=2e-7)

    def share_at(self, threshold, found):
        """Share of the pairs at a threshold that were found; all found must be pairs."""
        due = _codes(self.pairs[self.similarities >= threshold])
        there = np.isin(_codes(found.pairs), due)
        assert np.count_nonzero(~there) <= 1
        return np.count_nonzero(there) / len(due)


def _codes(some):
    """A number for each pair, ascending as pairs are."""
    return some[:, 0] * 20_000 + some[:, 1]


@pytest.fixture(scope="module")
def many() -> Many:
    """The icons, mixtures of them with noise, and copies of both at 0.7 to 0.999; any length."""
    rng = np.random.default_rng(0)
    icons = np.load(ICONS).astype(np.float32)
    first, second = rng.integers(len(icons), size=(2, 7000 - len(icons) - 1000))
    weight = rng.uniform(0.3, 0.7, (len(first), 1)).astype(np.float32)
    mixed = weight * icons[first] + (1 - weight) * icons[second]
    mixed += 0.02 * rng.standard_normal(mixed.shape, dtype=np.float32)
    rows = np.concatenate([icons, mixed])
    copied = rows[rng.choice(len(rows), 1000, replace=False)]
    noise = rng.standard_normal(copied.shape, dtype=np.float32) / np.sqrt(icons.shape[1])
    copied = copied + noise * rng.uniform(0.03, 1, (len(copied), 1)).astype(np.float32)
    rows = rng.permutation(np.concatenate([rows, copied]))
    rows *= rng.uniform(0.2, 5, (len(rows), 1)).astype(np.float32)
    rows = rows.astype(np.float16)
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found, similarities = [], []
    for begin in range(0, len(unit), 2000):
        table = unit[begin : begin + 2000] @ unit[begin:].T
        i, j = np.nonzero(table >= 0.49)
        above = i < j
        found.append(np.stack([i[above], j[above]], axis=1) + begin)
        similarities.append(table[i[above], j[above]])
    found, similarities = np.concatenate(found), np.concatenate(similarities)
    order = np.argsort(_codes(found))
    return Many(rows, found[order], similarities[order])


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_pairs_equal_brute_force(many, threshold):
    found = similar_pairs(many.rows, threshold)
    assert (found.method, found.recall, found.count) == ("exact", 1, len(found.pairs))
    assert found.pairs.dtype == np.int64
    assert found.similarities.dtype == np.float32
    assert np.array_equal(found.pairs, found.pairs[np.lexsort(found.pairs.T[::-1])])
    many.assert_equal_at(threshold, found)


@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_pairs_by_way_of_pytorch_equal_brute_force(many, threshold):
    # "cpu:0" takes the road that "cuda" takes; "cpu" would not.
    many.assert_equal_at(threshold, similar_pairs(many.rows, threshold, device="cpu:0"))


@pytest.mark.parametrize("threshold", [0.75, 0.9])
def test_an_index_finds_99_percent_and_says_how_many(many, threshold):
    found = similar_pairs(many.rows, threshold, method="index")
    share = many.share_at(threshold, found)
    assert found.method == "index"
    assert share >= 0.99
    assert found.recall == pytest.approx(share, abs=0.02)


def test_an_index_gives_the_same_pairs_on_any_number_of_threads(many):
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(similar_pairs(many.rows[:4000], 0.8, method="index"))
    assert np.array_equal(found[0].pairs, found[1].pairs)
    assert found[0].recall == found[1].recall


def test_an_index_of_several_shards_finds_as_much(many, monkeypatch):
    rows = many.rows[:4000]
    due = similar_pairs(rows, 0.8)
    monkeypatch.setattr(ivf, "SHARD", 1300 * 513)
    found = similar_pairs(rows, 0.8, method="index")
    assert set(map(tuple, found.pairs.tolist())) <= set(map(tuple, due.pairs.tolist()))
    assert found.count >= 0.99 * due.count > 0


def test_an_index_between_two_sets_finds_pairs_of_row_and_other(many):
    rows, others = many.rows[:3500], many.rows[3500:]
    due = similar_pairs(rows, 0.9, others=others).pairs.tolist()
    found = similar_pairs(rows, 0.9, others=others, method="index")
    assert len(due) > 50
    assert {*map(tuple, found.pairs.tolist())} <= {*map(tuple, due)}
    assert found.count >= 0.99 * len(due)


def test_a_set_that_takes_long_is_searched_with_an_index(many, monkeypatch):
    monkeypatch.setattr(pairs, "SKETCH_FROM_PAIRS", 0)
    rows = many.rows[:4000]
    assert similar_pairs(rows, 0.9).method == "exact"
    monkeypatch.setattr(pairs, "PATIENCE", 0.0)
    assert similar_pairs(rows, 0.9).method == "index"
    assert similar_pairs(rows, 0.9, method="exact").method == "exact"


def test_without_faiss_a_long_search_is_exact_and_says_what_would_help(many, monkeypatch, caplog):
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)
    monkeypatch.setattr(pairs, "SKETCH_FROM_PAIRS", 0)
    monkeypatch.setattr(pairs, "PATIENCE", 0.0)
    assert similar_pairs(many.rows[:2000], 0.9).method == "exact"
    assert "pip install 'visdiv_assets[faiss]'" in caplog.text
    with pytest.raises(ValueError, match="needs FAISS; run pip install"):
        similar_pairs(many.rows[:2000], 0.9, method="index")


def test_recall_without_any_known_pair_is_not_a_number():
    found = similar_pairs(np.eye(64), 0.9, method="index")
    assert found.count == 0
    assert np.isnan(found.recall)


def test_high_thresholds_are_searched_with_a_sketch_and_low_ones_without(many):
    sample = units(many.rows[:4000])
    assert choose_sketch(sample, None, 0.9).basis is not None
    assert choose_sketch(sample, None, 0.1).basis is None


finite = st.one_of(st.integers(-3, 3).map(float), st.floats(-(2.0**90), 2.0**90, width=32))
small = hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=finite)
threshold = st.floats(0, 1)


def brute(rows, threshold):
    """Pairs and similarities by the definition in units.py, in Python's own integers."""
    made = units(rows)
    points = (made.rows.astype(np.float64) * 2**24).astype(np.int64).astype(object)
    found = {}
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            if points[i].any() and points[j].any():
                value = float(points[i] @ points[j]) / 2.0**48 / (made.norms[i] * made.norms[j])
                if np.float32(value) >= np.float32(threshold):
                    found[i, j] = np.float32(value)
    return found


@given(small, threshold)
def test_a_similarity_is_exact_to_the_last_bit(rows, threshold):
    found, similarities = find_near_duplicates(rows, threshold)
    assert dict(zip(map(tuple, found.tolist()), similarities, strict=True)) == brute(
        rows, threshold
    )


@given(small, threshold, st.data())
def test_the_order_of_rows_is_of_no_consequence(rows, threshold, data):
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    found, similarities = find_near_duplicates(rows, threshold)
    mixed, others = find_near_duplicates(rows[order], threshold)
    back = np.sort(order[mixed], axis=1)
    place = np.lexsort(back.T[::-1])
    assert np.array_equal(found, back[place])
    assert np.array_equal(similarities, others[place])


@given(small, threshold, st.integers(-20, 20))
def test_the_length_of_rows_is_of_no_consequence(rows, threshold, exponent):
    rows = rows.astype(np.float64)
    scaled = rows * 2.0 ** (exponent * (np.arange(len(rows)) % 3))[:, None]
    for one, other in zip(
        find_near_duplicates(rows, threshold), find_near_duplicates(scaled, threshold), strict=True
    ):
        assert np.array_equal(one, other)


@given(small, threshold, st.integers(1, 5))
def test_pairs_between_two_sets_are_those_inside_both_that_cross(rows, threshold, cut):
    cut = min(cut, len(rows) - 1)
    if cut == 0:
        return
    found, similarities = find_near_duplicates(rows, threshold)
    crossing = (found[:, 0] < cut) & (found[:, 1] >= cut)
    between = similar_pairs(rows[:cut], threshold, others=rows[cut:])
    assert np.array_equal(between.pairs + np.array([0, cut]), found[crossing])
    assert np.array_equal(between.similarities, similarities[crossing])


@given(small, st.integers(1, 5))
def test_a_sketch_never_bounds_a_similarity_too_low(rows, length):
    made = units(rows)
    points = made.rows.astype(np.float64)
    basis = np.linalg.eigh(points.T @ points)[1][:, ::-1][:, :length]
    vectors = Sketch(np.ascontiguousarray(basis)).of(made)
    with np.errstate(invalid="ignore"):
        similarities = similarities_of_all(made, made)
    there = ~np.isnan(similarities)
    assert (vectors @ vectors.T + margin(vectors.shape[1]) >= similarities)[there].all()


@pytest.mark.parametrize("with_sketch", [False, True])
def test_neither_blocks_nor_threads_change_a_bit(many, monkeypatch, with_sketch):
    rows = np.concatenate([many.rows[:3000], many.rows[:40], np.repeat(many.rows[:1], 90, axis=0)])
    if with_sketch:
        monkeypatch.setattr(pairs, "SKETCH_FROM_PAIRS", 0)
    expected = similar_pairs(rows, 0.7)
    assert expected.count > 4000
    for sizes in ((2**17, 300, 70, 32, 5, 9), (2**20, 999, 512, 500, 4096, 10**9)):
        for name, size in zip(
            ("PANEL", "CHUNK", "BLOCK", "TILE", "FETCHED", "DENSE"), sizes, strict=True
        ):
            monkeypatch.setattr(exact, name, size)
        for threads in (1, 2):
            with threadpool_limits(threads):
                found = similar_pairs(rows, 0.7)
            assert np.array_equal(found.pairs, expected.pairs)
            assert np.array_equal(found.similarities, expected.similarities)


def test_equal_rows_are_pairs_at_one():
    rows = np.random.default_rng(0).standard_normal((50, 512))
    found, similarities = find_near_duplicates(np.concatenate([rows, 3 * rows]), 1.0)
    assert found.tolist() == [[i, i + 50] for i in range(50)]
    assert (similarities == 1).all()


def test_any_number_of_pairs_goes_through_on_pairs_and_none_is_kept():
    given_count = 0

    def count(some, similarities):
        nonlocal given_count
        assert len(some) == len(similarities) <= exact.CHUNK * exact.BLOCK
        given_count += len(some)

    rows = np.ones((4200, 8), dtype=np.float16)
    found = similar_pairs(rows, 0.9, on_pairs=count)
    assert given_count == found.count == 4200 * 4199 // 2
    assert found.pairs.shape == (0, 2)


def test_too_many_pairs_to_collect_are_an_error(monkeypatch):
    monkeypatch.setattr(pairs, "MAX_PAIRS", 100)
    with pytest.raises(ValueError, match=r"more than 100 pairs reach the threshold 0\.5"):
        find_near_duplicates(np.ones((16, 2)), 0.5)


def test_an_error_of_the_caller_ends_the_search(many):
    def fail(some, similarities):
        raise KeyError("mine")

    before = exact.blas_threads()
    with pytest.raises(KeyError, match="mine"):
        similar_pairs(many.rows, 0.5, on_pairs=fail)
    assert exact.blas_threads() == before


def test_progress_ends_with_all_pairs_compared(many):
    told = []
    similar_pairs(many.rows[:5000], 0.9, on_progress=lambda *each: told.append(each))
    assert told == sorted(told)
    assert told[-1] == (5000 * 4999 // 2, 5000 * 4999 // 2)


def test_a_row_of_zeros_is_similar_to_nothing():
    found, _ = find_near_duplicates(np.array([[0.0, 0], [0, 0], [1, 0], [0, 1]]), 0.0)
    assert found.tolist() == [[2, 3]]


def test_one_row_has_no_pairs():
    found, similarities = find_near_duplicates(np.ones((1, 4)), 0.0)
    assert (found.shape, similarities.shape) == ((0, 2), (0,))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), float("inf")])
def test_thresholds_outside_0_and_1_are_refused(wrong):
    with pytest.raises(ValueError, match="threshold must be between 0 and 1; got"):
        find_near_duplicates(np.ones((2, 2)), wrong)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(3), "got 1 dimension(s)"),
        (np.float64(3), "got 0 dimension(s)"),
        (np.zeros((0, 3)), "the set of embeddings is empty"),
        (np.zeros((3, 0)), "dimension 0"),
        (np.r_[np.ones((3000, 2)), [[1, np.nan]]], "NaN or infinity (first in row 3000)"),
        (np.array([[np.inf]]), "NaN or infinity (first in row 0)"),
        (np.zeros((2, 2), complex), "real numbers"),
        (np.array([["a"]]), "real numbers"),
    ],
)
def test_anything_but_a_finite_real_matrix_with_rows_is_refused_with_the_reason(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        find_near_duplicates(rows, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fast"}, "method must be"),
        ({"others": np.ones((2, 3))}, "dimensions differ: 2 and 3"),
        ({"others": np.ones((0, 2))}, "the set of embeddings is empty"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"device": "cuda", "method": "index"}, "runs only on the CPU"),
    ],
)
def test_wrong_options_are_refused_with_the_reason(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        similar_pairs(np.ones((2, 2)), 0.5, **options)


@given(small, st.data())
def test_the_nearest_are_the_most_similar_of_equal_ones_the_first(rows, data):
    rows = rows[units(rows).norms > 0]
    if not len(rows):
        return
    k = data.draw(st.integers(1, len(rows)))
    indices, similarities = nearest(rows, rows[:2], k)
    table = similarities_of_all(units(rows[:2]), units(rows))
    assert np.array_equal(indices, np.argsort(-table, axis=1, kind="stable")[:, :k])
    assert np.array_equal(similarities, np.take_along_axis(table, indices, axis=1))


def test_the_nearest_are_found_across_blocks(many):
    indices, similarities = nearest(many.rows[:5000], many.rows[[7, 4999]], 3)
    assert indices[:, 0].tolist() == [7, 4999]
    assert (similarities[:, 0] == 1).all()
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_rows_of_zeros_come_last():
    indices, similarities = nearest(np.array([[0.0, 0], [-1, 0], [1, 0]]), np.array([[1.0, 0]]), 3)
    assert indices.tolist() == [[2, 1, 0]]
    assert np.isnan(similarities[0, 2])


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_k_must_be_between_1_and_the_number_of_rows(k):
    with pytest.raises(ValueError, match=f"between 1 and the number of rows, 3; got {k}"):
        nearest(np.ones((3, 2)), np.ones((1, 2)), k)
