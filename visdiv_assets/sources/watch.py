"""Noticing that a source changed, without asking for a run while it is still changing.

Here: the decision and the memory that it needs between two looks. Not here: Dagster's sensor,
listing sources.
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
    """Whether a source has changed and has been at rest since.

    Args:
        fingerprint: of the source as it is now.
        evaluated: of the manifest that was scored last; None if there is none.
        sighting: what the look before returned.
        now: Unix time.
        settle: seconds without a change after which a copy in progress is taken to be over.

    Returns:
        whether to ask for a run, and what to remember for the next look.

    Example:
        >>> _, first = is_settled("b", "a", None, now=0, settle=60)
        >>> is_settled("b", "a", first, now=30, settle=60)[0]
        False
        >>> is_settled("b", "a", first, now=60, settle=60)[0]
        True
    """
    if fingerprint == evaluated:
        return False, None
    # A time in the future, of a clock set back since, or none at all would be waited for in vain.
    if sighting is None or sighting.fingerprint != fingerprint or not sighting.since <= now:
        sighting = Sighting(fingerprint, now)
    return now - sighting.since >= settle, sighting


@dataclass
class WatchMemory:
    """What the watch remembers between two rounds; it may be lost at any time without harm.

    Without it, a change is taken to have begun at the next look. What was evaluated is read from
    the store, never from here.

    Attributes:
        next_name: where the next round begins, so that all get their turn when time is short.
        sightings: by dataset.
    """

    next_name: str = ""
    sightings: dict[str, Sighting] = field(default_factory=dict)

    @classmethod
    def from_cursor(cls, cursor: str | None) -> Self:
        """Read what `to_cursor` wrote; anything else is an empty memory."""
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
        """As a string, for Dagster to keep."""
        sightings = {
            name: [sighting.fingerprint, sighting.since]
            for name, sighting in self.sightings.items()
        }
        return json.dumps({"next": self.next_name, "sightings": sightings})


def rotate(names: Iterable[str], first: str) -> Sequence[str]:
    """The names in order, beginning with `first` or the one that would follow it.

    Example:
        >>> rotate(["a", "c", "d"], first="b")
        ['c', 'd', 'a']
    """
    ordered = sorted(names)
    start = sum(name < first for name in ordered)
    return ordered[start:] + ordered[:start]
