"""The results in DuckDB: nothing lost, nothing half written, whoever else is at the file."""

import dataclasses
import hashlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import duckdb
import numpy as np
import pytest

from visdiv_assets import warehouse as warehouse_package
from visdiv_assets.errors import VisdivError
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
SCHEMA_VERSION = len(list((Path(warehouse_package.__file__).parent / "migrations").glob("*.sql")))
SPECTRUM = np.array([0.5, 0.25, 1 / 3])


def make(**changes: object) -> Evaluation:
    evaluation = Evaluation(
        evaluation_id="e1",
        dataset="birds",
        evaluated_at=NOON,
        run_id=None,
        model_id="sscd_disc_mixup.0123456789ab.torch-fp32.rgb-squash320-bilinear",
        n_images=213,
        n_failed=2,
        dimension=512,
        effective_rank=162.56,
        participation_ratio=134.84,
        diversity_score=0.1 + 0.2,
        rating="Low",
        stars=2,
        manifest_fingerprint="00ff",
        seconds=1.5,
    )
    return dataclasses.replace(evaluation, **changes)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "store/visdiv.duckdb")


def query(warehouse: Warehouse, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect(str(warehouse.path)) as connection:
        return connection.execute(sql).fetchall()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- evaluations ---


def test_an_evaluation_comes_back_as_it_was_recorded(warehouse):
    evaluation = warehouse.record(make(run_id="run", dataset="birds", threshold=0.3), SPECTRUM)
    assert (evaluation.number, evaluation.threshold) == (1, 0.3)
    assert warehouse.history("birds") == [evaluation]
    assert warehouse.latest_evaluations() == [evaluation]


def test_times_come_back_in_utc_whatever_zone_they_were_in(warehouse):
    in_seoul = NOON.astimezone(timezone(timedelta(hours=9)))
    warehouse.record(make(evaluated_at=in_seoul), SPECTRUM)
    [evaluation] = warehouse.history("birds")
    assert evaluation.evaluated_at == NOON
    assert evaluation.evaluated_at.utcoffset() == timedelta(0)


def test_the_spectrum_stands_beside_the_evaluation(warehouse):
    warehouse.record(make(), SPECTRUM)
    assert query(warehouse, "FROM spectra") == [("e1", SPECTRUM.tolist())]


def test_the_history_of_a_dataset_is_in_the_order_of_recording_whatever_the_clock_said(warehouse):
    for name, hours in (("b", 2), ("c", 3), ("a", 1)):
        warehouse.record(
            make(evaluation_id=name, evaluated_at=NOON + timedelta(hours=hours)), SPECTRUM
        )
    warehouse.record(make(evaluation_id="d", dataset="cats"), SPECTRUM)
    assert [evaluation.evaluation_id for evaluation in warehouse.history("birds")] == list("bca")


def test_the_latest_evaluations_are_one_for_each_dataset_by_name(warehouse):
    warehouse.record(make(evaluation_id="old", dataset="cats"), SPECTRUM)
    later = NOON + timedelta(seconds=1)
    warehouse.record(make(evaluation_id="new", dataset="cats", evaluated_at=later), SPECTRUM)
    warehouse.record(make(evaluation_id="only", dataset="ants"), SPECTRUM)
    latest = [evaluation.evaluation_id for evaluation in warehouse.latest_evaluations()]
    assert latest == ["only", "new"]


def test_of_two_evaluations_at_one_moment_history_and_latest_agree_on_the_last(warehouse):
    for name in ("x", "a", "m"):
        warehouse.record(make(evaluation_id=name), SPECTRUM)
    assert warehouse.history("birds")[-1] == warehouse.latest_evaluations()[0]


def test_an_evaluation_is_never_overwritten(warehouse):
    warehouse.record(make(), SPECTRUM)
    with pytest.raises(duckdb.ConstraintException):
        warehouse.record(make(diversity_score=0.9), SPECTRUM)
    assert warehouse.history("birds") == [make()]


@pytest.mark.parametrize(
    "name", ["it's", '"; DROP TABLE evaluations; --', "a' OR '1'='1", "{}", "?", "$1", "é\n"]
)
def test_names_are_data_and_never_sql(warehouse, name):
    warehouse.record(make(dataset="other", evaluation_id="e0"), SPECTRUM)
    warehouse.record(make(dataset=name, rating=name), SPECTRUM)
    assert warehouse.history(name) == [make(dataset=name, rating=name)]
    assert len(warehouse.latest_evaluations()) == 2


def test_what_was_never_recorded_is_empty_and_creates_no_file(warehouse):
    assert warehouse.latest_evaluations() == []
    assert warehouse.history("birds") == []
    assert warehouse.schema_version() == 0
    assert not warehouse.path.parent.exists()


def test_recording_leaves_one_file_and_its_lock_and_nothing_else(warehouse):
    warehouse.record(make(), SPECTRUM)
    left = {path.name for path in warehouse.path.parent.iterdir()}
    assert left == {"visdiv.duckdb", ".visdiv.duckdb.lock"}


# --- the schema ---


def test_the_table_has_a_column_for_each_field(warehouse):
    warehouse.record(make(), SPECTRUM)
    columns = [row[0] for row in query(warehouse, "DESCRIBE evaluations")]
    assert columns == [field.name for field in dataclasses.fields(Evaluation)]


def test_each_migration_is_recorded_with_its_time(warehouse):
    warehouse.record(make(), SPECTRUM)
    applied = query(warehouse, "FROM schema_version WHERE applied_at IS NOT NULL ORDER BY version")
    assert [version for version, _ in applied] == list(range(1, SCHEMA_VERSION + 1))
    assert warehouse.schema_version() == SCHEMA_VERSION


def test_a_database_without_tables_is_brought_up_to_date(warehouse):
    warehouse.path.parent.mkdir()
    duckdb.connect(str(warehouse.path)).close()
    assert warehouse.schema_version() == 0
    assert warehouse.latest_evaluations() == []
    assert warehouse.schema_version() == SCHEMA_VERSION


def test_a_file_of_a_newer_version_is_refused_and_unharmed(warehouse):
    warehouse.record(make(), SPECTRUM)
    query(warehouse, "INSERT INTO schema_version VALUES (99, now())")
    before = digest(warehouse.path)
    for use in (
        lambda: warehouse.record(make(evaluation_id="e2"), SPECTRUM),
        warehouse.latest_evaluations,
        lambda: warehouse.history("birds"),
    ):
        with pytest.raises(VisdivError, match=r"has schema version 99, .* upgrade visdiv"):
            use()
    assert warehouse.schema_version() == 99
    assert digest(warehouse.path) == before


# --- damage ---


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000], ids=["empty", "garbage"])
def test_a_file_that_is_no_database_is_refused_and_unharmed(warehouse, content):
    warehouse.path.parent.mkdir()
    warehouse.path.write_bytes(content)
    for use in (lambda: warehouse.record(make(), SPECTRUM), warehouse.latest_evaluations):
        with pytest.raises(
            VisdivError, match=r"results database .*visdiv\.duckdb(: | is damaged: it is empty)"
        ):
            use()
    assert warehouse.path.read_bytes() == content


