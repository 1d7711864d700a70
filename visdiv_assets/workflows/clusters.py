"""Clusters of similar images: how large their images are, and the table that lists them.

Here: what `duplicates.py` finds, as clusters and rows of the table `duplicates`.
Not here: which rows hang together and which is kept (`similarity/clusters.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visdiv_assets.embedding.pictures import Size, sizes_of
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.similarity.clusters import (
    Members,
    extent_of,
    similarities_to,
)
from visdiv_assets.sources.manifest import TEXT
from visdiv_assets.sources.source import Source
from visdiv_assets.workflows.catalogue import (
    Catalogue,
)
from visdiv_assets.workflows.removal import Names, kept_first, may_go

DUPLICATES = pa.schema(
    [
        ("cluster", pa.int64()),
        ("image_id", TEXT),
        ("kind", pa.string()),
        ("keep", pa.bool_()),
        ("medoid", pa.bool_()),
        ("similarity_to_kept", pa.float32()),
        ("similarity_to_medoid", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("content_key", TEXT),
    ]
)


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


class Sizes(NamedTuple):
    """Of each row: width and height, 0 where not looked at or gone; and bytes."""

    width: NDArray[np.int64]
    height: NDArray[np.int64]
    bytes: NDArray[np.int64]

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Of each row, shape (N,)."""
        return self.width * self.height


def sizes_of_rows(
    catalogue: Catalogue,
    wanted: Members,
    source: Source,
    decoding: Decoding,
    known: Mapping[str, Size],
    on_progress: Callable[[int, int], None] | None,
) -> Sizes:
    """Sizes of the rows that are wanted; each is read once, and not where it is known."""
    width, height = np.zeros((2, len(catalogue.rows)), dtype=np.int64)
    sizes = Sizes(width, height, catalogue.bytes.copy())
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


class Listed(NamedTuple):
    """What `list_clusters` found.

    Attributes:
        clusters: the one of the most contents first.
        images: columns as in DUPLICATES, without further names of the files that are kept.
        may_go: which of them may be removed, as `removal.may_go` says.
        kept: how many images of each row are left without those that are not kept.
        n_links: names of files that have another name.
    """

    clusters: list[Cluster]
    images: pa.Table
    may_go: NDArray[np.bool_]
    kept: NDArray[np.int64]
    n_links: int


def list_clusters(
    catalogue: Catalogue,
    groups: Sequence[Members],
    sizes: Sizes,
    look: Callable[[NDArray[np.int64]], Names],
    on_progress: Callable[[int, int], None] | None,
) -> Listed:
    """The clusters of groups of rows, the kept one first in each, and the table of images.

    What is in no group, but has several images that are different files, is a cluster of its own.

    Args:
        catalogue: the images of all rows.
        groups: rows that are alike, each with the one to keep first.
        sizes: of all rows.
        look: what the images at some places of the index lead to.
        on_progress: told of progress.
    """
    grouped = np.zeros(len(catalogue.rows), dtype=np.bool_)
    for group in groups:
        grouped[group] = True
    several = np.flatnonzero(catalogue.counts > 1)
    of, images = catalogue.images_of(np.flatnonzero(grouped | (catalogue.counts > 1)))
    names = look(images)
    n_links = len(images) - len(np.unique(np.stack([of, names.file[images]]), axis=1).T)
    of, images = catalogue.images_of(several)
    differ = np.zeros(len(several), dtype=np.bool_)
    first = names.file[catalogue.images[catalogue.offsets[several]]]
    differ[of[names.file[images] != first[of]]] = True
    kept_counts = np.ones(len(catalogue.rows), dtype=np.int64)
    kept_counts[several[~differ]] = catalogue.counts[several[~differ]]
    alone = [np.array([row]) for row in several[differ] if not grouped[row]]
    ordered = sorted(
        [*groups, *alone],
        key=lambda group: (-len(group), -int(catalogue.counts[group].sum()), int(group.min())),
    )
    members, parts, smallest = [], [], []
    for number, group in enumerate(ordered, start=1):
        extent = extent_of(catalogue.rows, group)
        to_kept = extent.to_medoid
        if len(group) > 1:  # else it is the medoid, and nothing need be read
            to_kept = similarities_to(catalogue.rows, group, group[0])
        order = np.r_[0, 1 + np.argsort(-to_kept[1:], kind="stable")]
        smallest.append(extent.smallest)
        members.append(group[order])
        parts.append((order == extent.medoid, to_kept[order], extent.to_medoid[order]))
        if on_progress is not None:
            on_progress(number, len(ordered))
    if not ordered:
        nothing = np.zeros(0, dtype=np.bool_)
        return Listed([], DUPLICATES.empty_table(), nothing, kept_counts, n_links)
    rows = np.concatenate(members)
    medoid, to_kept, to_medoid = (np.concatenate(each) for each in zip(*parts, strict=True))
    cluster = np.repeat(np.arange(len(ordered)), [len(group) for group in ordered])
    of, images = catalogue.images_of(rows)
    images = kept_first(names, of, images)
    begin = np.flatnonzero(np.r_[True, np.diff(cluster[of]) > 0])
    going, same = may_go(names, images, images[begin][cluster[of]])
    same &= of == of[begin][cluster[of]]  # else it had another content when it was evaluated
    kept_counts[rows] = 0
    kept_counts[rows[of[begin]]] = 1
    np.add.at(kept_counts, rows[of[same]], 1)
    first = np.r_[True, of[1:] != of[:-1]]  # of the images that have one row
    of, images, first, going = of[~same], images[~same], first[~same], going[~same]
    n_images = np.bincount(cluster[of], minlength=len(ordered))
    begin = np.cumsum(n_images) - n_images
    clusters = [
        Cluster(number, len(group), int(n_images[number - 1]), least, int(begin[number - 1]))
        for number, (group, least) in enumerate(zip(ordered, smallest, strict=True), start=1)
    ]
    kept = np.zeros(len(images), dtype=np.bool_)
    kept[begin] = True
    unseen, unsized = sizes.width[rows] == 0, sizes.bytes[rows] == 0
    table = pa.table(
        [
            pa.array(cluster[of] + 1),
            catalogue.ids.take(pa.array(images)),
            pa.array(np.where(first, "near", "exact"), pa.string(), mask=kept),
            pa.array(kept),
            pa.array(medoid[of] & first),
            pa.array(to_kept[of]),
            pa.array(to_medoid[of]),
            pa.array(sizes.width[rows][of].astype(np.int32), mask=unseen[of]),
            pa.array(sizes.height[rows][of].astype(np.int32), mask=unseen[of]),
            pa.array(sizes.bytes[rows][of], mask=unsized[of]),
            pa.array(catalogue.keys_of(rows), TEXT).take(pa.array(of)),
        ],
        schema=DUPLICATES,
    )
    return Listed(clusters, table, going, kept_counts, n_links)
