"""Group `embed`: images to vectors."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
        configured = settings.load().dataset(context.partition_key)
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
        },
        data_version=dg.DataVersion(f"{embedded.index.content_fingerprint()}.{model.model_id}"),
    )


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
