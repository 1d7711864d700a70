"""What a dataset holds more than once, what of it is in others, and what an image is most like.

Here: what the Dagster assets and the command line share, from store, warehouse and source.
Not here: pairs and clusters of vectors (`similarity/`), drawing (`report/sheets.py`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.index import EmbeddingIndex, content_key, sample_keys
from visdiv_assets.embedding.pipeline import Embedder
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, Pixels
from visdiv_assets.embedding.rows import DatasetRows
from visdiv_assets.embedding.store import Store, to_grid
from visdiv_assets.errors import VisdivError
from visdiv_assets.pictures import Size, pictures_of, sizes_of
from visdiv_assets.report.sheets import SheetRow, Thumbnail, contact_sheet_png
from visdiv_assets.settings import EmbedderSettings, Settings
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
from visdiv_assets.similarity.pairs import nearest, similar_pairs
from visdiv_assets.sources.source import Source
from visdiv_assets.spectral.corrected import CorrectedScore, corrected
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import CAPACITY, Sample
from visdiv_assets.spectral.score import diversity
from visdiv_assets.warehouse.warehouse import Evaluation, Warehouse

# Reported beside whatever threshold is set.
REPORTED = (0.90, 0.95)

# Rows of pictures on a contact sheet, and pictures in each.
SHEET_ROWS = 10
SHEET_COLUMNS = 8

# With fewer rows, importing torch takes longer than comparing them on the CPU.
WORTH_A_GPU = 20_000

BLOCK_ROWS = 8192

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much is done."""

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

