"""What happens in a soak and when, drawn from a seed: the same seed plays the same again.

Here: the datasets, the recipients, and the accidents of each. Not here: how an accident is done
(`soak_world.py`).
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

# How the images of datasets are kept, in turn.
LAYOUTS = (
    *("folder", "tar", "folder", "list", "zip", "folder"),
    *("parquet", "folder", "folder", "web list"),
)
ON_THE_WEB = frozenset({"tar", "zip", "parquet", "web list"})

# What a server of images, or of alerts, may do instead of its work. `hang` is to accept and never
# to answer, `closed` to refuse connections.
SOURCE_FAULTS = ("hang", "slow", "503", "404")
RECEIVER_FAULTS = ("hang", "slow", "503", "closed")

# Each has a port of its own; those of `pair` stand together in one URL string of the settings.
HOOKS = ("well", "hang", "slow", "503", "closed", "pair-a", "pair-b")
MAIL = "mail"

SETTINGS_FAULTS = ("broken", "emptied", "removed", "cut off", "unset variable", "unregistered")
KILLS = ("run worker", "code server", "daemon", "webserver", "whole tree")


class Dataset(NamedTuple):
    """A dataset of the soak."""

    name: str
    layout: str

    @property
    def is_on_the_web(self) -> bool:
        return self.layout in ON_THE_WEB


class Event(NamedTuple):
    """Something that happens.

    Attributes:
        at: seconds since the beginning.
        what: what is done.
        whom: to whom; empty if there is no choice.
        until: when it is undone; None if it is not, or is over at once.
    """

    at: float
    what: str
    whom: str = ""
    until: float | None = None

    def __str__(self) -> str:
        until = "" if self.until is None else f", until {self.until:.0f} s"
        return f"{self.at:6.0f} s  {self.what} {self.whom}".rstrip() + until


def datasets_of(count: int) -> list[Dataset]:
    """The datasets of a soak of this size."""
    return [Dataset(f"d{at:02}", LAYOUTS[at % len(LAYOUTS)]) for at in range(count)]


def draw(seed: int, seconds: float, datasets: Sequence[Dataset]) -> list[Event]:
    """All that happens, in order of time; all of it is over by 90 % of the time.

    Args:
        seed: of all random numbers.
        seconds: how long it lasts.
        datasets: at least eight.
    """
    rng = random.Random(f"{seed} schedule")
    spared = rng.choice([each.name for each in datasets if each.layout == "folder"])
    return sorted(
        [
            *_of_sources(rng, seconds, [each for each in datasets if each.name != spared]),
            *_of_receivers(rng, seconds),
            *_of_settings(rng, seconds, datasets, spared),
            *_kills(rng, seconds),
            _once(rng, seconds, "reader"),
            _once(rng, seconds, "disk full"),
        ]
    )


def _of_sources(rng: random.Random, seconds: float, datasets: Sequence[Dataset]) -> Iterator[Event]:
    """Each kind at least once; a dataset has one accident at a time."""
    busy: dict[str, list[tuple[float, float]]] = {each.name: [] for each in datasets}
    kinds = [*SOURCE_FAULTS, "fall", "gone", "lose", "change", "fall for good", "change in a run"]
    count = max(len(kinds), round(len(datasets) * seconds / 1200))
    for at in range(count):
        what = kinds[at % len(kinds)]
        begin = rng.uniform(0.1, 0.6) * seconds
        length = rng.uniform(0.12, 0.28) * seconds
        if what == "fall for good":  # nothing comes after it
            length = seconds - begin
        possible = [
            each.name
            for each in datasets
            if (each.is_on_the_web or what not in SOURCE_FAULTS)
            and (not each.is_on_the_web or what != "gone")
            and all(end < begin or begin + length < first for first, end in busy[each.name])
        ]
        if not possible:
            continue
        name = rng.choice(possible)
        end = begin + length
        busy[name].append((begin, end + 0.03 * seconds))
        undone = what in SOURCE_FAULTS or what in ("fall", "gone", "lose")
        yield Event(begin, what, name, end if undone else None)


def _of_receivers(rng: random.Random, seconds: float) -> Iterator[Event]:
    """Each recipient has its own fault, again every ten minutes."""
    faulty = [(name, name) for name in HOOKS if name in RECEIVER_FAULTS]
    faulty += [("pair-b", "503"), (MAIL, rng.choice(RECEIVER_FAULTS))]
    for name, fault in faulty:
        for begin, end in _slots(rng, seconds, max(1, round(seconds / 600))):
            yield Event(begin, f"alerts {fault}", name, end)


def _of_settings(
    rng: random.Random, seconds: float, datasets: Sequence[Dataset], spared: str
) -> Iterator[Event]:
    """One fault after the other. Who is unregistered has no other accident."""
    faults = list(SETTINGS_FAULTS)
    rng.shuffle(faults)
    faults = faults[: max(2, min(len(faults), int(0.7 * seconds / 30)))]
    folders = [each.name for each in datasets if each.layout == "folder" and each.name != spared]
    for fault, (begin, end) in zip(faults, _slots(rng, seconds, len(faults)), strict=True):
        whom = {"unset variable": rng.choice(folders), "unregistered": spared}.get(fault, "")
        yield Event(begin, f"settings {fault}", whom, end)


def _kills(rng: random.Random, seconds: float) -> Iterator[Event]:
    """In the first half, so that there is time to see what grows in those that live on."""
    targets = list(KILLS) * max(1, round(seconds / 600))
    rng.shuffle(targets)
    # Who is killed must have had time to start again.
    targets = targets[: max(3, int(0.5 * seconds / 25))]
    step = 0.5 * seconds / len(targets)
    for at, target in enumerate(targets):
        yield Event(0.12 * seconds + step * (at + rng.uniform(0, 0.4)), "kill", target)


def _slots(rng: random.Random, seconds: float, count: int) -> Iterable[tuple[float, float]]:
    """Spans that follow each other, with pauses, between a tenth and 85 % of the time."""
    step = 0.75 * seconds / count
    for at in range(count):
        begin = 0.1 * seconds + step * (at + rng.uniform(0, 0.25))
        yield begin, begin + min(240.0, step * rng.uniform(0.4, 0.7))


def _once(rng: random.Random, seconds: float, what: str) -> Event:
    begin = rng.uniform(0.2, 0.7) * seconds
    return Event(begin, what, "", begin + min(60.0, 0.15 * seconds))
