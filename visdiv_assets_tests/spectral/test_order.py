"""A list in an order is told from a random one, whatever its rows look like."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.spectral.order import (
    LEAST_PAIRS,
    PAIRS,
    RUN_ROWS,
    Order,
    adjacent,
    measure_order,
)
from visdiv_assets_tests.spectral.matrices import power_law, seeds

ICONS = Path(__file__).parents[1] / "data/embeddings_icons.npy"


@pytest.fixture(scope="module")
def icons():
    """In the order of their names: variants of a symbol are next to each other."""
    return np.load(ICONS)


def measured(rows):
    firsts = adjacent(len(rows))
    return measure_order(rows[firsts], rows[firsts + 1])


def shuffled(rows, seed=0):
    return rows[np.random.default_rng(seed).permutation(len(rows))]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clips(count, frames, noise):
    """Frames of clips, one clip after the other; each frame its clip's first and some noise."""
    rng = np.random.default_rng(0)
    first = unit(rng.standard_normal((count, 64)))
    return np.repeat(first, frames, axis=0) + noise * unit(
        rng.standard_normal((count * frames, 64))
    )


@given(st.integers(0, 10**7))
def test_pairs_are_neighbours_without_a_row_in_common(count):
    firsts = adjacent(count)
    assert len(firsts) == min(count // 2, PAIRS)
    both = np.concatenate([firsts, firsts + 1])
    assert len(np.unique(both)) == len(both)
    if len(both):
        assert both.min() == 0
        assert count - 2 <= both.max() < count


def test_pairs_of_a_long_list_are_spread_over_all_of_it():
    firsts = adjacent(1_000_000)
    assert np.diff(firsts).max() < 1_000_000 / 30
    assert np.sum(np.diff(firsts) == 2) == PAIRS - 2 * PAIRS // RUN_ROWS


@given(seeds, st.integers(2 * LEAST_PAIRS, 200))
def test_similarities_are_those_of_neighbours_and_of_all_others(seed, count):
    rows = np.random.default_rng(seed).standard_normal((count, 5))
    firsts = adjacent(count)
    cosines = unit(rows[firsts]) @ unit(rows[firsts + 1]).T
    found = measured(rows)
    assert found.neighbours == pytest.approx(np.diag(cosines).mean(), abs=1e-12)
    others = cosines[~np.eye(len(firsts), dtype=bool)]
    assert found.by_chance == pytest.approx(others.mean(), abs=1e-12)


def test_without_an_order_small_p_values_are_as_rare_as_they_say():
    rows = power_law(40, 64)
    values = np.array([measured(shuffled(rows, seed)).p_value for seed in range(200)])
    assert 0.02 < np.mean(values <= 0.05) < 0.09
    assert 0.4 < values.mean() < 0.6


def test_pairs_of_near_copies_in_random_order_have_no_order():
    rows = clips(20, frames=2, noise=0.1)
    assert measured(rows).ordered
    told = [measured(shuffled(rows, seed)).ordered for seed in range(150)]
    assert sum(told) <= 1


def test_icons_are_in_the_order_of_their_names_and_shuffled_ones_are_not(icons):
    found = measured(icons)
    assert found.ordered
    assert (found.neighbours, found.by_chance) == pytest.approx((0.54, 0.15), abs=0.02)
    assert not measured(shuffled(icons)).ordered
    assert measured(icons[:100]).ordered


def test_photographs_that_are_named_after_what_they_show_are_hardly_more_alike(demo):
    found = measured(demo.vectors)
    assert found.p_value < 0.001
    assert found.neighbours - found.by_chance < 0.05
    assert not found.ordered


def test_rows_sorted_by_class_are_in_an_order(icons):
    rows = shuffled(icons)
    classes = np.argmax(rows.astype(np.float64) @ rows[:30].astype(np.float64).T, axis=1)
    assert measured(rows[np.argsort(classes, kind="stable")]).ordered


@pytest.mark.parametrize(("frames", "noise"), [(2, 0.3), (20, 0.3), (20, 1.0), (300, 1.0)])
def test_clips_one_after_the_other_are_in_an_order_and_shuffled_frames_are_not(frames, noise):
    rows = clips(3000 // frames, frames, noise)
    assert measured(rows).ordered
    assert not measured(shuffled(rows)).ordered


@given(seeds, st.sampled_from([1e-300, 1e-3, 1.0, 1e300]))
def test_the_length_of_rows_does_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((60, 8))
    longer = rows * scale * rng.uniform(1, 2, size=(60, 1))
    one, other = measured(rows), measured(longer)
    assert one.neighbours == pytest.approx(other.neighbours, abs=1e-9)
    assert one.by_chance == pytest.approx(other.by_chance, abs=1e-9)


@pytest.mark.parametrize("rows", [np.zeros((40, 4)), np.ones((40, 4))])
def test_equal_rows_have_no_order(rows):
    found = measured(rows)
    assert (found.p_value, found.ordered) == (1, False)


def test_of_few_rows_nothing_is_told():
    assert measured(power_law(2 * LEAST_PAIRS - 1, 8)) is None
    assert measured(power_law(2 * LEAST_PAIRS, 8)) is not None


def test_an_order_needs_to_be_large_and_more_than_chance():
    assert Order(neighbours=0.3, by_chance=0.2, p_value=0.0005).ordered
    assert not Order(neighbours=0.3, by_chance=0.2, p_value=0.001).ordered
    assert not Order(neighbours=0.27, by_chance=0.2, p_value=0.0005).ordered


@pytest.mark.parametrize(
    ("left", "right", "sentence"),
    [
        (np.ones((20, 3)), np.ones((20, 4)), "dimension 3; got 4"),
        (np.ones((20, 3)), np.ones((19, 3)), "got 20 and 19"),
        (np.ones((20, 3)), np.full((20, 3), np.nan), "NaN or infinity"),
        (np.ones(20), np.ones(20), "must be a matrix"),
    ],
)
def test_what_are_no_pairs_of_rows_is_refused(left, right, sentence):
    with pytest.raises(ValueError, match=sentence):
        measure_order(left, right)
