"""What a dataset repeats, what others have of it, and what an image is most like."""

import io
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.index import sample_keys
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.embedding.rows import DatasetRows
from visdiv_assets.embedding.store import Store
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.errors import VisdivError
from visdiv_assets.evaluation import evaluate
from visdiv_assets.pictures import Size
from visdiv_assets.redundancy import (
    as_text,
    benchmarks_of,
    comparable,
    device_for,
    duplicates_sheet,
    find_duplicates,
    find_overlap,
    known_sizes,
    neighbours_sheet,
    overlaps_sheet,
    query_from,
    query_in,
    record_duplicates,
    record_leakage,
    sample_of_kept,
    similar_images,
)
from visdiv_assets.settings import EmbedderSettings, Settings
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.spectral.corrected import corrected
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import diversity
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.conftest import PHOTOS
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, WatchedSource, write_image

DECODING = Decoding()


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


class Project:
    """A store with datasets that are folders of its own."""

    def __init__(self, root):
        self.root = root
        self.store = Store(root / "store")
        self.warehouse = Warehouse(root / "store" / "visdiv.duckdb")

    def path(self, name, image):
        path = self.root / name / image
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, name, image, picture, **how):
        picture.save(self.path(name, image), **how)

    def source(self, name):
        return DirectorySource(self.root / name)

    def evaluate(self, name, model="fake"):
        embedder = FakeEmbedder(model, batch_size=64)
        evaluation, _ = evaluate(name, self.source(name), embedder, self.store, self.warehouse)
        return evaluation

    def find(self, name, threshold=0.75, source=None, evaluation=None, **how):
        return find_duplicates(
            evaluation or self.evaluate(name),
            self.store,
            source or self.source(name),
            DECODING,
            threshold=threshold,
            **how,
        )


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def double(picture):
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


@pytest.fixture
def birds(project):
    """70 images; of 000 there are a larger one and a copy, of 003 two copies."""
    for seed in range(70):
        write_image(project.path("birds", f"{seed:03}.png"), seed)
    project.add("birds", "large of 000.png", double(noise(0)))
    for copy, of in (("copy of 000", 0), ("copy of 003", 3), ("another of 003", 3)):
        shutil.copy(project.path("birds", f"{of:03}.png"), project.path("birds", f"{copy}.png"))
    return project


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
    assert corrected(left) == corrected(alone)
    assert diversity(left.moments).score == diversity(alone.moments).score


def blend(share):
    return Image.blend(noise(1), noise(2), share)


@pytest.fixture
def film(project):
    for frame in range(21):
        project.add("film", f"{frame:02}.png", blend(frame / 20))
    return project


def test_a_chain_shows_in_the_smallest_similarity_of_its_cluster(film):
    found = film.find("film", threshold=0.9)
    [cluster] = found.clusters
    assert cluster.n_contents == 21
    assert cluster.smallest < 0.5
    assert found.images_of(cluster)["similarity_to_kept"].to_pylist()[-1] < 0.9


@pytest.mark.parametrize("threshold", [0.75, 0.9, 0.95, 0.99])
def test_divided_every_image_is_as_similar_as_asked_to_the_one_kept_for_it(film, threshold):
    found = film.find("film", threshold=threshold, split=True)
    assert len(found.clusters) > 1
    assert min(found.images["similarity_to_kept"].to_pylist()) >= np.float32(threshold)
    kept = found.images.filter(found.images["keep"])["image_id"].to_pylist()
    assert len(kept) == len(set(kept)) == len(found.clusters)
    assert found.n_near == len(found.images) - len(kept)
    by_level = [found.near[level] for level in sorted(found.near)]
    assert by_level == sorted(by_level, reverse=True)


def test_sizes_that_are_known_are_not_looked_at_again(birds):
    evaluation = birds.evaluate("birds")
    record_duplicates(birds.find("birds", evaluation=evaluation), birds.store, birds.warehouse)
    known = known_sizes("birds", birds.warehouse)
    small = birds.path("birds", "000.png").stat().st_size
    assert Size(8, 8, small) in known.values()
    assert len(known) == 2  # of the copies of 003 nothing was decided by size
    source = WatchedSource(birds.root / "birds")
    again = birds.find("birds", evaluation=evaluation, source=source, known=known)
    assert source.read_ids == []
    assert again.images.equals(birds.find("birds", evaluation=evaluation).images)


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
        "measuring clusters",
    ]
    assert all(done <= total for _, done, total in told)


