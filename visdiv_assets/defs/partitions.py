"""One partition is one dataset."""

import dagster as dg

from visdiv_assets.settings.model import DatasetSettings
from visdiv_assets.settings.secrets import redacted

datasets = dg.DynamicPartitionsDefinition(name="datasets")

PARTITION_TAG = "dagster/partition"

# On a failed run: whether Dagster means to try it again, and the run that does.
WILL_RETRY_TAG = "dagster/will_retry"
RETRIED_AS_TAG = "dagster/auto_retry_run_id"


def datasets_in_flight(instance: dg.DagsterInstance, *, queued: bool = True) -> set[str]:
    """The datasets that a run is at work on, or queued for."""
    waiting = [dg.DagsterRunStatus.QUEUED] if queued else []
    unfinished = dg.RunsFilter(
        statuses=[
            *waiting,
            dg.DagsterRunStatus.NOT_STARTED,
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.STARTED,
            dg.DagsterRunStatus.CANCELING,
        ]
    )
    tags = (run.tags.get(PARTITION_TAG) for run in instance.get_runs(filters=unfinished))
    return {name for name in tags if name is not None}


def run_tags(dataset: DatasetSettings) -> dict[str, str]:
    """A dataset's own tags, as they stand on its runs."""
    return {f"visdiv/{name}": redacted(value) for name, value in dataset.tags.items()}
