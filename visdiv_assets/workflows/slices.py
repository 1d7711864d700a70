"""The parts of a dataset, and what each does to the diversity of the whole.

Here: reading them back for `visdiv slices`. Not here: what divides a dataset (`guidance/slices.py`)
and adding up its parts (`moments.py`).
"""

from visdiv_assets.guidance.slices import Slice, judge_slices
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation


def slices_of(evaluation: Evaluation, store: Store) -> list[Slice]:
    """The parts of a dataset, the largest first; none where it was not divided."""
    parts = store.read_slices(*evaluation.where)
    return judge_slices(parts) if parts else []
