"""The commands about what a dataset repeats, as a user types them."""

import csv
import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.cli.conftest import cells, copy_here, prepared, score
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

SETTINGS = """
store: store
datasets:
  birds: {source: birds}
  cars: {source: cars}
  test: {source: test, role: benchmark}
"""
ODD = "line\nbreak [red].png"


pytestmark = pytest.mark.usefixtures("project_folder")


def enlarge(source, target):
    with Image.open(source) as image:
        image.resize((16, 16), Image.Resampling.NEAREST).save(target)


def make_birds():
    for seed in range(12):
        write_image(Path(f"birds/{seed:03}.png"), seed)
    enlarge("birds/000.png", "birds/large.png")
    shutil.copy("birds/001.png", Path("birds", ODD))
    score("birds")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Twelve birds, a larger one of 000, a copy of 001 with an odd name; evaluated once."""
    return prepared(tmp_path_factory, SETTINGS, make_birds)


@pytest.fixture
def birds(evaluated):
    copy_here(evaluated)


@pytest.fixture
def test_set(birds):
    """Two images of the birds, and one of its own."""
    Path("test").mkdir()
    shutil.copy("birds/003.png", "test/a.png")
    enlarge("birds/004.png", "test/b.png")
    write_image(Path("test/c.png"), 99)
    score("test")


@pytest.mark.parametrize("command", ["duplicates", "leakage", "similar"])
def test_each_command_has_examples(visdiv, command):
    assert f"visdiv {command} birds" in visdiv(command, "--help").stdout


@pytest.mark.parametrize("command", [["duplicates"], ["leakage"], ["similar", "x.png"]])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("birds", "birds has never been evaluated; run `visdiv score birds`"),
        ("./birds", "./birds has never been evaluated; run `visdiv score ./birds`"),
        (
            "nothing",
            "nothing has never been evaluated, and there is no dataset 'nothing' in the settings",
        ),
        ("s3://nothing/", "s3://nothing/ has never been evaluated"),
    ],
)
def test_what_was_never_evaluated_is_an_error_in_one_sentence(visdiv, command, name, sentence):
    Path("birds").mkdir()
    first, *others = command
    result = visdiv(first, name, *others, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {sentence}")
    assert result.stderr.count("\n") == 1


# --- duplicates ---


def test_duplicates_shows_what_may_go_and_what_to_keep(visdiv, birds):
    result = visdiv("duplicates", "birds")
    assert result.stdout.startswith("birds: 14 images, 13 different contents\n")
    assert cells(result) == [
        ["exact copies", "1", "7.1%"],
        ["near-duplicates at 0.75", "1", "7.1%"],
        ["near-duplicates at 0.90", "1", "7.1%"],
        ["near-duplicates at 0.95", "1", "7.1%"],
        ["1", "2", "2", "0.996", "large.png"],
        ["2", "2", "1", "1.000", "001.png"],
    ]
    assert "Without them the score as it is becomes 0." in result.stdout


def test_duplicates_of_a_folder_that_is_not_registered(visdiv, birds):
    shutil.copytree("birds", "other")
    score("other")
    assert "14 images, 13 different" in visdiv("duplicates", "other").stdout


def test_duplicates_without_any(visdiv):
    for seed in range(3):
        write_image(Path(f"cars/{seed}.png"), seed)
    score("cars")
    result = visdiv("duplicates", "cars", "--sheet", "none.png")
    assert cells(result)[0] == ["exact copies", "0", "0.0%"]
    assert "there is nothing to draw" in result.stdout
    assert not Path("none.png").exists()


def test_the_images_that_may_go_are_written_in_the_form_that_the_name_says(visdiv, birds):
    told = visdiv("duplicates", "birds", "--export", "drop.txt").stdout
    assert "the 2 redundant images are listed in drop.txt" in told
    assert Path("drop.txt").read_text() == "000.png\nline\\nbreak [red].png\n"
    visdiv("duplicates", "birds", "--export", "drop.csv")
    with Path("drop.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_id"], row["kept"], row["kind"]) for row in rows] == [
        ("000.png", "large.png", "near"),
        (ODD, "001.png", "exact"),
    ]
    visdiv("duplicates", "birds", "--export", "drop.JSONL")
    lines = [json.loads(line) for line in Path("drop.JSONL").read_text().splitlines()]
    assert [line["image_id"] for line in lines] == ["000.png", ODD]
    assert (lines[0]["width"], lines[1]["width"]) == (8, None)


def test_a_list_of_another_form_is_refused_before_the_work(visdiv, birds):
    result = visdiv("duplicates", "birds", "--export", "drop.xml", code=1)
    assert "a list must end in .csv, .jsonl, .txt, .sh; got drop.xml" in result.stderr


def make_links():
    """Links to files and to a folder, before and behind them by name, and two hard links."""
    for seed in range(6):
        write_image(Path(f"birds/m/{seed}.png"), seed)
    for link in ("birds/a link.png", "birds/z link.png"):
        Path(link).symlink_to("m/0.png")
    Path("birds/b").mkdir()
    Path("birds/b/1.png").symlink_to("../m/1.png")
    Path("birds/hard.png").hardlink_to("birds/m/2.png")
    shutil.copy("birds/m/3.png", "birds/copy of 3.png")
    Path("birds/n link.png").symlink_to("m/3.png")
    score("birds")


def exported(visdiv, *arguments, name="birds"):
    visdiv("duplicates", name, *arguments, "--export", "drop.jsonl")
    return [json.loads(line)["image_id"] for line in Path("drop.jsonl").read_text().splitlines()]


def test_links_are_no_duplicates_and_no_picture_is_lost_with_what_is_listed(visdiv):
    make_links()
    pictures = {path.read_bytes() for path in Path("birds").rglob("*.png")}
    listed = exported(visdiv)
    assert listed == ["m/3.png", "n link.png"]  # a file with all its names; its copy is kept
    for name in listed:
        Path("birds", name).unlink()
    left = list(Path("birds").rglob("*.png"))
    assert all(path.exists() for path in left)
    assert {path.read_bytes() for path in left} == pictures


def test_links_are_told_and_count_as_one_image_with_their_file(visdiv):
    make_links()
    result = visdiv("duplicates", "birds")
    assert result.stdout.startswith("birds: 7 images, 6 different contents\n")
    assert "5 more names are links to them.\n" in result.stdout
    assert cells(result)[0] == ["exact copies", "1", "14.3%"]


def test_a_folder_with_links_only_repeats_nothing(visdiv):
    write_image(Path("birds/1.png"), 1)
    write_image(Path("birds/2.png"), 2)
    Path("birds/3.png").symlink_to("1.png")
    score("birds")
    assert exported(visdiv) == []
    found = json.loads(visdiv("duplicates", "birds", "--json").stdout)
    assert (found["n_images"], found["n_exact"], found["rate"], found["n_links"]) == (2, 0, 0, 1)
    assert found["score_without"] == found["score"]


def test_a_copy_that_became_a_link_since_is_not_listed(visdiv, birds):
    Path("birds/000.png").unlink()
    Path("birds/000.png").symlink_to("large.png")
    assert exported(visdiv) == [ODD]
    assert "1 redundant image is not to be removed" in visdiv("duplicates", "birds").stdout


def test_a_copy_that_another_image_became_a_link_to_since_is_not_listed(visdiv, birds):
    Path("birds/005.png").unlink()
    Path("birds/005.png").symlink_to("000.png")
    assert exported(visdiv) == [ODD]


@pytest.mark.parametrize("image", ["large.png", "000.png"])
@pytest.mark.parametrize("change", ["changed", "gone"])
def test_nothing_is_listed_of_a_cluster_whose_images_changed_since(visdiv, birds, image, change):
    path = Path("birds", image)
    if change == "gone" and image == "large.png":
        visdiv("duplicates", "birds")  # its size is known from now on, so it stays first
    path.unlink()
    if change == "changed":
        write_image(path, 77)
    assert "000.png" not in exported(visdiv)


def test_images_that_are_files_of_the_other_dataset_are_not_listed(visdiv, birds):
    Path("test").mkdir()
    Path("test/a.png").symlink_to("../birds/003.png")
    Path("test/b.png").hardlink_to("birds/004.png")
    shutil.copy("birds/005.png", "test/c.png")
    score("test")
    assert exported(visdiv, "--against", "test") == ["005.png"]
    result = visdiv("duplicates", "birds", "--against", "test")
    assert cells(result)[-1][:2] == ["test", "3"]
    assert "2 of them are files of the others too, by links or overlapping" in result.stdout
    assert exported(visdiv, "--against", "birds", name="test") == ["c.png"]
    visdiv("leakage", "birds", "--export", "leaks.txt")
    assert Path("leaks.txt").read_text() == "005.png\n"


def test_a_folder_inside_the_other_has_nothing_to_remove(visdiv, birds):
    Path("birds/part").mkdir()
    for name in ("003.png", "004.png"):
        shutil.move(f"birds/{name}", f"birds/part/{name}")
    score("birds")
    score("birds/part")
    assert exported(visdiv, "--against", "birds/part") == []
    assert exported(visdiv, "--against", "birds", name="birds/part") == []


def test_a_file_that_a_third_dataset_links_to_is_not_listed(visdiv, birds):
    Path("test").mkdir()
    shutil.copy("birds/003.png", "test/a.png")
    Path("cars").mkdir()
    for name in ("test", "cars"):
        write_image(Path(name, "own.png"), 88)
    Path("cars/a.png").symlink_to("../birds/003.png")
    score("test")
    score("cars")
    assert exported(visdiv, "--against", "test") == ["003.png"]
    assert exported(visdiv, "--against", "test", "--against", "cars") == []


def test_before_a_list_is_written_it_says_how_to_undo(visdiv, birds):
    told = visdiv("duplicates", "birds", "--export", "drop.txt").stderr
    assert "move the images rather than delete them, so that you can undo it" in told
    told = visdiv("duplicates", "birds", "--export", "move.sh").stderr
    assert "to undo it, sh move.sh --undo TARGET" in told


def test_a_script_moves_what_may_go_and_moves_it_back(visdiv, birds):
    before = {path: path.read_bytes() for path in Path("birds").iterdir()}
    visdiv("duplicates", "birds", "--export", "move.sh")
    subprocess.run(["sh", "move.sh", "away"], check=True)
    assert {path.name for path in Path("away").iterdir()} == {"000.png", ODD}
    assert len(list(Path("birds").iterdir())) == 12
    subprocess.run(["sh", "move.sh", "--undo", "away"], check=True)
    assert {path: path.read_bytes() for path in Path("birds").iterdir()} == before


def test_a_script_is_refused_for_what_is_no_folder_before_the_work(visdiv, birds):
    shutil.make_archive("birds", "zip", "birds")
    score("birds.zip")
    result = visdiv("duplicates", "birds.zip", "--export", "move.sh", code=1)
    assert "a script can only move files of a folder" in result.stderr


def test_a_list_that_cannot_be_written_is_an_error(visdiv, birds):
    result = visdiv("duplicates", "birds", "--export", "no/such/drop.txt", code=1)
    assert "cannot write no/such/drop.txt: No such file or directory" in result.stderr


def test_duplicates_draws_clusters(visdiv, birds):
    assert "saved sheet.png" in visdiv("duplicates", "birds", "--sheet", "sheet.png").stdout
    with Image.open("sheet.png") as sheet:
        assert sheet.height > 2 * 112


@pytest.mark.parametrize(
    ("recall", "told"), [(0.987, "98.7%, as measured,"), (float("nan"), "an unknown share")]
)
def test_what_an_index_finds_of_all_pairs_is_told(visdiv, birds, monkeypatch, recall, told):
    from visdiv_assets.workflows import duplicates

    def by_index(*arguments, **options):
        found = similar_components(*arguments, **options)
        return dataclasses.replace(found, method="index", recall=recall)

    similar_components = duplicates.similar_components
    monkeypatch.setattr(duplicates, "similar_components", by_index)
    assert f"finds {told} of all pairs" in visdiv("duplicates", "birds").stdout
    found = json.loads(visdiv("duplicates", "birds", "--json").stdout)
    assert found["recall"] == (recall if recall == recall else None)


def test_duplicates_as_json(visdiv, birds):
    found = json.loads(visdiv("duplicates", "birds", "--json").stdout)
    assert (found["n_images"], found["n_exact"], found["n_near"]) == (14, 1, 1)
    assert found["near"] == {"0.75": 1, "0.90": 1, "0.95": 1}
    assert [each["keep"] for each in found["clusters"]] == ["large.png", "001.png"]
    assert found["rate"] == pytest.approx(2 / 14)
    assert (found["method"], found["recall"]) == ("exact", 1.0)


@pytest.mark.parametrize("threshold", ["-0.1", "1.1", "nan", "much"])
def test_a_threshold_that_is_no_similarity_is_refused(visdiv, birds, threshold):
    assert "--threshold" in visdiv("duplicates", "birds", "--threshold", threshold, code=2).stderr


def test_a_higher_threshold_finds_less_and_is_not_taken_for_the_datasets_own(visdiv, birds):
    warehouse = Warehouse("store/visdiv.duckdb")
    result = visdiv("duplicates", "birds", "--threshold", "1")
    assert ["near-duplicates at 1.00", "0", "0.0%"] in cells(result)
    assert warehouse.rows("redundancy", "birds") == []
    visdiv("duplicates", "birds")
    [row] = warehouse.rows("redundancy", "birds")
    assert row["threshold"] == 0.75


def test_the_threshold_of_the_settings_is_used(visdiv, birds):
    Path("visdiv.yaml").write_text(
        SETTINGS.replace("source: birds", "source: birds, near_duplicates: {threshold: 0.999}")
    )
    assert ["near-duplicates at 0.999", "0", "0.0%"] in cells(visdiv("duplicates", "birds"))


def make_chain():
    Path("cars").mkdir()
    write_image(Path("one.png"), 1)
    write_image(Path("two.png"), 2)
    with Image.open("one.png") as one, Image.open("two.png") as two:
        for frame in range(11):
            Image.blend(one, two, frame / 10).save(f"cars/{frame:02}.png")
    score("cars")


def test_a_chain_is_divided_unless_whole_clusters_are_asked_for(visdiv):
    make_chain()
    told = visdiv("duplicates", "cars", "--no-split").stdout
    assert "1 cluster is a chain: " in told
    assert "--split divides them" in told
    assert "chain" not in visdiv("duplicates", "cars").stdout
    divided = exported(visdiv, name="cars")
    assert len(divided) < len(exported(visdiv, "--no-split", name="cars")) == 10
    whole = SETTINGS.replace("source: cars", "source: cars, near_duplicates: {split: false}")
    Path("visdiv.yaml").write_text(whole)
    assert len(exported(visdiv, name="cars")) == 10
    assert exported(visdiv, "--split", name="cars") == divided


def test_duplicates_in_another_dataset(visdiv, birds, test_set):
    result = visdiv(
        "duplicates", "birds", "--against", "test", "--export", "x.csv", "--sheet", "x.png"
    )
    assert cells(result)[-1] == ["test", "2", "14.3%", "1", "2", "66.7%", "2", "2"]
    with Path("x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_id"], row["other"], row["other_image_id"]) for row in rows] == [
        ("003.png", "test", "a.png"),
        ("004.png", "test", "b.png"),
    ]
    assert Path("x.png").stat().st_size > 1000
    [found] = json.loads(visdiv("duplicates", "birds", "--against", "test", "--json").stdout)
    assert (found["n_found"], found["n_other_found"]) == (2, 2)


def test_datasets_of_other_models_are_not_compared(visdiv, birds, test_set):
    score("test", model="another")
    result = visdiv("duplicates", "birds", "--against", "test", code=1)
    assert "birds and test were embedded with different models" in result.stderr


def test_a_dataset_is_not_compared_with_itself(visdiv, birds):
    result = visdiv("duplicates", "birds", "--against", "./birds", code=1)
    assert "--against needs other datasets; leave out birds" in result.stderr


def test_several_datasets_are_not_divided(visdiv, birds, test_set):
    for how in ("--split", "--no-split"):
        result = visdiv("duplicates", "birds", "--against", "test", how, code=1)
        assert "--split and --no-split work on one dataset" in result.stderr


def test_in_a_log_progress_is_a_line_now_and_then(visdiv, birds, monkeypatch):
    monkeypatch.setattr("visdiv_assets.cli.progress.PROGRESS_SECONDS", 0.0)
    told = visdiv("duplicates", "birds").stderr
    assert "birds: comparing, 100%\n" in told
    assert "birds: looking at sizes, 50%\n" in told


# --- leakage ---


def test_leakage_names_the_benchmarks_that_have_images_of_a_dataset(visdiv, birds, test_set):
    result = visdiv("leakage", "birds", "--export", "leaks.txt", "--sheet", "leaks.png")
    assert cells(result)[-1] == ["test", "2", "14.3%", "1", "2", "66.7%", "2"]
    assert Path("leaks.txt").read_text() == "003.png\n004.png\n"
    assert Path("leaks.png").exists()
    leaks = Warehouse("store/visdiv.duckdb").rows("leaks", "birds")
    assert [(each["image_id"], each["exact"]) for each in leaks] == [
        ("003.png", True),
        ("004.png", False),
    ]


def test_leakage_of_a_benchmark_has_no_meaning(visdiv, birds, test_set):
    assert "test is itself a benchmark" in visdiv("leakage", "test", code=1).stderr


def test_leakage_without_benchmarks_has_nowhere_to_go(visdiv, birds):
    Path("visdiv.yaml").write_text("store: store\ndatasets: {birds: {source: birds}}")
    result = visdiv("leakage", "birds", code=1)
    assert "no dataset in the settings has role: benchmark" in result.stderr


def test_leakage_says_which_benchmarks_were_not_compared(visdiv, birds):
    result = visdiv("leakage", "birds", code=1)
    assert "test was not compared: it has never been evaluated" in result.stderr
    [row] = Warehouse("store/visdiv.duckdb").rows("leakage", "birds")
    assert row["not_compared"] == "it has never been evaluated"


# --- similar ---


def test_similar_finds_images_like_one_of_the_dataset(visdiv, birds):
    rows = cells(visdiv("similar", "birds", "000.png", "-k", "2", "--sheet", "out.png"))
    assert rows[0] == ["0.9957", "large.png"]
    assert len(rows) == 2
    assert Path("out.png").exists()
    assert cells(visdiv("similar", "birds", "001.png", "-k", "1")) == [
        ["same bytes", ODD.replace("\n", "\\n")]
    ]


def test_similar_finds_images_like_a_file(visdiv, birds, monkeypatch):
    monkeypatch.setattr(
        "visdiv_assets.workflows.project.SSCDEmbedder", lambda **_: FakeEmbedder(batch_size=8)
    )
    enlarge("birds/007.png", "unknown.bmp")
    result = visdiv("similar", "birds", "unknown.bmp", "-k", "3", "--json")
    found = json.loads(result.stdout)
    assert found[0]["image_id"] == "007.png"
    assert len(found) == 3


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("nothing.png", "nothing.png is neither an image of birds nor a file"),
        ("birds", "cannot read birds: Is a directory"),
        ("visdiv.yaml", "the image cannot be decoded: not an image in a known format"),
    ],
)
def test_similar_to_what_is_no_image_is_an_error(visdiv, birds, image, sentence, monkeypatch):
    monkeypatch.setattr(
        "visdiv_assets.workflows.project.SSCDEmbedder", lambda **_: FakeEmbedder(batch_size=8)
    )
    assert visdiv("similar", "birds", image, code=1).stderr == f"error: {sentence}\n"


def test_similar_of_another_model_says_so(visdiv, birds, monkeypatch):
    monkeypatch.setattr(
        "visdiv_assets.workflows.project.SSCDEmbedder", lambda **_: FakeEmbedder("another")
    )
    enlarge("birds/007.png", "unknown.bmp")
    result = visdiv("similar", "birds", "unknown.bmp", code=1)
    assert "birds was embedded with fake, but the settings now name another" in result.stderr


def test_similar_finds_at_most_as_many_as_there_are(visdiv, birds):
    assert "-k" in visdiv("similar", "birds", "000.png", "-k", "0", code=2).stderr
    result = visdiv("similar", "birds", "000.png", "-k", "14", code=1)
    assert "k must be between 1 and 13, the number of other images in birds" in result.stderr


def test_pictures_of_one_flat_colour_are_told_since_they_look_alike(visdiv, birds):
    for colour in ("navy", "white"):
        Image.new("RGB", (16, 16), colour).save(f"birds/{colour}.png")
    score("birds")
    assert "2 pictures are one flat colour" in visdiv("duplicates", "birds").stdout
    assert json.loads(visdiv("duplicates", "birds", "--json").stdout)["n_flat"] == 2
