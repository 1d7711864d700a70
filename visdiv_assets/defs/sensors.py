"""Sensors: partitions follow the settings, changed datasets are scored, alerts go out.

Here: what Dagster asks for and is told. Not here: looking at sources (`sources/looking.py`), what
is remembered and decided (`workflows/watch.py`), what an alert says (`notify/`).
"""

import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg

from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.checks import evaluation_between_runs
from visdiv_assets.defs.jobs import analyze_dataset, evaluate_dataset
from visdiv_assets.defs.partitions import (
    PARTITION_TAG,
    RETRIED_AS_TAG,
    WILL_RETRY_TAG,
    datasets,
    datasets_in_flight,
    run_tags,
)
from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import SettingsResource, StoreResource, WarehouseResource
from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.notify.delivery import deliver_due, targets_of
from visdiv_assets.quality.conditions import Condition, State
from visdiv_assets.settings.model import Settings, SourceSettings
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.sources.looking import LastLook, Look, Looker, due, look_at
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.state.database import StateFile, as_time
from visdiv_assets.warehouse.state.looks import seen
from visdiv_assets.warehouse.state.outbox import all_active_conditions, note_states
from visdiv_assets.warehouse.state.registry import (
    added_partitions,
    confirmed_removals,
    keep_datasets,
    kept_datasets,
    note_partitions,
    register,
    registered_at,
    unregister,
)
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.project import state_of, store_of
from visdiv_assets.workflows.watch import (
    derive_alerts,
    not_meant_to_go,
    note_failure,
    note_look,
    note_settings,
    note_stale,
    note_unreachable,
    wanted_evaluations,
)

# Dagster cuts a tick off at 60 seconds. Looks that take longer go on by themselves.
LOOKING_SECONDS = 10.0

# How long a sensor waits for a results file that somebody writes to; it is tried at each tick.
RESULTS_PATIENCE = 2.0
# The same for a store in a bucket.
STORE_PATIENCE = 5.0

# So many sources that cannot be looked at are told with a tick.
PROBLEMS_TOLD = 20

# So many failed runs are noted with a tick; the others with the next ones.
FAILURES_A_TICK = 50
# Dagster tries a run again, or writes down that it does not, within seconds of its failure. A
# daemon that is killed in between, or that finds its database locked, may never do either.
UNDECIDED_FOR = 60.0
_FAILURES = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}

# The steps without which a dataset has no score, and those of its analysis.
EVALUATION_STEPS = {"image_manifest", "sscd_embeddings", "embedding_moments", "diversity_metrics"}
ANALYSIS_STEPS = {
    "near_duplicates",
    "benchmark_leakage",
    "core_set",
    "bias_axes",
    "augmentation_guidance",
}


@dg.sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
@clear_errors()
def dataset_registry_sensor(
    context: dg.SensorEvaluationContext, settings: SettingsResource
) -> dg.SensorResult | dg.SkipReason:
    """Adds and removes partitions, so that they match the datasets in `visdiv.yaml`.

    Its tick fails while the file cannot be used; the last good settings hold until then.
    """
    watched = settings.watch()
    known = set(context.instance.get_dynamic_partitions(str(datasets.name)))
    if watched.settings is None:
        unknown = redacted(f"nothing was changed: {watched.problem}")
        if known:
            raise dg.Failure(unknown)
        return dg.SkipReason(unknown)
    configured, problem = watched.settings, watched.problem
    state = state_of(configured)
    registered = {*configured.datasets, *configured.faults}
    mine = _added_here(configured, state) & known
    so_far = mine | registered_at(state).keys()
    gone = so_far - registered
    before, confirmed = kept_datasets(state), confirmed_removals(state)
    unmeant = not_meant_to_go(gone, so_far, registered, confirmed, before)
    if unmeant != before:
        keep_datasets(state, unmeant)
    if unmeant:
        shown = ", ".join(sorted(unmeant)[:3]) + (" …" if len(unmeant) > 3 else "")
        problem = problem or (
            f"it has lost {len(unmeant):,} of {counted(len(so_far), 'dataset')} ({shown}), which "
            "are kept; if they are meant to go, run `visdiv remove --gone`"
        )
    if gone := gone - unmeant:
        # A partition is not taken away under a run; its turn comes at a later tick.
        gone -= datasets_in_flight(context.instance)
    added = sorted(set(configured.datasets) - known)
    now = datetime.now(UTC)
    for name in gone:
        unregister(state, name, now)
    register(state, registered, now)
    # An addition that was lost on its way is made again; everything else was taken away by others.
    vanished = (added_partitions(state) or set()) - known - set(added)
    if added or vanished:
        note_partitions(state, added=added, gone=vanished)
    fine = () if watched.problem else configured.datasets
    note_settings(problem, configured.faults, fine, state)
    removed = sorted(gone & mine)
    if added or removed:
        return dg.SensorResult(
            dynamic_partitions_requests=[
                *([datasets.build_add_request(added)] if added else []),
                *([datasets.build_delete_request(removed)] if removed else []),
            ]
        )
    if problem is not None:
        raise dg.Failure(redacted(f"visdiv.yaml cannot be used, and nothing changes: {problem}"))
    faults = [redacted(fault) for fault in configured.faults.values()]
    return dg.SkipReason("; ".join([f"{counted(len(mine), 'dataset')}, as registered", *faults]))


