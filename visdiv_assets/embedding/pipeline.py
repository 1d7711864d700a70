"""Manifest → committed embeddings: read, hash, decode, infer, write; only what is missing.

Here: the order of the work, what overlaps with what, and what is skipped. Not here: model, file
formats, where images are.

    source's threads → threads that hash, with decoder processes → model's threads → writer's thread

All of them work at the same time, each a bounded number of images ahead of the next. The thread
that called hands images from one stage to the next, in order; what it waits for is the bottleneck.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.decoders import PASSING, Decoders
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.sources.manifest import Manifest
from visdiv_assets.sources.source import Read, Source
from visdiv_assets.store.index import (
    INDEX_SCHEMA,
    JUDGE,
    KEY_BYTES,
    EmbeddingIndex,
    Keys,
    content_key,
    to_keys,
)
from visdiv_assets.store.store import KeyIndex, Store

if TYPE_CHECKING:
    from visdiv_assets.embedding.gpu_decode import GpuDecoder

NO_KEY = b""  # in an array of keys: content not read

MAX_DECODERS = 32  # 40 MB each

# Longer than a decoder process takes to start, so that the first alone starts no second.
STARVED_SECONDS = 0.3

# Outcomes held back while a batch fills; reached only where most content is known already.
MAX_WAITING = 1024

# After so long, a second of waiting counts half.
FADING_SECONDS = 20.0

OnProgress = Callable[[int, int, int, str], None]
"""Called with images done, images in all, images that went through the model, and the stage that
sets the pace: reading, decoding, the model or writing."""


class Embedder(Protocol):
    """What the pipeline needs of `SSCDEmbedder`."""

    @property
    def model_id(self) -> str:
        """Names what the vectors were made with."""

    @property
    def batch_size(self) -> int:
        """Images per call."""

    @property
    def calls_at_once(self) -> int:
        """Calls of `embed`, from threads of their own, that keep the model busy."""

    @property
    def decoding(self) -> Decoding:
        """How images become pixels; part of the model id."""

    def embed(self, pixels: Pixels) -> Vectors:
        """(B, H, W, 3) uint8 with B ≤ batch size → (B, D) float32."""

    @property
    def gpu_decoder(self) -> "GpuDecoder | None":
        """What decodes some images later, a batch at a time; asked where `decoding` says so."""

    def embed_encoded(
        self, images: Sequence[Pixels | bytes], otherwise: Callable[[bytes], Pixels]
    ) -> Sequence[NDArray[np.float32] | DecodeError]:
        """B images, some of them still encoded, for `gpu_decoder` → B vectors (D,) or reasons."""


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


class Waits:
    """For which stage a run waits. One thread uses it."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(("the model", "reading", "decoding", "writing"), 0.0)
        self._last_fading = time.monotonic()

    @contextlib.contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Count the time that the block takes as spent waiting for a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self._seconds[stage] += now - started
            if now - self._last_fading > FADING_SECONDS:
                self._last_fading = now
                self._seconds = {name: spent / 2 for name, spent in self._seconds.items()}

    @property
    def bottleneck(self) -> str:
        """The stage that was waited for longest of late."""
        return max(self._seconds, key=self._seconds.__getitem__)


class _Decoded(NamedTuple):
    at: int
    content_key: bytes | None
    pixels: Pixels | bytes | None  # bytes: for the GPU to decode
    failure: Failure | None


_Vectors = Sequence[NDArray[np.float32] | DecodeError]


