"""The DuckDB file: connections, migrations, evaluations, the outbox of alerts.

Here: short transactions on one file that many processes share. DuckDB locks readers out while a
process writes, so no connection is held longer than a statement takes, and a locked file is
waited for.
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import filelock
import pyarrow as pa
import tenacity

from visdiv_assets.errors import VisdivError
from visdiv_assets.quality.conditions import State
from visdiv_assets.spectral.moments import FloatArray
from visdiv_assets.warehouse.alerts import (
    ALERT_COLUMNS,
    Alert,
    DueAlert,
    Scored,
    address_alerts,
    change_conditions,
    due_alerts,
    has_unaddressed,
    mark_delivered,
    mark_failed,
)
from visdiv_assets.warehouse.records import Evaluation, FailedImage
from visdiv_assets.warehouse.schema import migrate, migrations, schema_version

LOCK_PATIENCE_SECONDS = 60

# What dashboards read.
EXPORTED = (
    "evaluations",
    "latest_evaluations",
    "failures",
    "duplicates",
    "redundancy",
    "leaks",
    "leakage",
    "core_sets",
    "bias_axes",
    "augmentation_effects",
    "acquisitions",
)

# Another process holds the file, or this one holds it in the other mode.
LOCKED = re.compile("Could not set lock on file|with a different configuration than existing")


_COLUMNS = ", ".join(field.name for field in fields(Evaluation))
_PLACES = ", ".join("?" for _ in fields(Evaluation))


class Warehouse:
    """The results of a store. The file is created and brought up to date at the first write."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def record(
        self, evaluation: Evaluation, spectrum: FloatArray, states: Iterable[State] = ()
    ) -> list[Alert]:
        """Append an evaluation, its spectrum and the alerts it gives rise to, in one transaction.

        Args:
            evaluation: the row to append.
            spectrum: eigenvalues, descending, shape (D,).
            states: the conditions that the dataset is now in, or no longer.

        Returns:
            the alerts that were put into the outbox.

        Raises:
            VisdivError: the file is damaged, cannot be opened, or was written by a newer version.
        """
        with self._write() as connection:
            column = "diversity_score" if evaluation.basis == "plain" else "corrected_score"
            previous = connection.execute(
                f"SELECT {column} FROM latest_evaluations WHERE dataset = ?",  # noqa: S608
                [evaluation.dataset],
            ).fetchone()
            connection.execute(
                f"INSERT INTO evaluations ({_COLUMNS}) VALUES ({_PLACES})",  # noqa: S608
                list(asdict(evaluation).values()),
            )
            connection.execute(
                "INSERT INTO spectra (evaluation_id, eigenvalues) VALUES (?, ?)",
                [evaluation.evaluation_id, spectrum.tolist()],
            )
            scored = Scored(
                diversity_score=evaluation.judged_score,
                previous_score=previous[0] if previous else None,
                rating=evaluation.rating,
                run_id=evaluation.run_id,
            )
            return change_conditions(
                connection, evaluation.dataset, states, scored, evaluation.evaluated_at
            )

    def change_conditions(
        self,
        dataset: str,
        states: Iterable[State],
        now: datetime,
        run_id: str | None = None,
    ) -> list[Alert]:
        """Note conditions that come without an evaluation; returns the alerts they give rise to.

        Nothing is written when nothing changes.
        """
        active = self.active_conditions().get(dataset, frozenset())
        changed = [state for state in states if state.active != (state.condition in active)]
        if not changed:
            return []
        with self._write() as connection:
            latest = connection.execute(
                "SELECT CASE basis WHEN 'plain' THEN diversity_score ELSE corrected_score END, "
                "rating FROM latest_evaluations WHERE dataset = ?",
                [dataset],
            ).fetchone()
            score, rating = latest or (None, None)
            scored = Scored(diversity_score=score, rating=rating, run_id=run_id)
            return change_conditions(connection, dataset, changed, scored, now)

    def active_conditions(self) -> dict[str, frozenset[str]]:
        """The conditions that hold, by dataset."""
        conditions: dict[str, set[str]] = {}
        for dataset, condition in self._read(
            "SELECT dataset, condition FROM conditions WHERE active", []
        ):
            conditions.setdefault(dataset, set()).add(condition)
        return {dataset: frozenset(names) for dataset, names in conditions.items()}

    def alerts(self, limit: int = 50) -> list[tuple[Alert, int, int, str | None]]:
        """The newest alerts, newest first.

        Returns:
            for each: the alert, to how many targets it is addressed, how many have it, and what
            went wrong last.
        """
        rows = self._read(
            f"SELECT {ALERT_COLUMNS}, count(target), count(delivered_at), max(last_error) "  # noqa: S608
            "FROM alerts LEFT JOIN deliveries USING (alert_id) "
            "GROUP BY ALL ORDER BY alerts.created_at DESC, alerts.alert_id LIMIT ?",
            [limit],
        )
        return [(Alert(*row[:-3]), *row[-3:]) for row in rows]

    def take_due_alerts(self, targets: Sequence[str], now: datetime) -> dict[str, list[DueAlert]]:
        """What each target is to be sent now; new alerts are addressed to all of them first."""
        with self._reader() as connection:
            if not connection:
                return {target: [] for target in targets}
            if not (targets and has_unaddressed(connection, targets)):
                return {target: due_alerts(connection, target, now) for target in targets}
        with self._write() as connection:
            address_alerts(connection, targets, now)
            return {target: due_alerts(connection, target, now) for target in targets}

    def mark_delivered(self, alert_ids: Sequence[str], target: str, now: datetime) -> None:
        """The service behind a target has accepted these alerts."""
        with self._write() as connection:
            mark_delivered(connection, alert_ids, target, now)

    def mark_failed(
        self, alert_ids: Sequence[str], target: str, error: str, next_attempt_at: datetime
    ) -> None:
        """The service behind a target has not accepted these alerts; try again then."""
        with self._write() as connection:
            mark_failed(connection, alert_ids, target, error, next_attempt_at)

    def export(self, folder: Path) -> None:
        """Write each table of EXPORTED as parquet, each file replaced as a whole.

        For dashboards: they read files that no writer ever locks.
        """
        with self._reader() as connection:
            if not connection:
                return
            folder.mkdir(parents=True, exist_ok=True)
            for table in EXPORTED:
                partial = folder / f".tmp-{uuid.uuid4().hex}"
                connection.table(table).write_parquet(str(partial))
                partial.replace(folder / f"{table}.parquet")

    def latest_evaluations(self) -> list[Evaluation]:
        """The newest evaluation of each dataset, by name of the dataset.

        Raises:
            VisdivError: as `record` does.
        """
        return self._evaluations("SELECT {} FROM latest_evaluations ORDER BY dataset", [])

    def newest_evaluations(self, names: Iterable[str]) -> list[Evaluation]:
        """The newest evaluation of each of these datasets, in the order of the names.

        Raises:
            VisdivError: one was never evaluated; or as `record` does.
        """
        latest = {each.dataset: each for each in self.latest_evaluations()}
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            if name not in latest:
                raise VisdivError(f"{name} has not been evaluated; run visdiv score {name}")
        return [latest[name] for name in wanted]

    def history(self, dataset: str) -> list[Evaluation]:
        """All evaluations of a dataset, oldest first; the last is the latest.

        Raises:
            VisdivError: as `record` does.
        """
        query = (
            "SELECT {} FROM evaluations WHERE dataset = ? ORDER BY evaluated_at, evaluation_id DESC"
        )
        return self._evaluations(query, [dataset])

    def pin_baseline(self, dataset: str, evaluation_id: str, now: datetime) -> None:
        """Measure the drift of a dataset from this evaluation from now on."""
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO baselines VALUES (?, ?, ?)", [dataset, evaluation_id, now]
            )

    def unpin_baseline(self, dataset: str) -> None:
        """Measure the drift of a dataset from the evaluation before, again."""
        with self._write() as connection:
            connection.execute("DELETE FROM baselines WHERE dataset = ?", [dataset])

    def baseline(self, dataset: str) -> Evaluation | None:
        """The evaluation that was pinned; None if none was."""
        pinned = self._evaluations(
            "SELECT {} FROM evaluations WHERE evaluation_id = "
            "(SELECT evaluation_id FROM baselines WHERE dataset = ?)",
            [dataset],
        )
        return pinned[0] if pinned else None

    def record_failures(
        self, dataset: str, model_id: str, failed: Iterable[FailedImage], now: datetime
    ) -> None:
        """Replace what is known of the images of a dataset that could not be embedded.

        Nothing is written where there were none and are none.
        """
        rows = [asdict(image) for image in failed]
        if not rows and not self.failures(dataset):
            return
        named = [{**row, "failed_at": now, "model_id": model_id} for row in rows]
        self.replace_rows("failures", dataset, pa.Table.from_pylist(named))

    def replace_rows(self, table: str, dataset: str, rows: pa.Table) -> None:
        """Replace what a table of findings says of a dataset, in one transaction.

        Args:
            table: one that has a column `dataset` and is no history; a name of our own.
            dataset: whose rows are replaced.
            rows: its other columns, by name; no rows where there is nothing to say.
        """
        with self._write() as connection:
            connection.execute(f"DELETE FROM {table} WHERE dataset = ?", [dataset])  # noqa: S608
            if not len(rows):
                return
            connection.register("rows_now", rows)
            connection.execute(
                f"INSERT INTO {table} BY NAME SELECT ? AS dataset, * FROM rows_now",  # noqa: S608
                [dataset],
            )
            connection.unregister("rows_now")

    def rows(self, table: str, dataset: str) -> list[dict[str, Any]]:
        """What a table of findings says of a dataset, in the order in which it was written."""
        with self._reader() as connection:
            if not connection:
                return []
            found = connection.execute(
                f"SELECT * EXCLUDE (dataset) FROM {table} WHERE dataset = ? ORDER BY rowid",  # noqa: S608
                [dataset],
            )
            columns = [column[0] for column in found.description or []]
            return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]

    def columns(self, table: str, dataset: str, names: Sequence[str]) -> pa.Table | None:
        """Some columns of a table of findings, for where its rows may be millions.

        None where there is no file yet.
        """
        with self._reader() as connection:
            if not connection:
                return None
            query = f"SELECT {', '.join(names)} FROM {table} WHERE dataset = ?"  # noqa: S608
            return connection.sql(query, params=[dataset]).to_arrow_table()

    def failures(self, dataset: str) -> list[FailedImage]:
        """The images of a dataset that could not be embedded when it was looked at last, by id."""
        rows = self._read(
            "SELECT image_id, reason, exception, bytes FROM failures "
            "WHERE dataset = ? ORDER BY image_id",
            [dataset],
        )
        return [FailedImage(*row) for row in rows]

    def schema_version(self) -> int:
        """The newest migration that the file has had; 0 when there is no file."""
        if not self.path.exists():
            return 0
        with self._connect(read_only=True) as connection:
            return schema_version(connection)

    def _evaluations(self, query: str, parameters: list[Any]) -> list[Evaluation]:
        return [Evaluation(*row) for row in self._read(query.format(_COLUMNS), parameters)]

    def _read(self, query: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
        with self._reader() as connection:
            return connection.execute(query, parameters).fetchall() if connection else []

    @contextmanager
    def _reader(self) -> Iterator[duckdb.DuckDBPyConnection | None]:
        """A connection to a file whose schema is up to date; None where there is no file."""
        if not self.path.exists():
            yield None
            return
        with self._connect(read_only=True) as connection:
            if schema_version(connection) == len(migrations()):
                yield connection
                return
        with self._write():
            pass  # brings the schema up to date, or says that it is a newer one
        with self._connect(read_only=True) as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect(read_only=False) as connection:
            connection.begin()
            try:
                migrate(connection, self.path)
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def _connect(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: bool(LOCKED.search(str(error)))),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=0.2),
            stop=tenacity.stop_after_delay(LOCK_PATIENCE_SECONDS),
            reraise=True,
        )
        try:
            with self._turn(read_only=read_only):
                connection = patiently(duckdb.connect, str(self.path), read_only=read_only)
                try:
                    connection.execute("SET TimeZone = 'UTC'")
                    yield connection
                finally:
                    connection.close()
        except (duckdb.OperationalError, duckdb.FatalException) as error:
            reason = str(error).splitlines()[0]
            raise VisdivError(f"cannot use the results in {self.path}: {reason}") from error

    @contextmanager
    def _turn(self, *, read_only: bool) -> Iterator[None]:
        """Wait until no other visdiv has the file open.

        DuckDB's own lock does not do: version 2.0 reads the head of a file before it locks it, so
        what another process commits in between is overwritten.
        """
        lock = filelock.FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire(timeout=LOCK_PATIENCE_SECONDS, poll_interval=0.01)
        except filelock.Timeout as error:
            raise VisdivError(f"another process does not let go of {self.path}") from error
        except OSError:
            if not read_only:
                raise
            # A store that can only be read needs no turns.
        try:
            yield
        finally:
            lock.release()
