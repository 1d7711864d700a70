"""A failed run leaves checks unjudged; they are judged by what was found before.

Dagster shows the newest execution of a check, of whichever dataset, as the state of the check. So a
run that fails before its checks would turn all of them red, though nothing was checked.

Here: the sensor that does it. Not here: how checks are judged (`checks.py`).
"""

import dagster as dg
from dagster._core.event_api import PartitionKeyFilter  # Dagster has no public name for it

from visdiv_assets.defs.checks import evaluation_between_runs, judge_checks
from visdiv_assets.defs.partitions import PARTITION_TAG, WILL_RETRY_TAG
from visdiv_assets.defs.reporting import nothing_secret
from visdiv_assets.defs.resources import ProjectResource


@dg.run_failure_sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
@nothing_secret()
def unjudged_checks_sensor(
    context: dg.RunFailureSensorContext, project: ProjectResource
) -> dg.SkipReason | None:
    """Judges the checks that a failed run did not come to, by what was found before it."""
    instance, run = context.instance, context.dagster_run
    dataset = run.tags.get(PARTITION_TAG)
    if dataset is None:
        return dg.SkipReason("the run was not of one dataset")
    if run.tags.get(WILL_RETRY_TAG) == "true":
        return dg.SkipReason("the run is tried again, and judges the checks then")
    left = [key for key in _planned(instance, run.run_id) if _is_newest(instance, run, key)]
    for asset in sorted({key.asset_key for key in left}):
        verdicts = judge_checks(asset, dataset, project)
        for check in sorted(key.name for key in left if key.asset_key == asset):
            instance.report_runless_asset_event(
                evaluation_between_runs(instance, asset, check, dataset, verdicts[check])
            )
    return None if left else dg.SkipReason("the run left no check unjudged")


def _planned(instance: dg.DagsterInstance, run_id: str) -> set[dg.AssetCheckKey]:
    """The checks that a run meant to make, and did not."""
    return {
        event.asset_check_planned_data.asset_check_key
        for entry in instance.all_logs(
            run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
        )
        if (event := entry.dagster_event)
    } - {
        event.asset_check_evaluation_data.asset_check_key
        for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        if (event := entry.dagster_event)
    }


def _is_newest(instance: dg.DagsterInstance, run: dg.DagsterRun, key: dg.AssetCheckKey) -> bool:
    """Whether no later run has this check in its hands; what it finds must stay the newest."""
    newest = instance.event_log_storage.get_asset_check_execution_history(
        key, limit=1, partition_filter=PartitionKeyFilter(key=run.tags[PARTITION_TAG])
    )
    return bool(newest) and newest[0].run_id == run.run_id
