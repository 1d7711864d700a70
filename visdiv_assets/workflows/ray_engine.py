"""Units of work on Ray: actors that embed, on this machine or on a cluster.

Here: starting and watching actors. Not here: who gets which unit (`hand_out.py`), embedding one
(`plan.py`).

Actors get numbers of units and tell how far they are; images and vectors never go through Ray.
"""

import contextlib
import importlib.util
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.pipeline import OnProgress
from visdiv_assets.embedding.work import unit_images
from visdiv_assets.errors import PlanGone, Unreachable, UnreadableUnit, VisdivError, counted
from visdiv_assets.settings.model import RayEngine
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.store.plans import Plan, done_units
from visdiv_assets.workflows.engine import Job, Work, Worker
from visdiv_assets.workflows.hand_out import HandOut
from visdiv_assets.workflows.plan import embed_units

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
CONNECT_SECONDS, PROBE_SECONDS = 10.0, 60.0
# Connects to a cluster, and says why that is not possible.
PROBE = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
except Exception as error:
    sys.exit(print(error) or 1)
"""
# Names of sockets have 107 characters at most, and Ray's own part of them has about 65.
LONGEST_FOLDER = 25
# Of a local Ray. Nothing goes through it, but Ray wants to have it.
OBJECT_STORE_BYTES = 80 * 2**20
UNITS_NAMED, REASONS_TOLD = 5, 3


class Ray:
    """The engine `ray`.

    Args:
        settings: how many workers, of which size, where.
        job: what each of them opens.

    Raises:
        VisdivError: Ray is not installed.
    """

    def __init__(self, settings: RayEngine, job: Job) -> None:
        if importlib.util.find_spec("ray") is None:
            raise VisdivError(
                "the engine ray needs Ray: pip install 'visdiv_assets[ray]', or set engine to local"
            )
        self._settings, self._job = settings, job

    @cached_property
    def _size(self) -> "_Size":
        """How many workers, and what each has; as set, or as this machine is."""
        needs, here = self._settings, gpus_here()
        gpus = float(here > 0) if needs.gpus is None else needs.gpus
        there_is_room = here / gpus if gpus and here else usable_cpus() / needs.cpus
        return _Size(needs.workers or max(1, int(there_is_room)), needs.cpus, gpus)

    def unit_images(self, n_left: int) -> int:
        """So many that each worker gets several units, and none is tiny."""
        return self._settings.unit_images or unit_images(n_left, self._size.workers)

    def __call__(self, plan: Plan, on_progress: OnProgress | None) -> Work:
        """As `Engine` says; actors that die or hang are replaced."""
        there = done_units(self._job.store(), plan)
        left = [number for number in range(len(plan.units)) if number not in there]
        size = replace(self._size, workers=min(self._size.workers, max(len(left), 1)))
        with _connected(self._settings, size):
            crew = _Crew(self._settings, size, self._job, plan, left)
            try:
                return crew.work(on_progress)
            finally:
                crew.dismiss()


def gpus_here() -> int:
    """How many GPUs PyTorch can use here; it is not imported where there is none."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count()


@dataclass(frozen=True)
class _Size:
    """How many workers, and how many CPUs and GPUs each has."""

    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


@dataclass
class _Seat:
    """A worker's place: its actor, and what is known of it."""

    number: int
    actor: Any = None
    name: str = ""
    is_ready: bool = False
    waits_for: Any = None  # to be ready, or to have done its unit
    asked: Any = None  # how far it is
    unit: int | None = None
    said: tuple[int, int, str] = (0, 0, "starting")
    changed_at: float = 0.0
    began_at: float = 0.0
    done: dict[str, Worker] = field(default_factory=dict)  # by name


