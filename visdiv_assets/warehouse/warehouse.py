"""The DuckDB file: connections, migrations, evaluations, findings.

Here: short transactions on one file that many processes share. DuckDB locks out readers while a
process writes, so connections are held only as long as a statement takes, and a locked file is
retried.
"""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import filelock
import pyarrow as pa
import tenacity

from visdiv_assets.errors import VisdivError, never_evaluated
from visdiv_assets.spectral.moments import FloatArray
from visdiv_assets.warehouse.records import Evaluation, FailedImage
from visdiv_assets.warehouse.schema import migrate, migrations, schema_version

LOCK_PATIENCE_SECONDS = 60

# Whoever reads the file for longer than this keeps what it reads; writers go on in a copy.
READER_PATIENCE_SECONDS = 1

# Tables in which older versions kept what is now in the service's state.
OLD_OUTBOX = ("deliveries", "alerts", "conditions")

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

# A write-ahead log whose contents the file has already.
OUTDATED_LOG = re.compile("WAL was created for an older version of this database")


_COLUMNS = ", ".join(field.name for field in fields(Evaluation))
_PLACES = ", ".join("?" for _ in fields(Evaluation))


class Warehouse:
    """The results of a store. The first write creates the file or migrates its schema.

    Args:
        path: the file.
        patience: seconds to wait for others that use it; a minute by default.
    """

    def __init__(self, path: Path | str, patience: float | None = None) -> None:
        self.path, self.patience = Path(path), patience

    def record(self, evaluation: Evaluation, spectrum: FloatArray) -> Evaluation:
        """Append an evaluation and its spectrum, in one transaction.

        Args:
            evaluation: the row to append; its number is not looked at.
            spectrum: eigenvalues, descending, shape (D,).

        Returns:
            the evaluation as recorded, with its number.

        Raises:
            VisdivError: the file is damaged, cannot be opened, or was written by a newer version.
        """
        with self._write() as connection:
            [(newest,)] = connection.execute("SELECT max(number) FROM evaluations").fetchall()
            recorded = replace(evaluation, number=(newest or 0) + 1)
            connection.execute(
                f"INSERT INTO evaluations ({_COLUMNS}) VALUES ({_PLACES})",  # noqa: S608
                list(asdict(recorded).values()),
            )
            connection.execute(
                "INSERT INTO spectra (evaluation_id, eigenvalues) VALUES (?, ?)",
                [recorded.evaluation_id, spectrum.tolist()],
            )
        return recorded

    def newest_number(self) -> int:
        """The number of the evaluation that was recorded last; 0 if there is none."""
        rows = self._read("SELECT max(number) FROM evaluations", [])
        return int(rows[0][0] or 0) if rows else 0

    def evaluations_after(self, number: int) -> list[Evaluation]:
        """The evaluations that were recorded after one, in the order of recording."""
        query = "SELECT {} FROM evaluations WHERE number > ? ORDER BY number"
        return self._evaluations(query, [number])

    def old_outbox(self) -> dict[str, list[dict[str, Any]]]:
        """Conditions, alerts and deliveries that older versions kept in this file."""
        with self._reader() as connection:
            if not connection:
                return {}
            there = connection.execute(
                "SELECT table_name FROM duckdb_tables() WHERE table_name IN (SELECT unnest(?))",
                [list(OLD_OUTBOX)],
            ).fetchall()
            return {name: connection.table(name).to_arrow_table().to_pylist() for (name,) in there}

    def drop_old_outbox(self) -> None:
        """Drop the tables of `old_outbox`."""
        with self._write() as connection:
            for name in OLD_OUTBOX:
                connection.execute(f"DROP TABLE IF EXISTS {name}")

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
        query = "SELECT {} FROM evaluations WHERE dataset = ? ORDER BY number"
        return self._evaluations(query, [dataset])

    def pin_baseline(self, dataset: str, evaluation_id: str, now: datetime) -> None:
        """From now on, measure the drift of a dataset from this evaluation."""
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO baselines VALUES (?, ?, ?)", [dataset, evaluation_id, now]
            )

    def unpin_baseline(self, dataset: str) -> None:
        """Measure the drift of a dataset from no fixed evaluation."""
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
        try:
            with self._turn(read_only=read_only):
                self._refuse_empty()
                if read_only:
                    with contextlib.closing(self._open(self.path, read_only=True)) as connection:
                        yield connection
                else:
                    with self._opened_for_writing() as connection:
                        yield connection
        except duckdb.IntegrityError:  # the rows are wrong, not the file
            raise
        except duckdb.Error as error:  # damage raises any class, a wrong checksum just this one
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if LOCKED.search(str(error)):
                raise VisdivError(
                    f"another program has {self.path} open for writing, as notebooks do by "
                    f"default; close it there, and read the files in "
                    f"{self.path.parent / 'exports'} instead ({reason})"
                ) from error
            raise VisdivError(f"cannot use the results database {self.path}: {reason}") from error

    @contextmanager
    def _opened_for_writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The file itself; or a copy that takes its place afterwards, while somebody reads it.

        DuckDB lets nobody write to a file that another process has open. Whoever reads it, a
        notebook perhaps, keeps the file as it was, and stops nobody.
        """
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp*"):  # by a killed process
            left.unlink(missing_ok=True)
        try:
            connection = self._open(self.path, read_only=False, patience=READER_PATIENCE_SECONDS)
        except duckdb.Error as error:
            if not LOCKED.search(str(error)):
                raise
        else:
            with contextlib.closing(connection):
                yield connection
            return
        # As long as this is open, nobody can begin to write to the file.
        with contextlib.closing(self._open(self.path, read_only=True)):
            place = self.path.resolve()
            copy = place.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
            log, log_copy = _write_ahead_log(place), _write_ahead_log(copy)
            try:
                shutil.copy(place, copy)
                if log.exists():
                    shutil.copy(log, log_copy)
                with contextlib.closing(self._open(copy, read_only=False)) as connection:
                    yield connection
                if log_copy.exists():  # closing has written all of it to the copy, or has failed
                    raise VisdivError(f"cannot write {self.path}: is the disk full?")
                with copy.open("rb") as file:
                    os.fsync(file.fileno())
                copy.replace(place)
                log.unlink(missing_ok=True)
            except OSError as error:
                raise VisdivError(f"cannot write {self.path}: {error.strerror or error}") from error
            finally:
                copy.unlink(missing_ok=True)
                log_copy.unlink(missing_ok=True)

    def _open(
        self, path: Path, *, read_only: bool, patience: float | None = None
    ) -> duckdb.DuckDBPyConnection:
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: bool(LOCKED.search(str(error)))),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=0.2),
            stop=tenacity.stop_after_delay(self._patience if patience is None else patience),
            reraise=True,
        )
        try:
            connection = patiently(duckdb.connect, str(path), read_only=read_only)
        except duckdb.Error as error:
            if not OUTDATED_LOG.search(str(error)):
                raise
            # A process died right after its copy had taken the file's place: it is in there.
            _write_ahead_log(path.resolve()).unlink(missing_ok=True)
            connection = patiently(duckdb.connect, str(path), read_only=read_only)
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    @property
    def _patience(self) -> float:
        return LOCK_PATIENCE_SECONDS if self.patience is None else self.patience

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
            lock.acquire(timeout=self._patience, poll_interval=0.01)
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


def _write_ahead_log(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")