def _added_here(configured: Settings, state: StateFile) -> set[str]:
    """The partitions that this project has added; those of others are not its to take away."""
    added = added_partitions(state)
    if added is None:  # by an older version, which noted nothing: those that it has scored
        added = set(store_of(configured).datasets())
        note_partitions(state, added=added)
    return added


@dg.sensor(
    job=evaluate_dataset,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
@clear_errors()
def dataset_change_sensor(
    context: dg.SensorEvaluationContext, settings: SettingsResource, store: StoreResource
) -> dg.SensorResult | dg.SkipReason:
    """Starts a run for each dataset whose source has changed and settled."""
    watched = settings.watch()
    if watched.settings is None:
        return dg.SkipReason(redacted(f"nothing was looked at: {watched.problem}"))
    configured = watched.settings
    kept = store.open(STORE_PATIENCE)
    state = state_of(configured)
    partitions = set(context.instance.get_dynamic_partitions(str(datasets.name)))
    sources = {
        name: dataset.source
        for name, dataset in configured.datasets.items()
        if dataset.watch and name in partitions
    }
    in_flight = datasets_in_flight(context.instance)
    idle = {name: source for name, source in sources.items() if name not in in_flight}
    _eyes(kept, state).look(idle, configured.settle_seconds)
    wanted = wanted_evaluations(
        sources, in_flight, kept, state, time.time(), configured.settle_seconds
    )
    if wanted:
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    # Never the same twice: whether to ask again was decided above.
                    run_key=f"{each.dataset}:{each.fingerprint}:{time.time_ns()}",
                    partition_key=each.dataset,
                    tags=run_tags(configured.datasets[each.dataset]),
                )
                for each in wanted
            ]
        )
    problems = [
        redacted(f"{name}: {look.error}")
        for name, look in seen(state).items()
        if look.failing_since is not None and name in sources
    ]
    looked = f"{counted(len(idle), 'dataset')} watched, none to score"
    return dg.SensorResult(skip_reason="; ".join([looked, *problems[:PROBLEMS_TOLD]]))


class _Eyes:
    """Looks at the sources of one store, from tick to tick; looks that hang stay behind in it."""

    def __init__(self, store: Store, state: StateFile) -> None:
        self._store, self._state, self._settle = store, state, 0.0
        self._last: dict[str, LastLook] = {}
        self._looker = Looker(look_at, self._note)

    def use(self, store: Store) -> None:
        """Ask this store from now on; its credentials may be new."""
        self._store = store

    def look(self, sources: Mapping[str, SourceSettings], settle: float) -> None:
        """Look at those whose turn it is, and wait for a while."""
        self._settle = settle
        order = due(time.time(), self._last, sources, interval=0.0)
        self._looker.start((name, sources[name]) for name in order)
        self._looker.wait(LOOKING_SECONDS)

    def _note(self, look: Look) -> None:
        now, before = time.time(), self._last.get(look.dataset)
        failures = 0 if look.error is None else (before.failures if before else 0) + 1
        self._last[look.dataset] = LastLook(now, look.seconds, failures)
        note_look(look, self._store, self._state, now, self._settle)


_all_eyes: dict[str, _Eyes] = {}


def _eyes(store: Store, state: StateFile) -> _Eyes:
    """Those of this process that look at the sources of a store."""
    if store.uri not in _all_eyes:
        _all_eyes[store.uri] = _Eyes(store, state)
    _all_eyes[store.uri].use(store)
    return _all_eyes[store.uri]


