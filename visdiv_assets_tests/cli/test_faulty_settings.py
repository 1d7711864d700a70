"""A dataset whose settings are wrong: commands tell it, and go on with all others."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from visdiv_assets.cli import doctor
from visdiv_assets.cli.main import app
from visdiv_assets.settings.reading import load_settings
from visdiv_assets_tests.cli.conftest import score
from visdiv_assets_tests.embedding.fakes import write_image
from visdiv_assets_tests.notify.receivers import webhook

SETTINGS = """
store: store
embedder: {weights: sscd_disc_mixup, device: cpu}
datasets:
  birds: {source: birds, slices: folder}
  typo: {source: birds, treshold: 0.5}
  cars: {source: cars}
  unset: {source: '${VISDIV_TEST_UNSET}/x'}
"""
TYPO = "'datasets.typo.treshold' is not a setting; did you mean 'threshold'? (line 6)"
UNSET = (
    "the environment variable VISDIV_TEST_UNSET, used by 'datasets.unset.source', is not set "
    "(line 8)"
)

pytestmark = pytest.mark.usefixtures("two_datasets")


@pytest.fixture
def two_datasets(project_folder, monkeypatch):
    """`birds` and `cars`, evaluated, of 60 images each; `typo` and `unset` are faulty."""
    monkeypatch.delenv("VISDIV_TEST_UNSET", raising=False)
    for at, name in enumerate(("birds", "cars")):
        for number in range(60):
            path = Path(name, f"part{number % 2}", f"{number:03}.png")
            write_image(path, seed=1000 * at + number)
        score(name)


def warnings(result):
    return [line for line in result.stderr.splitlines() if line.startswith("warning: ")]


EXPECTED = [f"warning: visdiv.yaml: {TYPO}", f"warning: visdiv.yaml: {UNSET}"]


@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("history", "birds"),
        ("failures", "birds"),
        ("compare",),
        ("mix",),
        ("slices", "birds"),
        ("drift", "birds"),
        ("duplicates", "birds"),
        ("duplicates", "birds", "--against", "cars"),
        ("similar", "birds", "part0/000.png"),
        ("select", "birds", "-k", "5"),
        ("axes", "birds"),
        ("acquire", "birds"),
        ("alerts", "list"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_every_command_goes_on_and_tells_each_fault_once(visdiv, command, form):
    result = visdiv(*command, *form)
    assert warnings(result) == EXPECTED
    if form:
        json.loads(result.stdout)


@pytest.mark.parametrize(
    "command",
    [
        ("score", "typo"),
        ("history", "typo"),
        ("failures", "typo"),
        ("compare", "birds", "typo"),
        ("mix", "birds", "typo"),
        ("slices", "typo"),
        ("drift", "typo"),
        ("leakage", "typo"),
        ("duplicates", "typo"),
        ("duplicates", "birds", "--against", "typo"),
        ("similar", "typo", "000.png"),
        ("select", "typo", "-k", "5"),
        ("axes", "typo"),
        ("augment", "typo"),
        ("acquire", "birds", "typo"),
    ],
    ids=" ".join,
)
def test_a_command_about_a_faulty_dataset_fails_with_what_is_wrong(visdiv, command):
    Path("typo").mkdir()  # it is not taken for the folder of that name
    result = visdiv(*command, code=1)
    assert f"error: visdiv.yaml: {TYPO}" in result.stderr.splitlines()
    assert warnings(result) == EXPECTED[1:]  # what is told as an error is no warning, too
    assert result.stdout == ""


def test_a_folder_is_no_faulty_dataset(visdiv):
    Path("typo").mkdir()
    assert "has never been evaluated" in visdiv("history", "./typo", code=1).stderr


def test_list_shows_faulty_datasets_with_what_is_wrong(visdiv):
    shown = visdiv("list").stdout
    assert "typo" in shown
    assert "is not a setting" in " ".join(shown.split())
    listed = json.loads(visdiv("list", "--json").stdout)["datasets"]
    assert [(each["dataset"], each["error"]) for each in listed] == [
        ("birds", None),
        ("cars", None),
        ("typo", f"visdiv.yaml: {TYPO}"),
        ("unset", f"visdiv.yaml: {UNSET}"),
    ]
    assert listed[2]["source"] is None


def test_list_shows_datasets_that_are_all_faulty(visdiv):
    Path("visdiv.yaml").write_text("datasets: {'[red]a': {}}")
    assert "[red]a" in visdiv("list").stdout


def test_scoring_all_datasets_scores_the_others_and_fails_in_the_end(visdiv, monkeypatch):
    from visdiv_assets_tests.embedding.fakes import FakeEmbedder

    monkeypatch.setattr("visdiv_assets.cli.score.load_embedder", lambda *_: FakeEmbedder())
    result = visdiv("score", "--json", code=1)
    scored = [json.loads(line)["dataset"] for line in result.stdout.splitlines()]
    assert scored == ["birds", "cars"]
    assert warnings(result) == []
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: visdiv.yaml: {TYPO}", f"error: visdiv.yaml: {UNSET}"]
    scored = visdiv("score", "birds", "--json")
    assert json.loads(scored.stdout)["dataset"] == "birds"
    assert warnings(scored) == EXPECTED


def test_where_all_datasets_are_faulty_scoring_says_so(visdiv):
    Path("visdiv.yaml").write_text("datasets: {a: {}}")
    result = visdiv("score", code=1)
    assert "error: visdiv.yaml: 'datasets.a.source' is missing (line 1)" in result.stderr
    assert "register datasets" not in result.stderr


def test_doctor_has_a_row_for_each_fault():
    rows = [each for each in doctor.examine(load_settings()) if each.subject == "settings"]
    assert rows == [
        (False, "settings", f"visdiv.yaml: {TYPO}", False),
        (False, "settings", f"visdiv.yaml: {UNSET}", False),
    ]


def test_datasets_are_added_and_removed_beside_faulty_ones(visdiv):
    visdiv("add", "ants", "birds")
    assert "already exists" in visdiv("add", "typo", "birds", code=1).stderr
    visdiv("remove", "typo")
    visdiv("remove", "unset")
    settings = load_settings()
    assert (list(settings.datasets), settings.faults) == (["birds", "cars", "ants"], {})


def test_a_dataset_that_would_be_faulty_is_not_added(visdiv):
    before = Path("visdiv.yaml").read_text()
    result = visdiv("add", "ants", "s3://${VISDIV_TEST_UNSET}/x", code=1)
    assert "VISDIV_TEST_UNSET, used by 'datasets.ants.source', is not set" in result.stderr
    assert Path("visdiv.yaml").read_text() == before


def test_a_benchmark_whose_settings_are_wrong_is_told_as_not_compared(visdiv):
    text = SETTINGS.replace("{source: cars}", "{source: cars, role: benchmark}")
    Path("visdiv.yaml").write_text(text.replace("treshold: 0.5", "role: bencmark"))
    result = visdiv("leakage", "birds")
    assert "typo was not compared: its settings are wrong" in result.stderr
    assert "unset was not compared" not in result.stderr


def test_the_demo_says_what_is_wrong_with_its_datasets(visdiv):
    Path("visdiv.yaml").write_text("datasets: {demo_photos: {source: x}, demo_tracking: {}}")
    assert "'datasets.demo_tracking.source' is missing" in visdiv("demo", code=1).stderr


def test_an_alert_url_without_its_variable_leaves_the_others_their_test_message(visdiv):
    with webhook() as hook:
        urls = f"['json://x/${{VISDIV_TEST_UNSET}}', 'nonsense://secret@host', '{hook.url}']"
        Path("visdiv.yaml").write_text(f"store: store\nalerts: {{urls: {urls}}}\n")
        result = visdiv("alerts", "test", code=1)
        assert hook.titles == ["visdiv: test"]
    assert "accepted" in result.stdout
    unset, unknown = result.stderr.splitlines()
    assert unset.endswith("VISDIV_TEST_UNSET, used by 'alerts.urls', is not set")
    assert unknown.endswith("that starts with 'nonsense'")
    assert "secret" not in result.stderr


def test_a_broken_file_is_an_error_of_every_command():
    Path("visdiv.yaml").write_text("stor: x\n")
    for command in (["list"], ["score"], ["doctor"], ["compare"], ["add", "a", "birds"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1
        assert "error: visdiv.yaml: 'stor' is not a setting" in result.stderr
