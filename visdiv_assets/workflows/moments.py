"""Moments of a dataset, whole and by slice.

Here: which images are in which slice, and adding up their rows, a piece of the index at a time, so
that memory does not grow with the number of images.
Not here: reading rows (`store/contents.py`), names of slices (`guidance/slices.py`).
"""

import functools
import hashlib
import operator
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.guidance.slices import by_column, by_folder, slices_of
from visdiv_assets.settings.model import ColumnSlices, Slices
from visdiv_assets.sources.manifest import TEXT
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import CAPACITY, Sample
from visdiv_assets.store.contents import EMPTY, Contents, split
from visdiv_assets.store.store import Store

# Columns of an index.
IMAGE_ID, PLACED = "image_id", ("content_key", "segment", "row")

# Rows of an index, and the slice that each is in.
_Piece = tuple[pa.Table, NDArray[np.int64]]


def accumulate_moments(
    dataset: str, model_id: str, fingerprint: str, store: Store, *, slices: Slices = None
) -> Sample:
    """Add up the moments of a manifest's embeddings, whole and by slice, and keep them.

    Moments that were kept of the same rows are not added up again.

    Args:
        dataset: its name.
        model_id: of the embeddings.
        fingerprint: of the manifest.
        store: holds the embeddings.
        slices: what names the parts; folders when None, where there are several.

    Raises:
        VisdivError: the manifest was not embedded with this model, or embeddings are damaged.
    """
    index = _SlicedIndex(dataset, model_id, fingerprint, store, slices)
    seen = _Seen(index.names)
    for piece in index.pieces():
        seen.note(piece)
    if _is_kept(index, seen):
        return store.read_sample(dataset, model_id, fingerprint)
    sums: dict[str, Moments] = {}
    norm_error = 0.0
    for table, codes in index.pieces():
        parts = split(table, codes, len(index.names))
        for name, contents in zip(index.names, parts, strict=True):
            moments, error = contents.moments(store, model_id)
            norm_error = max(norm_error, error)
            if moments is not None:
                sums[name] = sums[name] + moments if name in sums else moments
    if not sums:
        raise VisdivError("no image was embedded")
    samples = {
        name: seen.drawn[name].sample(store, model_id, sums[name])
        for name in index.names
        if name in sums
    }
    whole = functools.reduce(operator.add, samples.values())
    stored = samples if len(samples) > 1 else {}
    store.write_slices(dataset, model_id, fingerprint, stored)
    store.write_moments(
        dataset,
        model_id,
        fingerprint,
        whole,
        norm_error,
        contents=seen.digest(),
        n_slices=len(stored),
    )
    return whole


def _is_kept(index: "_SlicedIndex", seen: "_Seen") -> bool:
    """Whether the store has moments of just these rows, and no row was written anew since."""
    store, model_id = index.store, index.model_id
    kept = store.moments_digest(index.dataset, model_id, index.fingerprint)
    if kept is None or kept[0] != seen.digest():
        return False
    return all(store.segment_time(model_id, name) <= kept[1] for name in seen.segments)


class _Seen:
    """What pieces of an index are made of, by slice: all that is remembered of them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.drawn = dict.fromkeys(names, EMPTY)
        self._checksums = {name: EMPTY.checksum() for name in names}
        self.segments: set[str] = set()

    def note(self, piece: _Piece) -> None:
        """Remember what a piece adds to each slice."""
        table, codes = piece
        for name, contents in zip(self._names, split(table, codes, len(self._names)), strict=True):
            drawn = [self.drawn[name], contents.smallest(CAPACITY)]
            self.drawn[name] = Contents.union(drawn).smallest(CAPACITY)
            self._checksums[name] += contents.checksum()
            self.segments.update(contents.segments if len(contents) else ())

    def digest(self) -> str:
        """Hash of all of it."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self._checksums):
            digest.update(f"{len(name)} {name}".encode())
            digest.update(self._checksums[name].tobytes())
        return digest.hexdigest()


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

    def pieces(self) -> Iterator[_Piece]:
        """All of it, in order of image ids."""
        if len(self.names) == 1:
            for table in self._tables(PLACED):
                yield table, np.zeros(len(table), dtype=np.int64)
            return
        for table, named, name_of in self._named(PLACED):
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
                said = _encoded(pc.map_lookup(metadata, pa.scalar(slices.column, TEXT), "last"))
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
