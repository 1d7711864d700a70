"""Core-sets of datasets: which images, how they score beside random ones, what they look like.

Here: what the Dagster asset and the command line share. Not here: the methods (`similarity/`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.pictures import pictures_of
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.errors import VisdivError
from visdiv_assets.report.sheets import SheetRow, Thumbnail, contact_sheet_png
from visdiv_assets.similarity.coreset import Method, covering_radius, select_diverse_samples
from visdiv_assets.similarity.coreset_rows import OnProgress
from visdiv_assets.sources.manifest import TEXT
from visdiv_assets.sources.source import Source
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.project import record

# Random selections that a core-set is measured against.
DRAWS = 10

SHEET_COLUMNS = 8
SHEET_PICTURES = 64


@dataclass(frozen=True)
class Scores:
    """How diverse and how representative some images are.

    There is no corrected score: that estimates the population which images were drawn from at
    random, and these were chosen. Compare the plain score with that of as many at random.

    Attributes:
        plain: diversity score, in [0, 1]; None of a single image.
        radius: greatest distance of an image of the dataset from the nearest of them, in [0, 2].
    """

    plain: float | None
    radius: float


@dataclass(frozen=True)
class CoreSet:
    """Images of a dataset that were chosen to stand for it.

    Attributes:
        dataset: its name.
        model_id: of the embeddings.
        method: of selection.
        image_ids: in the order of choice.
        n_distinct: different contents that there were to choose from.
        scores: of the images chosen.
        random: of ten random selections of the same size; the radius is of the first of them.
    """

    dataset: str
    model_id: str
    method: Method
    image_ids: list[str]
    n_distinct: int
    scores: Scores
    random: list[Scores]

    def random_plain(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the random plain scores; None of single images."""
        return _mean_and_spread([each.plain for each in self.random])


def _mean_and_spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [each for each in values if each is not None]
    return (float(np.mean(known)), float(np.std(known, ddof=1))) if len(known) > 1 else None


def default_size(n: int) -> int:
    """How many of n distinct images to choose: 5 %, but from 10 to 1,000, if there are as many.

    Example:
        >>> default_size(4), default_size(213), default_size(1_000_000)
        (4, 10, 1000)
    """
    return min(n, 1000, max(10, n // 20))


def select_core_set(
    name: str,
    store: Store,
    warehouse: Warehouse,
    k: int | None = None,
    method: Method = "k-centre",
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    trim: float = 0.0,
    on_progress: OnProgress | None = None,
) -> CoreSet:
    """Choose images of a dataset, from the embeddings of its newest evaluation.

    Of images with the same content one is chosen, the first, or the one that is included; a
    content is excluded if one of its images is.

    Args:
        name: of the dataset.
        store: holds its embeddings.
        warehouse: holds its evaluations.
        k: how many; `default_size` when None.
        method: as of `select_diverse_samples`.
        include: ids of images to be chosen in any case.
        exclude: ids of images not to be chosen.
        trim: share of the images, the most isolated, left out as outliers.
        on_progress: told of progress.

    Raises:
        VisdivError: it was never evaluated, an id is not an embedded image, or k does not fit.
    """
    [evaluation] = warehouse.newest_evaluations([name])
    index = store.read_index(name, evaluation.model_id, evaluation.manifest_fingerprint)
    rows = DatasetRows(store, evaluation.model_id, index)
    positions, offsets = rows.images_by_row()
    row_of = np.full(len(index.table), -1)
    row_of[positions] = np.repeat(np.arange(len(rows)), np.diff(offsets))
    names = index.table["image_id"]
    included = _rows_named(include, names, row_of, name)
    excluded = _rows_named(exclude, names, row_of, name)
    try:
        chosen = select_diverse_samples(
            rows,
            default_size(len(rows)) if k is None else k,
            method,
            include=list(included),
            exclude=list(excluded),
            trim=trim,
            on_progress=on_progress,
        )
    except ValueError as error:
        raise VisdivError(f"{name}: {error}") from None
    found = names.take(pa.array(rows.first[chosen])).to_pylist()
    ids = [included.get(row, image) for row, image in zip(chosen.tolist(), found, strict=True)]
    draws = (np.random.default_rng(seed) for seed in range(DRAWS))
    others = [np.sort(rng.choice(len(rows), len(chosen), replace=False)) for rng in draws]
    radii = [covering_radius(rows, chosen), covering_radius(rows, others[0])]
    return CoreSet(
        dataset=name,
        model_id=evaluation.model_id,
        method=method,
        image_ids=ids,
        n_distinct=len(rows),
        scores=_scores(rows[chosen], radii[0]),
        random=[_scores(rows[other], radii[1]) for other in others],
    )


def _rows_named(
    wanted: Sequence[str], names: pa.ChunkedArray, row_of: NDArray[np.int64], dataset: str
) -> dict[int, str]:
    """The row of each image, and the name under which it is wanted first."""
    places = pc.index_in(pa.array(wanted, TEXT), value_set=names).to_pylist()
    rows: dict[int, str] = {}
    for image_id, place in zip(wanted, places, strict=True):
        if place is None:
            raise VisdivError(f"{dataset} has no image {image_id!r}")
        if row_of[place] < 0:
            raise VisdivError(f"{image_id!r} of {dataset} could not be embedded")
        rows.setdefault(int(row_of[place]), image_id)
    return rows


def _scores(rows: NDArray[Any], radius: float) -> Scores:
    if len(rows) < 2:
        return Scores(None, radius)
    return Scores(diversity(Moments.of(rows)).score, radius)


def record_core_set(core_set: CoreSet, warehouse: Warehouse) -> None:
    """Replace the core-set of a dataset in the table `core_sets`, and export it."""
    n = len(core_set.image_ids)
    table = pa.table(
        {
            "rank": pa.array(range(1, n + 1), pa.int32()),
            "image_id": pa.array(core_set.image_ids, TEXT),
            "method": pa.array([core_set.method] * n, pa.string()),
            "selected_at": pa.array([datetime.now(UTC)] * n, pa.timestamp("us", "UTC")),
            "model_id": pa.array([core_set.model_id] * n, pa.string()),
        }
    )
    record(core_set.dataset, {"core_sets": table}, warehouse)


def core_set_sheet(core_set: CoreSet, source: Source, decoding: Decoding) -> bytes:
    """The first 64 images of a core-set in the order of choice, as a PNG."""
    shown = core_set.image_ids[:SHEET_PICTURES]
    pictures = {
        image_id: picture.pixels for image_id, _, picture in pictures_of(source, shown, decoding)
    }
    rows = []
    for start in range(0, len(shown), SHEET_COLUMNS):
        part = shown[start : start + SHEET_COLUMNS]
        title = f"chosen {start + 1} to {start + len(part)} of {len(core_set.image_ids):,}"
        rows.append(SheetRow(title, [Thumbnail(pictures.get(each), each) for each in part]))
    return contact_sheet_png(rows)
