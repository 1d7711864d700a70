"""Pictures that are kept for ever take few bytes, and can still be looked at."""

import io

import numpy as np
import pytest
from PIL import Image

from visdiv_assets.report.charts import spectrum_png
from visdiv_assets.report.compact import compact
from visdiv_assets.report.sheets import SheetRow, Thumbnail, contact_sheet_png
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import diversity
from visdiv_assets_tests.dagster_dev import ROOT

PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))
MOST = 12_000


def sheet(n_rows: int) -> bytes:
    """Demo photographs, eight in a row."""
    rows = []
    for row in range(n_rows):
        thumbnails = []
        for photo in PHOTOS[8 * row : 8 * row + 8]:
            with Image.open(photo) as image:
                pixels = np.asarray(image.convert("RGB").resize((320, 320)))
            thumbnails.append(Thumbnail(pixels, photo.name))
        rows.append(SheetRow(f"row {row}", thumbnails))
    return contact_sheet_png(rows)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_a_chart_keeps_its_size_and_looks_the_same_in_a_quarter_of_the_bytes():
    rows = np.random.default_rng(0).standard_normal((300, 512))
    png = spectrum_png(diversity(Moments.of(rows)))
    small, media_type = compact(png)
    assert media_type == "image/png"
    assert len(small) < min(MOST, len(png) / 3)
    before, after = opened(png), opened(small)
    assert after.size == before.size
    assert np.abs(np.asarray(before, int) - np.asarray(after, int)).mean() < 1


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_a_sheet_of_photographs_takes_few_bytes_and_shows_them(n_rows):
    png = sheet(n_rows)
    small, media_type = compact(png)
    assert media_type == "image/webp"
    assert len(small) <= MOST
    after = opened(small)
    before = opened(png).resize(after.size)
    assert after.width >= 400
    assert np.abs(np.asarray(before, int) - np.asarray(after, int)).mean() < 8


def test_a_large_sheet_stays_recognizable_rather_than_small():
    small, _ = compact(sheet(8))
    assert MOST < len(small) < 2 * MOST
    assert opened(small).width == 400
