"""What was found of a dataset, kept in the warehouse and exported.

Here: the rows of the tables `duplicates`, `redundancy`, `leaks` and `leakage`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from visdiv_assets.embedding.pictures import Size
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.duplicates import Duplicates
from visdiv_assets.workflows.leakage import Overlap


def record_duplicates(found: Duplicates, store: Store, warehouse: Warehouse) -> None:
    """Replace what the warehouse says of a dataset's duplicates, and export it."""
    dataset = found.evaluation.dataset
    smallest = [each.smallest for each in found.near_clusters]
    before, after = found.before, found.after
    summary = {
        "found_at": datetime.now(UTC),
        "model_id": found.evaluation.model_id,
        "manifest_fingerprint": found.evaluation.manifest_fingerprint,
        "threshold": found.threshold,
        "split": found.split,
        "n_images": found.n_images,
        "n_distinct": found.n_distinct,
        "n_near": found.n_near,
        "n_clusters": len(smallest),
        "rate": found.rate(),
        "rate_090": found.rate(0.90),
        "rate_095": found.rate(0.95),
        "smallest_similarity": min(smallest, default=None),
        "score": before.plain,
        "score_without": after.plain,
        "corrected_score": before.corrected and before.corrected.score,
        "corrected_without": after.corrected and after.corrected.score,
        "method": found.method,
        "recall": found.recall,
    }
    warehouse.replace_rows("duplicates", dataset, found.images)
    warehouse.replace_rows("redundancy", dataset, pa.Table.from_pylist([summary]))
    warehouse.export(store.root / "exports")


def known_sizes(dataset: str, warehouse: Warehouse) -> dict[str, Size]:
    """Sizes of images that were found to be duplicates before, by content key in hex."""
    names = ["content_key", "width", "height", "bytes"]
    table = warehouse.columns("duplicates", dataset, names)
    if table is None:
        return {}
    keys, *sizes = (
        table.filter(pc.is_valid(table["width"])).column(name).to_pylist() for name in names
    )
    return dict(zip(keys, map(Size, *sizes), strict=True))


def record_leakage(
    dataset: str,
    overlaps: Sequence[Overlap],
    not_compared: Mapping[str, str],
    store: Store,
    warehouse: Warehouse,
) -> None:
    """Replace what the warehouse says of a dataset's images in benchmarks, and export it."""
    now = datetime.now(UTC)
    compared: list[dict[str, object]] = [
        {
            "benchmark": each.other.dataset,
            "found_at": now,
            "model_id": each.evaluation.model_id,
            "threshold": each.threshold,
            "n_images": each.evaluation.n_images,
            "n_leaked": len(each.images),
            "n_exact": each.n_exact,
            "n_benchmark_images": each.other.n_images,
            "n_benchmark_seen": each.n_other,
            "method": each.method,
            "recall": each.recall,
        }
        for each in overlaps
    ]
    skipped: list[dict[str, object]] = [
        {"benchmark": name, "found_at": now, "not_compared": reason}
        for name, reason in not_compared.items()
    ]
    leaks = [
        each.images.rename_columns({"other_image_id": "benchmark_image_id"}).add_column(
            0, "benchmark", pa.array([each.other.dataset] * len(each.images), pa.string())
        )
        for each in overlaps
        if len(each.images)
    ]
    warehouse.replace_rows("leaks", dataset, pa.concat_tables(leaks) if leaks else pa.table({}))
    names = list(dict.fromkeys(name for row in [*compared, *skipped] for name in row))
    rows = [{name: row.get(name) for name in names} for row in [*compared, *skipped]]
    warehouse.replace_rows("leakage", dataset, pa.Table.from_pylist(rows))
    warehouse.export(store.root / "exports")
