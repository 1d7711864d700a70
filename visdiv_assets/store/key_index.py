"""Finding content keys in the segments of a model.

Here: which runs there are, keeping them up to date, searching all of them.
Not here: the format of a run (`runs.py`), reading the keys of segments (`store.py`).
"""

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.store.index import KEY_BYTES, Keys
from visdiv_assets.store.objects import Objects
from visdiv_assets.store.runs import (
    DamagedRunError,
    Entries,
    Halves,
    Places,
    Run,
    entries_of,
    halves,
    merged,
    write_run,
)

logger = logging.getLogger(__name__)

# The folder of the runs, beside the segments. Hidden names are no segments.
RUNS_FOLDER = ".keys"
# Segments whose keys are in memory at a time: a million keys, about 80 MiB with sorting.
READ_AT_ONCE = 256
# Runs that have fewer entries together than this are always merged: 1.5 MiB, some 20 ms.
FEW = 65_536
# Runs that are found damaged one after another before it counts as an error.
TRIES = 4


class KeyIndex:
    """Maps content keys to rows in the segments of one model. Threads may share it.

    Attributes:
        segments: names of the segments, sorted. They are those of the time when it was opened.
    """

    def __init__(
        self,
        segments: Sequence[str],
        runs: Sequence[Run],
        repair: Callable[[DamagedRunError], Sequence[Run]] | None = None,
    ) -> None:
        self.segments = tuple(segments)
        self._number = {name: at for at, name in enumerate(self.segments)}
        self._repair = repair
        self._lock = threading.Lock()
        self._runs = self._placed(runs)

    @classmethod
    def of(
        cls,
        segments: Sequence[str],
        keys: Keys,
        segment: NDArray[np.int64],
        row: NDArray[np.int64],
    ) -> "KeyIndex":
        """An index in memory, of keys whose places are known; takes 24 bytes per key.

        Args:
            segments: names; if two rows have the same key, the one in the first of them is found.
            keys: content keys.
            segment: for each key, the position of its segment in `segments`.
            row: for each key, its row.
        """
        runs = [Run.of(segments, entries_of(keys, segment, row))] if len(keys) else []
        return cls(segments, runs)

    def __len__(self) -> int:
        sizes = {
            name: int(size)
            for run, position in self._runs
            for name, size, at in zip(run.segments, run.sizes, position, strict=True)
            if at >= 0
        }
        return sum(sizes.values())

    def __contains__(self, key: bytes) -> bool:
        if not self._runs:
            return False
        return bool(self.find(np.array([key], dtype=f"S{KEY_BYTES}"))[0][0] >= 0)

    def find(self, keys: Keys) -> Places:
        """For each key, the position of its segment in `segments` and its row; -1 if unknown.

        If two rows have the same key, it is the one in the first segment.

        Raises:
            DamagedRunError: what was repaired was damaged again at once.
        """
        heads, tails = halves(keys)
        order = np.argsort(heads, kind="stable")
        asked = heads[order], tails[order]
        for _ in range(TRIES):
            runs = self._runs
            try:
                best, rows = self._search(asked, runs)
                break
            except DamagedRunError as error:
                damage = error
                if self._repair is None:
                    raise
                with self._lock:
                    if self._runs is runs:  # no other thread was faster
                        self._runs = self._placed(self._repair(error))
        else:
            raise damage
        segment, row = np.empty_like(best), np.empty_like(rows)
        segment[order], row[order] = best, rows
        return segment, row

    def leave_out(self, segments: Iterable[str]) -> None:
        """Find nothing in these segments any more."""
        with self._lock:
            for name in segments:
                self._number.pop(name, None)
            self._runs = self._placed([run for run, _ in self._runs])

    def _placed(self, runs: Iterable[Run]) -> list[tuple[Run, NDArray[np.int32]]]:
        """Each run, and for each of its segments the position in `segments`."""
        return [
            (run, np.array([self._number.get(name, -1) for name in run.segments], dtype=np.int32))
            for run in runs
        ]

    @staticmethod
    def _search(
        keys: Halves,
        runs: Iterable[tuple[Run, NDArray[np.int32]]],
    ) -> Places:
        best, rows = _nowhere(len(keys[0]))
        for run, position in runs:
            segment, row = run.find(keys, position)
            better = (segment >= 0) & ((best < 0) | (segment < best))
            best[better], rows[better] = segment[better], row[better]
        return best, rows


def _nowhere(count: int) -> Places:
    return np.full(count, -1, dtype=np.int32), np.full(count, -1, dtype=np.int32)


