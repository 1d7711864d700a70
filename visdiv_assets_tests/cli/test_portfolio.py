"""The commands about datasets beside each other, as a user types them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.cli.conftest import cells, copy_here, prepared, score
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image, write_images

SETTINGS = """
store: store
datasets:
  birds: {source: birds}
  cars: {source: cars}
  listed: {source: list.csv, slices: {column: label}}
"""


pytestmark = pytest.mark.usefixtures("project_folder")


def some_images(folder, seeds):
    for seed in seeds:
        write_image(Path(folder, f"{seed:03}.png"), seed)


def reddish_images(folder, seeds):
    for seed in seeds:
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        noise[..., 0] = 160 + noise[..., 0] // 3
        Image.fromarray(noise).save(Path(folder, f"{seed:03}.png"))


def make_two():
    some_images("birds", range(80))
    some_images("cars", range(100, 170))
    score("birds")
    score("cars")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    return prepared(tmp_path_factory, SETTINGS, make_two)


@pytest.fixture
def two(evaluated):
    copy_here(evaluated)
    return Warehouse("store/visdiv.duckdb").newest_evaluations(["birds", "cars"])


def by_first(result):
    return {row[0]: row[1:] for row in cells(result)}


COMMANDS = [("compare",), ("mix",), ("slices",), ("drift",)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["birds", "nothing"])
def test_what_was_never_evaluated_is_an_error_in_one_sentence(visdiv, command, name):
    result = visdiv(*command, name, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {name} has never been evaluated")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["compare", "mix"])
def test_without_names_and_evaluations_there_is_nothing_to_show(visdiv, command):
    result = visdiv(command, code=1)
    assert "no registered dataset has ever been evaluated; run `visdiv score`" in result.stderr


# --- compare ---


def test_compare_ranks_registered_datasets_among_published_ones(visdiv, two):
    result = visdiv("compare")
    rows = by_first(result)
    assert len(rows) == 2 + 13
    birds, _ = two
    assert rows["birds"] == [
        "80",
        f"{birds.diversity_score:.3f}",
        f"{birds.corrected_score:.3f}",
        f"{birds.corrected_low:.3f}–{birds.corrected_high:.3f}",
    ]
    assert rows["FineVision"] == ["17,300,000", "0.500"]
    names = list(rows)
    assert set(names[:2]) == {"birds", "cars"}  # in a block of their own
    for part, place in ((names[:2], 2), (names[2:], 1)):
        ranked = [float(rows[name][place]) for name in part]
        assert ranked == sorted(ranked, reverse=True)
    assert "above" in result.stdout
    assert result.stdout.rstrip().endswith("may be chance")


def test_compare_says_which_differences_are_more_than_chance(visdiv):
    make_two()
    warehouse = Warehouse("store/visdiv.duckdb")
    [cars] = warehouse.newest_evaluations(["cars"])
    low = {"corrected_score": 0.02, "corrected_low": 0.018, "corrected_high": 0.022}
    warehouse.record(replace(cars, evaluation_id="low", **low), np.zeros(cars.dimension))
    assert "times cars: more than chance" in visdiv("compare").stdout


def test_compare_shows_a_dataset_of_too_few_images_last(visdiv, two):
    Path("visdiv.yaml").write_text(SETTINGS + "  few: {source: few}\n")
    write_images(Path("few"), 3)
    score("few")
    rows = by_first(visdiv("compare", "birds", "few"))
    assert list(rows)[:2] == ["birds", "few"]
    assert rows["few"][2] == "too few"
    assert "cars" not in rows


def test_compare_warns_of_different_models(visdiv, two):
    assert "different models" not in visdiv("compare").stderr
    score("cars", model="another")
    assert "come from 2 different models" in visdiv("compare").stderr


# --- mix ---


def test_mix_shows_weights_and_what_the_mixture_scores(visdiv, two):
    result = visdiv("mix")
    rows = by_first(result)
    weights = [float(rows[name][1].rstrip("%")) for name in ("birds", "cars")]
    assert sum(weights) == pytest.approx(100, abs=0.2)
    assert "The mixture scores 0." in result.stdout
    assert "equal weights, 0." in result.stdout


def test_mix_says_how_many_images_a_budget_takes_of_each(visdiv, two):
    rows = by_first(visdiv("mix", "birds", "cars", "--budget", "150"))
    assert (rows["birds"][2], rows["cars"][2]) == ("80", "70")


def test_mix_refuses_a_budget_that_there_are_not_enough_images_for(visdiv, two):
    result = visdiv("mix", "--budget", "151", code=1)
    assert result.stdout == ""
    assert "the datasets have 150 images, not 151" in result.stderr


def test_mix_keeps_shares_within_what_is_given(visdiv, two):
    told = json.loads(visdiv("mix", "--most", "birds=0.2", "--json").stdout)
    weights = {each["evaluation"]["dataset"]: each["weight"] for each in told["datasets"]}
    assert weights["birds"] <= 0.2 + 1e-9
    rows = by_first(visdiv("mix", "--least", "birds=0.9", "--least", "cars=0.1"))
    assert (rows["birds"][1], rows["cars"][1]) == ("90.0%", "10.0%")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("--least", "birds=0.6", "--least", "cars=0.6"), "smallest shares add up to 120.0%"),
        (("--most", "birds=0.3", "--most", "cars=0.3"), "largest shares add up to 60.0%"),
        (("--most", "birds=0.3", "--least", "birds=0.5"), "birds cannot be at least 50.0%"),
        (("--budget", "150", "--least", "cars=0.5"), "cars cannot be at least 50.0%"),
        (("--most", "dogs=0.3"), "dogs is given a share, but isn't among the datasets"),
    ],
)
def test_mix_says_in_a_sentence_which_shares_no_mixture_has(visdiv, two, given, problem):
    result = visdiv("mix", *given, code=1)
    assert problem in result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("share", ["birds", "=0.5", "birds=", "birds=1.5", "birds=nan", "birds=-1"])
@pytest.mark.parametrize("option", ["--most", "--least"])
def test_mix_takes_a_share_that_is_none_for_wrong_usage(visdiv, two, option, share):
    assert "NAME=SHARE" in visdiv("mix", option, share, code=2).stderr


def test_mix_refuses_different_models(visdiv, two):
    score("cars", model="another")
    assert "different models, so they cannot be mixed" in visdiv("mix", code=1).stderr


# --- slices ---


def test_slices_shows_each_folder(visdiv):
    some_images("birds/owls [x]", range(60))
    some_images("birds/gulls", range(100, 120))
    evaluation = score("birds")
    result = visdiv("slices", "birds")
    rows = by_first(result)
    assert list(rows) == ["owls [x]", "gulls"]
    assert rows["owls [x]"][:2] == ["60", "75.0%"]
    assert rows["gulls"][2:4] == ["too few", ""]
    assert rows["owls [x]"][4].startswith("-")
    assert f"from {evaluation.diversity_score:.4f}" in result.stdout


def test_slices_shows_each_value_of_a_column(visdiv):
    some_images("images", range(9))
    rows = [f"images/{seed:03}.png,{'owl' if seed < 6 else 'gull'}" for seed in range(9)]
    Path("list.csv").write_text("\n".join(["path,label", *rows]))
    score("listed")
    assert {name: row[0] for name, row in by_first(visdiv("slices", "listed")).items()} == {
        "owl": "6",
        "gull": "3",
    }


def test_slices_of_what_is_not_divided_says_how_to_divide_it(visdiv, two):
    result = visdiv("slices", "birds", code=1)
    assert "birds has only one part" in result.stderr
    assert "{column: NAME}" in result.stderr


# --- drift ---


def test_drift_needs_a_second_evaluation(visdiv, two):
    expected = "birds has no earlier evaluation of the same model\n"
    assert visdiv("drift", "birds").stdout == expected


def test_drift_tells_chance_from_change(visdiv, two):
    some_images("birds", range(80, 90))
    score("birds")
    result = visdiv("drift", "birds")
    assert result.stdout.startswith("birds against birds of ")
    assert result.stdout.endswith("\nno more than chance\n")
    reddish_images("birds", range(90, 140))
    score("birds")
    for _ in range(2):  # scoring it again changes nothing
        result = visdiv("drift", "birds")
        assert result.stdout.count("birds against birds of ") == 2
        assert result.stdout.endswith("\nmore than chance\n")
        for what in (
            "images that came                  50 (p = 0.005)",
            "images that came                  60 (p = 0.005)",
            "images that went                  0\n",
            "images that stayed                90",
            "distance of the means",
            "squared Fréchet distance",
            "angles",
        ):
            assert what in result.stdout
        score("birds")


def test_drift_does_not_pass_over_a_few_images_in_silence(visdiv, two):
    reddish_images("birds", range(80, 83))
    score("birds")
    assert visdiv("drift", "birds").stdout.endswith("\ncannot tell from 3 new images\n")


def test_drift_is_measured_from_the_pinned_evaluation_until_it_is_unpinned(visdiv, two):
    reddish_images("birds", range(50))
    score("birds")
    assert visdiv("drift", "birds").stdout.endswith("\nmore than chance\n")
    newest = Warehouse("store/visdiv.duckdb").history("birds")[-1]
    assert f"measured from {newest.evaluated_at:%Y-%m-%d %H:%M}" in (
        visdiv("drift", "birds", "--pin").stdout
    )
    assert visdiv("drift", "birds").stdout == "the images are the same as before\n"
    assert "from no fixed evaluation" in visdiv("drift", "birds", "--unpin").stdout
    assert visdiv("drift", "birds").stdout.endswith("\nmore than chance\n")


def test_drift_as_json_has_every_comparison(visdiv, two):
    some_images("birds", range(80, 90))
    score("birds")
    found = json.loads(visdiv("drift", "birds", "--json").stdout)["drift"]
    [each] = found["comparisons"]
    assert (found["more_than_chance"], found["finding"]) == (False, "no more than chance")
    assert each["came"] == {"images": 10, "units": 10, "p": each["p"]}
    assert each["went"] == {"images": 0, "units": 0, "p": None}
    assert (each["stayed"], each["exact"]) == (80, True)


def test_pinning_and_unpinning_at_once_is_an_error(visdiv, two):
    assert (
        "use either --pin or --unpin" in visdiv("drift", "birds", "--pin", "--unpin", code=1).stderr
    )


def test_drift_compares_with_another_dataset(visdiv, two):
    result = visdiv("drift", "birds", "--against", "cars")
    assert result.stdout.startswith("birds against cars of ")
    assert result.stdout.endswith("\nno more than chance\n")
    assert (
        "nothing has never been evaluated"
        in visdiv("drift", "birds", "--against", "nothing", code=1).stderr
    )
    score("cars", model="another")
    result = visdiv("drift", "birds", "--against", "cars", code=1)
    assert "cars and birds were embedded with different models" in result.stderr


# --- score ---


def test_score_says_how_many_images_a_sample_was_drawn_from(visdiv, monkeypatch):
    embedder = FakeEmbedder(batch_size=64)
    monkeypatch.setattr("visdiv_assets.cli.score.load_embedder", lambda *_: embedder)
    write_images(Path("birds"), 520)
    assert "of 520" in visdiv("score", "birds", "--precision", "0.3").stdout
    assert sum(embedder.batches) == 500
    assert "of 520" not in visdiv("score", "birds").stdout
    assert sum(embedder.batches) == 520
