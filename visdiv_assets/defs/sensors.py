"""Sensors: partitions follow the settings, changed datasets are scored, alerts go out.

Here: what Dagster asks for and is told. Not here: whether a change has settled
(`sources/watch.py`), what an alert says (`notify/`).
"""

import time
from datetime import UTC, datetime

import dagster as dg

from visdiv_assets.defs.checks import stale_check
from visdiv_assets.defs.jobs import evaluate_dataset
from visdiv_assets.defs.partitions import (
    PARTITION_TAG,
    datasets,
    datasets_in_flight,
    run_tags,
)
from visdiv_assets.defs.reporting import nothing_secret
from visdiv_assets.defs.resources import SettingsResource, StoreResource, WarehouseResource
from visdiv_assets.errors import VisdivError
from visdiv_assets.notify.delivery import deliver_due, targets_of
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.sources.manifest import look
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.watch import WatchMemory, is_settled, rotate
from visdiv_assets.workflows.judge import note_failure, note_stale

# Dagster cuts a tick off at 60 seconds. One source may take long, so no new one is begun after 10.
TICK_SECONDS = 10.0
LISTING_SECONDS = 40.0


@dg.sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
@nothing_secret()
def dataset_registry_sensor(
    context: dg.SensorEvaluationContext, settings: SettingsResource
) -> dg.SensorResult | dg.SkipReason:
    """Adds and removes partitions, so that they match the datasets in `visdiv.yaml`."""
    try:
        registered = set(settings.load().datasets)
    except VisdivError as error:
        return dg.SkipReason(redacted(f"nothing was changed: {error}"))
    known = set(context.instance.get_dynamic_partitions(str(datasets.name)))
    added = sorted(registered - known)
    # A partition is not taken away under a run; its turn comes at a later tick.
    removed = sorted(known - registered - datasets_in_flight(context.instance))
    if not added and not removed:
        return dg.SkipReason(f"{len(known)} datasets, as registered")
    return dg.SensorResult(
        dynamic_partitions_requests=[
            *([datasets.build_add_request(added)] if added else []),
            *([datasets.build_delete_request(removed)] if removed else []),
        ]
    )


@dg.sensor(
    job=evaluate_dataset,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
@nothing_secret()
def dataset_change_sensor(
    context: dg.SensorEvaluationContext, settings: SettingsResource, store: StoreResource
) -> dg.SensorResult:
    """Starts a run for each dataset whose source has changed and settled."""
    try:
        configured = settings.load()
    except VisdivError as error:
        return dg.SensorResult(skip_reason=redacted(f"nothing was looked at: {error}"))
    kept = store.open()
    memory = WatchMemory.from_cursor(context.cursor)
    partitions = set(context.instance.get_dynamic_partitions(str(datasets.name)))
    in_flight = datasets_in_flight(context.instance)
    watched = [
        name
        for name, dataset in configured.datasets.items()
        if dataset.watch and name in partitions and name not in in_flight
    ]
    requests, problems = [], []
    deadline = time.monotonic() + TICK_SECONDS
    next_name = ""
    sightings = {name: memory.sightings[name] for name in watched if name in memory.sightings}
    for name in rotate(watched, memory.next_name):
        if time.monotonic() > deadline:
            next_name = name
            break
        try:
            source = open_source(configured.datasets[name].source)
            fingerprint = look(source, within_seconds=LISTING_SECONDS)
        except VisdivError as error:  # a source that cannot be listed is not an empty one
            problems.append(redacted(f"{name}: {error}"))
            continue
        evaluated, written_at = kept.latest_fingerprint(name)
        settled, sighting = is_settled(
            fingerprint, evaluated, sightings.get(name), time.time(), configured.settle_seconds
        )
        if sighting is None:
            sightings.pop(name, None)
        else:
            sightings[name] = sighting
        if settled:
            # The same change is asked for once, even if its run fails before it lists the images.
            run_key = f"{name}:{fingerprint}:{written_at}"
            tags = run_tags(configured.datasets[name])
            requests.append(dg.RunRequest(run_key=run_key, partition_key=name, tags=tags))
    looked = f"{len(watched)} datasets watched"
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else "; ".join([f"{looked}, none to score", *problems]),
        cursor=WatchMemory(next_name, sightings).to_cursor(),
    )


@dg.run_failure_sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
@nothing_secret()
def failed_run_sensor(
    context: dg.RunFailureSensorContext, settings: SettingsResource, warehouse: WarehouseResource
) -> dg.SkipReason | None:
    """Queues an alert when a dataset could not be evaluated."""
    run = context.dagster_run
    name = run.tags.get(PARTITION_TAG)
    try:
        registered = set(settings.load().datasets)
    except VisdivError as error:  # where to note it is in the settings; in 26 hours it is stale
        return dg.SkipReason(redacted(f"nothing was noted: {error}"))
    if name is None or name not in registered:
        return dg.SkipReason("the run was not of one registered dataset")
    failures = [event.step_failure_data for event in context.get_step_failure_events()]
    told = [data.user_failure_data.description for data in failures if data.user_failure_data]
    reason = next((text for text in told if text), context.failure_event.message or "")
    note_failure(name, reason, warehouse.open(), run_id=run.run_id)
    return None


@dg.sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
@nothing_secret()
def alert_sensor(
    context: dg.SensorEvaluationContext, settings: SettingsResource, warehouse: WarehouseResource
) -> dg.SkipReason:
    """Delivers alerts, and notices datasets whose last evaluation is too old."""
    try:
        configured = settings.load()
        results = warehouse.open()
        scheduled = [name for name, dataset in configured.datasets.items() if dataset.schedule]
        for name, verdict in note_stale(scheduled, results, datetime.now(UTC)).items():
            context.instance.report_runless_asset_event(stale_check(name, verdict))
        targets, problems = targets_of(configured.alerts)
        report = deliver_due(results, targets, dagster_url=configured.alerts.dagster_url)
    except VisdivError as error:
        return dg.SkipReason(redacted(f"no alerts were delivered: {error}"))
    if not targets and not problems:
        return dg.SkipReason("the settings name no alert URLs")
    for delivered in report:
        outcome = delivered.error or "accepted"
        context.log.info(f"{delivered.n_alerts} alerts to {delivered.target}: {outcome}")
    sent = [f"{d.n_alerts} to {d.target}: {d.error or 'accepted'}" for d in report]
    return dg.SkipReason("; ".join([*(sent or ["no alert is due"]), *problems]))
