"""Conditions that people want to hear of: when one begins, and when it ends.

Here: which conditions an evaluation is in, and the likely reason. Not here: remembering them
(`warehouse/`), telling people (`notify/`).
"""

from dataclasses import dataclass
from enum import StrEnum

from visdiv_assets.quality.verdicts import Verdict


class Condition(StrEnum):
    """What may be wrong with a dataset. A change, not the condition itself, is worth an alert."""

    BELOW_THRESHOLD = "below_threshold"
    DROPPED = "dropped"
    NOT_EVALUATED = "not_evaluated"
    STALE = "stale"


@dataclass(frozen=True)
class State:
    """Whether a dataset is in a condition, and why.

    Attributes:
        condition: which one.
        active: whether it holds.
        reason: for people; what is likely behind it.
        threshold: that was judged against, where there is one.
    """

    condition: Condition
    active: bool
    reason: str = ""
    threshold: float | None = None


# The end of these is good news worth telling; a drop ends when the history has got used to it.
ENDS_ARE_TOLD = frozenset({Condition.BELOW_THRESHOLD, Condition.NOT_EVALUATED, Condition.STALE})


@dataclass(frozen=True)
class Facts:
    """What the likely reason of a change is read from; of one evaluation."""

    n_images: int
    n_distinct: int
    n_failed: int
    model_id: str


def states_of_evaluation(
    score: Verdict, drop: Verdict, threshold: float, reason: str
) -> tuple[State, ...]:
    """The conditions that a successful evaluation is in, judged by its verdicts.

    Having been evaluated, it is neither unevaluated nor stale.
    """
    below = not score.passed and score.severity == "ERROR"
    return (
        State(Condition.BELOW_THRESHOLD, below, reason if below else "", threshold),
        State(Condition.DROPPED, not drop.passed, "" if drop.passed else reason),
        State(Condition.NOT_EVALUATED, False),
        State(Condition.STALE, False),
    )


def likely_reason(now: Facts, before: Facts | None) -> str:
    """What probably moved a score, from what is known without looking at images.

    Example:
        >>> before = Facts(100, 100, 0, "m")
        >>> likely_reason(Facts(400, 100, 0, "m"), before)
        '300 of 400 images are exact copies of others (before: 0); 300 images more than before'
    """
    parts = []
    if before is not None and now.model_id != before.model_id:
        parts.append("another model made the embeddings")
    copies = now.n_images - now.n_distinct
    if copies:
        earlier = "" if before is None else f" (before: {before.n_images - before.n_distinct:,})"
        parts.append(f"{copies:,} of {now.n_images:,} images are exact copies of others{earlier}")
    if before is not None and now.n_images != before.n_images:
        change = now.n_images - before.n_images
        parts.append(f"{abs(change):,} images {'more' if change > 0 else 'fewer'} than before")
    if now.n_failed and (before is None or now.n_failed > before.n_failed):
        parts.append(f"{now.n_failed:,} images could not be embedded")
    return "; ".join(parts) or "the images have become more alike"
