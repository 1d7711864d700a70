"""A dataset's distinct rows read like a matrix, wherever its segments are."""

import itertools

import numpy as np

from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.segments import to_grid
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image, write_images


def embedded(folder, store, embedder):
    source = DirectorySource(folder)
    return embed_manifest("set", list_images(source), source, embedder, store)[0]


def test_rows_stand_in_the_order_of_image_ids_whatever_segment_they_are_in(tmp_path, place):
    store, embedder = place.store(), FakeEmbedder()
    folder = write_images(tmp_path / "images", 5)
    embedded(folder, store, embedder)
    write_image(folder / "001a.png", 77)  # its row is in a segment of its own
    write_image(folder / "004a.png", 2)  # the content of 002.png
    index = embedded(folder, store, embedder)
    rows = DatasetRows(store, "fake", index)
    assert rows.shape == (6, 48)
    ids = index.table["image_id"].to_pylist()
    assert [ids[at] for at in rows.first] == [
        "000.png", "001.png", "001a.png", "002.png", "003.png", "004.png",
    ]  # fmt: skip
    everything = rows[:]
    assert everything.dtype == np.float16
    assert np.array_equal(rows[[4, 0, 2]], everything[[4, 0, 2]])
    assert np.array_equal(rows[1:3], everything[1:3])
    known = store.key_index("fake")
    segment, row = known.find(rows.keys)
    for at in range(len(rows)):
        kept = store.rows("fake", known.segments[segment[at]])[row[at]]
        assert np.array_equal(everything[at], kept)
        assert np.array_equal(everything[at], to_grid(kept.astype(np.float32)))


def test_each_row_knows_all_its_images(tmp_path, place):
    store, embedder = place.store(), FakeEmbedder()
    folder = write_images(tmp_path / "images", 3)
    for copy in ("a.png", "b.png"):
        write_image(folder / copy, 1)
    (folder / "broken.png").write_bytes(b"no picture")
    index = embedded(folder, store, embedder)
    rows = DatasetRows(store, "fake", index)
    positions, offsets = rows.images_by_row()
    ids = index.table["image_id"].to_pylist()
    images = [[ids[at] for at in positions[a:b]] for a, b in itertools.pairwise(offsets)]
    assert images == [["000.png"], ["001.png", "a.png", "b.png"], ["002.png"]]


def test_of_nothing_there_are_no_rows(tmp_path, place):
    store, embedder = place.store(), FakeEmbedder()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/broken.png").write_bytes(b"no picture")
    index = embedded(tmp_path / "images", store, embedder)
    assert len(DatasetRows(store, "fake", index)) == 0
