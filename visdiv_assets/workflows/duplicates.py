"""Exact copies and near-duplicates inside a dataset, and which image of each cluster to keep.

Here: what `visdiv duplicates` and the asset `near_duplicates` share.
Not here: other datasets (`leakage.py`), contact sheets (`sheets.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.pictures import Size
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.similarity.clusters import groups_of, keep_order
from visdiv_assets.similarity.pairs import similar_components
from visdiv_assets.sources.source import Source
from visdiv_assets.spectral.corrected import CorrectedScore, corrected
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import CAPACITY, HEAVY_SHARE, Kept, Sample
from visdiv_assets.spectral.sampling import members_of, units_of
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store.index import sample_keys
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.catalogue import (
    REPORTED,
    Catalogue,
    OnProgress,
    known_share,
    rows_of,
    step,
)
from visdiv_assets.workflows.clusters import Cluster, list_clusters, sizes_of_rows
from visdiv_assets.workflows.project import EvaluatedDataset, record
from visdiv_assets.workflows.removal import look_at

BLOCK_ROWS = 8192


class Score(NamedTuple):
    """The score of some images; plain is None of fewer than two."""

    plain: float | None
    corrected: CorrectedScore | None


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What a dataset holds more than once.

    Attributes:
        evaluation: the evaluation whose images were looked at.
        threshold: cosine similarity from which two images are near-duplicates.
        split: whether every image is that similar to the one that is kept for it; otherwise
            clusters are whole components, chains among them.
        n_distinct: different contents among the images.
        near: how many contents may go at each threshold, that of the dataset among them.
        clusters: the cluster of the most contents first.
        images: the images of the clusters, cluster by cluster; columns as in DUPLICATES. Further
            names of a file that is kept are not among them.
        may_go: which of them may be removed: not those that are kept, nor any that changed or are
            gone since the evaluation, or whose kept one is.
        n_links: names, links mostly, of files that have another name in the dataset.
        method: "exact" or "index".
        recall: share of all pairs that were found; None where an index was used and that could
            not be measured.
        before: the score of the dataset as it is.
        after: its score with one image of each cluster.
    """

    evaluation: Evaluation
    threshold: float
    split: bool
    n_distinct: int
    near: Mapping[float, int]
    clusters: Sequence[Cluster]
    images: pa.Table
    may_go: NDArray[np.bool_]
    n_links: int
    method: str
    recall: float | None
    before: Score
    after: Score

    @property
    def n_images(self) -> int:
        """Images that were looked at; a file counts once, whatever names it has."""
        return self.evaluation.n_images - self.n_links

    @property
    def n_exact(self) -> int:
        """Images whose content another image has, too: those that can go without any loss."""
        return self.n_images - self.n_distinct

    @property
    def n_near(self) -> int:
        """Contents that may go, since another is similar."""
        return self.near[self.threshold]

    def rate(self, threshold: float | None = None) -> float:
        """Share of the images that may go, exact copies among them."""
        near = self.near[self.threshold if threshold is None else threshold]
        return (self.n_exact + near) / self.n_images

    @property
    def near_clusters(self) -> list[Cluster]:
        """The clusters that are more than copies of one content; the first of `clusters`."""
        return [each for each in self.clusters if each.n_contents > 1]

    @property
    def n_changed(self) -> int:
        """Images that are redundant, but not to be removed before the next evaluation."""
        return len(self.images) - len(self.clusters) - int(self.may_go.sum())

    def to_drop(self) -> pa.Table:
        """The images that may go, each with the one that is kept for it."""
        begin = np.array([each.begin for each in self.clusters], dtype=np.int64)
        kept = begin[self.images["cluster"].to_numpy() - 1]
        named = self.images.add_column(2, "kept", self.images["image_id"].take(pa.array(kept)))
        return named.filter(pa.array(self.may_go)).drop_columns(["keep", "medoid"])

    def images_of(self, cluster: Cluster) -> pa.Table:
        """The images of a cluster: the one to keep, then the others, the most similar first."""
        return self.images.slice(cluster.begin, cluster.n_images)


