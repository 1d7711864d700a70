"""Encoded image → the square that SSCD sees, as a Pillow image.

Here: decoding, colour conversion and resizing, by default exactly as FineVision does it where that
shows the picture; which failures are the image's own.
Not here: decoder processes (`decoders.py`) or arrays (`preprocess.py`, `depth.py`). NumPy would
make a decoder process start four times more slowly.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import PIL
from PIL import Image, UnidentifiedImageError

from visdiv_assets.embedding.metadata import without_metadata

IMAGE_SIDE = 320

# The steps below, as part of the model id: embeddings from different steps never mix. `-depth` came
# when pictures of more than 8 bits and pictures in the alpha channel got to be seen; all others
# have the same pixels with and without it.
OLDER_PREPROCESSING = f"rgb-squash{IMAGE_SIDE}-bilinear"
PREPROCESSING = f"{OLDER_PREPROCESSING}-depth"

# A picture is of one colour if no channel differs by more than this.
FLAT = 2

ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Formats that hold pixels. Of the others that Pillow opens, EPS runs Ghostscript, and some are
# stubs. Pillow loads all its codecs for a format other than the first two, so a decoder process
# that sees only these starts in half the time.
FIRST_FORMATS = ("JPEG", "PNG")
# fmt: off
FORMATS = (
    *FIRST_FORMATS, "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG2000", "PCX", "PPM", "QOI",
    "SGI", "TGA", "TIFF", "WEBP",
)
# fmt: on
HEIF = "HEIF"

# What begins the files of codecs that may be missing (ISO/IEC 23008-12, annex B; 23000-22).
# fmt: off
HEIC_BRANDS = frozenset({
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1",
})
# fmt: on
SIGNATURES = {
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "JPEG2000": re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    "QOI": re.compile(rb"qoif"),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
}

# Libraries behind Pillow, by their names in `PIL.features`.
LIBRARIES = ("jpg", "libjpeg_turbo", "jpg_2000", "zlib", "zlib_ng", "libtiff", "webp", "avif")

# Classes of failures that need not be the image's fault: a busy machine, little memory, a codec
# that is missing or broken.
CODEC_MISSING, CODEC_BROKEN = "CodecMissing", "CodecBroken"
# fmt: off
PASSING = frozenset({
    "TimeoutError", "ProcessError", CODEC_MISSING, CODEC_BROKEN, "ImportError",
    "ModuleNotFoundError", "KeyError", "MemoryError",
})
# fmt: on
SURROUNDINGS = re.compile(
    "not available|not installed|shared object|shared library|symbol|dlopen|cannot allocate"
    "|out of memory|too many open files|no space left",
    re.IGNORECASE,
)

# Twice the size at which Pillow warns of a decompression bomb; 537 MB as RGB.
MAX_PIXELS = 178_956_970
MAX_SECONDS = 30.0

# Bytes of texts and profiles in a PNG. Beyond it, they are skipped.
MAX_TEXT = 2**28

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
            'rgb-squash320-bilinear-depth-upright-onffffff'
        """
        upright = "-upright" if self.exif_orientation else ""
        ground = self.alpha_background
        nvjpeg = "-nvjpeg" if self.jpeg_on_gpu else ""
        return PREPROCESSING + upright + (f"-on{ground[1:].lower()}" if ground else "") + nvjpeg

    @property
    def older_name(self) -> str:
        """`name` up to version 0.2.0; `Square.changed` tells which images have other pixels now.

        Example:
            >>> Decoding(jpeg_on_gpu=True).older_name
            'rgb-squash320-bilinear-nvjpeg'
        """
        return OLDER_PREPROCESSING + self.name.removeprefix(PREPROCESSING)

    @cached_property
    def judge(self) -> str:
        """Everything that decides whether an image can be decoded: codecs, limits, steps."""
        from PIL import features  # slow, and of no use to a decoder process

        libraries = "+".join(f"{name}-{features.version(name)}" for name in LIBRARIES)
        codecs = f"pillow-{PIL.__version__}+{libraries}+heif-{_heif_version()}"
        return f"{codecs}.{self.max_pixels}.{self.name}"


_Found = TypeVar("_Found")


class Square(NamedTuple):
    """A decoded image.

    Attributes:
        image: RGB, 320 × 320.
        size: encoded width and height.
        flat: no channel differs by more than 2 of 255, so nothing is to be seen.
        changed: the steps of `Decoding.older_name` may give other pixels.
    """

    image: Image.Image
    size: tuple[int, int]
    flat: bool
    changed: bool


def is_passing(exception: str, reason: str) -> bool:
    """Whether an image may be decoded another time, although it failed.

    Args:
        exception: class of the exception, as in `DecodeError`.
        reason: what it said.

    Example:
        >>> is_passing("MemoryError", ""), is_passing("OSError", "image file is truncated")
        (True, False)
    """
    return exception in PASSING or SURROUNDINGS.search(reason) is not None


def raise_limits(decoding: Decoding) -> None:
    """Lift Pillow's own limits in this process, which must have limits on memory and time."""
    from PIL import PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT
    # `decode_square` has the limit for pictures; what is packed in them may not be much larger.
    Image.MAX_IMAGE_PIXELS = max(MAX_PIXELS, decoding.max_pixels)


def decode_square(data: bytes, decoding: Decoding) -> Square:
    """As `decode_image`, but an RGB Pillow image of 320 × 320, and what else is known of it."""
    return _opened(data, decoding, lambda image: _square(image, decoding))


