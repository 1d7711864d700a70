"""Looking at many sources, so that one that hangs costs itself only.

Here: looks in threads, and whose turn it is. Not here: what a look is (`manifest.py`), where its
result is kept, Dagster's sensors.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.settings.secrets import guard_logs, redacted, without_secrets
from visdiv_assets.sources.manifest import look
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.reaching import brief

LIMIT_SECONDS = 600.0

# Between two looks at one source: less than the 15 seconds between two ticks of a sensor, as a look
# that ended late in one tick would miss the next.
INTERVAL_SECONDS = 10.0
BACKOFF_SECONDS = 15.0  # after the first failure
MAX_BACKOFF_SECONDS = 900.0
REST = 10  # times as long as a look took, so that it keeps the machine busy a tenth of the time

MAX_TOLD_CHARACTERS = 1000

_log = logging.getLogger(__name__)


def look_at(dataset: str, source: SourceSettings) -> str:
    """The fingerprint that a manifest of a source would have now; what `Looker` calls by default.

    Raises:
        VisdivError: the source cannot be opened or listed, or takes longer than LIMIT_SECONDS.
    """
    return look(open_source(source), within_seconds=LIMIT_SECONDS)


@dataclass(frozen=True)
class Look:
    """What one look at a source has found.

    Attributes:
        dataset: the dataset's name.
        source: what was looked at; the dataset may have another source by now.
        fingerprint: of the manifest that it would have; None if the look failed.
        error: why it failed, without secrets; None if it did not.
        seconds: how long it took.
    """

    dataset: str
    source: SourceSettings = field(repr=False)
    fingerprint: str | None
    error: str | None
    seconds: float


@dataclass(eq=False)
class _Begun:
    """A look whose thread has not ended; `told` once its result counts, or none does any more."""

    dataset: str
    source: SourceSettings
    began: float
    told: bool = False


class Looker:
    """Looks at sources in threads, so that one that hangs costs only itself.

    A thread that hangs in a system call can't be ended. It is left alone, its place is given to
    another look, and its dataset is not looked at again until it has ended by itself. Threads
    don't keep the process from ending. All methods may be called from any thread.

    Args:
        look: gives the fingerprint of a dataset's source, or raises.
        on_result: is called once for each look, in the look's thread; if the look takes longer
            than `limit`, in the thread that waits. What it raises is logged.
        at_once: how many looks run at a time, those that hang aside. Half of them at most are at
            datasets whose last look has hung, so that these can't keep all others waiting.
        patience: seconds after which a look counts as one that hangs.
        limit: seconds after which a look has failed, whether or not it ever ends.
        most_overdue: no more threads than this, those that hang included.
        clock: gives seconds.

    Example:
        >>> looker = Looker(lambda name, source: source.uri, lambda look: print(look.fingerprint))
        >>> looker.start([("birds", SourceSettings(uri="/data/birds"))])
        >>> looker.wait(60)
        /data/birds
    """

    def __init__(
        self,
        look: Callable[[str, SourceSettings], str],
        on_result: Callable[[Look], None],
        *,
        at_once: int = 8,
        patience: float = 5.0,
        limit: float = LIMIT_SECONDS,
        most_overdue: int = 200,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._on_result, self._clock = look, on_result, clock
        self._at_once, self._most = at_once, most_overdue
        self._patience, self._limit = patience, limit
        self._changed = threading.Condition()
        self._queue: dict[str, SourceSettings] = {}
        self._current: dict[str, _Begun] = {}
        self._threads: set[_Begun] = set()
        self._hung: set[str] = set()  # datasets whose last look took longer than patience
        guard_logs()

    def start(self, sources: Iterable[tuple[str, SourceSettings]]) -> None:
        """Look at these, in this order, as places become free; what still queues is forgotten.

        A dataset whose look is under way is left out, unless its source is another one now: then
        the look at the old one counts no more.
        """
        with self._changed:
            self._queue.clear()
            for dataset, source in sources:
                current = self._current.get(dataset)
                if current is not None and current.source == source:
                    continue
                if current is not None:
                    current.told = True
                    del self._current[dataset]
                    self._hung.discard(dataset)
                self._queue[dataset] = source
            self._begin()

    def wait(self, seconds: float) -> None:
        """Return when all looks have ended but those that hang, or when the time is over.

        Those that have not begun by then are forgotten: whoever starts looks decides anew which
        come first.
        """
        end = self._clock() + seconds
        while True:
            self._tell_what_takes_too_long()
            with self._changed:
                self._begin()
                now = self._clock()
                young = [now - each.began for each in self._threads if self._is_young(each, now)]
                if now >= end or not (young or self._queue):
                    self._queue.clear()
                    return
                # Woken by looks that end; those that begin to hang wake nobody.
                ages = [self._patience - age for age in young]
                self._changed.wait(max(0.001, min([end - now, *ages])))

    def under_way(self) -> dict[str, float]:
        """The datasets that are being looked at, and for how many seconds."""
        with self._changed:
            now = self._clock()
            return {dataset: now - each.began for dataset, each in self._current.items()}

    def _is_young(self, begun: _Begun, now: float) -> bool:
        return now - begun.began < self._patience

    def _begin(self) -> None:
        """Give the free places to those that have waited longest; the lock is held."""
        now = self._clock()
        young = [each for each in self._threads if self._is_young(each, now)]
        places = self._at_once - len(young)
        doubtful = max(1, self._at_once // 2) - sum(each.dataset in self._hung for each in young)
        for dataset, source in list(self._queue.items()):
            if places <= 0 or len(self._threads) >= self._most:
                return
            if dataset in self._hung and doubtful <= 0:
                continue
            begun = _Begun(dataset, source, now)
            thread = threading.Thread(
                target=self._run, args=(begun,), name=f"look at {dataset}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads or memory to give
                _log.warning("no look could begin: %s", error)
                return
            del self._queue[dataset]
            self._current[dataset] = begun
            self._threads.add(begun)
            places -= 1
            doubtful -= dataset in self._hung

    def _run(self, begun: _Begun) -> None:
        try:
            fingerprint = error = None
            try:
                fingerprint = self._look(begun.dataset, begun.source)
            except BaseException as raised:  # noqa: BLE001  a thread that dies tells nobody
                error = _told(raised)
            self._tell(begun, fingerprint, error)
        finally:
            with self._changed:
                self._threads.discard(begun)
                if self._current.get(begun.dataset) is begun:
                    del self._current[begun.dataset]
                    hung = not self._is_young(begun, self._clock())
                    (self._hung.add if hung else self._hung.discard)(begun.dataset)
                self._begin()
                self._changed.notify_all()

    def _tell(self, begun: _Begun, fingerprint: str | None, error: str | None) -> None:
        with self._changed:
            if begun.told:
                return
            begun.told = True
            seconds = self._clock() - begun.began
        try:
            self._on_result(Look(begun.dataset, begun.source, fingerprint, error, seconds))
        except Exception:  # noqa: BLE001  it is logged, and the thread still has to tidy up
            _log.exception("the result of looking at %s was lost", begun.dataset)

    def _tell_what_takes_too_long(self) -> None:
        with self._changed:
            now = self._clock()
            late = [each for each in self._current.values() if now - each.began > self._limit]
        minutes = self._limit / 60
        for each in late:
            shown = redacted(without_secrets(each.source.uri))
            self._tell(each, None, f"looking at {shown} took longer than {minutes:g} minutes")


def _told(error: BaseException) -> str:
    """One line about whatever a look has raised."""
    if not isinstance(error, VisdivError):
        _log.warning("a look failed with an error of its own", exc_info=error)
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  errors of libraries may be unable to say what they are
        text = ""
    if not isinstance(error, VisdivError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return brief(text, shown=MAX_TOLD_CHARACTERS)


@dataclass(frozen=True)
class LastLook:
    """When a dataset's source was last looked at, and how that went.

    Attributes:
        ended: Unix time.
        seconds: how long it took.
        failures: how many looks in a row have failed, up to this one.
    """

    ended: float
    seconds: float = 0.0
    failures: int = 0


def due(
    now: float,
    looks: Mapping[str, LastLook],
    names: Iterable[str],
    interval: float = INTERVAL_SECONDS,
) -> list[str]:
    """The datasets whose turn it is, those first that were unseen for longest.

    Args:
        now: Unix time.
        looks: the last look at each; without one, it was never looked at.
        names: the datasets that are watched.
        interval: seconds between two looks at a source that costs nothing and never fails.

    Example:
        >>> looks = {"birds": LastLook(100), "cats": LastLook(90), "far": LastLook(80, failures=5)}
        >>> due(110, looks, ["birds", "cats", "dogs", "far"])
        ['dogs', 'cats', 'birds']
    """
    unseen = []
    for name in set(names):
        last = looks.get(name)
        if last is None:
            unseen.append((float("-inf"), name))
        # A time in the future, after the clock was set back, is not waited for; nor is a NaN.
        elif not last.ended <= now < last.ended + rest(last, interval):
            unseen.append((last.ended if last.ended <= now else float("-inf"), name))
    return [name for _, name in sorted(unseen)]


def rest(last: LastLook, interval: float = INTERVAL_SECONDS) -> float:
    """Seconds between the end of a look and the next one at the same source.

    A look that took long is repeated later, so that expensive listings don't keep the machine
    busy. After failures the time doubles, up to 15 minutes.

    Example:
        >>> [rest(LastLook(0, failures=n)) for n in (0, 1, 2, 3, 20)]
        [10.0, 15.0, 30.0, 60.0, 900.0]
        >>> rest(LastLook(0, seconds=20.0))
        200.0
    """
    took = min(max(last.seconds, 0.0), LIMIT_SECONDS)  # the clock may have been set meanwhile
    if last.failures <= 0:
        return max(interval, REST * took)
    backoff = BACKOFF_SECONDS * 2.0 ** min(last.failures - 1, 10)
    return max(interval, min(max(backoff, REST * took), MAX_BACKOFF_SECONDS))