class _Model:
    """The model, loaded in the background, and the batches that it works on or has in line."""

    def __init__(self, embedder: Embedder, waits: Waits) -> None:
        self._embedder, self._waits = embedder, waits
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        # For images that the GPU fails at; started when there is one.
        self._decoders = Decoders(embedder.decoding, 1)
        self._threads: ThreadPoolExecutor | None = None
        self._loading: Future[tuple[int, int]] | None = None
        self._lock = threading.Lock()
        self._unfinished: list[Future[_Vectors]] = []

    def decodes(self, data: bytes) -> bool:
        """Whether this image is to be handed over as it is."""
        if not self._embedder.decoding.jpeg_on_gpu:
            return False
        self.load_soon()
        assert self._loading is not None
        self._loading.result()  # CUDA is started once, by the thread that loads the model
        decoder = self._embedder.gpu_decoder
        return decoder is not None and decoder.takes(data)

    def load_soon(self) -> None:
        """Start to load it, unless that was done before; does not wait."""
        with self._lock:
            if self._loading is None:
                self._loading = self._loader.submit(self._load)

    def _load(self) -> tuple[int, int]:
        if self._embedder.decoding.jpeg_on_gpu:
            _ = self._embedder.gpu_decoder
        return self._embedder.batch_size, self._embedder.calls_at_once

    def _loaded(self) -> tuple[int, int]:
        self.load_soon()
        assert self._loading is not None
        with self._waits.on("the model"):
            return self._loading.result()

    @property
    def batch_size(self) -> int:
        """Images per batch; waits until the model is loaded."""
        return self._loaded()[0]

    def raise_if_broken(self) -> None:
        """Raise what loading it raised, also where no image came to need it."""
        if self._loading is not None:
            self._loading.result()

    def start(self, images: Sequence[Pixels | bytes]) -> Future[_Vectors]:
        """Put a batch in line; waits while the line is full."""
        _, calls = self._loaded()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(calls, thread_name_prefix="model")
        # As many in line as it works on: it need not wait for the thread that hands over.
        while self._count_unfinished() >= 2 * calls:
            with self._waits.on("the model"):
                wait(self._unfinished, return_when=FIRST_COMPLETED)
        self._unfinished.append(self._threads.submit(self._embed, images))
        return self._unfinished[-1]

    def _embed(self, images: Sequence[Pixels | bytes]) -> _Vectors:
        pixels = [image for image in images if not isinstance(image, bytes)]
        if len(pixels) == len(images):
            return list(self._embedder.embed(np.stack(pixels)))
        return self._embedder.embed_encoded(images, self._decoders.decode)

    def has_nothing_in_line(self) -> bool:
        """Whether it is loaded, and works on all that it was given."""
        if self._loading is None or not self._loading.done():
            return False
        return self._count_unfinished() <= self._loaded()[1]

    def _count_unfinished(self) -> int:
        self._unfinished = [future for future in self._unfinished if not future.done()]
        return len(self._unfinished)

    def close(self) -> None:
        """Wait for the batches that it works on; drop those in line."""
        for pool in filter(None, (self._threads, self._loader)):
            pool.shutdown(wait=True, cancel_futures=True)
        self._decoders.close()


class _Batch(NamedTuple):
    """Images in order, and the vectors to come of those that have pixels, if any has."""

    images: Sequence[_Decoded]
    vectors: Future[_Vectors] | None

    def outcomes(self, waits: Waits) -> Iterator[Outcome]:
        """One for each image; waits for the model."""
        with waits.on("the model"):
            vectors: Iterator[NDArray[np.float32] | DecodeError] = iter(
                () if self.vectors is None else self.vectors.result()
            )
        for at, key, pixels, failure in self.images:
            if pixels is None:
                yield Outcome(at, key, None, failure)
                continue
            vector = next(vectors)
            if isinstance(vector, DecodeError):
                yield Outcome(at, key, None, Failure(vector.reason, vector.exception))
            elif np.isfinite(vector).all():
                yield Outcome(at, key, vector, None)
            else:
                infinite = Failure("the model gives no finite vector for it", "FloatingPointError")
                yield Outcome(at, key, None, infinite)


def embed_stream(
    source: Source,
    image_ids: Iterable[str],
    embedder: Embedder,
    *,
    wanted: Callable[[bytes], bool] = lambda key: True,
    waits: Waits | None = None,
) -> Generator[Outcome]:
    """Read, hash, decode and embed images, with bounded memory.

    Threads read, processes decode and the model works at the same time, each ahead of the next.
    Batches are filled in the order in which the source gives the images, so that two runs do the
    same arithmetic.

    Args:
        source: where the images are.
        image_ids: which ones.
        embedder: what turns pixels into vectors; its model is loaded while the first image that is
            wanted is decoded.
        wanted: whether content of this key is to be embedded; called from several threads.
        waits: counts which stage sets the pace.

    Yields:
        one outcome for each image, in the order in which the source gives them.
    """
    waits = waits or Waits()
    batches: deque[_Batch] = deque()
    images: list[_Decoded] = []
    undone = held = 0
    with contextlib.closing(_Model(embedder, waits)) as model:
        ahead = _decode_ahead(source, image_ids, embedder.decoding, wanted, model, waits)
        with contextlib.closing(ahead):  # at once, whatever happens here: processes hang on it
            for decoded in ahead:
                images.append(decoded)
                undone += decoded.pixels is not None
                held += 1
                # Asking for the batch size waits for the model, so it is not asked without need.
                if undone and undone < model.batch_size and len(images) < MAX_WAITING:
                    continue
                batches.append(_start(images, model))
                images, undone = [], 0
                while batches and (held > MAX_WAITING or _is_finished(batches[0])):
                    held -= len(batches[0].images)
                    yield from batches.popleft().outcomes(waits)
            batches.append(_start(images, model))
            for batch in batches:
                yield from batch.outcomes(waits)
        model.raise_if_broken()


