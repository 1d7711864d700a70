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
from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.guidance.slices import NAMELESS, by_column, by_folder, slices_of
from visdiv_assets.settings.model import ColumnSlices, SamplingUnit, Slices, unit_name
from visdiv_assets.sources.manifest import TEXT
from visdiv_assets.sources.pieces import IMAGE_ID, Pieces, Reader
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import CAPACITY, Sample, row_keys
from visdiv_assets.store.contents import EMPTY, Contents, split
from visdiv_assets.store.index import sample_keys, to_keys
from visdiv_assets.store.store import Store

# Columns of an index.
PLACED = ("content_key", "segment", "row")

# The sampling unit of an image that has no value in the column.
UNTOLD = np.iinfo(np.uint64).max

# Rows of an index, and the slice that each is in.
_Piece = tuple[pa.Table, NDArray[np.int64]]


def accumulate_moments(
    dataset: str,
    model_id: str,
    fingerprint: str,
    store: Store,
    *,
    slices: Slices = None,
    sampling_unit: SamplingUnit = "near-duplicates",
) -> Sample:
    """Add up the moments of a manifest's embeddings, whole and by slice, and keep them.

    Moments that were kept of the same rows are not added up again.

    Args:
        dataset: its name.
        model_id: of the embeddings.
        fingerprint: of the manifest.
        store: holds the embeddings.
        slices: what names the parts; folders when None, where there are several.
        sampling_unit: what the corrected score takes for one piece of evidence.

    Raises:
        VisdivError: the manifest was not embedded with this model, or embeddings are damaged.
    """
    index = _SlicedIndex(dataset, model_id, fingerprint, store, slices)
    seen = _Seen(index.names)
    for piece in index.pieces():
        seen.note(piece)
    digest = seen.digest(sampling_unit)
    if _is_kept(index, digest):
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
        name: seen.drawn[name].sample(store, model_id, sums[name], seen.heavy[name])
        for name in index.names
        if name in sums
    }
    whole = functools.reduce(operator.add, samples.values())
    if len(samples) > 1:  # what is heavy in no slice may be so in all of them together
        whole = seen.heavy_of_all.beside(replace(whole, heavy=None), store, model_id)
    whole, *labelled = _with_units([whole, *samples.values()], index, sampling_unit)
    samples = dict(zip(samples, labelled, strict=True))
    stored = samples if len(samples) > 1 else {}
    store.write_slices(dataset, model_id, fingerprint, stored)
    store.write_moments(
        dataset,
        model_id,
        fingerprint,
        whole,
        norm_error,
        contents=digest,
        n_slices=len(stored),
    )
    return whole


def _with_units(
    samples: Sequence[Sample], index: "_SlicedIndex", unit: SamplingUnit
) -> list[Sample]:
    """Samples with the sampling unit of each row, where the settings name one."""
    if unit == "near-duplicates":  # that shows in the rows themselves
        return list(samples)
    if unit == "row":
        return [each.with_units(row_keys(each.everything.rows)) for each in samples]
    known = np.unique(np.concatenate([each.everything.keys for each in samples]))
    # A content that belongs to several units counts for the first by hash, in any order of images.
    units = np.full(len(known), UNTOLD, dtype=np.uint64)
    for keys, named, name_of in index.units(unit):
        labels = np.array([_label(name, unit) for name in named], dtype=np.uint64)[name_of]
        at = np.searchsorted(known, keys).clip(max=len(known) - 1)
        own = known[at] == keys
        np.minimum.at(units, at[own], labels[own])
    if (units == UNTOLD).all():
        raise VisdivError(
            f"sampling_unit: no image of {index.dataset} has a value in the {unit_name(unit)}"
        )
    units = np.where(units == UNTOLD, known, units)  # an image without a value is one by itself
    return [
        each.with_units(units[np.searchsorted(known, each.everything.keys)]) for each in samples
    ]


