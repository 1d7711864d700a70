"""Decoded images of a dataset by id, for contact sheets and other uses of pixels.

Here: reading and decoding some images of a source. Not here: embedding whole datasets
(`pipeline.py`), drawing (`report/sheets.py`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.decoders import Decoders, Picture
from visdiv_assets.embedding.preprocess import DecodeError, Decoding
from visdiv_assets.sources.source import Source

OnProgress = Callable[[int, int], None]
_Answer = TypeVar("_Answer")


class Size(NamedTuple):
    """Encoded width and height in pixels, and size in bytes."""

    width: int
    height: int
    bytes: int


def pictures_of(
    source: Source, image_ids: Iterable[str], decoding: Decoding
) -> Iterator[tuple[str, int, Picture]]:
    """Read images, and decode them in separate processes.

    Args:
        source: the source of the images.
        image_ids: which images; all are held in memory, 300 KB each.
        decoding: how to decode.

    Yields:
        image id, size in bytes and picture, in the order of the ids; images that can no longer be
        read or decoded are skipped.
    """
    wanted = sorted(set(image_ids))
    decoded = _asked(source, wanted, decoding, Decoders.picture)
    found = {at: each for at, each in decoded if each is not None}
    for at in sorted(found):
        yield wanted[at], *found[at]


def sizes_of(
    source: Source,
    image_ids: Iterable[str],
    decoding: Decoding,
    on_progress: OnProgress | None = None,
) -> dict[str, Size]:
    """The sizes of images; those that can no longer be read or are no images are skipped.

    Only headers are looked at. Works for any number of images, since only a few are in memory at a
    time.

    Args:
        source: the source of the images.
        image_ids: which images.
        decoding: how to decode.
        on_progress: called with the number of images done and the total.
    """
    wanted = sorted(set(image_ids))
    sizes = {}
    asked = _asked(source, wanted, decoding, Decoders.size)
    for done, (at, each) in enumerate(asked, start=1):
        if each is not None:
            n_bytes, (width, height) = each
            sizes[wanted[at]] = Size(width, height, n_bytes)
        if on_progress is not None:
            on_progress(done, len(wanted))
    return sizes


def _asked(
    source: Source,
    wanted: Sequence[str],
    decoding: Decoding,
    question: Callable[[Decoders, bytes], _Answer],
) -> Iterator[tuple[int, tuple[int, _Answer] | None]]:
    """Position, bytes and answer for each image as they arrive, a few ahead of the caller."""
    workers = min(4, usable_cpus())
    with Decoders(decoding, workers) as decoders, ThreadPoolExecutor(workers) as threads:

        def ask(data: bytes | OSError) -> tuple[int, _Answer] | None:
            try:
                return None if isinstance(data, OSError) else (len(data), question(decoders, data))
            except DecodeError:
                return None

        ahead: deque[tuple[int, Future[tuple[int, _Answer] | None]]] = deque()
        for each in source.read_all(wanted):
            ahead.append((each.at, threads.submit(ask, each.data)))
            if len(ahead) > 2 * workers:
                at, future = ahead.popleft()
                yield at, future.result()
        for at, future in ahead:
            yield at, future.result()
