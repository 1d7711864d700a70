"""What an evaluation means for its dataset: verdicts, conditions, alerts.

Here: bringing together what `store` and `warehouse` hold with the decisions of `quality/`.
Not here: the decisions themselves, Dagster's checks, sending alerts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from visdiv_assets.errors import VisdivError, never_evaluated
from visdiv_assets.quality.conditions import (
    Condition,
    Facts,
    State,
    likely_reason,
    states_of_evaluation,
)
from visdiv_assets.quality.verdicts import (
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
    judge_model,
    judge_near_duplicates,
    judge_score,
)
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.drift import baseline_of, drift_between


def judge_dataset(
    dataset: str,
    threshold: float,
    store: Store,
    warehouse: Warehouse,
    now: datetime | None = None,
) -> dict[str, Verdict]:
    """Every check of a dataset's newest evaluation, by name of the check.

    Raises:
        VisdivError: the dataset was never evaluated.
    """
    history = warehouse.history(dataset)
    if not history:
        raise never_evaluated(dataset)
    *earlier, newest = history
    fingerprint, model_id = newest.manifest_fingerprint, newest.model_id
    index = store.read_index(dataset, model_id, fingerprint, ("row",))
    return {
        "score_above_threshold": _with_both_scores(
            judge_score(newest.judged_score, threshold), newest
        ),
        "score_drop": judge_drop(newest.judged_score, _comparable(newest, earlier)),
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
    scores: Measured = {"judged by": evaluation.basis, "plain score": evaluation.diversity_score}
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
    before = baseline_of(newest, earlier, warehouse)
    if before is None:
        return judge_drift(None, 0.0, 0.0, 0.0)
    if before.manifest_fingerprint == newest.manifest_fingerprint:
        return judge_drift(0.0, 0.0, 0.0, 0.0)
    try:
        drift = drift_between(before, newest, store)
    except VisdivError as error:  # kept by an older version, or gone
        return Verdict(True, f"the drift cannot be measured: {error}")
    return judge_drift(drift.centroid, drift.frechet, drift.sampled, drift.by_chance)


def states_of(
    evaluation: Evaluation, earlier: Sequence[Evaluation], threshold: float
) -> tuple[State, ...]:
    """The conditions that a new evaluation puts its dataset in, given those before it."""
    reason = likely_reason(_facts(evaluation), _facts(earlier[-1]) if earlier else None)
    states = states_of_evaluation(
        judge_score(evaluation.judged_score, threshold),
        judge_drop(evaluation.judged_score, _comparable(evaluation, earlier)),
        threshold,
        reason,
    )
    if evaluation.judged_score is None:  # nothing is known, so nothing has changed
        known = (Condition.NOT_EVALUATED, Condition.STALE)
        return tuple(state for state in states if state.condition in known)
    return states


def note_failure(
    dataset: str, reason: str, warehouse: Warehouse, *, run_id: str | None = None
) -> None:
    """Note that a dataset could not be evaluated; an alert follows if it could be before."""
    told = " ".join(redacted(reason).split())[:500]
    state = State(Condition.NOT_EVALUATED, active=True, reason=told)
    warehouse.change_conditions(dataset, [state], datetime.now(UTC), run_id)


def note_stale(datasets: Iterable[str], warehouse: Warehouse, now: datetime) -> dict[str, Verdict]:
    """Note which of these datasets nobody has evaluated for too long.

    Datasets that were never evaluated at all are not among them: their runs fail, or are due.

    Returns:
        the verdict on each dataset that has become stale just now.
    """
    wanted, known = set(datasets), warehouse.active_conditions()
    verdicts = {
        evaluation.dataset: judge_age(evaluation.evaluated_at, now)
        for evaluation in warehouse.latest_evaluations()
        if evaluation.dataset in wanted
        and Condition.STALE not in known.get(evaluation.dataset, frozenset())
    }
    stale = {dataset: verdict for dataset, verdict in verdicts.items() if not verdict.passed}
    for dataset, verdict in stale.items():
        state = State(Condition.STALE, active=True, reason=verdict.finding)
        warehouse.change_conditions(dataset, [state], now)
    return stale


def _comparable(newest: Evaluation, earlier: Sequence[Evaluation]) -> list[float]:
    """Earlier scores that were made with the same model and judged on the same basis."""
    return [
        each.judged_score
        for each in earlier
        if each.model_id == newest.model_id
        and each.basis == newest.basis
        and each.judged_score is not None
    ]


def _facts(evaluation: Evaluation) -> Facts:
    distinct = evaluation.n_distinct
    return Facts(
        n_images=evaluation.n_images,
        n_distinct=evaluation.n_images if distinct is None else distinct,
        n_failed=evaluation.n_failed,
        model_id=evaluation.model_id,
    )