def encoded_size(data: bytes, decoding: Decoding) -> tuple[int, int]:
    """The width and height that `decode_square` gives, from the header; no pixel is decoded.

    Raises:
        DecodeError: the bytes are not an image, or it has too many pixels.
    """
    return _opened(data, decoding, lambda image: image.size)


def _opened(data: bytes, decoding: Decoding, use: Callable[[Image.Image], _Found]) -> _Found:
    """What `use` makes of an opened image; all errors are DecodeErrors."""
    if not data:
        raise DecodeError("the file is empty")

    def attempt(encoded: bytes) -> _Found:
        with _open(encoded) as image:
            if image.width * image.height > decoding.max_pixels:
                raise DecodeError(f"{image.width} × {image.height} pixels exceed the limit")
            return use(image)

    try:
        return attempt(data)
    except Exception as error:
        # What is not needed for the pixels may be to blame.
        bare = without_metadata(data)
        if isinstance(error, DecodeError) or bare == data:
            raise _told(error) from error
    try:
        return attempt(bare)
    except Exception as error:
        raise _told(error) from error


def _told(error: Exception) -> DecodeError:
    if isinstance(error, DecodeError):
        return error
    # On hostile or damaged bytes Pillow's decoders raise almost anything: OSError, ValueError,
    # SyntaxError, EOFError, struct.error, NotImplementedError, DecompressionBombError …
    reason = _reason(error)
    if "cannot identify image file" in reason:
        reason = "not an image in a known format"
    if without := re.fullmatch(r"decoder (\S+) not available", reason):
        return _no_codec(without[1])
    return DecodeError(reason[:280], type(error).__name__)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or "cannot be decoded"


def _no_codec(name: str) -> DecodeError:
    return DecodeError(
        f"Pillow has no codec {name} here; run `pip install --force-reinstall pillow`",
        CODEC_MISSING,
    )


def _square(opened: Image.Image, decoding: Decoding) -> Square:
    size = opened.size
    opened.load()
    deep = opened.mode.startswith(("I", "F"))
    image = _to_grey(opened) if deep else opened
    if decoding.exif_orientation and (turn := _turn(opened)) is not None:
        image = image.transpose(turn)
    ground = decoding.alpha_background
    square = _resized(_on(image, ground) if ground else image)
    hidden = is_flat(square) and _alpha_varies(image)
    if hidden:
        is_light = square.convert("L").getpixel((0, 0)) >= 128  # type: ignore[operator]
        square = _resized(_on(image, "black" if is_light else "white"))
    return Square(square, size, is_flat(square), deep or hidden)


def is_flat(image: Image.Image) -> bool:
    """Whether an RGB picture is of one colour."""
    return all(high - low <= FLAT for low, high in image.getextrema())  # type: ignore[misc]


def _to_grey(image: Image.Image) -> Image.Image:
    from visdiv_assets.embedding.depth import to_grey  # NumPy

    return to_grey(image, FLAT)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn a picture upright; pictures with damaged EXIF data stay as they are stored."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001  damaged data raise almost anything
        return None


def _on(image: Image.Image, ground: str) -> Image.Image:
    """What is transparent shows the background."""
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image.convert("RGBA"))


def _alpha_varies(image: Image.Image) -> bool:
    # A colour that stands for transparent does not, in a picture of one colour.
    if image.mode not in ALPHA_MODES and not (image.mode == "P" and image.has_transparency_data):
        return False
    low, high = image.convert("RGBA").getchannel("A").getextrema()
    return high - low > FLAT  # type: ignore[operator]


def _resized(image: Image.Image) -> Image.Image:
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # avoids a copy
    return rgb.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)


def _open(data: bytes) -> Image.Image:
    """Open an image with the first format that knows it."""
    file = io.BytesIO(data)
    try:
        return Image.open(file, formats=FIRST_FORMATS)
    except UnidentifiedImageError:
        Image.init()
    try:
        # A format is missing in an older Pillow, and where its codec cannot be loaded.
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
            _load_heif()
            return Image.open(file, formats=(HEIF,))
        for name, signature in SIGNATURES.items():
            if signature.match(data) and not _has(name):
                raise _no_codec(name) from None
        raise


def _has(name: str) -> bool:
    from PIL import features  # slow, and only for what cannot be opened

    codec = name.lower()
    return name in Image.OPEN and (codec not in features.modules or bool(features.check(codec)))


def _load_heif() -> None:
    """Register HEIC with Pillow."""
    if HEIF in Image.OPEN:
        return
    try:
        import pillow_heif

        pillow_heif.libheif_version()  # loads the library, if the import has not
        pillow_heif.register_heif_opener()
    except Exception as error:
        # An extension of another system or release raises almost anything.
        if isinstance(error, ModuleNotFoundError) and error.name == "pillow_heif":
            told = "HEIC needs a codec; run `pip install 'visdiv_assets[heic]'`"
            raise DecodeError(told, CODEC_MISSING) from error
        raise DecodeError(
            f"the HEIC codec cannot be loaded ({_reason(error)[:150]}); "
            "run `pip install --force-reinstall pillow-heif`",
            CODEC_BROKEN,
        ) from error


def _heif_version() -> str:
    try:
        import pillow_heif

        return f"{pillow_heif.__version__}-{pillow_heif.libheif_version()}"
    except ModuleNotFoundError:
        return "none"
    except Exception:  # noqa: BLE001  as in `_load_heif`
        return "broken"
