"""Detecting that a source changed and has stopped changing.

Here: decisions. Not here: Dagster's sensor, looking at sources (`looking.py`), what is remembered
between looks (`state/`).
"""

from dataclasses import dataclass

# A change is asked for again at once, then after a minute, then after five times as long each time.
FIRST_PAUSE = 60.0
LONGEST_PAUSE = 6 * 3600.0


@dataclass(frozen=True)
class Sighting:
    """A fingerprint that differs from the evaluated one, and when it was first seen (Unix time)."""

    fingerprint: str
    since: float


def is_settled(
    fingerprint: str, evaluated: str | None, sighting: Sighting | None, now: float, settle: float
) -> tuple[bool, Sighting | None]:
    """Whether a source has changed and has been stable since.

    Args:
        fingerprint: current fingerprint of the source.
        evaluated: fingerprint of the manifest that was scored last; None if there is none.
        sighting: what the previous check returned.
        now: Unix time.
        settle: seconds without a change after which a copy in progress counts as finished.

    Returns:
        whether to request a run, and what to remember for the next check.

    Example:
        >>> _, first = is_settled("b", "a", None, now=0, settle=60)
        >>> is_settled("b", "a", first, now=30, settle=60)[0]
        False
        >>> is_settled("b", "a", first, now=60, settle=60)[0]
        True
    """
    if fingerprint == evaluated:
        return False, None
    # A NaN, or a time in the future after the clock was set back, would never settle.
    if sighting is None or sighting.fingerprint != fingerprint or not sighting.since <= now:
        sighting = Sighting(fingerprint, now)
    return now - sighting.since >= settle, sighting


def may_ask_again(requests: int, seconds: float) -> bool:
    """Whether to ask for an evaluation again that was asked for and has not come about.

    Args:
        requests: how often it was asked for.
        seconds: since it was last asked for, or last seen under way.

    Example:
        >>> may_ask_again(1, 0)
        True
        >>> [may_ask_again(2, seconds) for seconds in (30, 60)]
        [False, True]
        >>> may_ask_again(9, 6 * 3600)
        True
    """
    if requests <= 1:  # it may not even have been launched
        return True
    return seconds >= min(FIRST_PAUSE * 5.0 ** min(requests - 2, 9), LONGEST_PAUSE)
