"""Exact copies and near-duplicates inside a dataset, and which image of each cluster to keep.

Here: finding and counting them, the score without them. Not here: other datasets (`overlaps.py`),
keeping and drawing what was found (`records.py`, `sheets.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.pictures import Size, sizes_of
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.similarity.clusters import (
    Components,
    Members,
    cover,
    extent_of,
    keep_order,
    members_of,
    similarities_to,
)
from visdiv_assets.similarity.exact import Pairs, Similarities
from visdiv_assets.similarity.pairs import similar_pairs
from visdiv_assets.sources.source import Source
from visdiv_assets.spectral.corrected import CorrectedScore, corrected
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import CAPACITY, Sample
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store.index import sample_keys
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Evaluation
from visdiv_assets.workflows.catalogue import (
    REPORTED,
    Catalogue,
    OnProgress,
    known_share,
    rows_of,
    step,
)

BLOCK_ROWS = 8192

DUPLICATES = pa.schema(
    [
        ("cluster", pa.int64()),
        ("image_id", pa.string()),
        ("kind", pa.string()),
        ("keep", pa.bool_()),
        ("medoid", pa.bool_()),
        ("similarity_to_kept", pa.float32()),
        ("similarity_to_medoid", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("content_key", pa.string()),
    ]
)


class Score(NamedTuple):
    """The score of some images; plain is None of fewer than two."""

    plain: float | None
    corrected: CorrectedScore | None


@dataclass(frozen=True)
class Cluster:
    """Images of which one is enough.

    Attributes:
        number: from 1, the cluster of the most contents first.
        n_contents: different contents; 1 where all its images are exact copies.
        n_images: images that have them.
        smallest: the smallest similarity of two of its contents, as `clusters.extent_of` says.
        begin: where its images begin in the table of images; the one to keep is there.
    """

    number: int
    n_contents: int
    n_images: int
    smallest: float
    begin: int


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What a dataset holds more than once.

    Attributes:
        evaluation: the evaluation whose images were looked at.
        threshold: cosine similarity from which two images are near-duplicates.
        split: whether every image is that similar to the one that is kept for it.
        n_distinct: different contents among the images.
        near: how many contents may go at each threshold, that of the dataset among them.
        clusters: the cluster of the most contents first.
        images: the images of the clusters, cluster by cluster; columns as in DUPLICATES.
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
    method: str
    recall: float | None
    before: Score
    after: Score

    @property
    def n_images(self) -> int:
        """Images that were looked at."""
        return self.evaluation.n_images

    @property
    def n_exact(self) -> int:
        """Images whose content another image has, too: those that may go without any loss."""
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

    def to_drop(self) -> pa.Table:
        """The images that may go, each with the one that is kept for it."""
        begin = np.array([each.begin for each in self.clusters], dtype=np.int64)
        kept = begin[self.images["cluster"].to_numpy() - 1]
        named = self.images.add_column(2, "kept", self.images["image_id"].take(pa.array(kept)))
        return named.filter(pc.invert(named["keep"])).drop_columns(["keep", "medoid"])

    def images_of(self, cluster: Cluster) -> pa.Table:
        """The images of a cluster: the one to keep, then the others, the most similar first."""
        return self.images.slice(cluster.begin, cluster.n_images)


def find_duplicates(
    evaluation: Evaluation,
    store: Store,
    source: Source,
    decoding: Decoding,
    *,
    threshold: float,
    split: bool = False,
    known: Mapping[str, Size] | None = None,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> Duplicates:
    """Exact copies and near-duplicates in a dataset, and which image of each cluster to keep.

    Clusters are connected components of the pairs that reach the threshold. Kept is the largest
    picture, of equally large ones the least compressed, of equal ones the first by name.

    Args:
        evaluation: whose images.
        store: holds their embeddings and moments.
        source: where they are: those of clusters are looked at for their width and height.
        decoding: how to decode them.
        threshold: cosine similarity, 0 to 1.
        split: divide the components, so that every image is at least `threshold` similar to the
            one that is kept for it.
        known: sizes that need not be looked at again, by content key in hex.
        device: where products are computed, as `similar_pairs` has it.
        on_progress: told of progress.

    Raises:
        VisdivError: index or moments are gone.
        ValueError: the threshold is not between 0 and 1.
    """
    index, rows = rows_of(evaluation, store)
    levels = sorted({threshold, *REPORTED})
    graphs = {level: Components(len(rows)) for level in levels}

    def join(pairs: Pairs, similarities: Similarities) -> None:
        for level, graph in graphs.items():
            graph.join(pairs[similarities >= np.float32(level)])

    found = similar_pairs(
        rows,
        min(levels),
        device=device,
        on_pairs=join,
        on_progress=step(on_progress, "comparing"),
    )
    components = {level: members_of(graph.labels()) for level, graph in graphs.items()}
    catalogue = Catalogue(index, rows)
    sizes = _sizes(
        catalogue,
        np.concatenate([np.empty(0, np.int64), *components[threshold]]),
        source,
        decoding,
        known or {},
        step(on_progress, "looking at sizes"),
    )
    rank = np.empty(len(rows), dtype=np.int64)
    rank[keep_order(sizes.pixels, sizes.bytes)] = np.arange(len(rows))
    near = {level: len(rows) - graph.count for level, graph in graphs.items()}
    groups = [members[np.argsort(rank[members])] for members in components[threshold]]
    if split:
        for level in levels:
            divided = [
                cover(rows, members[np.argsort(rank[members])], level)
                for members in components[level]
            ]
            near[level] = sum(len(group) - 1 for parts in divided for group in parts)
            if level == threshold:
                groups = [group for parts in divided for group in parts if len(group) > 1]
    clusters, images = _listed(catalogue, groups, sizes, step(on_progress, "measuring clusters"))
    sample = store.read_sample(
        evaluation.dataset, evaluation.model_id, evaluation.manifest_fingerprint
    )
    kept = np.ones(len(rows), dtype=np.bool_)
    for group in groups:
        kept[group[1:]] = False
    left = sample_of_kept(sample, rows, catalogue.counts, kept)
    return Duplicates(
        evaluation=evaluation,
        threshold=threshold,
        split=split,
        n_distinct=len(rows),
        near=near,
        clusters=clusters,
        images=images,
        method=found.method,
        recall=known_share(found.recall),
        before=_score(sample),
        after=_score(left),
    )


def sample_of_kept(
    sample: Sample, rows: DatasetRows, counts: NDArray[np.int64], kept: NDArray[np.bool_]
) -> Sample:
    """Moments and sample of a dataset of which some contents are kept, each once.

    All others are taken away from the moments; since these are exact, what is left is to the last
    bit what would have been added up of the kept rows alone.

    Args:
        sample: of the whole dataset.
        rows: its distinct rows.
        counts: how often each occurs, shape (N,).
        kept: which of them are kept, shape (N,).
    """
    moments, away = sample.moments, counts - kept
    taken = np.flatnonzero(away)
    for begin in range(0, len(taken), BLOCK_ROWS):
        block = taken[begin : begin + BLOCK_ROWS]
        moments = moments - Moments.of(rows[block], away[block])
    keys, left = sample_keys(rows.keys), np.flatnonzero(kept)
    first = left[np.argsort(keys[left], kind="stable")[:CAPACITY]]
    chosen = Sample.of(rows[first], keys=keys[first])
    return Sample(moments, chosen.keys, chosen.rows, chosen.counts, chosen.capacity)


def _score(sample: Sample) -> Score:
    if sample.moments.n < 2:
        return Score(None, None)
    fair = corrected(sample)
    return Score(diversity(sample.moments).score, None if fair.too_few else fair)


class _Sizes(NamedTuple):
    """Of each row: width and height, 0 where not looked at or gone; and bytes."""

    width: NDArray[np.int64]
    height: NDArray[np.int64]
    bytes: NDArray[np.int64]

    @property
    def pixels(self) -> NDArray[np.int64]:
        return self.width * self.height


def _sizes(
    catalogue: Catalogue,
    wanted: Members,
    source: Source,
    decoding: Decoding,
    known: Mapping[str, Size],
    on_progress: Callable[[int, int], None] | None,
) -> _Sizes:
    """Sizes of the rows that are wanted; each is read once, and not where it is known."""
    width, height = np.zeros((2, len(catalogue.rows)), dtype=np.int64)
    sizes = _Sizes(width, height, catalogue.bytes.copy())
    names = catalogue.ids_of(wanted)
    told = {
        name: known[key]
        for name, key in zip(names, catalogue.keys_of(wanted), strict=True)
        if key in known
    }
    missing = [name for name in names if name not in told]
    if missing:
        told |= sizes_of(source, missing, decoding, on_progress)
    for row, name in zip(wanted, names, strict=True):
        if name in told:
            sizes.width[row], sizes.height[row], sizes.bytes[row] = told[name]
    return sizes


def _listed(
    catalogue: Catalogue,
    groups: Sequence[Members],
    sizes: _Sizes,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[Cluster], pa.Table]:
    """The clusters of groups of rows, the kept one first in each, and the table of images.

    What is in no group, but has several images, is a cluster of its own.
    """
    grouped = np.zeros(len(catalogue.rows), dtype=np.bool_)
    for group in groups:
        grouped[group] = True
    alone = [np.array([row]) for row in np.flatnonzero((catalogue.counts > 1) & ~grouped)]
    ordered = sorted(
        [*groups, *alone],
        key=lambda group: (-len(group), -int(catalogue.counts[group].sum()), int(group.min())),
    )
    clusters, members, parts = [], [], []
    begin = 0
    for number, group in enumerate(ordered, start=1):
        extent = extent_of(catalogue.rows, group)
        to_kept = extent.to_medoid
        if len(group) > 1:  # else it is the medoid, and nothing need be read
            to_kept = similarities_to(catalogue.rows, group, group[0])
        order = np.r_[0, 1 + np.argsort(-to_kept[1:], kind="stable")]
        n_images = int(catalogue.counts[group].sum())
        clusters.append(Cluster(number, len(group), n_images, extent.smallest, begin))
        begin += n_images
        members.append(group[order])
        parts.append((order == extent.medoid, to_kept[order], extent.to_medoid[order]))
        if on_progress is not None:
            on_progress(number, len(ordered))
    if not clusters:
        return [], DUPLICATES.empty_table()
    rows = np.concatenate(members)
    medoid, to_kept, to_medoid = (np.concatenate(each) for each in zip(*parts, strict=True))
    of, images = catalogue.images_of(rows)
    first = np.r_[True, of[1:] != of[:-1]]  # of the images that have one row
    kept = np.zeros(len(images), dtype=np.bool_)
    kept[[each.begin for each in clusters]] = True
    unseen, unsized = sizes.width[rows] == 0, sizes.bytes[rows] == 0
    table = pa.table(
        [
            pa.array(np.repeat([e.number for e in clusters], [e.n_images for e in clusters])),
            catalogue.ids.take(pa.array(images)),
            pa.array(np.where(first, "near", "exact"), pa.string(), mask=kept),
            pa.array(kept),
            pa.array(medoid[of] & first),
            pa.array(to_kept[of]),
            pa.array(to_medoid[of]),
            pa.array(sizes.width[rows][of].astype(np.int32), mask=unseen[of]),
            pa.array(sizes.height[rows][of].astype(np.int32), mask=unseen[of]),
            pa.array(sizes.bytes[rows][of], mask=unsized[of]),
            pa.array(catalogue.keys_of(rows)).take(pa.array(of)),
        ],
        schema=DUPLICATES,
    )
    return clusters, table
