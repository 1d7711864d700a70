"""The protocol that every source implements.

Here: listing and reading, image ids, which file names count as images.
Not here: any particular source.
"""

import io
import itertools
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NamedTuple, Protocol

# The extensions of the formats that `embedding/decoding.py` opens; a test compares the two.
# fmt: off
IMAGE_EXTENSIONS = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".dib", ".gif", ".heic", ".heics", ".heif",
    ".heifs", ".hif", ".icb", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg",
    ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm",
    ".qoi", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
})
# fmt: on

# Encoded images that are read ahead of the consumer, in all; one larger than this comes alone.
MAX_BYTES_AHEAD = 256 * 2**20

# Where an image is there within so many seconds, more threads only get into each other's way, and
# each reads several before it passes them on.
FAST_SECONDS, FAST_READERS = 0.0005, 2
MAX_BUNDLE = 8

READ_BYTES = 2**20

# Limit for an encoded image: a larger file, or a member that unpacks to more, is not read.
MAX_IMAGE_BYTES = 512 * 2**20


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        image_id: stable name of the image inside its dataset, valid Unicode.
        size: encoded size in bytes; None if it is not cheap to find out.
        version: changes when the image does.
        metadata: what its source says about it: label, split, other columns.
    """

    image_id: str
    size: int | None
    version: str
    metadata: Mapping[str, str] | None = None


class Read(NamedTuple):
    """The encoded bytes of one requested image, or the error."""

    at: int
    data: bytes | OSError


class Source(Protocol):
    """A set of images in some storage."""

    @property
    def uri(self) -> str:
        """Its address as shown to users, without secrets."""

    def items(self) -> Iterator[Item]:
        """Stream all images, in any order; raises VisdivError if the source cannot be listed."""

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """The bytes of images, one `Read` each, in whatever order suits the source.

        Sorted ids are faster, because images of the same file are read together.
        """

    def fingerprint(self) -> str | None:
        """A hash that changes when the source does, without listing the images.

        None if nothing is cheaper than listing them.
        """


def read_one(source: Source, image_id: str) -> bytes:
    """The encoded bytes of one image; raises OSError if that fails."""
    [(_, data)] = source.read_all([image_id])
    if isinstance(data, OSError):
        raise data
    return data


def read_concurrently(
    read: Callable[[str], bytes], image_ids: Iterable[str], readers: int
) -> Iterator[Read]:
    """`read` each id, in order, in threads that stay a few images ahead of the consumer.

    Large images are fewer ahead, so that they take no more than about MAX_BYTES_AHEAD.
    """

    def attempt(image_id: str) -> bytes | OSError:
        try:
            return read(image_id)
        except OSError as error:
            return error

    def attempt_some(image_ids: Sequence[str]) -> tuple[list[bytes | OSError], float]:
        begin, n_bytes = time.perf_counter(), 0
        contents: list[bytes | OSError] = []
        for image_id in image_ids:
            contents.append(attempt(image_id))
            n_bytes += _n_bytes(contents[-1])
            if n_bytes > MAX_BYTES_AHEAD // 256:  # the others are left for another call
                break
        return contents, time.perf_counter() - begin

    ahead: deque[tuple[Sequence[str], Future[tuple[list[bytes | OSError], float]]]] = deque()
    pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
    expected = 0.0  # bytes of the next image: as the largest lately
    bundle, most = 1, 2
    at = n_ahead = 0

    def take() -> Iterator[Read]:
        nonlocal expected, bundle, most, at, n_ahead
        some, future = ahead.popleft()
        contents, seconds = future.result()
        n_ahead -= len(contents)
        is_fast = len(contents) == len(some) and seconds < FAST_SECONDS * len(some)
        bundle = min(2 * bundle, MAX_BUNDLE) if is_fast else 1
        most = FAST_READERS if bundle > 2 else 2 * readers
        if left := some[len(contents) :]:
            ahead.appendleft((left, pool.submit(attempt_some, left)))
        for data in contents:
            expected = max(0.9 * expected, _n_bytes(data))
            yield Read(at, data)
            at += 1

    try:
        ids = iter(image_ids)
        while some := [*itertools.islice(ids, bundle)]:
            while ahead and (
                len(ahead) >= most or (n_ahead + len(some)) * expected > MAX_BYTES_AHEAD
            ):
                yield from take()
            ahead.append((some, pool.submit(attempt_some, some)))
            n_ahead += len(some)
        while ahead:
            yield from take()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _n_bytes(data: bytes | OSError) -> int:
    return 0 if isinstance(data, OSError) else len(data)


def read_limited(file: IO[bytes]) -> bytes:
    """The content of a file that holds one image; raises OSError if it exceeds MAX_IMAGE_BYTES."""
    parts, n_bytes = list[bytes](), 0
    # In pieces: Python takes as much memory as it is asked for, before it reads.
    while part := file.read(READ_BYTES):
        parts.append(part)
        n_bytes += len(part)
        if n_bytes > MAX_IMAGE_BYTES:
            raise OSError(f"larger than {MAX_IMAGE_BYTES:,} bytes")
    return b"".join(parts)


class Parts(io.RawIOBase):
    """A file that is read in parts: on a web server, or the first bytes of another file.

    Args:
        read: gives some bytes, by their start and number.
        size: how many there are.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where to read next."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("it begins before the file does")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Where it reads next."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """By one request."""
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._read(self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def is_image_name(name: str) -> bool:
    """Whether a file has an image extension; hidden files do not count as images.

    Example:
        >>> [is_image_name(name) for name in ("a/b.JPG", "b.txt", "a/.b.jpg")]
        [True, False, False]
    """
    base = name.rpartition("/")[2]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_EXTENSIONS


def to_image_id(name: str) -> str:
    r"""Python's name of a file as valid Unicode, which `from_image_id` can reverse.

    Bytes that are not UTF-8 become `\xNN`. If a name has such bytes, or looks as if it had been
    escaped, its backslashes are doubled.

    Example:
        >>> to_image_id("caf\udce9.jpg")
        'caf\\xe9.jpg'
    """
    if name.isascii() and "\\x" not in name:
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        pass
    else:
        if "\\x" not in name:
            return name
    doubled = name.replace("\\", "\\\\")
    return doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def from_image_id(image_id: str) -> str:
    r"""The file name that `to_image_id` encoded.

    Example:
        >>> from_image_id("caf\\xe9.jpg")
        'caf\udce9.jpg'
    """
    if "\\x" not in image_id:
        return image_id

    def unescape(match: re.Match[str]) -> str:
        return "\\" if match[1] is None else chr(0xDC00 + int(match[1], 16))

    return re.sub(r"\\x([0-9a-f]{2})|\\\\", unescape, image_id)