class _Crew:
    """Actors at work on a plan."""

    def __init__(
        self, settings: RayEngine, size: _Size, job: Job, plan: Plan, left: list[int]
    ) -> None:
        import ray

        self._ray: Any = ray
        self._settings, self._size, self._job, self._plan = settings, size, job, plan
        self._queue = HandOut(left, size.workers)
        self._seats = [_Seat(number) for number in range(size.workers)]
        self._left, self._committed, self._embedded = left, 0, 0
        self._kinds: dict[int, type[VisdivError]] = {}  # of the last failure, by unit
        self._is_needless, self._why_none_starts = False, ""
        self._through = 0
        self._total = sum(plan.sizes[number] for number in left)
        self._any_ready_at = time.monotonic()

    def work(self, on_progress: OnProgress | None) -> Work:
        """Until all units are committed, or given up."""
        while not self._queue.is_over and not self._is_needless:
            self._hand_out()
            waiting = [seat.waits_for for seat in self._seats if seat.waits_for is not None]
            if not waiting:
                time.sleep(POLL_SECONDS)
                continue
            ready, _ = self._ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
            for seat in self._seats:
                if seat.waits_for is not None and seat.waits_for in ready:
                    self._heard(seat)
            self._look()
            if on_progress is not None:
                self._tell(on_progress)
        self._judge()
        return Work(
            self._committed,
            self._queue.retries,
            self._embedded,
            tuple(worker for seat in self._seats for worker in seat.done.values()),
        )

    def dismiss(self) -> None:
        """End all actors, at once; what they have committed is in the store."""
        for seat in self._seats:
            self._end(seat)

    def _hand_out(self) -> None:
        """Give what waits to workers that have nothing to do; start those that are missing."""
        for seat in self._seats:
            if self._queue.is_dismissed(seat.number):
                self._end(seat)
                continue
            if seat.actor is None:
                self._start(seat)
            if not seat.is_ready or seat.unit is not None:
                continue
            seat.unit = self._queue.next(seat.number)
            if seat.unit is not None:
                seat.began_at = seat.changed_at = time.monotonic()
                seat.said = (0, 0, "starting")
                seat.waits_for = seat.actor.embed.remote(seat.unit)

    def _start(self, seat: _Seat) -> None:
        worker = self._ray.remote(_Worker).options(
            num_cpus=self._size.cpus,
            num_gpus=self._size.gpus,
            max_restarts=0,  # another one is started, and units are counted
            max_concurrency=2,  # to embed, and to say how far that is
        )
        seat.actor = worker.remote(self._job, self._plan, self._size.cpus)
        seat.is_ready, seat.waits_for = False, seat.actor.name.remote()

    def _end(self, seat: _Seat) -> None:
        if seat.actor is not None:
            with contextlib.suppress(Exception):  # it may have ended
                self._ray.kill(seat.actor, no_restart=True)
        seat.actor = seat.waits_for = seat.asked = None
        seat.is_ready = False

    def _heard(self, seat: _Seat) -> None:
        """An actor is ready, has done its unit, or has ended."""
        try:
            told = self._ray.get(seat.waits_for)
        except self._ray.exceptions.RayError as error:
            self._lost(seat, _why_it_ended(error))
            return
        seat.waits_for = None
        if seat.unit is None:
            seat.name, seat.is_ready = told, True
            return
        number, seat.unit = seat.unit, None
        done, problem, kind = told
        if kind is PlanGone:
            self._is_needless = True
        if problem:
            self._queue.failed(seat.number, problem, by_worker=kind is not UnreadableUnit)
            self._kinds[number] = kind
            logger.warning("%s: unit %d: %s", seat.name, number + 1, problem)
            return
        self._queue.done(seat.number)
        self._committed += 1
        self._embedded += done
        self._through += self._plan.sizes[number]
        so_far = seat.done.get(seat.name, Worker(seat.name, 0, 0, 0.0))
        seat.done[seat.name] = Worker(
            seat.name,
            so_far.units + 1,
            so_far.images + self._plan.sizes[number],
            so_far.seconds + time.monotonic() - seat.began_at,
        )

    def _lost(self, seat: _Seat, why: str) -> None:
        """An actor is gone; what it had in hand is for another."""
        name = seat.name or "a worker"
        if seat.unit is not None:
            logger.warning("%s: unit %d: %s", name, seat.unit + 1, why)
            self._queue.failed(seat.number, why)
            self._kinds[seat.unit] = VisdivError
            seat.unit = None
        elif not seat.is_ready:
            logger.warning("a worker cannot start on Ray: %s", why)
            self._queue.did_not_start(seat.number)
            self._why_none_starts = f"a worker cannot start on Ray: {why}"
        self._end(seat)

    def _look(self) -> None:
        """Ask those at work how far they are; give up those that say the same for too long."""
        now, patience = time.monotonic(), self._settings.stall_seconds
        if any(seat.is_ready for seat in self._seats):
            self._any_ready_at = now
        elif now - self._any_ready_at > self._settings.start_seconds:
            raise VisdivError(
                f"no worker has started within {self._settings.start_seconds:g} s; each needs "
                f"{self._size}, and Ray has {_resources(self._ray.cluster_resources())}"
            )
        for seat in self._seats:
            if seat.unit is None or seat.actor is None:
                continue
            if seat.asked is not None:
                there, _ = self._ray.wait([seat.asked], timeout=0)
                if there:
                    with contextlib.suppress(self._ray.exceptions.RayError):  # heard elsewhere
                        said = self._ray.get(seat.asked)
                        if said != seat.said:
                            seat.said, seat.changed_at = said, now
                    seat.asked = None
            if seat.asked is None:
                seat.asked = seat.actor.progress.remote()
            if now - seat.changed_at > patience:
                self._lost(seat, f"it has made no progress for {patience:g} s, so it was ended")

    def _tell(self, on_progress: OnProgress) -> None:
        at_work = [seat.said for seat in self._seats if seat.unit is not None]
        through = self._through + sum(done for done, _, _ in at_work)
        new = self._embedded + sum(embedded for _, embedded, _ in at_work)
        on_progress(
            min(through, self._total), self._total, new, at_work[0][2] if at_work else "starting"
        )

    def _judge(self) -> None:
        """Raise what went wrong, if the run cannot go on without it."""
        if self._is_needless:
            logger.warning("another evaluation of %s was faster", self._plan.dataset)
            return
        failures = {
            number: reason
            for number, reason in self._queue.failures.items()
            if self._kinds.get(number) is not UnreadableUnit
        }
        if left := len(self._queue.failures) - len(failures):
            logger.warning(
                "no worker can read any image of %s, so this process tries", counted(left, "unit")
            )
        if failures:
            out_of_reach = Unreachable in {self._kinds.get(number) for number in failures}
            raise (Unreachable if out_of_reach else VisdivError)(self._what_failed(failures))

    def _what_failed(self, failures: Mapping[int, str]) -> str:
        by_reason: dict[str, list[int]] = {}
        for number, reason in failures.items():
            by_reason.setdefault(reason or self._why_none_starts, []).append(number + 1)
        untried = by_reason.pop("", [])
        told = [f"{_units(numbers)}: {reason}" for reason, numbers in by_reason.items()]
        told += [f"{_units(untried)} not tried"] if untried else []
        kept = "; the others are kept, and the next try goes on from there"
        return redacted(
            f"{len(failures):,} of {counted(len(self._left), 'unit')} could not be embedded "
            f"({'; '.join(told[:REASONS_TOLD])}){kept if self._committed else ''}"
        )


