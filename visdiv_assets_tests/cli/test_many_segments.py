"""A store of more segments than a process may open files: every command that reads rows works."""

import gc
import os
import resource
from pathlib import Path

import pytest

from visdiv_assets.similarity.pairs import similar_pairs
from visdiv_assets.store import segments
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.cli.conftest import copy_here, prepared, score
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

SETTINGS = """
store: store
datasets:
  birds: {source: birds}
  cars: {source: cars}
  test: {source: test, role: benchmark}
"""
SEGMENTS = 150
SPARE_FILES = 40

pytestmark = pytest.mark.usefixtures("project_folder")


def make_datasets():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_ROWS", 1)
        for name, first, count in (("birds", 0, 150), ("cars", 100, 120), ("test", 140, 130)):
            for seed in range(first, first + count):
                write_image(Path(name, "ab"[seed % 2], f"{seed:03}.png"), seed)
            score(name)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    return prepared(tmp_path_factory, SETTINGS, make_datasets)


@pytest.fixture
def few_files(evaluated):
    """The process may open SPARE_FILES more files than it has open."""
    copy_here(evaluated)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    n_open = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + SPARE_FILES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "duplicates birds",
        "duplicates birds --against cars --against test",
        "leakage birds",
        "similar birds a/000.png",
        "select birds -k 20",
        "select birds -k 20 --method facility-location",
        "axes birds",
        "augment birds --only flip",
        "slices birds",
        "mix birds cars",
        "drift birds",
        "compare birds cars",
    ],
)
def test_a_command_reads_more_segments_than_files_may_be_open(
    visdiv, few_files, monkeypatch, command
):
    monkeypatch.setattr(
        "visdiv_assets.workflows.project.embedder_of", lambda *_: FakeEmbedder(batch_size=64)
    )
    assert len(Store("store").segment_names("fake")) > 2 * SPARE_FILES
    visdiv(*command.split())


def test_a_dataset_of_more_segments_than_files_may_be_open_is_evaluated_again(few_files):
    write_image(Path("birds/a/new.png"), 999)
    assert score("birds").n_images == SEGMENTS + 1


def test_an_index_is_built_of_more_segments_than_files_may_be_open(few_files):
    store = Store("store")
    [evaluation] = Warehouse("store/visdiv.duckdb").newest_evaluations(["birds"])
    rows = DatasetRows(store, "fake", store.read_index(*evaluation.where))
    assert similar_pairs(rows, 0.75, method="index").method == "index"