MATCHES = pa.schema(
    [
        ("image_id", pa.string()),
        ("other_image_id", pa.string()),
        ("similarity", pa.float32()),
        ("exact", pa.bool_()),
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
    index, rows = _rows_of(evaluation, store)
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
        on_progress=_step(on_progress, "comparing"),
    )
    components = {level: members_of(graph.labels()) for level, graph in graphs.items()}
    catalogue = _Catalogue(index, rows)
    sizes = catalogue.sizes(
        np.concatenate([np.empty(0, np.int64), *components[threshold]]),
        source,
        decoding,
        known or {},
        _step(on_progress, "looking at sizes"),
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
    clusters, images = catalogue.listed(groups, sizes, _step(on_progress, "measuring clusters"))
    sample = store.read_sample(
        evaluation.dataset, evaluation.model_id, evaluation.manifest_fingerprint
    )
    kept = np.ones(len(rows), dtype=np.bool_)
    for first, *others in groups:
        kept[others] = False
        kept[first] = True
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
        recall=_known(found.recall),
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


class _Catalogue:
    """From rows to the images that have them."""

    def __init__(self, index: EmbeddingIndex, rows: DatasetRows) -> None:
        self.rows = rows
        self.ids = index.table["image_id"].combine_chunks()
        self.images, self.offsets = rows.images_by_row()
        self.counts: NDArray[np.int64] = np.diff(self.offsets)
        listed = index.table["size"].fill_null(0).to_numpy()
        self.bytes: NDArray[np.int64] = listed[rows.first].astype(np.int64)

    def images_of(self, rows: Members) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All images of some rows: which of the rows each has, and where it is in the index."""
        counts = self.counts[rows]
        of = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        return of, self.images[self.offsets[rows[of]] + within]

    def row_of(self, place: int) -> int | None:
        """The row of an image of the index; None where it has none."""
        at = np.flatnonzero(self.images == place)
        return int(np.searchsorted(self.offsets, at[0], side="right")) - 1 if len(at) else None

    def ids_of(self, rows: NDArray[np.integer]) -> list[str]:
        """The first image of each row."""
        return list(self.ids.take(pa.array(self.rows.first[rows])).to_pylist())

    def keys_of(self, rows: NDArray[np.integer]) -> list[str]:
        """The content key of each row, in hex."""
        width = self.rows.keys.dtype.itemsize
        keys = self.rows.keys[rows].tobytes()
        return [keys[at : at + width].hex() for at in range(0, len(keys), width)]

    def sizes(
        self,
        wanted: Members,
        source: Source,
        decoding: Decoding,
        known: Mapping[str, Size],
        on_progress: Callable[[int, int], None] | None,
    ) -> _Sizes:
        """Sizes of the rows that are wanted; each is read once, and not where it is known."""
        width, height = np.zeros((2, len(self.rows)), dtype=np.int64)
        sizes = _Sizes(width, height, self.bytes.copy())
        names = self.ids_of(wanted)
        told = {
            name: known[key]
            for name, key in zip(names, self.keys_of(wanted), strict=True)
            if key in known
        }
        missing = [name for name in names if name not in told]
        if missing:
            told |= sizes_of(source, missing, decoding, on_progress)
        for row, name in zip(wanted, names, strict=True):
            if name in told:
                sizes.width[row], sizes.height[row], sizes.bytes[row] = told[name]
        return sizes

    def listed(
        self,
        groups: Sequence[Members],
        sizes: _Sizes,
        on_progress: Callable[[int, int], None] | None,
    ) -> tuple[list[Cluster], pa.Table]:
        """The clusters of groups of rows, the kept one first in each, and the table of images.

        What is in no group, but has several images, is a cluster of its own.
        """
        grouped = np.zeros(len(self.rows), dtype=np.bool_)
        for group in groups:
            grouped[group] = True
        alone = [np.array([row]) for row in np.flatnonzero((self.counts > 1) & ~grouped)]
        ordered = sorted(
            [*groups, *alone],
            key=lambda group: (-len(group), -int(self.counts[group].sum()), int(group.min())),
        )
        clusters, members, parts = [], [], []
        begin = 0
        for number, group in enumerate(ordered, start=1):
            to_kept = similarities_to(self.rows, group, group[0])
            order = np.r_[0, 1 + np.argsort(-to_kept[1:], kind="stable")]
            extent = extent_of(self.rows, group)
            n_images = int(self.counts[group].sum())
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
        of, images = self.images_of(rows)
        first = np.r_[True, of[1:] != of[:-1]]  # of the images that have one row
        kept = np.zeros(len(images), dtype=np.bool_)
        kept[[each.begin for each in clusters]] = True
        unseen, unsized = sizes.width[rows] == 0, sizes.bytes[rows] == 0
        table = pa.table(
            [
                pa.array(np.repeat([e.number for e in clusters], [e.n_images for e in clusters])),
                self.ids.take(pa.array(images)),
                pa.array(np.where(first, "near", "exact"), pa.string(), mask=kept),
                pa.array(kept),
                pa.array(medoid[of] & first),
                pa.array(to_kept[of]),
                pa.array(to_medoid[of]),
                pa.array(sizes.width[rows][of].astype(np.int32), mask=unseen[of]),
                pa.array(sizes.height[rows][of].astype(np.int32), mask=unseen[of]),
                pa.array(sizes.bytes[rows][of], mask=unsized[of]),
                pa.array(self.keys_of(rows)).take(pa.array(of)),
            ],
            schema=DUPLICATES,
        )
        return clusters, table


@dataclass(frozen=True, eq=False)
class Overlap:
    """Images of a dataset that another one has, too.

    Attributes:
        evaluation: of the one.
        other: of the other.
        threshold: cosine similarity from which two images are taken for one.
        images: for each image of the one that is in the other, the image there that is most like
            it; columns as in MATCHES, in order of ids.
        counts: how many images of the one there are at each threshold.
        n_exact: how many of them have the same bytes there.
        n_other: how many images of the other are in the one.
        method: "exact" or "index".
        recall: share of all pairs that were found; None where an index was used and that could
            not be measured.
    """

    evaluation: Evaluation
    other: Evaluation
    threshold: float
    images: pa.Table
    counts: Mapping[float, int]
    n_exact: int
    n_other: int
    method: str
    recall: float | None

    @property
    def rate(self) -> float:
        """Share of the images of the one that are in the other."""
        return len(self.images) / self.evaluation.n_images

    @property
    def other_rate(self) -> float:
        """Share of the images of the other that are in the one."""
        return self.n_other / self.other.n_images


def find_overlap(
    evaluation: Evaluation,
    other: Evaluation,
    store: Store,
    *,
    threshold: float,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> Overlap:
    """Which images of one dataset are in another, or so like one there that they may be.

    Args:
        evaluation: of the one.
        other: of the other, of the same model.
        store: holds the embeddings of both.
        threshold: cosine similarity, 0 to 1.
        device: as `similar_pairs` has it.
        on_progress: told of progress.

    Raises:
        VisdivError: different models, or an index that is gone.
        ValueError: the threshold is not between 0 and 1.
    """
    if evaluation.model_id != other.model_id:
        raise VisdivError(
            f"{evaluation.dataset} and {other.dataset} were embedded with different models, which "
            f"do not compare: {evaluation.model_id}, {other.model_id}"
        )
    index, rows = _rows_of(evaluation, store)
    other_index, others = _rows_of(other, store)
    best = np.full(len(rows), -1, dtype=np.float32)
    match = np.zeros(len(rows), dtype=np.int64)
    seen = np.zeros(len(others), dtype=np.bool_)

    def keep_best(pairs: Pairs, similarities: Similarities) -> None:
        seen[pairs[similarities >= np.float32(threshold), 1]] = True
        order = np.lexsort((pairs[:, 1], -similarities, pairs[:, 0]))
        first = order[np.unique(pairs[order, 0], return_index=True)[1]]
        row, found, at = pairs[first, 0], similarities[first], pairs[first, 1]
        better = (found > best[row]) | ((found == best[row]) & (at < match[row]))
        best[row[better]], match[row[better]] = found[better], at[better]

    levels = sorted({threshold, *REPORTED})
    found = similar_pairs(
        rows,
        min(levels),
        others=others,
        device=device,
        on_pairs=keep_best,
        on_progress=_step(on_progress, f"comparing with {other.dataset}"),
    )
    # The same bytes are the same image, whatever an index finds.
    _, here, there = np.intersect1d(rows.keys, others.keys, return_indices=True)
    best[here], match[here], seen[there] = 1.0, there, True
    exact = np.zeros(len(rows), dtype=np.bool_)
    exact[here] = True

    catalogue, other_catalogue = _Catalogue(index, rows), _Catalogue(other_index, others)
    chosen = np.flatnonzero(best >= np.float32(threshold))
    of, images = catalogue.images_of(chosen)
    order = np.argsort(images)
    at, images = chosen[of[order]], images[order]
    table = pa.table(
        [
            catalogue.ids.take(pa.array(images)),
            pa.array(other_catalogue.ids_of(match[at]), pa.string()),
            pa.array(best[at]),
            pa.array(exact[at]),
        ],
        schema=MATCHES,
    )
    return Overlap(
        evaluation=evaluation,
        other=other,
        threshold=threshold,
        images=table,
        counts={level: int(catalogue.counts[best >= np.float32(level)].sum()) for level in levels},
        n_exact=int(catalogue.counts[here].sum()),
        n_other=int(other_catalogue.counts[seen].sum()),
        method=found.method,
        recall=_known(found.recall),
    )


def comparable(
    evaluation: Evaluation, names: Iterable[str], warehouse: Warehouse
) -> tuple[list[Evaluation], dict[str, str]]:
    """The newest evaluations of other datasets that can be compared, and why others cannot."""
    latest = {each.dataset: each for each in warehouse.latest_evaluations()}
    others, reasons = [], {}
    for name in dict.fromkeys(names):
        if name == evaluation.dataset:
            continue
        if name not in latest:
            reasons[name] = "it was never evaluated"
        elif latest[name].model_id != evaluation.model_id:
            reasons[name] = f"it was embedded with another model, {latest[name].model_id}"
        else:
            others.append(latest[name])
    return others, reasons


def benchmarks_of(settings: Settings, dataset: str) -> list[str]:
    """The datasets that a dataset must have no image of: none, for one that is held out itself."""
    registered = settings.datasets.get(dataset)
    if registered is not None and registered.role == "benchmark":
        return []
    return [name for name, each in settings.datasets.items() if each.role == "benchmark"]


def device_for(embedder: EmbedderSettings, n_rows: int) -> str:
    """Where so many rows are compared: as the settings say; for `auto`, on a GPU where it pays."""
    devices = [embedder.device] if isinstance(embedder.device, str) else embedder.device
    if devices != ["auto"]:
        return devices[0]
    if n_rows < WORTH_A_GPU:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Neighbour(NamedTuple):
    """An image that is like another: its id, cosine similarity, whether it has the same bytes."""

    image_id: str
    similarity: float
    exact: bool


class Query(NamedTuple):
    """What to look for: a vector of shape (D,), the content key in hex, and the image's own id."""

    vector: NDArray[np.float16]
    content_key: str
    image_id: str | None = None


def query_in(evaluation: Evaluation, store: Store, image_id: str) -> Query | None:
    """An image of a dataset as a query; None where it has no image of that id.

    Raises:
        VisdivError: there is such an image, but it could not be embedded.
    """
    index, rows = _rows_of(evaluation, store)
    place = pc.index(index.table["image_id"], image_id).as_py()
    if place < 0:
        return None
    row = _Catalogue(index, rows).row_of(place)
    if row is None:
        raise VisdivError(f"{image_id} of {evaluation.dataset} could not be embedded")
    return Query(rows[np.array([row])][0], rows.keys[row : row + 1].tobytes().hex(), image_id)


def query_from(
    data: bytes, evaluation: Evaluation, store: Store, open_embedder: Callable[[], Embedder]
) -> Query:
    """An encoded image from outside as a query; embedded unless the dataset has its very bytes.

    Raises:
        VisdivError: it cannot be decoded, or the embedder is not the one of the dataset.
    """
    key = content_key(data)
    _, rows = _rows_of(evaluation, store)
    known = np.flatnonzero(rows.keys == np.array(key, dtype=rows.keys.dtype))
    if len(known):
        return Query(rows[known][0], key.hex())
    embedder = open_embedder()
    if embedder.model_id != evaluation.model_id:
        raise VisdivError(
            f"{evaluation.dataset} was embedded with {evaluation.model_id}, and the settings now "
            f"say {embedder.model_id}; visdiv score {evaluation.dataset} embeds it anew"
        )
    vectors = embedder.embed(decoded(data, embedder.decoding)[None])
    return Query(to_grid(vectors)[0], key.hex())


def decoded(data: bytes, decoding: Decoding) -> Pixels:
    """The pixels of an encoded image from outside.

    Raises:
        VisdivError: it cannot be decoded.
    """
    try:
        with Decoders(decoding, 1) as decoders:
            return decoders.decode(data)
    except DecodeError as error:
        raise VisdivError(f"the image cannot be decoded: {error.reason}") from None


def similar_images(evaluation: Evaluation, store: Store, query: Query, k: int) -> list[Neighbour]:
    """The images of a dataset that are most like another, the most similar first.

    Args:
        evaluation: whose images.
        store: holds their embeddings.
        query: what to look for; it is not among the images that are found.
        k: how many, at most as many as there are.

    Raises:
        VisdivError: k is not between 1 and the number of images.
    """
    index, rows = _rows_of(evaluation, store)
    most = index.n_images - (query.image_id is not None)
    if not 1 <= k <= most:
        others = "images" if query.image_id is None else "other images"
        raise VisdivError(
            f"k must be between 1 and {most}, the number of {others} in {evaluation.dataset}; "
            f"got {k}"
        )
    catalogue = _Catalogue(index, rows)
    places, similarities = nearest(rows, query.vector[None], min(k + 1, len(rows)))
    found: list[Neighbour] = []
    for row, similarity in zip(places[0].tolist(), similarities[0].tolist(), strict=True):
        exact = rows.keys[row : row + 1].tobytes().hex() == query.content_key
        own = catalogue.images[catalogue.offsets[row] : catalogue.offsets[row + 1]]
        for image_id in catalogue.ids.take(pa.array(own[: k + 1])).to_pylist():
            if image_id != query.image_id:
                found.append(Neighbour(image_id, similarity, exact))
    return found[:k]


def as_text(threshold: float) -> str:
    """A threshold with two digits, or as many as it takes.

    Example:
        >>> as_text(0.9), as_text(0.755)
        ('0.90', '0.755')
    """
    return max(f"{threshold:.2f}", f"{threshold:g}", key=len)


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
    compared = [
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
    skipped = [
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


def duplicates_sheet(found: Duplicates, source: Source, decoding: Decoding) -> bytes:
    """The largest clusters as a contact sheet, a PNG; the image to keep has a frame."""
    shown = []
    for cluster in found.clusters[:SHEET_ROWS]:
        images = found.images_of(cluster)
        alone = cluster.n_contents == 1  # several images of one content: each has a name
        images = (
            images if alone else images.filter(pc.not_equal(images["kind"].fill_null(""), "exact"))
        )
        shown.append((cluster, images.take(pa.array(_spread(len(images), SHEET_COLUMNS)))))
    names = [name for _, images in shown for name in images["image_id"].to_pylist()]
    pixels = _pixels_of(source, names, decoding)
    rows = []
    for cluster, images in shown:
        copies = cluster.n_images - cluster.n_contents
        title = f"{cluster.number}: {_count(cluster.n_contents, 'different image')}"
        if cluster.n_contents > 1:
            title += f", similarity from {cluster.smallest:.2f}"
        if copies:
            title += f", and {_count(copies, 'exact copy', 'exact copies')}"
        rows.append(
            SheetRow(
                title,
                [
                    Thumbnail(
                        pixels.get(row["image_id"]),
                        f"{'keep' if row['keep'] else format(row['similarity_to_kept'], '.2f')} "
                        f"{row['image_id']}",
                        marked=row["keep"],
                    )
                    for row in images.to_pylist()
                ],
            )
        )
    return contact_sheet_png(rows)


def overlaps_sheet(
    overlaps: Sequence[Overlap], sources: Mapping[str, tuple[Source, Decoding]]
) -> bytes:
    """Images of a dataset beside those of others that they are like, as a PNG, doubtful ones first.

    Args:
        overlaps: what was found.
        sources: where the images of all these datasets are, and how to decode them.
    """
    rows = []
    pairs_in_row = SHEET_COLUMNS // 2
    for each in overlaps:
        ours, theirs = each.evaluation.dataset, each.other.dataset
        order = np.argsort(each.images["similarity"].to_numpy(), kind="stable")
        chosen = each.images.take(pa.array(order[: SHEET_ROWS * pairs_in_row // len(overlaps)]))
        left = _pixels_of(*_at(sources[ours], chosen["image_id"].to_pylist()))
        right = _pixels_of(*_at(sources[theirs], chosen["other_image_id"].to_pylist()))
        pairs = chosen.to_pylist()
        for begin in range(0, len(pairs), pairs_in_row):
            thumbnails = []
            for pair in pairs[begin : begin + pairs_in_row]:
                mine, other = pair["image_id"], pair["other_image_id"]
                told = "exact" if pair["exact"] else f"{pair['similarity']:.2f}"
                thumbnails += [
                    Thumbnail(left.get(mine), mine),
                    Thumbnail(right.get(other), f"{told} {other}", marked=pair["exact"]),
                ]
            rows.append(SheetRow(f"{ours}, and to its right what {theirs} has", thumbnails))
    return contact_sheet_png(rows)


def neighbours_sheet(
    pixels: Pixels | None,
    name: str,
    neighbours: Sequence[Neighbour],
    source: Source,
    decoding: Decoding,
) -> bytes:
    """An image, framed, and those of a dataset that are most like it, as a PNG."""
    found = _pixels_of(source, [each.image_id for each in neighbours], decoding)
    thumbnails = [
        Thumbnail(pixels, name, marked=True),
        *(
            Thumbnail(found.get(each.image_id), f"{each.similarity:.2f} {each.image_id}")
            for each in neighbours
        ),
    ]
    parts = range(0, len(thumbnails), SHEET_COLUMNS)
    return contact_sheet_png(
        [
            SheetRow(f"most like {name}" if not at else "", thumbnails[at : at + SHEET_COLUMNS])
            for at in parts
        ]
    )


def _at(place: tuple[Source, Decoding], names: list[str]) -> tuple[Source, list[str], Decoding]:
    return place[0], names, place[1]


def _pixels_of(source: Source, names: Sequence[str], decoding: Decoding) -> dict[str, Pixels]:
    return {name: picture.pixels for name, _, picture in pictures_of(source, names, decoding)}


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Places from 0 to count − 1, at most so many, evenly spread, with both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _count(count: int, one: str, many: str = "") -> str:
    return f"1 {one}" if count == 1 else f"{count:,} {many or one + 's'}"


def _rows_of(evaluation: Evaluation, store: Store) -> tuple[EmbeddingIndex, DatasetRows]:
    index = store.read_index(
        evaluation.dataset, evaluation.model_id, evaluation.manifest_fingerprint
    )
    return index, DatasetRows(store, evaluation.model_id, index)


def _known(recall: float) -> float | None:
    return None if np.isnan(recall) else recall


def _step(on_progress: OnProgress | None, what: str) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(what, done, total)
