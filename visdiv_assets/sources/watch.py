"""Detecting that a source changed and has stopped changing.

Here: the decision, and the state that it needs between checks. Not here: Dagster's sensor, listing
sources.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self


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


@dataclass
class WatchMemory:
    """The state of the watch between two rounds; losing it does no harm.

    Without it, a change counts as new at the next check. What was evaluated is read from the
    store, never from here.

    Attributes:
        next_name: where the next round starts, so that every dataset gets its turn.
        sightings: sightings by dataset.
    """

    next_name: str = ""
    sightings: dict[str, Sighting] = field(default_factory=dict)

    @classmethod
    def from_cursor(cls, cursor: str | None) -> Self:
        """Parse what `to_cursor` wrote; anything else gives an empty memory."""
        try:
            content = json.loads(cursor or "{}")
            return cls(
                str(content.get("next", "")),
                {
                    str(name): Sighting(str(fingerprint), float(since))
                    for name, (fingerprint, since) in content.get("sightings", {}).items()
                },
            )
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return cls()

    def to_cursor(self) -> str:
        """Serialise to a string, which Dagster keeps."""
        sightings = {
            name: [sighting.fingerprint, sighting.since]
            for name, sighting in self.sightings.items()
        }
        return json.dumps({"next": self.next_name, "sightings": sightings})


def rotate(names: Iterable[str], first: str) -> Sequence[str]:
    """The names in order, starting with `first` or the next one after it.

    Example:
        >>> rotate(["a", "c", "d"], first="b")
        ['c', 'd', 'a']
    """
    ordered = sorted(names)
    start = sum(name < first for name in ordered)
    return ordered[start:] + ordered[:start]
