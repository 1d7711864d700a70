"""One function for each check; each returns a verdict.

Here: thresholds and comparisons. Not here: where the numbers come from.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

GOOD_SCORE = 0.40
DROP_WARM_UP = 5
DROP_HISTORY = 30
DROP_Z = 3.5
DROP_LEAST = 0.02
FAILURES_WARN = 0.01
FAILURES_ERROR = 0.05
ENOUGH_IMAGES = 1000
STALE_AFTER = timedelta(hours=26)

# Rows are kept as float16, whose rounding moves a norm by less than this.
NORM_TOLERANCE = 2e-3

Measured = dict[str, float | int | str]


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        passed: whether all is well.
        severity: how bad it is if not.
        finding: what was measured against what, in a sentence.
        advice: what to do about it; empty when all is well.
        measured: the numbers, by name.
    """

    passed: bool
    finding: str
    severity: Literal["ERROR", "WARN"] = "ERROR"
    advice: str = ""
    measured: Measured = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Finding and advice, for people."""
        return ". ".join(filter(None, [self.finding, self.advice]))


def judge_score(score: float | None, threshold: float) -> Verdict:
    """ERROR below the dataset's threshold, WARN below 0.40, and where too few images tell.

    Example:
        >>> judge_score(0.28, threshold=0.30).severity
        'ERROR'
    """
    if score is None:
        return Verdict(
            passed=False,
            severity="WARN",
            finding="there are too few different images to tell how diverse the dataset is",
            advice="add images; a few dozen are enough for a first estimate",
            measured={"threshold": threshold},
        )
    measured: Measured = {"diversity score": score, "threshold": threshold}
    if score < threshold:
        return Verdict(
            passed=False,
            finding=f"the diversity score {score:.3f} is below the threshold {threshold:.2f}",
            advice="look for redundant images and dominant groups, and add images of what is rare",
            measured=measured,
        )
    if score < GOOD_SCORE:
        return Verdict(
            passed=False,
            severity="WARN",
            finding=f"the diversity score {score:.3f} is above the threshold {threshold:.2f} but "
            f"below {GOOD_SCORE:.2f}, what is called good",
            advice="augmentation or more varied sources would help",
            measured=measured,
        )
    return Verdict(True, f"the diversity score is {score:.3f}", measured=measured)


def judge_drop(score: float | None, history: Sequence[float]) -> Verdict:
    """Whether a score fell out of the dataset's own range.

    It must lie both DROP_Z robust standard deviations (1.4826 · median absolute deviation) and
    DROP_LEAST below the median of the last DROP_HISTORY scores. A history that never moved has
    deviation 0: then the absolute change alone decides.

    Args:
        score: the newest; None where too few images tell.
        history: those before it, of the same model, oldest first.

    References:
        Iglewicz & Hoaglin, "How to detect and handle outliers", 1993 (3.5 for the robust z-score).

    Example:
        >>> judge_drop(0.30, [0.40, 0.41, 0.40, 0.39, 0.40]).passed
        False
    """
    recent = list(history[-DROP_HISTORY:])
    if score is None:
        return Verdict(True, "there are too few different images to tell")
    if len(recent) < DROP_WARM_UP:
        return Verdict(
            True,
            f"{len(recent)} earlier evaluations; a drop is judged from {DROP_WARM_UP} on",
            measured={"earlier evaluations": len(recent)},
        )
    median = statistics.median(recent)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in recent)
    drop = median - score
    z = drop / deviation if deviation > 0 else float("inf") if drop > 0 else 0.0
    measured: Measured = {
        "diversity score": score,
        "median of earlier scores": median,
        "earlier evaluations": len(recent),
        "drop": drop,
    }
    if z < DROP_Z or drop < DROP_LEAST:
        return Verdict(True, f"{score:.3f} is in the usual range ({median:.3f})", measured=measured)
    return Verdict(
        passed=False,
        severity="WARN",
        finding=f"the diversity score fell to {score:.3f} from a usual {median:.3f}",
        advice="compare the newest manifest with the one before: what was added, what is gone?",
        measured=measured,
    )


def judge_failures(n_images: int, n_failed: int) -> Verdict:
    """WARN when over 1 % of the images cannot be embedded, ERROR over 5 %.

    Example:
        >>> judge_failures(n_images=98, n_failed=2).severity
        'WARN'
    """
    total = n_images + n_failed
    rate = n_failed / total if total else 0.0
    finding = f"{n_failed:,} of {total:,} images ({rate:.1%}) could not be embedded"
    return Verdict(
        passed=rate <= FAILURES_WARN,
        severity="ERROR" if rate > FAILURES_ERROR else "WARN",
        finding=finding,
        advice="" if rate <= FAILURES_WARN else "the reasons are in the asset sscd_embeddings",
        measured={"failed": n_failed, "images": total, "rate": rate},
    )


def judge_embeddings(
    n_rows: int, n_images: int, n_failed: int, n_listed: int, norm_error: float
) -> Verdict:
    """Whether there is a finite unit vector for each image that did not fail.

    Args:
        n_rows: vectors that the moments were made of.
        n_images: images that have one, by the index.
        n_failed: images that have none, by the index.
        n_listed: images in the manifest.
        norm_error: largest | ‖x‖ − 1 | of any vector; NaN where one is not finite.
    """
    measured: Measured = {"vectors": n_rows, "listed": n_listed, "largest norm error": norm_error}
    problems = []
    if n_images + n_failed != n_listed:
        problems.append(f"the index has {n_images + n_failed:,} images, the manifest {n_listed:,}")
    if n_rows != n_images:
        problems.append(f"there are {n_rows:,} vectors for {n_images:,} images")
    if not norm_error <= NORM_TOLERANCE:
        problems.append(f"a vector's norm is off by {norm_error:.3g}")
    if problems:
        return Verdict(
            passed=False,
            finding="; ".join(problems),
            advice="run `visdiv doctor`, then materialise sscd_embeddings again",
            measured=measured,
        )
    return Verdict(True, f"{n_rows:,} finite unit vectors, one an image", measured=measured)


def judge_count(n_images: int, least: int = ENOUGH_IMAGES) -> Verdict:
    """WARN with so few images that the plain score says more of their number than of them.

    Example:
        >>> judge_count(213).passed
        False
    """
    enough = n_images >= least
    return Verdict(
        passed=enough,
        severity="WARN",
        finding=f"{n_images:,} images" + ("" if enough else f", fewer than {least:,}"),
        advice="" if enough else "the plain score of few images is biased down; do not compare it",
        measured={"images": n_images, "needed": least},
    )


def judge_age(evaluated_at: datetime | None, now: datetime) -> Verdict:
    """Whether the newest evaluation is at most 26 hours old: one night, and two hours' grace."""
    if evaluated_at is None:
        return Verdict(
            passed=False,
            finding="never evaluated",
            advice="materialise it, or see why its runs fail",
        )
    hours = (now - evaluated_at) / timedelta(hours=1)
    fresh = now - evaluated_at <= STALE_AFTER
    return Verdict(
        passed=fresh,
        finding=f"evaluated {hours:.1f} hours ago",
        advice="" if fresh else "see whether the daemon runs and why the nightly run failed",
        measured={"hours": hours, "stale after hours": STALE_AFTER / timedelta(hours=1)},
    )


