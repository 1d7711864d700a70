"""The commands about registered datasets, as a user types them."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from visdiv_assets.cli.datasets import SPARKS, sparkline
from visdiv_assets.cli.main import app
from visdiv_assets.quality.conditions import Condition, State
from visdiv_assets.settings.editing import TEMPLATE
from visdiv_assets.settings.reading import load_settings
from visdiv_assets.warehouse.state.database import StateFile
from visdiv_assets.warehouse.state.outbox import address, claim, note_states, settle
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.watch import begin_judging, derive_alerts
from visdiv_assets_tests.notify.receivers import webhook
from visdiv_assets_tests.warehouse.test_warehouse import make

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPECTRUM = np.ones(3)
PNG = b"\x89PNG\r\n\x1a\n"

CONFIG = Path("visdiv.yaml")


@pytest.fixture(autouse=True)
def _a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISDIV_CONFIG", raising=False)
    monkeypatch.setenv("VISDIV_STORE", str(tmp_path / "store"))


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "store/visdiv.duckdb")


@pytest.fixture
def visdiv(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command in a wide terminal, so that no table is folded."""
    from visdiv_assets.cli import console

    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr(console.err, "width", 200)

    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.output
        return result

    return run


def record(warehouse: Warehouse, *scores: float, dataset: str = "birds", **changes: object) -> None:
    for n, score in enumerate(scores):
        evaluation = make(
            evaluation_id=f"{dataset}-{n}",
            dataset=dataset,
            evaluated_at=NOON + timedelta(days=n),
            diversity_score=score,
            **changes,
        )
        warehouse.record(evaluation, SPECTRUM)


# --- init ---


def test_init_writes_a_file_and_says_what_comes_next(visdiv):
    result = visdiv("init")
    assert CONFIG.read_text(encoding="utf-8") == TEMPLATE
    assert result.stdout == "wrote visdiv.yaml; next: visdiv add NAME SOURCE\n"


def test_init_writes_where_it_is_told(visdiv):
    visdiv("init", "--config", "other.yaml")
    assert not CONFIG.exists()
    assert load_settings(Path("other.yaml")).datasets == {}


def test_init_leaves_a_file_that_is_there_alone(visdiv):
    CONFIG.write_text("store: mine\n")
    result = visdiv("init", code=1)
    assert result.stdout == ""
    assert "visdiv.yaml already exists" in result.stderr
    assert CONFIG.read_text() == "store: mine\n"


# --- add ---


def test_add_registers_a_dataset_and_keeps_the_comments(visdiv):
    visdiv("init")
    result = visdiv("add", "birds", "/data/birds", "--missing-ok")
    assert result.stdout == "birds is registered in visdiv.yaml\n"
    dataset = load_settings(CONFIG).dataset("birds")
    assert dataset.source.uri == "/data/birds"
    assert (dataset.threshold, dataset.watch, dataset.schedule) == (0.30, True, True)
    assert CONFIG.read_text(encoding="utf-8") == TEMPLATE.replace(
        "datasets:\n", "datasets:\n  birds:\n    source: /data/birds\n"
    )


def test_add_writes_down_only_what_was_said(visdiv):
    visdiv("init")
    visdiv(
        "add", "--missing-ok", "birds", "x", "--threshold", "0.45", "--no-watch", "--no-schedule"
    )
    dataset = load_settings(CONFIG).dataset("birds")
    assert (dataset.threshold, dataset.watch, dataset.schedule) == (0.45, False, False)
    visdiv("add", "--missing-ok", "cats", "x", "--watch", "--schedule")
    assert CONFIG.read_text(encoding="utf-8").count("watch: true  ") == 1  # of the example


def test_a_benchmark_is_registered_as_one(visdiv):
    visdiv("init")
    visdiv("add", "--missing-ok", "test_set", "x", "--role", "benchmark")
    assert load_settings(CONFIG).dataset("test_set").role == "benchmark"
    visdiv("add", "--missing-ok", "birds", "x", "--role", "training")
    assert CONFIG.read_text(encoding="utf-8").count("role: ") == TEMPLATE.count("role: ") + 1
    assert "bench" in visdiv("add", "--missing-ok", "cats", "x", "--role", "bench", code=2).output


def test_a_relative_source_is_relative_to_where_the_command_runs(visdiv, tmp_path, monkeypatch):
    visdiv("init")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    visdiv("add", "--missing-ok", "birds", "../pictures/birds", "--config", "../visdiv.yaml")
    assert load_settings(tmp_path / CONFIG).dataset("birds").source.uri == str(
        tmp_path / "pictures/birds"
    )


