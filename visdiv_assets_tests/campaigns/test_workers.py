"""A few rounds of the campaign of workers that are killed."""

import pytest

from visdiv_assets_tests.campaigns.workers import KINDS, rounds_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    yield rounds_of(tmp_path_factory.mktemp("shared"), 0, len(KINDS))
    import ray

    ray.shutdown()


@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
def test_whoever_kills_workers_changes_no_bit(rounds, number, tmp_path):
    assert rounds[number].problems(tmp_path) == []
