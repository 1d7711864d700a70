"""What an evaluation means for its dataset: verdicts and conditions.

Here: bringing together what `store` and `warehouse` hold with the decisions of `quality/`.
Not here: the decisions themselves, recording conditions (`watch.py`), Dagster's checks.
"""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from visdiv_assets.errors import VisdivError, counted, never_evaluated
from visdiv_assets.quality.conditions import (
    PLAIN_MARGIN,
    RECOVERY,
    Condition,
    Facts,
    State,
    is_below,
    likely_reason,
    states_of_evaluation,
)
from visdiv_assets.quality.verdicts import (
    DROP_HISTORY,
    LOST_SHARE,
    Measured,
    Verdict,
    judge_age,
    judge_count,
    judge_drift,
    judge_drop,
    judge_embeddings,
    judge_failures,
    judge_flat,
    judge_leakage,
    judge_lost,
    judge_model,
    judge_near_duplicates,
    judge_one_image,
    judge_score,
)
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.drift import drift_from


def judge_dataset(
    dataset: str,
    threshold: float,
    store: Store,
    warehouse: Warehouse,
    now: datetime | None = None,
    *,
    after_evaluation: int = 0,
) -> dict[str, Verdict]:
    """Every check of a dataset's newest evaluation, by name of the check.

    Args:
        dataset: its name.
        threshold: score below which the check of the score fails.
        store: holds what was scored.
        warehouse: holds the evaluations.
        now: aware datetime; the current time when None.
        after_evaluation: number of the last evaluation of an earlier dataset of that name.

    Raises:
        VisdivError: the dataset was never evaluated.
    """
    history = [each for each in warehouse.history(dataset) if (each.number or 0) > after_evaluation]
    if not history:
        raise never_evaluated(dataset)
    *earlier, newest = history
    fingerprint, model_id = newest.manifest_fingerprint, newest.model_id
    index = store.index_of(dataset, model_id, fingerprint)
    return {
        "score_above_threshold": _with_both_scores(
            judge_score(newest.judged_score, threshold, newest.many_times_score), newest
        ),
        "not_one_image": judge_one_image(newest.spread, newest.n_images, newest.n_units),
        "score_drop": _judge_drop(newest, earlier),
        "images_lost": judge_lost(_listed(newest), [_listed(each) for each in earlier]),
        "decode_failures": judge_failures(newest.n_images, newest.n_failed),
        "flat_images": judge_flat(newest.n_images, newest.n_flat),
        "embeddings_valid": judge_embeddings(
            n_rows=store.read_moments(dataset, model_id, fingerprint).n,
            n_images=index.n_images,
            n_failed=index.n_failed,
            n_listed=len(index.table)
            if newest.is_sample
            else store.manifest_length(dataset, fingerprint),
            norm_error=store.read_norm_error(dataset, model_id, fingerprint),
        ),
        "enough_images": judge_count(newest.n_images),
        "not_stale": judge_age(newest.evaluated_at, now or datetime.now(UTC)),
        "model_unchanged": judge_model(model_id, earlier[-1].model_id if earlier else None),
        "drift": _judge_drift(newest, earlier, store, warehouse),
    }


def judge_duplicates_of(dataset: str, warn_rate: float, warehouse: Warehouse) -> Verdict:
    """Whether a dataset repeats itself too much, by what was found last.

    Raises:
        VisdivError: nobody has looked for duplicates yet.
    """
    found = warehouse.rows("redundancy", dataset)
    if not found:
        raise VisdivError(
            f"{dataset} has not been searched for duplicates; run `visdiv duplicates {dataset}`"
        )
    [row] = found
    return judge_near_duplicates(
        n_images=row["n_images"],
        n_exact=row["n_images"] - row["n_distinct"],
        n_near=row["n_near"],
        threshold=row["threshold"],
        warn_rate=warn_rate,
    )


def judge_leakage_of(dataset: str, threshold: float, warehouse: Warehouse) -> Verdict:
    """Whether images of benchmarks are in a dataset, by what was found last."""
    rows = warehouse.rows("leakage", dataset)
    return judge_leakage(
        {each["benchmark"]: each["n_leaked"] for each in rows if each["not_compared"] is None},
        {each["benchmark"]: each["not_compared"] for each in rows if each["not_compared"]},
        threshold,
    )


def _with_both_scores(verdict: Verdict, evaluation: Evaluation) -> Verdict:
    """The verdict on a score, with the other score and the interval beside it."""
    unit = evaluation.sampling_unit or "row"
    by = "score as it is" if evaluation.basis == "plain" else f"corrected score, by {unit}"
    scores: Measured = {"judged by": by, "score as it is": evaluation.diversity_score}
    if evaluation.two_readings:
        scores["two readings"] = evaluation.two_readings
    if evaluation.corrected_score is None:
        scores["corrected score"] = TOO_FEW
    else:
        scores["corrected score"] = evaluation.corrected_score
        scores["95 % interval"] = (
            f"{evaluation.corrected_low:.3f} to {evaluation.corrected_high:.3f}"
        )
    return replace(verdict, measured={**verdict.measured, **scores})


