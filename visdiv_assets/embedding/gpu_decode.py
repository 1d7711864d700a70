"""Decoding JPEGs on a GPU: encoded images → squares of pixels that stay on it.

Here: choosing images for nvJPEG, and decoding and resizing them in batches. Not here: all other
images, which are decoded as usual (`decoders.py`); what the pixels are used for.

nvJPEG rounds the cosine transform and upsamples colours differently from libjpeg, so these pixels
differ slightly from FineVision's, and their vectors have a model id of their own. nvJPEG also
reads the bytes in this process, so a malicious file that exploits nvJPEG attacks the run. Use it
only for trusted images; it is never chosen automatically.
"""

import contextlib
import io
import logging
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from visdiv_assets.embedding.decoding import FLAT
from visdiv_assets.embedding.preprocess import IMAGE_SIDE, DecodeError, Decoding, Pixels
from visdiv_assets.errors import VisdivError

logger = logging.getLogger(__name__)

# Larger images are rare, and each would take gigabytes of GPU memory.
MAX_PIXELS = 2**25

# Pixels decoded at once: 0.2 GB as uint8, 0.8 GB as the float32 in which they are resized.
CHUNK_PIXELS = 2**26

FRAMES = (0xC0, 0xC2)  # baseline and progressive

# Deprecated since torchvision 0.29 in favour of TorchCodec; users cannot act on the warning.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")


class Size(NamedTuple):
    """Size of an image in pixels."""

    width: int
    height: int


