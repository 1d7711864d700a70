"""Which names of images may be removed, so that no file goes that is kept under another name.

Here: what names lead to now (symbolic and hard links, linked and mounted folders), and which may
go. Not here: which images are alike (`duplicates.py`, `leakage.py`), writing lists and scripts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from visdiv_assets.sources.places import FileState, local_place
from visdiv_assets.sources.source import Source, from_image_id
from visdiv_assets.store.index import EmbeddingIndex
from visdiv_assets.workflows.leakage import Overlap
from visdiv_assets.workflows.project import EvaluatedDataset


@dataclass(frozen=True, eq=False)
class Names:
    """What the image ids of an index lead to now.

    Of images that aren't files of a folder, every id is taken for an intact image of its own.

    Attributes:
        file: number of the file, equal for names of one file, shape (N,).
        real: whether the name leads there without a symbolic link, shape (N,).
        intact: whether the file is there and has not changed since it was evaluated, shape (N,).
    """

    file: NDArray[np.int64]
    real: NDArray[np.bool_]
    intact: NDArray[np.bool_]


def look_at(source: Source, index: EmbeddingIndex, places: NDArray[np.int64]) -> Names:
    """What the image ids of an index lead to now.

    Args:
        source: where they are.
        index: of its images.
        places: those that might go, shape (M,); whether others are links is not looked at, and
            none is looked at if there are none.
    """
    count = len(index.table)
    names = Names(np.arange(count), np.ones(count, np.bool_), np.ones(count, np.bool_))
    place = local_place(source)
    if place is None or not len(places):
        return names
    files: dict[tuple[int, int] | str, int] = {}
    for at, (_, state, intact) in enumerate(_look(source, index)):
        names.intact[at] = intact
        if state is not None:
            names.file[at] = files.setdefault(state.file, at)
    ids = index.table["image_id"].take(pa.array(places)).to_pylist()
    names.real[places] = [place.is_real(from_image_id(each)) for each in ids]
    return names


def _look(source: Source, index: EmbeddingIndex) -> Iterator[tuple[str, FileState | None, bool]]:
    """All image ids, what they lead to if that is a file, and whether it is as it was listed."""
    place = local_place(source)
    listed = index.table.select(["image_id", "size", "version"])
    for image_id, size, version in zip(*(each.to_pylist() for each in listed.columns), strict=True):
        state = None if place is None else place.state(from_image_id(image_id))
        yield image_id, state, place is None or _is_as_listed(state, size, version)


def _is_as_listed(state: FileState | None, size: int | None, version: str) -> bool:
    """Whether a file is what was listed; a source may add to the version after a hyphen."""
    if state is None or (size is not None and state.size != size):
        return False
    return version == state.version or version.startswith(f"{state.version}-")


def kept_first(names: Names, of: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    """The images of each row in the order in which to keep them: intact ones and real files first.

    Args:
        names: what they lead to.
        of: the row of each image, ascending, shape (M,).
        images: places in the index, shape (M,).
    """
    return images[np.lexsort((images, ~names.real[images], ~names.intact[images], of))]


def may_go(
    names: Names, images: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images may be removed, and which don't count, since they are the file that is kept.

    An image may go if it is intact, the one that is kept for it is intact, and no name of its file
    stays, not even one that became a link to it since.

    Args:
        names: what they lead to.
        images: places in the index, shape (M,).
        kept: the place of the image that is kept for each, shape (M,).

    Example:
        >>> # 0 is kept for 1, its link, and for 2; 3 is kept for 4, which changed.
        >>> names = Names(
        ...     file=np.array([0, 0, 2, 3, 4]),
        ...     real=np.array([True, False, True, True, True]),
        ...     intact=np.array([True, True, True, True, False]),
        ... )
        >>> going, same = may_go(names, np.arange(5), np.array([0, 0, 0, 3, 3]))
        >>> going.tolist(), same.tolist()
        ([False, False, True, False, False], [False, True, False, False, False])
    """
    is_kept = images == kept
    same = (names.file[images] == names.file[kept]) & ~is_kept
    going = names.intact[images] & names.intact[kept] & ~is_kept
    stays = np.ones(len(names.file), dtype=np.bool_)
    stays[images[going]] = False
    return going & ~np.isin(names.file[images], names.file[stays]), same


@dataclass(frozen=True, eq=False)
class Removable:
    """What of a dataset may be removed because others have it.

    Attributes:
        images: of each overlap, the images that may go; columns as in `leakage.MATCHES`.
        n_same: images that are files of the others, by links or because their folders overlap.
        n_changed: images that changed or are gone, or whose counterpart is, since the evaluation.
    """

    images: Sequence[pa.Table]
    n_same: int
    n_changed: int


def removable(
    dataset: EvaluatedDataset, others: Mapping[str, EvaluatedDataset], overlaps: Sequence[Overlap]
) -> Removable:
    """Which of the images found may be removed without taking anything from the others.

    Args:
        dataset: the one whose images may go.
        others: those that keep theirs, by name.
        overlaps: what was found.
    """
    store = dataset.project.store
    index = store.read_index(*dataset.evaluation.where)
    if not any(len(each.images) for each in overlaps):
        return Removable([each.images for each in overlaps], 0, 0)
    matched = {name for each in overlaps for name in each.images["image_id"].to_pylist()}
    looked, stay = {}, set()
    for name, state, intact in _look(dataset.source, index):
        if name in matched:
            looked[name] = (state, intact)
        elif state is not None:
            stay.add(state.file)
    kept: set[tuple[int, int] | str] = set()
    gone = []
    for each in overlaps:
        theirs = store.read_index(*each.other.where)
        away = set()
        for name, state, intact in _look(others[each.other.dataset].source, theirs):
            if state is not None:
                kept.add(state.file)
            if not intact:
                away.add(name)
        gone.append(away)
    stay |= kept
    same = {name for name, (state, _) in looked.items() if state and state.file in kept}
    safe = {
        name
        for name, (state, intact) in looked.items()
        if intact and (state is None or state.file not in stay)
    }
    tables = []
    for each, away in zip(overlaps, gone, strict=True):
        pairs = zip(*(each.images[name].to_pylist() for name in _PAIR), strict=True)
        going = [ours in safe and theirs not in away for ours, theirs in pairs]
        tables.append(each.images.filter(pa.array(going, pa.bool_())))
    listed = {name for table in tables for name in table["image_id"].to_pylist()}
    return Removable(tables, len(same), len(looked) - len(same) - len(listed))


_PAIR = ("image_id", "other_image_id")