class RunFolder:
    """The runs of a model. Several processes may share the folder, and it may be read-only.

    A run is never changed. Segments that are in none are read, and become a new run. A run that is
    no larger than all smaller ones together is merged with them. So there are about as many runs as
    doublings of FEW entries, and each entry is written as often.
    """

    def __init__(
        self,
        objects: Objects,
        folder: str,
        names: Callable[[], list[str]],
        keys_of: Callable[[str], Keys | None],
    ) -> None:
        """Take what the model has; nothing is read yet.

        Args:
            objects: where the store is.
            folder: of it, where the runs are; need not exist.
            names: the segments that there are, sorted.
            keys_of: the content keys of a segment in order of rows; None if it cannot be used.
        """
        self._objects, self._folder = objects, folder
        self._names, self._keys_of = names, keys_of
        self._listed: list[str] = []
        self._unusable: set[str] = set()  # damaged, and cannot be removed

    def index(self) -> KeyIndex:
        """An index of all segments that can be used, and the runs brought up to date."""
        runs = self._up_to_date()
        known = {name for run in runs for name in run.segments}
        names = [name for name in self._listed if name in known]  # without those that are damaged
        return KeyIndex(names, runs, self._repaired)

    def _repaired(self, error: DamagedRunError) -> list[Run]:
        self._remove_damaged(error)
        return self._up_to_date()

    def _up_to_date(self) -> list[Run]:
        for _ in range(TRIES):
            # Before the segments are listed: a run is written after its segments are.
            runs = self._opened()
            self._listed = self._names()
            try:
                return self._merged(self._complete(self._needed(runs)))
            except DamagedRunError as error:
                self._remove_damaged(error)
            except FileNotFoundError:  # merged by another process
                continue
        return self._complete([])

    def _opened(self) -> list[Run]:
        runs = []
        for name in sorted(file.name for file in self._objects.files(self._folder)):
            if name in self._unusable or not is_run(name):
                continue
            try:
                runs.append(Run.open(self._objects, name))
            except DamagedRunError as error:
                self._remove_damaged(error)
            except OSError as error:  # another process has merged it, or we may not read it
                logger.debug("%s is not used: %s", self._objects.shown(name), error)
        return runs

    def _needed(self, runs: list[Run]) -> list[Run]:
        """The runs without those whose segments are gone, or all in larger ones."""
        there, needed = set(self._listed), []
        for run in sorted(runs, key=len, reverse=True):
            own = there.intersection(run.segments)
            if own:
                needed.append(run)
                there -= own
            else:
                self._remove(run)
        return needed

    def _complete(self, runs: list[Run]) -> list[Run]:
        """The runs, and new ones of the segments that are in none of them."""
        known = {name for run in runs for name in run.segments}
        missing = (name for name in self._listed if name not in known)
        for keys in _in_batches((name, self._keys_of(name)) for name in missing):
            names = list(keys)
            sizes = [len(each) for each in keys.values()]
            entries = entries_of(
                np.concatenate(list(keys.values())),
                np.repeat(np.arange(len(names)), sizes),
                np.concatenate([np.arange(size) for size in sizes]),
            )
            runs = [*runs, self._written(names, [entries]) or Run.of(names, entries)]
        return runs

    def _merged(self, runs: list[Run]) -> list[Run]:
        """The runs, with those merged that are small beside the sum of all smaller ones."""
        ordered = sorted(runs, key=len)
        smaller = list(itertools.accumulate(map(len, ordered), initial=0))
        alike = [
            n
            for n in range(1, len(ordered))
            if len(ordered[n]) <= smaller[n] or smaller[n + 1] <= FEW
        ]
        # In memory are those that could not be written.
        if not alike or any(run.name is None for run in runs):
            return runs
        small, large = ordered[: alike[-1] + 1], ordered[alike[-1] + 1 :]
        segments, parts = merged(small, set(self._listed))
        whole = self._written(segments, parts)
        if whole is None:
            return runs
        for run in small:
            if run.name != whole.name:
                self._remove(run)
        return [*large, whole]

    def _written(self, segments: Sequence[str], parts: Iterable[Entries]) -> Run | None:
        """A new run on disk; None if it cannot be written there."""
        try:
            name = write_run(self._objects, self._folder, segments, parts)
        except DamagedRunError:
            raise
        except (OSError, VisdivError) as error:  # read-only, or full: runs only save time
            logger.debug("no run is kept in %s: %s", self._objects.shown(self._folder), error)
            return None
        return Run.open(self._objects, name)

    def _remove(self, run: Run) -> None:
        if run.name is not None:
            with contextlib.suppress(OSError, VisdivError):  # read-only, or somebody was faster
                self._objects.delete(run.name)

    def _remove_damaged(self, error: DamagedRunError) -> None:
        logger.warning("%s", error)
        try:
            self._objects.delete(error.name)
        except FileNotFoundError:
            pass
        except (OSError, VisdivError):
            self._unusable.add(error.name)


def is_run(name: str) -> bool:
    """Whether a file beside the runs is one of them."""
    last = name.rpartition("/")[2]
    return last.endswith(".run") and not last.startswith(".")


def _in_batches(keys: Iterator[tuple[str, Keys | None]]) -> Iterator[dict[str, Keys]]:
    """The keys of segments that can be used, by name, READ_AT_ONCE at a time."""
    usable = ((name, each) for name, each in keys if each is not None)
    while batch := dict(itertools.islice(usable, READ_AT_ONCE)):
        yield batch
