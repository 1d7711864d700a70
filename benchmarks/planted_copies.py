"""Which copies of photographs are found as near-duplicates, by what was done to them.

    .venv/bin/python -m benchmarks.planted_copies

Makes a copy of each demo photograph for each kind of edit, embeds all of them with the int8 model,
and looks for pairs among the photographs and their copies of one kind. Prints a table and writes it
into docs/near-duplicates.md, between its markers. Takes a few minutes on two cores.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.preprocess import decode_image
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.similarity.pairs import find_near_duplicates
from visdiv_assets.store.segments import to_grid

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "demo" / "photos"
PAGE = ROOT / "docs" / "near-duplicates.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

THRESHOLDS = (0.75, 0.90, 0.95)
QUALITY = 92

Picture = Image.Image
Edit = Callable[[Picture, np.random.Generator], Picture]


def resized(factor: float) -> Edit:
    """Smaller by a factor in width and height."""
    return lambda picture, _: picture.resize(
        (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS
    )


def cropped(share: float) -> Edit:
    """A share of the area cut off, more or less of it on each side."""

    def crop(picture: Picture, rng: np.random.Generator) -> Picture:
        side = math.sqrt(1 - share)
        width, height = round(picture.width * side), round(picture.height * side)
        left = int(rng.integers(picture.width - width + 1))
        top = int(rng.integers(picture.height - height + 1))
        return picture.crop((left, top, left + width, top + height))

    return crop


def blurred(radius: float) -> Edit:
    """Gaussian blur of so many pixels."""
    return lambda picture, _: picture.filter(ImageFilter.GaussianBlur(radius))


def rotated(degrees: float) -> Edit:
    """Turned about its middle, the corners black; by a right angle without any."""
    if degrees % 90 == 0:
        return lambda picture, _: picture.rotate(degrees, expand=True)
    return lambda picture, _: picture.rotate(degrees, Image.Resampling.BICUBIC)


def brighter(factor: float) -> Edit:
    """All values times a factor."""
    return lambda picture, _: ImageEnhance.Brightness(picture).enhance(factor)


def contrast(factor: float) -> Edit:
    """All values nearer to their mean, or farther from it."""
    return lambda picture, _: ImageEnhance.Contrast(picture).enhance(factor)


def grey(picture: Picture, _: np.random.Generator) -> Picture:
    """Without colour."""
    return picture.convert("L")


def flipped(picture: Picture, _: np.random.Generator) -> Picture:
    """Left and right exchanged."""
    return ImageOps.mirror(picture)


def with_text(picture: Picture, rng: np.random.Generator) -> Picture:
    """Two lines of white text on it, a tenth of its height each."""
    copy = picture.copy()
    font = ImageFont.load_default(picture.height // 10)
    for line in ("Wish you were here", "visdiv.example 2026"):
        place = (picture.width * 0.05, float(rng.uniform(0.05, 0.85)) * picture.height)
        ImageDraw.Draw(copy).text(place, line, "white", font=font)
    return copy


def framed(picture: Picture, _: np.random.Generator) -> Picture:
    """With a white border of a tenth of its width."""
    return ImageOps.expand(picture, picture.width // 10, "white")


def untouched(picture: Picture, _: np.random.Generator) -> Picture:
    """Only encoded again."""
    return picture


# What is done, and the quality of the JPEG that is made of it.
EDITS: dict[str, tuple[Edit, int]] = {
    "resized × 0.5": (resized(0.5), QUALITY),
    "resized × 0.25": (resized(0.25), QUALITY),
    "JPEG, quality 30": (untouched, 30),
    "JPEG, quality 10": (untouched, 10),
    "10 % cropped": (cropped(0.1), QUALITY),
    "30 % cropped": (cropped(0.3), QUALITY),
    "50 % cropped": (cropped(0.5), QUALITY),
    "blurred, 1 pixel": (blurred(1), QUALITY),
    "blurred, 3 pixels": (blurred(3), QUALITY),
    "brightness × 1.5": (brighter(1.5), QUALITY),
    "contrast × 0.5": (contrast(0.5), QUALITY),
    "greyscale": (grey, QUALITY),
    "text on it": (with_text, QUALITY),
    "white border": (framed, QUALITY),
    "rotated by 5°": (rotated(5), QUALITY),
    "rotated by 90°": (rotated(90), QUALITY),
    "flipped horizontally": (flipped, QUALITY),
}


def copies(kind: str, photographs: list[Picture]) -> list[bytes]:
    """Encoded copies of the photographs; the same ones in every run."""
    edit, quality = EDITS[kind]
    encoded = []
    for number, photograph in enumerate(photographs):
        file = io.BytesIO()
        edit(photograph, np.random.default_rng(number)).save(file, "JPEG", quality=quality)
        encoded.append(file.getvalue())
    return encoded


def embedded(embedder: SSCDEmbedder, encoded: list[bytes]) -> NDArray[np.float16]:
    """Rows as the store keeps them."""
    batches = []
    for begin in range(0, len(encoded), embedder.batch_size):
        pixels = [decode_image(data) for data in encoded[begin : begin + embedder.batch_size]]
        batches.append(embedder.embed(np.stack(pixels)))
    return to_grid(np.concatenate(batches))


def line(kind: str, rows: NDArray[np.float16], photograph: NDArray[np.int64], n: int) -> str:
    """Recall and precision of one kind: a pair is right if both are of one photograph.

    Args:
        kind: what it is called.
        rows: the n photographs, then copies of them.
        photograph: which photograph each row is of.
        n: photographs; recall is over the pairs of a photograph and a copy of it.
    """
    pairs, similarities = find_near_duplicates(rows, min(THRESHOLDS))
    right = photograph[pairs[:, 0]] == photograph[pairs[:, 1]]
    planted = right & (pairs[:, 0] < n) & (pairs[:, 1] >= n)
    units = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    own = np.einsum("ij,ij->i", units[n:], units[photograph[n:]])
    cells = [kind, f"{np.median(own):.2f}", f"{np.quantile(own, 0.05):.2f}"]
    for threshold in THRESHOLDS:
        found = similarities >= np.float32(threshold)
        cells.append(f"{planted[found].sum() / (len(rows) - n):.1%}")
        cells.append(f"{right[found].mean():.1%}" if found.any() else "none found")
    text = f"| {' | '.join(cells)} |"
    print(text, flush=True)
    return text


def table() -> str:
    """The table, as markdown."""
    embedder = SSCDEmbedder(ONNX_CHECKPOINT)
    paths = sorted(PHOTOS.glob("*.jpg"))
    photographs = [Image.open(path).convert("RGB") for path in paths]
    originals = embedded(embedder, [path.read_bytes() for path in paths])
    n, numbers = len(paths), np.arange(len(paths))
    head = ["edit", "median similarity", "5 % are below"]
    for threshold in THRESHOLDS:
        head += [f"recall at {threshold:.2f}", "precision"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    print("\n".join(lines))
    all_rows = [originals]
    for kind in EDITS:
        all_rows.append(embedded(embedder, copies(kind, photographs)))
        pair = np.concatenate([originals, all_rows[-1]])
        lines.append(line(kind, pair, np.tile(numbers, 2), n))
    everything = np.concatenate(all_rows)
    lines.append(line("**all together**", everything, np.tile(numbers, len(all_rows)), n))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and put the table into the page."""
    measured = table()
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
