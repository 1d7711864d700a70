"""A few rounds of the campaign of clean-ups that are killed."""

from pathlib import Path

import pytest

from visdiv_assets_tests.campaigns.cleanups import TASKS, rounds_of

ROUNDS = rounds_of(Path(), 0, 2 * len(TASKS))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ROUNDS)), ids=[each.name for each in ROUNDS])
def test_whoever_kills_a_clean_up_loses_no_row(number, tmp_path):
    assert ROUNDS[number].problems(tmp_path) == []
