"""Runs whose process is gone: each run's process holds a lock, and a sensor looks for free ones.

A process that is killed, or a machine that is switched off, cannot tell Dagster that its run has
ended. The run would count as going on for ever, and keep its places in the pools. But the kernel
frees a lock whenever its process ends, in whatever way. A lock is known by nothing that could be
given again or set back, such as a process number or a clock.

Here: holding the locks, and ending runs whose lock is free. Not here: trying such runs again, which
Dagster does (`run_retries` in `dagster.yaml`).
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from visdiv_assets.defs.reporting import nothing_secret

GONE = (
    "The process that worked on this run is gone: it was killed, or the machine was switched off "
    "or out of memory. What was embedded is kept."
)

# Held to the end of the process: a run has not ended when its executor has.
_held: dict[Path, int] = {}


def watched(executor: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """The same executor; the process that orchestrates a run holds a lock from then on.

    Args:
        executor: any. Processes that it starts for single steps hold no lock of their own.

    Examples:
        >>> watched(dg.multiprocess_executor).name
        'multiprocess'
    """

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        make = executor.executor_creation_fn
        assert make is not None  # only executors of other languages have none
        return _Watched(make(context))

    return dg.ExecutorDefinition(
        name=executor.name,
        config_schema=executor.config_schema,  # type: ignore[arg-type]  # Dagster accepts its own
        requirements=executor.get_requirements,
        executor_creation_fn=create,
        description=executor.description,
    )


class _Watched(dg.Executor):
    """An executor that takes the lock of its run before it does anything else."""

    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self):  # type: ignore[no-untyped-def]  # of Dagster's own type
        return self._inner.retries

    @property
    def step_dependency_config(self):  # type: ignore[no-untyped-def]
        return self._inner.step_dependency_config

    def execute(self, plan_context, execution_plan):  # type: ignore[no-untyped-def]
        try:
            hold(plan_context.instance, plan_context.run_id)
        except OSError as error:  # a disk that is full or has no locks: the run goes on, unwatched
            plan_context.log.warning(f"nobody will notice if this run is killed: {error.strerror}")
        yield from self._inner.execute(plan_context, execution_plan)


def hold(instance: dg.DagsterInstance, run_id: str) -> None:
    """Tell by a lock that this process works on a run, to the end of the process.

    Raises:
        OSError: the file cannot be written or locked.
    """
    folder = _folder(instance)
    path = folder / run_id
    if path in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Written under the lock: where a file is empty, nobody has had its lock yet.
        os.write(file, "\n".join(_here()).encode())
        os.fsync(file)
        _sync(folder)  # so that a power cut leaves the file that tells of it
    except BaseException:
        os.close(file)
        raise
    _held[path] = file


@dg.sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
@nothing_secret()
def dead_run_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Ends runs whose process is gone, so that Dagster tries them again, and frees their places."""
    ended = [
        run_id
        for path in sorted(_folder(context.instance).glob("*"))
        if (run_id := _end_if_gone(context.instance, path))
    ]
    if not ended:
        return dg.SkipReason("no run has lost its process")
    context.log.warning(f"the process is gone of the runs {', '.join(ended)}")
    return dg.SkipReason(f"ended {len(ended)} runs whose process is gone: {', '.join(ended)}")


def _end_if_gone(instance: dg.DagsterInstance, path: Path) -> str | None:
    """The id of the run, if it had lost its process and was ended now.

    The lock is kept meanwhile, so that of two sensors only one does it.
    """
    with _if_free(path) as machine:
        if machine is None:
            return None
        # Read after the lock was found free: whatever the process had to say has been said.
        run = instance.get_run_by_id(path.name)
        lost = run if run and not run.is_finished else None
        if lost and not _is_here(machine):
            return None
        if lost and lost.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(lost, GONE)
        elif lost:
            instance.report_run_failed(lost, GONE)
        # Without this, Dagster would keep them for some minutes, and the next run would wait.
        instance.event_log_storage.free_concurrency_slots_for_run(path.name)
        path.unlink(missing_ok=True)
        return path.name if lost else None


@contextmanager
def _if_free(path: Path) -> Iterator[list[str] | None]:
    """What the file of a lock says, while it is locked; None if another process has the lock."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another sensor may have removed it since it was opened.
            is_it = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except OSError:
            yield None
            return
        yield file.read().decode().split("\n") if is_it else None


def _folder(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "workers"


def _here() -> tuple[str, str]:
    """This machine: its name, and which of its starts this is, where the system tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        boot = ""
    return socket.gethostname(), boot


def _is_here(machine: list[str]) -> bool:
    """Whether a lock was taken on this machine; not if it was never taken.

    On a file system that machines share, one need not see the other's locks. Containers of one
    machine have different names, and see each other's.
    """
    return any(theirs and theirs == ours for theirs, ours in zip(machine, _here(), strict=False))


def _sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
