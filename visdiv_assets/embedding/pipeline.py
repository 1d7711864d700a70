"""Manifest → committed embeddings: read, hash, decode, infer, write; only what is missing.

Here: the order of the work and what is skipped. Not here: model, file formats, where images are.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.decoders import PASSING, Decoders
from visdiv_assets.embedding.index import (
    INDEX_SCHEMA,
    JUDGE,
    KEY_BYTES,
    EmbeddingIndex,
    Keys,
    content_key,
    to_keys,
)
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.embedding.store import KeyIndex, Store
from visdiv_assets.sources.manifest import Manifest
from visdiv_assets.sources.source import Read, Source

NO_KEY = b""  # in an array of keys: content not read

MAX_DECODERS = 8

# Outcomes held back while a batch fills; reached only where most content is known already.
MAX_WAITING = 1024

OnProgress = Callable[[int, int, int], None]
"""Called with images done, images in all, and images that went through the model."""


class Embedder(Protocol):
    """What the pipeline needs of `SSCDEmbedder`."""

    @property
    def model_id(self) -> str:
        """Names what the vectors were made with."""

    @property
    def batch_size(self) -> int:
        """Images per call."""

    @property
    def decoding(self) -> Decoding:
        """How images become pixels; part of the model id."""

    def embed(self, pixels: Pixels) -> Vectors:
        """(B, H, W, 3) uint8 with B ≤ batch size → (B, D) float32."""


class Failure(NamedTuple):
    """Why an image has no vector; `exception` is the class of what was raised, or ""."""

    reason: str
    exception: str


class Outcome(NamedTuple):
    """What became of the `at`-th of the images asked for.

    `vector` (D,) where it went through the model; `failure` where there is none; neither where
    its content was not wanted. `content_key` is None only if it could not be read.
    """

    at: int
    content_key: bytes | None
    vector: Vectors | None
    failure: Failure | None


class _Decoded(NamedTuple):
    at: int
    content_key: bytes | None
    pixels: Pixels | None
    failure: Failure | None


def embed_stream(
    source: Source,
    image_ids: Iterable[str],
    embedder: Embedder,
    *,
    wanted: Callable[[bytes], bool] = lambda key: True,
) -> Generator[Outcome]:
    """Read, hash, decode and embed images, with bounded memory.

    Threads read and processes decode ahead while the model works. Batches are filled in the order
    in which the source gives the images, so that two runs do the same arithmetic.

    Args:
        source: where the images are.
        image_ids: which ones.
        embedder: what turns pixels into vectors; its model is loaded at the first image decoded.
        wanted: whether content of this key is to be embedded; called from several threads.

    Yields:
        one outcome for each image, in the order in which the source gives them.
    """
    waiting: list[_Decoded] = []
    undone = 0
    ahead = _decode_ahead(source, image_ids, embedder.decoding, wanted)
    with contextlib.closing(ahead):  # at once, whatever happens here: processes hang on it
        for decoded in ahead:
            waiting.append(decoded)
            undone += decoded.pixels is not None
            # Asking for the batch size loads the model, so it is not asked without need.
            if not undone or undone == embedder.batch_size or len(waiting) >= MAX_WAITING:
                yield from _finish(waiting, embedder)
                waiting, undone = [], 0
        yield from _finish(waiting, embedder)


def _finish(waiting: Sequence[_Decoded], embedder: Embedder) -> Iterator[Outcome]:
    """Run the model once over what was decoded; everything else passes through in its place."""
    pixels = [entry.pixels for entry in waiting if entry.pixels is not None]
    vectors = iter(embedder.embed(np.stack(pixels))) if pixels else iter(())
    for at, key, decoded, failure in waiting:
        if decoded is None:
            yield Outcome(at, key, None, failure)
            continue
        vector = next(vectors)
        if np.isfinite(vector).all():
            yield Outcome(at, key, vector, None)
        else:
            infinite = Failure("the model gives no finite vector for it", "FloatingPointError")
            yield Outcome(at, key, None, infinite)


def _decode_ahead(
    source: Source, image_ids: Iterable[str], decoding: Decoding, wanted: Callable[[bytes], bool]
) -> Generator[_Decoded]:
    """`_decode` of each image as it is read, a bounded number ahead of the consumer."""
    workers = min(MAX_DECODERS, usable_cpus())
    ahead: deque[Future[_Decoded]] = deque()
    # First the reader stops, then the threads end, then the processes that they talk to.
    with (
        Decoders(decoding, workers) as decoders,
        _threads(workers) as pool,
        contextlib.closing(_as_generator(source.read_all(image_ids))) as reads,
    ):
        for read in reads:
            ahead.append(pool.submit(_decode, read, decoders, wanted))
            if len(ahead) >= 16 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _as_generator(reads: Iterator[Read]) -> Generator[Read]:
    yield from reads


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(read: Read, decoders: Decoders, wanted: Callable[[bytes], bool]) -> _Decoded:
    at, data = read
    if isinstance(data, OSError):
        return _Decoded(at, None, None, Failure(data.strerror or str(data), type(data).__name__))
    key = content_key(data)
    if not wanted(key):
        return _Decoded(at, key, None, None)
    try:
        return _Decoded(at, key, decoders.decode(data), None)
    except DecodeError as error:
        return _Decoded(at, key, None, Failure(error.reason, error.exception))


def embed_manifest(
    dataset: str,
    manifest: Manifest,
    source: Source,
    embedder: Embedder,
    store: Store,
    *,
    on_progress: OnProgress | None = None,
) -> tuple[EmbeddingIndex, int]:
    """See to it that every image of a manifest that can be decoded is embedded in the store.

    Unchanged images are not opened; content that was embedded before, in any dataset, is not
    embedded again; what could not be decoded before is not tried again. Rows are committed as
    they come, so an interrupted call loses little.

    Returns:
        the index, which is also written to the store, and how many images went through the model.
    """
    model_id = embedder.model_id
    known = store.key_index(model_id)
    previous = store.latest_index(dataset)
    keys = _keys_of_unchanged(manifest, previous)
    # By content, since one file may stand for many.
    undecodable = _failures_that_stay(previous, embedder.decoding)
    missing = known.find(keys)[0] < 0
    given_up = np.isin(keys, list(undecodable)) if undecodable else np.zeros(len(keys), dtype=bool)
    to_read = np.flatnonzero((keys == NO_KEY) | (missing & ~given_up))
    ids = manifest.table["image_id"].take(pa.array(to_read))
    stream = embed_stream(
        source, (value.as_py() for value in ids), embedder, wanted=_Claim(known, undecodable)
    )

    done, embedded = len(manifest) - len(to_read), 0
    unreadable: dict[int, Failure] = {}  # by position
    with store.segment_writer(model_id) as writer, contextlib.closing(stream):
        for outcome in stream:
            at = int(to_read[outcome.at])
            keys[at] = outcome.content_key or NO_KEY
            if outcome.vector is not None:
                writer.add(outcome.content_key or NO_KEY, outcome.vector)
                embedded += 1
            elif outcome.failure is not None and outcome.content_key is None:
                unreadable[at] = outcome.failure
            elif outcome.failure is not None:
                # NumPy hands out keys without trailing zero bytes, here and below.
                undecodable[keys[at]] = outcome.failure
            done += 1
            if on_progress is not None:
                on_progress(done, len(manifest), embedded)
    if embedded:
        known = store.key_index(model_id)

    gone = Failure("its embedding has gone from the store", "")

    def failure(at: int) -> Failure:
        return unreadable.get(at) or undecodable.get(keys[at], gone)

    table = _index_table(manifest, keys, failure, known)
    index = EmbeddingIndex(table.replace_schema_metadata({JUDGE: embedder.decoding.judge.encode()}))
    store.write_index(dataset, model_id, manifest.fingerprint, index)
    return index, embedded


def _failures_that_stay(
    previous: EmbeddingIndex | None, decoding: Decoding
) -> dict[bytes, Failure]:
    """What the same decoder could not decode before, by content: it would fail again."""
    if previous is None or previous.judge != decoding.judge:
        return {}
    failed = previous.failed()
    failed = failed.filter(pc.is_valid(failed["content_key"]))
    columns = (failed[name].to_pylist() for name in ("reason", "exception"))
    keys = to_keys(failed["content_key"])
    return {
        key: Failure(reason, exception)
        for key, reason, exception in zip(keys, *columns, strict=True)
        if exception and exception not in PASSING
    }


class _Claim:
    """Whether content is to be embedded: not in the store, not given up, not asked for before."""

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


def _keys_of_unchanged(manifest: Manifest, previous: EmbeddingIndex | None) -> Keys:
    """Content keys of the images whose size and version are as before; NO_KEY for all others."""
    keys = np.full(len(manifest), NO_KEY, dtype=f"S{KEY_BYTES}")
    if previous is None:
        return keys
    before = previous.table.filter(pc.is_valid(previous.table["content_key"]))
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
        },
        schema=INDEX_SCHEMA,
    )


def _told(texts: Sequence[str], missing: NDArray[np.bool_]) -> pa.Array:
    """A text for each image that is missing, in their order; null for the others."""
    at = np.cumsum(missing) - 1
    return pa.array(texts, type=pa.string()).take(pa.array(at, mask=~missing))
