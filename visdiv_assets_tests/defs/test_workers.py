"""Runs whose process is gone are ended and tried again; those that live are left alone."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs import workers
from visdiv_assets.defs.workers import GONE, dead_run_sensor, hold, watched
from visdiv_assets_tests.campaigns import kills
from visdiv_assets_tests.dagster_dev import ROOT

STARTED, CANCELING = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING
FAILURE, CANCELED = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED
SUCCESS = dg.DagsterRunStatus.SUCCESS

WORKER = """
import dagster as dg, sys
from visdiv_assets.defs.workers import hold
with dg.DagsterInstance.local_temp(sys.argv[1]) as instance:
    hold(instance, sys.argv[2])
    print("holds it", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def worker_of(run_id: str, instance: dg.DagsterInstance) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works on a run."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, instance.root_directory, run_id],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"holds it\n"
        yield process
        process.kill()


def run_of(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> str:
    """A run of a job that has a place in the pool `gpu`."""
    job = build_defs().resolve_job_def("evaluate_dataset")
    run_id = instance.create_run_for_job(job, status=status).run_id
    instance.event_log_storage.set_concurrency_slots("gpu", 1)
    claim = instance.event_log_storage.claim_concurrency_slot("gpu", run_id, "sscd_embeddings")
    assert claim.is_claimed
    return run_id


def look(instance: dg.DagsterInstance) -> str:
    """One tick; what it tells."""
    with dg.build_sensor_context(instance=instance) as context:
        return str(dead_run_sensor(context).skip_message)


def in_pool(instance: dg.DagsterInstance) -> set[str]:
    """The runs that have places in the pool."""
    return {
        slot.run_id for slot in instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
    }


def messages(instance: dg.DagsterInstance, run_id: str) -> list[str | None]:
    """What Dagster's events of a run say."""
    events = (entry.dagster_event for entry in instance.all_logs(run_id))
    return [event.message for event in events if event]


@pytest.mark.slow
@pytest.mark.parametrize(("status", "then"), [(STARTED, FAILURE), (CANCELING, CANCELED)])
def test_a_run_is_ended_and_its_place_is_free_once_its_process_was_killed(instance, status, then):
    run_id = run_of(instance, status)
    with worker_of(run_id, instance) as process:
        assert look(instance) == "no run has lost its process"
        assert instance.get_run_by_id(run_id).status == status
        assert in_pool(instance) == {run_id}
        process.kill()
    assert run_id in look(instance)
    assert instance.get_run_by_id(run_id).status == then
    assert GONE in messages(instance, run_id)
    assert in_pool(instance) == set()
    assert look(instance) == "no run has lost its process"


def test_a_run_that_ended_keeps_its_place_while_its_process_lives(instance):
    run_id = run_of(instance, STARTED)
    with worker_of(run_id, instance) as process:
        instance.report_run_failed(instance.get_run_by_id(run_id), "by hand")
        look(instance)
        assert in_pool(instance) == {run_id}
        process.kill()
    look(instance)
    assert in_pool(instance) == set()
    assert GONE not in messages(instance, run_id)
    assert not list(workers._folder(instance).iterdir())


def test_a_run_that_is_none_of_ours_is_left_alone(instance):
    run_id = run_of(instance, STARTED)
    look(instance)
    assert instance.get_run_by_id(run_id).status == STARTED
    assert in_pool(instance) == {run_id}


@pytest.mark.parametrize("where", ["another machine\nanother start", "", "\n"])
def test_a_lock_of_another_machine_or_not_yet_taken_says_nothing(instance, where):
    run_id = run_of(instance, STARTED)
    folder = workers._folder(instance)
    folder.mkdir()
    (folder / run_id).write_text(where)
    look(instance)
    assert instance.get_run_by_id(run_id).status == STARTED
    assert (folder / run_id).exists()


def test_a_lock_of_this_machine_before_it_was_started_anew_counts(instance):
    run_id = run_of(instance, STARTED)
    folder = workers._folder(instance)
    folder.mkdir()
    name, _ = workers._here()
    (folder / run_id).write_text(f"{name}\nan earlier start")
    look(instance)
    assert instance.get_run_by_id(run_id).status == FAILURE


def _nothing() -> dg.JobDefinition:
    @dg.op
    def tick(context: dg.OpExecutionContext) -> None:
        # The run looks at itself, from the process that works on it.
        context.log.info(look(context.instance))

    @dg.job(executor_def=watched(dg.in_process_executor))
    def looks_at_itself():
        tick()

    return looks_at_itself


def test_the_process_of_a_run_holds_its_lock_until_it_ends(instance):
    with dg.execute_job(dg.reconstructable(_nothing), instance) as result:
        assert result.success
    [lock] = workers._folder(instance).iterdir()
    assert lock.name == result.run_id
    look(instance)
    assert lock.exists()
    os.close(workers._held.pop(lock))
    look(instance)
    assert not lock.exists()


def test_where_no_lock_can_be_taken_the_run_goes_on(instance):
    workers._folder(instance).write_text("in the way")
    with dg.execute_job(dg.reconstructable(_nothing), instance) as result:
        assert result.success
    logged = " ".join(entry.user_message for entry in instance.all_logs(result.run_id))
    assert "nobody will notice if this run is killed" in logged


def test_a_lock_is_taken_once(instance):
    hold(instance, "a run")
    hold(instance, "a run")
    os.close(workers._held.pop(workers._folder(instance) / "a run"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kind", "target"), [("daemon", "worker"), ("daemon", "group"), ("run", "group")]
)
def test_a_killed_run_fails_is_tried_again_and_frees_its_pool(tmp_path, kind, target):
    (tmp_path / "prepared").mkdir()
    undisturbed = kills.Undisturbed(kills.prepare(tmp_path / "prepared"), tmp_path)
    project = undisturbed.copy(tmp_path / "project", "daemon")
    with kills.Listener(hold_at=20) as listener:
        if kind == "daemon":
            project.run_command(listener, *kills.LAUNCH)
        with project.started(listener, *kills.COMMANDS[kind]) as process:
            assert listener.held.wait(kills.PATIENCE)
            members = kills.family(process.pid)
            for pid in [listener.pid] if target == "worker" else members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if target == "group":
                listener.go_on.set()
                assert kills._wait_until(lambda: not kills.still_there(members))
    with kills._instance(project.folder) as instance:
        [killed] = instance.get_runs()
    # A run that was executed by hand has no code location in which Dagster could try it again.
    expected = [SUCCESS, FAILURE] if kind == "daemon" else [FAILURE]

    def statuses() -> list[dg.DagsterRunStatus]:
        with kills._instance(project.folder) as instance:
            return [run.status for run in instance.get_runs()]

    # Seldom, since looking has a price: where Dagster finds its database locked for long, it gives
    # up trying the run again.
    with kills.Listener() as listener, project.started(listener, *kills.DAEMON):
        as_expected = kills._wait_until(lambda: statuses() == expected, every=1.0)
        log = [line for line in project.log().splitlines() if "skipped" not in line]
        assert as_expected, (statuses(), log)
        assert kills._wait_until(lambda: not _claimed(project.folder), every=1.0)
    with kills._instance(project.folder) as instance:
        [run, *_] = instance.get_runs()
        assert run.parent_run_id == (killed.run_id if kind == "daemon" else None)
        if target == "group":  # else it is the code server that tells of it, in its own words
            assert GONE in messages(instance, killed.run_id)
    if kind == "daemon":
        assert kills.results(project) == undisturbed.results


def _claimed(home: Path) -> set[str]:
    with kills._instance(home) as instance:
        storage = instance.event_log_storage
        return {
            slot.run_id
            for pool in storage.get_concurrency_keys()
            for slot in storage.get_concurrency_info(pool).claimed_slots
        }
