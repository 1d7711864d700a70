"""What dominates a dataset and what would help it, with the real model where that is the point."""

import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visdiv_assets.embedding.augmentations import chosen
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.errors import VisdivError
from visdiv_assets.guidance.axes import describe
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.acquire import acquisitions_of, record_acquisitions
from visdiv_assets.workflows.augment import (
    measure_augmentations,
    record_augmentations,
    sample_images,
)
from visdiv_assets.workflows.axes import axes_of, axes_sheet, record_axes
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.conftest import PHOTOS
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image
from visdiv_assets_tests.planted import plant_shared_background


@pytest.fixture
def home(tmp_path):
    store, warehouse = Store(tmp_path / "store"), Warehouse(tmp_path / "store/visdiv.duckdb")

    def score(name, seeds=(), embedder=None):
        for seed in seeds:
            write_image(tmp_path / name / f"{seed:03}.png", seed)
        source = DirectorySource(tmp_path / name)
        embedder = embedder or FakeEmbedder(batch_size=64)
        evaluation, _ = evaluate(name, source, embedder, store, warehouse)
        return evaluation

    return SimpleNamespace(root=tmp_path, store=store, warehouse=warehouse, score=score)


def exported(home, table):
    return pq.read_table(home.root / f"store/exports/{table}.parquet").to_pylist()


# --- axes ---


@pytest.mark.slow
def test_a_background_that_half_of_the_images_share_is_found_shown_and_said(home):
    plant_shared_background(PHOTOS, home.root / "planted", most=120)
    evaluation = home.score("planted", embedder=SSCDEmbedder(ONNX_CHECKPOINT))
    found = axes_of(evaluation, home.store)
    first, second, *_ = found.axes.axes
    names = [[found.image_ids[int(row)] for row in end.rows] for end in first.ends]
    at = 0 if names[0][0].startswith("on_background/") else 1
    side, planted, other = "AB"[at], first.ends[at], first.ends[1 - at]
    assert all(name.startswith("on_background/") for name in names[at])
    assert all(name.startswith("as_they_are/") for name in names[1 - at])
    assert first.share > 5 * second.share
    assert 0.45 < planted.beyond < 0.55
    assert planted.likeness > 0.5 > 0.2 > other.likeness
    said = " ".join(describe(found.axes))
    assert f"look for what repeats in row 1{side}. 50 % of the images are on that side" in said
    assert f"on_background (50 % of the images) is at the end of row 1{side}" in said
    sheet = axes_sheet(found, DirectorySource(home.root / "planted"), Decoding())
    assert len(sheet) == 10
    shown = np.stack([each.pixels for each in sheet[at].thumbnails]).astype(float)
    others = np.stack([each.pixels for each in sheet[1 - at].thumbnails]).astype(float)
    assert np.median(shown.std(axis=0)) < np.median(others.std(axis=0)) / 3


def test_ends_are_named_by_their_first_image_and_recorded_and_exported(home):
    for name in ("b.png", "a.png"):
        write_image(home.root / "birds" / name, 7)  # one content, two names
    evaluation = home.score("birds", range(60))
    found = axes_of(evaluation, home.store, count=2, per_end=3)
    record_axes(found, home.warehouse)
    rows = home.warehouse.rows("bias_axes", "birds")
    assert [(row["axis"], row["side"], row["rank"]) for row in rows] == [
        (axis, side, rank) for axis in (1, 2) for side in "AB" for rank in (1, 2, 3)
    ]
    first = found.axes.axes[0].ends[0]
    assert rows[0]["image_id"] == found.image_ids[int(first.rows[0])]
    assert "b.png" not in {row["image_id"] for row in rows}
    assert rows[0]["share"] == found.axes.axes[0].share
    assert len(exported(home, "bias_axes")) == 12
    record_axes(axes_of(evaluation, home.store, count=1), home.warehouse)
    assert {row["axis"] for row in home.warehouse.rows("bias_axes", "birds")} == {1}


def test_an_image_that_is_gone_leaves_its_place_on_the_sheet(home):
    evaluation = home.score("birds", range(60))
    found = axes_of(evaluation, home.store, count=1, per_end=2)
    gone = found.image_ids[int(found.axes.axes[0].ends[1].rows[0])]
    (home.root / "birds" / gone).unlink()
    _, below = axes_sheet(found, DirectorySource(home.root / "birds"), Decoding())
    assert [each.pixels is None for each in below.thumbnails] == [True, False]


# --- augmentations ---


