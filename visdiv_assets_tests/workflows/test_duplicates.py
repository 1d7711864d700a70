"""What a dataset holds more than once is found, counted, and divided as promised."""

from dataclasses import astuple

import numpy as np
import pytest

from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import TEXT
from visdiv_assets.spectral.corrected import corrected
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store.index import sample_keys
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.workflows.duplicates import find_duplicates, record_duplicates, sample_of_kept
from visdiv_assets.workflows.sheets import duplicates_sheet
from visdiv_assets_tests.conftest import PHOTOS
from visdiv_assets_tests.embedding.fakes import WatchedSource, write_image
from visdiv_assets_tests.workflows.conftest import DECODING, double, noise


def test_near_duplicates_and_exact_copies_are_told_apart_and_the_largest_is_kept(birds):
    found = birds.find("birds")
    assert (found.n_images, found.n_distinct, found.n_exact, found.n_near) == (74, 71, 3, 1)
    assert found.near == {0.75: 1, 0.90: 1, 0.95: 1}
    assert found.rate() == pytest.approx(4 / 74)
    assert (found.method, found.recall) == ("exact", 1.0)
    told = [(each.number, each.n_contents, each.n_images) for each in found.clusters]
    assert told == [(1, 2, 3), (2, 1, 3)]
    rows = found.images.select(["cluster", "image_id", "kind", "keep", "width", "height"])
    assert [tuple(row.values()) for row in rows.to_pylist()] == [
        (1, "large of 000.png", None, True, 16, 16),
        (1, "000.png", "near", False, 8, 8),
        (1, "copy of 000.png", "exact", False, 8, 8),
        (2, "003.png", None, True, None, None),
        (2, "another of 003.png", "exact", False, None, None),
        (2, "copy of 003.png", "exact", False, None, None),
    ]
    for row in found.images.to_pylist():
        assert row["bytes"] == birds.path("birds", row["image_id"]).stat().st_size
        assert row["similarity_to_kept"] == pytest.approx(1, abs=0.01)
        assert len(row["content_key"]) == 32
    assert [each["image_id"] for each in found.images.to_pylist() if each["medoid"]] == [
        "large of 000.png",
        "003.png",
    ]
    drop = found.to_drop().select(["image_id", "kept"]).to_pylist()
    assert {each["image_id"]: each["kept"] for each in drop} == {
        "000.png": "large of 000.png",
        "copy of 000.png": "large of 000.png",
        "another of 003.png": "003.png",
        "copy of 003.png": "003.png",
    }


def test_names_of_listed_images_may_be_longer_together_than_2_gib(birds):
    found = birds.find("birds")
    assert found.images["image_id"].type == TEXT
    assert found.to_drop()["kept"].type == TEXT


def test_of_equally_large_pictures_the_least_compressed_is_kept(project):
    large = double(double(double(noise(0))))
    project.add("set", "a.png", large, compress_level=9)
    project.add("set", "b.png", large, compress_level=0)
    project.add("set", "c.png", noise(1))
    [cluster] = project.find("set").clusters
    assert project.find("set").images_of(cluster)["image_id"].to_pylist() == ["b.png", "a.png"]


def test_the_score_without_duplicates_is_that_of_the_images_that_are_kept(birds):
    found = birds.find("birds")
    for image_id in found.to_drop()["image_id"].to_pylist():
        birds.path("birds", image_id).unlink()
    alone = birds.evaluate("birds")
    assert alone.n_images == 70
    assert found.after.plain == alone.diversity_score  # to the last bit
    fair = found.after.corrected
    assert (fair.score, fair.low, fair.high) == (
        alone.corrected_score,
        alone.corrected_low,
        alone.corrected_high,
    )
    assert found.before.plain == found.evaluation.diversity_score
    assert found.after.plain > found.before.plain