def plain_jpeg_size(data: bytes, decoding: Decoding = Decoding()) -> Size | None:  # noqa: B008
    """The size of a JPEG that nvJPEG decodes like libjpeg; None for anything else.

    Such a JPEG is baseline or progressive, has 8 bits, is grey or YCbCr with common subsampling,
    is complete up to the last marker, is within the limits, and needs no rotation. Only the header
    is parsed.

    References:
        ITU-T T.81 (1992), annex B; for colours, ITU-T T.872 (2012), section 6.5.3.

    Example:
        >>> encoded = io.BytesIO()
        >>> Image.new("RGB", (40, 30)).save(encoded, "JPEG")
        >>> plain_jpeg_size(encoded.getvalue())
        Size(width=40, height=30)
        >>> plain_jpeg_size(encoded.getvalue()[:-1])
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    size: Size | None = None
    for marker, body in _segments(data):
        is_frame = 0xC0 <= marker <= 0xCF and marker != 0xC4  # C4 holds Huffman tables
        other_colours = marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != b"\x01"
        turned = marker == 0xE1 and body[:4] == b"Exif" and decoding.exif_orientation
        odd = is_frame and (size or marker not in FRAMES or not _is_common(body))
        if odd or other_colours or turned:
            return None
        if is_frame:
            size = Size(int.from_bytes(body[3:5]), int.from_bytes(body[1:3]))
    limit = min(MAX_PIXELS, decoding.max_pixels)
    return size if size and 0 < size.width * size.height <= limit else None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker and content of each segment before the first scan."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda"):
        length = int.from_bytes(data[at + 2 : at + 4])
        yield data[at + 1], data[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)


def _is_common(frame: bytes) -> bool:
    """Whether a frame has 8 bits and is grey, or has components 1, 2, 3 with usual subsampling."""
    components = [tuple(frame[at : at + 2]) for at in range(6, len(frame), 3)]
    if len(frame) < 9 or frame[0] != 8 or len(frame) != 6 + 3 * frame[5]:
        return False
    if len(components) == 1:
        return components[0][1] == 0x11
    luma = [(1, factors) for factors in (0x11, 0x21, 0x12, 0x22)]
    return components[0] in luma and components[1:] == [(2, 0x11), (3, 0x11)]


def are_flat(squares: Tensor) -> Tensor:
    """Which squares, (N, 320, 320, 3) uint8, are of one colour, as in `decoding.Square.flat`.

    Returns:
        (N,) bool, on the same device.

    Example:
        >>> are_flat(torch.zeros((2, 320, 320, 3), dtype=torch.uint8)).tolist()
        [True, True]
    """
    pixels = squares.flatten(1, 2)
    return (pixels.amax(1) - pixels.amin(1) <= FLAT).all(1)


class GpuDecoder:
    """Decodes JPEGs on one GPU, for one thread at a time.

    Use only one per process: torchvision keeps a single nvJPEG decoder, and creates a new one
    whenever the device changes.

    Args:
        device: a CUDA device; for tests, the CPU works as well, through libjpeg.
        decoding: settings; `max_seconds` is ignored.

    Raises:
        VisdivError: there is no JPEG decoder on that device.
    """

    def __init__(self, device: torch.device, decoding: Decoding) -> None:
        self._device, self._decoding = device, decoding
        self._lock = threading.Lock()
        sample = io.BytesIO()
        Image.new("RGB", (16, 16)).save(sample, "JPEG")
        try:
            self._decode([sample.getvalue()])
        except RuntimeError as error:
            raise VisdivError(f"{device} cannot decode JPEG: {_first_line(error)}") from error

    def takes(self, data: bytes) -> bool:
        """Whether `decode` accepts this image."""
        return plain_jpeg_size(data, self._decoding) is not None

    def decode_all(
        self, images: Sequence[Pixels | bytes], otherwise: Callable[[bytes], Pixels]
    ) -> tuple[Tensor, list[bool], dict[int, DecodeError]]:
        """As `decode`, for a mix of decoded and encoded images; failures go to `otherwise`.

        Returns:
            the squares, (N, 320, 320, 3) uint8 on the device; which of them are of one colour; and
            the errors by position of the images that cannot be decoded, which are black.

        Raises:
            VisdivError: the device failed.
        """
        squares, left = self.decode(
            [image if isinstance(image, bytes) else b"" for image in images]
        )
        failed: dict[int, DecodeError] = {}
        others: dict[int, Tensor] = {}
        for at in left:
            image = images[at]
            try:
                pixels = otherwise(image) if isinstance(image, bytes) else image
                others[at] = torch.tensor(pixels)
            except DecodeError as error:
                failed[at] = error
        # Nothing may be left to be done when another thread decodes: see `_finish`.
        with self._told_as_a_failure(), torch.inference_mode(), self._lock:
            for at, square in others.items():
                squares[at] = square
            flat: list[bool] = are_flat(squares).tolist()
            self._finish()
        return squares, flat, failed

    def decode(self, encoded: Sequence[bytes]) -> tuple[Tensor, list[int]]:
        """Decode and resize to squares, bilinear with antialiasing, on the current stream.

        Returns:
            the squares, (N, 320, 320, 3) uint8 on the device, and the positions, ascending, of the
            images that nvJPEG does not accept or cannot decode, which are black.

        Raises:
            VisdivError: the device failed.
        """
        sizes = {at: plain_jpeg_size(data, self._decoding) for at, data in enumerate(encoded)}
        shape = (len(encoded), IMAGE_SIDE, IMAGE_SIDE, 3)
        done: set[int] = set()
        with self._told_as_a_failure(), torch.inference_mode(), self._lock:
            squares = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            for chunk in _chunks({at: size for at, size in sizes.items() if size}):
                try:
                    images = self._decode_what_can_be([encoded[at] for at in chunk])
                    done |= _fill(squares, dict(zip(chunk, images, strict=True)))
                except torch.OutOfMemoryError as error:
                    logger.warning(
                        "%s has too little memory to decode %d images, which CPUs decode instead: "
                        "%s",
                        *(self._device, len(chunk), _first_line(error)),
                    )
            self._finish()
        return squares, [at for at in range(len(encoded)) if at not in done]

    @contextlib.contextmanager
    def _told_as_a_failure(self) -> Iterator[None]:
        """Errors of the device as a `VisdivError` that names it."""
        try:
            yield
        except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
            raise VisdivError(f"{self._device} failed: {_first_line(error)}") from error

    def _finish(self) -> None:
        """Wait for what the device has been told to do.

        Memory that Python has let go of is free for nvJPEG, which writes to it from a stream of its
        own, without waiting for this one, which may still be reading or writing it.
        """
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _decode_what_can_be(self, encoded: Sequence[bytes]) -> list[Tensor | None]:
        """(3, H, W) uint8 each. One bad image fails a whole call, so failed batches are halved."""
        try:
            return [*self._decode(encoded)]
        except torch.AcceleratorError:
            raise
        except RuntimeError:
            if len(encoded) == 1:
                return [None]
            middle = len(encoded) // 2
            return [
                *self._decode_what_can_be(encoded[:middle]),
                *self._decode_what_can_be(encoded[middle:]),
            ]

    def _decode(self, encoded: Sequence[bytes]) -> list[Tensor]:
        self._finish()
        buffers = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
        images: list[Tensor] = decode_jpeg(buffers, mode=ImageReadMode.RGB, device=self._device)
        return images


def _chunks(sizes: dict[int, Size]) -> Iterator[list[int]]:
    """Positions in order, in chunks of up to CHUNK_PIXELS pixels, at least one each."""
    chunk: list[int] = []
    pixels = 0
    for at, size in sizes.items():
        area = size.width * size.height
        if chunk and pixels + area > CHUNK_PIXELS:
            yield chunk
            chunk, pixels = [], 0
        chunk.append(at)
        pixels += area
    if chunk:
        yield chunk


def _fill(squares: Tensor, images: dict[int, Tensor | None]) -> set[int]:
    """Resize images into their squares, grouped by size; returns the positions that succeeded."""
    alike: dict[torch.Size, dict[int, Tensor]] = defaultdict(dict)
    for at, image in images.items():
        if image is not None:
            alike[image.shape][at] = image
    done: list[int] = []
    resized: list[Tensor] = []
    for group in alike.values():
        if (each := _resize([*group.values()])) is not None:
            done += group
            resized.append(each)
    if resized:
        # Rounded and put in order all at once: sizes may be as many as images.
        squares[done] = torch.cat(resized).round_().to(torch.uint8).permute(0, 2, 3, 1)
    return {*done}


def _resize(images: Sequence[Tensor]) -> Tensor | None:
    """(3, H, W) uint8, all of one size → (N, 3, 320, 320) float32; None if that is too large."""
    together = images[0][None] if len(images) == 1 else torch.stack([*images])
    side = (IMAGE_SIDE, IMAGE_SIDE)
    try:
        return F.interpolate(together.float(), side, mode="bilinear", antialias=True)
    except torch.AcceleratorError:
        raise
    except RuntimeError:  # out of memory, or a reduction by a factor of hundreds on a GPU
        return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