@dg.sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
@clear_errors()
def failed_run_sensor(
    context: dg.SensorEvaluationContext, settings: SettingsResource, warehouse: WarehouseResource
) -> dg.SensorResult | dg.SkipReason:
    """Queues an alert when a dataset could not be evaluated, or not be analysed.

    While nothing can be noted, for instance on a full disk, its ticks fail, and a later one goes
    on from the same failure. Dagster's own kind of sensor for failed runs would pass over it.
    """
    instance, seen = context.instance, _Place.of(context.cursor)
    if seen is None:  # what failed before the service was there is no news
        newest = _failures(instance, limit=1)
        place = _Place(newest[0].storage_id, newest[0].timestamp) if newest else _Place(0, 0.0)
        return dg.SensorResult(skip_reason="failures are noted from now on", cursor=str(place))
    configured = settings.watch().settings
    if configured is None:  # where to note it is in the settings
        return dg.SkipReason("nothing was noted: there are no settings")
    said = []
    for record in _failures_after(instance, seen):
        run = instance.get_run_by_id(record.run_id)
        if run and _is_undecided(instance, run):
            break
        problem: str | None = "it was deleted"
        if run is not None:
            problem = _noted(instance, run, record, configured, warehouse)
        said.append(f"{record.run_id}: {problem or 'noted'}")
        seen = _Place(record.storage_id, record.timestamp)
    said = said or ["no run has failed"]
    return dg.SensorResult(skip_reason="; ".join(said), cursor=str(seen))


class _Place(NamedTuple):
    """How far the failures of runs were looked at: the number and the time of an event."""

    number: int
    at: float

    def __str__(self) -> str:
        return f"{self.number} {self.at!r}"

    @classmethod
    def of(cls, cursor: str | None) -> "_Place | None":
        """From a cursor; None if it is of another kind."""
        number, _, at = (cursor or "").partition(" ")
        try:
            return cls(int(number), float(at))
        except ValueError:
            return None


def _failures(
    instance: dg.DagsterInstance, limit: int, *, ascending: bool = False, **which: Any
) -> Sequence[dg.EventLogRecord]:
    """The events of runs that have failed."""
    of_failures = dg.RunStatusChangeRecordsFilter(
        event_type=dg.DagsterEventType.RUN_FAILURE, **which
    )
    return instance.fetch_run_status_changes(of_failures, limit, ascending=ascending).records


def _failures_after(instance: dg.DagsterInstance, seen: _Place) -> Sequence[dg.EventLogRecord]:
    """The next failures, oldest first.

    If the last one was deleted, its number may have been given again, to an event that nobody has
    looked at; then the time decides.
    """
    there = _failures(instance, 1, storage_ids=[seen.number])
    if not seen.number or (there and there[0].timestamp == seen.at):
        which: dict[str, Any] = {"after_storage_id": seen.number}
    else:
        which = {"after_timestamp": seen.at}
    return _failures(instance, FAILURES_A_TICK, ascending=True, **which)


_first_seen: dict[str, float] = {}


