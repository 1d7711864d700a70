"""Conditions, the alerts that their changes raise, and the delivery of each to each recipient.

Here: rows. Functions that take a connection belong into the caller's transaction. Not here: which
conditions hold (`quality/`), sending (`notify/`).
"""

import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta

from visdiv_assets.quality.conditions import ENDS_ARE_TOLD, State
from visdiv_assets.warehouse.state.database import StateFile, as_text, as_time

# The settings file has conditions, too; no dataset has this name.
SETTINGS_FILE = ""

# An alert that a recipient has not accepted by then is given up, and `visdiv alerts list` says so.
GIVE_UP_AFTER = timedelta(days=7)

# Whoever sends has this long to record what came of it; then others may try.
CLAIM = timedelta(minutes=5)

FIRST_RETRY = timedelta(seconds=15)
LONGEST_RETRY = timedelta(hours=1)
LONGEST_UNANSWERED = timedelta(hours=6)


@dataclass(frozen=True)
class Scored:
    """What an alert reports about its evaluation.

    Attributes:
        diversity_score: judged score of the newest evaluation; None if there was none.
        previous_score: judged score of the evaluation before; None if there was none.
        rating: rating of the newest evaluation.
        run_id: Dagster run, or None.
        basis: which score `diversity_score` is, `corrected` or `plain`.
        plain_score: plain score of the newest evaluation.
        corrected_score: its corrected score; None if there were too few images.
        corrected_low: lower end of the 95 % interval.
        corrected_high: upper end.
    """

    diversity_score: float | None = None
    previous_score: float | None = None
    rating: str | None = None
    run_id: str | None = None
    basis: str | None = None
    plain_score: float | None = None
    corrected_score: float | None = None
    corrected_low: float | None = None
    corrected_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Alert(Scored):
    """A change to notify people of: a condition of a dataset began or ended.

    Attributes:
        alert_id: unique.
        created_at: aware datetime.
        dataset: its name; empty if it is about the settings file.
        condition: value of `Condition`.
        began: whether the condition began; otherwise it ended.
        reason: the likely reason; may be empty.
        threshold: limit of the condition; None if it has none.
    """

    alert_id: str
    created_at: datetime
    dataset: str
    condition: str
    began: bool
    reason: str
    threshold: float | None = None


@dataclass(frozen=True)
class Delivery:
    """How far an alert is on its way to one recipient.

    Attributes:
        recipient: label of the recipient, without secrets.
        attempts: number of attempts, the one that succeeded included.
        delivered_at: when the service accepted it; None if it has not.
        given_up_at: when trying ended; None if it goes on, or has succeeded.
        last_error: what the service said to the last attempt that failed.
    """

    recipient: str
    attempts: int
    delivered_at: datetime | None
    given_up_at: datetime | None
    last_error: str | None


@dataclass(frozen=True)
class Claim:
    """The right to send to one recipient, and what there is to send.

    Attributes:
        token: known to its holder only.
        alerts: all that wait for the recipient, in the order in which they were recorded.
        unanswered: attempts in a row that the service has not answered.
    """

    token: str
    alerts: tuple[Alert, ...]
    unanswered: int


_COLUMNS = tuple(field.name for field in fields(Alert))
_WAITING = "delivered_at IS NULL AND given_up_at IS NULL"


# --- conditions ---


def active_conditions(connection: sqlite3.Connection, dataset: str) -> dict[str, datetime]:
    """The conditions of a dataset that hold, and since when."""
    rows = connection.execute(
        "SELECT condition, since FROM conditions WHERE dataset = ? AND active", [dataset]
    )
    return {row["condition"]: as_time(row["since"]) for row in rows}


def all_active_conditions(state: StateFile) -> dict[str, dict[str, datetime]]:
    """The conditions that hold, by dataset, and since when."""
    found: dict[str, dict[str, datetime]] = {}
    with state.reading() as connection:
        rows = connection.execute("SELECT * FROM conditions WHERE active") if connection else ()
        for row in rows:
            found.setdefault(row["dataset"], {})[row["condition"]] = as_time(row["since"])
    return found


def change_conditions(
    connection: sqlite3.Connection,
    dataset: str,
    states: Iterable[State],
    scored: Scored,
    now: datetime,
    recorded_at: datetime | None = None,
) -> list[Alert]:
    """Record which conditions hold, and add an alert to the outbox for each that changed.

    Args:
        connection: in a transaction.
        dataset: its name; empty for the settings file.
        states: what holds, and what does not.
        scored: what the alerts tell of the evaluation.
        now: when that was so.
        recorded_at: the time on this machine, if the other may be that of a wrong clock.
    """
    alerts = []
    active = active_conditions(connection, dataset)
    for each in states:
        if each.active == (each.condition in active):
            continue
        connection.execute(
            "INSERT OR REPLACE INTO conditions VALUES (?, ?, ?, ?)",
            [dataset, each.condition.value, each.active, as_text(now)],
        )
        if not each.active and not (each.told and each.condition in ENDS_ARE_TOLD):
            continue
        alert = Alert(
            alert_id=uuid.uuid4().hex,
            created_at=now,
            dataset=dataset,
            condition=each.condition.value,
            began=each.active,
            reason=each.reason,
            threshold=each.threshold,
            **asdict(scored),
        )
        insert_alert(connection, alert, recorded_at or now)
        alerts.append(alert)
    return alerts