def test_of_one_image_again_and_again_one_is_kept_and_there_is_no_score(project):
    for at in range(5):
        write_image(project.path("set", f"{at}.png"), 1)
    found = project.find("set")
    assert (found.n_images, found.n_distinct, found.n_exact, found.n_near) == (5, 1, 4, 0)
    assert found.after == (None, None)
    record_duplicates(found, project.store, project.warehouse)
    [row] = project.warehouse.rows("redundancy", "set")
    assert (row["rate"], row["score_without"], row["smallest_similarity"]) == (0.8, None, None)


def test_what_is_found_is_in_the_warehouse_and_its_exports(birds):
    found = birds.find("birds")
    record_duplicates(found, birds.store, birds.warehouse)
    [row] = birds.warehouse.rows("redundancy", "birds")
    assert (row["n_images"], row["n_near"], row["n_clusters"]) == (74, 1, 1)
    assert row["corrected_without"] == found.after.corrected.score
    assert [
        each["image_id"] for each in birds.warehouse.rows("duplicates", "birds")
    ] == found.images["image_id"].to_pylist()
    exported = pq.read_table(birds.root / "store/exports/duplicates.parquet")
    assert len(exported) == len(found.images)
    for copy in ("large of 000", "copy of 000", "copy of 003", "another of 003"):
        birds.path("birds", f"{copy}.png").unlink()
    record_duplicates(birds.find("birds"), birds.store, birds.warehouse)
    assert birds.warehouse.rows("duplicates", "birds") == []
    assert birds.warehouse.rows("redundancy", "birds")[0]["rate"] == 0


# --- across datasets ---


@pytest.fixture
def leaky(birds):
    """A benchmark that has one photograph's bytes, a larger one of another, and 5 of its own."""
    shutil.copy(birds.path("birds", "003.png"), birds.path("bench", "x.png"))
    birds.add("bench", "y.png", double(noise(7)))
    for seed in range(200, 205):
        write_image(birds.path("bench", f"{seed}.png"), seed)
    return birds