def judge_model(model_id: str, previous_model_id: str | None) -> Verdict:
    """WARN when the model is another one than last time: the two scores do not compare."""
    measured: Measured = {"model": model_id, "previous model": previous_model_id or "none"}
    if previous_model_id in (None, model_id):
        return Verdict(True, "the same model as before", measured=measured)
    return Verdict(
        passed=False,
        severity="WARN",
        finding=f"scored with {model_id}, last time with {previous_model_id}",
        advice="do not compare with earlier scores; the history starts anew",
        measured=measured,
    )


def judge_drift(
    centroid: float | None, frechet: float, sampled: float, by_chance: float
) -> Verdict:
    """WARN when the images have moved further from their baseline than chance would move them.

    Args:
        centroid: distance of the means; None where there is nothing to compare with.
        frechet: squared Fréchet distance, of all images.
        sampled: the same of a sample.
        by_chance: the largest of that sample, shuffled.

    Example:
        >>> judge_drift(0.2, 0.15, sampled=0.4, by_chance=0.3).severity
        'WARN'
    """
    if centroid is None:
        return Verdict(True, "there is no earlier evaluation of the same model to compare with")
    measured: Measured = {
        "distance of the means": centroid,
        "Fréchet distance": frechet,
        "Fréchet distance of a sample": sampled,
        "the same by chance, at most": by_chance,
    }
    finding = f"the images are {frechet:.4f} (Fréchet) from the baseline"
    if sampled <= by_chance:
        return Verdict(True, f"{finding}, no more than chance", measured=measured)
    return Verdict(
        passed=False,
        severity="WARN",
        finding=f"{finding}, more than chance",
        advice="see what was added or is gone; if it is meant, pin the new state as the baseline",
        measured=measured,
    )


def judge_near_duplicates(
    n_images: int, n_exact: int, n_near: int, threshold: float, warn_rate: float
) -> Verdict:
    """WARN when more than a share of the images only repeats others.

    Args:
        n_images: all images.
        n_exact: those whose content another has, too.
        n_near: contents that are similar to one that is kept.
        threshold: cosine similarity from which two are similar.
        warn_rate: the share, 0 to 1.

    Example:
        >>> judge_near_duplicates(100, n_exact=2, n_near=6, threshold=0.75, warn_rate=0.05).severity
        'WARN'
    """
    rate = (n_exact + n_near) / n_images if n_images else 0.0
    few = rate <= warn_rate
    return Verdict(
        passed=few,
        severity="WARN",
        finding=f"{rate:.1%} of {n_images:,} images repeat others: {n_exact:,} exact copies, "
        f"{n_near:,} near-duplicates at {threshold:.2f}" + ("" if few else f" (> {warn_rate:.1%})"),
        advice="" if few else "`visdiv duplicates` lists and shows them, and which to keep",
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
    """ERROR when images of a benchmark are in a dataset, WARN when that cannot be told.

    Args:
        leaked: how many images are in each benchmark that was compared.
        not_compared: why others were not.
        threshold: cosine similarity from which an image is taken for one of the benchmark.

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
    unknown = [f"{name} was not compared, since {why}" for name, why in not_compared.items()]
    if found:
        finding = f"{', '.join(found)} (similarity ≥ {threshold:.2f})"
        return Verdict(
            passed=False,
            finding="; ".join([finding, *unknown]),
            advice="take them out before training: `visdiv leakage` lists and shows them",
            measured=measured,
        )
    if unknown:
        return Verdict(
            passed=False,
            severity="WARN",
            finding="; ".join(unknown),
            advice="evaluate both with one model",
            measured=measured,
        )
    if not leaked:
        return Verdict(True, "there is no benchmark that it could leak into", measured=measured)
    return Verdict(True, f"no image is in {', '.join(leaked)}", measured=measured)


def count_reasons(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """How often things failed for which reason, the most frequent first; numbers do not count.

    Example:
        >>> count_reasons(["truncated (3 bytes)", "truncated (17 bytes)", "empty"])
        [('truncated (N bytes)', 2), ('empty', 1)]
    """
    counts = Counter(re.sub(r"\d+", "N", reason) for reason in reasons)
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