def measured(home, evaluation, names, size=200, embedder=None, **options):
    source = DirectorySource(home.root / evaluation.dataset)
    sample = sample_images(evaluation, home.store, source, Decoding(), size)
    embedder = embedder or FakeEmbedder(batch_size=64)
    return sample, list(measure_augmentations(sample, embedder, chosen(names), **options))


def test_the_sample_is_the_same_wherever_the_images_are_called_what(home):
    one = home.score("birds", range(120))
    shutil.copytree(home.root / "birds", home.root / "moved/deeper")
    other = home.score("moved")
    samples = [measured(home, each, ["flip"], 60) for each in (one, other)]
    assert samples[0][0].keys == samples[1][0].keys
    assert samples[0][1][0].effect == samples[1][1][0].effect
    assert len(samples[0][0].keys) == 60


@pytest.mark.slow
def test_effects_are_recorded_and_exported_and_progress_is_told(home):
    evaluation = home.score("birds", range(120))
    told = []
    _, found = measured(
        home, evaluation, ["flip", "jpeg", "mixup"], on_progress=lambda *each: told.append(each)
    )
    assert told[-1] == (5 * 120, 5 * 120)
    record_augmentations(found, evaluation, home.warehouse)
    rows = home.warehouse.rows("augmentation_effects", "birds")
    assert [row["augmentation"] for row in rows] == ["flip", "flip-vertical", "jpeg", "mixup"]
    for row, each in zip(rows, found, strict=True):
        assert row["change"] == each.effect.change
        assert row["change_low"] <= row["change"] <= row["change_high"]
        assert row["n_images"] == 120
    assert rows[2]["verdict"] == "hardly seen"
    assert exported(home, "augmentation_effects")[0]["dataset"] == "birds"


def test_too_few_images_for_mixing_are_no_error_but_a_verdict(home):
    evaluation = home.score("birds", range(60))
    _, [found] = measured(home, evaluation, ["mixup"])
    record_augmentations([found], evaluation, home.warehouse)
    [row] = home.warehouse.rows("augmentation_effects", "birds")
    assert (row["change"], row["verdict"]) == (None, "too few to tell")


def test_too_few_images_at_all_wrong_sizes_and_another_model_are_errors_in_one_sentence(home):
    evaluation = home.score("few", range(52))
    with pytest.raises(VisdivError, match="few has 52 different images that can be read"):
        measured(home, evaluation, ["flip"])
    evaluation = home.score("birds", range(60))
    for size in (0, 52, 2001):
        with pytest.raises(VisdivError, match="a sample needs 53 to 2,000 images"):
            measured(home, evaluation, ["flip"], size)
    with pytest.raises(VisdivError, match="birds was evaluated with fake, but its model is now"):
        measured(home, evaluation, ["flip"], embedder=FakeEmbedder("another", 64))


# --- acquisitions ---


def test_images_of_another_kind_add_and_too_few_different_ones_cannot_be_judged(home):
    (home.root / "narrow").mkdir()
    for seed in range(60):
        write_image(home.root / f"frames/{seed}.png", seed % 3)
        noise = np.full((8, 8, 3), 128, np.uint8)
        noise[:2] = np.random.default_rng(seed).integers(0, 256, (2, 8, 3))
        Image.fromarray(noise).save(home.root / f"narrow/{seed}.png")
    home.score("frames"), home.score("narrow"), home.score("birds", range(500, 620))
    evaluation, found = acquisitions_of("narrow", ["frames", "birds"], home.store, home.warehouse)
    birds, frames = found
    assert (birds.other, birds.n_available) == ("birds", 120)
    assert birds.gain > 0.5
    assert birds.sure
    assert 0 < birds.n_images <= 120
    assert birds.share <= 120 / 180 + 1e-9
    assert np.isnan(frames.gain)
    assert (frames.n_images, frames.sure) == (0, False)
    record_acquisitions(evaluation, found, home.warehouse)
    rows = home.warehouse.rows("acquisitions", "narrow")
    assert [(row["other"], row["gain"] is None) for row in rows] == [
        ("birds", False),
        ("frames", True),
    ]
    assert len(exported(home, "acquisitions")) == 2


def test_without_others_or_with_too_few_images_nothing_can_be_told(home):
    home.score("birds", range(60)), home.score("few", range(5))
    with pytest.raises(VisdivError, match="no other dataset to add to birds"):
        acquisitions_of("birds", [], home.store, home.warehouse)
    with pytest.raises(VisdivError, match="few has too few different images"):
        acquisitions_of("few", ["birds"], home.store, home.warehouse)
    home.score("cars", range(200, 260), FakeEmbedder("another", 64))
    with pytest.raises(VisdivError, match="cars and birds were embedded with different models"):
        acquisitions_of("birds", ["cars"], home.store, home.warehouse)
