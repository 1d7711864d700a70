"""`visdiv doctor` tells which of Dagster's settings let runs get stuck, and what to set."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from visdiv_assets.cli import doctor, main
from visdiv_assets.cli.dagster_settings import advice
from visdiv_assets_tests.dagster_dev import ROOT

GOOD = (ROOT / "dagster.yaml").read_text()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Dagster's settings are; the current folder is another."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home / "dagster.yaml"


def test_the_projects_own_settings_are_as_they_should_be():
    assert advice(ROOT / "dagster.yaml") == []


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("run_monitoring:\n  enabled: true", "run_monitoring:\n  enabled: false", "run_monitoring"),
        ("run_end_seconds: 60", "run_end_seconds: 300", "free_slots_after_run_end_seconds to 60"),
        ("  free_slots_after_run_end_seconds: 60", "", "free_slots_after_run_end_seconds to 60"),
        ("  max_user_code_failure_retries: 60\n", "", "max_user_code_failure_retries to 60"),
        ("run_retries:\n  enabled: true", "run_retries:\n  enabled: false", "max_retries to 2"),
        ("max_retries: 2", "max_retries: 0", "max_retries to 2"),
        ("op_failure: false", "op_failure: true", "retry_on_asset_or_op_failure to false"),
        ("default_limit: 1", "default_limit: 2", "concurrency.pools.default_limit to 1"),
        ("    default_limit: 1\n", "", "concurrency.pools.default_limit to 1"),
        (
            "telemetry:",
            "storage: {sqlite: {base_dir: .visdiv/dagster}}\ntelemetry:",
            "remove storage.sqlite.base_dir or make it an absolute path",
        ),
    ],
)
def test_a_setting_that_lets_runs_get_stuck_is_named(file, was, now, told):
    assert was in GOOD
    file.write_text(GOOD.replace(was, now))
    [sentence] = advice(file)
    assert told in sentence


@pytest.mark.parametrize("text", ["", "[]", "run_monitoring: 1", "concurrency: {pools: []}"])
def test_settings_of_any_form_are_looked_at(file, text):
    file.write_text(text)
    assert len(advice(file)) == 5


def test_folders_that_are_absolute_or_of_the_environment_are_fine(file):
    file.write_text(f"{GOOD}\nstorage: {{sqlite: {{base_dir: /var/dagster}}}}\n")
    assert advice(file) == []
    file.write_text(f"{GOOD}\nstorage: {{sqlite: {{base_dir: {{env: DAGSTER_DATA}}}}}}\n")
    assert advice(file) == []


def test_a_file_that_is_missing_or_broken_is_told(file):
    assert advice(file) == ["it is missing; copy the one of the project there"]
    file.write_text("a: [")
    assert advice(file) == ["it cannot be read"]


def test_warnings_are_rows_of_their_own_and_no_error(file, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_packages", lambda: [])
    monkeypatch.setattr(doctor, "_devices", lambda: [])
    monkeypatch.setattr(doctor, "_codecs", lambda: [])
    monkeypatch.setattr(doctor, "_model", lambda settings: [])
    monkeypatch.setenv("COLUMNS", "300")
    file.write_text(GOOD.replace("max_retries: 2", "max_retries: 0"))
    config = tmp_path / "visdiv.yaml"
    config.write_text("store: store\n")
    result = CliRunner().invoke(main.app, ["doctor", "--config", str(config)])
    assert result.exit_code == 0
    [row] = [line for line in result.output.splitlines() if line.startswith("warning Dagster")]
    assert f"{file}: set run_retries.enabled to true" in row
    result = CliRunner().invoke(main.app, ["doctor", "--json", "--config", str(config)])
    *_, finding = json.loads(result.stdout)["findings"]
    assert (finding["ok"], finding["warning"]) == (True, True)


def test_where_no_dagster_is_set_up_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert list(doctor._dagster()) == []
    (tmp_path / "dagster.yaml").write_text(GOOD)
    assert [finding.detail for finding in doctor._dagster()] == ["dagster.yaml, as it should be"]
