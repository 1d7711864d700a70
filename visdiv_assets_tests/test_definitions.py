"""What Dagster sees when it loads the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickStatus

from visdiv_assets.definitions import defs

ROOT = Path(__file__).parents[1]


def test_the_asset_graph_is_the_documented_one():
    graph = defs.resolve_asset_graph()
    described = {
        key.to_user_string(): (
            graph.get(key).group_name,
            sorted(parent.to_user_string() for parent in graph.get(key).parent_keys),
            getattr(graph.get(key).partitions_def, "name", None),
        )
        for key in graph.get_all_asset_keys()
    }
    assert described == {
        "image_manifest": ("ingest", [], "datasets"),
        "sscd_embeddings": ("embed", ["image_manifest"], "datasets"),
        "embedding_moments": ("score", ["sscd_embeddings"], "datasets"),
        "diversity_metrics": ("score", ["embedding_moments"], "datasets"),
        "near_duplicates": ("redundancy", ["diversity_metrics"], "datasets"),
        "benchmark_leakage": ("redundancy", ["diversity_metrics"], "datasets"),
        "core_set": ("redundancy", ["diversity_metrics"], "datasets"),
        "bias_axes": ("guidance", ["diversity_metrics"], "datasets"),
        "augmentation_guidance": ("guidance", ["diversity_metrics"], "datasets"),
        "dataset_leaderboard": ("portfolio", ["diversity_metrics"], None),
        "mixture_plan": ("portfolio", ["diversity_metrics"], None),
        "dataset_drift": ("portfolio", ["diversity_metrics"], None),
        "store_maintenance": ("maintenance", [], None),
    }


def test_gpu_work_and_duckdb_writes_run_in_their_pools():
    pools = {asset.key.to_user_string(): asset.op.pool for asset in defs.assets if asset.op.pool}
    assert pools == {
        "sscd_embeddings": "gpu",
        "diversity_metrics": "duckdb_writer",
        "near_duplicates": "gpu",
        "benchmark_leakage": "gpu",
        "bias_axes": "duckdb_writer",
        "augmentation_guidance": "gpu",
    }


def test_sensors_and_the_schedule_run_without_being_switched_on():
    automation = [*defs.sensors, *defs.schedules]
    assert {each.name for each in automation} == {
        "dataset_registry_sensor",
        "dataset_change_sensor",
        "dead_run_sensor",
        "failed_run_sensor",
        "unjudged_checks_sensor",
        "alert_sensor",
        "nightly_reevaluation",
        "nightly_comparison",
        "weekly_maintenance",
    }
    assert {each.default_status.value for each in automation} == {"RUNNING"}


def test_every_asset_says_what_it_is():
    for spec in defs.resolve_all_asset_specs():
        assert spec.description, spec.key


def test_one_job_materialises_all_four_assets_of_a_dataset():
    job = defs.resolve_job_def("evaluate_dataset")
    assert job.asset_layer.executable_asset_keys == {
        dg.AssetKey(name)
        for name in (
            "image_manifest",
            "sscd_embeddings",
            "embedding_moments",
            "diversity_metrics",
        )
    }


def test_one_job_analyzes_a_scored_dataset():
    job = defs.resolve_job_def("analyze_dataset")
    assert {dg.AssetKey("near_duplicates"), dg.AssetKey("benchmark_leakage")} <= set(
        job.asset_layer.executable_asset_keys
    )


def test_loading_the_definitions_imports_nothing_heavy_and_touches_no_store(tmp_path):
    code = (
        "import sys, visdiv_assets.definitions as d; d.defs.resolve_all_job_defs();"
        "print([m for m in ('torch', 'onnxruntime', 'matplotlib', 'faiss') if m in sys.modules])"
    )
    environment = {**os.environ, "VISDIV_STORE": str(tmp_path / "store"), "VISDIV_CONFIG": "gone"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["-w", "workspace.yaml"]])
def test_dagster_accepts_the_definitions(arguments, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    done = subprocess.run(
        [Path(sys.executable).with_name("dagster"), "definitions", "validate", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location visdiv_assets" in done.stdout + done.stderr


def test_dagsters_settings_are_valid_and_name_no_folder(tmp_path):
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:  # checks all keys
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_poll_interval_seconds == 15
        assert instance.run_monitoring_start_timeout_seconds == 180
        assert instance.run_monitoring_cancel_timeout_seconds == 180
        assert instance.run_monitoring_max_runtime_seconds == 24 * 60 * 60
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 2
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        kept = instance.get_tick_retention_settings(InstigatorType.SENSOR)
        assert kept[TickStatus.SKIPPED] == 1
        assert kept[TickStatus.SUCCESS] == 30
        assert instance.root_directory == str(tmp_path)
        instance.get_runs()
    assert (tmp_path / "history/runs.db").exists()