def test_a_source_that_is_a_url_stays_as_it_is(visdiv):
    visdiv("init")
    visdiv("add", "birds", "s3://bucket/birds")
    assert load_settings(CONFIG).dataset("birds").source.uri == "s3://bucket/birds"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("birds", "y"), "the dataset 'birds' already exists"),
        (("a/b", "y"), "a dataset name has"),
        (("", "y"), "a dataset name has"),
    ],
)
def test_add_refuses_in_a_sentence_and_leaves_the_file_as_it_was(visdiv, arguments, problem):
    visdiv("init")
    visdiv("add", "--missing-ok", "birds", "x")
    before = CONFIG.read_bytes()
    result = visdiv("add", "--missing-ok", *arguments, code=1)
    assert result.stderr.startswith("error: ")
    assert problem in result.stderr
    assert CONFIG.read_bytes() == before


@pytest.mark.parametrize("threshold", ["1.5", "-0.1", "high", "nan"])
def test_add_refuses_a_threshold_that_is_no_score(visdiv, threshold):
    visdiv("init")
    before = CONFIG.read_bytes()
    result = CliRunner().invoke(app, ["add", "birds", "x", "--threshold", threshold])
    assert result.exit_code in (1, 2)
    assert "threshold" in result.stderr
    assert CONFIG.read_bytes() == before


@pytest.mark.parametrize("arguments", [("add", "birds", "x"), ("remove", "birds")])
def test_without_a_file_there_is_nothing_to_edit(visdiv, arguments):
    result = visdiv(*arguments, code=1)
    assert "there is no visdiv.yaml here; run `visdiv init` to create one" in result.stderr
    assert not CONFIG.exists()


# --- list ---


def test_list_without_datasets_says_how_to_add_one(visdiv):
    result = visdiv("list")
    assert result.stdout == ""
    assert "visdiv add NAME SOURCE" in result.stderr


def test_list_shows_datasets_that_were_never_evaluated(visdiv):
    CONFIG.write_text("datasets: {birds: {source: '/a/[bold]', threshold: 0.45}}\n")
    row = next(line for line in visdiv("list").stdout.splitlines() if "birds" in line)
    assert row.split() == ["birds", "0.45", "never", "/a/[bold]"]


def test_list_shows_the_newest_score_of_each_dataset_in_the_order_of_the_file(visdiv, warehouse):
    CONFIG.write_text("datasets: {cats: {source: /c}, birds: {source: /b}}\n")
    fair = {"corrected_score": 0.35, "corrected_low": 0.31, "corrected_high": 0.3901}
    record(warehouse, 0.5, 0.25, n_images=12_345, basis="corrected", **fair)
    record(warehouse, 0.25, dataset="cats", basis="corrected")
    record(warehouse, 0.75, dataset="no longer registered")
    _, rows = visdiv("list").stdout.split("─ \n")
    assert [row.split() for row in rows.splitlines() if row.strip()] == [
        ["cats", "0.2500", "too", "few", "0.30", "213", "2026-03-01", "/c"],
        ["to", "tell", "12:00"],
        ["birds", "0.2500", "0.3500", "0.30", "12,345", "2026-03-02", "/b"],
        ["0.310–0.390", "12:00"],
    ]


# --- remove ---


def test_remove_takes_a_dataset_out_and_keeps_its_history(visdiv, warehouse):
    visdiv("init")
    visdiv("add", "--missing-ok", "birds", "x")
    record(warehouse, 0.5, 0.6)
    before = warehouse.history("birds")
    result = visdiv("remove", "birds")
    assert result.stdout == "birds is no longer registered; its history is kept\n"
    assert CONFIG.read_text(encoding="utf-8") == TEMPLATE.replace("\ndatasets:", "\ndatasets: {}")
    assert warehouse.history("birds") == before
    assert "0.6000" in visdiv("history", "birds").stdout


def test_remove_refuses_a_dataset_that_there_is_not(visdiv):
    visdiv("init")
    assert "no dataset 'birds'" in visdiv("remove", "birds", code=1).stderr
    assert CONFIG.read_text(encoding="utf-8") == TEMPLATE


# --- history ---


