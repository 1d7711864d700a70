"""How far a dataset has moved from its baselines.

Here: what `visdiv drift`, the asset `dataset_drift` and the check `drift` share: what to compare
with, and one answer from several comparisons.
Not here: measuring drift between two samples (`guidance/drift.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from visdiv_assets.errors import VisdivError, never_evaluated
from visdiv_assets.guidance.drift import Drift, is_large, measure_drift
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse

# Slow drift is looked for over this time.
LOOKED_BACK = timedelta(days=90)


def baselines_of(
    newest: Evaluation, earlier: Sequence[Evaluation], pinned: Evaluation | None = None
) -> list[Evaluation]:
    """What the drift of a dataset is measured from: a fixed point, and the state before.

    The fixed point is the pinned evaluation, or else the oldest of the last 90 days: what moves a
    little every night is far from it in the end. The state before is the last evaluation of other
    images. Neither is an evaluation of the images of the newest one, from which nothing has moved:
    scoring a dataset again changes no baseline. What lies before the pinned evaluation is accepted
    and not looked at.

    Args:
        newest: the evaluation to judge.
        earlier: those before it, in the order of recording.
        pinned: the baseline that somebody has chosen; ignored where it is of another model, or of
            an earlier dataset of the same name.

    Returns:
        at most two different states, the older one first; all of the model of the newest one.
    """
    history = [each for each in earlier if _comparable(each, newest)]
    known = [*history, newest]
    if pinned in known:
        history = known[known.index(pinned) :]
        fixed = history[:1]
    else:
        start = newest.evaluated_at - LOOKED_BACK
        fixed = [each for each in history if each.evaluated_at >= start][:1]
    before = [each for each in history if not _same_images(each, newest)][-1:]
    different = {
        each.manifest_fingerprint: each
        for each in [*fixed, *before]
        if not _same_images(each, newest)
    }
    return list(different.values())


def _comparable(one: Evaluation, other: Evaluation) -> bool:
    """Whether what differs between two evaluations are the images of the dataset.

    Random samples of a dataset (`--precision`) have other images than the whole though nothing
    came or went.
    """
    return one.model_id == other.model_id and one.is_sample == other.is_sample


def _same_images(one: Evaluation, other: Evaluation) -> bool:
    return one.manifest_fingerprint == other.manifest_fingerprint


def drift_between(before: Evaluation, now: Evaluation, store: Store) -> Drift:
    """How far two evaluations are apart, of one dataset or of two.

    Sampling units that a source names count where both are of one dataset and name the same kind.

    Raises:
        VisdivError: other models, or moments that are gone.
    """
    if before.model_id != now.model_id:
        raise VisdivError(f"{before.dataset} and {now.dataset} were embedded with different models")
    one, other = (store.read_sample(*each.where) for each in (before, now))
    if (before.dataset, before.sampling_unit) != (now.dataset, now.sampling_unit):
        # A folder of one dataset has nothing to do with a folder of that name in another.
        one, other = replace(one, units=None), replace(other, units=None)
    return measure_drift(one, other)


@dataclass(frozen=True)
class DatasetDrift:
    """How far an evaluation is from others.

    Attributes:
        now: the newest evaluation.
        measured: the others and the drift from each, the older one first; empty if all earlier
            ones are of the same images.
    """

    now: Evaluation
    measured: tuple[tuple[Evaluation, Drift], ...]

    @property
    def comparisons(self) -> int:
        """How many can tell chance from change."""
        return sum(drift.p is not None for _, drift in self.measured)

    @property
    def large(self) -> bool:
        """Whether any is more than chance; 1 time in 20 without any drift."""
        return any(is_large(drift.p, self.comparisons) for _, drift in self.measured)

    @property
    def finding(self) -> str:
        """What was found, in words."""
        if not self.measured:
            return "the images are the same as before"
        tell = [drift for _, drift in self.measured if drift.p is not None]
        most = min(tell, key=lambda drift: drift.p or 0.0) if tell else self.measured[0][1]
        return most.finding(self.comparisons)


def drift_from(
    newest: Evaluation, earlier: Sequence[Evaluation], store: Store, warehouse: Warehouse
) -> DatasetDrift | None:
    """The drift of an evaluation from its baselines; None where there is nothing to compare with.

    Args:
        newest: the evaluation to judge.
        earlier: those before it, in the order of recording.
        store: holds the moments of all.
        warehouse: knows what is pinned.

    Raises:
        VisdivError: no baseline can be read.
    """
    if not any(_comparable(each, newest) for each in earlier):
        return None
    measured, unreadable = [], []
    for each in baselines_of(newest, earlier, warehouse.baseline(newest.dataset)):
        try:
            measured.append((each, drift_between(each, newest, store)))
        except VisdivError as error:  # kept by an older version, or gone
            unreadable.append(error)
    if unreadable and not measured:
        raise unreadable[0]
    return DatasetDrift(newest, tuple(measured))


def drift_of(name: str, store: Store, warehouse: Warehouse) -> DatasetDrift | None:
    """As `drift_from`, of the newest evaluation of a dataset."""
    history = warehouse.history(name)
    if not history:
        raise never_evaluated(name)
    *earlier, newest = history
    return drift_from(newest, earlier, store, warehouse)
