"""Group `score`: vectors to moments to the score."""

import time

import dagster as dg

from visdiv_assets.defs.assets.embed import sscd_embeddings
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import clear_errors, picture, slices_table
from visdiv_assets.defs.resources import (
    DUCKDB_WRITER_POOL,
    EmbedderResource,
    ProjectResource,
)
from visdiv_assets.defs.upstream import embedded_by
from visdiv_assets.guidance.slices import judge_slices
from visdiv_assets.report.charts import spectrum_png
from visdiv_assets.spectral.score import TOO_FEW, rate
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.workflows.evaluate import score_dataset
from visdiv_assets.workflows.moments import accumulate_moments
from visdiv_assets.workflows.order import order_of, told


@dg.asset(partitions_def=datasets, group_name="score", deps=[sscd_embeddings], kinds={"numpy"})
def embedding_moments(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    embedder: EmbedderResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Moments (n, Σx, Σxxᵀ) and a sample of a dataset's embeddings, whole and by slice."""
    started = time.monotonic()
    name = context.partition_key
    with clear_errors():
        opened = project.open()
        model_id, kept = embedder.open(name).model_id, opened.store
        slices = opened.settings.dataset(name).slices
        fingerprint, _ = embedded_by(context, sscd_embeddings.key, kept)
        moments = accumulate_moments(name, model_id, fingerprint, kept, slices=slices).moments
        parts = kept.read_slices(name, model_id, fingerprint)
    return dg.MaterializeResult(
        metadata={
            "slices": slices_table(judge_slices(parts)) if parts else "none",
            "images": moments.n,
            "dimension": moments.dimension,
            "shared by all images (‖mean‖²)": round(float(moments.mean @ moments.mean), 6),
            "seconds": round(time.monotonic() - started, 3),
        }
    )


@dg.asset(
    partitions_def=datasets,
    group_name="score",
    deps=[embedding_moments],
    pool=DUCKDB_WRITER_POOL,
    kinds={"duckdb"},
)
def diversity_metrics(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    embedder: EmbedderResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The diversity score of a dataset: a row in `evaluations`, and the spectrum behind it."""
    with clear_errors():
        opened, name = project.open(), context.partition_key
        configured = opened.settings.dataset(name)
        fingerprint, listed = embedded_by(context, sscd_embeddings.key, opened.store)
        evaluation, measured = score_dataset(
            name,
            embedder.open(name).model_id,
            fingerprint,
            opened.store,
            opened.warehouse,
            listed=listed,
            started=_run_started(context),
            threshold=configured.threshold,
            basis=configured.basis,
            recovery=opened.recovery,
            run_id=context.run.run_id,
        )
        order = told(order_of(evaluation, opened.store))
    return dg.MaterializeResult(
        metadata={
            **_corrected(evaluation),
            "diversity score (plain)": round(evaluation.diversity_score, 6),
            "effective rank (plain)": round(evaluation.effective_rank, 2),
            "participation ratio (plain)": round(evaluation.participation_ratio, 2),
            "spectrum": picture(spectrum_png(measured), "share of variance by direction"),
            "images": evaluation.n_images,
            "images listed": evaluation.n_listed or evaluation.n_images,
            "failed": evaluation.n_failed,
            "one flat colour": evaluation.n_flat or 0,
            "order by name": order or "none that matters",
            "dimension": evaluation.dimension,
            "model": evaluation.model_id,
            "seconds": round(evaluation.seconds, 3),
        }
    )


def _corrected(evaluation: Evaluation) -> dict[str, float | str]:
    if evaluation.corrected_score is None:
        return {"diversity score (corrected for size)": TOO_FEW}
    low, high = evaluation.corrected_low, evaluation.corrected_high
    stars = "★" * evaluation.stars + "☆" * (5 - evaluation.stars)
    means = rate(evaluation.corrected_score).means
    return {
        "diversity score (corrected for size)": round(evaluation.corrected_score, 6),
        "95 % interval": f"{low:.3f} to {high:.3f}",
        "rating": f"{stars} {evaluation.rating}: {means}",
    }


def _run_started(context: dg.AssetExecutionContext) -> float:
    """Unix time at which the run began; now, where no run is recorded."""
    record = context.instance.get_run_record_by_id(context.run.run_id)
    return record.start_time if record and record.start_time else time.time()