def test_history_prints_the_evaluations_and_a_sparkline(visdiv, warehouse):
    record(warehouse, 0.1, 0.2, 0.3)
    lines = visdiv("history", "birds").stdout.splitlines()
    rows = [line.split() for line in lines if line.startswith(" 2026")]
    assert [row[0] for row in rows] == ["2026-03-01", "2026-03-02", "2026-03-03"]
    assert [row[4] for row in rows] == ["0.1000", "0.2000", "0.3000"]
    assert lines[-1] == "▁▅█  plain score, 0.1000 to 0.3000"


def test_history_prints_the_newest_of_many_and_draws_them_all(visdiv, warehouse):
    record(warehouse, *(n / 10 for n in range(8)))
    lines = visdiv("history", "birds", "--limit", "2").stdout.splitlines()
    scores = [line.split()[4] for line in lines if line.startswith(" 2026")]
    assert scores == ["0.6000", "0.7000"]
    assert lines[-1] == f"{SPARKS}  plain score, 0.0000 to 0.7000"


def test_history_and_list_fit_a_terminal_of_80_columns(visdiv, warehouse, monkeypatch):
    from visdiv_assets.cli import console

    CONFIG.write_text("datasets: {birds: {source: /data/birds}}\n")
    fair = {"corrected_score": 0.35, "corrected_low": 0.31, "corrected_high": 0.39}
    record(warehouse, 0.5, n_images=12_345_678, rating="too few to tell", stars=0, **fair)
    monkeypatch.setattr(console.out, "width", 80)
    for command in (("history", "birds"), ("list",)):
        shown = visdiv(*command).stdout
        assert "…" not in shown
        assert all(whole in shown for whole in ("12,345,678", "0.310–0.390", "0.5000"))


def test_history_draws_a_png(visdiv, warehouse, tmp_path):
    record(warehouse, 0.1, 0.2, 0.3)
    result = visdiv("history", "birds", "--plot", "birds.png")
    assert (tmp_path / "birds.png").read_bytes().startswith(PNG)
    assert result.stdout.endswith("saved birds.png\n")


def test_history_that_cannot_be_drawn_is_an_error_that_names_the_file(visdiv, warehouse):
    record(warehouse, 0.1)
    result = visdiv("history", "birds", "--plot", "missing/birds.png", code=1)
    assert result.stderr.startswith("error: cannot write missing/birds.png: ")


@pytest.mark.parametrize("plot", [(), ("--plot", "x.png")])
def test_history_of_an_unknown_dataset_is_an_error(visdiv, warehouse, plot):
    record(warehouse, 0.5, dataset="cats")
    result = visdiv("history", "birds", *plot, code=1)
    assert (result.stdout, result.stderr) == (
        "",
        "error: birds has never been evaluated, and there is no dataset 'birds' in the settings; "
        "known datasets: none\n",
    )
    assert not Path("x.png").exists()


def test_history_notes_that_models_differ(visdiv, warehouse):
    record(warehouse, 0.5)
    warehouse.record(make(evaluation_id="other", model_id="other"), SPECTRUM)
    assert "come from 2 different models" in visdiv("history", "birds").stderr


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5], "▄"),
        ([0.5] * 3, "▄▄▄"),
        ([0.0, 1.0], "▁█"),
        ([1.0, 0.0, 1.0], "█▁█"),
        ([n / 7 for n in range(8)], SPARKS),
    ],
)
def test_a_sparkline_has_a_bar_for_each_value_from_the_least_to_the_greatest(values, expected):
    assert sparkline(values) == expected


# --- alerts ---

FELL = State(Condition.BELOW_THRESHOLD, active=True, reason="copies", threshold=0.30)


def test_the_outbox_is_empty_at_first(visdiv):
    assert visdiv("alerts", "list").stdout == "there were no alerts\n"


@pytest.fixture
def state(warehouse: Warehouse) -> StateFile:
    return StateFile(warehouse.path.with_name("state.sqlite"))


def test_an_alert_is_listed_while_it_waits_while_it_fails_and_once_delivered(
    visdiv, warehouse, state
):
    begin_judging(warehouse, state)
    warehouse.record(make(diversity_score=0.25, threshold=0.30), SPECTRUM)
    derive_alerts(warehouse, state)

    def row() -> list[str]:
        lines = visdiv("alerts", "list").stdout.splitlines()
        [line] = [line for line in lines if line.startswith("│")]
        return [cell.strip() for cell in line.split("│")[1:-1]]

    told = ["2026-03-01 12:00", "birds fell below its threshold", "0.2500"]
    assert row() == [*told, "nobody: there was no address for a week"]
    address(state, {"one": "Mail (1)", "two": "Mail (2)"}, NOON)
    claims = {name: claim(state, name, NOON) for name in ("one", "two")}
    settle(state, "one", claims["one"], "[red]503", NOON)
    assert row() == [*told, "0 of 2: [red]503"]
    for name in ("one", "two"):
        settle(state, name, claims[name], None, NOON)
    assert row() == [*told, "2 of 2"]


