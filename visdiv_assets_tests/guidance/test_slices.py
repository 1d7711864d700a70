"""Slices: what moments say of leaving out and doubling, rows say too; names of slices."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.guidance.slices import (
    MOST_SLICES,
    NAMELESS,
    OTHERS,
    by_column,
    by_folder,
    judge_slices,
    slices_of,
)
from visdiv_assets.spectral.corrected import corrected
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import DiversityCalculator
from visdiv_assets_tests.spectral.matrices import power_law, seeds


def plain(*parts):
    return DiversityCalculator().calculate(np.concatenate(parts))


@given(st.lists(st.integers(2, 60), min_size=2, max_size=5), seeds)
def test_changes_are_those_that_the_rows_themselves_give(sizes, seed):
    rows = {f"{at}": power_law(n, 8, seed=seed + at) for at, n in enumerate(sizes)}
    whole = plain(*rows.values())
    found = judge_slices({name: Sample.of(part) for name, part in rows.items()})
    assert len(found) == len(rows)
    for part in found:
        others = [own for name, own in rows.items() if name != part.name]
        assert part.left_out == pytest.approx(plain(*others) - whole, abs=1e-9)
        twice = plain(*rows.values(), rows[part.name])
        assert part.doubled == pytest.approx(twice - whole, abs=1e-9)


@given(st.lists(st.integers(1, 100), min_size=2, max_size=6))
def test_shares_sum_to_1_and_the_largest_part_comes_first(sizes):
    parts = {f"{at}": Sample.of(power_law(n, 4, seed=at)) for at, n in enumerate(sizes)}
    found = judge_slices(parts)
    assert sum(part.share for part in found) == pytest.approx(1)
    assert [part.n for part in found] == sorted(sizes, reverse=True)


def test_a_part_of_one_image_has_no_score_of_its_own():
    _, one = judge_slices({"many": Sample.of(power_law(60, 8)), "one": Sample.of(power_law(1, 8))})
    assert one.corrected.too_few
    assert (one.n, one.share) == (1, 1 / 61)


def test_a_part_has_its_own_corrected_score():
    parts = {"few": Sample.of(power_law(20, 8)), "many": Sample.of(power_law(200, 8, seed=1))}
    many, few = judge_slices(parts)
    assert many.corrected == corrected(parts["many"])
    assert few.corrected.too_few


@pytest.mark.parametrize("rest", [0, 1])
def test_what_would_leave_nothing_has_no_change(rest):
    parts = {"all": Sample.of(power_law(30, 8))}
    if rest:
        parts["one"] = Sample.of(power_law(rest, 8, seed=1))
    assert np.isnan(judge_slices(parts)[0].left_out)
    assert not np.isnan(judge_slices(parts)[0].doubled)


@pytest.mark.parametrize(
    ("image_id", "folder"),
    [
        ("a.jpg", NAMELESS),
        ("cats/a.jpg", "cats"),
        ("cats/small/a.jpg", "cats/small"),
        ("shards/0.tar#a.jpg", "shards/0.tar"),
        ("0.zip#cats/a.jpg", "0.zip#cats"),
        ("0.zip#cats/c#/a.jpg", "0.zip#cats/c#"),
        ("train.parquet#17", "train.parquet"),
    ],
)
def test_a_folder_names_the_slice(image_id, folder):
    assert by_folder([image_id]) == [folder]


def test_a_column_names_the_slice():
    rows = [{"label": "cat", "x": "1"}, {"label": ""}, {"x": "1"}, {}, None]
    assert by_column(rows, "label") == ["cat", *[NAMELESS] * 4]


@given(st.lists(st.integers(0, 60).map(str), max_size=300))
def test_every_image_is_in_the_slice_of_its_name_or_in_the_last(names):
    kept, code_of = slices_of(Counter(names))
    assert len(kept) <= MOST_SLICES
    for name in names:
        assert kept[code_of[name]] == (name if name in kept else OTHERS)


def test_slices_beyond_the_most_there_can_be_share_the_last():
    names = [f"{at:02}" for at in range(MOST_SLICES + 5) for _ in range(at + 1)]
    kept, code_of = slices_of(Counter(names))
    assert len(kept) == MOST_SLICES
    assert kept[0] == f"{MOST_SLICES + 4}"
    assert kept[-1] == OTHERS
    small = sum(range(1, 7))  # the six smallest
    assert sum(code_of[name] == MOST_SLICES - 1 for name in names) == small


def test_as_many_slices_as_there_can_be_all_keep_their_names():
    kept, _ = slices_of({f"{at:02}": 1 for at in range(MOST_SLICES)})
    assert OTHERS not in kept
