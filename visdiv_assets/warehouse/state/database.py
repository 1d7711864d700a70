"""The SQLite file of the service's state: connections, transactions, migrations.

Here: how the file is opened. Readers never wait for a writer, since it is in WAL mode, and a
writer waits for another for a moment only. Not here: what is in it.
"""

import contextlib
import functools
import importlib.resources
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from visdiv_assets.errors import VisdivError

# Transactions take milliseconds; whoever waits for longer waits for a process that hangs.
WAIT_SECONDS = 10.0

STATE_FILE = "state.sqlite"

# What SQLite says where it cannot create the files that WAL mode needs.
READ_ONLY = ("SQLITE_READONLY", "SQLITE_READONLY_DIRECTORY", "SQLITE_CANTOPEN")


class StateFile:
    """What the service remembers. The first transaction creates the file.

    Args:
        path: the file, on a local disk: SQLite's WAL mode does not work across machines.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Write: all of the block happens, or nothing of it; one writer at a time.

        Args:
            durable: whether it must survive a power cut, too; what the next tick finds out anyway
                need not, and is written faster.

        Raises:
            VisdivError: the file is damaged, cannot be written, or is of a newer version.
        """
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._connect()) as connection:
                if _version(connection) != len(_migrations()):
                    self._migrate(connection)
                if not durable:
                    connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):  # it would hide the one that matters
                        connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """Read one moment's state, whatever is written meanwhile; None where there is no file.

        Raises:
            VisdivError: as `transaction`.
        """
        if not self.path.exists():
            yield None
            return
        with self._told():
            try:
                connection = self._connect()
                version = _version(connection)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorname", "") not in READ_ONLY:
                    raise
                connection = self._connect("mode=ro&immutable=1")  # a store that is read-only
                version = _version(connection)
            with contextlib.closing(connection):
                if version < len(_migrations()):
                    self._migrate(connection)
                elif version > len(_migrations()):
                    raise self._newer(version)
                connection.execute("BEGIN")
                yield connection

    def _connect(self, options: str = "mode=rwc") -> sqlite3.Connection:
        # Not autocommit in Python's sense: transactions are begun by hand, above.
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{options}",
            uri=True,
            timeout=WAIT_SECONDS,
            isolation_level=None,
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        scripts = _migrations()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)  # another process may have been faster
            if version > len(scripts):
                raise self._newer(version)
            for script in scripts[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(scripts)}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _newer(self, version: int) -> VisdivError:
        return VisdivError(
            f"{self.path} has schema version {version}, but this version of visdiv supports only "
            f"{len(_migrations())}; upgrade visdiv"
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:  # the rows are wrong, not the file
            raise
        except sqlite3.DatabaseError as error:
            advice = ""
            if getattr(error, "sqlite_errorname", "") in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
                advice = "; put back a copy of it, or delete it, which loses alerts not yet sent"
            raise VisdivError(f"cannot use the service's state {self.path}: {error}{advice}") from (
                error
            )
        except OSError as error:
            raise VisdivError(
                f"cannot use the service's state {self.path}: {error.strerror or error}"
            ) from error


def note(connection: sqlite3.Connection, name: str) -> str | None:
    """A remembered value; None if there is none."""
    row = connection.execute("SELECT value FROM notes WHERE name = ?", [name]).fetchone()
    return None if row is None else str(row["value"])


def set_note(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Remember a value under a name."""
    connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", [name, value])


def as_text(time: datetime) -> str:
    """A time as it is stored: UTC in ISO 8601, so that texts sort as times do.

    Example:
        >>> as_text(datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
        '2026-01-02T03:04:00.000000+00:00'
    """
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def as_time(text: str) -> datetime:
    """The inverse of `as_text`."""
    return datetime.fromisoformat(text)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@functools.cache
def _migrations() -> tuple[str, ...]:
    folder = importlib.resources.files("visdiv_assets.warehouse.state") / "migrations"
    scripts = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    return tuple(script.read_text(encoding="utf-8") for script in scripts)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
