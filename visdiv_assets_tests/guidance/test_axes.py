"""Leading axes: found whatever the blocks, with the right rows at their ends, and said in words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.guidance import axes as module
from visdiv_assets.guidance.axes import ceiling, describe, find_axes
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import DiversityCalculator
from visdiv_assets.spectral.spectrum import spectrum
from visdiv_assets_tests.spectral.matrices import power_law, seeds


def found(rows, slices=None, **options):
    parts = {name: Moments.of(part) for name, part in (slices or {}).items()}
    return find_axes(Moments.of(rows), rows, parts, **options)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def with_a_group(share=0.5, n=400, strength=1.0, dimension=64):
    """Unit vectors of which the first ones have a direction in common."""
    rows = unit(np.random.default_rng(0).standard_normal((n, dimension)))
    rows[: round(n * share), 3] += strength
    return unit(rows)


# --- axes ---


@given(st.integers(2, 80), seeds)
def test_shares_and_directions_are_those_of_the_covariance(n, seed):
    rows = power_law(n, 8, seed=seed)
    eigenvalues = spectrum(Moments.of(rows))
    covariance = np.cov(rows.T)
    for axis in found(rows, count=8).axes:
        value = axis.share * eigenvalues.sum()
        assert value == pytest.approx(eigenvalues[axis.number - 1])
        np.testing.assert_allclose(covariance @ axis.direction, value * axis.direction, atol=1e-9)


@given(st.integers(5, 60), seeds)
def test_the_ends_are_the_rows_farthest_out_and_ties_go_to_the_first(n, seed):
    rows = power_law(n, 6, seed=seed)
    rows = np.concatenate([rows, rows])
    for axis in found(rows, count=2, per_end=3).axes:
        along = (rows - rows.mean(axis=0)) @ axis.direction
        deviation = along.std()
        for sign, end in zip((1, -1), axis.ends, strict=True):
            expected = np.argsort(np.round(-sign * along / deviation, 9), kind="stable")[:3]
            out = sign * along[expected] > 0
            np.testing.assert_allclose(end.positions, sign * along[expected][out] / deviation)
            assert set(end.rows) <= set(expected) | set((expected + n) % (2 * n))


def test_blocks_make_no_difference(monkeypatch):
    rows = power_law(500, 16)
    whole = found(rows, per_end=20)
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    for one, other in zip(whole.axes, found(rows, per_end=20).axes, strict=True):
        for end, same in zip(one.ends, other.ends, strict=True):
            assert end.rows.tolist() == same.rows.tolist()
            assert end.likeness == pytest.approx(same.likeness)
            assert end.beyond == same.beyond


@given(seeds)
def test_the_sign_of_an_axis_does_not_depend_on_the_sign_of_anything(seed):
    rows = power_law(50, 8, seed=seed)
    for axis in found(rows).axes:
        assert axis.direction[np.argmax(np.abs(axis.direction))] > 0


def test_sides_say_how_many_rows_they_have_and_how_much_those_at_the_end_resemble_each_other():
    rows = with_a_group(share=0.25, strength=3.0)
    [first, *_] = found(rows).axes
    group, rest = first.ends
    assert set(group.rows) <= set(range(100))
    assert 0.25 <= group.beyond < 0.3
    assert group.beyond + rest.beyond == 1
    assert group.likeness > 0.8
    assert abs(rest.likeness) < 0.2


def test_what_all_rows_share_is_the_squared_length_of_their_mean():
    rows = with_a_group(share=1.0, strength=2.0)
    mean = rows.mean(axis=0)
    assert found(rows).shared == pytest.approx(mean @ mean)
    assert found(rows).shared > 0.7


def test_without_variance_there_are_no_axes_and_no_more_than_there_is_rank():
    assert found(np.full((60, 8), 0.25)).axes == ()
    assert len(found(np.eye(8)[[0, 0, 1, 1]]).axes) == 1
    assert len(found(power_law(3, 8)).axes) == 2


@pytest.mark.parametrize("options", [{"count": 0}, {"per_end": 0}])
def test_nothing_asked_for_is_an_error(options):
    with pytest.raises(ValueError, match="at least 1"):
        found(power_law(5, 4), **options)


def test_rows_of_another_dimension_are_an_error():
    with pytest.raises(ValueError, match="must have dimension 4"):
        find_axes(Moments.of(power_law(5, 4)), power_law(5, 3))


# --- slices ---


def test_the_slice_that_makes_an_axis_is_named_with_its_side():
    rows = with_a_group(strength=2.0)
    [first, second, *_] = found(rows, {"studio": rows[:200], "street": rows[200:]}).axes
    assert first.between > 0.9
    assert first.slice_at("A").name == "studio"
    assert first.slice_at("B").name == "street"
    assert second.between < 0.1
    assert second.slice_at("A") is None


@given(st.integers(2, 20), seeds)
def test_slices_drawn_by_chance_explain_next_to_nothing_on_average(k, seed):
    rows = power_law(400, 8, seed=seed)
    code = np.random.default_rng(seed).integers(0, k, 400)
    slices = {f"{at}": rows[code == at] for at in range(k) if (code == at).any()}
    assert np.mean([axis.between for axis in found(rows, slices).axes]) < 0.06


def test_one_slice_explains_nothing():
    rows = with_a_group(strength=2.0)
    assert found(rows, {"all": rows}).axes[0].between == 0


# --- the ceiling ---


@given(st.integers(3, 64), seeds)
def test_no_score_is_above_what_its_leading_axes_allow(dimension, seed):
    rows = power_law(200, dimension, seed=seed)
    shares = [axis.share for axis in found(rows, count=2).axes]
    score = DiversityCalculator().calculate(rows)
    assert score <= ceiling(shares[:1], dimension) + 1e-9
    assert score <= ceiling(shares, dimension) + 1e-9


# --- words ---


def said(rows, slices=None, **options):
    return " ".join(describe(found(rows, slices, **options)))


def test_a_dominating_contrast_is_said_with_the_side_that_repeats_and_what_it_costs():
    rows = with_a_group(share=0.25, strength=3.0)
    words = said(rows, {"50% off": rows[:100], "rest": rows[100:]})
    share = found(rows).axes[0].share
    assert f"{share * 100:.0f} % of all variation is one contrast" in words
    assert "look for what repeats in row 1A. 27 % of the images are on that side" in words
    assert "50% off (25 % of the images) is at the end of row 1A" in words
    assert "On its own, it keeps the score below 0." in words
    assert "vary it" in words


def test_nothing_that_dominates_is_said_to_be_so():
    words = said(unit(np.random.default_rng(0).standard_normal((2000, 64))))
    assert words.startswith("No single contrast dominates: the largest accounts for")
    assert "All images share next to nothing" in words
    assert "row 1A" not in words


def test_several_contrasts_that_dominate_only_together_are_said_so():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 128)) * np.where(np.arange(128) < 5, 4.5, 1.0)
    words = said(rows)
    assert "No single contrast dominates" in words
    assert "The first 5 together account for" in words


def test_what_all_images_share_is_said():
    assert "All images share 8" in said(with_a_group(share=1.0, strength=2.0))


def test_too_few_images_are_told_nothing():
    assert said(power_law(49, 8)) == (
        "49 distinct images are too few to tell what dominates them; at least 50 are needed."
    )


def test_equal_images_are_said_to_be_equal():
    assert "The model sees all images as the same" in said(np.full((60, 8), 0.25))
