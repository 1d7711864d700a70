"""The schema of the DuckDB file: numbered SQL files in `migrations/`, and applying them.

Not here: connections and transactions (`warehouse.py`).
"""

import importlib.resources
from pathlib import Path

import duckdb

from visdiv_assets.errors import VisdivError


def migrations() -> list[str]:
    """The SQL of each migration, in order; the number of a file is its place, from 1."""
    folder = importlib.resources.files("visdiv_assets.warehouse") / "migrations"
    scripts = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    return [script.read_text(encoding="utf-8") for script in scripts]


def schema_version(connection: duckdb.DuckDBPyConnection) -> int:
    """The newest migration that a file has had; 0 where it has had none."""
    # To the last row each: a result that is not read to its end holds the connection.
    tables = "SELECT 1 FROM duckdb_tables() WHERE table_name = 'schema_version'"
    if not connection.execute(tables).fetchall():
        return 0
    [(newest,)] = connection.execute("SELECT max(version) FROM schema_version").fetchall()
    return newest or 0


def migrate(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Migrate the schema inside the caller's transaction."""
    version, scripts = schema_version(connection), migrations()
    if version > len(scripts):
        raise VisdivError(
            f"{path} has schema version {version}, but this version of visdiv supports only "
            f"{len(scripts)}; upgrade visdiv"
        )
    for number, script in enumerate(scripts[version:], start=version + 1):
        if number == 1:
            connection.execute(
                "CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMPTZ)"
            )
        connection.execute(script)
        connection.execute("INSERT INTO schema_version VALUES (?, now())", [number])
