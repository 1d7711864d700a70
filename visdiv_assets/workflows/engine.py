"""What an engine is: whoever embeds the units of a plan, and tells what came of it.

Not here: which one the settings name (`engines.py`), Ray (`ray_engine.py`), units of work
(`plan.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from visdiv_assets.embedding.pipeline import Embedder, OnProgress
from visdiv_assets.sources.source import Source
from visdiv_assets.store.plans import Plan
from visdiv_assets.store.store import Store


@dataclass(frozen=True)
class Worker:
    """What one worker has done.

    Attributes:
        name: the machine and the process.
        units: how many units it has committed.
        images: how many images these have.
        seconds: how long it was at work.
    """

    name: str
    units: int
    images: int
    seconds: float


@dataclass(frozen=True)
class Work:
    """What workers have done together.

    Attributes:
        units: how many units were committed.
        retries: how often a unit was given to a worker after a failure.
        embedded: images that went through the model.
        workers: those that have committed any.
    """

    units: int
    retries: int
    embedded: int
    workers: tuple[Worker, ...]


class Engine(Protocol):
    """Embeds the units of a plan somewhere else, and returns when all are committed."""

    def unit_images(self, n_left: int) -> int:
        """How many images a unit should have, if so many are to be embedded."""

    def __call__(self, plan: Plan, on_progress: OnProgress | None) -> Work:
        """Do it.

        Raises:
            VisdivError: units could not be embedded. All others are committed.
        """


@dataclass(frozen=True)
class Job:
    """What a worker needs to take part, wherever it is. Everything is opened there.

    Attributes:
        embedder: makes the model.
        source: opens the source of the images.
        store: opens the store.
    """

    embedder: Callable[[], Embedder]
    source: Callable[[], Source]
    store: Callable[[], Store]
