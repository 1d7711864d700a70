"""Schedules: the nightly re-evaluation.

Here: which runs a night asks for. The time of night is a setting, and loading the definitions
reads no settings; so the schedule ticks every quarter of an hour and asks for runs once a night.
"""

from datetime import timedelta

import dagster as dg

from visdiv_assets.defs.jobs import compare_datasets, evaluate_dataset
from visdiv_assets.defs.partitions import datasets, datasets_in_flight, run_tags
from visdiv_assets.defs.reporting import nothing_secret
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import TICK_MINUTES
from visdiv_assets.settings.secrets import redacted

# By then most of a night's evaluations are done.
AFTER_THE_NIGHT = timedelta(hours=2)


@dg.schedule(
    job=evaluate_dataset,
    cron_schedule=f"*/{TICK_MINUTES} * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
@nothing_secret()
def nightly_reevaluation(
    context: dg.ScheduleEvaluationContext, settings: SettingsResource
) -> list[dg.RunRequest] | dg.SkipReason:
    """One run for each dataset, once a night; its checks run with it."""
    try:
        configured = settings.load()
    except VisdivError as error:
        return dg.SkipReason(redacted(str(error)))
    night = configured.nightly.night_that_begins(context.scheduled_execution_time)
    if night is None:
        return dg.SkipReason(f"nightly runs begin at {configured.nightly}")
    partitions = set(context.instance.get_dynamic_partitions(str(datasets.name)))
    busy = datasets_in_flight(context.instance)
    return [
        dg.RunRequest(run_key=f"nightly:{name}:{night}", partition_key=name, tags=run_tags(dataset))
        for name, dataset in configured.datasets.items()
        if dataset.schedule and name in partitions and name not in busy
    ] or dg.SkipReason("no dataset is to be evaluated nightly")


@dg.schedule(
    job=compare_datasets,
    cron_schedule=f"*/{TICK_MINUTES} * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
@nothing_secret()
def nightly_comparison(
    context: dg.ScheduleEvaluationContext, settings: SettingsResource
) -> dg.RunRequest | dg.SkipReason:
    """One run, two hours after the nightly evaluations began."""
    try:
        nightly = settings.load().nightly
    except VisdivError as error:
        return dg.SkipReason(redacted(str(error)))
    night = nightly.night_that_begins(context.scheduled_execution_time - AFTER_THE_NIGHT)
    if night is None:
        return dg.SkipReason(f"nightly runs begin at {nightly}, this one two hours later")
    return dg.RunRequest(run_key=f"comparison:{night}")
