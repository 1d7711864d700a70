"""Reading and writing conditions, the outbox of alerts, and the state of each delivery.

Here: SQL on an open connection, inside the caller's transaction. Not here: connections
(`warehouse.py`), what counts as a condition (`quality/`), sending (`notify/`).
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime

import duckdb

from visdiv_assets.quality.conditions import ENDS_ARE_TOLD, State


@dataclass(frozen=True)
class Alert:
    """A change to notify people of: a condition of a dataset began or ended.

    Attributes:
        alert_id: unique.
        created_at: aware datetime.
        dataset: its name.
        condition: value of `Condition`.
        began: whether the condition began; otherwise it ended.
        reason: the likely reason; may be empty.
        diversity_score: score of the newest evaluation; None if there was none.
        previous_score: score of the evaluation before; None if there was none.
        threshold: limit of the condition; None if it has none.
        rating: rating of the newest evaluation.
        run_id: Dagster run, or None.
    """

    alert_id: str
    created_at: datetime
    dataset: str
    condition: str
    began: bool
    reason: str
    diversity_score: float | None
    previous_score: float | None
    threshold: float | None
    rating: str | None
    run_id: str | None


@dataclass(frozen=True)
class Scored:
    """What an alert reports about its evaluation."""

    diversity_score: float | None = None
    previous_score: float | None = None
    rating: str | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class DueAlert:
    """An alert that is to be sent to a target now.

    Attributes:
        alert: the alert.
        attempts: number of failed attempts.
        basis: which score `alert` has, `corrected` or `plain`; None if there was no evaluation.
        plain_score: plain score of the newest evaluation at that time.
        corrected_score: its corrected score; None if there were too few images.
        corrected_low: lower end of the 95 % interval; None if there were too few images.
        corrected_high: upper end; None if there were too few images.
    """

    alert: Alert
    attempts: int = 0
    basis: str | None = None
    plain_score: float | None = None
    corrected_score: float | None = None
    corrected_low: float | None = None
    corrected_high: float | None = None


ALERT_COLUMNS = ", ".join(f"alerts.{field.name}" for field in fields(Alert))
_PLACES = ", ".join("?" for _ in fields(Alert))


def change_conditions(
    connection: duckdb.DuckDBPyConnection,
    dataset: str,
    states: Iterable[State],
    scored: Scored,
    now: datetime,
) -> list[Alert]:
    """Record which conditions hold, and add an alert to the outbox for each that changed."""
    alerts = []
    for state in states:
        row = connection.execute(
            "SELECT active FROM conditions WHERE dataset = ? AND condition = ?",
            [dataset, state.condition],
        ).fetchone()
        if state.active == (row is not None and row[0]):
            continue
        connection.execute(
            "INSERT OR REPLACE INTO conditions VALUES (?, ?, ?, ?)",
            [dataset, state.condition, state.active, now],
        )
        if not state.active and state.condition not in ENDS_ARE_TOLD:
            continue
        alert = Alert(
            alert_id=uuid.uuid4().hex,
            created_at=now,
            dataset=dataset,
            condition=state.condition.value,
            began=state.active,
            reason=state.reason,
            threshold=state.threshold,
            **asdict(scored),
        )
        connection.execute(
            f"INSERT INTO alerts ({ALERT_COLUMNS.replace('alerts.', '')}) VALUES ({_PLACES})",  # noqa: S608
            list(asdict(alert).values()),
        )
        alerts.append(alert)
    return alerts


# Alerts that reached nobody and have no delivery to a current target, because there were no
# targets when they were created or because the targets' URLs have changed since.
_UNADDRESSED = (
    "alert_id NOT IN (SELECT alert_id FROM deliveries "
    "WHERE delivered_at IS NOT NULL OR target IN (SELECT unnest(?)))"
)


def has_unaddressed(connection: duckdb.DuckDBPyConnection, targets: Sequence[str]) -> bool:
    """Whether an alert has reached nobody and is addressed to none of these targets."""
    query = f"SELECT 1 FROM alerts WHERE {_UNADDRESSED} LIMIT 1"  # noqa: S608
    return connection.execute(query, [list(targets)]).fetchone() is not None


def address_alerts(
    connection: duckdb.DuckDBPyConnection, targets: Sequence[str], now: datetime
) -> None:
    """Address to all targets every alert that is addressed to no current target.

    A target that is added later gets only the alerts from then on, not all earlier ones.
    """
    connection.execute(
        "INSERT INTO deliveries BY NAME "  # noqa: S608
        "SELECT alert_id, target, 0 AS attempts, ? AS next_attempt_at "
        "FROM alerts CROSS JOIN (SELECT unnest(?) AS target) "
        f"WHERE {_UNADDRESSED}",
        [now, list(targets), list(targets)],
    )


def due_alerts(connection: duckdb.DuckDBPyConnection, target: str, now: datetime) -> list[DueAlert]:
    """The alerts that are due for a target, oldest first."""
    rows = connection.execute(
        f"SELECT {ALERT_COLUMNS}, attempts, basis, evaluations.diversity_score, corrected_score, "  # noqa: S608
        "corrected_low, corrected_high "
        "FROM deliveries JOIN alerts USING (alert_id) "
        "ASOF LEFT JOIN evaluations ON alerts.dataset = evaluations.dataset "
        "AND alerts.created_at >= evaluations.evaluated_at "
        "WHERE target = ? AND delivered_at IS NULL AND next_attempt_at <= ? "
        "ORDER BY created_at, alert_id",
        [target, now],
    ).fetchall()
    n = len(fields(Alert))
    return [DueAlert(Alert(*row[:n]), *row[n:]) for row in rows]


def mark_delivered(
    connection: duckdb.DuckDBPyConnection, alert_ids: Sequence[str], target: str, now: datetime
) -> None:
    """Record that the target's service accepted these alerts."""
    connection.execute(
        "UPDATE deliveries SET delivered_at = ?, attempts = attempts + 1, last_error = NULL "
        "WHERE target = ? AND alert_id IN (SELECT unnest(?))",
        [now, target, list(alert_ids)],
    )


def mark_failed(
    connection: duckdb.DuckDBPyConnection,
    alert_ids: Sequence[str],
    target: str,
    error: str,
    next_attempt_at: datetime,
) -> None:
    """Record that the target's service did not accept these alerts, and when to retry."""
    connection.execute(
        "UPDATE deliveries SET next_attempt_at = ?, attempts = attempts + 1, last_error = ? "
        "WHERE target = ? AND alert_id IN (SELECT unnest(?))",
        [next_attempt_at, error, target, list(alert_ids)],
    )
