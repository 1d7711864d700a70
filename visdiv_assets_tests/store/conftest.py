"""Each test of the store runs on a disk and, as a slow test, in a bucket."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from visdiv_assets_tests.store.homes import BOTH, Home, homes


@pytest.fixture(scope="session", params=BOTH)
def make_home(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Home]]:
    """What makes a new place for a store in a folder, on a disk or in a bucket."""
    with homes(request.param) as make:
        yield make


@pytest.fixture
def place(make_home: Callable[[Path], Home], tmp_path: Path) -> Home:
    """A new place for a store."""
    return make_home(tmp_path)
