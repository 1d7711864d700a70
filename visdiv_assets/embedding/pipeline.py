"""Images → vectors: read, hash, decode and infer concurrently, in bounded memory.

Here: the stages and how they overlap. Not here: what can be skipped and where vectors go
(`incremental.py`), the model, file formats.

    source's threads → threads that hash, with decoder processes → model's threads → consumer

All stages run concurrently, each a bounded number of images ahead of the next. The calling thread
passes images from stage to stage, in order; the stage that it waits for is the bottleneck.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.sources.source import Read, Source
from visdiv_assets.store.index import (
    content_key,
)

if TYPE_CHECKING:
    from visdiv_assets.embedding.gpu_decode import GpuDecoder

MAX_DECODERS = 32  # 40 MB each

# Outcomes held back while batches fill and are embedded, unless the model wants more at once.
MAX_WAITING = 1024

# Encoded images that have been read but not decoded, in all; one larger than this comes alone.
MAX_BYTES_AHEAD = 256 * 2**20

# What is read but not yet passed to a thread; a 32nd of the bytes above.
MAX_READS = 128

# What one thread decodes before it passes it on.
MAX_BUNDLE, MAX_BUNDLE_BYTES = 8, 2**19

# How often a source is given up on for a moment: what it has sent goes through the model, even if
# that is no full batch, and progress is reported.
PAUSE_SECONDS = 5.0

# Half-life, in seconds, of recorded waits.
FADING_SECONDS = 20.0

OnProgress = Callable[[int, int, int, str], None]
"""Called with the number of images done, the total, the number that went through the model, and the
bottleneck: reading, decoding, the model or writing."""


class Embedder(Protocol):
    """The part of `SSCDEmbedder` that the pipeline needs."""

    @property
    def model_id(self) -> str:
        """Identifies how the vectors were made."""

    @property
    def batch_size(self) -> int:
        """Images per call."""

    @property
    def calls_at_once(self) -> int:
        """Number of concurrent `embed` calls that keep the model busy."""

    @property
    def decoding(self) -> Decoding:
        """How images are decoded; part of the model id."""

    def embed(self, pixels: Sequence[Pixels]) -> Vectors:
        """B images of shape (H, W, 3), uint8, B ≤ batch size → (B, D) float32."""

    @property
    def gpu_decoder(self) -> "GpuDecoder | None":
        """Decodes some images later, a batch at a time; used only if `decoding` asks for it."""

    def embed_encoded(
        self, images: Sequence[Pixels | bytes], otherwise: Callable[[bytes], Pixels]
    ) -> Sequence[tuple[NDArray[np.float32], bool] | DecodeError]:
        """B images, some still encoded for `gpu_decoder` → B vectors (D,) or errors.

        With each vector: whether the picture is one flat colour.
        """


class Failure(NamedTuple):
    """Why an image has no vector; `exception` is the class of the exception, or ""."""

    reason: str
    exception: str


# A failure of the model, not of the image: another model may embed it.
NOT_FINITE = Failure("the model returned a vector that is not finite", "FloatingPointError")


class Outcome(NamedTuple):
    """The result for the `at`-th requested image.

    It has a `vector` (D,) if the image went through the model, a `failure` if that did not work,
    and neither if its content was not wanted or has a vector already: then it is `adopted`.
    `content_key` is None only if it could not be read. `flat`: the picture is one flat colour.
    """

    at: int
    content_key: bytes | None
    vector: Vectors | None
    failure: Failure | None
    flat: bool = False
    adopted: bool = False


class Waits:
    """Measures which stage a run waits for. For use by one thread.

    Args:
        clock: gives the time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = dict.fromkeys(("the model", "reading", "decoding", "writing"), 0.0)
        self._last_fading = clock()

    @contextlib.contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Count the duration of the block as waiting for a stage."""
        started = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            self._seconds[stage] += now - started
            if now - self._last_fading > FADING_SECONDS:
                self._last_fading = now
                self._seconds = {name: spent / 2 for name, spent in self._seconds.items()}

    @property
    def bottleneck(self) -> str:
        """The stage that recently caused the longest waits."""
        return max(self._seconds, key=self._seconds.__getitem__)


class _Decoded(NamedTuple):
    number: int  # in the order in which the source gives images
    at: int
    content_key: bytes | None
    pixels: Pixels | bytes | None  # bytes: for the GPU to decode
    failure: Failure | None
    flat: bool = False
    adopted: bool = False

    @property
    def gives_row(self) -> bool:
        """Whether it is to have a row in the store."""
        return self.pixels is not None or self.adopted


_Vectors = Sequence[tuple[NDArray[np.float32], bool] | DecodeError]


class _Model:
    """The model, loaded in the background, and the batches that are running or queued."""

    def __init__(self, embedder: Embedder, waits: Waits) -> None:
        self._embedder, self._waits = embedder, waits
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        # For images that the GPU fails to decode; started on demand.
        self._decoders = Decoders(embedder.decoding, 1)
        self._threads: ThreadPoolExecutor | None = None
        self._loading: Future[tuple[int, int]] | None = None
        self._lock = threading.Lock()
        self._unfinished: list[Future[_Vectors]] = []

    def decodes(self, data: bytes) -> bool:
        """Whether the model decodes this image itself."""
        if not self._embedder.decoding.jpeg_on_gpu:
            return False
        self.load_soon()
        assert self._loading is not None
        self._loading.result()  # CUDA is initialised once, by the thread that loads the model
        decoder = self._embedder.gpu_decoder
        return decoder is not None and decoder.takes(data)

    def load_soon(self) -> None:
        """Start loading the model in the background, unless that has already happened."""
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

    @property
    def window(self) -> int:
        """Number of images on their way that keep the model busy; does not wait for it to load."""
        if self._loading is None or not self._loading.done() or self._loading.exception():
            return MAX_WAITING
        batch, calls = self._loading.result()
        return max(MAX_WAITING, (2 * calls + 1) * batch)

    def raise_if_broken(self) -> None:
        """Raise the error from loading the model, even if no image needed it."""
        if self._loading is not None:
            self._loading.result()

    def start(self, images: Sequence[Pixels | bytes]) -> Future[_Vectors]:
        """Queue a batch; waits while the queue is full."""
        _, calls = self._loaded()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(calls, thread_name_prefix="model")
        # Queue as many as are running, so that the model never waits for this thread.
        while self._count_unfinished() >= 2 * calls:
            with self._waits.on("the model"):
                wait(self._unfinished, return_when=FIRST_COMPLETED)
        self._unfinished.append(self._threads.submit(self._embed, images))
        return self._unfinished[-1]

    def _embed(self, images: Sequence[Pixels | bytes]) -> _Vectors:
        pixels = [image for image in images if not isinstance(image, bytes)]
        if len(pixels) == len(images):
            # Whether they are flat is known from decoding them.
            return [(vector, False) for vector in self._embedder.embed(pixels)]
        return self._embedder.embed_encoded(images, self._decoders.decode)

    @property
    def is_idle(self) -> bool:
        """Whether no batch is running or queued."""
        return not self._count_unfinished()

    def _count_unfinished(self) -> int:
        self._unfinished = [future for future in self._unfinished if not future.done()]
        return len(self._unfinished)

    def close(self) -> None:
        """Wait for the running batches and drop the queued ones."""
        for pool in filter(None, (self._threads, self._loader)):
            pool.shutdown(wait=True, cancel_futures=True)
        self._decoders.close()


class _Batch(NamedTuple):
    """Images in order, and the pending vectors of those that have pixels, if any."""

    images: Sequence[_Decoded]
    vectors: Future[_Vectors] | None

    def is_given(self) -> bool:
        """Whether the model has given its vectors; raises nothing."""
        vectors = self.vectors
        if vectors is None or not vectors.done() or vectors.cancelled():
            return False
        return vectors.exception() is None

    def outcomes(self, waits: Waits) -> Iterator[Outcome]:
        """One for each image; waits for the model."""
        with waits.on("the model"):
            given = iter(() if self.vectors is None else self.vectors.result())
        for _, at, key, pixels, failure, flat, adopted in self.images:
            if pixels is None:
                yield Outcome(at, key, None, failure, flat, adopted)
                continue
            answer = next(given)
            if isinstance(answer, DecodeError):
                yield Outcome(at, key, None, Failure(answer.reason, answer.exception))
                continue
            vector, is_flat = answer
            if np.isfinite(vector).all():
                yield Outcome(at, key, vector, None, flat or is_flat)
            else:
                yield Outcome(at, key, None, NOT_FINITE)


def embed_stream(
    source: Source,
    image_ids: Iterable[str],
    embedder: Embedder,
    *,
    wanted: Callable[[bytes, int], bool] = lambda key, number: True,
    look_up: Callable[[Sequence[bytes]], object] = lambda keys: None,
    adoptable: Callable[[bytes], bool] = lambda key: False,
    waits: Waits | None = None,
    on_pause: Callable[[], object] = lambda: None,
    on_end: Callable[[Outcome], object] = lambda outcome: None,
) -> Generator[Outcome]:
    """Read, hash, decode and embed images, with bounded memory.

    Threads read, processes decode and the model runs concurrently, each ahead of the next.
    Batches are filled in the order in which the source yields images, so that two runs do the same
    arithmetic. If a source is slow and the model idle, a batch starts before it is full.

    Args:
        source: the source of the images.
        image_ids: which images.
        embedder: turns pixels into vectors; its model is loaded while the first wanted image is
            being decoded.
        wanted: whether to embed the content with a key that comes as the n-th image: the first that
            has it, if at all. Called from several threads in any order, and then again in order.
        look_up: told of keys of which `wanted` is about to be asked, since several are looked up in
            hardly more time than one.
        adoptable: whether there is a vector for this content by an older version, which is as
            good unless that version decoded the image differently; called from several threads.
        waits: measures which stage is the bottleneck.
        on_pause: called every PAUSE_SECONDS, also while no image comes.
        on_end: if an error or a signal ends this early, told of what the model had given by then
            and was not taken; the outcome that was yielded last may be among it.

    Yields:
        one outcome per image, in the order in which the source yields them.
    """
    waits = waits or Waits()
    batches: deque[_Batch] = deque()
    ready: deque[Outcome] = deque()
    images: list[_Decoded] = []
    undone = held = 0
    try:
        with contextlib.closing(_Model(embedder, waits)) as model:
            decode = _Decode(wanted, look_up, adoptable, model)
            ahead = _decode_ahead(source, image_ids, embedder.decoding, decode, waits)
            with contextlib.closing(ahead):  # close at once on any exit, since it owns processes
                for decoded in ahead:
                    if decoded is None:
                        on_pause()
                        is_full = bool(images) and model.is_idle
                    else:
                        if decoded.gives_row and not wanted(
                            decoded.content_key or b"", decoded.number
                        ):
                            decoded = decoded._replace(pixels=None, adopted=False)
                        images.append(decoded)
                        undone += decoded.pixels is not None
                        held += 1
                        # The batch size waits for the model to load: ask only when needed.
                        is_full = (
                            not undone or undone >= model.batch_size or len(images) >= MAX_WAITING
                        )
                    if is_full:
                        batches.append(_start(images, model))
                        images, undone = [], 0
                    while batches and (held > model.window or _is_finished(batches[0])):
                        held -= len(batches[0].images)
                        ready.extend(batches[0].outcomes(waits))
                        batches.popleft()
                        yield from _each(ready)
                batches.append(_start(images, model))
                while batches:
                    ready.extend(batches[0].outcomes(waits))
                    batches.popleft()
                    yield from _each(ready)
            model.raise_if_broken()
    except BaseException:  # the model is closed by now, and has finished what it was at
        for batch in filter(_Batch.is_given, batches):
            ready.extend(batch.outcomes(waits))
        for outcome in ready:
            on_end(outcome)
        raise


def _each(ready: deque[Outcome]) -> Iterator[Outcome]:
    """Take them one by one; one stays until the next is wanted, and so is never lost between."""
    while ready:
        yield ready[0]
        ready.popleft()


def _start(images: Sequence[_Decoded], model: _Model) -> _Batch:
    pixels = [entry.pixels for entry in images if entry.pixels is not None]
    return _Batch(images, model.start(pixels) if pixels else None)


def _is_finished(batch: _Batch) -> bool:
    return batch.vectors is None or batch.vectors.done()


def _decode_ahead(
    source: Source,
    image_ids: Iterable[str],
    decoding: Decoding,
    decode: "_Decode",
    waits: Waits,
) -> Generator[_Decoded | None]:
    """Decode each image as it is read, a bounded number ahead of the consumer.

    Yields:
        the images in order, and None every PAUSE_SECONDS.
    """
    workers = min(MAX_DECODERS, usable_cpus())
    ahead: deque[tuple[Future[list[_Decoded]], int, int]] = deque()
    n_ahead = n_bytes = n_read = 0
    pause_at = time.monotonic() + PAUSE_SECONDS

    def next_decoded() -> list[_Decoded]:
        nonlocal n_ahead, n_bytes
        with waits.on("decoding"):
            future, count, size = ahead.popleft()
            n_ahead -= count
            n_bytes -= size
            return future.result()

    # On exit, the reader stops first, then the threads, then the processes that they use.
    with (
        Decoders(decoding, workers) as decoders,
        _threads(workers, "decode") as pool,
        contextlib.closing(_Reads(source.read_all(image_ids))) as coming,
    ):
        while (reads := coming.take(pause_at - time.monotonic(), waits)) is not None:
            if time.monotonic() >= pause_at:
                # Else a full window keeps the model in work while the consumer is busy.
                while ahead and ahead[0][0].done():
                    yield from next_decoded()
                yield None
                pause_at = time.monotonic() + PAUSE_SECONDS
            for some in _bundles(reads, workers):
                size = sum(map(_n_bytes, some))
                while ahead and (n_ahead >= 16 * workers or n_bytes + size > MAX_BYTES_AHEAD):
                    yield from next_decoded()
                n_ahead += len(some)
                n_bytes += size
                ahead.append((pool.submit(decode.all, some, n_read, decoders), len(some), size))
                n_read += len(some)
        while ahead:
            yield from next_decoded()


def _n_bytes(read: Read) -> int:
    return 0 if isinstance(read.data, OSError) else len(read.data)


def _bundles(reads: Sequence[Read], workers: int) -> Iterator[list[Read]]:
    """Reads in order, in parts that one thread decodes.

    Passing an image from thread to thread costs more than reading a small one. But parts are small
    enough for every thread to have one, and large images come alone.
    """
    most = max(1, min(MAX_BUNDLE, len(reads) // workers))
    some: list[Read] = []
    n_bytes = 0
    for read in reads:
        size = _n_bytes(read)
        if some and (len(some) >= most or n_bytes + size > MAX_BUNDLE_BYTES):
            yield some
            some, n_bytes = [], 0
        some.append(read)
        n_bytes += size
    if some:
        yield some


class _Reads:
    """What a source yields, read in a thread of its own, some images ahead of their use.

    A signal may come while the thread starts, before anybody can end it. So it is one that does not
    keep the process alive.
    """

    def __init__(self, reads: Iterator[Read]) -> None:
        self._reads = reads
        self._ready: list[Read] = []
        self._n_bytes = 0
        self._closed = self._is_over = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read_all, name="reads", daemon=True)
        self._thread.start()

    def _read_all(self) -> None:
        try:
            with contextlib.closing(_as_generator(self._reads)) as reads:
                for read in reads:
                    with self._changed:
                        self._ready.append(read)
                        self._n_bytes += _n_bytes(read)
                        if len(self._ready) == 1:
                            self._changed.notify_all()
                        self._changed.wait_for(self._has_room)
                        if self._closed:
                            return
        except BaseException as error:  # noqa: BLE001  for the thread that takes
            self._error = error
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        few = len(self._ready) < MAX_READS and self._n_bytes < MAX_BYTES_AHEAD // 32
        return few or self._closed

    def take(self, seconds: float, waits: Waits) -> list[Read] | None:
        """What has come, as soon as anything has; nothing after so many seconds; None at the end.

        Raises:
            Exception: that of the source, after what it had read before.
        """
        with waits.on("reading"), self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_over, max(0.0, seconds))
            ready, self._ready, self._n_bytes = self._ready, [], 0
            is_over = not ready and self._is_over
            self._changed.notify_all()
        if is_over and self._error is not None:
            raise self._error
        return None if is_over else ready

    def close(self) -> None:
        """Wait for the image that is being read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()


