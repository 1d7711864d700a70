"""A few rounds of the campaign of kills: real processes, ended at steps drawn by a seed."""

import pytest

from visdiv_assets_tests.campaigns import kills
from visdiv_assets_tests.campaigns.kills import Undisturbed
from visdiv_assets_tests.campaigns.rounds import random_of

SEED = 0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "prepared").mkdir()
    return Undisturbed(kills.prepare(folder / "prepared"), folder)


@pytest.mark.parametrize(
    ("kind", "by", "target"),
    [
        ("score", "SIGKILL", "process"),
        ("score", "SIGTERM", "group"),
        ("score", "SIGHUP", "process"),
        ("score", "SIGINT", "group"),
        ("run", "SIGTERM", "process"),
    ],
)
def test_what_was_killed_and_run_again_gives_the_bits_of_an_undisturbed_run(
    undisturbed, kind, by, target, tmp_path
):
    moment = random_of(SEED, f"{kind} {by}").randint(1, undisturbed.steps(kind))
    assert kills.kill_and_run_again(undisturbed, kind, by, target, moment, tmp_path) == []
