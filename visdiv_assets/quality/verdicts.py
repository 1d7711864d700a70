"""One function per check; each returns a verdict.

Here: thresholds and comparisons. Not here: where the numbers come from.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from visdiv_assets.errors import counted
from visdiv_assets.quality.ratings import NEARLY_ONE, is_many_times
from visdiv_assets.spectral.corrected import ENOUGH_UNITS

GOOD_SCORE = 0.40
DROP_WARM_UP = 5
DROP_HISTORY = 30
DROP_Z = 3.5
DROP_LEAST = 0.02
DROP_ENDS = 0.5
FAILURES_WARN = 0.01
FAILURES_ERROR = 0.05
FLAT_WARN = 0.01
ENOUGH_IMAGES = 1000
STALE_AFTER = timedelta(hours=26)
LOST_SHARE = 0.5

# Clocks may be off by this much; an evaluation further in the future is not fresh.
CLOCK_TOLERANCE = timedelta(hours=1)

# Embeddings are stored as float16; its rounding changes a norm by less than this.
NORM_TOLERANCE = 2e-3

Measured = dict[str, float | int | str]


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        passed: whether the check passed.
        severity: how serious a failure is.
        finding: what was measured and against which limit, in a sentence.
        advice: what to do about it; empty if the check passed.
        measured: the measured values, by name.
    """

    passed: bool
    finding: str
    severity: Literal["ERROR", "WARN"] = "ERROR"
    advice: str = ""
    measured: Measured = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Finding and advice in one text."""
        return "; ".join(filter(None, [self.finding, self.advice]))


def judge_score(score: float | None, threshold: float, many_times: float | None = None) -> Verdict:
    """ERROR below the dataset's threshold, WARN below 0.40 or with too few images to score.

    Args:
        score: the score that is judged; None if it cannot be told.
        threshold: the dataset's.
        many_times: the score as it is, if these are few images many times, or nearly one image.

    Example:
        >>> judge_score(0.28, threshold=0.30).severity
        'ERROR'
    """
    if score is None and many_times is not None and many_times < threshold:
        return Verdict(
            passed=False,
            finding=f"these are few images, many times: the diversity score as it is, "
            f"{many_times:.3f}, is below the threshold {threshold:.2f}",
            advice="`visdiv duplicates` shows which are alike; add images of other things",
            measured={"threshold": threshold},
        )
    if score is None:
        return Verdict(
            passed=False,
            severity="WARN",
            finding="there are too few distinct images to tell how diverse the dataset is",
            advice="add images; a few dozen are enough for a first estimate",
            measured={"threshold": threshold},
        )
    measured: Measured = {"diversity score": score, "threshold": threshold}
    if score < threshold:
        return Verdict(
            passed=False,
            finding=f"the diversity score {score:.3f} is below the threshold {threshold:.2f}",
            advice="look for redundant images and dominant groups, and add images of rare kinds",
            measured=measured,
        )
    if score < GOOD_SCORE:
        return Verdict(
            passed=False,
            severity="WARN",
            finding=f"the diversity score {score:.3f} is {'at' if score == threshold else 'above'} "
            f'the threshold {threshold:.2f} but below {GOOD_SCORE:.2f}, where the rating "Good" '
            "starts",
            advice="augment the images or add more varied sources",
            measured=measured,
        )
    return Verdict(True, f"the diversity score is {score:.3f}", measured=measured)


def judge_one_image(spread: float | None, n_images: int, n_units: float | None) -> Verdict:
    """WARN when the images are nearly one image, or few images many times.

    Args:
        spread: 1 − ‖mean‖² of the embeddings; None if unknown.
        n_images: images.
        n_units: effective number of sampling units; None if unknown.

    Example:
        >>> judge_one_image(0.02, 80, 1.0).passed
        False
        >>> judge_one_image(0.79, 213, 208.0).passed
        True
    """
    if spread is None or n_units is None:
        return Verdict(True, "how alike the images are was not measured; evaluate them again")
    measured: Measured = {"1 − ‖mean‖²": spread, "images": n_images, "sampling units": n_units}
    if spread < NEARLY_ONE:
        return Verdict(
            passed=False,
            severity="WARN",
            finding=f"the images are nearly one image: 1 − ‖mean‖² is {spread:.3f}; sets of "
            "different pictures have 0.7 or more",
            advice="look at them; `visdiv duplicates` shows which are alike",
            measured=measured,
        )
    if n_units < ENOUGH_UNITS and is_many_times(n_images, n_units):
        return Verdict(
            passed=False,
            severity="WARN",
            finding=f"{counted(n_images, 'image')} are about {n_units:,.0f} different ones, many "
            "times over",
            advice="`visdiv duplicates` shows which are alike, and which to keep",
            measured=measured,
        )
    return Verdict(True, f"the images differ: 1 − ‖mean‖² is {spread:.3f}", measured=measured)


def judge_drop(
    score: float | None,
    history: Sequence[float],
    by_chance: float | None = None,
    *,
    was_dropped: bool = False,
) -> Verdict:
    """WARN when a score fell below the dataset's usual range.

    A drop is measured from the median of the last DROP_HISTORY scores. It must be at least
    DROP_LEAST, and more than the intervals of both explain, and, after DROP_WARM_UP scores, at
    least DROP_Z of their robust standard deviations (1.4826 · median absolute deviation): some
    datasets have always wavered. Without intervals, nothing is judged before that. A score that
    has dropped stays so down to half of that, so that one at the limit does not drop every day.

    Args:
        score: the newest score; None if there were too few images.
        history: earlier scores of the same kind, oldest first.
        by_chance: how far below the median the score may be by its interval and theirs; None if
            there are no intervals.
        was_dropped: whether the score counted as dropped so far.

    References:
        Iglewicz & Hoaglin, "How to detect and handle outliers", 1993 (3.5 for the robust z-score).

    Example:
        >>> judge_drop(0.30, [0.40, 0.41, 0.40, 0.39, 0.40]).passed
        False
        >>> judge_drop(0.30, [0.40, 0.41], by_chance=0.05).passed
        False
        >>> judge_drop(0.30, [0.40, 0.41, 0.40, 0.39, 0.40], by_chance=0.15).passed
        True
    """
    recent = list(history[-DROP_HISTORY:])
    if score is None:
        return Verdict(True, "there are too few distinct images to tell")
    needed = DROP_WARM_UP if by_chance is None else 1
    if len(recent) < needed:
        return Verdict(
            True,
            f"there {'is' if len(recent) == 1 else 'are'} "
            f"{counted(len(recent), 'earlier evaluation')}; detecting a drop takes {needed}",
            measured={"earlier evaluations": len(recent)},
        )
    median = statistics.median(recent)
    limits = [DROP_LEAST, by_chance or 0.0]
    if len(recent) >= DROP_WARM_UP:
        deviation = 1.4826 * statistics.median(abs(value - median) for value in recent)
        limits.append(DROP_Z * deviation)
    drop, limit = median - score, max(limits)
    measured: Measured = {
        "diversity score": score,
        "median of earlier scores": median,
        "earlier evaluations": len(recent),
        "drop": drop,
        "drop that is usual": limit,
    }
    if drop < (DROP_ENDS * limit if was_dropped else limit):
        return Verdict(
            True,
            f"the diversity score {score:.3f} is in its usual range (median {median:.3f})",
            measured=measured,
        )
    return Verdict(
        passed=False,
        severity="WARN",
        finding=f"the diversity score fell to {score:.3f} from a median of {median:.3f}",
        advice="compare the newest manifest with the previous one to see which images were added "
        "or removed",
        measured=measured,
    )


def judge_lost(n_listed: int, earlier: Sequence[int]) -> Verdict:
    """WARN when a dataset has lost more than half of its images.

    The number is compared with the median of the last DROP_HISTORY evaluations, so an intended
    loss becomes the history in time.

    Args:
        n_listed: images that the source holds now.
        earlier: the same at earlier evaluations, oldest first.

    Example:
        >>> judge_lost(8, [100, 100, 100]).finding
        'the dataset has 8 images; usually it has 100'
    """
    recent = list(earlier[-DROP_HISTORY:])
    if not recent:
        return Verdict(True, counted(n_listed, "image"), measured={"images": n_listed})
    usual = int(statistics.median_low(recent))
    passed = n_listed >= LOST_SHARE * usual
    return Verdict(
        passed=passed,
        severity="WARN",
        finding=f"the dataset has {counted(n_listed, 'image')}; usually it has {usual:,}",
        advice="" if passed else "look whether a folder, a shard or a part of a list is gone",
        measured={"images": n_listed, "usual images": usual},
    )


def judge_failures(n_images: int, n_failed: int) -> Verdict:
    """WARN when more than 1 % of the images could not be embedded, ERROR above 5 %.

    Example:
        >>> judge_failures(n_images=98, n_failed=2).severity
        'WARN'
    """
    total = n_images + n_failed
    rate = n_failed / total if total else 0.0
    finding = f"{n_failed:,} of {counted(total, 'image')} ({rate:.1%}) could not be embedded"
    return Verdict(
        passed=rate <= FAILURES_WARN,
        severity="ERROR" if rate > FAILURES_ERROR else "WARN",
        finding=finding,
        advice="" if rate <= FAILURES_WARN else "`visdiv failures` lists the images and reasons",
        measured={"failed": n_failed, "images": total, "rate": rate},
    )


def judge_flat(n_images: int, n_flat: int | None) -> Verdict:
    """WARN when more than 1 % of the pictures are one flat colour.

    Args:
        n_images: embedded images.
        n_flat: those whose pictures are one flat colour; None if that is not known.

    Example:
        >>> judge_flat(n_images=100, n_flat=2).severity
        'WARN'
    """
    rate = (n_flat or 0) / n_images if n_images else 0.0
    counted = "an unknown number" if n_flat is None else f"{n_flat:,}"
    return Verdict(
        passed=rate <= FLAT_WARN,
        severity="WARN",
        finding=f"{counted} of {n_images:,} pictures ({rate:.1%}) are one flat colour",
        advice="" if rate <= FLAT_WARN else "`visdiv score` lists them; look at the files",
        measured={"flat": n_flat or 0, "images": n_images, "rate": rate},
    )


def judge_embeddings(
    n_rows: int, n_images: int, n_failed: int, n_listed: int, norm_error: float
) -> Verdict:
    """ERROR unless each image that did not fail has a finite unit vector.

    Args:
        n_rows: vectors that the moments were computed from.
        n_images: images with a vector, according to the index.
        n_failed: images without one, according to the index.
        n_listed: images in the manifest.
        norm_error: largest | ‖x‖ − 1 | of any vector; NaN if a vector is not finite.
    """
    measured: Measured = {"vectors": n_rows, "listed": n_listed, "largest norm error": norm_error}
    problems = []
    if n_images + n_failed != n_listed:
        problems.append(
            f"the index lists {counted(n_images + n_failed, 'image')}, but the manifest lists "
            f"{n_listed:,}"
        )
    if n_rows != n_images:
        problems.append(f"there are {n_rows:,} vectors for {counted(n_images, 'image')}")
    if not norm_error <= NORM_TOLERANCE:
        problems.append(f"the norm of a vector differs from 1 by {norm_error:.3g}")
    if problems:
        return Verdict(
            passed=False,
            finding="; ".join(problems),
            advice="run `visdiv doctor`, then materialise sscd_embeddings again",
            measured=measured,
        )
    return Verdict(
        True, f"{counted(n_rows, 'finite unit vector')}, one per image", measured=measured
    )


def judge_count(n_images: int, least: int = ENOUGH_IMAGES) -> Verdict:
    """WARN with so few images that the plain score mostly reflects their number.

    Example:
        >>> judge_count(213).passed
        False
    """
    enough = n_images >= least
    return Verdict(
        passed=enough,
        severity="WARN",
        finding=counted(n_images, "image") + ("" if enough else f", fewer than {least:,}"),
        advice=""
        if enough
        else "plain scores of so few images are biased low; do not compare them with others",
        measured={"images": n_images, "needed": least},
    )


def judge_age(evaluated_at: datetime | None, now: datetime) -> Verdict:
    """ERROR when the newest evaluation is over 26 hours old: a day and two hours' grace."""
    if evaluated_at is None:
        return Verdict(
            passed=False,
            finding="the dataset has never been evaluated",
            advice="materialise its assets; if its runs fail, look at their errors in Dagster",
        )
    hours = (now - evaluated_at) / timedelta(hours=1)
    if evaluated_at - now > CLOCK_TOLERANCE:
        return Verdict(
            passed=False,
            finding=f"the dataset was last evaluated at {evaluated_at:%Y-%m-%d %H:%M} UTC, which "
            "is still to come",
            advice="a clock was wrong then, or is wrong now; put it right, then evaluate again",
            measured={"hours": hours},
        )
    fresh = now - evaluated_at <= STALE_AFTER
    return Verdict(
        passed=fresh,
        finding=f"the dataset was last evaluated {hours:.1f} hours ago",
        advice=""
        if fresh
        else "check that Dagster's daemon is running and that the nightly run did not fail",
        measured={"hours": hours, "stale after hours": STALE_AFTER / timedelta(hours=1)},
    )


