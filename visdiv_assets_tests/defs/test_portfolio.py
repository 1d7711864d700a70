"""The assets that put datasets beside each other, as Dagster runs them."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.defs.schedules import nightly_comparison
from visdiv_assets_tests.defs.conftest import CheapEmbedder, metadata, score
from visdiv_assets_tests.embedding.fakes import write_image

NAMES = ["birds", "cars"]


@pytest.fixture
def project(tmp_path):
    for start, name in enumerate(NAMES):
        for seed in range(60):
            write_image(tmp_path / name / f"{seed:03}.png", 1000 * start + seed)
    (tmp_path / "visdiv.yaml").write_text(
        "store: store\n"
        "nightly: {time: '02:00', timezone: Europe/Berlin}\n"
        "datasets:\n"
        "  birds: {source: birds}\n"
        "  cars: {source: cars}\n"
    )
    return tmp_path


@pytest.fixture
def run(project, instance):
    instance.add_dynamic_partitions("datasets", NAMES)
    settings = SettingsResource(config_path=str(project / "visdiv.yaml"))
    overrides = {"settings": settings, "embedder": CheapEmbedder(settings=settings)}
    definitions = build_defs(resource_overrides=overrides)

    def execute(job, dataset=None):
        return definitions.resolve_job_def(job).execute_in_process(
            partition_key=dataset, instance=instance, raise_on_error=False
        )

    return execute


def test_evaluated_datasets_are_put_beside_each_other(project, run):
    for name in [*NAMES, "birds"]:
        assert run("evaluate_dataset", name).success
    result = run("compare_datasets")
    assert result.success

    board = metadata(result, "dataset_leaderboard")
    assert board["datasets"] == 2
    assert board["leaderboard"].count("\n| ") == 2
    assert board["scores"].startswith("![scores](data:image/png;base64,")
    assert "may be chance" in board["differences"]

    plan = metadata(result, "mixture_plan")
    score = plan["diversity score (corrected)"]
    low, high = map(float, plan["95 % interval"].split(" to "))
    assert low - 0.001 <= score <= high + 0.001
    assert score >= plan["with equal weights"] - 1e-6
    assert "birds" in plan["mixture"]
    assert (plan["left out"], plan["model"]) == ("none", "fake")

    drift = metadata(result, "dataset_drift")
    assert (drift["datasets"], drift["moved more than chance"]) == (1, 0)
    assert "birds" in drift["drift"]
    assert "cars" not in drift["drift"]
    assert drift["not compared"] == "none"


def test_with_nothing_evaluated_there_is_no_mixture_and_a_sentence_says_why(run):
    result = run("compare_datasets")
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_key == "mixture_plan"
    assert failure.step_failure_data.user_failure_data.description == (
        "no registered dataset has enough evaluated images yet"
    )
    assert metadata(result, "dataset_leaderboard")["datasets"] == 0
    assert metadata(result, "dataset_drift")["datasets"] == 0


def test_one_dataset_is_a_mixture_of_its_own(project, run):
    score(project, "birds")
    result = run("compare_datasets")
    assert result.success
    assert "100.0%" in metadata(result, "mixture_plan")["mixture"]
    assert metadata(result, "dataset_leaderboard")["differences"] == "none"


def test_a_dataset_that_is_no_longer_registered_is_left_out(project, run):
    for name in NAMES:
        score(project, name)
    (project / "visdiv.yaml").write_text("store: store\ndatasets: {cars: {source: cars}}\n")
    board = metadata(run("compare_datasets"), "dataset_leaderboard")
    assert board["datasets"] == 1
    assert "birds" not in board["leaderboard"]


def test_each_night_asks_for_one_comparison_two_hours_after_the_evaluations(project, instance):
    settings = SettingsResource(config_path=str(project / "visdiv.yaml"))
    asked = []
    for quarter in (day * 96 + tick for day in range(2) for tick in range(8, 16)):
        tick = datetime(2026, 1, 10, tzinfo=UTC) + timedelta(minutes=15 * quarter)
        with dg.build_schedule_context(
            instance=instance, scheduled_execution_time=tick, resources={"settings": settings}
        ) as context:
            result = nightly_comparison(context)
        if not isinstance(result, dg.SkipReason):
            asked.append((f"{tick:%d %H:%M}", result.run_key))
    assert asked == [
        ("10 03:00", "comparison:2026-01-10"),
        ("11 03:00", "comparison:2026-01-11"),
    ]


def test_settings_that_cannot_be_read_are_the_reason_to_skip_a_night(project, instance):
    (project / "visdiv.yaml").write_text("datasets: [")
    settings = SettingsResource(config_path=str(project / "visdiv.yaml"))
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2026, 1, 10, 3, tzinfo=UTC),
        resources={"settings": settings},
    ) as context:
        result = nightly_comparison(context)
    assert "not a valid YAML file" in result.skip_message
