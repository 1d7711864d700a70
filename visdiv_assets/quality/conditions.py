"""Conditions that raise an alert when they begin or end.

Here: which conditions hold after an evaluation, and the likely reason. Not here: storing them
(`warehouse/`), sending alerts (`notify/`).
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from visdiv_assets.errors import counted
from visdiv_assets.quality.verdicts import Verdict


class Condition(StrEnum):
    """What can be wrong with a dataset. Only a change of a condition raises an alert."""

    BELOW_THRESHOLD = "below_threshold"
    DROPPED = "dropped"
    IMAGES_LOST = "images_lost"
    NOT_EVALUATED = "not_evaluated"
    NOT_ANALYZED = "not_analyzed"
    UNREACHABLE = "unreachable"
    STALE = "stale"
    SETTINGS_BROKEN = "settings_broken"


@dataclass(frozen=True)
class State:
    """Whether a condition holds for a dataset, and why.

    Attributes:
        condition: which one.
        active: whether it holds.
        reason: the likely reason, as text for users.
        threshold: limit that was exceeded or met; None if the condition has none.
        told: whether an end of the condition is news; not if it ended for want of a comparison.
    """

    condition: Condition
    active: bool
    reason: str = ""
    threshold: float | None = None
    told: bool = True


# Conditions whose end raises an alert. A drop also ends when the lower scores become the history.
ENDS_ARE_TOLD = frozenset(Condition) - {Condition.DROPPED}

# How long a score must stay above its threshold to count as recovered, if its interval does not
# lie above it.
RECOVERY = timedelta(days=14)

# The same for a plain score of too few images to have an interval.
PLAIN_MARGIN = 0.01


@dataclass(frozen=True)
class Facts:
    """The facts about one evaluation from which the likely reason of a change is derived."""

    n_images: int
    n_distinct: int
    n_failed: int
    model_id: str
    estimator: int | None = None
    sampling_unit: str = "row"


def is_below(
    score: float,
    threshold: float,
    *,
    was_below: bool,
    margin: float,
    above_for: timedelta,
    recovery: timedelta = RECOVERY,
) -> bool:
    """Whether a score counts as below its threshold; it recovers only beyond doubt.

    It falls at once. It recovers when its interval lies above the threshold, or when it has stayed
    above for long enough. So a score that wavers around its threshold raises one alert, not dozens.

    Args:
        score: the score that is judged.
        threshold: the dataset's threshold.
        was_below: whether it counted as below so far.
        margin: from the score down to the lower end of its interval.
        above_for: for how long each evaluation has found the score above; 0 if it is the first.
        recovery: how long that must be.

    Example:
        >>> wavering = {"margin": 0.03, "above_for": timedelta(days=1)}
        >>> [is_below(score, 0.30, was_below=True, **wavering) for score in (0.29, 0.31, 0.34)]
        [True, True, False]
    """
    if score < threshold:
        return True
    return was_below and score - margin < threshold and above_for < recovery


def states_of_evaluation(
    below: bool, drop: Verdict, lost: Verdict, threshold: float, reason: str, *, regained: bool
) -> tuple[State, ...]:
    """The state of each condition that a successful evaluation says something of.

    A dataset that was just evaluated is neither "not evaluated" nor stale.

    Args:
        below: whether its score counts as below its threshold.
        drop: the verdict on its score's usual range.
        lost: the verdict on the number of its images.
        threshold: the score's threshold.
        reason: the likely reason of a change.
        regained: whether the number of its images is what it once was.
    """
    return (
        State(Condition.BELOW_THRESHOLD, below, reason if below else "", threshold),
        State(Condition.DROPPED, not drop.passed, "" if drop.passed else reason),
        State(
            Condition.IMAGES_LOST,
            not lost.passed,
            "" if lost.passed else lost.finding,
            told=regained,
        ),
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
    if before is not None and None not in (now.estimator, before.estimator):
        if now.estimator != before.estimator:
            parts.append("the corrected score is estimated in a new way")
        elif now.sampling_unit != before.sampling_unit:
            parts.append(f"the sampling unit is now {now.sampling_unit}")
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