def judge_model(model_id: str, previous_model_id: str | None) -> Verdict:
    """WARN when the model differs from last time, since the two scores are not comparable."""
    measured: Measured = {"model": model_id, "previous model": previous_model_id or "none"}
    if previous_model_id in (None, model_id):
        return Verdict(True, "the model is the same as before", measured=measured)
    return Verdict(
        passed=False,
        severity="WARN",
        finding=f"the model is now {model_id}; it was {previous_model_id}",
        advice="do not compare with earlier scores; the history starts over",
        measured=measured,
    )


def judge_drift(large: bool, finding: str, measured: Measured | None = None) -> Verdict:
    """WARN when what came to a dataset, or went from it, is of another kind than what was there.

    Args:
        large: whether the drift is more than chance explains.
        finding: what was found in each comparison, or why there is none.
        measured: the measured values, by name.

    Example:
        >>> judge_drift(True, "200 images came: more than chance").severity
        'WARN'
    """
    return Verdict(
        passed=not large,
        severity="WARN",
        finding=finding,
        advice="look at what was added or removed; if the change is intended, make it the new "
        "baseline with `visdiv drift --pin`"
        if large
        else "",
        measured=measured or {},
    )


def judge_near_duplicates(
    n_images: int, n_exact: int, n_near: int, threshold: float, warn_rate: float
) -> Verdict:
    """WARN when too large a share of the images repeats others.

    Args:
        n_images: number of images.
        n_exact: images that are exact copies of another one.
        n_near: contents that are near-duplicates of one that is kept.
        threshold: cosine similarity at which two contents are near-duplicates.
        warn_rate: the largest share that passes, in [0, 1].

    Example:
        >>> judge_near_duplicates(100, n_exact=2, n_near=6, threshold=0.75, warn_rate=0.05).severity
        'WARN'
    """
    rate = (n_exact + n_near) / n_images if n_images else 0.0
    few = rate <= warn_rate
    return Verdict(
        passed=few,
        severity="WARN",
        finding=f"{rate:.1%} of {counted(n_images, 'image')} repeat others"
        + ("" if few else f", more than {warn_rate:.1%}")
        + f": {n_exact:,} exact copies, {n_near:,} near-duplicates (similarity ≥ {threshold:.2f})",
        advice="" if few else "`visdiv duplicates` lists and shows them, and which ones to keep",
        measured={
            "rate": rate,
            "warn above": warn_rate,
            "exact copies": n_exact,
            "near-duplicates": n_near,
            "threshold": threshold,
        },
    )


