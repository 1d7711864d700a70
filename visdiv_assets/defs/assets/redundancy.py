"""Group `redundancy`: what a dataset repeats, what is in benchmarks, and which images suffice."""

import time

import dagster as dg

from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import (
    clear_errors,
    clusters_table,
    kept_picture,
    leakage_table,
    leaks_table,
    log_steps,
)
from visdiv_assets.defs.resources import (
    GPU_POOL,
    ProjectResource,
)
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.workflows.catalogue import REPORTED, as_text
from visdiv_assets.workflows.duplicates import Duplicates, Score, duplicates_of
from visdiv_assets.workflows.leakage import leakage_of
from visdiv_assets.workflows.select import core_set_sheet, record_core_set, select_core_set
from visdiv_assets.workflows.sheets import duplicates_sheet, overlaps_sheet

# More rows would be too small to look at in Dagster.
ROWS_SHOWN = 5


@dg.asset(
    partitions_def=datasets,
    group_name="redundancy",
    deps=[diversity_metrics],
    pool=GPU_POOL,
    kinds={"scipy", "duckdb"},
)
def near_duplicates(
    context: dg.AssetExecutionContext, project: ProjectResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Exact copies and near-duplicates in a dataset, and which image of each cluster to keep."""
    started = time.monotonic()
    with clear_errors():
        dataset = project.open().dataset(context.partition_key)
        found = duplicates_of(dataset, on_progress=log_steps(context))
        shown: dg.MarkdownMetadataValue | str = "none"
        if found.clusters:
            sheet = duplicates_sheet(found, dataset.source, dataset.decoding, ROWS_SHOWN)
            shown = kept_picture(
                sheet, "largest clusters", dataset.project.store, dataset.name, "near_duplicates"
            )
    return dg.MaterializeResult(
        metadata={
            **_rates(found),
            "exact copies": found.n_exact,
            "clusters": len(found.near_clusters),
            "largest clusters": shown,
            "images by cluster": clusters_table(found),
            "score (corrected), as it is": _corrected(found.before),
            "score (corrected), duplicates removed": _corrected(found.after),
            "score (plain), as it is": _or_few(found.before.plain),
            "score (plain), duplicates removed": _or_few(found.after.plain),
            "method": found.method,
            "recall": "unknown" if found.recall is None else round(found.recall, 4),
            "model": dataset.evaluation.model_id,
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
    context: dg.AssetExecutionContext, project: ProjectResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The images of a dataset that are in datasets of the role `benchmark`, too."""
    started = time.monotonic()
    with clear_errors():
        dataset = project.open().dataset(context.partition_key)
        found = leakage_of(dataset, on_progress=log_steps(context))
        leaking = [each for each in found.overlaps if len(each.images)]
        others = [dataset.project.dataset(each.other.dataset) for each in leaking]
        places = {each.name: (each.source, each.decoding) for each in [dataset, *others]}
        shown: dg.MarkdownMetadataValue | str = "none"
        if leaking:
            shown = kept_picture(
                overlaps_sheet(leaking, places, ROWS_SHOWN),
                "images and what benchmarks have",
                dataset.project.store,
                dataset.name,
                "benchmark_leakage",
            )
    not_compared = "; ".join(f"{each}: {why}" for each, why in found.not_compared.items())
    if not not_compared:
        benchmark = dataset.settings.role == "benchmark"
        not_compared = "it is a benchmark itself" if benchmark else "none"
    return dg.MaterializeResult(
        metadata={
            "images in benchmarks": sum(len(each.images) for each in leaking),
            "threshold": dataset.settings.leakage.threshold,
            "benchmarks": leakage_table(found.overlaps),
            "images": leaks_table(leaking),
            "leaks": shown,
            "not compared": not_compared,
            "model": dataset.evaluation.model_id,
            "seconds": round(time.monotonic() - started, 3),
        }
    )


@dg.asset(
    partitions_def=datasets, group_name="redundancy", deps=[diversity_metrics], kinds={"numpy"}
)
def core_set(context: dg.AssetExecutionContext, project: ProjectResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The images of a dataset that represent the others best: rows in `core_sets`."""
    with clear_errors():
        dataset = project.open().dataset(context.partition_key)
        kept, results = dataset.project.store, dataset.project.warehouse
        wanted = dataset.settings.core_set
        found = select_core_set(
            dataset.name, kept, results, wanted.k, wanted.method, trim=wanted.trim
        )
        record_core_set(found, results)
        shown = kept_picture(
            core_set_sheet(found, dataset.source, dataset.decoding),
            "the first images, in the order of choice",
            kept,
            dataset.name,
            "core_set",
        )
    return dg.MaterializeResult(
        metadata={
            "images": len(found.image_ids),
            "of distinct images": found.n_distinct,
            "method": found.method,
            "diversity score (plain)": _or_few(found.scores.plain),
            "random selections (plain)": _mean(found.random_plain()),
            "covering radius": round(found.scores.radius, 4),
            "covering radius at random": round(found.random[0].radius, 4),
            "first images": shown,
            "model": found.model_id,
        }
    )


def _rates(found: Duplicates) -> dict[str, float]:
    levels = dict.fromkeys([found.threshold, *REPORTED])
    return {
        f"share of redundant images at {as_text(each)}": round(found.rate(each), 6)
        for each in levels
    }


def _corrected(score: Score) -> float | str:
    return _or_few(score.corrected.score if score.corrected else None)


def _or_few(score: float | None) -> float | str:
    return TOO_FEW if score is None else round(score, 6)


def _mean(drawn: tuple[float, float] | None) -> str:
    return TOO_FEW if drawn is None else f"{drawn[0]:.4f} ± {drawn[1]:.4f}"
