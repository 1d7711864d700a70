"""Pictures for pages that are kept for ever: the same to look at, in a fraction of the bytes.

Here: making a picture smaller. Not here: drawing it (`charts.py`, `sheets.py`).
"""

import io

from PIL import Image

# A chart has a few colours and their mixtures at edges; a photograph has many more.
CHART_COLOURS = 2_000
PALETTE = 32
# From good to just recognizable: the first that is small enough is taken.
SIZES = ((720, 50), (640, 40), (560, 35), (480, 30), (400, 25))


def compact(png: bytes, most: int = 12_000) -> tuple[bytes, str]:
    """A picture in few bytes: a chart as it is, with fewer colours; photographs smaller.

    Args:
        png: a PNG.
        most: how many bytes to aim at. A sheet of many photographs may take more.

    Returns:
        the picture, and its media type.
    """
    with Image.open(io.BytesIO(png)) as image:
        picture = image.convert("RGB")
    if picture.getcolors(CHART_COLOURS):
        buffer = io.BytesIO()
        picture.quantize(PALETTE, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "image/png"
    for width, quality in SIZES:
        buffer = io.BytesIO()
        smaller = picture.copy()
        smaller.thumbnail((width, picture.height), Image.Resampling.LANCZOS)
        smaller.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= most:
            break
    return buffer.getvalue(), "image/webp"
