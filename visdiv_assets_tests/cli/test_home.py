"""Dagster's data is in one place, whichever folder a command is started in."""

import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from visdiv_assets.cli.home import dagster_home
from visdiv_assets_tests.dagster_dev import ROOT

# As `dagster.yaml` was while it named folders.
OF_BEFORE = """
telemetry: {enabled: false}
storage: {sqlite: {base_dir: .visdiv/dagster/storage}}
local_artifact_storage:
  module: dagster.core.storage.root
  class: LocalArtifactStorage
  config: {base_dir: .visdiv/dagster/artifacts}
compute_logs:
  module: dagster.core.storage.local_compute_log_manager
  class: LocalComputeLogManager
  config: {base_dir: .visdiv/dagster/compute_logs}
"""


@dg.op
def says_hello() -> None:
    print("hello")


@dg.job(executor_def=dg.in_process_executor)
def greeting() -> None:
    says_hello()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder)
    return folder


def _printed(instance: dg.DagsterInstance, run_id: str) -> str:
    events = [entry.dagster_event for entry in instance.all_logs(run_id)]
    [captured] = [event for event in events if event and event.event_type_value == "LOGS_CAPTURED"]
    key = [run_id, "compute_logs", captured.logs_captured_data.file_key]
    return instance.compute_log_manager.get_log_data(key).stdout.decode()


def test_commands_in_different_folders_see_the_same_runs(project, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(dagster_home(project)))
    monkeypatch.chdir(project)
    with dg.DagsterInstance.get() as instance:
        run_id = instance.create_run_for_job(greeting).run_id
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with dg.DagsterInstance.get() as instance:
        assert [run.run_id for run in instance.get_runs()] == [run_id]
        assert instance.run_retries_enabled  # the project's own settings
    assert not list((tmp_path / "elsewhere").iterdir())


def test_runs_and_what_they_printed_before_are_still_there(project, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(project)
    (project / "dagster.yaml").write_text(OF_BEFORE)
    with dg.DagsterInstance.from_config(str(project)) as instance:
        instance.add_dynamic_partitions("datasets", ["pictures"])
        run_id = greeting.execute_in_process(instance=instance).run_id
        assert _printed(instance, run_id) == "hello\n"
    shutil.copy(ROOT / "dagster.yaml", project)
    for _ in range(2):
        with dg.DagsterInstance.from_config(str(dagster_home(project))) as instance:
            assert [run.run_id for run in instance.get_runs()] == [run_id]
            assert instance.get_dynamic_partitions("datasets") == ["pictures"]
            assert _printed(instance, run_id) == "hello\n"


def test_a_project_that_was_moved_uses_its_own_settings(project, tmp_path):
    dagster_home(project)
    moved = project.rename(tmp_path / "moved")
    home = dagster_home(moved)
    assert (home / "dagster.yaml").read_text() == (moved / "dagster.yaml").read_text()


def test_settings_that_are_in_the_place_already_stay(project):
    home = dagster_home(project)
    (home / "dagster.yaml").unlink()
    (home / "dagster.yaml").write_text("mine")
    assert (dagster_home(project) / "dagster.yaml").read_text() == "mine"


def test_make_is_told_the_place(project):
    command = [sys.executable, "-P", "-m", "visdiv_assets.cli.home"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout == f"{dagster_home(project)}\n"
