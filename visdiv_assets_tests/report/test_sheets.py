"""Contact sheets hold their pictures, whatever the captions are."""

import io

import numpy as np
from PIL import Image

from visdiv_assets.report.sheets import SheetRow, Thumbnail, contact_sheet_png


def drawn(rows):
    return np.asarray(Image.open(io.BytesIO(contact_sheet_png(rows))))


def plain(colour):
    return np.full((320, 320, 3), colour, np.uint8)


def test_every_picture_is_on_the_sheet_and_marked_ones_have_a_frame():
    reds = [Thumbnail(plain((250, 0, 0)), "red", marked) for marked in (False, True)]
    sheet = drawn([SheetRow("reds", reds), SheetRow("blue", [Thumbnail(plain((0, 0, 250)), "b")])])
    assert (sheet == (250, 0, 0)).all(axis=2).sum() > 1.8 * 112 * 112
    assert (sheet == (0, 0, 250)).all(axis=2).sum() == 112 * 112
    assert (sheet == (0x2B, 0x8A, 0x3E)).all(axis=2).sum() > 1000


def test_a_picture_that_is_gone_leaves_its_place():
    assert (drawn([SheetRow("", [Thumbnail(None, "gone.jpg")])]) == 0xE9).any()


def test_captions_of_any_length_and_script_are_drawn():
    names = ["x" * 5000, "名前\n\x1b[31m", "", "‮abc", "\udce9.jpg"]
    assert drawn([SheetRow(name, [Thumbnail(plain(9), name)]) for name in names]).ndim == 3


def test_no_rows_give_an_empty_sheet():
    assert drawn([]).ndim == 3
