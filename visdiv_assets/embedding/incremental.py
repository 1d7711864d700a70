"""Manifest → committed embeddings: only missing ones go through the model.

Here: what can be skipped, and the resulting index.
Not here: reading, decoding and embedding images concurrently (`pipeline.py`).
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.decoding import is_passing
from visdiv_assets.embedding.pipeline import (
    NOT_FINITE,
    Embedder,
    Failure,
    OnProgress,
    Outcome,
    Waits,
    embed_stream,
)
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.sources.manifest import TEXT, Manifest
from visdiv_assets.sources.source import Source
from visdiv_assets.store.index import (
    INDEX_SCHEMA,
    JUDGE,
    KEY_BYTES,
    EmbeddingIndex,
    Keys,
    to_keys,
)
from visdiv_assets.store.key_index import KeyIndex
from visdiv_assets.store.store import Store

NO_KEY = b""  # in an array of keys: the content was not read


def embed_manifest(
    dataset: str,
    manifest: Manifest,
    source: Source,
    embedder: Embedder,
    store: Store,
    *,
    reread: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[EmbeddingIndex, int]:
    """Embed every decodable image of a manifest that is not in the store yet.

    Unchanged images are not opened, unless all are to be read again. Content that was embedded
    before, in any dataset, is not embedded again. Content that could not be decoded before is not
    tried again, unless the failure may be temporary. Rows are committed along the way, so an
    interrupted call loses little.

    Returns:
        the index, which is also written to the store, and the number of images that went through
        the model.
    """
    model_id = embedder.model_id
    known = store.key_index(model_id)
    older = _OlderVersion(embedder, store)
    previous = store.earlier_indexes(dataset)
    keys = _keys_of_unchanged(manifest, () if reread else previous)
    # By content, since many files may share it.
    undecodable = _failures_that_stay(previous, embedder.decoding)
    missing = known.find(keys)[0] < 0
    given_up = np.isin(keys, list(undecodable)) if undecodable else np.zeros(len(keys), dtype=bool)
    to_read = np.flatnonzero((keys == NO_KEY) | (missing & ~given_up))
    ids = manifest.table["image_id"].take(pa.array(to_read))
    waits = Waits()
    done, embedded, adopted = len(manifest) - len(to_read), 0, 0

    def tell() -> None:
        if on_progress is not None:
            on_progress(done, len(manifest), embedded, waits.bottleneck)

    unreadable: dict[int, Failure] = {}  # by position
    writer = store.segment_writer(model_id)

    def add(outcome: Outcome) -> bool:
        key = outcome.content_key or NO_KEY
        vector = older.vector(key) if outcome.adopted else outcome.vector
        if vector is None:
            return False
        with waits.on("writing"):
            writer.add(key, vector, flat=outcome.flat)
        return True

    stream = embed_stream(
        source,
        (value.as_py() for value in ids),
        embedder,
        wanted=_Claim(known, undecodable),
        adoptable=older.has,
        waits=waits,
        on_pause=tell,
        on_end=add,
    )
    with writer, contextlib.closing(stream):
        for outcome in stream:
            at = int(to_read[outcome.at])
            keys[at] = outcome.content_key or NO_KEY
            if add(outcome):
                embedded += not outcome.adopted
                adopted += outcome.adopted
            elif outcome.failure is not None and outcome.content_key is None:
                unreadable[at] = outcome.failure
            elif outcome.failure is not None:
                # NumPy strips trailing zero bytes from keys, here and below.
                undecodable[keys[at]] = outcome.failure
            done += 1
            tell()
    if embedded or adopted:
        known = store.key_index(model_id)

    gone = Failure("its embedding is missing from the store", "")

    def failure(at: int) -> Failure:
        return unreadable.get(at) or undecodable.get(keys[at], gone)

    table = _index_table(manifest, keys, failure, known)
    index = EmbeddingIndex(table.replace_schema_metadata({JUDGE: embedder.decoding.judge.encode()}))
    store.write_index(dataset, model_id, manifest.fingerprint, index)
    return index, embedded


def _failures_that_stay(
    previous: Sequence[EmbeddingIndex], decoding: Decoding
) -> dict[bytes, Failure]:
    """Content that the same decoder failed to decode before, and would fail on again."""
    stay: dict[bytes, Failure] = {}
    for index in previous:
        if index.judge != decoding.judge:
            continue
        failed = index.failed()
        failed = failed.filter(pc.is_valid(failed["content_key"]))
        reasons, exceptions = (failed[name].to_pylist() for name in ("reason", "exception"))
        for key, *said in zip(to_keys(failed["content_key"]), reasons, exceptions, strict=True):
            failure = Failure(*said)
            passing = failure == NOT_FINITE or is_passing(failure.exception, failure.reason)
            if failure.exception and not passing:
                stay.setdefault(key, failure)
    return stay


class _OlderVersion:
    """Vectors of the same model by an older version, which decoded some images differently."""

    def __init__(self, embedder: Embedder, store: Store) -> None:
        decoding = embedder.decoding
        self._store, self._own = store, embedder.model_id
        self._model_id = embedder.model_id.replace(decoding.name, decoding.older_name)

    @cached_property
    def _known(self) -> KeyIndex:
        return self._store.key_index(self._model_id)

    def has(self, key: bytes) -> bool:
        """Whether there is one for this content."""
        return self._model_id != self._own and key in self._known

    def vector(self, key: bytes) -> NDArray[np.float32]:
        """The vector of a content that it has, shape (D,), float32."""
        [segment], [row] = self._known.find(np.array([key], dtype=f"S{KEY_BYTES}"))
        rows = self._store.rows(self._model_id, self._known.segments[segment])
        vector: NDArray[np.float32] = rows[row].astype(np.float32)
        return vector


class _Claim:
    """Whether to embed content: not in the store, not known to fail, and not claimed before."""

    def __init__(self, known: KeyIndex, given_up: Iterable[bytes]) -> None:
        self._known = known
        self._claimed = {key.ljust(KEY_BYTES, b"\0") for key in given_up}
        self._lock = threading.Lock()

    def __call__(self, key: bytes) -> bool:
        if key in self._known:
            return False
        with self._lock:
            if key in self._claimed:
                return False
            self._claimed.add(key)
            return True


def _keys_of_unchanged(manifest: Manifest, previous: Sequence[EmbeddingIndex]) -> Keys:
    """Content keys of the images with unchanged size and version; NO_KEY for all others."""
    keys = np.full(len(manifest), NO_KEY, dtype=f"S{KEY_BYTES}")
    for index in reversed(previous):  # the newest has the last word
        before = index.table.filter(pc.is_valid(index.table["content_key"]))
        at = pc.index_in(manifest.table["image_id"], value_set=before["image_id"])
        same = pc.is_valid(at)
        for column in ("size", "version"):
            now, then = manifest.table[column], before[column].take(at)
            both_unknown = pc.and_(pc.is_null(now), pc.is_null(then))  # a size, in some sources
            same = pc.and_(same, pc.or_(pc.fill_null(pc.equal(now, then), False), both_unknown))
        unchanged = pc.fill_null(same, False).to_numpy()
        keys[unchanged] = to_keys(before["content_key"].take(at.filter(pa.array(unchanged))))
    return keys


def _index_table(
    manifest: Manifest, keys: Keys, failure: Callable[[int], Failure], known: KeyIndex
) -> pa.Table:
    segment, row = known.find(keys)
    missing = row < 0
    failures = [failure(at) for at in np.flatnonzero(missing).tolist()]
    names = pa.DictionaryArray.from_arrays(
        pa.array(segment, mask=missing), pa.array(known.segments, type=pa.string())
    )
    buffer = pa.Array.from_buffers(
        pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys.tobytes())]
    )
    return pa.table(
        {
            "image_id": manifest.table["image_id"],
            "size": manifest.table["size"],
            "version": manifest.table["version"],
            "content_key": pc.if_else(pa.array(keys != NO_KEY), buffer, None),
            "segment": names,
            "row": pa.array(row, mask=missing),
            "reason": _told([each.reason for each in failures], missing),
            "exception": _told([each.exception for each in failures], missing),
            "flat": pa.array(known.is_flat(keys)),
        },
        schema=INDEX_SCHEMA,
    )


def _told(texts: Sequence[str], missing: NDArray[np.bool_]) -> pa.Array:
    """The texts at the positions of missing images, in order; null for the others."""
    at = np.cumsum(missing) - 1
    return pa.array(texts, type=TEXT).take(pa.array(at, mask=~missing))
