"""Moments of a dataset, whole and by slice: from its rows, or from moments kept and what changed.

Here: reading indexes a piece at a time, so that memory does not grow with the number of images;
which road is less work. Not here: what is done with a piece (`embedding/contents.py`), names of
slices (`guidance/slices.py`), the other steps of an evaluation (`evaluation.py`).
"""

import functools
import hashlib
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.guidance.slices import by_column, by_folder, slices_of
from visdiv_assets.settings.model import ColumnSlices, Slices
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import CAPACITY, Sample
from visdiv_assets.store.contents import EMPTY, Accumulator, Contents, split
from visdiv_assets.store.store import Store

# Norms of one row, computed in two ways in float32, differ by less.
NORM_SLACK = 1e-6

# Rows that came and went, noted before any is read; where there are more, all are summed anew.
MOST_CHANGES = 1_000_000

# Columns of an index.
IMAGE_ID, PLACED = "image_id", ("content_key", "segment", "row")

# Rows of an index, and the slice that each is in.
_Piece = tuple[pa.Table, NDArray[np.int64]]


def accumulate_moments(
    dataset: str, model_id: str, store: Store, *, slices: Slices = None
) -> Sample:
    """Add up the moments of the latest manifest's embeddings, whole and by slice, and keep them.

    Starts from the moments kept last where that is less work: takes away the rows that went since
    and adds those that came, which costs no bit.

    Args:
        dataset: its name.
        model_id: of the embeddings.
        store: holds the embeddings.
        slices: what names the parts; folders when None, where there are several.

    Raises:
        VisdivError: the dataset was not listed, or not embedded with this model.
    """
    fingerprint = store.listed_fingerprint(dataset)
    index = _SlicedIndex(dataset, model_id, fingerprint, store, slices)
    summed = _updated(index) or _summed(index)
    samples = {
        name: summed.seen.drawn[name].sample(store, model_id, moments)
        for name, moments in summed.moments.items()
        if moments is not None and moments.n
    }
    if not samples:
        raise VisdivError("not one image was embedded")
    whole = functools.reduce(operator.add, samples.values())
    store.write_slices(dataset, model_id, fingerprint, samples if len(samples) > 1 else {})
    digest = summed.seen.digest()
    store.write_moments(dataset, model_id, fingerprint, whole, summed.norm_error, digest)
    return whole


class _Seen:
    """What pieces of an index are made of, by slice: all that is remembered of them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.drawn = dict.fromkeys(names, EMPTY)
        self._checksums = {name: EMPTY.checksum() for name in names}
        self.segments: set[str] = set()
        self.n_images = 0

    def note(self, piece: _Piece) -> dict[str, Contents]:
        """The contents of each slice that is in a piece."""
        table, codes = piece
        parts = dict(zip(self._names, split(table, codes, len(self._names)), strict=True))
        found = {name: contents for name, contents in parts.items() if len(contents)}
        for name, contents in found.items():
            drawn = [self.drawn[name], contents.smallest(CAPACITY)]
            self.drawn[name] = Contents.union(drawn).smallest(CAPACITY)
            self._checksums[name] += contents.checksum()
            self.segments.update(contents.segments)
            self.n_images += int(contents.counts.sum())
        return found

    def digest(self) -> str:
        """Hash of all of it."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self._checksums):
            digest.update(f"{len(name)} {name}".encode())
            digest.update(self._checksums[name].tobytes())
        return digest.hexdigest()


class _Summed(NamedTuple):
    """Moments of each slice, None where no image of it is embedded; the largest | ‖x‖ − 1 |."""

    moments: Mapping[str, Moments | None]
    norm_error: float
    seen: _Seen