def test_a_truncated_file_is_refused(warehouse):
    warehouse.record(make(), SPECTRUM)
    content = warehouse.path.read_bytes()
    warehouse.path.write_bytes(content[:12_288])
    with pytest.raises(VisdivError, match="cannot use the results"):
        warehouse.latest_evaluations()


@pytest.mark.parametrize("start", [0, 4_096, 12_288, 40_960])
def test_damage_that_duckdb_notices_is_one_sentence(warehouse, start):
    warehouse.record(make(), SPECTRUM)
    content = warehouse.path.read_bytes()
    warehouse.path.write_bytes(content[:start] + bytes(40_960) + content[start + 40_960 :])
    for use in (
        lambda: warehouse.record(make(evaluation_id="e2"), SPECTRUM),
        warehouse.latest_evaluations,
    ):
        with pytest.raises(VisdivError, match=r"cannot use the results database .*visdiv\.duckdb"):
            use()


def test_an_emptied_file_is_not_taken_for_a_new_one(warehouse):
    warehouse.record(make(), SPECTRUM)
    warehouse.path.write_bytes(b"")
    for use in (
        lambda: warehouse.record(make(evaluation_id="e2"), SPECTRUM),
        warehouse.latest_evaluations,
    ):
        with pytest.raises(VisdivError, match="is empty; put back a copy of it, or delete it"):
            use()
    warehouse.path.unlink()
    warehouse.record(make(), SPECTRUM)
    assert warehouse.history("birds") == [make()]