# Of failures, as far as they are not alike.
KINDS = (PlanGone, UnreadableUnit, Unreachable)


def _units(numbers: list[int]) -> str:
    """`unit 3`, or `units 1, 2, 3 and 7 more`."""
    more = f" and {len(numbers) - UNITS_NAMED:,} more" if len(numbers) > UNITS_NAMED else ""
    return f"unit{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:UNITS_NAMED]))}{more}"


class _Worker:
    """An actor: embeds units of a plan, one at a time."""

    def __init__(self, job: Job, plan: Plan, cpus: float) -> None:
        os.environ["VISDIV_CPUS"] = str(max(1, int(cpus)))
        self._job, self._plan = job, plan
        self._opened: tuple[Any, Any, Any] | None = None
        self._said = (0, 0, "starting")

    def name(self) -> str:
        """The machine and the process."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def progress(self) -> tuple[int, int, str]:
        """Images done, images that went through the model, and what it waits for."""
        return self._said

    def embed(self, number: int) -> tuple[int, str, type[VisdivError]]:
        """Embed a unit; the number of new images, what went wrong, if anything, and its kind."""
        self._said = (0, 0, "starting")

        def say(done: int, _: int, new: int, bottleneck: str) -> None:
            self._said = (done, new, bottleneck)

        try:
            if self._opened is None:
                self._opened = (self._job.source(), self._job.embedder(), self._job.store())
            source, embedder, store = self._opened
            done = embed_units(self._plan, [number], source, embedder, store, say)
        except (VisdivError, OSError, MemoryError) as error:
            self._opened = None  # the next try may find more
            kinds = (each for each in KINDS if isinstance(error, each))
            return 0, redacted(str(error) or type(error).__name__), next(kinds, VisdivError)
        return done.embedded, "", VisdivError


@contextlib.contextmanager
def _connected(settings: RayEngine, size: _Size) -> Iterator[None]:
    """A connection to a cluster, or a Ray of our own, which ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not settings.address:  # Ray's name for it is odd, but then it listens on loopback only
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():  # by the program around this one
        yield
        return
    if settings.address:
        _check_address(settings.address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Sockets are in this folder, and must not have long names.
    folder = tempfile.mkdtemp(prefix="visdiv-", dir=_short_folder())
    here: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(usable_cpus(), math.ceil(size.workers * size.cpus)),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": folder,
    }
    try:
        # Ray tells on stdout of workers that have died.
        with contextlib.redirect_stdout(sys.stderr), _own_signals() as take_back:
            _initialize(ray, {"address": settings.address} if settings.address else here)
            take_back()
            yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _initialize(ray: Any, options: dict[str, Any]) -> None:
    # Else workers would import what lies in the current folder.
    job = ray.job_config.JobConfig()
    job._client_job = True
    try:
        ray.init(
            **options,
            job_config=job,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except Exception as error:  # Ray's are of many kinds
        local = options["address"] == "local"
        where = "on this machine" if local else f"at {options['address']}"
        raise VisdivError(f"cannot use Ray {where}: {_in_one_sentence(error)}") from error


def _short_folder() -> str | None:
    """Where Ray may have its files; None is where all temporary files are."""
    short = Path("/tmp")  # noqa: S108
    is_long = len(tempfile.gettempdir()) > LONGEST_FOLDER
    return str(short) if is_long and short.is_dir() else None


def _check_address(address: str) -> None:
    """Whether a process can connect. Ray itself would try for minutes, and obey no signal."""
    host, _, port = address.rpartition(":")
    try:
        if host:  # not auto
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise VisdivError(f"there is no Ray cluster at {address} ({reason})") from error
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-I", "-c", PROBE, address],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise VisdivError(
            f"there is no Ray cluster at {address} (nothing that speaks its language answers "
            f"within {PROBE_SECONDS:g} s)"
        ) from None
    if done.returncode:
        told = _in_one_sentence(RuntimeError(done.stdout)) or "it says nothing"
        raise VisdivError(f"cannot use Ray at {address}: {told}")