def _judge_drift(
    newest: Evaluation, earlier: Sequence[Evaluation], store: Store, warehouse: Warehouse
) -> Verdict:
    try:
        found = drift_from(newest, earlier, store, warehouse)
    except VisdivError as error:
        return judge_drift(False, f"the drift cannot be measured: {error}")
    if found is None:
        return judge_drift(
            False, "there is no earlier evaluation of the same model to compare with"
        )
    told: list[str] = []
    measured: Measured = {}
    for at, (before, drift) in enumerate(reversed(found.measured)):
        since = f"{before.evaluated_at:%Y-%m-%d %H:%M} UTC"
        about = "" if drift.exact else "about "
        told.append(
            f"since {since}, {about}{counted(drift.came.images, 'image')} came and "
            f"{about}{drift.went.images:,} went: {drift.finding(found.comparisons)}"
        )
        of = ", in the long run" if at else ""
        measured |= {
            f"since{of}": since,
            f"came{of}": drift.came.images,
            f"went{of}": drift.went.images,
            f"stayed{of}": drift.stayed,
            f"distance of the means{of}": drift.centroid,
            f"squared Fréchet distance{of}": drift.frechet,
            f"p-value{of}": "cannot tell" if drift.p is None else drift.p,
        }
    return judge_drift(found.large, "; ".join(told) or found.finding, measured)


def _judge_drop(
    newest: Evaluation, earlier: Sequence[Evaluation], *, was_dropped: bool = False
) -> Verdict:
    """The verdict on a score's fall below its usual range, from the intervals of all."""
    score, history = newest.judged_score, _comparable(newest, earlier)[-DROP_HISTORY:]
    return judge_drop(
        score,
        [each.judged_score for each in history if each.judged_score is not None],
        _fall_by_chance(newest, history),
        was_dropped=was_dropped,
    )


def _fall_by_chance(newest: Evaluation, history: Sequence[Evaluation]) -> float | None:
    """How far a score may be below earlier ones by chance; None where there are no intervals.

    That is so far that their intervals do not overlap. In single comparisons, half as much again as
    is sure to 95 %; but scores are compared every night, and one by chance every month is too many.
    """
    if not history or not all(map(_has_interval, [newest, *history])):
        return None
    return _margin(newest, up=True) + statistics.median(map(_margin, history))


def _has_interval(evaluation: Evaluation) -> bool:
    return None not in (
        evaluation.corrected_score,
        evaluation.corrected_low,
        evaluation.corrected_high,
    )


def states_of(
    evaluation: Evaluation,
    earlier: Sequence[Evaluation],
    threshold: float,
    active: Collection[str] = (),
    recovery: timedelta = RECOVERY,
) -> tuple[State, ...]:
    """The conditions that a new evaluation puts its dataset in.

    Args:
        evaluation: the new one.
        earlier: those before it, in the order of recording.
        threshold: score below which an alert is due.
        active: the conditions that hold so far.
        recovery: how long a score must stay above its threshold to count as recovered.
    """
    reason = likely_reason(_facts(evaluation), _facts(earlier[-1]) if earlier else None)
    listed = [_listed(each) for each in earlier]
    score = evaluation.judged_score
    states = states_of_evaluation(
        evaluation.diversity_score < threshold
        if score is None
        else is_below(
            score,
            threshold,
            was_below=Condition.BELOW_THRESHOLD in active,
            margin=_margin(evaluation),
            above_for=_above_for(evaluation, earlier, threshold),
            recovery=recovery,
        ),
        _judge_drop(evaluation, earlier, was_dropped=Condition.DROPPED in active),
        judge_lost(_listed(evaluation), listed),
        threshold,
        reason,
        regained=_listed(evaluation) >= LOST_SHARE * max(listed[-DROP_HISTORY:], default=0),
    )
    if score is None:  # nothing is known of it, so nothing has changed
        of_scores = {Condition.BELOW_THRESHOLD, Condition.DROPPED}
        if evaluation.is_one_many_times:  # but this is known, and no better than a low score
            of_scores.remove(Condition.BELOW_THRESHOLD)
        return tuple(state for state in states if state.condition not in of_scores)
    return states


def _listed(evaluation: Evaluation) -> int:
    return evaluation.n_listed or evaluation.n_images + evaluation.n_failed


def _margin(evaluation: Evaluation, *, up: bool = False) -> float:
    """From the judged score down to the lower end of its interval, or up to the upper one.

    A plain score is no estimate and has none of its own; as much of it is taken as of the
    corrected score.
    """
    score = evaluation.corrected_score
    end = evaluation.corrected_high if up else evaluation.corrected_low
    if score is None or end is None:
        return PLAIN_MARGIN
    margin = abs(end - score)
    if evaluation.basis != "plain":
        return margin
    share = margin / score if score else 0.0
    return share * evaluation.diversity_score


def _above_for(
    evaluation: Evaluation, earlier: Sequence[Evaluation], threshold: float
) -> timedelta:
    """For how long every evaluation has found the score to be above; for ever if all have.

    All have where it was the threshold that fell below the score, and not the other way round.
    """
    since = evaluation.evaluated_at
    for each in reversed(earlier):
        if each.judged_score is None or each.judged_score < threshold:
            return evaluation.evaluated_at - since
        since = min(since, each.evaluated_at)
    return timedelta.max


def _comparable(newest: Evaluation, earlier: Sequence[Evaluation]) -> list[Evaluation]:
    """Earlier evaluations whose scores mean the same as that of the newest one."""
    return [
        each
        for each in earlier
        if each.model_id == newest.model_id
        and each.basis == newest.basis
        and (newest.basis == "plain" or each.estimated_like(newest))
        and each.judged_score is not None
    ]


def _facts(evaluation: Evaluation) -> Facts:
    distinct = evaluation.n_distinct
    return Facts(
        n_images=evaluation.n_images,
        n_distinct=evaluation.n_images if distinct is None else distinct,
        n_failed=evaluation.n_failed,
        model_id=evaluation.model_id,
        estimator=evaluation.estimator,
        sampling_unit=evaluation.sampling_unit or "row",
    )
