"""From what happens to a dataset to its alerts, each exactly once, and to the runs to ask for.

Here: what is recorded in the service's state of evaluations, failed runs, looks, nights, settings.
Not here: which conditions hold (`judge.py`, `quality/`), sending (`notify/`), Dagster.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from visdiv_assets.errors import VisdivError
from visdiv_assets.quality.conditions import RECOVERY, Condition, State
from visdiv_assets.quality.verdicts import Verdict, judge_age
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.sources.looking import Look
from visdiv_assets.sources.watch import Sighting, is_settled, may_ask_again
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.state.database import StateFile, as_text, as_time, note, set_note
from visdiv_assets.warehouse.state.looks import (
    Night,
    Request,
    Seen,
    nights,
    note_nights,
    note_requests,
    requests,
    seen,
    seen_of,
    write_seen,
)
from visdiv_assets.warehouse.state.outbox import (
    SETTINGS_FILE,
    Alert,
    Scored,
    active_conditions,
    all_active_conditions,
    change_conditions,
    insert_alert,
    note_states,
)
from visdiv_assets.warehouse.state.registry import (
    DERIVED,
    own_evaluations_after,
    registered_at,
)
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.judge import states_of

logger = logging.getLogger(__name__)

# A source that cannot be looked at for so long is an alert; most come back sooner.
UNREACHABLE_AFTER = timedelta(minutes=15)

# A note that the outbox of older versions, which was in DuckDB, has been taken over.
TAKEN_OVER = "outbox of older versions"

LONGEST_REASON = 500


def derive_alerts(
    warehouse: Warehouse, state: StateFile, recovery: timedelta = RECOVERY
) -> list[Alert]:
    """The alerts that evaluations raise which nobody has looked at yet, in their order.

    Each evaluation is judged once, whoever calls this and however often: its number is noted in the
    transaction that records the alerts. A process that dies between recording an evaluation and
    judging it leaves that to the next call.

    Args:
        warehouse: holds the evaluations.
        state: gets conditions and alerts.
        recovery: how long a score must stay above its threshold to count as recovered.

    Raises:
        VisdivError: one of them cannot be used.
    """
    begin_judging(warehouse, state)
    with state.reading() as connection:
        judged = int((connection and note(connection, DERIVED)) or 0)
    alerts = []
    for evaluation in warehouse.evaluations_after(judged):
        alerts += _judge(evaluation, warehouse, state, recovery)
    return alerts


def _judge(
    evaluation: Evaluation, warehouse: Warehouse, state: StateFile, recovery: timedelta
) -> list[Alert]:
    number = evaluation.number or 0
    begins = own_evaluations_after(state, evaluation.dataset)
    earlier = [
        each
        for each in warehouse.history(evaluation.dataset)
        if begins < (each.number or 0) < number
    ]
    before = earlier[-1].judged_score if earlier else None
    with state.transaction() as connection:
        if number <= int(note(connection, DERIVED) or 0):  # another process was faster
            return []
        set_note(connection, DERIVED, str(number))
        _insert_newest(connection, evaluation)
        if evaluation.threshold is None:
            return []
        active = active_conditions(connection, evaluation.dataset)
        states = states_of(evaluation, earlier, evaluation.threshold, active, recovery)
        scored = Scored(
            diversity_score=evaluation.judged_score,
            previous_score=before,
            rating=evaluation.rating,
            run_id=evaluation.run_id,
            basis=evaluation.basis,
            plain_score=evaluation.diversity_score,
            corrected_score=evaluation.corrected_score,
            corrected_low=evaluation.corrected_low,
            corrected_high=evaluation.corrected_high,
        )
        return change_conditions(
            connection,
            evaluation.dataset,
            states,
            scored,
            evaluation.evaluated_at,
            recorded_at=datetime.now(UTC),
        )


@contextmanager
def judged(
    warehouse: Warehouse, state: StateFile, recovery: timedelta = RECOVERY
) -> Iterator[None]:
    """Judge what the block records. What is not possible now is left to the next time, and told."""
    try:
        begin_judging(warehouse, state)
    except VisdivError as error:
        logger.warning("evaluations cannot be judged at the moment (%s)", error)
    yield
    try:
        derive_alerts(warehouse, state, recovery)
    except VisdivError as error:
        logger.warning("the evaluation is recorded, but it is judged later (%s)", error)


def note_failure(
    dataset: str,
    reason: str,
    state: StateFile,
    *,
    condition: Condition = Condition.NOT_EVALUATED,
    failed_at: datetime | None = None,
    run_id: str | None = None,
) -> list[Alert]:
    """Note that a run of a dataset failed, unless it was evaluated since.

    Args:
        dataset: its name.
        reason: what went wrong.
        state: the service's state.
        condition: what the failure means.
        failed_at: when it failed; now when None.
        run_id: Dagster's.
    """
    evaluated_at = _evaluated_at(state).get(dataset)
    of_evaluation = condition == Condition.NOT_EVALUATED
    if of_evaluation and evaluated_at and failed_at and evaluated_at >= failed_at:
        return []
    told = State(condition, active=True, reason=_short(reason))
    return note_states(state, dataset, [told], datetime.now(UTC), run_id)


def note_stale(datasets: Iterable[str], state: StateFile, now: datetime) -> dict[str, Verdict]:
    """Note which of these datasets nobody has evaluated for too long.

    Datasets that were never evaluated at all are not among them: their runs fail, or are due.

    Returns:
        the verdict on each dataset that has become stale just now.
    """
    wanted, known = set(datasets), all_active_conditions(state)
    verdicts = {
        dataset: judge_age(evaluated_at, now)
        for dataset, evaluated_at in _evaluated_at(state).items()
        if dataset in wanted and Condition.STALE not in known.get(dataset, ())
    }
    stale = {dataset: verdict for dataset, verdict in verdicts.items() if not verdict.passed}
    for dataset, verdict in stale.items():
        told = State(Condition.STALE, active=True, reason=verdict.text)
        note_states(state, dataset, [told], now)
    return stale


def _evaluated_at(state: StateFile) -> dict[str, datetime]:
    """When each dataset was last evaluated, since it was registered."""
    with state.reading() as connection:
        rows = connection.execute("SELECT * FROM newest").fetchall() if connection else []
        return {row["dataset"]: as_time(row["evaluated_at"]) for row in rows}


def note_unreachable(datasets: Collection[str], state: StateFile, now: datetime) -> None:
    """Note which of these sources cannot be looked at for a while, and which can again."""
    known = all_active_conditions(state)
    looks = seen(state)
    for dataset in datasets:
        look = looks.get(dataset)
        failing = look is not None and look.failing_since is not None
        was = Condition.UNREACHABLE in known.get(dataset, ())
        if was and not failing:
            note_states(state, dataset, [State(Condition.UNREACHABLE, active=False)], now)
        if look is None or look.failing_since is None or was:
            continue
        if now.timestamp() - look.failing_since >= UNREACHABLE_AFTER.total_seconds():
            reason = _short(look.error or "")
            began = State(Condition.UNREACHABLE, active=True, reason=reason)
            note_states(state, dataset, [began], now)
    # Nobody looks at these any more, so nobody can tell.
    for dataset, conditions in known.items():
        if Condition.UNREACHABLE in conditions and dataset not in datasets:
            ended = State(Condition.UNREACHABLE, active=False, told=False)
            note_states(state, dataset, [ended], now)


def note_settings(
    problem: str | None, faults: Mapping[str, str], fine: Iterable[str], state: StateFile
) -> None:
    """Note whether the settings file, and those of each dataset, can be read.

    Args:
        problem: what is wrong with the file; None if nothing is.
        faults: what is wrong with the settings of single datasets, by dataset.
        fine: the datasets with whose settings nothing is wrong, as far as the file can be read.
        state: the service's state.
    """
    now, known = datetime.now(UTC), all_active_conditions(state)
    broken = {SETTINGS_FILE: problem, **faults} if problem else dict(faults)
    for name, reason in broken.items():
        told = State(Condition.SETTINGS_BROKEN, active=True, reason=_short(reason or ""))
        note_states(state, name, [told], now)
    for name in [*([] if problem else [SETTINGS_FILE]), *fine]:
        if Condition.SETTINGS_BROKEN in known.get(name, ()):
            note_states(state, name, [State(Condition.SETTINGS_BROKEN, active=False)], now)


def not_meant_to_go(
    gone: Collection[str],
    so_far: Collection[str],
    registered: Collection[str],
    confirmed: Collection[str],
    kept: Collection[str] = (),
) -> set[str]:
    """The datasets that the settings no longer have, if so many seem to be a mistake.

    A file may have been cut off, or mangled by a merge. Most datasets at once go only if somebody
    says so: by `visdiv remove`, or by writing `datasets: {}`.

    Args:
        gone: the datasets that the settings no longer have.
        so_far: all that were registered so far.
        registered: those that are.
        confirmed: those of which somebody said that they are to go.
        kept: those of which this function said so last time, and nobody has said anything since.

    Example:
        >>> sorted(not_meant_to_go({"a", "b"}, {"a", "b", "c"}, {"c"}, confirmed=()))
        ['a', 'b']
        >>> not_meant_to_go({"a", "b"}, {"a", "b", "c"}, {"c"}, confirmed={"a"})
        set()
    """
    if not registered:
        return set()
    unsaid = set(gone) - set(confirmed)
    most = len(unsaid) >= 2 and 2 * len(unsaid) > len(so_far)
    return unsaid if most else unsaid & set(kept)


def source_id(source: SourceSettings) -> str:
    """Identity of a source, as its settings describe it; a hash, since they may hold secrets.

    Example:
        >>> source_id(SourceSettings(uri="a")) == source_id(SourceSettings(uri="b"))
        False
    """
    return hashlib.blake2b(source.model_dump_json().encode(), digest_size=8).hexdigest()


def note_look(look: Look, store: Store, state: StateFile, now: float, settle: float) -> None:
    """Note what a look at a source has shown.

    Args:
        look: what it has found.
        store: knows what was scored.
        state: the service's state.
        now: Unix time.
        settle: seconds without a change after which a change has settled.
    """
    source = source_id(look.source)
    before = seen_of(state, look.dataset)
    if before is not None and before.source != source:  # another one had that name
        before = None
    if look.fingerprint is None:
        known = before or Seen(look.dataset, source)
        failing_since = now if known.failing_since is None else min(known.failing_since, now)
        write_seen(
            state,
            replace(
                known,
                failing_since=failing_since,
                failures=known.failures + 1,
                error=look.error or "",
            ),
        )
        return
    sighting = None
    if before is not None and before.fingerprint is not None and before.since is not None:
        sighting = Sighting(before.fingerprint, before.since)
    evaluated = store.latest_fingerprint(look.dataset)
    _, sighting = is_settled(look.fingerprint, evaluated, sighting, now, settle)
    if sighting is None and before is None:
        return  # as it was scored, which is what nearly all looks find
    after = Seen(look.dataset, source)
    if sighting is not None:
        after = replace(after, fingerprint=sighting.fingerprint, since=sighting.since, seen_at=now)
    write_seen(state, after)


@dataclass(frozen=True)
class Wanted:
    """An evaluation to ask for: a change that has settled, or an evaluation that has failed.

    Attributes:
        dataset: its name.
        fingerprint: what was seen; after a failure, what was scored last.
        requests: how often it has been asked for now.
    """

    dataset: str
    fingerprint: str
    requests: int


def wanted_evaluations(
    sources: Mapping[str, SourceSettings],
    in_flight: Collection[str],
    store: Store,
    state: StateFile,
    now: float,
    settle: float,
) -> list[Wanted]:
    """The evaluations to ask for, according to what was seen last; they are noted as asked for.

    What was scored last decides. So whatever becomes of a run, a change is asked for until it is
    scored, with growing pauses. So is a dataset as it was scored whose last evaluation has failed,
    be it the night's.

    Args:
        sources: what is watched, by dataset.
        in_flight: the datasets that a run is queued for or at work on.
        store: knows what was scored.
        state: the service's state.
        now: Unix time.
        settle: seconds without a change after which a change has settled.
    """
    asked, looks = requests(state), seen(state)
    failed = {
        name
        for name, conditions in all_active_conditions(state).items()
        if Condition.NOT_EVALUATED in conditions
    }
    changed: dict[str, Request | None] = {
        name: None
        for name in asked
        if name not in sources or name not in looks.keys() | failed | set(in_flight)
    }
    wanted = []
    for name, look in looks.items():
        request = asked.get(name)
        if name in in_flight or name not in sources or look.source != source_id(sources[name]):
            continue
        if look.fingerprint is None or look.since is None or look.seen_at is None:
            continue
        if look.fingerprint == store.latest_fingerprint(name):  # scored since
            write_seen(state, replace(look, fingerprint=None, since=None, seen_at=None))
            continue
        if look.failing_since is not None or look.seen_at - look.since < settle:
            continue
        if request is None or request.fingerprint != look.fingerprint:
            request = Request(look.fingerprint, 0, now)
        elif not may_ask_again(request.requests, abs(now - request.last_at)):
            continue
        changed[name] = Request(look.fingerprint, request.requests + 1, now)
        wanted.append(Wanted(name, look.fingerprint, request.requests + 1))
    for name in sorted(failed & (sources.keys() - looks.keys() - set(in_flight))):
        request, evaluated = asked.get(name), store.latest_fingerprint(name) or ""
        if request is None or request.fingerprint != evaluated:  # the run that failed counts
            changed[name] = Request(evaluated, 2, now)
        elif may_ask_again(request.requests, abs(now - request.last_at)):
            changed[name] = Request(evaluated, request.requests + 1, now)
            wanted.append(Wanted(name, evaluated, request.requests + 1))
    for name in asked.keys() & set(in_flight):  # the pause begins when a run has ended
        changed[name] = replace(asked[name], last_at=now)
    note_requests(state, changed)
    return wanted


# A run that was asked for is there by then; else it was lost on the way. If it was only slow,
# Dagster knows by its key that it is the same.
ON_ITS_WAY = timedelta(minutes=5)
MOST_REQUESTS_A_NIGHT = 3
# How late the first night of a dataset may be that was never asked for.
FIRST_NIGHT = timedelta(hours=12)


def due_tonight(
    names: Iterable[str],
    night: date,
    begun: datetime,
    scheduled: datetime,
    there: Collection[str],
    state: StateFile,
    now: datetime,
) -> list[str]:
    """The datasets to ask for tonight, each once; they are noted as asked for.

    Whether it is late, because the machine was off or the dataset busy, makes no difference.

    Args:
        names: the candidates; the empty name is the comparison of all datasets.
        night: local date on which the night began.
        begun: when it began.
        scheduled: the moment that is asked about.
        there: the datasets whose run of tonight Dagster knows.
        state: the service's state.
        now: the current time.
    """
    since, asked, evaluated = registered_at(state), nights(state), _evaluated_at(state)
    due: dict[str, Night] = {}
    for name in names:
        last = asked.get(name)
        before = last.requests if last and last.night == night.isoformat() else 0
        if name in there or before >= MOST_REQUESTS_A_NIGHT:
            continue
        if last and before and abs(now.timestamp() - last.last_at) < ON_ITS_WAY.total_seconds():
            continue
        if last is None and scheduled - begun > FIRST_NIGHT:
            continue  # nobody knows whether it was there when the night began
        registered = since.get(name) if name else min(since.values(), default=None)
        # It was registered tonight, and its first evaluation needs no night. For one that was there
        # before, none may come: its source can be as it was scored then.
        if registered and begun < as_time(registered) <= scheduled:
            was_there = own_evaluations_after(state, name) > 0
            if not was_there or evaluated.get(name, begun) > begun:
                continue
        due[name] = Night(night.isoformat(), before + 1, now.timestamp())
    note_nights(state, due)
    return list(due)


def _short(reason: str) -> str:
    told = " ".join(redacted(reason).split())[:LONGEST_REASON]
    return told.encode("utf-8", "backslashreplace").decode()  # SQLite takes no half characters


def begin_judging(warehouse: Warehouse, state: StateFile) -> None:
    """Note which evaluations there were before the service's state; they are not judged again.

    Whatever older versions kept in the results is taken over, once. Call this before an evaluation
    is recorded, else a new state would take it for one of the past.

    Raises:
        VisdivError: one of them cannot be used.
    """
    with state.reading() as connection:
        progress = connection and note(connection, TAKEN_OVER)
        judged = int((connection and note(connection, DERIVED)) or 0)
    if progress == "done":
        newest = warehouse.newest_number()  # after the other: no evaluation can come in between
        if newest < judged:  # the results were replaced by an older copy, or begun anew
            with state.transaction() as connection:
                set_note(connection, DERIVED, str(newest))
        return
    if not progress:
        old, newest = warehouse.old_outbox(), warehouse.newest_number()
        latest = warehouse.latest_evaluations() if newest else []
        with state.transaction() as connection:
            if not note(connection, TAKEN_OVER):
                _insert_old(connection, old)
                for each in latest:
                    _insert_newest(connection, each)
                set_note(connection, DERIVED, str(newest))
                set_note(connection, TAKEN_OVER, "read")
    if warehouse.path.exists():
        warehouse.drop_old_outbox()
    with state.transaction() as connection:
        set_note(connection, TAKEN_OVER, "done")


def _insert_newest(connection: sqlite3.Connection, evaluation: Evaluation) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO newest VALUES (?, ?, ?, ?)",
        [
            evaluation.dataset,
            as_text(evaluation.evaluated_at),
            evaluation.judged_score,
            evaluation.rating,
        ],
    )


def _insert_old(connection: sqlite3.Connection, old: Mapping[str, list[dict[str, Any]]]) -> None:
    numbers = {}
    for row in sorted(old.get("alerts", ()), key=lambda row: (row["created_at"], row["alert_id"])):
        numbers[row["alert_id"]] = insert_alert(connection, Alert(**row), row["created_at"])
    for row in old.get("conditions", ()):
        connection.execute(
            "INSERT OR REPLACE INTO conditions VALUES (?, ?, ?, ?)",
            [row["dataset"], row["condition"], row["active"], as_text(row["since"])],
        )
    for row in old.get("deliveries", ()):
        delivered = row["delivered_at"]
        connection.execute(
            "INSERT OR IGNORE INTO recipients VALUES (?, ?, 0, 0, NULL, NULL, NULL, NULL)",
            [row["target"], row["target"][:4]],
        )
        if row["alert_id"] in numbers:
            connection.execute(
                "INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, ?, NULL, ?)",
                [
                    numbers[row["alert_id"]],
                    row["target"],
                    row["attempts"],
                    as_text(delivered) if delivered else None,
                    row["last_error"],
                ],
            )
