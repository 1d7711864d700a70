"""Which datasets are registered, which partitions this project has added, which are meant to go.

Not here: the settings themselves (`settings/`), Dagster's partitions (`defs/`).
"""

import json
from collections.abc import Iterable
from datetime import datetime

from visdiv_assets.warehouse.state.database import StateFile, as_text, note, set_note

# A name of `notes`: the number of the newest evaluation from which alerts were derived.
DERIVED = "newest evaluation that was judged"

KEPT = "datasets that are kept though the settings no longer have them"


def register(state: StateFile, datasets: Iterable[str], now: datetime) -> None:
    """Note that datasets are registered; nothing changes for those that already were."""
    wanted = set(datasets)
    with state.reading() as connection:
        query = "SELECT dataset FROM registrations WHERE registered_at != ''"
        rows = connection.execute(query) if connection else ()
        new = sorted(wanted - {row["dataset"] for row in rows})
    if not new:
        return
    with state.transaction() as connection:
        connection.executemany(
            "INSERT INTO registrations VALUES (?, ?, 0) "
            "ON CONFLICT DO UPDATE SET registered_at = excluded.registered_at "
            "WHERE registered_at = ''",
            [(name, as_text(now)) for name in new],
        )
        connection.executemany("DELETE FROM removals WHERE dataset = ?", [(name,) for name in new])


def unregister(state: StateFile, dataset: str, now: datetime) -> None:
    """Forget a dataset: its conditions end in silence, and its alerts that wait are dropped.

    Whatever is registered under the same name later begins anew: evaluations up to now are not
    its own.
    """
    with state.transaction() as connection:
        known = connection.execute(
            "SELECT 1 FROM registrations WHERE dataset = ? AND registered_at = ''", [dataset]
        ).fetchone()
        if known:
            return
        connection.execute("DELETE FROM conditions WHERE dataset = ?", [dataset])
        connection.execute("DELETE FROM newest WHERE dataset = ?", [dataset])
        connection.execute("DELETE FROM looks WHERE dataset = ?", [dataset])
        connection.execute("DELETE FROM requests WHERE dataset = ?", [dataset])
        connection.execute(
            "UPDATE deliveries SET given_up_at = ?, last_error = 'the dataset was removed' "
            "WHERE delivered_at IS NULL AND given_up_at IS NULL "
            "AND alert IN (SELECT number FROM alerts WHERE dataset = ?)",
            [as_text(now), dataset],
        )
        # The row stays, and says which evaluations are of the past.
        connection.execute(
            "INSERT OR REPLACE INTO registrations VALUES (?, '', ?)",
            [dataset, int(note(connection, DERIVED) or 0)],
        )


def registered_at(state: StateFile) -> dict[str, str]:
    """Since when each dataset is registered, as stored."""
    with state.reading() as connection:
        rows = connection.execute("SELECT * FROM registrations") if connection else ()
        return {row["dataset"]: row["registered_at"] for row in rows if row["registered_at"]}


def own_evaluations_after(state: StateFile, dataset: str) -> int:
    """The number of the last evaluation that belongs to an earlier dataset of that name."""
    with state.reading() as connection:
        row = (
            connection
            and connection.execute(
                "SELECT after_evaluation FROM registrations WHERE dataset = ?", [dataset]
            ).fetchone()
        )
        return int(row["after_evaluation"]) if row else 0


def added_partitions(state: StateFile) -> set[str] | None:
    """The partitions that this project has added; None if it has never noted any."""
    with state.reading() as connection:
        if connection is None or note(connection, "partitions are noted") is None:
            return None
        return {row["dataset"] for row in connection.execute("SELECT * FROM partitions")}


def note_partitions(state: StateFile, added: Iterable[str], gone: Iterable[str] = ()) -> None:
    """Note partitions that this project adds, and those that are gone from Dagster."""
    with state.transaction() as connection:
        connection.execute("INSERT OR IGNORE INTO notes VALUES ('partitions are noted', 'yes')")
        connection.executemany(
            "INSERT OR IGNORE INTO partitions VALUES (?)", [(name,) for name in added]
        )
        connection.executemany(
            "DELETE FROM partitions WHERE dataset = ?", [(name,) for name in gone]
        )


def confirm_removal(state: StateFile, datasets: Iterable[str]) -> None:
    """Note that these datasets are meant to go."""
    with state.transaction() as connection:
        connection.executemany(
            "INSERT OR IGNORE INTO removals VALUES (?)", [(name,) for name in datasets]
        )


def confirmed_removals(state: StateFile) -> set[str]:
    """The datasets that are meant to go."""
    with state.reading() as connection:
        rows = connection.execute("SELECT * FROM removals") if connection else ()
        return {row["dataset"] for row in rows}


def kept_datasets(state: StateFile) -> set[str]:
    """The datasets that are kept though the settings no longer have them."""
    with state.reading() as connection:
        return set(json.loads((connection and note(connection, KEPT)) or "[]"))


def keep_datasets(state: StateFile, datasets: Iterable[str]) -> None:
    """Replace what `kept_datasets` tells."""
    with state.transaction() as connection:
        set_note(connection, KEPT, json.dumps(sorted(datasets)))