class _SlicedIndex:
    """An index that is read a piece at a time, and which slice each of its images is in.

    Attributes:
        names: of the slices; one, "", where there is no more than one.
    """

    def __init__(
        self, dataset: str, model_id: str, fingerprint: str, store: Store, slices: Slices
    ) -> None:
        self.dataset, self.model_id, self.fingerprint = dataset, model_id, fingerprint
        self.store, self.slices = store, slices
        counts = Counter[str]()
        for _, named, name_of in self._named(()):
            found = np.bincount(name_of, minlength=len(named))
            for name, count in zip(named, found, strict=True):
                counts[name] += int(count)
        self.names, self._code_of = slices_of(counts)
        if len(self.names) < 2:
            self.names = [""]

    def __len__(self) -> int:
        return self.store.index_length(self.dataset, self.model_id, self.fingerprint)

    def pieces(self, columns: Sequence[str] = PLACED) -> Iterator[_Piece]:
        """All of it, in order of image ids."""
        if len(self.names) == 1:
            for table in self._tables(columns):
                yield table, np.zeros(len(table), dtype=np.int64)
            return
        for table, named, name_of in self._named(columns):
            yield table, np.array([self._code_of[name] for name in named])[name_of]

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return self.store.index_pieces(self.dataset, self.model_id, self.fingerprint, columns)

    def _named(
        self, columns: Sequence[str]
    ) -> Iterator[tuple[pa.Table, list[str], NDArray[np.int32]]]:
        """Each piece, names of slices, and which of them each image has.

        A dataset has millions of images and few slices, so names are made for different values
        only.
        """
        slices, tables = self.slices, self._tables((IMAGE_ID, *columns))
        if isinstance(slices, ColumnSlices):
            listed = self.store.manifest_pieces(
                self.dataset, self.fingerprint, (IMAGE_ID, "metadata")
            )
            for table, metadata in _with_metadata(tables, listed):
                said = _encoded(pc.map_lookup(metadata, slices.column, "last"))
                told = ({slices.column: value} for value in said.dictionary.to_pylist())
                yield table, by_column(told, slices.column), said.indices.to_numpy()
        else:
            for table in tables:
                said = _folders(table[IMAGE_ID])
                yield table, by_folder(said.dictionary.to_pylist()), said.indices.to_numpy()


def _folders(ids: pa.ChunkedArray) -> pa.DictionaryArray:
    """What comes before the last slash or # in each id, with it."""
    if not any(pc.any(pc.match_substring(ids, mark)).as_py() for mark in "/#"):
        return pa.DictionaryArray.from_arrays(np.zeros(len(ids), dtype=np.int32), [""])
    return _encoded(pc.replace_substring_regex(ids, "[^/#]*$", ""))


def _encoded(values: pa.ChunkedArray) -> pa.DictionaryArray:
    return values.combine_chunks().dictionary_encode("encode")


def _with_metadata(
    tables: Iterator[pa.Table], listed: Iterator[pa.Table]
) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
    """Pieces of an index, with what the manifest says of each image; both in order of ids."""
    held = next(listed)
    for table in tables:
        last = table[IMAGE_ID][-1]
        while (at := pc.index(held[IMAGE_ID], last).as_py()) < 0 and (more := next(listed, None)):
            held = pa.concat_tables([held, more])
        places = pc.index_in(table[IMAGE_ID], value_set=held[IMAGE_ID])
        yield table, held["metadata"].take(places)
        held = held.slice(max(at, 0))


def _summed(index: _SlicedIndex) -> _Summed:
    """From all rows."""
    seen = _Seen(index.names)
    with closing(Accumulator(index.store, index.model_id, expected=len(index))) as accumulator:
        for piece in index.pieces():
            accumulator.add(seen.note(piece))
        moments = {name: accumulator.moments(name) for name in index.names}
        return _Summed(moments, accumulator.norm_error, seen)


