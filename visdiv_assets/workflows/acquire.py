"""Which other dataset would add most to one, and how many of its images.

Here: what `visdiv acquire` does, from moments and samples. Not here: mixtures themselves
(`guidance/mixtures.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from visdiv_assets.errors import VisdivError
from visdiv_assets.guidance.comparison import Scored, compare
from visdiv_assets.guidance.mixtures import best_mixture
from visdiv_assets.spectral.corrected import ENOUGH_UNITS, CorrectedScore, corrected
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.project import record


@dataclass(frozen=True)
class Acquisition:
    """What another dataset would add to one that is kept whole.

    Attributes:
        other: name of the other dataset.
        share: of the other in the most diverse mixture, in [0, 1).
        n_images: how many of its images that is, beside all of one's own.
        n_available: how many it has.
        corrected: score of the mixture.
        gain: change of the corrected score, relative; NaN where too few images tell.
        sure: whether it is more than chance.
    """

    other: str
    share: float
    n_images: int
    n_available: int
    corrected: CorrectedScore
    gain: float
    sure: bool


def acquisitions_of(
    name: str, others: Sequence[str], store: Store, warehouse: Warehouse
) -> tuple[Evaluation, list[Acquisition]]:
    """What each of some datasets would add to one, the most first; from moments and samples.

    The one keeps all its images; of the other as many are added as make the mixture most
    diverse, and no more than it has.

    Raises:
        VisdivError: no others, one that was never evaluated or with another model, or too few
            images to tell the score of `name`.
    """
    evaluation, *rest = warehouse.newest_evaluations([name, *others])
    if not rest:
        raise VisdivError(f"there is no other dataset to add to {name}")
    for other in rest:
        if other.model_id != evaluation.model_id:
            raise VisdivError(
                f"{other.dataset} and {name} were embedded with different models, so they cannot "
                "be mixed"
            )
    own = store.read_sample(*evaluation.where)
    score = corrected(own)
    if score.too_few or len(own.keys) < ENOUGH_UNITS:
        raise VisdivError(
            f"{name} has too few different images to say what would make it more diverse"
        )
    found = []
    for other in rest:
        most = other.n_images / (evaluation.n_images + other.n_images)
        theirs = store.read_sample(*other.where)
        plan = best_mixture([name, other.dataset], [own, theirs], np.array([1.0, most]))
        share, mixed = float(plan.weights[1]), plan.corrected
        if len(theirs.keys) < ENOUGH_UNITS:  # no mixture with it can be judged
            share, mixed = 0.0, replace(mixed, score=np.nan, low=np.nan, high=np.nan)
        gain, sure = float("nan"), False
        if not mixed.too_few:
            gain = mixed.score / score.score - 1 if score.score > 0 else float("inf")
            scored = [
                Scored(label, each.score, each.low, each.high)
                for label, each in (("mixed", mixed), ("own", score))
            ]
            # They share images, so that their difference is surer than this test takes it to be.
            sure = share > 0 and compare(scored)[0].sure
        found.append(
            Acquisition(
                other.dataset,
                share,
                min(round(evaluation.n_images * share / (1 - share)), other.n_images),
                other.n_images,
                mixed,
                gain,
                sure,
            )
        )
    return evaluation, sorted(
        found, key=lambda each: (-np.nan_to_num(each.gain, nan=-1), each.other)
    )


def record_acquisitions(
    evaluation: Evaluation, found: Sequence[Acquisition], warehouse: Warehouse
) -> None:
    """Keep what other datasets would add in `acquisitions`, and export it."""
    now = datetime.now(UTC)
    rows = [
        {
            "other": each.other,
            "share": each.share,
            "n_images": each.n_images,
            **{
                key: None if np.isnan(value) else value
                for key, value in (
                    ("gain", each.gain),
                    ("corrected_score", each.corrected.score),
                    ("corrected_low", each.corrected.low),
                    ("corrected_high", each.corrected.high),
                )
            },
            "sure": each.sure,
            "model_id": evaluation.model_id,
            "measured_at": now,
        }
        for each in found
    ]
    record(evaluation.dataset, {"acquisitions": pa.Table.from_pylist(rows)}, warehouse)
