"""Group `embed`: images to vectors."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import dagster as dg

from visdiv_assets.defs.assets.ingest import image_manifest
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import (
    clear_errors,
    failures_table,
    log_progress,
    reasons_table,
)
from visdiv_assets.defs.resources import (
    GPU_POOL,
    EmbedderResource,
    SettingsResource,
    StoreResource,
    WarehouseResource,
)
from visdiv_assets.defs.upstream import EMBEDDED, LISTED, listed_by
from visdiv_assets.sources.opening import open_source
from visdiv_assets.workflows.engine import Work
from visdiv_assets.workflows.engines import engine_of
from visdiv_assets.workflows.evaluate import embed_dataset


@dg.asset(
    partitions_def=datasets,
    group_name="embed",
    deps=[image_manifest],
    pool=GPU_POOL,
    kinds={"pytorch", "onnx"},
)
def sscd_embeddings(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    store: StoreResource,
    embedder: EmbedderResource,
    warehouse: WarehouseResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """SSCD descriptors of a dataset's images, as float16 segments keyed by image content."""
    started = time.monotonic()
    with clear_errors(context.retry_number), _hangup_ends_like_sigterm():
        loaded = settings.load()
        configured = loaded.dataset(context.partition_key)
        source = open_source(configured.source)
        model, kept = embedder.open(context.partition_key), store.open()
        listed = listed_by(context, image_manifest.key, kept)
        embedded = embed_dataset(
            context.partition_key,
            kept.read_manifest(context.partition_key, listed),
            source,
            model,
            kept,
            warehouse.open(),
            precision=configured.sample.precision if configured.sample else None,
            sampling_unit=configured.sampling_unit,
            engine=engine_of(loaded, context.partition_key, configured.source),
            on_progress=log_progress(context),
        )
    seconds = time.monotonic() - started
    return dg.MaterializeResult(
        metadata={
            "images": embedded.index.n_images,
            "newly embedded": embedded.n_new,
            "failed": embedded.index.n_failed,
            "one flat colour": embedded.index.n_flat,
            "failures by reason": reasons_table(embedded.index.failures()),
            "failures": failures_table(embedded.index.failures()),
            "seconds": round(seconds, 3),
            "images/s": round(embedded.n_new / seconds, 1),
            "model": model.model_id,
            LISTED: listed,
            EMBEDDED: embedded.manifest.fingerprint,
            **_shared(embedded.work),
        },
        data_version=dg.DataVersion(f"{embedded.index.content_fingerprint()}.{model.model_id}"),
    )


def _shared(work: Work | None) -> dict[str, dg.MetadataValue[Any] | int | str]:
    """What workers have done, as metadata."""
    if work is None:
        return {"engine": "local"}
    columns = [
        dg.TableColumn("worker", "string"),
        dg.TableColumn("units", "int"),
        dg.TableColumn("images", "int"),
        dg.TableColumn("images/s", "float"),
    ]
    rows = [
        dg.TableRecord(
            {
                "worker": worker.name,
                "units": worker.units,
                "images": worker.images,
                "images/s": round(worker.images / max(worker.seconds, 1e-3), 1),
            }
        )
        for worker in work.workers
    ]
    return {
        "engine": "ray",
        "units": work.units,
        "workers": len(work.workers),
        "retries": work.retries,
        "images/s by worker": dg.MetadataValue.table(rows, dg.TableSchema(columns)),
    }


@contextmanager
def _hangup_ends_like_sigterm() -> Iterator[None]:
    """Keep finished rows when a terminal is closed, as Dagster lets SIGTERM keep them."""
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    in_main = threading.current_thread() is threading.main_thread()
    if hangup is None or not in_main or signal.getsignal(hangup) is not signal.SIG_DFL:
        yield  # else nohup, or a program around this one
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # several may come at once
        signal.raise_signal(signal.SIGTERM)

    signal.signal(hangup, end)
    try:
        yield
    finally:
        signal.signal(hangup, signal.SIG_DFL)