def test_what_a_killed_process_left_in_its_log_does_not_harm_a_new_file(warehouse):
    warehouse.record(make(), SPECTRUM)
    warehouse.path.with_name("visdiv.duckdb.wal").write_bytes(b"left over" * 100)
    warehouse.path.unlink()
    warehouse.record(make(), SPECTRUM)
    assert warehouse.history("birds") == [make()]


def test_an_export_removes_what_a_killed_one_left_over(warehouse):
    warehouse.record(make(), SPECTRUM)
    exports = warehouse.path.with_name("exports")
    exports.mkdir()
    (exports / ".tmp-0123").write_bytes(b"half a file")
    warehouse.export(exports)
    assert not list(exports.glob(".tmp-*"))


def test_a_folder_in_place_of_the_file_is_refused_at_once(tmp_path):
    warehouse = Warehouse(tmp_path / "locks and blocks/visdiv.duckdb")
    warehouse.path.mkdir(parents=True)
    with pytest.raises(VisdivError, match="cannot use the results"):
        warehouse.latest_evaluations()


def test_an_evaluation_is_recorded_with_its_spectrum_or_not_at_all(warehouse):
    warehouse.record(make(), SPECTRUM)
    query(warehouse, "DELETE FROM evaluations")
    with pytest.raises(duckdb.ConstraintException):  # for the spectrum, which comes second
        warehouse.record(make(), SPECTRUM)
    assert warehouse.history("birds") == []


def test_a_process_killed_inside_a_transaction_leaves_what_was_committed_before(warehouse):
    warehouse.record(make(), SPECTRUM)
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import duckdb, os, signal, sys\n"
            "connection = duckdb.connect(sys.argv[1])\n"
            "connection.begin()\n"
            "connection.execute('DELETE FROM evaluations')\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n",
            str(warehouse.path),
        ],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert warehouse.history("birds") == [make()]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_results_that_cannot_be_written_to_can_be_read(warehouse):
    warehouse.record(make(), SPECTRUM)
    for path in warehouse.path.parent.iterdir():
        path.chmod(0o444)
    warehouse.path.parent.chmod(0o555)
    try:
        assert warehouse.history("birds") == [make()]
        with pytest.raises((PermissionError, VisdivError)):
            warehouse.record(make(evaluation_id="e2"), SPECTRUM)
    finally:
        warehouse.path.parent.chmod(0o755)


# --- several processes ---

WRITER = """
import pickle, sys
import numpy as np
from visdiv_assets.warehouse.warehouse import Warehouse
print("ready", flush=True)
for evaluation in pickle.load(sys.stdin.buffer):
    Warehouse(sys.argv[1]).record(evaluation, np.ones(512))
"""


@pytest.mark.slow
def test_eight_processes_that_create_and_write_one_file_at_once_lose_nothing(warehouse):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(warehouse.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(8)
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == b"ready\n"
    for number, writer in enumerate(writers):
        assert writer.stdin
        names = [f"{number}-{count}" for count in range(10)]
        evaluations = [make(evaluation_id=name, dataset=f"set{number}") for name in names]
        writer.stdin.write(pickle.dumps(evaluations))
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0] * 8
    assert [len(warehouse.history(f"set{number}")) for number in range(8)] == [10] * 8
    assert query(warehouse, "SELECT count(*), min(len(eigenvalues)) FROM spectra") == [(80, 512)]


# --- others who use the file ---

HOLD = (
    "import duckdb, sys\n"
    "connection = duckdb.connect(sys.argv[1]{})\n"
    "print('open', flush=True)\n"
    "input()\n"
    "print(connection.sql({!r}).fetchall())\n"
)


