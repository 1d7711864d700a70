"""Encoded image → the square of pixels that SSCD sees, as an array.

Not here: the steps (`decoding.py`); normalisation, which is part of the runtime.
"""

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.embedding.decoding import IMAGE_SIDE, DecodeError, Decoding, decode_square

__all__ = ["IMAGE_SIDE", "DecodeError", "Decoding", "Pixels", "decode_image"]

Pixels = NDArray[np.uint8]


def decode_image(data: bytes, decoding: Decoding = Decoding()) -> Pixels:  # noqa: B008
    """Decode, convert to RGB, and resize to a square, bilinear with antialiasing.

    Grey of more than 8 bits is scaled by the depth that the file declares. The alpha channel is
    dropped, except where all there is to see is in it.

    Args:
        data: an encoded image in one of FORMATS, or HEIF if pillow-heif is installed. File names
            do not matter. Of an animation, the first frame is used.
        decoding: settings; `max_seconds` is not enforced here.

    Returns:
        Pixels of shape (320, 320, 3), uint8.

    Raises:
        DecodeError: the bytes are not an image, are damaged, or have too many pixels.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> encoded = io.BytesIO()
        >>> Image.new("L", (40, 30), 7).save(encoded, "PNG")
        >>> decode_image(encoded.getvalue()).shape
        (320, 320, 3)
    """
    return np.asarray(decode_square(data, decoding).image)
