"""Contact sheets: rows of thumbnails with captions, as PNG bytes.

Here: drawing. Not here: choosing and reading the pictures (`pictures.py`).
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from visdiv_assets.embedding.preprocess import Pixels

MARGIN = 8
TITLE_HEIGHT = 26
CAPTION_HEIGHT = 18


class Thumbnail(NamedTuple):
    """A picture on a sheet; `pixels` is (H, W, 3) uint8, or None if it can no longer be read."""

    pixels: Pixels | None
    caption: str
    marked: bool = False


class SheetRow(NamedTuple):
    """A row of pictures below a title."""

    title: str
    thumbnails: Sequence[Thumbnail]


def contact_sheet_png(rows: Sequence[SheetRow], side: int = 112) -> bytes:
    """Draw rows of pictures, each below its title; a marked picture gets a green frame.

    Pictures appear as the model sees them, resized to a square.

    Args:
        rows: at least one; long titles and captions are shortened.
        side: width and height of a picture, in pixels.

    Returns:
        a PNG as wide as its longest row.
    """
    columns = max((len(row.thumbnails) for row in rows), default=1) or 1
    width = max(columns * (side + MARGIN) + MARGIN, 480)
    step = TITLE_HEIGHT + side + CAPTION_HEIGHT + MARGIN
    sheet = Image.new("RGB", (width, max(len(rows), 1) * step + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    title_font, caption_font = ImageFont.load_default(14), ImageFont.load_default(10)
    for line, row in enumerate(rows):
        top = line * step + MARGIN
        title = _fitted(row.title, width - 2 * MARGIN, title_font)
        draw.text((MARGIN, top), title, "#212529", font=title_font)
        top += TITLE_HEIGHT
        for column, each in enumerate(row.thumbnails):
            left = MARGIN + column * (side + MARGIN)
            if each.pixels is None:
                draw.rectangle((left, top, left + side - 1, top + side - 1), "#e9ecef")
                draw.text((left + 8, top + side // 2), "gone", "#868e96", font=caption_font)
            else:
                small = Image.fromarray(each.pixels).resize((side, side), Image.Resampling.BOX)
                sheet.paste(small, (left, top))
            if each.marked:
                box = (left - 2, top - 2, left + side + 1, top + side + 1)
                draw.rectangle(box, outline="#2b8a3e", width=3)
            caption = _fitted(each.caption, side, caption_font)
            draw.text((left, top + side + 2), caption, "#495057", font=caption_font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _fitted(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, shortened in the middle if too long, with undrawable characters replaced."""
    text = "".join(each if each.isprintable() else "?" for each in text)[:400]
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(_cut(text, kept)) > width:
        kept -= 1
    return _cut(text, kept)


def _cut(text: str, kept: int) -> str:
    """The start and a longer part of the end, where names usually differ."""
    head = kept // 3
    return f"{text[:head]}…{text[len(text) - (kept - head) :]}"
