"""The most diverse mixture of some datasets.

Here: what `visdiv mix` and the asset `mixture_plan` share. Not here: the search for the weights
(`guidance/mixtures.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.guidance.mixtures import Mixture, best_mixture
from visdiv_assets.spectral.moments import FloatArray
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation

NO_BOUNDS: Mapping[str, float] = MappingProxyType({})


def plan_mixture(
    evaluations: Sequence[Evaluation],
    store: Store,
    *,
    budget: int | None = None,
    most: Mapping[str, float] = NO_BOUNDS,
    least: Mapping[str, float] = NO_BOUNDS,
    on_found: Callable[[float], None] = lambda score: None,
) -> Mixture:
    """The most diverse mixture of some datasets.

    Args:
        evaluations: the newest of each, of one model.
        store: holds their moments.
        budget: images in the mixture; a dataset cannot give more than it has. No limit when None.
        most: the largest share of the mixture, in [0, 1], of some datasets by name.
        least: the smallest share of some datasets.
        on_found: is told the best corrected score so far, whenever the search has a new one.

    Raises:
        VisdivError: different models, fewer images than the budget, or shares that no mixture has.
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
    names = [each.dataset for each in evaluations]
    for name in [*most, *least]:
        if name not in names:
            raise VisdivError(f"{name} is given a share, but isn't among the datasets to mix")
    largest = np.array([most.get(name, 1.0) for name in names])
    smallest = np.array([least.get(name, 0.0) for name in names])
    if budget is not None:
        largest = np.minimum(largest, available / budget)
    _check_bounds(names, smallest, largest)
    samples = [store.read_sample(*each.where) for each in evaluations]
    return best_mixture(names, samples, largest, smallest, on_found)


def _check_bounds(names: Sequence[str], least: FloatArray, most: FloatArray) -> None:
    """Check that some mixture is within the bounds.

    Raises:
        VisdivError: none is.
    """
    for name, low, high in zip(names, least.tolist(), most.tolist(), strict=True):
        if low > high:
            raise VisdivError(
                f"{name} cannot be at least {low:.1%} and at most {high:.1%} of the mixture"
            )
    if least.sum() > 1 + 1e-9:
        raise VisdivError(f"the smallest shares add up to {least.sum():.1%}, more than 100 %")
    if most.sum() < 1 - 1e-9:
        raise VisdivError(f"the largest shares add up to {most.sum():.1%}, less than 100 %")
