"""What holds for all commands alike: numbers, JSON, names, devices, exports, interruptions."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from visdiv_assets.cli.console import print_json
from visdiv_assets.cli.main import app
from visdiv_assets_tests.cli.conftest import score
from visdiv_assets_tests.conftest import PHOTOS
from visdiv_assets_tests.embedding.fakes import write_image

SETTINGS = """
store: store
datasets:
  birds: {source: birds}
  cars: {source: cars}
  nobody: {source: nobody}
"""


def leaves(command, path=()):
    """Every command, with the words that call it."""
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from leaves(each, (*path, name))
    else:
        yield path, command


COMMANDS = dict(leaves(typer.main.get_command(app)))


def numeric_options():
    for path, command in COMMANDS.items():
        for option in command.params:
            numeric = option.type_descriptor.annotation in (int, float)
            if numeric and option.param_type_name == "option":
                yield path, option.opts[0]


NUMERIC = list(numeric_options())


def required(path):
    words = [each for each in COMMANDS[path].params if each.param_type_name == "argument"]
    return ["x" for each in words if each.required]


def test_there_are_options_that_take_numbers():
    assert (("select",), "-k") in NUMERIC
    assert (("score",), "--precision") in NUMERIC
    assert (("alerts", "list"), "--limit") in NUMERIC
    assert len(NUMERIC) >= 12


@pytest.mark.parametrize(("path", "option"), NUMERIC, ids=lambda each: "-".join(each))
def test_a_bad_number_is_wrong_usage_of_any_option(path, option):
    for value in ("-1", "abc", "nan", "inf", "-inf", "1e999", "9" * 30, "", "-0.1", "0x10"):
        given = [*path, *required(path), f"{option}={value}" if option[1] == "-" else option, value]
        given = given[:-1] if option[1] == "-" else given
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 2, (given, result.output)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr


# --- JSON ---

HERE = pytest.mark.usefixtures("two_datasets")


@pytest.fixture
def two_datasets(project_folder):
    """`birds` and `cars`, evaluated, of 60 images; `nobody` never was."""
    for at, name in enumerate(("birds", "cars")):
        folder = Path(name)
        folder.mkdir()
        for number in range(60):
            write_image(folder / f"{number:03}.png", seed=1000 * at + number)
        score(name)


READERS = [
    ("list",),
    ("history", "birds"),
    ("failures", "birds"),
    ("compare",),
    ("mix", "birds", "cars"),
    ("slices", "birds"),
    ("drift", "birds"),
    ("duplicates", "birds"),
    ("duplicates", "birds", "--against", "cars"),
    ("similar", "birds", "000.png"),
    ("select", "birds", "-k", "5"),
    ("axes", "birds"),
    ("acquire", "birds", "cars"),
    ("alerts", "list"),
]


def no_number(name):
    raise AssertionError(f"{name} is not JSON")


@HERE
@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_json_is_all_that_is_on_stdout(visdiv, command):
    told = visdiv(*command, "--json").stdout
    json.loads(told, parse_constant=no_number)
    assert told.count("\n") == 1


def scores_in(value):
    """Every object that has a score, wherever it is."""
    if isinstance(value, dict):
        if "score" in value and "basis" in value:
            yield value
        for each in value.values():
            yield from scores_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from scores_in(each)


@pytest.mark.slow
@HERE
@pytest.mark.parametrize("basis", ["corrected", "plain"])
@pytest.mark.parametrize(
    "command", [each for each in READERS if each[0] in ("list", "history", "duplicates")]
)
def test_score_is_the_one_that_the_dataset_is_judged_by(visdiv, command, basis):
    if "--against" in command:
        return
    with duckdb.connect("store/visdiv.duckdb") as connection:
        connection.execute("UPDATE evaluations SET basis = ?", [basis])
    found = list(scores_in(json.loads(visdiv(*command, "--json").stdout)))
    assert found
    for each in found:
        assert each["basis"] == basis
        assert each["score"] == each[f"{basis}_score"]


def test_what_is_no_number_is_null(capsys):
    print_json({"a": [float("nan"), {"b": float("inf")}], "c": (1.5,)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": [1.5]}


# --- names ---

NAMED = [
    ("history", "{}"),
    ("failures", "{}"),
    ("slices", "{}"),
    ("drift", "{}"),
    ("compare", "{}"),
    ("mix", "{}", "cars"),
    ("duplicates", "{}"),
    ("leakage", "{}"),
    ("similar", "{}", "000.png"),
    ("select", "{}", "-k", "3"),
    ("axes", "{}"),
    ("augment", "{}"),
    ("acquire", "{}", "cars"),
]


@pytest.mark.slow
@HERE
@pytest.mark.parametrize("command", NAMED, ids=lambda each: each[0])
@pytest.mark.parametrize("name", ["nobody", "unknown"])
def test_one_wording_says_that_something_was_never_evaluated(visdiv, command, name):
    told = visdiv(*(word.format(name) for word in command), code=1)
    assert told.stdout == ""
    assert told.stderr.startswith(f"error: {name} has never been evaluated")
    assert told.stderr.count("\n") == 1


@pytest.mark.slow
@HERE
@pytest.mark.parametrize(
    "command",
    # Of images in one folder there are no slices; measuring augmentations needs the model.
    [each for each in NAMED if each[0] not in ("leakage", "augment", "slices")],
    ids=lambda each: each[0],
)
def test_every_command_takes_the_dataset_and_says_what_the_folder_is_called(visdiv, command):
    Path("visdiv.yaml").write_text(SETTINGS.replace("source: birds", "source: elsewhere"))
    shutil.copytree("birds", "elsewhere")
    told = visdiv(*(word.format("birds") for word in command)).stderr
    assert "birds is taken as the dataset of that name; ./birds names the file or folder" in told


@HERE
def test_the_folder_is_named_by_its_path(visdiv):
    Path("visdiv.yaml").write_text(SETTINGS.replace("source: birds", "source: elsewhere"))
    told = visdiv("history", "./birds", code=1).stderr
    assert told == "error: ./birds has never been evaluated; run `visdiv score ./birds`\n"


@HERE
def test_results_of_a_dataset_that_was_removed_are_found_by_its_name(visdiv):
    visdiv("remove", "cars")
    shutil.rmtree("cars")
    assert json.loads(visdiv("history", "cars", "--json").stdout)["dataset"] == "cars"
    told = visdiv("axes", "cars", "--sheet", "x.png", code=1).stderr
    assert told == "error: cars is not registered, so its images cannot be found\n"


# --- sources ---


@pytest.mark.parametrize(
    "source", ["gone", "gone/list.csv", "gone.zip", "gone/*.tar", "file:///gone", "a.jpg", "a.txt"]
)
def test_a_source_that_is_not_there_is_not_registered(project_folder, visdiv, source):
    Image.new("RGB", (8, 8)).save("a.jpg")
    before = Path("visdiv.yaml").read_text()
    told = visdiv("add", "new", source, code=1)
    assert told.stdout == ""
    assert told.stderr.count("\n") == 1
    assert Path("visdiv.yaml").read_text() == before


def test_a_source_may_be_registered_before_it_is_there(project_folder, visdiv):
    visdiv("add", "new", "gone", "--missing-ok")
    assert "new" in Path("visdiv.yaml").read_text()


def test_a_bucket_is_registered_without_a_look_and_that_is_told(project_folder, visdiv):
    told = visdiv("add", "new", "s3://nobody/knows/").stderr
    assert told == "nobody has looked there yet; visdiv score new does\n"


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG", "c.png"])
def test_a_single_image_is_no_source(project_folder, visdiv, name):
    Image.new("RGB", (8, 8)).save(name)
    told = visdiv("score", name, code=1).stderr
    assert told.endswith(f"{name} is a single image; name its folder, or a list of images\n")
    assert told.count("\n") == 1


# --- pictures ---


@pytest.mark.slow
@HERE
@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")]
)
@pytest.mark.parametrize(
    "command",
    [
        ("history", "birds", "--plot"),
        ("axes", "birds", "--sheet"),
        ("select", "birds", "-k", "3", "--sheet"),
        ("similar", "birds", "000.png", "--sheet"),
    ],
    ids=lambda each: each[0],
)
def test_a_picture_is_what_its_name_says(visdiv, command, name, kind):
    visdiv(*command, name)
    with Image.open(name) as picture:
        assert picture.format == kind


@pytest.mark.parametrize("name", ["a", "a.gif", "a.txt", "a.png.zip"])
@pytest.mark.parametrize(
    "command", [("history", "x", "--plot"), ("augment", "x", "--chart"), ("axes", "x", "--sheet")]
)
def test_a_picture_of_another_kind_is_wrong_usage(visdiv, command, name):
    assert "must end in .png" in visdiv(*command, name, code=2).stderr


# --- devices ---


@pytest.mark.slow
@HERE
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "[cuda:0, cuda:1]"])
@pytest.mark.parametrize(
    "command",
    [("score", "birds"), ("duplicates", "birds"), ("leakage", "birds"), ("augment", "birds")],
    ids=lambda each: each[0],
)
def test_a_gpu_that_is_not_there_is_one_sentence(visdiv, command, device):
    settings = SETTINGS.replace("{source: cars}", "{source: cars, role: benchmark}")
    Path("visdiv.yaml").write_text(f"embedder: {{device: {device}}}\n{settings}")
    told = visdiv(*command, code=1).stderr
    assert re.fullmatch(r"error: the device cuda\S* does not exist: .* no CUDA devices\n", told)


@pytest.mark.slow
@HERE
@pytest.mark.parametrize("device", ["mps", "[]"])
@pytest.mark.parametrize("command", [("score", "birds"), ("duplicates", "birds"), ("doctor",)])
def test_a_device_that_is_none_is_one_sentence(visdiv, command, device):
    Path("visdiv.yaml").write_text(f"embedder: {{device: {device}}}\n{SETTINGS}")
    told = visdiv(*command, code=1).stderr
    assert "embedder.device" in told
    assert told.count("\n") == 1


# --- exports ---


@HERE
def test_an_export_that_fails_is_told_and_made_up_for(caplog):
    shutil.rmtree("store/exports")
    Path("store/exports").write_text("a file")
    evaluation = score("birds")
    assert "the results are recorded, but cannot be exported" in caplog.text
    Path("store/exports").unlink()
    score("cars")
    told = pq.read_table("store/exports/evaluations.parquet")["evaluation_id"].to_pylist()
    assert evaluation.evaluation_id in told
    assert not list(Path("store/exports").glob(".tmp-*"))


@HERE
def test_findings_are_recorded_though_they_cannot_be_exported(visdiv, caplog):
    shutil.rmtree("store/exports")
    Path("store/exports").write_text("a file")
    visdiv("duplicates", "birds")
    assert "the results are recorded, but cannot be exported" in caplog.text


# --- interruptions ---


def interrupt(*_arguments, **_named):
    raise KeyboardInterrupt


@HERE
@pytest.mark.parametrize(
    ("command", "where"),
    [
        (("duplicates", "birds"), "duplicates.duplicates_of"),
        (("select", "birds", "-k", "3"), "select.select_core_set"),
        (("axes", "birds"), "axes.axes_of"),
        (("mix", "birds", "cars"), "mix.plan_mixture"),
    ],
    ids=lambda each: each[0],
)
def test_only_what_keeps_embeddings_says_so_when_interrupted(visdiv, monkeypatch, command, where):
    monkeypatch.setattr(f"visdiv_assets.workflows.{where}", interrupt)
    assert visdiv(*command, code=130).stderr == "interrupted; run the command again\n"


@HERE
def test_an_interrupted_augment_says_that_nothing_was_recorded(visdiv, monkeypatch):
    monkeypatch.setattr("visdiv_assets.workflows.augment.sample_images", lambda *_: None)
    monkeypatch.setattr("visdiv_assets.workflows.augment.measure_augmentations", interrupt)
    told = visdiv("augment", "birds", "--only", "jpeg", code=130).stderr
    assert told == (
        "interrupted after 0 of 1 augmentations; nothing was recorded, and the same command "
        "begins anew\n"
    )


# --- where it runs ---


@pytest.mark.parametrize(
    "program",
    [
        "import visdiv_assets.cli.main",
        "import visdiv_assets; visdiv_assets.SSCDEmbedder",
        "import visdiv_assets.defs",
    ],
)
def test_windows_is_refused_in_one_sentence(program):
    code = f"import sys; sys.platform = 'win32'; {program}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "visdiv_assets runs on Linux and macOS" in told.stderr.splitlines()[-1]


def test_the_demo_says_where_it_is(project_folder, visdiv):
    told = visdiv("demo", code=1).stderr
    assert "git clone https://github.com/visdiv/visdiv_assets, and run `make demo`" in told
    assert told.count("\n") == 1


def test_make_clean_keeps_results():
    recipe = (PHOTOS.parents[2] / "Makefile").read_text().partition("\nclean:")[2]
    assert ".visdiv" not in recipe