def judge_leakage(
    leaked: Mapping[str, int], not_compared: Mapping[str, str], threshold: float
) -> Verdict:
    """ERROR when a dataset contains benchmark images, WARN when a comparison was not possible.

    Args:
        leaked: number of images that are in each benchmark that was compared.
        not_compared: for each benchmark that was not compared, why.
        threshold: cosine similarity at which an image counts as a copy of a benchmark image.

    Example:
        >>> judge_leakage({"test": 3}, {}, threshold=0.95).finding
        '3 images are in the benchmark test (similarity ≥ 0.95)'
    """
    measured: Measured = {"threshold": threshold, **{f"in {k}": n for k, n in leaked.items()}}
    found = [
        f"{n:,} {'image is' if n == 1 else 'images are'} in the benchmark {name}"
        for name, n in leaked.items()
        if n
    ]
    unknown = [f"{name} was not compared because {why}" for name, why in not_compared.items()]
    if found:
        finding = f"{', '.join(found)} (similarity ≥ {threshold:.2f})"
        return Verdict(
            passed=False,
            finding="; ".join([finding, *unknown]),
            advice="remove them before training; `visdiv leakage` lists and shows them",
            measured=measured,
        )
    if unknown:
        return Verdict(
            passed=False,
            severity="WARN",
            finding="; ".join(unknown),
            advice="evaluate both datasets with the same model",
            measured=measured,
        )
    if not leaked:
        return Verdict(True, "there is no benchmark to compare with", measured=measured)
    return Verdict(True, f"no image is in the benchmarks ({', '.join(leaked)})", measured=measured)


def count_reasons(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """The number of failures by reason, most frequent first; reasons may differ in numbers.

    Example:
        >>> count_reasons(["truncated (3 bytes)", "truncated (17 bytes)", "empty"])
        [('truncated (N bytes)', 2), ('empty', 1)]
    """
    counts = Counter(re.sub(r"\d+", "N", reason) for reason in reasons)
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
