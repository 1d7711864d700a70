"""Places that cannot be reached now, and looks that take too long.

Here: which errors may pass, when a place counts as gone, and time limits of listings. Not here:
requests (`web.py`, `places.py`).
"""

import errno
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from visdiv_assets.errors import Unreachable, VisdivError
from visdiv_assets.settings.secrets import redacted

# Failed attempts in a row after which nothing more is asked of a place.
MOST_FAILURES = 3

SEARCHED_CHARACTERS = 4000
SHOWN_CHARACTERS = 300

# What file systems say when their server or device is gone, not the file.
_GONE = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN",
        "ENETUNREACH", "ENODEV", "ENOLINK", "ENOTCONN", "ENXIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
# These may be the file's own fault, or the machine's; they may pass as well.
_PASSING = _GONE | {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class NoAnswerError(OSError):
    """A server did not answer, or could not: it says nothing about the file."""


def brief(text: str, also: Iterable[str] = (), shown: int = SHOWN_CHARACTERS) -> str:
    r"""One line of what a server or a library says, without secrets, and not too long.

    It may be of any length, and searching it for secrets takes ever longer.

    Example:
        >>> brief("cannot read\n  https://me:word@host/a.zip")
        'cannot read https://host/a.zip'
    """
    words = text[:SEARCHED_CHARACTERS].split()
    if len(text) > SEARCHED_CHARACTERS and len(words) > 1:
        words.pop()  # half a secret would not be recognised
    return redacted(" ".join(words), also)[:shown]


def is_away(error: BaseException) -> bool:
    """Whether the place of a file is out of reach, whatever becomes of the file.

    Example:
        >>> is_away(OSError(errno.ESTALE, "Stale file handle")), is_away(FileNotFoundError("x"))
        (True, False)
    """
    return isinstance(error, NoAnswerError | ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _GONE
    )


def unlisted(told: str, error: BaseException) -> VisdivError:
    """The error of a listing that failed: Unreachable if another attempt may succeed.

    Example:
        >>> unlisted("cannot list /mnt", OSError(errno.EIO, "Input/output error"))
        Unreachable('cannot list /mnt')
        >>> unlisted("cannot list /mnt", PermissionError(errno.EACCES, "Permission denied"))
        VisdivError('cannot list /mnt')
    """
    for each in _behind(error):
        if is_away(each) or (isinstance(each, OSError) and each.errno in _PASSING):
            # zipfile, for one, takes a file that cannot be read for one that is no archive.
            why = "" if each is error else f" ({brief(str(each))})"
            return Unreachable(told + why)
    return VisdivError(told)


def is_behind(error: BaseException) -> bool:
    """Whether an error, or one that it was raised because of, says that a place is out of reach."""
    return any(map(is_away, _behind(error)))


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def with_place(place: str, error: VisdivError) -> VisdivError:
    """The same kind of error, about a place.

    Example:
        >>> with_place("a.zip", Unreachable("it does not answer"))
        Unreachable('a.zip: it does not answer')
    """
    return type(error)(f"{place}: {error}")


class Contact:
    """Whether a place still answers, so that a dead one is not asked for a million images.

    Attributes:
        failures: how many requests in a row it has not answered.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._lock = threading.Lock()

    def made(self) -> None:
        """Note that the place has answered, if only that there is no such file."""
        self.failures = 0

    def note(self, place: str, error: OSError) -> None:
        """Note how a request has failed; raises as `missed`."""
        if is_away(error):
            self.missed(place, error)
        else:
            self.made()

    def missed(self, place: str, error: OSError) -> None:
        """Note that the place has not answered.

        Raises:
            Unreachable: it has not answered several times in a row.
        """
        with self._lock:
            self.failures += 1
            failures = self.failures
        if failures >= MOST_FAILURES:
            raise Unreachable(f"{place} cannot be read any more: {error.strerror or error}")


# --- time limits ---


class TookTooLongError(VisdivError):
    """A listing has exceeded its time."""


_end: ContextVar[float] = ContextVar("end", default=float("inf"))


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Within, `check_time` raises once the time is over; None adds no limit to those around."""
    end = float("inf") if seconds is None else time.monotonic() + seconds
    token = _end.set(min(end, _end.get()))
    try:
        yield
    finally:
        _end.reset(token)


def seconds_left() -> float:
    """What is left of the time of the listing that is under way here; infinite without a limit."""
    return _end.get() - time.monotonic()


def check_time() -> None:
    """Raise TookTooLongError if the time is over; whatever may take long calls this now and then.

    Example:
        >>> with time_limit(-1.0):
        ...     check_time()
        Traceback (most recent call last):
        visdiv_assets.sources.reaching.TookTooLongError: it takes too long
    """
    if _end.get() < time.monotonic():
        raise TookTooLongError("it takes too long")
