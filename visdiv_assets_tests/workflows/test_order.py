"""Whether images next to each other by name are alike, as the store has them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from visdiv_assets.spectral.order import adjacent, measure_order
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.workflows.order import order_of, told
from visdiv_assets_tests.embedding.fakes import write_image
from visdiv_assets_tests.workflows.conftest import blend


@pytest.fixture
def clips(project):
    """Eight clips of six frames; names in their order."""
    for clip in range(8):
        for frame in range(6):
            project.add("clips", f"{clip}/{frame}.png", blend(0.1 * clip + 0.004 * frame))
    return project


def rows_of(evaluation, store):
    index = store.read_index(*evaluation.where)
    return DatasetRows(store, evaluation.model_id, index)


def test_clips_in_the_order_of_their_names_are_told_and_other_images_are_not(clips, birds):
    found = order_of(clips.evaluate("clips"), clips.store)
    assert found.ordered
    assert told(found).startswith(
        f"Images next to each other by name are much more alike ({found.neighbours:.2f}) than "
    )
    found = order_of(birds.evaluate("birds"), birds.store)
    assert not found.ordered
    assert told(found) == ""


def test_neighbours_are_those_of_the_index_in_whatever_segments_they_are(clips):
    clips.evaluate("clips")
    shutil.move(clips.root / "clips/0", clips.root / "clips/9")
    clips.add("clips", "5/2 and a half.png", blend(0.99))
    clips.path("clips", "4/3.png").write_bytes(b"no image")
    evaluation = clips.evaluate("clips")
    rows = rows_of(evaluation, clips.store)
    index = clips.store.read_index(*evaluation.where)
    assert len(index.segments()) > 1
    assert len(rows) == 48
    firsts = adjacent(48)
    assert order_of(evaluation, clips.store) == measure_order(rows[firsts], rows[firsts + 1])


def test_copies_next_to_each_other_count_once(project):
    for seed in range(30):
        write_image(project.path("set", f"{seed:02}.png"), seed)
    alone = order_of(project.evaluate("set"), project.store)
    for seed in range(30):
        shutil.copy(project.path("set", f"{seed:02}.png"), project.path("set", f"{seed:02}b.png"))
    assert order_of(project.evaluate("set"), project.store) == alone
    assert not alone.ordered


def test_at_most_2048_rows_are_read_however_many_there_are(project, monkeypatch):
    for seed in range(30):
        write_image(project.path("set", f"{seed:02}.png"), seed)
    evaluation = project.evaluate("set")
    monkeypatch.setattr("visdiv_assets.spectral.order.PAIRS", 12)
    monkeypatch.setattr("visdiv_assets.spectral.order.RUNS", 3)
    monkeypatch.setattr("visdiv_assets.spectral.order.RUN_ROWS", 8)
    rows = rows_of(evaluation, project.store)
    firsts = np.array([0, 2, 4, 6, 11, 13, 15, 17, 22, 24, 26, 28])
    expected = measure_order(rows[firsts], rows[firsts + 1])
    assert order_of(evaluation, project.store) == expected


def test_of_a_random_sample_and_of_few_images_nothing_is_told(clips, project):
    evaluation = clips.evaluate("clips")
    assert order_of(replace(evaluation, n_listed=1000), clips.store) is None
    for seed in range(19):
        write_image(project.path("few", f"{seed:02}.png"), seed)
    assert order_of(project.evaluate("few"), project.store) is None
    assert told(None) == ""