@pytest.mark.parametrize("kept_share", [0.0, 0.3, 1.0])
def test_a_sample_of_what_is_kept_is_that_of_the_kept_rows_alone(birds, kept_share):
    evaluation = birds.evaluate("birds")
    where = ("birds", evaluation.model_id, evaluation.manifest_fingerprint)
    rows = DatasetRows(birds.store, "fake", birds.store.read_index(*where))
    counts = np.diff(rows.images_by_row()[1])
    kept = np.random.default_rng(0).random(len(rows)) < kept_share
    left = sample_of_kept(birds.store.read_sample(*where), rows, counts, kept)
    if not kept_share:
        assert (left.moments.n, len(left.rows)) == (0, 0)
        assert not left.moments.outer.any()
        return
    alone = Sample.of(rows[np.flatnonzero(kept)], keys=sample_keys(rows.keys[kept]))
    assert left.moments.n == alone.moments.n
    assert np.array_equal(left.moments.outer, alone.moments.outer)
    assert np.array_equal(left.moments.total, alone.moments.total)
    np.testing.assert_equal(astuple(corrected(left)), astuple(corrected(alone)))  # NaN is NaN
    assert diversity(left.moments).score == diversity(alone.moments).score


def test_undivided_a_chain_shows_in_the_smallest_similarity_of_its_cluster(film):
    found = film.find("film", threshold=0.9, split=False)
    [cluster] = found.clusters
    assert cluster.n_contents == 21
    assert cluster.smallest < 0.5
    assert found.images_of(cluster)["similarity_to_kept"].to_pylist()[-1] < 0.9


@pytest.mark.parametrize("threshold", [0.75, 0.9, 0.95, 0.99])
def test_every_image_is_as_similar_as_asked_to_the_one_kept_for_it(film, threshold):
    found = film.find("film", threshold=threshold)
    assert len(found.clusters) > 1
    assert min(found.images["similarity_to_kept"].to_pylist()) >= np.float32(threshold)
    kept = found.images.filter(found.images["keep"])["image_id"].to_pylist()
    assert len(kept) == len(set(kept)) == len(found.clusters)
    assert found.n_near == len(found.images) - len(kept)
    by_level = [found.near[level] for level in sorted(found.near)]
    assert by_level == sorted(by_level, reverse=True)


def test_only_images_of_clusters_are_read(birds):
    evaluation = birds.evaluate("birds")
    source = WatchedSource(birds.root / "birds")
    birds.find("birds", evaluation=evaluation, source=source)
    assert sorted(source.read_ids) == ["000.png", "large of 000.png"]


def test_images_that_are_gone_are_listed_without_a_size(birds):
    evaluation = birds.evaluate("birds")
    birds.path("birds", "large of 000.png").unlink()
    found = birds.find("birds", evaluation=evaluation)
    rows = {row["image_id"]: row for row in found.images.to_pylist()}
    assert rows["000.png"]["keep"]
    assert rows["large of 000.png"]["width"] is None
    assert duplicates_sheet(found, birds.source("birds"), DECODING).startswith(b"\x89PNG")


def test_progress_is_told_step_by_step(birds):
    told = []
    birds.find("birds", on_progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(what for what, _, _ in told)) == [
        "comparing",
        "looking at sizes",
        "dividing clusters",
        "measuring clusters",
    ]
    assert all(done <= total for _, done, total in told)


def test_of_one_image_again_and_again_one_is_kept_and_there_is_no_score(project):
    for at in range(5):
        write_image(project.path("set", f"{at}.png"), 1)
    found = project.find("set")
    assert (found.n_images, found.n_distinct, found.n_exact, found.n_near) == (5, 1, 4, 0)
    assert found.after == (None, None)
    record_duplicates(found, project.warehouse)
    [row] = project.warehouse.rows("redundancy", "set")
    assert (row["rate"], row["score_without"], row["smallest_similarity"]) == (0.8, None, None)


def test_the_demo_photographs_are_all_different(demo):
    found = find_duplicates(
        demo.evaluation, Store(demo.root), DirectorySource(PHOTOS), DECODING, threshold=0.75
    )
    assert found.rate() == 0
    assert found.clusters == []
    assert found.before.plain == found.after.plain == demo.evaluation.diversity_score
