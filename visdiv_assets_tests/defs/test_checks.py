"""Checks in Dagster: one by one, for datasets that cannot be judged, and after failed runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.checks import CHECKS
from visdiv_assets.defs.partitions import PARTITION_TAG
from visdiv_assets.defs.resources import ProjectResource, SettingsResource, WarehouseResource
from visdiv_assets.defs.resources import StoreResource as StoreOfDagster
from visdiv_assets.defs.unjudged import unjudged_checks_sensor
from visdiv_assets_tests.dagster_dev import ROOT
from visdiv_assets_tests.defs.conftest import CheapEmbedder

PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))[:4]
METRICS = dg.AssetKey("diversity_metrics")


class Project:
    """Two datasets, `birds` and `cars`; the photographs of `cars` are elsewhere at first."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.root, self.instance = root, instance
        (root / "birds").mkdir()
        for photo in PHOTOS:
            shutil.copy(photo, root / "birds")
        (root / "visdiv.yaml").write_text(
            "store: store\ndatasets: {birds: {source: birds, threshold: 0}, cars: {source: cars}}\n"
        )
        instance.add_dynamic_partitions("datasets", ["birds", "cars"])
        settings = SettingsResource(config_path=str(root / "visdiv.yaml"))
        parts = {
            "settings": settings,
            "store": StoreOfDagster(settings=settings),
            "warehouse": WarehouseResource(settings=settings),
        }
        self.resource = ProjectResource(**parts)
        self.definitions = build_defs(
            resource_overrides={**parts, "embedder": CheapEmbedder(settings=settings)}
        )

    def evaluate(self, dataset: str) -> dg.ExecuteInProcessResult:
        return self._run(self.definitions, "evaluate_dataset", dataset)

    def check(
        self, dataset: str | None, asset: dg.AssetKey, name: str
    ) -> dg.ExecuteInProcessResult:
        """One check of a dataset; or of none, as the UI asks for it."""
        selection = dg.AssetSelection.checks(dg.AssetCheckKey(asset, name))
        job = dg.define_asset_job("one_check", selection=selection)
        both = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        return self._run(both, "one_check", dataset)

    def _run(
        self, definitions: dg.Definitions, job: str, dataset: str | None
    ) -> dg.ExecuteInProcessResult:
        return definitions.resolve_job_def(job).execute_in_process(
            tags={PARTITION_TAG: dataset} if dataset else {},
            instance=self.instance,
            raise_on_error=False,
        )

    def note_failure(self, result: dg.ExecuteInProcessResult, **tags: str) -> None:
        """A tick of the sensor, about a run that failed."""
        assert not result.success
        [failed] = [event for event in result.all_events if event.is_job_failure]
        run = result.dagster_run.with_tags({**result.dagster_run.tags, **tags})
        with dg.build_run_status_sensor_context(
            "unjudged_checks_sensor",
            failed,
            self.instance,
            run,
            resources={"project": self.resource},
        ) as context:
            unjudged_checks_sensor(context.for_run_failure())

    def newest(self, check: str) -> tuple[str, str | None, str]:
        """Status, dataset and description of the newest execution of a check."""
        [record] = self.instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(METRICS, check), limit=1
        )
        evaluated = record.event.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION"
        description = record.evaluation.description if evaluated else ""
        return record.status.value, record.partition, description


@pytest.fixture
def project(tmp_path: Path, instance: dg.DagsterInstance) -> Iterator[Project]:
    return Project(tmp_path, instance)


def test_each_check_can_be_executed_by_itself(project):
    assert project.evaluate("birds").success
    graph = project.definitions.resolve_asset_graph()
    together = map(graph.get_execution_set_asset_and_check_keys, graph.asset_check_keys)
    assert [len(keys) for keys in together] == [1] * 13  # more than one disables the UI's button
    for check in ("score_drop", "drift"):
        result = project.check("birds", METRICS, check)
        assert result.success
        assert [each.check_name for each in result.get_asset_check_evaluations()] == [check]


def test_checks_of_no_dataset_judge_all_of_them(project):
    assert project.evaluate("birds").success
    result = project.check(None, METRICS, "embeddings_valid")
    assert result.success
    [evaluation] = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert evaluation.description == (
        "1 of 2 datasets pass; cars: cannot be judged: cars has never been evaluated; "
        "run `visdiv score cars`"
    )
    project.instance.delete_dynamic_partition("datasets", "cars")
    [evaluation] = project.check(None, METRICS, "embeddings_valid").get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.description) == (True, "1 of 1 dataset pass")


@pytest.mark.parametrize(
    ("asset", "check", "told"),
    [
        ("diversity_metrics", "score_drop", "cannot be judged: birds has never been evaluated"),
        ("near_duplicates", "near_duplicate_rate", "cannot be judged: birds has not been searched"),
    ],
)
def test_a_check_that_cannot_be_judged_says_why_and_does_not_fail(project, asset, check, told):
    result = project.check("birds", dg.AssetKey(asset), check)
    assert result.success
    [evaluation] = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert evaluation.description.startswith(told)


def test_checks_that_a_failed_run_did_not_come_to_are_judged_by_what_was_found_before(project):
    assert project.evaluate("birds").success
    before = {check: project.newest(check) for check in CHECKS}
    (project.root / "birds").rename(project.root / "elsewhere")
    result = project.evaluate("birds")
    assert {project.newest(check)[0] for check in CHECKS} == {"PLANNED"}  # red in the UI
    project.note_failure(result)
    after = {check: project.newest(check) for check in CHECKS}
    assert {check: each[:2] for check, each in after.items()} == {
        check: each[:2] for check, each in before.items()
    }
    [info, *_] = project.instance.event_log_storage.get_asset_check_partition_info(
        [dg.AssetCheckKey(METRICS, "drift")]
    )
    assert info.is_current  # else the partition would have no state


def test_a_dataset_that_was_never_scored_is_no_error_of_its_checks(project):
    assert project.evaluate("birds").success
    project.note_failure(project.evaluate("cars"))
    for check in CHECKS:
        status, dataset, told = project.newest(check)
        assert (status, dataset) == ("FAILED", "cars")
        assert told.startswith("cannot be judged: cars has never been evaluated")


def test_a_run_that_is_tried_again_leaves_the_verdict_to_its_next_try(project):
    result = project.evaluate("cars")
    project.note_failure(result, **{"dagster/will_retry": "true"})
    assert project.newest("drift")[0] == "PLANNED"


def test_what_a_later_run_finds_stays_the_newest_verdict(project):
    (project.root / "birds").rename(project.root / "elsewhere")
    failed = project.evaluate("birds")
    (project.root / "elsewhere").rename(project.root / "birds")
    assert project.evaluate("birds").success
    found = project.newest("drift")
    project.note_failure(failed)
    assert project.newest("drift") == found
    history = project.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(METRICS, "drift"), limit=10
    )
    assert len(history) == 2


def test_a_check_that_only_warns_is_no_error_where_it_passes(project):
    assert project.evaluate("birds").success
    found = project.check("birds", METRICS, "drift").get_asset_check_evaluations()
    found += project.check("birds", METRICS, "embeddings_valid").get_asset_check_evaluations()
    assert [(each.passed, each.severity.value) for each in found] == [
        (True, "WARN"),
        (True, "ERROR"),
    ]
