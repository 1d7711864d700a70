"""What was found of a dataset, as contact sheets.

Here: which pictures, in which order, with which captions. Not here: drawing (`report/sheets.py`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.pictures import pictures_of
from visdiv_assets.embedding.preprocess import Decoding, Pixels
from visdiv_assets.report.sheets import SheetRow, Thumbnail, contact_sheet_png
from visdiv_assets.sources.source import Source
from visdiv_assets.workflows.duplicates import Duplicates
from visdiv_assets.workflows.leakage import Overlap
from visdiv_assets.workflows.similar import Neighbour

# Rows of pictures on a contact sheet, and pictures in each.
SHEET_ROWS = 10
SHEET_COLUMNS = 8


def duplicates_sheet(
    found: Duplicates, source: Source, decoding: Decoding, most: int = SHEET_ROWS
) -> bytes:
    """The largest clusters, at most so many, as a PNG; the image to keep has a frame."""
    shown = []
    for cluster in found.clusters[:most]:
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
    overlaps: Sequence[Overlap],
    sources: Mapping[str, tuple[Source, Decoding]],
    most: int = SHEET_ROWS,
) -> bytes:
    """Images of a dataset beside those of others that they are like, as a PNG, doubtful ones first.

    Args:
        overlaps: what was found.
        sources: where the images of all these datasets are, and how to decode them.
        most: rows of pictures, if there are no more datasets than that.
    """
    rows = []
    pairs_in_row = SHEET_COLUMNS // 2
    for each in overlaps:
        ours, theirs = each.evaluation.dataset, each.other.dataset
        order = np.argsort(each.images["similarity"].to_numpy(), kind="stable")
        chosen = each.images.take(pa.array(order[: max(most // len(overlaps), 1) * pairs_in_row]))
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
