"""Group `ingest`: what a dataset's source holds."""

import time

import dagster as dg

from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import SettingsResource, StoreResource
from visdiv_assets.defs.upstream import LISTED
from visdiv_assets.sources.names import left_out_of
from visdiv_assets.sources.opening import open_source
from visdiv_assets.workflows.evaluate import list_dataset


@dg.asset(partitions_def=datasets, group_name="ingest", kinds={"parquet"})
def image_manifest(
    context: dg.AssetExecutionContext, settings: SettingsResource, store: StoreResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The list of a dataset's images as of one look at its source: one row an image."""
    started = time.monotonic()
    with clear_errors(context.retry_number):
        source = open_source(settings.load().dataset(context.partition_key).source)
        manifest = list_dataset(context.partition_key, source, store.open())
    return dg.MaterializeResult(
        metadata={
            "source": source.uri,
            "images": len(manifest),
            "bytes": manifest.total_bytes,
            LISTED: manifest.fingerprint,
            "notes": "; ".join(manifest.notes) or "none",
            "left out": str(left_out_of(source)) or "none",
            "seconds": round(time.monotonic() - started, 3),
        },
        data_version=dg.DataVersion(manifest.fingerprint),
    )
