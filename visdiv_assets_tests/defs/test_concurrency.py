"""Eight datasets at once, each step in a process of its own, on one store and one DuckDB file."""

import shutil
import subprocess
import sys

import dagster as dg
import pytest

from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.dagster_dev import ROOT, project_environment

PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))[:8]
NAMES = [f"set{number}" for number in range(8)]

# Without a pool of one place, in which they would take turns, they really meet at the file.
INSTANCE = """
telemetry: {enabled: false}
storage: {sqlite: {base_dir: dagster}}
concurrency: {pools: {default_limit: 8}}
"""

# Not with -m, lest each step should load the main module once more.
RUN_ALL = "from visdiv_assets_tests.multiprocess_definitions import main; main()"

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1200)
def test_eight_multiprocess_runs_at_once_record_eight_evaluations(tmp_path, monkeypatch):
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        for photo in PHOTOS[number:] + PHOTOS[: number - 2]:
            shutil.copy(photo, tmp_path / name)
    lines = [f"  {name}: {{source: {name}}}" for name in NAMES]
    (tmp_path / "visdiv.yaml").write_text("\n".join(["store: .visdiv", "datasets:", *lines]))
    (tmp_path / "dagster.yaml").write_text(INSTANCE)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("datasets", NAMES)
    command = [sys.executable, "-c", RUN_ALL, *NAMES]
    environment = {**project_environment(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    latest = Warehouse(tmp_path / ".visdiv/visdiv.duckdb").latest_evaluations()
    assert [evaluation.dataset for evaluation in latest] == NAMES
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs()
        assert [run.status for run in runs] == [dg.DagsterRunStatus.SUCCESS] * len(NAMES)
        [run, *_] = runs
        events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
        assert len(events) == 5  # four assets and their checks, each in a process of its own
