"""Conditions that raise an alert when they begin or end.

Here: which conditions hold after an evaluation, and the likely reason. Not here: storing them
(`warehouse/`), sending alerts (`notify/`).
"""

from dataclasses import dataclass
from enum import StrEnum

from visdiv_assets.errors import counted
from visdiv_assets.quality.verdicts import Verdict


class Condition(StrEnum):
    """What can be wrong with a dataset. Only a change of a condition raises an alert."""

    BELOW_THRESHOLD = "below_threshold"
    DROPPED = "dropped"
    NOT_EVALUATED = "not_evaluated"
    STALE = "stale"


@dataclass(frozen=True)
class State:
    """Whether a condition holds for a dataset, and why.

    Attributes:
        condition: which one.
        active: whether it holds.
        reason: the likely reason, as text for users.
        threshold: limit that was exceeded or met; None if the condition has none.
    """

    condition: Condition
    active: bool
    reason: str = ""
    threshold: float | None = None


# Conditions whose end raises an alert. A drop also ends when the lower scores become the history.
ENDS_ARE_TOLD = frozenset({Condition.BELOW_THRESHOLD, Condition.NOT_EVALUATED, Condition.STALE})


@dataclass(frozen=True)
class Facts:
    """The facts about one evaluation from which the likely reason of a change is derived."""

    n_images: int
    n_distinct: int
    n_failed: int
    model_id: str


def states_of_evaluation(
    score: Verdict, drop: Verdict, threshold: float, reason: str
) -> tuple[State, ...]:
    """The state of each condition after a successful evaluation, according to its verdicts.

    A dataset that was just evaluated is neither "not evaluated" nor stale.
    """
    below = not score.passed and score.severity == "ERROR"
    return (
        State(Condition.BELOW_THRESHOLD, below, reason if below else "", threshold),
        State(Condition.DROPPED, not drop.passed, "" if drop.passed else reason),
        State(Condition.NOT_EVALUATED, False),
        State(Condition.STALE, False),
    )


def likely_reason(now: Facts, before: Facts | None) -> str:
    """What probably changed a score, as far as counts and the model tell.

    Example:
        >>> before = Facts(100, 100, 0, "m")
        >>> likely_reason(Facts(400, 100, 0, "m"), before)
        '300 of 400 images are exact copies of others (before: 0); 300 more images than before'
    """
    parts = []
    if before is not None and now.model_id != before.model_id:
        parts.append("the embeddings come from a different model")
    copies = now.n_images - now.n_distinct
    if copies:
        earlier = "" if before is None else f" (before: {before.n_images - before.n_distinct:,})"
        are = "is an exact copy" if copies == 1 else "are exact copies"
        parts.append(f"{copies:,} of {counted(now.n_images, 'image')} {are} of others{earlier}")
    if before is not None and now.n_images != before.n_images:
        change = now.n_images - before.n_images
        more = "more" if change > 0 else "fewer"
        parts.append(f"{counted(abs(change), f'{more} image')} than before")
    if now.n_failed and (before is None or now.n_failed > before.n_failed):
        parts.append(f"{counted(now.n_failed, 'image')} could not be embedded")
    return "; ".join(parts) or "the images became more similar to each other"