def _as_generator(reads: Iterator[Read]) -> Generator[Read]:
    yield from reads


@contextlib.contextmanager
def _threads(workers: int, name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Decode:
    """What becomes of an image that was read; called from several threads."""

    def __init__(
        self,
        wanted: Callable[[bytes, int], bool],
        look_up: Callable[[Sequence[bytes]], object],
        adoptable: Callable[[bytes], bool],
        model: _Model,
    ) -> None:
        self._wanted, self._look_up, self._adoptable = wanted, look_up, adoptable
        self._model = model

    def all(self, reads: Sequence[Read], first: int, decoders: Decoders) -> list[_Decoded]:
        """Of each image, in order; the first one is the `first`-th that was read."""
        keys = [b"" if isinstance(data, OSError) else content_key(data) for _, data in reads]
        self._look_up([key for key in keys if key])
        return [
            self._one(read, key, number, decoders)
            for number, (read, key) in enumerate(zip(reads, keys, strict=True), first)
        ]

    def _one(self, read: Read, key: bytes, number: int, decoders: Decoders) -> _Decoded:
        at, data = read
        if isinstance(data, OSError):
            reason = redacted(data.strerror or str(data))
            return _Decoded(number, at, None, None, Failure(reason, type(data).__name__))
        if not self._wanted(key, number):
            return _Decoded(number, at, key, None, None)
        adoptable = self._adoptable(key)
        if not adoptable:
            self._model.load_soon()
        if not adoptable and self._model.decodes(data):
            return _Decoded(number, at, key, data, None)
        try:
            picture = decoders.picture(data)
        except DecodeError as error:
            return _Decoded(number, at, key, None, Failure(error.reason, error.exception))
        if adoptable and not picture.changed:
            return _Decoded(number, at, key, None, None, picture.flat, adopted=True)
        self._model.load_soon()
        return _Decoded(number, at, key, picture.pixels, None, picture.flat)