def insert_alert(connection: sqlite3.Connection, alert: Alert, recorded_at: datetime) -> int:
    """Add an alert to the outbox; returns its number."""
    values = asdict(alert) | {"created_at": as_text(alert.created_at)}
    places = ", ".join("?" for _ in _COLUMNS)
    added = connection.execute(
        f"INSERT INTO alerts (recorded_at, {', '.join(_COLUMNS)}) VALUES (?, {places})",  # noqa: S608
        [as_text(recorded_at), *(values[name] for name in _COLUMNS)],
    )
    return int(added.lastrowid or 0)


def note_states(
    state: StateFile,
    dataset: str,
    states: Sequence[State],
    now: datetime,
    run_id: str | None = None,
) -> list[Alert]:
    """Record conditions without an evaluation, and return the alerts that they raise.

    Nothing is written if nothing changed.
    """
    with state.reading() as connection:
        active = active_conditions(connection, dataset) if connection else {}
    if all(each.active == (each.condition in active) for each in states):
        return []
    with state.transaction() as connection:
        row = connection.execute("SELECT * FROM newest WHERE dataset = ?", [dataset]).fetchone()
        scored = Scored(
            diversity_score=row["score"] if row else None,
            rating=row["rating"] if row else None,
            run_id=run_id,
        )
        return change_conditions(connection, dataset, states, scored, now)


# --- delivery ---


def address(state: StateFile, recipients: Mapping[str, str], now: datetime) -> None:
    """Address to all recipients every alert that is addressed to none of them.

    That is so for new alerts, and for those that reached nobody and whose recipients are no longer
    in the settings: a wrong address was corrected. A recipient that is added later gets only the
    alerts from then on, not all earlier ones.

    Args:
        state: the service's state.
        recipients: labels by the recipients' hashes.
        now: aware datetime.
    """
    if not recipients:
        return
    marks = ", ".join("?" for _ in recipients)  # of hashes, a few
    unaddressed = (
        "recorded_at > ? AND NOT EXISTS (SELECT 1 FROM deliveries WHERE alert = number "  # noqa: S608
        f"AND (delivered_at IS NOT NULL OR recipient IN ({marks})))"
    )
    known = [as_text(now - GIVE_UP_AFTER), *recipients]
    with state.reading() as connection:
        if not connection:
            return
        query = f"SELECT 1 FROM alerts WHERE {unaddressed} LIMIT 1"  # noqa: S608
        if connection.execute(query, known).fetchone() is None:
            return
    with state.transaction() as connection:
        numbers = connection.execute(
            f"SELECT number FROM alerts WHERE {unaddressed}",  # noqa: S608
            known,
        ).fetchall()
        for recipient, label in recipients.items():
            connection.execute(
                "INSERT INTO recipients VALUES (?, ?, 0, 0, NULL, NULL, NULL, NULL) "
                "ON CONFLICT DO UPDATE SET label = excluded.label",
                [recipient, label],
            )
            connection.executemany(
                "INSERT OR IGNORE INTO deliveries (alert, recipient, attempts) VALUES (?, ?, 0)",
                [(row["number"], recipient) for row in numbers],
            )


def claim(state: StateFile, recipient: str, now: datetime) -> Claim | None:
    """Take the right to send a recipient all that waits for it, before anything is sent.

    The attempt is counted, and the next one set for later, at once. So a process that dies, or that
    cannot record what came of it, makes the recipient wait; it does not flood it.

    Returns:
        None if nothing waits, it is not yet time, or somebody else is sending.
    """
    with state.reading() as connection:
        if connection is None or not _may_send(connection, recipient, now):
            return None
    with state.transaction() as connection:
        row = _may_send(connection, recipient, now)
        if row is None:
            return None
        _give_up(connection, recipient, now)
        alerts = [
            _alert(each)
            for each in connection.execute(
                "SELECT alerts.* FROM alerts JOIN deliveries ON alert = number "  # noqa: S608
                f"WHERE recipient = ? AND {_WAITING} ORDER BY number",
                [recipient],
            )
        ]
        if not alerts:
            return None
        token = uuid.uuid4().hex
        connection.execute(
            "UPDATE recipients SET attempts = attempts + 1, next_attempt_at = ?, claim = ?, "
            "claimed_at = ? WHERE recipient = ?",
            [as_text(now + retry_delay(row["attempts"])), token, as_text(now), recipient],
        )
        connection.execute(
            f"UPDATE deliveries SET attempts = attempts + 1 WHERE recipient = ? AND {_WAITING}",  # noqa: S608
            [recipient],
        )
        return Claim(token, tuple(alerts), row["unanswered"])


