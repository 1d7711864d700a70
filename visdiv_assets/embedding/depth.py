"""Samples of more than 8 bits → 8 bits of grey.

Here: how bright a 16-bit, 32-bit or floating-point sample is. Not here: pictures of 8 bits, which
`decoding.py` leaves as they are. NumPy starts slowly, so a decoder process imports this module
only when it meets such a picture.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Samples = NDArray[np.integer] | NDArray[np.floating]
Range = tuple[float, float]  # the samples that are black and white

# Brightest samples in common use: fractions; 8, 12 and 16 bits; 32 bits with and without sign.
FRACTION = 1.0
USUAL = (2.0**8 - 1, 2.0**12 - 1, 2.0**16 - 1, 2.0**31 - 1, 2.0**32 - 1)

PIECE = 2**18  # samples converted at once, so that memory does not grow with them

# TIFF tags: TIFF 6.0 (1992), sections 4, 8 and 19
BITS, PHOTOMETRIC, MAX_SAMPLE, SAMPLE_FORMAT, S_MIN, S_MAX = 258, 262, 281, 339, 340, 341
WHITE_IS_ZERO = 0
UNSIGNED = 1


def to_grey(image: Image.Image, flat: int) -> Image.Image:
    """A picture of mode `I`, `I;16…` or `F` in 8 bits; transparency becomes alpha.

    The depth that the file declares is its range. Where a file declares none (32 bits, signed,
    floating-point), see `range_of`; if that leaves one colour, the picture reaches from its darkest
    to its brightest sample. NaN is black.

    Args:
        image: the picture, loaded.
        flat: a picture is of one colour if no sample differs by more than this.

    Returns:
        a picture of mode `L`, or `LA` if one sample value stands for transparent.
    """
    tags = getattr(image, "tag_v2", {})
    samples = np.asarray(image)
    if image.mode == "I" and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED:
        samples = samples.view(np.uint32)
    declared = _declared(image)
    invert = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    extent = (0.0, 1.0) if declared else _extent(samples)
    grey = _scaled(samples, declared or range_of(*extent), invert)
    if not declared and extent[1] > extent[0] and int(grey.max()) - int(grey.min()) <= flat:
        grey = _scaled(samples, extent, invert)
    scaled = Image.fromarray(grey)
    if isinstance(key := image.info.get("transparency"), int):
        scaled.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
    return scaled


def range_of(lowest: float, highest: float) -> Range:
    """The samples that are black and white in a picture which declares no depth.

    Fractions from 0 to 1 stay fractions. Samples up to the upper half of a usual depth are of that
    depth. All others reach from the darkest to the brightest sample of the picture.

    Example:
        >>> range_of(0.1, 0.4), range_of(3, 200), range_of(0, 40_000), range_of(-1000, 3000)
        ((0.0, 1.0), (0.0, 255.0), (0.0, 65535.0), (-1000, 3000))
    """
    if lowest >= 0 and highest <= FRACTION:
        return 0.0, FRACTION
    usual = (full for full in USUAL if lowest >= 0 and full / 2 < highest <= full)
    full = next(usual, None)
    return (lowest, highest) if full is None else (0.0, full)


def _declared(image: Image.Image) -> Range | None:
    """The range that the file declares; Pillow gives PGM and JPEG 2000 in 16 bits at any depth."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None if image.mode == "F" else (0.0, 2.0**16 - 1)
    low, high = (_number(tags.get(tag)) for tag in (S_MIN, S_MAX))
    if high is not None and high > (low or 0.0):
        return low or 0.0, high
    if not image.mode.startswith("I;16"):
        return None
    # The brightest sample of this picture rather than a depth, unless it is all ones.
    highest = _number(tags.get(MAX_SAMPLE)) or 0.0
    bits = tags.get(BITS, (16,))[0]
    is_depth = 255 <= highest < 2**bits and int(highest) & (int(highest) + 1) == 0
    return 0.0, highest if is_depth else 2.0**bits - 1


def _number(value: object) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(value, int | float):
        return None
    return float(value) if np.isfinite(value) else None


def _pieces(samples: Samples) -> list[slice]:
    rows = max(1, PIECE // max(1, samples.shape[1]))
    return [slice(at, at + rows) for at in range(0, samples.shape[0], rows)]


def _extent(samples: Samples) -> Range:
    """The lowest and highest finite sample; 0 and 0 if there is none."""
    low, high = np.inf, -np.inf
    for piece in _pieces(samples):
        finite = samples[piece][np.isfinite(samples[piece])]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _scaled(samples: Samples, limits: Range, invert: bool) -> NDArray[np.uint8]:
    if samples.itemsize == 2 and samples.size > 2**16:
        # A table is several times as fast.
        table = _scaled(np.arange(2**16, dtype=np.uint16)[None], limits, invert)[0]
        looked_up: NDArray[np.uint8] = table[samples]
        return looked_up
    black, white = limits
    grey = np.empty(samples.shape, dtype=np.uint8)
    for piece in _pieces(samples):
        fraction = np.clip(samples[piece].astype(np.float64), black, white) - black
        fraction /= (white - black) or 1.0
        if invert:
            fraction = 1.0 - fraction
        grey[piece] = np.rint(np.nan_to_num(fraction) * 255)
    return grey