def _label(name: str, unit: SamplingUnit) -> int:
    if name == NAMELESS and isinstance(unit, ColumnSlices):
        return UNTOLD
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _is_kept(index: "_SlicedIndex", digest: str) -> bool:
    """Whether the store has moments of just these rows, which never change."""
    kept = index.store.moments_digest(index.dataset, index.model_id, index.fingerprint)
    return kept == digest


class _Seen:
    """What pieces of an index are made of, by slice: all that is remembered of them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.drawn = dict.fromkeys(names, EMPTY)
        self.heavy = dict.fromkeys(names, EMPTY)
        self.heavy_of_all = EMPTY
        self._n = dict.fromkeys(names, 0)
        self._checksums = {name: EMPTY.checksum() for name in names}

    def note(self, piece: _Piece) -> None:
        """Remember what a piece adds to each slice."""
        table, codes = piece
        parts = split(table, codes, len(self._names))
        for name, contents in zip(self._names, parts, strict=True):
            self._n[name] += contents.n
            self.heavy[name] = _heavy(self.heavy[name], contents)
            drawn = [self.drawn[name], contents.smallest(CAPACITY)]
            self.drawn[name] = Contents.union(drawn).smallest(CAPACITY)
            self._checksums[name] += contents.checksum()
        if len(parts) > 1:
            self.heavy_of_all = _heavy(self.heavy_of_all, Contents.union(parts))

    def digest(self, unit: SamplingUnit) -> str:
        """Hash of all of it, and of the sampling unit."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self._checksums):
            digest.update(f"{len(name)} {name}".encode())
            digest.update(self._checksums[name].tobytes())
        if unit != "near-duplicates":
            digest.update(f"unit {unit_name(unit)}".encode())
        of_slices = [(each, self._n[name]) for name, each in self.heavy.items()]
        of_all = (self.heavy_of_all, sum(self._n.values()))
        if any(len(each.heavy(n)) for each, n in [*of_slices, of_all]):
            digest.update(b"with heavy rows")  # which samples of older versions have not
        return digest.hexdigest()


def _heavy(so_far: Contents, piece: Contents) -> Contents:
    """What may be heavy in the end, with what a piece of an index adds to it.

    Whatever is heavy in the whole is so in a piece; from then on, all of it is counted.
    """
    return Contents.union([so_far, piece.heavy(piece.n, so_far.keys)])


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
        for _, named, name_of in self._named((), slices):
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
        for table, named, name_of in self._named(PLACED, self.slices):
            yield table, np.array([self._code_of[name] for name in named])[name_of]

    def units(
        self, unit: ColumnSlices | Literal["folder"]
    ) -> Iterator[tuple[NDArray[np.uint64], list[str], NDArray[np.int32]]]:
        """Of each piece: sample keys of its images, names of units, and which each image has."""
        for table, named, name_of in self._named(PLACED, unit):
            valid = pc.is_valid(table["row"])
            keys = sample_keys(to_keys(table["content_key"].filter(valid)))
            yield keys, named, name_of[valid.to_numpy()]

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        index = self.store.index_of(self.dataset, self.model_id, self.fingerprint)
        return index.pieces(columns)

    def _named(
        self, columns: Sequence[str], slices: Slices
    ) -> Iterator[tuple[pa.Table, list[str], NDArray[np.int32]]]:
        """Each piece, names of slices, and which of them each image has.

        A dataset has millions of images and few slices, so names are made for different values
        only.
        """
        tables = self._tables((IMAGE_ID, *columns))
        if isinstance(slices, ColumnSlices):
            manifest = self.store.read_manifest(self.dataset, self.fingerprint)
            for table, metadata in _with_metadata(tables, manifest.pieces):
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
    tables: Iterator[pa.Table], manifest: Pieces
) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
    """Pieces of an index, with what the manifest says of each image; both in order of ids."""
    listed = Reader(manifest, columns=(IMAGE_ID, "metadata"))
    for table in tables:
        said = listed.up_to(table[IMAGE_ID][-1].as_py())
        places = pc.index_in(table[IMAGE_ID], value_set=said[IMAGE_ID])
        yield table, said["metadata"].take(places)
