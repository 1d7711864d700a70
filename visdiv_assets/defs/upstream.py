"""What a step hands on to the later steps of its run: which images it worked on.

Here: the metadata of materializations as the link between steps, so that two runs of one dataset
never mix. Not here: the images, embeddings and moments themselves, which are in the store.
"""

from collections.abc import Iterator

import dagster as dg

from visdiv_assets.errors import VisdivError
from visdiv_assets.store.store import Store

# Names in the metadata: the fingerprint of the manifest of all images, and of those that were
# embedded, which may be a sample.
LISTED, EMBEDDED = "fingerprint", "fingerprint of what was embedded"


def listed_by(context: dg.AssetExecutionContext, asset: dg.AssetKey, store: Store) -> str:
    """The fingerprint of the manifest that a run works on.

    It is what this run, or the run that it repeats, has listed; else what was listed last.

    Raises:
        VisdivError: the dataset was never listed.
    """
    found = _handed_on(context, asset, LISTED) or store.latest_fingerprint(context.partition_key)
    if found is None:
        raise VisdivError(
            f"{context.partition_key} has never been listed; materialize image_manifest first"
        )
    return found


def embedded_by(
    context: dg.AssetExecutionContext, asset: dg.AssetKey, store: Store
) -> tuple[str, str]:
    """The fingerprints of the manifests that were embedded, and listed; found as by `listed_by`."""
    embedded = _handed_on(context, asset, EMBEDDED)
    listed = listed_by(context, asset, store)
    return embedded or listed, listed


def _handed_on(context: dg.AssetExecutionContext, asset: dg.AssetKey, name: str) -> str | None:
    """What the newest materialization of an asset says, those of the context's run first."""
    for made in _materializations(context, asset):
        said = made.metadata.get(name)
        if said is not None:
            return str(said.value)
    return None


def _materializations(
    context: dg.AssetExecutionContext, asset: dg.AssetKey
) -> Iterator[dg.AssetMaterialization]:
    run: dg.DagsterRun | None = context.run
    while run is not None:
        records = context.instance.get_records_for_run(
            run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
        ).records
        for record in reversed(records):
            made = record.asset_materialization
            if made and made.asset_key == asset and made.partition == context.partition_key:
                yield made
        run = context.instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    newest = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset, asset_partitions=[context.partition_key]), limit=1
    )
    for record in newest.records:
        if record.asset_materialization:
            yield record.asset_materialization