def test_an_alert_that_was_given_up_is_listed_as_such(visdiv, state):
    note_states(state, "birds", [FELL], NOON)
    address(state, {"one": "Mail (1)", "two": "Mail (2)"}, NOON)
    for name, error in (("one", None), ("two", "503")):
        settle(state, name, claim(state, name, NOON), error, NOON)
    assert claim(state, "two", NOON + timedelta(days=8)) is None
    assert "1 of 2, given up: Mail (2): 503" in " ".join(visdiv("alerts", "list").stdout.split())
    told = json.loads(visdiv("alerts", "list", "--json").stdout)["alerts"][0]["recipients"]
    assert [each["given_up_at"] is None for each in told] == [True, False]


def test_alerts_of_datasets_that_were_never_scored_are_listed_without_a_score(visdiv, state):
    note_states(state, "birds", [State(Condition.NOT_EVALUATED, active=True, reason="gone")], NOON)
    assert "birds could not be evaluated" in visdiv("alerts", "list").stdout


def test_only_the_newest_alerts_are_listed(visdiv, state):
    for n in range(5):
        note_states(state, f"set{n}", [FELL], NOON + timedelta(hours=n))
    listed = visdiv("alerts", "list", "--limit", "2").stdout
    assert [f"set{n}" in listed for n in range(5)] == [False, False, False, True, True]


def test_a_test_message_reaches_every_target(visdiv, monkeypatch):
    with webhook() as one, webhook() as other:
        monkeypatch.setenv("VISDIV_TEST_HOOK", other.url)
        CONFIG.write_text(f"alerts:\n  urls:\n    - {one.url}\n    - ${{VISDIV_TEST_HOOK}}\n")
        result = visdiv("alerts", "test")
        assert one.titles == other.titles == ["visdiv: test"]
    assert re.fullmatch(r"(JSON \([0-9a-f]{4}\): accepted\n){2}", result.stdout)


def test_a_test_message_that_one_target_refuses_is_a_failure_and_still_reaches_the_others(visdiv):
    with webhook() as up, webhook() as down:
        down.down = True
        CONFIG.write_text(f"alerts:\n  urls:\n    - {down.url}\n    - {up.url}\n")
        result = visdiv("alerts", "test", code=1)
        assert (down.refused > 0, up.titles) == (True, ["visdiv: test"])
    refused, accepted = result.stdout.splitlines()
    assert "503" in refused
    assert re.fullmatch(r"JSON \([0-9a-f]{4}\): accepted", accepted)


def test_a_test_message_is_not_an_alert_of_the_outbox(visdiv):
    with webhook() as hook:
        CONFIG.write_text(f"alerts: {{urls: ['{hook.url}']}}\n")
        visdiv("alerts", "test")
    assert visdiv("alerts", "list").stdout == "there were no alerts\n"


@pytest.mark.parametrize(
    ("urls", "problem"),
    [
        ("", "the settings name no alert URLs"),
        (
            "['nonsense://secret@host']",
            "that starts with 'nonsense'",
        ),
        ("['json://${VISDIV_TEST_UNSET}']", "VISDIV_TEST_UNSET, used by 'alerts.urls', is not set"),
    ],
)
def test_alert_urls_that_lead_nowhere_are_an_error_without_their_secrets(visdiv, urls, problem):
    CONFIG.write_text(f"alerts:\n  urls: {urls}\n")
    result = visdiv("alerts", "test", code=1)
    assert problem in result.stderr
    assert "secret" not in result.output


# --- schema ---


def test_schema_prints_json(visdiv):
    schema = json.loads(visdiv("schema").stdout)
    assert schema["additionalProperties"] is False
    assert {"store", "datasets", "alerts", "nightly"} <= set(schema["properties"])


def test_the_commands_are_listed_in_the_help(visdiv):
    text = visdiv("--help").stdout
    for command in ("init", "add", "list", "remove", "history", "alerts", "schema"):
        assert f" {command} " in text
