"""The tracking frames of the demo: rendered once, always the same, whatever interrupts."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visdiv_assets.cli.demo import (
    BACKGROUNDS,
    FRAMES_PER_BACKGROUND,
    render_tracking_frames,
    run_demo,
)
from visdiv_assets.errors import VisdivError
from visdiv_assets.warehouse.state.database import StateFile
from visdiv_assets.warehouse.state.outbox import all_active_conditions
from visdiv_assets.warehouse.warehouse import Warehouse

PHOTOS = Path(__file__).parents[2] / "examples/demo/photos"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tracking")
    assert render_tracking_frames(PHOTOS, target) == 300
    return target


@pytest.fixture
def frames(rendered: Path, tmp_path: Path) -> Path:
    """Rendered frames to spoil."""
    return Path(shutil.copytree(rendered, tmp_path / "frames"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_there_are_a_hundred_frames_for_each_of_three_backgrounds(rendered):
    names = list(contents(rendered))
    assert len(names) == len(BACKGROUNDS) * FRAMES_PER_BACKGROUND == 300
    assert names[0] == "beach3/000.jpg"
    assert names[-1] == "mountain3/099.jpg"


def test_frames_that_are_there_are_left_alone(frames):
    (frames / "city5/007.jpg").write_bytes(b"mine")
    before = {path: path.stat().st_mtime_ns for path in frames.rglob("*.jpg")}
    assert render_tracking_frames(PHOTOS, frames) == 0
    assert {path: path.stat().st_mtime_ns for path in frames.rglob("*.jpg")} == before
    assert (frames / "city5/007.jpg").read_bytes() == b"mine"


def test_what_an_interruption_left_undone_is_rendered_as_it_would_have_been(frames, rendered):
    shutil.rmtree(frames / "mountain3")
    for frame in range(50, 100):
        (frames / f"city5/{frame:03}.jpg").unlink()
    (frames / "city5/050.part").write_bytes(b"half a fra")
    assert render_tracking_frames(PHOTOS, frames) == 150
    assert contents(frames) == contents(rendered)


def test_frames_of_one_background_differ_in_little_but_the_object(rendered):
    first, last = (
        np.asarray(Image.open(rendered / f"beach3/{frame}.jpg"), dtype=int)
        for frame in ("000", "050")
    )
    changed = np.abs(first - last).max(axis=2) > 32
    assert 0 < changed.mean() < 0.02


def test_outside_a_checkout_the_demo_says_what_it_misses(tmp_path):
    (tmp_path / "visdiv.yaml").write_text(
        "datasets: {demo_photos: {source: photos}, demo_tracking: {source: tracking}}"
    )
    with pytest.raises(VisdivError, match=r"the demo photographs are not in .*; run the demo in a"):
        next(run_demo(tmp_path / "visdiv.yaml"))


@pytest.mark.slow
def test_the_demo_scores_both_datasets_as_documented(tmp_path):
    root = Path(__file__).parents[2]
    shutil.copy(root / "dagster.yaml", tmp_path)
    (tmp_path / "visdiv.yaml").write_text(
        "store: store\n"
        "embedder: {weights: sscd_disc_mixup_int8}\n"
        "datasets:\n"
        f"  demo_photos: {{source: '{PHOTOS}'}}\n"
        "  demo_tracking: {source: tracking}\n"
    )
    assert list(run_demo(tmp_path / "visdiv.yaml")) == ["demo_photos", "demo_tracking"]
    photos, tracking = Warehouse(tmp_path / "store/visdiv.duckdb").latest_evaluations()
    assert (photos.n_images, tracking.n_images) == (213, 300)
    assert photos.effective_rank == pytest.approx(162.56, abs=0.01)
    assert photos.participation_ratio == pytest.approx(134.84, abs=0.01)
    assert photos.diversity_score == pytest.approx(0.2892, abs=0.002)
    assert tracking.diversity_score < 0.10
    assert photos.corrected_score == pytest.approx(0.79, abs=0.02)
    # The photographs are few but do not alarm; the frames do.
    conditions = all_active_conditions(StateFile(tmp_path / "store/state.sqlite"))
    assert {name: set(held) for name, held in conditions.items()} == {
        "demo_tracking": {"below_threshold"}
    }
