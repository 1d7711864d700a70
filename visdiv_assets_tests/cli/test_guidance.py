"""The commands that say what and why, as a user types them."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.cli.conftest import copy_here, prepared, score
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

SETTINGS = """
store: store
datasets:
  birds: {source: birds}
  frames: {source: frames}
  held_out: {source: held_out, role: benchmark}
"""


pytestmark = pytest.mark.usefixtures("project_folder")


@pytest.fixture(autouse=True)
def _cheap_model(monkeypatch):
    monkeypatch.setattr(
        "visdiv_assets.workflows.project.embedder_of", lambda *_: FakeEmbedder(batch_size=64)
    )


def make(name, seeds, model="fake"):
    for number, seed in enumerate(seeds):
        write_image(Path(name, f"[red]{number:03}.png"), seed)
    return score(name, model)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    return prepared(tmp_path_factory, SETTINGS, lambda: make("birds", range(60)))


@pytest.fixture
def birds(evaluated):
    copy_here(evaluated)
    return Warehouse("store/visdiv.duckdb").newest_evaluations(["birds"])[0]


@pytest.mark.parametrize("command", ["axes", "augment", "acquire"])
def test_what_was_never_evaluated_is_an_error_in_one_sentence(visdiv, command):
    result = visdiv(command, "birds", *(["frames"] if command == "acquire" else []), code=1)
    assert result.stdout == ""
    assert result.stderr == "error: birds has never been evaluated; run `visdiv score birds`\n"


@pytest.mark.parametrize("command", ["axes", "augment", "acquire"])
def test_help_shows_examples(visdiv, command):
    assert f"visdiv {command} birds" in visdiv(command, "--help").stdout


# --- axes ---


def test_axes_are_shown_in_a_table_and_in_words_and_drawn(visdiv, birds):
    result = visdiv("axes", "birds", "-n", "2", "--sheet", "axes.png")
    assert "[red]0" in result.stdout
    assert "No single contrast dominates" in result.stdout
    assert "axes.png" in result.stderr
    assert Image.open("axes.png").format == "PNG"
    assert len(Warehouse("store/visdiv.duckdb").rows("bias_axes", "birds")) == 2 * 2 * 8


def test_axes_as_json_hold_images_and_words(visdiv, birds):
    told = json.loads(visdiv("axes", "birds", "-n", "1", "--json").stdout)
    assert (told["dataset"], told["n_images"], len(told["axes"])) == ("birds", 60, 1)
    assert len(told["axes"][0]["sides"]["A"]["images"]) == 8
    assert told["in_words"]


def test_without_a_source_the_axes_can_be_told_but_not_drawn(visdiv, birds):
    Path("visdiv.yaml").write_text("store: store\n")
    assert "No single contrast" in visdiv("axes", "birds").stdout
    result = visdiv("axes", "birds", "--sheet", "axes.png", code=1)
    assert "birds is not registered, so its images cannot be found" in result.stderr


# --- augment ---


def test_augmentations_are_shown_with_intervals_and_drawn(visdiv, birds, monkeypatch):
    monkeypatch.setattr("visdiv_assets.cli.progress.PROGRESS_SECONDS", 0.0)
    result = visdiv(
        "augment", "birds", "--only", "flip,jpeg", "--sheet", "a.png", "--chart", "b.png"
    )
    for word in ("flip-vertical", "JPEG of quality", "tried on 60 images", "hardly seen"):
        assert word in result.stdout
    assert "birds: 240 of 240" in result.stderr
    for path in ("a.png", "b.png"):
        assert Image.open(io.BytesIO(Path(path).read_bytes())).format == "PNG"


def test_augmentations_as_json_hold_every_figure(visdiv, birds):
    told = json.loads(visdiv("augment", "birds", "--only", "grey,mixup", "--json").stdout)
    grey, mixup = told["augmentations"]
    assert grey["low"] <= grey["change"] <= grey["high"]
    assert (mixup["change"], mixup["verdict"]) == (None, "too few to tell")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "sepia"], "there is no augmentation 'sepia'; choose from flip,"),
        (["--only", ""], "name at least one augmentation: flip,"),
    ],
)
def test_what_cannot_be_measured_is_an_error_in_one_sentence(visdiv, birds, arguments, reason):
    result = visdiv("augment", "birds", *arguments, code=1)
    assert result.stdout == ""
    assert reason in result.stderr


def test_ctrl_c_shows_what_was_measured(visdiv, birds, monkeypatch):
    from visdiv_assets.workflows import augment

    def interrupted(*arguments):
        yield next(measure(*arguments))
        raise KeyboardInterrupt

    measure = augment.measure_augmentations
    monkeypatch.setattr(augment, "measure_augmentations", interrupted)
    result = visdiv("augment", "birds", "--only", "flip", code=130)
    assert "mirrored left to right" in result.stdout
    assert "interrupted" in result.stderr
    assert Warehouse("store/visdiv.duckdb").rows("augmentation_effects", "birds") == []


# --- acquire ---


def test_acquire_leaves_benchmarks_and_other_models_out_unless_they_are_named(visdiv, birds):
    make("held_out", range(100, 160))
    make("frames", [*range(3)] * 20)
    result = visdiv("acquire", "frames", "birds", code=1)
    assert "frames has too few different images to say" in result.stderr
    told = json.loads(visdiv("acquire", "birds", "--json").stdout)
    assert [each["dataset"] for each in told["others"]] == ["frames"]
    assert "held_out is a benchmark" in visdiv("acquire", "birds", "held_out", code=1).stderr
    assert "cannot be added to itself" in visdiv("acquire", "birds", "birds", code=1).stderr
    make("frames", [*range(3)] * 20, model="another")
    assert "no other dataset" in visdiv("acquire", "birds", code=1).stderr
    assert "different models" in visdiv("acquire", "birds", "frames", code=1).stderr


def test_acquire_says_how_many_images_to_add(visdiv, birds):
    make("frames", range(200, 260))
    result = visdiv("acquire", "birds", "frames")
    assert "frames" in result.stdout
    assert f"birds scores {birds.corrected_score:.3f} now" in result.stdout
