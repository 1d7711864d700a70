"""Eight datasets at once, each in processes of its own, on one store and one DuckDB file."""

import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.dagster_dev import ROOT, copy_project, project_environment

PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))[:8]

EVALUATION = '+key:"diversity_metrics"'  # all that a dataset's score is made of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_eight_multiprocess_runs_at_once_record_eight_evaluations(tmp_path, monkeypatch):
    copy_project(tmp_path)
    names = [f"set{number}" for number in range(8)]
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        for photo in PHOTOS[number:] + PHOTOS[: number - 2]:
            shutil.copy(photo, tmp_path / name)
    lines = [f"  {name}: {{source: {name}}}" for name in names]
    (tmp_path / "visdiv.yaml").write_text("\n".join(["store: .visdiv", "datasets:", *lines]))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("datasets", names)
    dagster = Path(sys.executable).with_name("dagster")
    module = ("-m", "visdiv_assets_tests.multiprocess_definitions")
    environment = {**project_environment(tmp_path), "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen(
            [dagster, "asset", "materialize", "--select", EVALUATION, "--partition", name, *module],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in names
    ]
    assert [run.wait() for run in runs] == [0] * 8
    latest = Warehouse(tmp_path / ".visdiv/visdiv.duckdb").latest_evaluations()
    assert [evaluation.dataset for evaluation in latest] == names
    with dg.DagsterInstance.get() as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
