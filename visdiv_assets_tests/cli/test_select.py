"""`visdiv select`, as a user types it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.cli.conftest import copy_here, prepared
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

SETTINGS = "store: store\ndatasets: {birds: {source: birds}}\n"

pytestmark = pytest.mark.usefixtures("project_folder", "birds")


def make_birds():
    for number in range(60):
        write_image(Path(f"birds/{number:03}.png"), number)
    store, warehouse = Store("store"), Warehouse("store/visdiv.duckdb")
    for name in ("birds", "unregistered"):
        evaluate(name, open_source("birds"), FakeEmbedder(batch_size=64), store, warehouse)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    return prepared(tmp_path_factory, SETTINGS, make_birds)


@pytest.fixture
def birds(project_folder, evaluated):
    copy_here(evaluated)


def test_the_list_is_on_stdout_and_how_good_it_is_on_stderr(visdiv):
    result = visdiv("select", "birds", "-k", "10")
    ids = result.stdout.splitlines()
    assert len(set(ids)) == 10
    assert all(Path("birds", each).exists() for each in ids)
    for what in ("plain score", "at random", "±", "covering radius", "10 of 60 different images"):
        assert what in result.stderr


def test_chosen_images_have_no_corrected_score_since_they_are_no_random_sample(visdiv):
    told = visdiv("select", "birds", "-k", "55").stderr
    assert "No corrected score: chosen images are no random sample." in told
    assert told.count("corrected score") == 1
    found = json.loads(visdiv("select", "birds", "-k", "55", "--json").stdout)
    assert not [key for key in found if "corrected" in key]


def test_the_list_is_a_source_to_score(visdiv):
    visdiv("select", "birds", "-k", "10", "--out", "birds/list.txt")
    listed = list_images(open_source("birds/list.txt")).table["image_id"].to_pylist()
    assert sorted(listed) == sorted(Path("birds/list.txt").read_text().split())


def test_every_method_is_to_be_had_and_an_unknown_one_is_not(visdiv):
    found = {
        method: json.loads(
            visdiv("select", "birds", "-k", "8", "--method", method, "--json").stdout
        )
        for method in ("k-centre", "log-det", "leverage", "facility-location")
    }
    for method, told in found.items():
        assert (told["method"], told["k"], len(told["images"])) == (method, 8, 8)
        assert told["plain_score"] > 0
        assert told["random_plain_score_spread"] > 0
        assert (told["score"], told["basis"]) == (told["plain_score"], "plain")
    assert "k-centre" in visdiv("select", "birds", "-k", "8", "--method", "best", code=2).stderr


def test_files_say_what_is_to_be_chosen_and_what_is_not(visdiv):
    Path("in.txt").write_text("007.png\n\n003.png\n")
    Path("out.txt").write_text("".join(f"{number:03}.png\n" for number in range(20, 60)))
    result = visdiv("select", "birds", "-k", "9", "--include", "in.txt", "--exclude", "out.txt")
    ids = result.stdout.splitlines()
    assert ids[:2] == ["007.png", "003.png"]
    assert max(ids) < "020.png"


def test_an_unknown_image_is_an_error_and_nothing_is_written(visdiv):
    Path("in.txt").write_text("007.png\nnil.png\n")
    result = visdiv(
        "select", "birds", "-k", "9", "--include", "in.txt", "--out", "list.txt", code=1
    )
    assert result.stderr == "error: birds has no image 'nil.png'\n"
    assert not Path("list.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("birds", "-k", "61"), "the number of embeddings, 60; got 61"),
        (("cars", "-k", "5"), "cars has never been evaluated"),
        (("birds", "-k", "5", "--include", "gone.txt"), "gone.txt: No such file or directory"),
        (("unregistered", "-k", "5", "--sheet", "a.png"), "unregistered is not registered"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(visdiv, arguments, sentence):
    result = visdiv("select", *arguments, code=1)
    assert result.stdout == ""
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_sheet_is_drawn(visdiv):
    visdiv("select", "birds", "-k", "10", "--sheet", "chosen.png")
    assert Image.open("chosen.png").format == "PNG"
    assert len(visdiv("select", "unregistered", "-k", "3").stdout.splitlines()) == 3
