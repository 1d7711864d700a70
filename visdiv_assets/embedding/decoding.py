"""Encoded image → the square that SSCD sees, as a Pillow image.

Here: decoding, colour conversion and resizing, by default exactly as FineVision does it.
Not here: decoder processes (`decoders.py`) or arrays (`preprocess.py`). NumPy would make a decoder
process start four times more slowly.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import PIL
from PIL import Image, ImageOps

IMAGE_SIDE = 320

# The steps below, as part of the model id: embeddings from different steps never mix.
PREPROCESSING = f"rgb-squash{IMAGE_SIDE}-bilinear"

# Formats that hold pixels. Of the others that Pillow opens, EPS runs Ghostscript, and some are
# stubs. Pillow tries them in this order and loads all codecs at the first one that is not built
# in, so a decoder process that sees only the first two starts in half the time.
# fmt: off
FORMATS = (
    "JPEG", "PNG", "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG2000", "PCX", "PPM", "QOI",
    "SGI", "TGA", "TIFF", "WEBP",
)
# fmt: on
HEIF = "HEIF"

# Twice the size at which Pillow warns of a decompression bomb; 537 MB as RGB.
MAX_PIXELS = 178_956_970
MAX_SECONDS = 30.0

# Pillow warns about oddities in files that it reads anyway. These warnings are silenced globally,
# since `catch_warnings` around each image is not thread-safe and may silence the whole process.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DecodeError(Exception):
    """An image that cannot be decoded.

    Attributes:
        reason: what is wrong with it.
        exception: class of the exception that the decoder raised; "" if it raised none.
    """

    def __init__(self, reason: str, exception: str = "") -> None:
        super().__init__(f"{exception}: {reason}" if exception else reason)
        self.reason, self.exception = reason, exception


@dataclass(frozen=True)
class Decoding:
    """How images are decoded. The defaults are FineVision's.

    Attributes:
        exif_orientation: rotate photographs upright according to their EXIF data.
        alpha_background: background colour `#rrggbb` for transparent images; FineVision drops the
            alpha channel and keeps the colours below it.
        jpeg_on_gpu: decode ordinary JPEGs with nvJPEG, in the process that runs the model; their
            pixels differ slightly.
        max_pixels: largest width × height of an image.
        max_seconds: longest time to decode an image.
    """

    exif_orientation: bool = False
    alpha_background: str | None = None
    jpeg_on_gpu: bool = False
    max_pixels: int = MAX_PIXELS
    max_seconds: float = MAX_SECONDS

    @property
    def name(self) -> str:
        """The part of the model id that describes the preprocessing.

        Example:
            >>> Decoding(exif_orientation=True, alpha_background="#FFFFFF").name
            'rgb-squash320-bilinear-upright-onffffff'
        """
        upright = "-upright" if self.exif_orientation else ""
        ground = self.alpha_background
        nvjpeg = "-nvjpeg" if self.jpeg_on_gpu else ""
        return PREPROCESSING + upright + (f"-on{ground[1:].lower()}" if ground else "") + nvjpeg

    @cached_property
    def judge(self) -> str:
        """Everything that decides whether an image can be decoded: code, formats, limits, steps."""
        heif = "+heif" if _has_heif() else ""
        return f"pillow-{PIL.__version__}{heif}.{self.max_pixels}.{self.name}"


def decode_square(data: bytes, decoding: Decoding) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode_image`, but an RGB Pillow image of 320 × 320, and the encoded width and height."""
    with _opened(data, decoding) as image:
        size = image.size
        square = _to_rgb(image, decoding).resize(
            (IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR
        )
        return square, size


def encoded_size(data: bytes, decoding: Decoding) -> tuple[int, int]:
    """The width and height that `decode_square` gives, from the header; no pixel is decoded.

    Raises:
        DecodeError: the bytes are not an image, or it has too many pixels.
    """
    with _opened(data, decoding) as image:
        return image.size


@contextlib.contextmanager
def _opened(data: bytes, decoding: Decoding) -> Iterator[Image.Image]:
    """An image of which the header is read; all errors, also from using it, are DecodeErrors."""
    if not data:
        raise DecodeError("the file is empty")
    formats = (*FORMATS, HEIF) if _open_heif() else FORMATS
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > decoding.max_pixels:
                area = f"{image.width} × {image.height}"
                raise DecodeError(f"{area} pixels exceed the limit")
            yield image
    except DecodeError:
        raise
    except Exception as error:
        # On hostile or damaged bytes Pillow's decoders raise almost anything: OSError, ValueError,
        # SyntaxError, EOFError, struct.error, NotImplementedError, DecompressionBombError …
        reason = " ".join(str(error).split()) or "cannot be decoded"
        if "cannot identify image file" in reason:
            reason = "not an image in a known format"
        raise DecodeError(reason[:280], type(error).__name__) from error


def _to_rgb(image: Image.Image, decoding: Decoding) -> Image.Image:
    if decoding.exif_orientation:
        image = ImageOps.exif_transpose(image)
    if decoding.alpha_background and image.has_transparency_data:
        ground = Image.new("RGBA", image.size, decoding.alpha_background)
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")  # avoids a copy


def _has_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def _open_heif() -> bool:
    """Register HEIC with Pillow if the codec is installed."""
    if HEIF in Image.OPEN:
        return True
    if not _has_heif():
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return HEIF in Image.OPEN
