"""Core-sets of datasets: which images, under which names, and how they are kept."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.select import core_set_sheet, record_core_set, select_core_set
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """70 images, the last ten of them copies of the first, and a broken one; evaluated."""
    tmp_path = tmp_path_factory.mktemp("birds")
    for number in range(70):
        write_image(tmp_path / "birds" / f"{number:03}.png", number % 60)
    (tmp_path / "birds/broken.png").write_bytes(b"no picture")
    store, warehouse = Store(tmp_path / "store"), Warehouse(tmp_path / "store/visdiv.duckdb")
    source = DirectorySource(tmp_path / "birds")
    evaluate("birds", source, FakeEmbedder(batch_size=64), store, warehouse)
    return store, warehouse, source


@pytest.mark.parametrize("method", ["k-centre", "log-det", "leverage", "facility-location"])
def test_images_with_the_same_content_are_chosen_once_under_the_first_name(birds, method):
    store, warehouse, _ = birds
    found = select_core_set("birds", store, warehouse, 60, method)
    assert sorted(found.image_ids) == [f"{number:03}.png" for number in range(60)]
    assert (found.n_distinct, found.method, found.model_id) == (60, method, "fake")


def test_a_copy_that_is_included_keeps_its_name_and_one_that_is_excluded_takes_all_away(birds):
    store, warehouse, _ = birds
    found = select_core_set("birds", store, warehouse, 59, include=["065.png"], exclude=["061.png"])
    assert found.image_ids[0] == "065.png"
    assert not {"005.png", "001.png", "061.png"} & set(found.image_ids)


def test_a_core_set_is_measured_against_ten_random_ones(birds):
    store, warehouse, _ = birds
    found = select_core_set("birds", store, warehouse, 50, "log-det")
    assert len(found.random) == 10
    mean, spread = found.random_plain()
    assert found.scores.plain > mean
    assert spread > 0
    assert 0 < found.scores.radius < 2
    assert select_core_set("birds", store, warehouse, 1).random_plain() is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 61}, "birds: k must be between 1 and the number of embeddings, 60; got 61"),
        ({"k": 0}, "birds: k must be between 1"),
        ({"include": ["000.png", "nil.png", "x"]}, "birds has no image 'nil.png'"),
        ({"exclude": ["broken.png"]}, "'broken.png' of birds could not be embedded"),
        ({"include": ["001.png"], "exclude": ["061.png"]}, "both included and excluded"),
        ({"k": 1, "include": ["001.png", "002.png"]}, "2 rows are included, more than k = 1"),
    ],
)
def test_what_cannot_be_chosen_is_an_error_in_one_sentence(birds, options, sentence):
    store, warehouse, _ = birds
    with pytest.raises(VisdivError) as error:
        select_core_set("birds", store, warehouse, **{"k": 5, **options})
    assert sentence in str(error.value)


def test_what_was_never_evaluated_has_no_core_set(birds):
    store, warehouse, _ = birds
    with pytest.raises(VisdivError, match="cars has never been evaluated; run `visdiv score cars`"):
        select_core_set("cars", store, warehouse, 5)


def test_the_newest_core_set_takes_the_place_of_the_one_before(birds, tmp_path):
    store, warehouse, _ = birds
    for k in (9, 4):
        found = select_core_set("birds", store, warehouse, k)
        record_core_set(found, warehouse)
    rows = warehouse.rows("core_sets", "birds")
    assert [(row["rank"], row["image_id"]) for row in rows] == list(enumerate(found.image_ids, 1))
    assert {(row["method"], row["model_id"]) for row in rows} == {("k-centre", "fake")}
    warehouse.export(tmp_path)
    assert pq.read_table(tmp_path / "core_sets.parquet")["dataset"].to_pylist() == ["birds"] * 4


def test_the_sheet_shows_the_first_images_in_the_order_of_choice(birds):
    store, warehouse, source = birds
    found = select_core_set("birds", store, warehouse, 20)
    sheet = Image.open(io.BytesIO(core_set_sheet(found, source, Decoding())))
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100
    assert sheet.height > 3 * 112