def test_images_that_another_dataset_has_are_found_with_their_counterpart(leaky):
    birds, bench = leaky.evaluate("birds"), leaky.evaluate("bench")
    found = find_overlap(birds, bench, leaky.store, threshold=0.95)
    rows = found.images.select(["image_id", "other_image_id", "exact"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("003.png", "x.png", True),
        ("007.png", "y.png", False),
        ("another of 003.png", "x.png", True),
        ("copy of 003.png", "x.png", True),
    ]
    assert found.counts == {0.90: 4, 0.95: 4}
    assert (found.n_exact, found.n_other) == (3, 2)
    assert found.rate == pytest.approx(4 / 74)
    assert found.other_rate == pytest.approx(2 / 7)
    back = find_overlap(bench, birds, leaky.store, threshold=0.95)
    assert (len(back.images), back.n_other) == (found.n_other, len(found.images))


def test_datasets_of_different_models_are_not_compared(leaky):
    birds, bench = leaky.evaluate("birds"), leaky.evaluate("bench", model="another")
    with pytest.raises(VisdivError, match="different models, which do not compare: fake, another"):
        find_overlap(birds, bench, leaky.store, threshold=0.95)


def test_what_cannot_be_compared_has_a_reason(leaky):
    birds = leaky.evaluate("birds")
    leaky.evaluate("bench", model="another")
    others, reasons = comparable(birds, ["birds", "bench", "never"], leaky.warehouse)
    assert others == []
    assert reasons == {
        "bench": "it was embedded with another model, another",
        "never": "it was never evaluated",
    }
    bench = leaky.evaluate("bench")
    assert comparable(birds, ["bench"], leaky.warehouse) == ([bench], {})


def test_benchmarks_are_those_of_the_role_and_leak_into_none():
    settings = Settings.model_validate(
        {"datasets": {"a": {"source": "a"}, "b": {"source": "b", "role": "benchmark"}}}
    )
    assert benchmarks_of(settings, "a") == ["b"]
    assert benchmarks_of(settings, "b") == []
    assert benchmarks_of(settings, "not-registered") == ["b"]


def test_leaks_are_in_the_warehouse_with_what_could_not_be_compared(leaky):
    birds, bench = leaky.evaluate("birds"), leaky.evaluate("bench")
    found = find_overlap(birds, bench, leaky.store, threshold=0.95)
    record_leakage("birds", [found], {"other": "why"}, leaky.store, leaky.warehouse)
    leaks = leaky.warehouse.rows("leaks", "birds")
    assert [each["benchmark_image_id"] for each in leaks] == ["x.png", "y.png", "x.png", "x.png"]
    compared, skipped = leaky.warehouse.rows("leakage", "birds")
    assert (compared["n_leaked"], compared["n_benchmark_seen"]) == (4, 2)
    assert (skipped["benchmark"], skipped["not_compared"]) == ("other", "why")
    record_leakage("birds", [], {}, leaky.store, leaky.warehouse)
    assert leaky.warehouse.rows("leaks", "birds") == leaky.warehouse.rows("leakage", "birds") == []


# --- similar images ---


def test_images_like_one_of_the_dataset_are_found_without_itself(birds):
    evaluation = birds.evaluate("birds")
    query = query_in(evaluation, birds.store, "000.png")
    found = similar_images(evaluation, birds.store, query, 3)
    assert [(each.image_id, each.exact) for each in found[:2]] == [
        ("copy of 000.png", True),
        ("large of 000.png", False),
    ]
    assert len(found) == 3
    everything = similar_images(evaluation, birds.store, query, 73)
    assert len({each.image_id for each in everything}) == 73
    similarities = [each.similarity for each in everything]
    assert similarities == sorted(similarities, reverse=True)


def test_images_like_one_from_outside_are_found(birds):
    evaluation = birds.evaluate("birds")
    picture = io.BytesIO()
    double(noise(5)).save(picture, "BMP")
    embedder = FakeEmbedder(batch_size=1)
    query = query_from(picture.getvalue(), evaluation, birds.store, lambda: embedder)
    [first] = similar_images(evaluation, birds.store, query, 1)
    assert (first.image_id, first.exact) == ("005.png", False)
    assert embedder.batches == [1]


def test_the_very_bytes_of_an_image_need_no_model(birds):
    evaluation = birds.evaluate("birds")
    data = birds.path("birds", "005.png").read_bytes()
    query = query_from(data, evaluation, birds.store, lambda: pytest.fail("a model was opened"))
    [first] = similar_images(evaluation, birds.store, query, 1)
    assert first == ("005.png", 1.0, True)


def test_an_embedder_of_another_model_is_refused(birds):
    evaluation = birds.evaluate("birds")
    with pytest.raises(VisdivError, match="embedded with fake, and the settings now say another"):
        query_from(b"other bytes", evaluation, birds.store, lambda: FakeEmbedder("another"))


def test_what_is_no_image_is_refused(birds):
    evaluation = birds.evaluate("birds")
    with pytest.raises(VisdivError, match="cannot be decoded: not an image in a known format"):
        query_from(b"no picture", evaluation, birds.store, FakeEmbedder)


def test_an_image_that_could_not_be_embedded_is_like_nothing(birds):
    birds.path("birds", "broken.png").write_bytes(b"no picture")
    evaluation = birds.evaluate("birds")
    with pytest.raises(VisdivError, match=r"broken\.png of birds could not be embedded"):
        query_in(evaluation, birds.store, "broken.png")
    assert query_in(evaluation, birds.store, "no such") is None


@pytest.mark.parametrize("k", [-1, 0, 74])
def test_as_many_similar_images_as_there_are_not_are_refused(birds, k):
    evaluation = birds.evaluate("birds")
    query = query_in(evaluation, birds.store, "000.png")
    with pytest.raises(VisdivError, match=f"between 1 and 73, the number of other .*; got {k}"):
        similar_images(evaluation, birds.store, query, k)


# --- pictures ---


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


# --- with the real model ---


def test_a_photograph_is_found_by_a_smaller_and_worse_copy_of_it(demo):
    picture = io.BytesIO()
    with Image.open(PHOTOS / "city3.jpg") as photograph:
        photograph.reduce(2).save(picture, "JPEG", quality=40)
    store = Store(demo.root)
    query = query_from(
        picture.getvalue(), demo.evaluation, store, lambda: SSCDEmbedder(ONNX_CHECKPOINT)
    )
    first, second = similar_images(demo.evaluation, store, query, 2)
    assert first.image_id == "city3.jpg"
    assert first.similarity > 0.75 > second.similarity


def test_the_demo_photographs_are_all_different(demo):
    found = find_duplicates(
        demo.evaluation, Store(demo.root), DirectorySource(PHOTOS), DECODING, threshold=0.75
    )
    assert found.rate() == 0
    assert found.clusters == []
    assert found.before.plain == found.after.plain == demo.evaluation.diversity_score


def test_a_device_is_as_the_settings_say_and_no_gpu_is_asked_for_a_few_rows():
    assert device_for(EmbedderSettings(device="cuda:1"), 10) == "cuda:1"
    assert device_for(EmbedderSettings(device=["cuda:0", "cuda:1"]), 10) == "cuda:0"
    assert device_for(EmbedderSettings(), 10) == "cpu"


def test_thresholds_are_written_with_two_digits_or_as_many_as_they_have():
    assert [as_text(each) for each in (0, 0.9, 0.75, 0.755, 1.0)] == [
        "0.00", "0.90", "0.75", "0.755", "1.00",
    ]  # fmt: skip
