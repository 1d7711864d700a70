"""The DuckDB file: connections, migrations, evaluations, the outbox of alerts.

Here: short transactions on one file that many processes share. DuckDB locks out readers while a
process writes, so connections are held only as long as a statement takes, and a locked file is
retried.
"""

import contextlib
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

from visdiv_assets.errors import VisdivError, never_evaluated
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

# Tables and views that are exported for dashboards.
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

# Another process has the file open, or this process has it open in the other mode.
LOCKED = re.compile("Could not set lock on file|with a different configuration than existing")


_COLUMNS = ", ".join(field.name for field in fields(Evaluation))
_PLACES = ", ".join("?" for _ in fields(Evaluation))


class Warehouse:
    """The results of a store. The first write creates the file or migrates its schema."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def record(
        self, evaluation: Evaluation, spectrum: FloatArray, states: Iterable[State] = ()
    ) -> list[Alert]:
        """Append an evaluation, its spectrum and the alerts it raises, in one transaction.

        Args:
            evaluation: the row to append.
            spectrum: eigenvalues, descending, shape (D,).
            states: the conditions that now hold or no longer hold.

        Returns:
            the alerts that were added to the outbox.

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
        """Record conditions without an evaluation, and return the alerts that they raise.

        Nothing is written if nothing changed.
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
        """The conditions that currently hold, by dataset."""
        conditions: dict[str, set[str]] = {}
        for dataset, condition in self._read(
            "SELECT dataset, condition FROM conditions WHERE active", []
        ):
            conditions.setdefault(dataset, set()).add(condition)
        return {dataset: frozenset(names) for dataset, names in conditions.items()}

    def alerts(self, limit: int = 50) -> list[tuple[Alert, int, int, str | None]]:
        """The newest alerts, newest first.

        Returns:
            for each: the alert, the number of its targets, the number of targets that received
            it, and the last error.
        """
        rows = self._read(
            f"SELECT {ALERT_COLUMNS}, count(target), count(delivered_at), max(last_error) "  # noqa: S608
            "FROM alerts LEFT JOIN deliveries USING (alert_id) "
            "GROUP BY ALL ORDER BY alerts.created_at DESC, alerts.alert_id LIMIT ?",
            [limit],
        )
        return [(Alert(*row[:-3]), *row[-3:]) for row in rows]

    def take_due_alerts(self, targets: Sequence[str], now: datetime) -> dict[str, list[DueAlert]]:
        """The alerts that are due for each target, after addressing new alerts to all of them."""
        with self._reader() as connection:
            if not connection:
                return {target: [] for target in targets}
            if not (targets and has_unaddressed(connection, targets)):
                return {target: due_alerts(connection, target, now) for target in targets}
        with self._write() as connection:
            address_alerts(connection, targets, now)
            return {target: due_alerts(connection, target, now) for target in targets}

    def mark_delivered(self, alert_ids: Sequence[str], target: str, now: datetime) -> None:
        """Record that the target's service accepted these alerts."""
        with self._write() as connection:
            mark_delivered(connection, alert_ids, target, now)

    def mark_failed(
        self, alert_ids: Sequence[str], target: str, error: str, next_attempt_at: datetime
    ) -> None:
        """Record that the target's service did not accept these alerts, and when to retry."""
        with self._write() as connection:
            mark_failed(connection, alert_ids, target, error, next_attempt_at)

    def export(self, folder: Path) -> None:
        """Write each table in EXPORTED to a Parquet file, replacing the old file atomically.

        Dashboards read these files, because no writer ever locks them.
        """
        with self._reader() as connection:
            if not connection:
                return
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".tmp-*"):  # by a killed process; no other has its turn now
                left.unlink(missing_ok=True)
            for table in EXPORTED:
                partial = folder / f".tmp-{uuid.uuid4().hex}"
                try:
                    connection.table(table).write_parquet(str(partial))
                    partial.replace(folder / f"{table}.parquet")
                finally:
                    partial.unlink(missing_ok=True)

    def latest_evaluations(self) -> list[Evaluation]:
        """The newest evaluation of each dataset, in order of dataset names.

        Raises:
            VisdivError: as `record` does.
        """
        return self._evaluations("SELECT {} FROM latest_evaluations ORDER BY dataset", [])

    def newest_evaluations(self, names: Iterable[str]) -> list[Evaluation]:
        """The newest evaluation of each of these datasets, in the order of the names.

        Raises:
            VisdivError: a dataset has never been evaluated; or as `record` does.
        """
        latest = {each.dataset: each for each in self.latest_evaluations()}
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            if name not in latest:
                raise never_evaluated(name)
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
        """From now on, measure the drift of a dataset from this evaluation."""
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO baselines VALUES (?, ?, ?)", [dataset, evaluation_id, now]
            )

    def unpin_baseline(self, dataset: str) -> None:
        """Measure the drift of a dataset from its previous evaluation again."""
        with self._write() as connection:
            connection.execute("DELETE FROM baselines WHERE dataset = ?", [dataset])

    def baseline(self, dataset: str) -> Evaluation | None:
        """The pinned evaluation; None if there is none."""
        pinned = self._evaluations(
            "SELECT {} FROM evaluations WHERE evaluation_id = "
            "(SELECT evaluation_id FROM baselines WHERE dataset = ?)",
            [dataset],
        )
        return pinned[0] if pinned else None

    def record_failures(
        self, dataset: str, model_id: str, failed: Iterable[FailedImage], now: datetime
    ) -> None:
        """Replace the list of a dataset's images that could not be embedded.

        Nothing is written if there were none before and there are none now.
        """
        rows = [asdict(image) for image in failed]
        if not rows and not self.failures(dataset):
            return
        named = [{**row, "failed_at": now, "model_id": model_id} for row in rows]
        self.replace_rows("failures", dataset, pa.Table.from_pylist(named))

    def replace_rows(self, table: str, dataset: str, rows: pa.Table) -> None:
        """Replace a dataset's rows in a table of findings, in one transaction.

        Args:
            table: a table with a column `dataset` that keeps no history. The name is inserted
                into the SQL, so it must not come from outside.
            dataset: the dataset whose rows are replaced.
            rows: the other columns, by name; may have no rows.
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
        """A dataset's rows in a table of findings, in the order in which they were written."""
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
        """Some columns of a table of findings as Arrow, for tables with millions of rows.

        None if there is no file yet.
        """
        with self._reader() as connection:
            if not connection:
                return None
            query = f"SELECT {', '.join(names)} FROM {table} WHERE dataset = ?"  # noqa: S608
            return connection.sql(query, params=[dataset]).to_arrow_table()

    def failures(self, dataset: str) -> list[FailedImage]:
        """The images that could not be embedded in the last evaluation, in order of ids."""
        rows = self._read(
            "SELECT image_id, reason, exception, bytes FROM failures "
            "WHERE dataset = ? ORDER BY image_id",
            [dataset],
        )
        return [FailedImage(*row) for row in rows]

    def schema_version(self) -> int:
        """The number of the last migration applied to the file; 0 if there is no file."""
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
            pass  # migrates the schema, or raises if the schema is too new
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
                with contextlib.suppress(duckdb.Error):  # it would hide the error that matters
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
                self._refuse_empty()
                connection = patiently(duckdb.connect, str(self.path), read_only=read_only)
                try:
                    connection.execute("SET TimeZone = 'UTC'")
                    yield connection
                finally:
                    connection.close()
        except duckdb.IntegrityError:  # the rows are wrong, not the file
            raise
        except duckdb.Error as error:  # damage raises any class, a wrong checksum just this one
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise VisdivError(f"cannot use the results database {self.path}: {reason}") from error

    def _refuse_empty(self) -> None:
        """An empty file held results; some versions of DuckDB would begin anew in it."""
        if self.path.is_file() and not self.path.stat().st_size:
            raise VisdivError(
                f"the results database {self.path} is damaged: it is empty; put back a copy of it, "
                "or delete it to begin anew"
            )

    @contextmanager
    def _turn(self, *, read_only: bool) -> Iterator[None]:
        """Wait until no other visdiv process has the file open.

        DuckDB's own lock is not enough: version 2.0 reads the header of a file before it locks
        it, and so overwrites what another process commits in between.
        """
        lock = filelock.FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire(timeout=LOCK_PATIENCE_SECONDS, poll_interval=0.01)
        except filelock.Timeout as error:
            raise VisdivError(
                f"another process is using {self.path}; wait until it is done, then try again"
            ) from error
        except OSError:
            if not read_only:
                raise
            # A read-only store needs no lock.
        try:
            yield
        finally:
            lock.release()
