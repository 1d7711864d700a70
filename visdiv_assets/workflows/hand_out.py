"""Which worker gets which unit of work, and what a failure means.

Here: decisions. Not here: workers (`ray_engine.py`), units (`plan.py`).
"""

from collections import deque
from collections.abc import Iterable, Mapping

# A unit is given up after so many failures, whoever had it. A worker that fails so often in a row
# gets no more: it may be on a machine without the model, and would fail all units in no time.
MOST_TRIES = 3


class HandOut:
    """Units of work that wait, are at work, or have failed.

    Args:
        units: their numbers, in the order in which to do them.
        workers: how many workers there are; they are numbered from 0 on.

    Example:
        >>> queue = HandOut([7, 8], workers=2)
        >>> queue.next(0), queue.next(1), queue.next(0)
        (7, 8, None)
        >>> queue.failed(0, "no model")
        >>> queue.done(1)
        >>> queue.next(1)
        7
        >>> queue.done(1)
        >>> queue.is_over, queue.failures
        (True, {})
    """

    def __init__(self, units: Iterable[int], workers: int) -> None:
        self._waiting = deque(units)
        self._at_work: dict[int, int] = {}  # unit by worker
        self._failures = dict.fromkeys(range(workers), 0)  # in a row, by worker
        self._tries: dict[int, int] = {}
        self._reasons: dict[int, str] = {}
        self._failed_last: dict[int, int] = {}  # worker by unit
        self.retries = 0

    def next(self, worker: int) -> int | None:
        """The unit that a worker is to do now; None if there is none for it.

        What it has failed itself is for others, as long as there are any.
        """
        if self.is_dismissed(worker):
            return None
        alone = sum(not self.is_dismissed(each) for each in self._failures) == 1
        mine = (unit for unit in self._waiting if alone or self._failed_last.get(unit) != worker)
        unit = next(mine, None)
        if unit is None:
            return None
        self._waiting.remove(unit)
        self._at_work[worker] = unit
        self.retries += unit in self._tries
        return unit

    def done(self, worker: int) -> None:
        """A worker has done its unit."""
        unit = self._at_work.pop(worker)
        self._failures[worker] = 0
        self._reasons.pop(unit, None)

    def failed(self, worker: int, reason: str, *, by_worker: bool = True) -> None:
        """A worker has failed its unit, or ended; it may be all the unit's fault."""
        unit = self._at_work.pop(worker)
        self._failures[worker] += by_worker
        self._tries[unit] = self._tries.get(unit, 0) + 1
        self._reasons[unit], self._failed_last[unit] = reason, worker
        if self._tries[unit] < MOST_TRIES:
            self._waiting.append(unit)

    def did_not_start(self, worker: int) -> None:
        """A worker has ended before it got a unit."""
        self._failures[worker] += 1

    def is_dismissed(self, worker: int) -> bool:
        """Whether a worker gets no more units."""
        return self._failures[worker] >= MOST_TRIES

    @property
    def is_over(self) -> bool:
        """Whether nothing is at work, and nothing is left that anybody would do."""
        nobody = all(map(self.is_dismissed, self._failures))
        return not self._at_work and (nobody or not self._waiting)

    @property
    def failures(self) -> Mapping[int, str]:
        """Why units are not done, by their numbers; empty for those that nobody tried."""
        untried = dict.fromkeys(self._waiting, "")
        return dict(sorted({**untried, **self._reasons}.items()))
