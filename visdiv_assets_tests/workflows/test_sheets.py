"""What was found can be looked at."""

import io

import numpy as np
import pytest
from PIL import Image

from visdiv_assets.workflows.leakage import find_overlap
from visdiv_assets.workflows.sheets import duplicates_sheet, neighbours_sheet, overlaps_sheet
from visdiv_assets.workflows.similar import query_in, similar_images
from visdiv_assets_tests.workflows.conftest import DECODING


def drawn(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_sheet_has_a_row_for_each_cluster_and_frames_what_is_kept(birds):
    sheet = drawn(duplicates_sheet(birds.find("birds"), birds.source("birds"), DECODING))
    framed = (sheet == (0x2B, 0x8A, 0x3E)).all(axis=2)
    assert framed.any(axis=1).sum() == pytest.approx(2 * 116, abs=4)
    assert not (sheet == 0xE9).all(axis=2).any()  # nothing is "gone"


def test_a_sheet_shows_images_beside_those_of_the_other_dataset(leaky):
    birds, bench = leaky.evaluate("birds"), leaky.evaluate("bench")
    found = find_overlap(birds, bench, leaky.store, threshold=0.95)
    places = {name: (leaky.source(name), DECODING) for name in ("birds", "bench")}
    sheet = drawn(overlaps_sheet([found], places))
    assert sheet.shape[1] > 8 * 112


def test_a_sheet_shows_the_query_first(birds):
    evaluation = birds.evaluate("birds")
    found = similar_images(evaluation, birds.store, query_in(evaluation, birds.store, "000.png"), 9)
    red = np.zeros((320, 320, 3), np.uint8) + np.array([250, 0, 0], np.uint8)
    sheet = drawn(neighbours_sheet(red, "query", found, birds.source("birds"), DECODING))
    assert (sheet[:150, :120] == (250, 0, 0)).all(axis=2).sum() > 100 * 100