def _start(images: Sequence[_Decoded], model: _Model) -> _Batch:
    pixels = [entry.pixels for entry in images if entry.pixels is not None]
    return _Batch(images, model.start(pixels) if pixels else None)


def _is_finished(batch: _Batch) -> bool:
    return batch.vectors is None or batch.vectors.done()


def _decode_ahead(
    source: Source,
    image_ids: Iterable[str],
    decoding: Decoding,
    wanted: Callable[[bytes], bool],
    model: _Model,
    waits: Waits,
) -> Generator[_Decoded]:
    """`_decode` of each image as it is read, a bounded number ahead of the consumer.

    One process decodes to begin with; as many again join when the model had to wait for images.
    """
    most = min(MAX_DECODERS, usable_cpus())
    working, starved = 1, 0.0
    permits = threading.Semaphore(working)
    ahead: deque[Future[_Decoded]] = deque()

    def decode(read: Read) -> _Decoded:
        return _decode(read, decoders, wanted, model, permits)

    def next_decoded() -> _Decoded:
        nonlocal working, starved
        with waits.on("decoding"):
            while working < most and not ahead[0].done():
                model_waits, since = model.has_nothing_in_line(), time.monotonic()
                wait([ahead[0]], timeout=STARVED_SECONDS)
                starved += time.monotonic() - since if model_waits else 0.0
                if starved >= STARVED_SECONDS:
                    more = min(working, most - working)
                    permits.release(more)
                    working, starved = working + more, 0.0
            return ahead.popleft().result()

    # First the reader stops, then the threads end, then the processes that they talk to.
    with (
        Decoders(decoding, most) as decoders,
        _threads(most) as pool,
        contextlib.closing(_as_generator(source.read_all(image_ids))) as reads,
    ):
        while True:
            with waits.on("reading"):
                read = next(reads, None)
            if read is None:
                break
            ahead.append(pool.submit(decode, read))
            if len(ahead) >= 16 * most:
                yield next_decoded()
        while ahead:
            yield next_decoded()


def _as_generator(reads: Iterator[Read]) -> Generator[Read]:
    yield from reads


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(
    read: Read,
    decoders: Decoders,
    wanted: Callable[[bytes], bool],
    model: _Model,
    permits: threading.Semaphore,
) -> _Decoded:
    at, data = read
    if isinstance(data, OSError):
        return _Decoded(at, None, None, Failure(data.strerror or str(data), type(data).__name__))
    key = content_key(data)
    if not wanted(key):
        return _Decoded(at, key, None, None)
    model.load_soon()
    if model.decodes(data):
        return _Decoded(at, key, data, None)
    try:
        with permits:
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
    waits = Waits()
    stream = embed_stream(
        source,
        (value.as_py() for value in ids),
        embedder,
        wanted=_Claim(known, undecodable),
        waits=waits,
    )

    done, embedded = len(manifest) - len(to_read), 0
    unreadable: dict[int, Failure] = {}  # by position
    with store.segment_writer(model_id) as writer, contextlib.closing(stream):
        for outcome in stream:
            at = int(to_read[outcome.at])
            keys[at] = outcome.content_key or NO_KEY
            if outcome.vector is not None:
                with waits.on("writing"):
                    writer.add(outcome.content_key or NO_KEY, outcome.vector)
                embedded += 1
            elif outcome.failure is not None and outcome.content_key is None:
                unreadable[at] = outcome.failure
            elif outcome.failure is not None:
                # NumPy hands out keys without trailing zero bytes, here and below.
                undecodable[keys[at]] = outcome.failure
            done += 1
            if on_progress is not None:
                on_progress(done, len(manifest), embedded, waits.bottleneck)
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