def settle(
    state: StateFile,
    recipient: str,
    claimed: Claim,
    error: str | None,
    now: datetime,
    *,
    answered: bool = True,
) -> None:
    """Record what came of sending.

    Args:
        state: the service's state.
        recipient: its hash.
        claimed: what `claim` returned.
        error: what went wrong; None if the service accepted the message.
        now: aware datetime.
        answered: whether the service answered. If not, it may have the message nevertheless, so the
            pauses go on doubling.
    """
    delivered_at = None if error else as_text(now)
    with state.transaction() as connection:
        connection.executemany(
            "UPDATE deliveries SET delivered_at = ?, last_error = ? WHERE recipient = ? "
            "AND delivered_at IS NULL "
            "AND alert = (SELECT number FROM alerts WHERE alert_id = ?)",
            [(delivered_at, error, recipient, alert.alert_id) for alert in claimed.alerts],
        )
        row = connection.execute(
            "SELECT * FROM recipients WHERE recipient = ? AND claim = ?",
            [recipient, claimed.token],
        ).fetchone()
        if row is None:  # it took so long that somebody else has tried since
            return
        unanswered = 0 if answered else row["unanswered"] + 1
        attempts = 0 if error is None else row["attempts"]
        delay = retry_delay(max(attempts - 1, 0), unanswered)
        connection.execute(
            "UPDATE recipients SET attempts = ?, unanswered = ?, next_attempt_at = ?, "
            "claim = NULL, claimed_at = NULL, last_error = ? WHERE recipient = ?",
            [attempts, unanswered, as_text(now + delay) if error else None, error, recipient],
        )


def retry_delay(attempts: int, unanswered: int = 0) -> timedelta:
    """How long to wait after a number of earlier attempts: 15 s, doubling up to an hour.

    A service that takes a message and does not answer may have it. It gets a minute, doubling up to
    six hours, so that it is not told the same for ever.

    Example:
        >>> [retry_delay(attempts).total_seconds() for attempts in (0, 1, 2, 20)]
        [15.0, 30.0, 60.0, 3600.0]
        >>> [retry_delay(9, unanswered).total_seconds() for unanswered in (1, 2, 10)]
        [60.0, 120.0, 21600.0]
    """
    if unanswered:
        return min(timedelta(minutes=1) * (1 << min(unanswered - 1, 16)), LONGEST_UNANSWERED)
    return min(FIRST_RETRY * (1 << min(attempts, 16)), LONGEST_RETRY)


def alerts(state: StateFile, limit: int = 50) -> list[tuple[Alert, list[Delivery]]]:
    """The newest alerts, newest first, and how far each is on its way to each recipient."""
    with state.reading() as connection:
        if not connection:
            return []
        found = connection.execute(
            "SELECT * FROM alerts ORDER BY number DESC LIMIT ?", [limit]
        ).fetchall()
        if not found:
            return []
        deliveries: dict[int, list[Delivery]] = {}
        for row in connection.execute(
            "SELECT deliveries.*, label FROM deliveries JOIN recipients USING (recipient) "
            "WHERE alert >= ? ORDER BY label, recipient",
            [found[-1]["number"]],
        ):
            deliveries.setdefault(row["alert"], []).append(
                Delivery(
                    row["label"],
                    row["attempts"],
                    as_time(row["delivered_at"]) if row["delivered_at"] else None,
                    as_time(row["given_up_at"]) if row["given_up_at"] else None,
                    row["last_error"],
                )
            )
    return [(_alert(row), deliveries.get(row["number"], [])) for row in found]


def _may_send(connection: sqlite3.Connection, recipient: str, now: datetime) -> sqlite3.Row | None:
    """The recipient's row, if something waits for it, and it is time, and nobody is sending."""
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM recipients WHERE recipient = ? AND EXISTS (SELECT 1 FROM deliveries "  # noqa: S608
        f"WHERE deliveries.recipient = recipients.recipient AND {_WAITING})",
        [recipient],
    ).fetchone()
    if row is None:
        return None
    # A time that is too far off was written when the clock was wrong.
    if row["claim"] and timedelta() <= now - as_time(row["claimed_at"]) < CLAIM:
        return None
    longest = max(LONGEST_RETRY, retry_delay(0, row["unanswered"]))
    if row["next_attempt_at"] and now < as_time(row["next_attempt_at"]) <= now + longest:
        return None
    return row


def _give_up(connection: sqlite3.Connection, recipient: str, now: datetime) -> None:
    connection.execute(
        f"UPDATE deliveries SET given_up_at = ? WHERE recipient = ? AND {_WAITING} "  # noqa: S608
        "AND attempts > 0 AND alert IN (SELECT number FROM alerts WHERE recorded_at <= ?)",
        [as_text(now), recipient, as_text(now - GIVE_UP_AFTER)],
    )


def _alert(row: sqlite3.Row) -> Alert:
    values = {name: row[name] for name in _COLUMNS}
    return Alert(**values | {"created_at": as_time(row["created_at"]), "began": bool(row["began"])})
