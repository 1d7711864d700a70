"""The most diverse mixture of some datasets.

Here: what `visdiv mix` and the asset `mixture_plan` share. Not here: the search for the weights
(`guidance/mixtures.py`).
"""

from collections.abc import Sequence

import numpy as np

from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.guidance.mixtures import Mixture, best_mixture
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation


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
            "the datasets were embedded with different models, so they cannot be mixed: "
            + ", ".join(sorted(models))
        )
    available = np.array([each.n_images for each in evaluations], dtype=np.float64)
    if budget is not None and available.sum() < budget:
        raise VisdivError(
            f"the datasets have {counted(int(available.sum()), 'image')}, not {budget:,}"
        )
    most = None if budget is None else available / budget
    names = [each.dataset for each in evaluations]
    return best_mixture(names, [store.read_sample(*each.where) for each in evaluations], most)
