"""Group `guidance`: what dominates a dataset, and what would make it more diverse."""

import time
from functools import partial

import dagster as dg

from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import (
    clear_errors,
    effects_table,
    kept_picture,
    log_steps,
    picture,
    sentences,
)
from visdiv_assets.defs.resources import (
    DUCKDB_WRITER_POOL,
    GPU_POOL,
    EmbedderResource,
    ProjectResource,
)
from visdiv_assets.guidance.augmentation import ENOUGH_IMAGES, advise
from visdiv_assets.guidance.axes import describe
from visdiv_assets.report.charts import effects_png
from visdiv_assets.report.sheets import contact_sheet_png
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.workflows.augment import (
    augmentations_sheet,
    measure_augmentations,
    record_augmentations,
    sample_images,
)
from visdiv_assets.workflows.axes import axes_of, axes_sheet, record_axes


@dg.asset(
    partitions_def=datasets,
    group_name="guidance",
    deps=[diversity_metrics],
    pool=DUCKDB_WRITER_POOL,
    kinds={"numpy"},
)
def bias_axes(context: dg.AssetExecutionContext, project: ProjectResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The contrasts that dominate a dataset, and the images at both ends of each."""
    started = time.monotonic()
    with clear_errors():
        dataset = project.open().dataset(context.partition_key)
        found = axes_of(dataset.evaluation, dataset.project.store)
        record_axes(found, dataset.project.warehouse)
        shown = kept_picture(
            contact_sheet_png(axes_sheet(found, dataset.source, dataset.decoding)),
            "images at both ends of each axis",
            dataset.project.store,
            dataset.name,
            "bias_axes",
        )
    return dg.MaterializeResult(
        metadata={
            "summary": sentences(describe(found.axes)),
            "largest contrast (share of variance)": (
                round(found.axes.axes[0].share, 6) if found.axes.axes else 0.0
            ),
            "shared by all images (‖mean‖²)": round(found.axes.shared, 6),
            "images at both ends": shown,
            "seconds": round(time.monotonic() - started, 3),
        }
    )


@dg.asset(
    partitions_def=datasets,
    group_name="guidance",
    deps=[diversity_metrics],
    pool=GPU_POOL,
    kinds={"pytorch", "onnx"},
)
def augmentation_guidance(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    embedder: EmbedderResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """What standard augmentations do to the diversity of a dataset, measured on a sample of it."""
    started = time.monotonic()
    with clear_errors():
        dataset = project.open().dataset(context.partition_key)
        evaluation, kept = dataset.evaluation, dataset.project.store
        if (evaluation.n_distinct or evaluation.n_images) < ENOUGH_IMAGES:
            few = f"{TOO_FEW}: measuring augmentations needs {ENOUGH_IMAGES} different images"
            return dg.MaterializeResult(metadata={"summary": sentences([few])})
        sample = sample_images(evaluation, kept, dataset.source, dataset.decoding)
        on_progress = partial(log_steps(context), "embedding")
        model = embedder.open(dataset.name)
        measured = list(measure_augmentations(sample, model, on_progress=on_progress))
        record_augmentations(measured, evaluation, dataset.project.warehouse)
        shown = kept_picture(
            contact_sheet_png(augmentations_sheet(sample, measured)),
            "copies that each augmentation makes",
            kept,
            dataset.name,
            "augmentation_guidance",
        )
    effects = {each.augmentation.name: each.effect for each in measured}
    return dg.MaterializeResult(
        metadata={
            "summary": sentences(advise(effects)),
            "effects": effects_table(measured),
            "changes": picture(effects_png(effects), "changes of the corrected score"),
            "examples": shown,
            "images": len(sample.keys),
            "seconds": round(time.monotonic() - started, 3),
        }
    )
