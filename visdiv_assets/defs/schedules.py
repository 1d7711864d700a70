"""Schedules: the nightly re-evaluation, the comparison after it, the weekly clean-up.

Here: which runs a night asks for. The time of night is a setting, and loading the definitions
reads no settings; so the schedules tick every quarter of an hour, and ask whether tonight's runs
have been asked for. A night that was missed is made up for.
"""

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from visdiv_assets.defs.jobs import compare_datasets, evaluate_dataset, maintain_store
from visdiv_assets.defs.partitions import PARTITION_TAG, datasets, datasets_in_flight, run_tags
from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.settings.model import TICK_MINUTES, Settings
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.workflows.project import state_of
from visdiv_assets.workflows.watch import due_tonight

# On the runs of a night: the local date on which it began.
NIGHT_TAG = "visdiv/night"

# `due_tonight` knows the comparison by the name that no dataset has.
COMPARISON = ""

# By then most of a night's evaluations are done.
AFTER_THE_NIGHT = timedelta(hours=2)


@dg.schedule(
    job=evaluate_dataset,
    cron_schedule=f"*/{TICK_MINUTES} * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
@clear_errors()
def nightly_reevaluation(
    context: dg.ScheduleEvaluationContext, settings: SettingsResource
) -> list[dg.RunRequest] | dg.SkipReason:
    """One run for each dataset, once a night, late if it must be; its checks run with it."""
    watched = settings.watch()
    if watched.settings is None:
        return dg.SkipReason(redacted(f"no run was asked for: {watched.problem}"))
    configured, moment = watched.settings, context.scheduled_execution_time
    night = configured.nightly.night_at(moment)
    partitions = set(context.instance.get_dynamic_partitions(str(datasets.name)))
    # What is queued may wait for longer than a night.
    busy = datasets_in_flight(context.instance, queued=False)
    candidates = [
        name
        for name, dataset in configured.datasets.items()
        if dataset.schedule and name in partitions and name not in busy
    ]
    tonight = dg.RunsFilter(tags={NIGHT_TAG: str(night)})
    there = {run.tags.get(PARTITION_TAG, "") for run in context.instance.get_runs(tonight)}
    due = _due(candidates, configured, night, moment, there)
    return [
        dg.RunRequest(
            run_key=f"nightly:{name}:{night}",
            partition_key=name,
            tags={**run_tags(configured.datasets[name]), NIGHT_TAG: str(night)},
        )
        for name in due
    ] or dg.SkipReason(f"the night of {night} ({configured.nightly}) has been asked for")


@dg.schedule(
    job=compare_datasets,
    cron_schedule=f"*/{TICK_MINUTES} * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
@clear_errors()
def nightly_comparison(
    context: dg.ScheduleEvaluationContext, settings: SettingsResource
) -> dg.RunRequest | dg.SkipReason:
    """One run, two hours after the nightly evaluations began, or later."""
    watched = settings.watch()
    if watched.settings is None:
        return dg.SkipReason(redacted(f"no run was asked for: {watched.problem}"))
    configured = watched.settings
    moment = context.scheduled_execution_time
    night = configured.nightly.night_at(moment - AFTER_THE_NIGHT)
    tonight = dg.RunsFilter(tags={NIGHT_TAG: str(night)}, job_name=compare_datasets.name)
    there = [COMPARISON] if context.instance.get_runs_count(tonight) else []
    due = _due([COMPARISON] if configured.datasets else [], configured, night, moment, there)
    if not due:
        return dg.SkipReason(f"the comparison of {night} has been asked for")
    return dg.RunRequest(run_key=f"comparison:{night}", tags={NIGHT_TAG: str(night)})


# Sunday noon: nights are full.
weekly_maintenance = dg.ScheduleDefinition(
    name="weekly_maintenance",
    job=maintain_store,
    cron_schedule="0 12 * * 0",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Cleans up the store once a week.",
)


def _due(
    names: Collection[str],
    configured: Settings,
    night: date,
    moment: datetime,
    there: Collection[str],
) -> list[str]:
    """Those to ask for now, of a night that has begun."""
    begun, state = configured.nightly.begins(night), state_of(configured)
    return due_tonight(names, night, begun, moment, there, state, datetime.now(UTC))
