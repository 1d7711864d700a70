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
from visdiv_assets.spectral.score import TOO_FEW
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
        configured = opened.settings.dataset(name)
        fingerprint, _ = embedded_by(context, sscd_embeddings.key, kept)
        moments = accumulate_moments(
            name,
            model_id,
            fingerprint,
            kept,
            slices=configured.slices,
            sampling_unit=configured.sampling_unit,
        ).moments
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
            sampling_unit=configured.sampling_unit,
            recovery=opened.recovery,
            run_id=context.run.run_id,
        )
        order = told(order_of(evaluation, opened.store))
    return dg.MaterializeResult(
        metadata={
            "diversity score (as it is)": round(evaluation.diversity_score, 6),
            **_corrected(evaluation),
            "effective rank (as it is)": round(evaluation.effective_rank, 2),
            "participation ratio (as it is)": round(evaluation.participation_ratio, 2),
            "spectrum": picture(spectrum_png(measured), "share of variance by direction"),
            **_alikeness(evaluation),
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
    said: dict[str, float | str] = {
        "sampling unit": evaluation.sampling_unit or "row",
        "sampling units": round(evaluation.n_units or 0.0, 1),
        "rating": " ".join(filter(None, [evaluation.rated.text, evaluation.rating])),
    }
    if evaluation.meaning:
        said["rating"] = f"{said['rating']}: {evaluation.meaning}"
    if evaluation.two_readings:
        said["two readings"] = evaluation.two_readings
    if evaluation.corrected_score is None:
        return {"diversity score (corrected)": TOO_FEW, **said}
    low, high = evaluation.corrected_low, evaluation.corrected_high
    return {
        "diversity score (corrected)": round(evaluation.corrected_score, 6),
        "95 % interval": f"{low:.3f} to {high:.3f}",
        "effective rank (corrected)": _with_interval(
            evaluation.corrected_effective_rank,
            evaluation.effective_rank_low,
            evaluation.effective_rank_high,
        ),
        "participation ratio (corrected)": _with_interval(
            evaluation.corrected_participation_ratio,
            evaluation.participation_ratio_low,
            evaluation.participation_ratio_high,
        ),
        **said,
    }


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _alikeness(evaluation: Evaluation) -> dict[str, float]:
    return {
        "spread (1 − ‖mean‖²)": round(evaluation.spread or 0.0, 4),
        "Vendi score (order 1)": round(evaluation.vendi or 0.0, 2),
        "RKE score (order 2)": round(evaluation.rke or 0.0, 2),
    }


def _run_started(context: dg.AssetExecutionContext) -> float:
    """Unix time at which the run began; now, where no run is recorded."""
    record = context.instance.get_run_record_by_id(context.run.run_id)
    return record.start_time if record and record.start_time else time.time()