def _is_undecided(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether Dagster is about to try the run again, or to write down that it does not."""
    may = run.tags.get(WILL_RETRY_TAG) != "false" and RETRIED_AS_TAG not in run.tags
    # Not since it failed: everything may have been down since.
    since = _first_seen.setdefault(run.run_id, time.monotonic())
    if instance.run_retries_enabled and may and time.monotonic() - since < UNDECIDED_FOR:
        return True
    del _first_seen[run.run_id]
    return False


def _noted(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    record: dg.EventLogRecord,
    configured: Settings,
    warehouse: WarehouseResource,
) -> str | None:
    """As `_note_failed`; one run of which nothing can be said stops no other."""
    try:
        return _note_failed(instance, run, record.timestamp, configured, warehouse)
    except (VisdivError, OSError, sqlite3.OperationalError):  # it may be better later
        raise
    except Exception as error:  # noqa: BLE001  its record may hold anything
        return redacted(f"{type(error).__name__}: {error}")


def _note_failed(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    ended: float,
    configured: Settings,
    warehouse: WarehouseResource,
) -> str | None:
    """Note that a run has failed; why there was nothing to note, if so."""
    name = run.tags.get(PARTITION_TAG)
    if name is None or name not in {*configured.datasets, *configured.faults}:
        return "it was not of one registered dataset"
    if RETRIED_AS_TAG in run.tags:  # its other tag only says that Dagster means to
        return "it is tried again"
    failures = instance.all_logs(run.run_id, of_type=_FAILURES)
    events = [entry.dagster_event for entry in failures if entry.dagster_event]
    condition = _failed(run, {event.step_key for event in events if event.step_key})
    if condition is None:
        return "it was not to evaluate a dataset, nor to analyse one"
    failed_at = datetime.fromtimestamp(ended, UTC)
    if condition == Condition.NOT_ANALYZED and _analyzed_since(instance, name, failed_at):
        return "the dataset was analysed since"
    state = warehouse.state()
    registered = registered_at(state).get(name)
    if registered and failed_at < as_time(registered):
        return "it was of an earlier dataset of that name"
    steps = [event.step_failure_data for event in events if event.is_step_failure]
    told = [data.user_failure_data.description for data in steps if data.user_failure_data]
    reasons = [*told, *(event.message for event in events if event.is_run_failure)]
    note_failure(
        name,
        next((text for text in reasons if text), ""),
        state,
        condition=condition,
        failed_at=failed_at,
        run_id=run.run_id,
    )
    return None


def _failed(run: dg.DagsterRun, failed_steps: set[str]) -> Condition | None:
    """What a failed run means for its dataset, by the steps that failed or that it consists of."""
    steps = failed_steps or {key.to_user_string() for key in run.asset_selection or ()}
    if run.job_name == evaluate_dataset.name or steps & EVALUATION_STEPS:
        return Condition.NOT_EVALUATED
    if run.job_name == analyze_dataset.name or steps & ANALYSIS_STEPS:
        return Condition.NOT_ANALYZED
    return None


def _analyzed_since(instance: dg.DagsterInstance, dataset: str, moment: datetime) -> bool:
    """Whether the whole analysis of a dataset has succeeded after a moment."""
    succeeded = dg.RunsFilter(
        job_name=analyze_dataset.name,
        statuses=[dg.DagsterRunStatus.SUCCESS],
        tags={PARTITION_TAG: dataset},
    )
    records = instance.get_run_records(succeeded, limit=1)
    return any((record.end_time or 0.0) > moment.timestamp() for record in records)


@dg.sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
@clear_errors()
def alert_sensor(
    context: dg.SensorEvaluationContext, settings: SettingsResource, warehouse: WarehouseResource
) -> dg.SkipReason:
    """Delivers alerts, and notices datasets whose last evaluation is too old."""
    watched = settings.watch()
    if watched.settings is None:
        return dg.SkipReason(redacted(f"no alerts were delivered: {watched.problem}"))
    configured = watched.settings
    state = state_of(configured)
    recovery = timedelta(days=configured.alerts.recovery_days)
    waiting = _judge_new(warehouse.open(RESULTS_PATIENCE), state, recovery)
    _note_what_time_brings(context.instance, configured, state)
    targets, problems = targets_of(configured.alerts)
    report = deliver_due(state, targets, dagster_url=configured.alerts.dagster_url)
    problems += waiting
    if not targets and not problems:
        return dg.SkipReason("the settings name no alert URLs")
    for delivered in report:
        outcome = delivered.error or "accepted"
        told = counted(delivered.n_alerts, "alert")
        context.log.info(f"{told} to {delivered.target}: {outcome}")
    sent = [f"{d.n_alerts} to {d.target}: {d.error or 'accepted'}" for d in report]
    return dg.SkipReason("; ".join([*(sent or ["no alert is due"]), *problems]))


_judged: dict[Path, tuple[int, ...]] = {}


def _judge_new(results: Warehouse, state: StateFile, recovery: timedelta) -> list[str]:
    """Judge evaluations that nobody has judged, if the results have changed; problems are told."""
    now = _version_of(results.path)
    if now == _judged.get(results.path) and state.path.exists():
        return []
    try:
        derive_alerts(results, state, recovery)
    except VisdivError as error:
        return [redacted(f"new evaluations are judged later: {error}")]
    _judged[results.path] = now
    return []


def _version_of(path: Path) -> tuple[int, ...]:
    """Changes when a file does; its write-ahead log counts as well."""
    version: list[int] = []
    for each in (path, path.with_name(f"{path.name}.wal")):
        with contextlib.suppress(OSError):
            found = each.stat()
            version += (found.st_ino, found.st_mtime_ns, found.st_size)
    return tuple(version)


def _note_what_time_brings(
    instance: dg.DagsterInstance, configured: Settings, state: StateFile
) -> None:
    """Note which conditions have begun or ended though no run of the dataset says so."""
    now = datetime.now(UTC)
    scheduled = [name for name, dataset in configured.datasets.items() if dataset.schedule]
    for name, verdict in note_stale(scheduled, state, now).items():
        instance.report_runless_asset_event(
            evaluation_between_runs(instance, diversity_metrics.key, "not_stale", name, verdict)
        )
    looked_at = [name for name, dataset in configured.datasets.items() if dataset.watch]
    note_unreachable(looked_at, state, now)
    for name, conditions in all_active_conditions(state).items():
        if Condition.NOT_ANALYZED in conditions:
            since = conditions[Condition.NOT_ANALYZED]
            if _analyzed_since(instance, name, since):
                note_states(state, name, [State(Condition.NOT_ANALYZED, active=False)], now)