@contextlib.contextmanager
def _own_signals() -> Iterator[Callable[[], None]]:
    """SIGTERM belongs to the command or to Dagster, though Ray takes it for itself as it starts.

    What its handler raises inside of Ray's code comes out as a KeyboardInterrupt, or while Ray
    starts, as a SystemExit. It is raised again as it was.

    Yields:
        what to call once Ray has started.
    """
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    if threading.current_thread() is not threading.main_thread():  # Ray takes nothing here
        yield lambda: None
        return
    raised: list[BaseException] = []

    def handle(number: int, frame: FrameType | None) -> None:
        assert callable(before)
        try:
            before(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    def take_back() -> None:
        signal.signal(signal.SIGTERM, handle if callable(before) else before)

    try:
        yield take_back
    except SystemExit:  # which Ray makes of it while it starts
        if callable(before):
            before(signal.SIGTERM, None)
        raise
    except KeyboardInterrupt:
        if raised:
            raise raised[-1] from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _why_it_ended(error: Exception) -> str:
    """Why an actor has ended, in a few words."""
    import ray

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "Ray ended its process, for the machine is out of memory"
    if isinstance(error, ray.exceptions.RayTaskError) or "creation task" in str(error):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return redacted(lines[-1])  # of a traceback
    return "its process was killed, perhaps for want of memory"


def _in_one_sentence(error: Exception) -> str:
    lines = [line.strip(" \t.") for line in str(error).splitlines()]
    return redacted("; ".join(filter(None, lines)) or type(error).__name__)


def _resources(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
