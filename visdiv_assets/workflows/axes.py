"""What dominates a dataset: its leading axes, keeping them, and showing the images at their ends.

Here: what `visdiv axes` and the asset `bias_axes` share. Not here: the mathematics
(`guidance/axes.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from visdiv_assets.embedding.pictures import pictures_of
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.guidance.axes import SIDES, Axes, find_axes
from visdiv_assets.report.sheets import SheetRow, Thumbnail
from visdiv_assets.sources.source import Source
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.project import record


@dataclass(frozen=True, eq=False)
class DatasetAxes:
    """The leading axes of a dataset's newest evaluation.

    Attributes:
        evaluation: which one.
        axes: what was found.
        image_ids: of each row at an end, the first image with that content.
    """

    evaluation: Evaluation
    axes: Axes
    image_ids: Mapping[int, str]


def axes_of(
    evaluation: Evaluation, store: Store, *, count: int = 5, per_end: int = 8
) -> DatasetAxes:
    """The leading axes of a dataset, and the images at their ends.

    Raises:
        VisdivError: its embeddings or moments are gone.
    """
    where = evaluation.where
    index = store.read_index(*where)
    rows = DatasetRows(store, evaluation.model_id, index)
    slices = {name: part.moments for name, part in store.read_slices(*where).items()}
    found = find_axes(store.read_moments(*where), rows, slices, count=count, per_end=per_end)
    ends = {int(row) for axis in found.axes for end in axis.ends for row in end.rows}
    ids = index.table["image_id"]
    names = {row: str(ids[int(rows.first[row])].as_py()) for row in sorted(ends)}
    return DatasetAxes(evaluation, found, names)


def record_axes(found: DatasetAxes, warehouse: Warehouse) -> None:
    """Keep what lies at the ends of each axis in `bias_axes`, and export it."""
    now, rows = datetime.now(UTC), []
    for axis in found.axes.axes:
        for side, end in zip(SIDES, axis.ends, strict=True):
            placed = axis.slice_at(side)
            for rank, (row, position) in enumerate(zip(end.rows, end.positions, strict=True), 1):
                rows.append(
                    {
                        "axis": axis.number,
                        "share": axis.share,
                        "side": side,
                        "side_likeness": None if np.isnan(end.likeness) else end.likeness,
                        "side_share": end.beyond,
                        "rank": rank,
                        "image_id": found.image_ids[int(row)],
                        "position": float(position),
                        "between_slices": axis.between,
                        "slice": placed.name if placed else None,
                        "shared": found.axes.shared,
                        "model_id": found.evaluation.model_id,
                        "measured_at": now,
                    }
                )
    record(found.evaluation.dataset, {"bias_axes": pa.Table.from_pylist(rows)}, warehouse)


def axes_sheet(found: DatasetAxes, source: Source, decoding: Decoding) -> list[SheetRow]:
    """The images at both ends of each axis, a row for each end."""
    pixels = {
        name: picture.pixels
        for name, _, picture in pictures_of(source, found.image_ids.values(), decoding)
    }
    sheet = []
    for axis in found.axes.axes:
        for side, end in zip(SIDES, axis.ends, strict=True):
            names = [found.image_ids[int(row)] for row in end.rows]
            title = f"{axis.number}{side}   one end of {axis.share * 100:.1f} % of all variation"
            if not np.isnan(end.likeness):
                title += f"   mean cosine {end.likeness:.2f}"
            if placed := axis.slice_at(side):
                title += f"   slice {placed.name}"
            sheet.append(SheetRow(title, [Thumbnail(pixels.get(name), name) for name in names]))
    return sheet
