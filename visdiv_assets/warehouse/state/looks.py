"""What looking at the sources has shown, and which evaluations were asked for.

Here: rows. Those of looks are written in the moment in which a look ends, so that a tick that is
cut off loses none; only a source that differs from what was scored, or that cannot be looked at,
has one. Not here: looking (`sources/looking.py`), when a change has settled (`sources/watch.py`).
"""

from dataclasses import dataclass

from visdiv_assets.warehouse.state.database import StateFile


@dataclass(frozen=True)
class Seen:
    """What the looks at one source have shown; all times are Unix times.

    Attributes:
        dataset: its name.
        source: identity of the source, so that another source of that name begins anew.
        fingerprint: as seen last, if it differs from what was scored; else None.
        since: when it was first seen so.
        seen_at: when it was last seen so.
        failing_since: the first of the failures in a row; None if the last look succeeded.
        failures: how many in a row.
        error: what was wrong at the last of them.
    """

    dataset: str
    source: str
    fingerprint: str | None = None
    since: float | None = None
    seen_at: float | None = None
    failing_since: float | None = None
    failures: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Request:
    """An evaluation that was asked for because of a change.

    Attributes:
        fingerprint: what had been seen.
        requests: how often it was asked for.
        last_at: Unix time at which it was last asked for, or last seen under way.
    """

    fingerprint: str
    requests: int
    last_at: float


def seen(state: StateFile) -> dict[str, Seen]:
    """What the last looks have shown, by dataset; nothing of those that are as scored."""
    with state.reading() as connection:
        rows = connection.execute("SELECT * FROM looks") if connection else ()
        return {row["dataset"]: Seen(**dict(row)) for row in rows}


def seen_of(state: StateFile, dataset: str) -> Seen | None:
    """What the last looks at one source have shown; None if it is as scored."""
    with state.reading() as connection:
        row = (
            connection
            and connection.execute("SELECT * FROM looks WHERE dataset = ?", [dataset]).fetchone()
        )
        return Seen(**dict(row)) if row else None


def write_seen(state: StateFile, looked: Seen) -> None:
    """Replace what is known of a source; the row goes if it is as scored and can be looked at."""
    with state.transaction(durable=False) as connection:
        connection.execute("DELETE FROM looks WHERE dataset = ?", [looked.dataset])
        if looked.fingerprint is None and looked.failing_since is None:
            return
        connection.execute(
            "INSERT INTO looks (dataset, source, fingerprint, since, seen_at, failing_since, "
            "failures, error) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                looked.dataset,
                looked.source,
                looked.fingerprint,
                looked.since,
                looked.seen_at,
                looked.failing_since,
                looked.failures,
                looked.error,
            ],
        )


def requests(state: StateFile) -> dict[str, Request]:
    """What was asked for and has not come about yet, by dataset."""
    with state.reading() as connection:
        rows = connection.execute("SELECT * FROM requests") if connection else ()
        return {
            row["dataset"]: Request(row["fingerprint"], row["requests"], row["last_at"])
            for row in rows
        }


def note_requests(state: StateFile, changed: dict[str, Request | None]) -> None:
    """Replace what is known of requests; None forgets the one of a dataset."""
    if not changed:
        return
    with state.transaction(durable=False) as connection:
        for dataset, request in changed.items():
            connection.execute("DELETE FROM requests WHERE dataset = ?", [dataset])
            if request is not None:
                connection.execute(
                    "INSERT INTO requests (dataset, fingerprint, requests, last_at) "
                    "VALUES (?, ?, ?, ?)",
                    [dataset, request.fingerprint, request.requests, request.last_at],
                )


@dataclass(frozen=True)
class Night:
    """The last night for which an evaluation was asked.

    Attributes:
        night: local date on which it began, in ISO 8601.
        requests: how often it was asked for.
        last_at: Unix time at which it was last asked for.
    """

    night: str
    requests: int
    last_at: float


def nights(state: StateFile) -> dict[str, Night]:
    """The last night for which each dataset was asked for."""
    with state.reading() as connection:
        rows = connection.execute("SELECT * FROM nights") if connection else ()
        return {
            row["dataset"]: Night(row["night"], row["requests"], row["last_at"]) for row in rows
        }


def note_nights(state: StateFile, asked: dict[str, Night]) -> None:
    """Note for which night datasets are asked for."""
    if not asked:
        return
    with state.transaction() as connection:
        connection.executemany(
            "INSERT OR REPLACE INTO nights (dataset, night, requests, last_at) VALUES (?, ?, ?, ?)",
            [(name, each.night, each.requests, each.last_at) for name, each in asked.items()],
        )