def duplicates_of(
    dataset: EvaluatedDataset,
    *,
    threshold: float | None = None,
    split: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Duplicates:
    """What a dataset holds more than once; recorded if found with the thresholds of its settings.

    Args:
        dataset: what to look at.
        threshold: cosine similarity, 0 to 1; as in the settings when None.
        split: divide chains or not; as in the settings when None.
        on_progress: told of progress.

    Raises:
        VisdivError: index or moments are gone.
    """
    project, wanted = dataset.project, dataset.settings.near_duplicates
    found = find_duplicates(
        dataset.evaluation,
        project.store,
        dataset.source,
        dataset.decoding,
        threshold=wanted.threshold if threshold is None else threshold,
        split=wanted.split if split is None else split,
        known=known_sizes(dataset.name, project.warehouse),
        device=dataset.device,
        on_progress=on_progress,
    )
    if (found.threshold, found.split) == (wanted.threshold, wanted.split):
        record_duplicates(found, project.warehouse)
    return found


def find_duplicates(
    evaluation: Evaluation,
    store: Store,
    source: Source,
    decoding: Decoding,
    *,
    threshold: float,
    split: bool = True,
    known: Mapping[str, Size] | None = None,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> Duplicates:
    """Exact copies and near-duplicates in a dataset, and which image of each cluster to keep.

    Clusters are connected components of the pairs that reach the threshold, divided so that every
    image is that similar to the one that is kept for it. Kept is the largest picture, of equally
    large ones the least compressed, of equal ones the first by name. A file that has several names,
    such as links, is one image; its name without links is kept.

    Args:
        evaluation: whose images.
        store: holds their embeddings and moments.
        source: where they are: those of clusters are looked at for their width and height.
        decoding: how to decode them.
        threshold: cosine similarity, 0 to 1.
        split: divide the components. If not, an image may be listed that resembles nothing that is
            kept: a component may be a chain.
        known: sizes that need not be looked at again, by content key in hex.
        device: where products are computed, as `similar_components` has it.
        on_progress: told of progress.

    Raises:
        VisdivError: index or moments are gone.
        ValueError: the threshold is not between 0 and 1.
    """
    index, rows = rows_of(evaluation, store)
    levels = sorted({threshold, *REPORTED})
    found = similar_components(
        rows, levels, device=device, on_progress=step(on_progress, "comparing")
    )
    catalogue = Catalogue(index, rows)
    sizes = sizes_of_rows(
        catalogue,
        np.concatenate([np.empty(0, np.int64), *members_of(found.labels[threshold])]),
        source,
        decoding,
        known or {},
        step(on_progress, "looking at sizes"),
    )
    rank = np.empty(len(rows), dtype=np.int64)
    rank[keep_order(sizes.pixels, sizes.bytes)] = np.arange(len(rows))
    dividing = step(on_progress, "dividing clusters")
    groups = {
        level: groups_of(rows, found.labels[level], rank, level, split=split, on_progress=dividing)
        for level in levels
    }
    listed = list_clusters(
        catalogue,
        groups[threshold],
        sizes,
        lambda places: look_at(source, index, places),
        step(on_progress, "measuring clusters"),
    )
    sample = store.read_sample(*evaluation.where)
    left = sample_of_kept(sample, rows, catalogue.counts, listed.kept)
    return Duplicates(
        evaluation=evaluation,
        threshold=threshold,
        split=split,
        n_distinct=len(rows),
        near={level: sum(len(group) - 1 for group in groups[level]) for level in levels},
        clusters=listed.clusters,
        images=listed.images,
        may_go=listed.may_go,
        n_links=listed.n_links,
        method=found.method,
        recall=known_share(found.recall),
        before=_score(sample, evaluation.sampling_unit),
        after=_score(left, evaluation.sampling_unit),
    )


def sample_of_kept(
    sample: Sample, rows: DatasetRows, counts: NDArray[np.int64], kept: NDArray[np.int64]
) -> Sample:
    """Moments and sample of a dataset of which some images are kept.

    All others are taken away from the moments; since these are exact, what is left is to the last
    bit what would have been added up of the kept rows alone.

    Args:
        sample: of the whole dataset.
        rows: its distinct rows.
        counts: how often each occurs, shape (N,).
        kept: how many images of each are kept, shape (N,).
    """
    moments, away = sample.moments, counts - kept
    taken = np.flatnonzero(away)
    for begin in range(0, len(taken), BLOCK_ROWS):
        block = taken[begin : begin + BLOCK_ROWS]
        moments = moments - Moments.of(rows[block], away[block])
    keys, left = sample_keys(rows.keys), np.flatnonzero(kept)
    first = left[np.argsort(keys[left], kind="stable")[:CAPACITY]]
    chosen = Sample.of(rows[first], kept[first].astype(np.int64), keys[first])
    rest = np.setdiff1d(left[kept[left] >= HEAVY_SHARE * moments.n], first)
    rest = rest[np.argsort(keys[rest])]
    heavy = None
    if len(rest):
        heavy = Kept(keys[rest], rows[rest].astype(np.float64), kept[rest].astype(np.int64))
    return replace(chosen, moments=moments, heavy=heavy)


def _score(sample: Sample, unit: str | None) -> Score:
    """Before and after alike: of units that a source names, only those before would be known."""
    if sample.moments.n < 2:
        return Score(None, None)
    fair = corrected(sample, units_of(sample, "row" if unit == "row" else "near-duplicates"))
    return Score(diversity(sample.moments).score, None if fair.too_few else fair)


def record_duplicates(found: Duplicates, warehouse: Warehouse) -> None:
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
    findings = {"duplicates": found.images, "redundancy": pa.Table.from_pylist([summary])}
    record(dataset, findings, warehouse)


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
