"""Group `redundancy`: what a dataset repeats, and what of it is in benchmarks."""

import time

import dagster as dg

from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import (
    clear_errors,
    clusters_table,
    leakage_table,
    leaks_table,
    log_steps,
    picture,
)
from visdiv_assets.defs.resources import (
    GPU_POOL,
    SettingsResource,
    StoreResource,
    WarehouseResource,
)
from visdiv_assets.sources.opening import open_source
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.workflows.catalogue import REPORTED, as_text, device_for
from visdiv_assets.workflows.duplicates import Duplicates, Score, find_duplicates
from visdiv_assets.workflows.evaluate import decoding_of
from visdiv_assets.workflows.leakage import benchmarks_of, comparable, find_overlap
from visdiv_assets.workflows.records import known_sizes, record_duplicates, record_leakage
from visdiv_assets.workflows.sheets import duplicates_sheet, overlaps_sheet

# Pictures are kept in Dagster's own database, 25 KB each.
ROWS_SHOWN = 5


@dg.asset(
    partitions_def=datasets,
    group_name="redundancy",
    deps=[diversity_metrics],
    pool=GPU_POOL,
    kinds={"scipy", "duckdb"},
)
def near_duplicates(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    store: StoreResource,
    warehouse: WarehouseResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Exact copies and near-duplicates in a dataset, and which image of each cluster to keep."""
    started, name = time.monotonic(), context.partition_key
    with clear_errors():
        configured = settings.load()
        wanted = configured.dataset(name)
        kept, results = store.open(), warehouse.open()
        [evaluation] = results.newest_evaluations([name])
        source, decoding = open_source(wanted.source), decoding_of(configured, name)
        found = find_duplicates(
            evaluation,
            kept,
            source,
            decoding,
            threshold=wanted.near_duplicates.threshold,
            split=wanted.near_duplicates.split,
            known=known_sizes(name, results),
            device=device_for(configured.embedder_of(name), evaluation.n_images),
            on_progress=log_steps(context),
        )
        record_duplicates(found, kept, results)
        sheet = duplicates_sheet(found, source, decoding, ROWS_SHOWN) if found.clusters else None
    return dg.MaterializeResult(
        metadata={
            **_rates(found),
            "exact copies": found.n_exact,
            "clusters": len(found.near_clusters),
            "largest clusters": picture(sheet, "largest clusters") if sheet else "none",
            "images by cluster": clusters_table(found),
            "score (corrected), as it is": _corrected(found.before),
            "score (corrected), duplicates removed": _corrected(found.after),
            "score (plain), as it is": _plain(found.before),
            "score (plain), duplicates removed": _plain(found.after),
            "method": found.method,
            "recall": "unknown" if found.recall is None else round(found.recall, 4),
            "model": evaluation.model_id,
            "seconds": round(time.monotonic() - started, 3),
        }
    )


@dg.asset(
    partitions_def=datasets,
    group_name="redundancy",
    deps=[diversity_metrics],
    pool=GPU_POOL,
    kinds={"scipy", "duckdb"},
)
def benchmark_leakage(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    store: StoreResource,
    warehouse: WarehouseResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The images of a dataset that are in datasets of the role `benchmark`, too."""
    started, name = time.monotonic(), context.partition_key
    with clear_errors():
        configured = settings.load()
        wanted = configured.dataset(name)
        kept, results = store.open(), warehouse.open()
        [evaluation] = results.newest_evaluations([name])
        benchmarks, not_compared = comparable(evaluation, benchmarks_of(configured, name), results)
        overlaps = [
            find_overlap(
                evaluation,
                benchmark,
                kept,
                threshold=wanted.leakage.threshold,
                device=device_for(configured.embedder_of(name), evaluation.n_images),
                on_progress=log_steps(context),
            )
            for benchmark in benchmarks
        ]
        record_leakage(name, overlaps, not_compared, kept, results)
        leaking = [each for each in overlaps if len(each.images)]
        places = {
            each: (open_source(configured.dataset(each).source), decoding_of(configured, each))
            for each in [name, *(each.other.dataset for each in leaking)]
        }
        sheet = overlaps_sheet(leaking, places, ROWS_SHOWN) if leaking else None
    return dg.MaterializeResult(
        metadata={
            "images in benchmarks": sum(len(each.images) for each in overlaps),
            "threshold": wanted.leakage.threshold,
            "benchmarks": leakage_table(overlaps),
            "images": leaks_table(leaking),
            "leaks": picture(sheet, "images and what benchmarks have") if sheet else "none",
            "not compared": "; ".join(f"{each}: {why}" for each, why in not_compared.items())
            or ("it is a benchmark itself" if wanted.role == "benchmark" else "none"),
            "model": evaluation.model_id,
            "seconds": round(time.monotonic() - started, 3),
        }
    )


def _rates(found: Duplicates) -> dict[str, float]:
    levels = dict.fromkeys([found.threshold, *REPORTED])
    return {f"images that may go at {as_text(each)}": round(found.rate(each), 6) for each in levels}


def _corrected(score: Score) -> float | str:
    return TOO_FEW if score.corrected is None else round(score.corrected.score, 6)


def _plain(score: Score) -> float | str:
    return TOO_FEW if score.plain is None else round(score.plain, 6)
