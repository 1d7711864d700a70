"""Group `redundancy`: the images that stand for a dataset."""

import dagster as dg

from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import clear_errors, picture
from visdiv_assets.defs.resources import SettingsResource, StoreResource, WarehouseResource
from visdiv_assets.sources.opening import open_source
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.workflows.evaluate import decoding_of
from visdiv_assets.workflows.select import core_set_sheet, record_core_set, select_core_set


@dg.asset(
    partitions_def=datasets, group_name="redundancy", deps=[diversity_metrics], kinds={"numpy"}
)
def core_set(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    store: StoreResource,
    warehouse: WarehouseResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The images of a dataset that represent the others best: rows in `core_sets`."""
    name = context.partition_key
    with clear_errors():
        loaded, kept, results = settings.load(), store.open(), warehouse.open()
        dataset = loaded.dataset(name)
        wanted = dataset.core_set
        found = select_core_set(name, kept, results, wanted.k, wanted.method, trim=wanted.trim)
        record_core_set(found, results)
        results.export(kept.root / "exports")
        sheet = core_set_sheet(found, open_source(dataset.source), decoding_of(loaded, name))
    plain, fair = found.random_plain(), found.random_corrected()
    return dg.MaterializeResult(
        metadata={
            "images": len(found.image_ids),
            "of distinct images": found.n_distinct,
            "method": found.method,
            "diversity score (plain)": _score(found.scores.plain),
            "of as many at random (plain)": _mean(plain),
            "diversity score (corrected for size)": _score(found.scores.corrected),
            "of as many at random (corrected)": _mean(fair),
            "covering radius": round(found.scores.radius, 4),
            "covering radius at random": round(found.random[0].radius, 4),
            "first ones": picture(sheet, "the first images, in the order of choice"),
            "model": found.model_id,
        }
    )


def _score(score: float | None) -> float | str:
    return TOO_FEW if score is None else round(score, 6)


def _mean(drawn: tuple[float, float] | None) -> str:
    return TOO_FEW if drawn is None else f"{drawn[0]:.4f} ± {drawn[1]:.4f}"
