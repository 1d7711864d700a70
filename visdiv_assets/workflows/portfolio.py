"""Datasets beside each other: leaderboard, best mixture, drift; from what store and warehouse hold.

Here: what the Dagster assets and the command line share. Not here: the mathematics (`guidance/`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visdiv_assets.errors import VisdivError
from visdiv_assets.guidance.comparison import Difference, Scored, compare
from visdiv_assets.guidance.drift import Drift
from visdiv_assets.guidance.mixtures import Mixture, best_mixture
from visdiv_assets.guidance.slices import Slice, judge_slices
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Evaluation, Warehouse
from visdiv_assets.workflows.judge import baseline_of, drift_between


def leaderboard(evaluations: Sequence[Evaluation]) -> tuple[list[Evaluation], list[Difference]]:
    """Evaluations by corrected score, the highest first, and which differences are sure."""
    ranked = sorted(evaluations, key=lambda each: -(each.corrected_score or 0.0))
    scored = [
        Scored(each.dataset, each.corrected_score, each.corrected_low, each.corrected_high)
        for each in ranked
        if each.corrected_score is not None
        and each.corrected_low is not None
        and each.corrected_high is not None
    ]
    return ranked, compare(scored)


def sample_of(evaluation: Evaluation, store: Store) -> Sample:
    """The moments and the sample that an evaluation was made from; VisdivError if they are gone."""
    return store.read_sample(
        evaluation.dataset, evaluation.model_id, evaluation.manifest_fingerprint
    )


def plan_mixture(
    evaluations: Sequence[Evaluation], store: Store, *, budget: int | None = None
) -> Mixture:
    """The most diverse mixture of some datasets.

    Args:
        evaluations: the newest of each, of one model.
        store: holds their moments.
        budget: images in the mixture; a dataset cannot give more than it has. No limit when None.

    Raises:
        VisdivError: different models, or fewer images than the budget.
    """
    models = {each.model_id for each in evaluations}
    if len(models) > 1:
        raise VisdivError(
            "the datasets were embedded with different models, which do not mix: "
            + ", ".join(sorted(models))
        )
    available = np.array([each.n_images for each in evaluations], dtype=np.float64)
    if budget is not None and available.sum() < budget:
        raise VisdivError(f"the datasets have {available.sum():,.0f} images, not {budget:,}")
    most = None if budget is None else available / budget
    names = [each.dataset for each in evaluations]
    return best_mixture(names, [sample_of(each, store) for each in evaluations], most)


def slices_of(evaluation: Evaluation, store: Store) -> list[Slice]:
    """The parts of a dataset, the largest first; none where it was not divided."""
    parts = store.read_slices(
        evaluation.dataset, evaluation.model_id, evaluation.manifest_fingerprint
    )
    return judge_slices(parts) if parts else []


@dataclass(frozen=True)
class DatasetDrift:
    """How far a dataset's newest evaluation is from another."""

    now: Evaluation
    before: Evaluation
    drift: Drift


def drift_of(name: str, store: Store, warehouse: Warehouse) -> DatasetDrift | None:
    """The drift of a dataset from its baseline; None where there is nothing to compare with."""
    history = warehouse.history(name)
    if not history:
        raise VisdivError(f"{name} was never evaluated; visdiv score {name} does that")
    *earlier, newest = history
    before = baseline_of(newest, earlier, warehouse)
    if before is None:
        return None
    return DatasetDrift(newest, before, drift_between(before, newest, store))
