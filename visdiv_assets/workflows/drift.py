"""How far a dataset has moved from its baseline.

Here: what `visdiv drift`, the asset `dataset_drift` and the check `drift` share.
Not here: measuring drift between two samples (`guidance/drift.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from visdiv_assets.errors import VisdivError, never_evaluated
from visdiv_assets.guidance.drift import Drift, measure_drift
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse


def baseline_of(
    newest: Evaluation, earlier: Sequence[Evaluation], warehouse: Warehouse
) -> Evaluation | None:
    """What the drift of a dataset is measured from: what was pinned, else the one before."""
    pinned = warehouse.baseline(newest.dataset)
    candidates = [pinned] if pinned is not None else earlier
    same_model = [each for each in candidates if each.model_id == newest.model_id]
    return same_model[-1] if same_model else None


def drift_between(before: Evaluation, now: Evaluation, store: Store) -> Drift:
    """How far two evaluations are apart, of one dataset or of two.

    Raises:
        VisdivError: other models, or moments that are gone.
    """
    if before.model_id != now.model_id:
        raise VisdivError(f"{before.dataset} and {now.dataset} were embedded with different models")
    one, other = (store.read_sample(*each.where) for each in (before, now))
    return measure_drift(one, other)


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
        raise never_evaluated(name)
    *earlier, newest = history
    before = baseline_of(newest, earlier, warehouse)
    if before is None:
        return None
    return DatasetDrift(newest, before, drift_between(before, newest, store))