@contextmanager
def held(warehouse: Warehouse, options: str, query: str = "SELECT 1") -> Iterator[Callable]:
    """Another program has the file open; yields what lets it go, and returns what it has read."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD.format(options, query), str(warehouse.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        yield lambda: program.communicate("\n")[0]


def test_somebody_who_reads_the_file_stops_neither_writers_nor_readers(warehouse, monkeypatch):
    monkeypatch.setattr("visdiv_assets.warehouse.warehouse.LOCK_PATIENCE_SECONDS", 0)
    warehouse.record(make(), SPECTRUM)
    count = "SELECT count(*) FROM evaluations"
    with held(warehouse, ", read_only=True", count) as let_go:
        for name in ("e2", "e3"):
            warehouse.record(make(evaluation_id=name), SPECTRUM)
        assert len(warehouse.history("birds")) == 3
        assert let_go() == "[(1,)]\n"  # it reads what was there when it opened the file
    warehouse.record(make(evaluation_id="e4"), SPECTRUM)
    assert [each.number for each in warehouse.history("birds")] == [1, 2, 3, 4]
    assert {path.name for path in warehouse.path.parent.iterdir()} == {
        warehouse.path.name,
        f".{warehouse.path.name}.lock",
    }


def test_a_write_that_fails_while_somebody_reads_leaves_the_file_as_it_was(warehouse):
    warehouse.record(make(), SPECTRUM)
    with held(warehouse, ", read_only=True"):
        before = warehouse.path.read_bytes()
        with pytest.raises(duckdb.IntegrityError):
            warehouse.record(make(), SPECTRUM)  # its id is taken
        assert warehouse.path.read_bytes() == before
    assert len(list(warehouse.path.parent.iterdir())) == 2


def test_what_a_killed_writer_has_committed_survives_a_reader_and_the_next_writer(warehouse):
    warehouse.record(make(), SPECTRUM)
    code = (
        "import duckdb, os, sys\n"
        "c = duckdb.connect(sys.argv[1])\n"
        "c.execute(\"INSERT INTO evaluations SELECT * REPLACE ('killed' AS evaluation_id, \"\n"
        '          "2 AS number) FROM evaluations")\n'
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(warehouse.path)], check=True)
    log = warehouse.path.with_name(f"{warehouse.path.name}.wal")
    left = log.read_bytes()
    with held(warehouse, ", read_only=True"):
        warehouse.record(make(evaluation_id="next"), SPECTRUM)
    assert ids(warehouse) == {"e1", "killed", "next"}
    # As if this writer had been killed as well, after the file and before its log.
    log.write_bytes(left)
    assert ids(warehouse) == {"e1", "killed", "next"}
    warehouse.record(make(evaluation_id="last"), SPECTRUM)
    assert ids(warehouse) == {"e1", "killed", "next", "last"}


@pytest.fixture
def busy(warehouse, monkeypatch):
    """A warehouse that another process holds until this one has met its lock.

    Before it lets go, it adds an evaluation.
    """
    warehouse.record(make(evaluation_id="before"), SPECTRUM)
    connect, met = duckdb.connect, []
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import duckdb, sys\n"
            "connection = duckdb.connect(sys.argv[1])\n"
            "print('locked', flush=True)\n"
            "sys.stdin.read()\n"
            "connection.execute(\"INSERT INTO evaluations SELECT * REPLACE ('meanwhile' AS"
            ' evaluation_id) FROM evaluations")\n',
            str(warehouse.path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()

        def connect_or_say_so(*arguments, **options):
            try:
                return connect(*arguments, **options)
            except duckdb.Error as error:
                met.append(error)
                process.stdin.close()
                raise

        monkeypatch.setattr(duckdb, "connect", connect_or_say_so)
        yield warehouse
    assert met


def ids(warehouse: Warehouse) -> set[str]:
    return {evaluation.evaluation_id for evaluation in warehouse.history("birds")}


def test_a_reader_waits_while_another_process_writes(busy):
    assert ids(busy) == {"before", "meanwhile"}


def test_a_writer_waits_while_another_process_writes(busy):
    busy.record(make(evaluation_id="after"), SPECTRUM)
    assert ids(busy) == {"before", "meanwhile", "after"}


def test_who_waits_too_long_is_told_who_holds_the_file(warehouse, monkeypatch):
    monkeypatch.setattr("visdiv_assets.warehouse.warehouse.LOCK_PATIENCE_SECONDS", 0)
    warehouse.record(make(), SPECTRUM)
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import duckdb, sys\n"
            "connection = duckdb.connect(sys.argv[1])\n"
            "print('locked', flush=True)\n"
            "sys.stdin.read()\n",
            str(warehouse.path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(VisdivError, match=rf"Conflicting lock is held .*PID {holder.pid}"):
            warehouse.latest_evaluations()
        holder.communicate()