def _updated(index: _SlicedIndex) -> _Summed | None:
    """From the moments kept last and what changed since; None where that won't do.

    It won't where more than half of the rows changed, where the index or the slices of what was
    kept are not what they were, or a segment was written anew since, and where the row whose
    norm is farthest from 1 has gone, since nothing tells which one is next.
    """
    dataset, model_id, store = index.dataset, index.model_id, index.store
    newest = store.newest_moments(dataset, model_id)
    if newest is None:
        return None
    fingerprint, digest, written = newest
    try:
        then = _SlicedIndex(dataset, model_id, fingerprint, store, index.slices)
        found = _changes(index, then)
        if found is None:
            return None
        changes, seen, seen_then = found
        if digest != seen_then.digest() or any(
            store.segment_time(model_id, name) > written for name in seen_then.segments
        ):
            return None
    except (VisdivError, OSError):  # it has gone
        return None
    n_came, n_went = (sum(map(len, each)) for each in zip(*changes.values(), strict=True))
    if 2 * (n_came + n_went) > seen.n_images:
        return None
    norm_error = store.read_norm_error(dataset, model_id, fingerprint)
    with closing(Accumulator(store, model_id, n_went)) as losses:
        losses.add({name: went for name, (_, went) in changes.items()})
    if losses.norm_error > norm_error - NORM_SLACK:
        return None
    with closing(Accumulator(store, model_id, n_came)) as gains:
        gains.add({name: came for name, (came, _) in changes.items()})
    kept = {"": store.read_moments(dataset, model_id, fingerprint)}
    if len(then.names) > 1:
        named = store.read_slices(dataset, model_id, fingerprint)
        kept = {name: sample.moments for name, sample in named.items()}
    moments: dict[str, Moments | None] = {}
    for name in index.names:
        sums = [part for part in (kept.get(name), gains.moments(name)) if part is not None]
        whole, lost = Moments.sum(sums) if sums else None, losses.moments(name)
        moments[name] = whole if whole is None or lost is None else whole - lost
    return _Summed(moments, max(gains.norm_error, norm_error), seen)


def _changes(
    index: _SlicedIndex, then: _SlicedIndex
) -> tuple[dict[str, tuple[Contents, Contents]], _Seen, _Seen] | None:
    """What came to each slice and went from it since, and all of both; None where it is much."""
    came: dict[str, list[Contents]] = {name: [] for name in index.names}
    went: dict[str, list[Contents]] = {name: [] for name in index.names}
    seen, seen_then, n_changes = _Seen(index.names), _Seen(then.names), 0
    columns = (IMAGE_ID, *PLACED)
    for ours, theirs in _side_by_side(index.pieces(columns), then.pieces(columns)):
        now, before = seen.note(ours), seen_then.note(theirs)
        for name in index.names:
            new, gone = now.get(name, EMPTY).minus(before.get(name, EMPTY))
            came[name].append(new)
            went[name].append(gone)
            n_changes += len(new) + len(gone)
        if n_changes > MOST_CHANGES:
            return None
    # A renamed image went in one piece and came in another.
    netted = {
        name: Contents.union(came[name]).minus(Contents.union(went[name])) for name in index.names
    }
    return netted, seen, seen_then


def _side_by_side(
    ours: Iterator[_Piece], theirs: Iterator[_Piece]
) -> Iterator[tuple[_Piece, _Piece]]:
    """Pieces of two indexes, cut at the same image ids; either may be empty."""
    one, other = next(ours, None), next(theirs, None)
    while one and other:
        last = min(one[0][IMAGE_ID][-1].as_py(), other[0][IMAGE_ID][-1].as_py())
        (one_head, one_tail), (other_head, other_tail) = _cut(one, last), _cut(other, last)
        yield one_head, other_head
        one = one_tail if len(one_tail[0]) else next(ours, None)
        other = other_tail if len(other_tail[0]) else next(theirs, None)
    while one:
        yield one, (one[0][:0], one[1][:0])
        one = next(ours, None)
    while other:
        yield (other[0][:0], other[1][:0]), other
        other = next(theirs, None)


def _cut(piece: _Piece, last: str) -> tuple[_Piece, _Piece]:
    table, codes = piece
    at = pc.sum(pc.less_equal(table[IMAGE_ID], last)).as_py()
    return (table[:at], codes[:at]), (table[at:], codes[at:])
