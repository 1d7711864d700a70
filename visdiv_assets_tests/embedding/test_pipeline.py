"""What is embedded and what is not; a cheap model stands in for SSCD in all tests but the first."""

import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visdiv_assets.embedding import incremental, pipeline
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.embedding.pipeline import FADING_SECONDS, Waits, embed_stream
from visdiv_assets.embedding.preprocess import Decoding, decode_image
from visdiv_assets.sources import source as source_module
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.source import Read, read_concurrently
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store import segments
from visdiv_assets.store.contents import Contents
from visdiv_assets.store.index import KEY_BYTES, EmbeddingIndex, content_key
from visdiv_assets.store.segments import SegmentWriter, to_grid
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import (
    FakeEmbedder,
    UnloadedEmbedder,
    WatchedSource,
    write_image,
    write_images,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images", 20)


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 3)


def run(source, store, embedder=None, dataset="dataset", **options):
    """List and embed a source; the index, and how many images went through the model."""
    if isinstance(source, Path):
        source = WatchedSource(source)
    manifest = list_images(source)
    return embed_manifest(dataset, manifest, source, embedder or FakeEmbedder(), store, **options)


def stored_rows(store, model_id="fake"):
    """Every row of a model in the store, by content key."""
    rows = {}
    for name in store.segment_names(model_id):
        keys = pq.read_table(store.root / f"embeddings/{model_id}/{name}.parquet")["content_key"]
        rows |= zip(keys.to_pylist(), map(bytes, store.rows(model_id, name)), strict=True)
    return rows


def add_up(store, index, model_id="fake"):
    return Moments.sum(Moments.of(*rows) for rows in Contents.of(index).blocks(store, model_id))


def test_the_demo_photographs_score_as_an_independent_calculation_says(demo):
    evaluation = demo.evaluation
    assert (evaluation.n_images, evaluation.n_failed, evaluation.dimension) == (213, 0, 512)
    assert evaluation.effective_rank == pytest.approx(162.56, rel=0.005)
    assert evaluation.participation_ratio == pytest.approx(134.84, rel=0.005)
    assert evaluation.diversity_score == pytest.approx(0.2892, abs=0.002)


# --- what is not done again ---


def test_unchanged_images_are_not_opened(folder, store):
    run(folder, store)
    source = WatchedSource(folder)
    index, embedded = run(source, store, UnloadedEmbedder())
    assert (index.n_images, embedded, source.read_ids) == (20, 0, [])


def test_of_many_images_only_the_changed_one_is_opened_and_embedded(folder, store):
    run(folder, store)
    write_image(folder / "007.png", seed=1007)
    source = WatchedSource(folder)
    index, embedded = run(source, store)
    assert (index.n_images, embedded, source.read_ids) == (20, 1, ["007.png"])


def test_an_unchanged_dataset_reads_no_key_index(folder, store, monkeypatch):
    (folder / "broken.png").write_bytes(b"I am not an image")
    write_image(folder / "copy.png", seed=5)
    before, _ = run(folder, store)
    monkeypatch.setattr(Store, "key_index", None)
    index, embedded = run(folder, store, UnloadedEmbedder())
    assert (index.n_images, index.n_failed, embedded) == (21, 1, 0)
    assert index.table.equals(before.table)
    (folder / "003.png").unlink()
    (folder / "004.png").rename(folder / "renamed.png")
    assert run(folder, store, UnloadedEmbedder())[0].n_images == 20


def test_the_key_index_is_looked_up_where_the_dataset_does_not_know(folder, store, tmp_path):
    run(folder, store)
    some = tmp_path / "some"
    some.mkdir()
    for name in ("003.png", "007.png"):
        shutil.copy(folder / name, some)
    write_image(some / "own.png", seed=1000)
    index, embedded = run(some, store, dataset="another")
    assert (index.n_images, embedded) == (3, 1)
    assert [each.name for each in (store.root / "embeddings/fake/.keys").iterdir()]
    # What another dataset embeds later is known to it, too.
    write_image(folder / "new.png", seed=1000)
    assert run(folder, store, UnloadedEmbedder())[1] == 0


@pytest.mark.parametrize("what", ["cut", "zeroed", "deleted"])
def test_a_damaged_run_costs_no_embedding(folder, store, tmp_path, what):
    before, _ = run(folder, store)
    copy = shutil.copytree(folder, tmp_path / "copy")
    [path] = (store.root / "embeddings/fake/.keys").iterdir()
    size = path.stat().st_size
    if what == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: size // 2] if what == "cut" else bytes(size))
    index, embedded = run(copy, store, UnloadedEmbedder(), dataset="another")
    assert (index.n_images, embedded) == (20, 0)
    assert index.table["row"].equals(before.table["row"])


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_content_of_another_datasets_damaged_segment_is_embedded_again(
    folder, store, small_segments, tmp_path, suffix
):
    run(folder, store)
    path = store.root / "embeddings/fake" / f"{store.segment_names('fake')[2]}{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    copy = shutil.copytree(folder, tmp_path / "copy")
    index, embedded = run(copy, store, dataset="another")
    assert (index.n_images, embedded) in [(20, 3), (20, 2)]  # the last segment holds two


def test_a_place_that_the_segment_does_not_confirm_is_not_believed(folder, store):
    before, _ = run(folder, store)
    rows = np.roll(before.table["row"].to_numpy(), 1)
    at = before.table.schema.get_field_index("row")
    wrong = before.table.set_column(at, before.table.schema.field(at), [rows])
    store.write_index("dataset", "fake", "0", EmbeddingIndex(wrong))
    index, embedded = run(folder, store, UnloadedEmbedder())
    assert embedded == 0
    assert index.table.equals(before.table)


def test_an_index_of_another_model_names_no_places(folder, store, small_segments):
    first, _ = run(folder, store)
    run(folder, store, FakeEmbedder("other", batch_size=7))
    index, embedded = run(folder, store, UnloadedEmbedder())  # of the first model again
    assert embedded == 0
    assert add_up(store, index).outer.tobytes() == add_up(store, first).outer.tobytes()


@pytest.mark.slow
def test_of_ten_thousand_images_only_the_changed_one_is_opened_and_embedded(tmp_path, store):
    folder = write_images(tmp_path / "many", 10_000)
    assert run(folder, store)[1] == 10_000
    write_image(folder / "5000.png", seed=10_007)
    source = WatchedSource(folder)
    index, embedded = run(source, store)
    assert (index.n_images, embedded, source.read_ids) == (10_000, 1, ["5000.png"])


def test_the_same_images_elsewhere_are_not_decoded_and_load_no_model(
    folder, store, tmp_path, monkeypatch
):
    first, _ = run(folder, store)
    monkeypatch.setattr(Decoders, "picture", None)
    copy = shutil.copytree(folder, tmp_path / "copy")
    second, embedded = run(copy, store, UnloadedEmbedder(), dataset="another")
    assert (second.n_images, embedded) == (20, 0)
    assert second.content_fingerprint() == first.content_fingerprint()


def test_a_renamed_a_moved_and_a_touched_image_are_not_embedded_again(folder, store):
    run(folder, store)
    (folder / "sub").mkdir()
    (folder / "000.png").rename(folder / "renamed.png")
    (folder / "001.png").rename(folder / "sub/001.png")
    os.utime(folder / "002.png", ns=(1, 1))
    source = WatchedSource(folder)
    index, embedded = run(source, store, UnloadedEmbedder())
    assert (index.n_images, embedded) == (20, 0)
    assert sorted(source.read_ids) == ["002.png", "renamed.png", "sub/001.png"]


def test_images_that_went_away_are_gone_from_the_index_but_kept_in_the_store(folder, store):
    run(folder, store)
    (folder / "000.png").unlink()
    assert run(folder, store)[0].n_images == 19
    write_image(folder / "back.png", seed=0)
    index, embedded = run(folder, store)
    assert (index.n_images, embedded) == (20, 0)


def test_ten_images_of_one_content_are_embedded_once_and_count_ten_times(store, tmp_path):
    for number in range(10):
        write_image(tmp_path / f"images/{number}.png", seed=0)
    write_image(tmp_path / "images/other.png", seed=1)
    index, embedded = run(tmp_path / "images", store)
    assert (index.n_images, embedded) == (11, 2)
    assert len(stored_rows(store)) == 2
    moments = add_up(store, index)
    pixels = [
        decode_image((tmp_path / f"images/{name}.png").read_bytes()) for name in ["0", "other"]
    ]
    ten_times, once = to_grid(FakeEmbedder().embed(np.stack(pixels))).astype(np.float64)
    assert moments.n == 11
    assert np.array_equal(moments.total, 10 * ten_times + once)


def test_another_model_embeds_all_images_anew(folder, store):
    run(folder, store)
    index, embedded = run(folder, store, FakeEmbedder("other"))
    assert (index.n_images, embedded) == (20, 20)
    assert stored_rows(store, "other") == stored_rows(store)


# --- what cannot be embedded ---


def test_what_fails_is_listed_with_its_reason_and_stops_nothing(folder, store):
    (folder / "000.png").write_bytes(b"I am not an image")
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes()[:60])
    (folder / "002.png").write_bytes(b"")
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    source = WatchedSource(folder, broken=["003.png"])
    manifest = list_images(source)
    (folder / "004.png").unlink()
    index, embedded = embed_manifest("dataset", manifest, source, FakeEmbedder(), store)
    assert (index.n_images, index.n_failed, embedded) == (15, 6, 15)
    reasons = dict(index.failures())
    assert list(reasons) == [
        "000.png", "001.png", "002.png", "003.png", "004.png", "dangling.png"
    ]  # fmt: skip
    assert all(reasons.values())
    assert "not an image" in reasons["000.png"]
    assert "empty" in reasons["002.png"]
    assert reasons["003.png"] == "PermissionError: Permission denied"
    assert reasons["004.png"].startswith("FileNotFoundError")


def test_what_failed_is_tried_again(folder, store):
    assert run(WatchedSource(folder, broken=["003.png"]), store)[0].n_failed == 1
    source = WatchedSource(folder)
    index, embedded = run(source, store)
    assert (index.n_failed, embedded, source.read_ids) == (0, 1, ["003.png"])


def test_every_image_of_an_undecodable_content_is_listed(folder, store):
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"I am not an image")
    index, _ = run(folder, store)
    assert [image_id for image_id, _ in index.failures()] == ["a.png", "b.png", "c.png"]
    assert len({reason for _, reason in index.failures()}) == 1


def test_an_image_for_which_the_model_gives_nan_has_failed(folder, store):
    class Broken(FakeEmbedder):
        def embed(self, pixels):
            vectors = super().embed(pixels)
            vectors[0, 3] = np.nan
            return vectors

    index, embedded = run(folder, store, Broken(batch_size=5))
    assert (index.n_failed, embedded) == (4, 16)
    assert {reason for _, reason in index.failures()} == {
        "FloatingPointError: the model returned a vector that is not finite"
    }


def test_no_decodable_image_at_all_leaves_an_index_of_failures(store, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/fake.png").write_text("text")
    index, embedded = run(tmp_path / "images", store)
    assert (index.n_images, index.n_failed, embedded) == (0, 1, 0)
    assert list(Contents.of(index).blocks(store, "fake")) == []


def test_content_keys_that_end_in_zero_bytes_are_keys_like_others(folder, store, monkeypatch):
    def ending_in_zeros(data):
        return hashlib.blake2b(data, digest_size=KEY_BYTES - 3).digest() + bytes(3)

    monkeypatch.setattr(pipeline, "content_key", ending_in_zeros)
    write_image(folder / "copy.png", seed=5)
    for name in ("x.png", "y.png"):
        (folder / name).write_bytes(b"I am not an image")
    index, embedded = run(folder, store)
    assert (index.n_images, embedded) == (21, 20)
    assert [image_id for image_id, reason in index.failures() if reason] == ["x.png", "y.png"]
    source = WatchedSource(folder)
    index, embedded = run(source, store, UnloadedEmbedder())
    assert (index.n_images, embedded) == (21, 0)
    assert source.read_ids == []  # what could not be decoded is not tried again
    assert [image_id for image_id, reason in index.failures() if reason] == ["x.png", "y.png"]


# --- order, batches, threads ---


@pytest.mark.parametrize(
    ("batch_size", "threads"), [(1, 1), (3, 1), (3, 4), (7, 4), (20, 2), (64, 4)]
)
def test_no_batch_size_and_no_number_of_threads_changes_a_stored_row(
    folder, store, tmp_path, monkeypatch, batch_size, threads
):
    write_image(folder / "copy.png", seed=5)
    run(folder, store)
    monkeypatch.setattr(pipeline, "MAX_DECODERS", threads)
    monkeypatch.setattr(pipeline, "usable_cpus", lambda: threads)
    other = Store(tmp_path / "other")
    embedder = FakeEmbedder(batch_size=batch_size)
    embedder.calls_at_once = threads
    run(folder, other, embedder)
    assert len(stored_rows(other)) == 20
    assert stored_rows(other) == stored_rows(store)


@pytest.mark.parametrize("max_waiting", [1, 2, 5, 1024])
@pytest.mark.parametrize("wanted_one_in", [1, 2, 7])
def test_outcomes_come_in_the_order_of_the_images(folder, monkeypatch, max_waiting, wanted_one_in):
    monkeypatch.setattr(pipeline, "MAX_WAITING", max_waiting)
    (folder / "004.png").write_bytes(b"I am not an image")
    source = WatchedSource(folder, broken=["011.png"])
    image_ids = sorted(item.image_id for item in source.items())
    keys = [content_key((folder / name).read_bytes()) for name in image_ids]
    wanted = set(keys[::wanted_one_in])
    told = set()

    def is_wanted(key, number):
        assert key in told
        return key in wanted

    outcomes = list(
        embed_stream(source, image_ids, FakeEmbedder(), wanted=is_wanted, look_up=told.update)
    )
    for image_id, key, outcome in zip(image_ids, keys, outcomes, strict=True):
        readable, decodable = image_id != "011.png", image_id != "004.png"
        assert outcome.content_key == (key if readable else None)
        assert (outcome.vector is not None) == (readable and decodable and key in wanted)
        assert (outcome.failure is not None) == (not readable or (not decodable and key in wanted))


def test_batches_are_full_but_for_the_last(folder, store):
    embedder = FakeEmbedder(batch_size=8)
    run(folder, store, embedder)
    assert embedder.batches == [8, 8, 4]


def test_reading_stays_a_bounded_number_of_images_ahead(folder, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_DECODERS", 1)
    source = WatchedSource(folder)
    stream = embed_stream(source, itertools.repeat("000.png", 1_000_000), FakeEmbedder())
    for _ in range(3):
        next(stream)
    stream.close()
    assert len(source.read_ids) < 400


def test_progress_counts_images_and_how_many_went_through_the_model(folder, store):
    write_image(folder / "copy.png", seed=5)
    (folder / "fake.png").write_bytes(b"I am not an image")
    seen = []
    run(folder, store, on_progress=lambda *numbers: seen.append(numbers))
    assert [done for done, *_ in seen] == list(range(1, 23))
    assert {total for _, total, *_ in seen} == {22}
    assert seen[-1][:3] == (22, 22, 20)


# --- stages that overlap ---


class Meeting(FakeEmbedder):
    """Two calls of the model, each of which waits for the other; in vain, it breaks."""

    calls_at_once = 2

    def __init__(self):
        super().__init__(batch_size=5)
        self.together = threading.Barrier(2)

    def embed(self, pixels):
        self.together.wait(60)
        return super().embed(pixels)


def test_the_model_works_on_as_many_batches_at_once_as_suit_it(folder, store):
    embedder = Meeting()
    assert run(folder, store, embedder)[1] == 20
    assert embedder.batches == [5, 5, 5, 5]


def test_many_devices_with_large_batches_are_all_busy_at_once(folder, store, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_WAITING", 4)

    class Ten(Meeting):
        calls_at_once = 10

        def __init__(self):
            super().__init__()
            self.batch_size = 2
            self.together = threading.Barrier(10)

    embedder = Ten()
    assert run(folder, store, embedder)[1] == 20
    assert embedder.batches == [2] * 10


def test_outcomes_stay_in_order_when_a_later_batch_is_finished_first(folder):
    source = WatchedSource(folder)
    image_ids = sorted(item.image_id for item in source.items())
    pixels = np.stack([decode_image((folder / name).read_bytes()) for name in image_ids])
    later = threading.Event()

    class Uneven(FakeEmbedder):
        calls_at_once = 2

        def embed(self, batch):
            vectors = super().embed(batch)
            if np.array_equal(batch[0], pixels[0]):
                assert later.wait(60)
            else:
                later.set()
            return vectors

    outcomes = list(embed_stream(source, image_ids, Uneven(batch_size=2)))
    assert [outcome.at for outcome in outcomes] == list(range(20))
    expected = FakeEmbedder(batch_size=20).embed(pixels)
    assert np.array_equal(np.stack([outcome.vector for outcome in outcomes]), expected)


def test_the_model_is_given_work_while_the_consumer_is_busy(folder, monkeypatch):
    """It works on one batch and has another in line when only the first outcome was taken."""
    queued, second = threading.Event(), threading.Event()
    start = pipeline._Model.start

    def watched_start(self, images):
        future = start(self, images)
        if len(self._unfinished) > 1:
            queued.set()
        return future

    class Watched(FakeEmbedder):
        def embed(self, pixels):
            vectors = super().embed(pixels)
            assert queued.wait(60)
            if len(self.batches) == 2:
                second.set()
            return vectors

    monkeypatch.setattr(pipeline._Model, "start", watched_start)
    source = WatchedSource(folder)
    stream = embed_stream(source, ["000.png"] * 20, Watched(batch_size=2))
    with contextlib.closing(stream) as outcomes:
        next(outcomes)
        assert second.wait(60)


def test_the_model_is_loaded_while_the_first_images_are_decoded(folder, monkeypatch):
    loading, decoding = threading.Event(), threading.Event()
    decode = Decoders.picture

    def decode_once_loading(self, data):
        decoding.set()
        assert loading.wait(60)
        return decode(self, data)

    class Slow(FakeEmbedder):
        @property
        def batch_size(self):
            loading.set()
            assert decoding.wait(60)
            return 4

        @batch_size.setter
        def batch_size(self, size):
            pass

    monkeypatch.setattr(Decoders, "picture", decode_once_loading)
    source = WatchedSource(folder)
    assert len(list(embed_stream(source, ["000.png"] * 4, Slow()))) == 4


def test_a_model_that_cannot_be_loaded_ends_the_run_even_if_no_image_comes_to_need_it(
    store, tmp_path
):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/fake.png").write_text("text")
    with pytest.raises(AssertionError, match="the model was loaded"):
        run(tmp_path / "images", store, UnloadedEmbedder())


def test_as_many_decoders_work_at_once_as_there_are_cpus(folder, monkeypatch):
    monkeypatch.setattr(pipeline, "usable_cpus", lambda: 3)
    together = threading.Barrier(3)
    decode = Decoders.picture

    def meet(self, data):
        together.wait(60)
        return decode(self, data)

    monkeypatch.setattr(Decoders, "picture", meet)
    outcomes = embed_stream(WatchedSource(folder), ["000.png"] * 6, FakeEmbedder())
    assert [outcome.failure for outcome in outcomes] == [None] * 6


class ObservedWaits(Waits):
    """Time passes for one slow stage alone, while the run waits for it."""

    def __init__(self, slow):
        self.now, self.stage, self.slow = 0.0, None, slow
        self.changed = threading.Condition()
        super().__init__(clock=lambda: self.now)

    @contextlib.contextmanager
    def on(self, stage):
        with super().on(stage):
            self._set(stage)
            try:
                yield
            finally:
                self._set(None)

    def _set(self, stage):
        with self.changed:
            self.stage = stage
            self.changed.notify_all()

    def slowly(self, function):
        def work(*arguments, **options):
            with self.changed:
                assert self.changed.wait_for(lambda: self.stage == self.slow, 60)
                self.now += 1
            return function(*arguments, **options)

        return work


@pytest.mark.parametrize("stage", ["reading", "decoding", "the model", "writing"])
def test_progress_names_the_stage_that_sets_the_pace(folder, store, monkeypatch, stage):
    waits = ObservedWaits(stage)
    monkeypatch.setattr(incremental, "Waits", lambda: waits)
    embedder, source = FakeEmbedder(batch_size=1), WatchedSource(folder)
    if stage == "reading":
        read_all = source.read_all
        source.read_all = lambda ids: map(waits.slowly(lambda read: read), read_all(ids))
    elif stage == "decoding":
        monkeypatch.setattr(Decoders, "picture", waits.slowly(Decoders.picture))
        monkeypatch.setattr(pipeline, "usable_cpus", lambda: 1)
    elif stage == "the model":
        embedder.embed = waits.slowly(embedder.embed)
    else:
        monkeypatch.setattr(SegmentWriter, "add", waits.slowly(SegmentWriter.add))
    named = []
    run(source, store, embedder, on_progress=lambda *numbers: named.append(numbers[-1]))
    assert named[-1] == stage


def test_the_stage_that_was_slow_long_ago_is_forgotten():
    now = 0.0
    waits = Waits(clock=lambda: now)
    for stage, seconds in (("reading", FADING_SECONDS - 1), ("writing", FADING_SECONDS - 2)):
        with waits.on(stage):
            now += seconds
    assert waits.bottleneck == "reading"
    with waits.on("writing"):
        now += FADING_SECONDS
    assert waits.bottleneck == "writing"


def test_rows_are_in_the_order_of_the_images_whichever_thread_is_first(
    folder, tmp_path, monkeypatch
):
    """Images are twice there, and the second of each pair is hashed before the first."""
    for path in sorted(folder.iterdir()):
        path.with_name(f"{path.stem}_again.png").write_bytes(path.read_bytes())
    monkeypatch.setattr(pipeline, "MAX_BUNDLE", 1)
    monkeypatch.setattr(pipeline, "usable_cpus", lambda: 4)
    store, seconds = Store(tmp_path / "store"), threading.Semaphore(0)
    claim = incremental._Claim.__call__

    def second_first(self, key, number):
        if threading.current_thread().name.startswith("decode"):
            if number % 2 == 0:
                assert seconds.acquire(timeout=60)
            wanted = claim(self, key, number)
            if number % 2:
                seconds.release()
            return wanted
        return claim(self, key, number)

    monkeypatch.setattr(incremental._Claim, "__call__", second_first)
    assert run(folder, store)[1] == 20
    (name,) = store.segment_names("fake")
    keys, _ = store.segment_keys("fake", name)
    firsts = [content_key((folder / f"{number:03}.png").read_bytes()) for number in range(20)]
    assert [bytes(key) for key in keys] == [key.rstrip(b"\0") for key in firsts]


def test_of_equal_contents_the_first_that_the_source_gives_is_embedded(folder, store):
    for path in sorted(folder.iterdir()):
        path.with_name(f"{path.stem}_again.png").write_bytes(path.read_bytes())

    class Backwards(WatchedSource):
        def read_all(self, image_ids):
            last = [*enumerate(image_ids)][::-1]
            names = [name for _, name in last]
            for (at, _), read in zip(last, super().read_all(names), strict=True):
                yield Read(at, read.data)

    embedder = FakeEmbedder()
    assert run(Backwards(folder), store, embedder)[1] == 20
    assert sum(embedder.batches) == 20
    (name,) = store.segment_names("fake")
    keys, _ = store.segment_keys("fake", name)
    lasts = [
        content_key((folder / f"{number:03}.png").read_bytes()) for number in range(19, -1, -1)
    ]
    assert [bytes(key) for key in keys] == [key.rstrip(b"\0") for key in lasts]


INTERRUPTED_AT_START = """
import sys, threading
from visdiv_assets.embedding.pipeline import embed_stream
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets_tests.embedding.fakes import FakeEmbedder

start = threading.Thread.start

def interrupted(self):
    start(self)
    if self.name == "reads":
        raise KeyboardInterrupt

threading.Thread.start = interrupted

class Endless(DirectorySource):
    def read_all(self, image_ids):
        threading.Event().wait()
        yield

try:
    list(embed_stream(Endless(sys.argv[1]), ["000.png"], FakeEmbedder()))
except KeyboardInterrupt as error:
    kept = error  # and with it, all that its traceback refers to
    print("interrupted")
"""


def test_an_interrupt_while_the_reader_starts_ends_the_process(folder):
    command = [sys.executable, "-c", INTERRUPTED_AT_START, str(folder)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stdout) == (0, "interrupted\n")


# --- slow sources, large images ---


class SlowSource(WatchedSource):
    """Sends some images, and no more until `go_on` is set."""

    def __init__(self, path, sends):
        super().__init__(path)
        self.sends, self.go_on = sends, threading.Event()

    def read_all(self, image_ids):
        for each in read_concurrently(self._read_watched, image_ids, 1):
            if each.at == self.sends:
                assert self.go_on.wait(60)
            yield each


def test_rows_of_a_slow_source_are_committed_while_it_sends_nothing(folder, store, monkeypatch):
    monkeypatch.setattr(pipeline, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(segments, "SEGMENT_SECONDS", 0.01)
    source, told = SlowSource(folder, sends=5), []

    def on_progress(done, total, embedded, bottleneck):
        told.append((done, bottleneck))
        if len(store.key_index("fake")) == 5:
            source.go_on.set()

    index, embedded = run(source, store, FakeEmbedder(batch_size=64), on_progress=on_progress)
    assert (index.n_images, embedded) == (20, 20)
    assert (5, "reading") in told


def test_progress_is_told_while_no_image_has_come_at_all(folder, store, monkeypatch):
    monkeypatch.setattr(pipeline, "PAUSE_SECONDS", 0.01)
    source = SlowSource(folder, sends=0)
    told = []

    def on_progress(*numbers):
        told.append(numbers)
        source.go_on.set()

    run(source, store, on_progress=on_progress)
    assert told[0] == (0, 20, 0, "reading")


def test_a_batch_that_starts_early_gives_the_same_bits(folder, tmp_path, monkeypatch):
    stores = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    run(folder, stores[0], FakeEmbedder(batch_size=64))
    monkeypatch.setattr(pipeline, "PAUSE_SECONDS", 0.0)
    run(folder, stores[1], FakeEmbedder(batch_size=64))
    assert stored_rows(stores[0]) == stored_rows(stores[1])


def test_large_images_are_few_in_flight(folder, monkeypatch):
    size = max(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(pipeline, "MAX_BYTES_AHEAD", 3 * size)
    monkeypatch.setattr(pipeline, "usable_cpus", lambda: 2)
    source, most, decoded = WatchedSource(folder), 0, 0
    picture = Decoders.picture

    def one_by_one(image_ids):
        for at, image_id in enumerate(image_ids):
            yield Read(at, source._read_watched(image_id))

    def count(self, data):
        nonlocal most, decoded
        most = max(most, len(source.read_ids) - decoded)
        found = picture(self, data)
        decoded += 1
        return found

    source.read_all = one_by_one
    monkeypatch.setattr(Decoders, "picture", count)
    ids = [path.name for path in sorted(folder.iterdir())]
    assert len(list(embed_stream(source, ids, FakeEmbedder()))) == 20
    assert most <= 8  # 3, those that come, and what the threads have in hand


def test_large_images_are_read_one_at_a_time_and_small_ones_many(monkeypatch):
    monkeypatch.setattr(source_module, "MAX_BYTES_AHEAD", 1000)
    sizes, started, ahead = [900] * 10 + [1] * 200, [], []

    def read(image_id):
        started.append(image_id)
        return bytes(sizes[int(image_id)])

    ids = [str(number) for number in range(len(sizes))]
    for each in read_concurrently(read, ids, 4):
        ahead.append(len(started) - each.at - 1)
    assert max(ahead[:10]) <= 2
    assert len(ahead) == 210


# --- vectors of an older version ---


class NamedEmbedder(FakeEmbedder):
    """Has a model id like a real one's."""

    def __init__(self, preprocessing):
        super().__init__(f"net.{preprocessing}")


OLDER, NOW = NamedEmbedder(Decoding().older_name), NamedEmbedder(Decoding().name)


def write_deep(path):
    """A picture that older versions saw as white."""
    levels = np.linspace(300, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(path)


def test_pictures_that_an_older_version_saw_the_same_go_through_no_model_again(folder, store):
    run(folder, store, OLDER)
    index, embedded = run(folder, store, NOW)
    assert (index.n_images, embedded) == (20, 0)
    assert stored_rows(store, NOW.model_id) == stored_rows(store, OLDER.model_id)
    source = WatchedSource(folder)
    run(source, store, NOW)
    assert source.read_ids == []


def test_pictures_that_an_older_version_saw_otherwise_are_embedded_again(folder, store):
    write_deep(folder / "deep.png")
    run(folder, store, OLDER)
    index, embedded = run(folder, store, NOW)
    assert (index.n_images, embedded) == (21, 1)


# --- interrupted, damaged, shared ---


def test_ctrl_c_keeps_what_is_finished(folder, store, small_segments):
    images = sorted(folder.iterdir())

    def interrupt(done, total, embedded, bottleneck):
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, store, on_progress=interrupt)
    # Those that were taken, and those that the model had given and that were not taken yet.
    kept = sum(content_key(path.read_bytes()) in store.key_index("fake") for path in images)
    assert kept >= 11
    index, embedded = run(folder, store)
    assert (index.n_images, embedded) == (20, 20 - kept)


def test_a_model_that_breaks_down_keeps_what_is_finished(folder, store):
    class Breaking(FakeEmbedder):
        def embed(self, pixels):
            if len(self.batches) == 3:
                raise RuntimeError("out of memory")
            return super().embed(pixels)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(folder, store, Breaking(batch_size=4))
    assert run(folder, store)[1] == 8


def damage_nothing_but_the_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, empty, damage_nothing_but_the_last_byte])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_the_images_of_a_damaged_segment_are_embedded_again(
    folder, store, small_segments, damage, suffix
):
    before, _ = run(folder, store)
    moments = add_up(store, before)
    segment = store.segment_names("fake")[2]
    damage(store.root / "embeddings/fake" / f"{segment}{suffix}")
    index, embedded = run(folder, store)
    assert (index.n_images, embedded) in [(20, 3), (20, 2)]  # the last segment holds two
    assert add_up(store, index).outer.tobytes() == moments.outer.tobytes()
    assert run(folder, store, UnloadedEmbedder())[1] == 0


def test_an_embedding_that_goes_away_during_a_run_is_a_failure_until_the_next(folder, store):
    run(folder, store)
    write_image(folder / "new.png", seed=1000)

    def delete_segments(done, total, embedded, bottleneck):
        for name in store.segment_names("fake"):
            (store.root / f"embeddings/fake/{name}.npy").unlink()

    index, _ = run(folder, store, on_progress=delete_segments)
    assert (index.n_images, index.n_failed) == (1, 20)
    assert {reason for _, reason in index.failures()} == {"its embedding is missing from the store"}
    index, embedded = run(folder, store)
    assert (index.n_images, embedded) == (21, 20)


def test_what_a_killed_writer_left_behind_is_ignored(folder, store, caplog):
    run(folder, store)
    segments = store.root / "embeddings/fake"
    for name in (".tmp-abc", ".tmp-abc.npy", ".tmp-abc.parquet", "0" * 32 + ".npy"):
        (segments / name).write_bytes(b"half a file")
    (store.root / "indexes/dataset/fake/.tmp-abc.parquet").write_bytes(b"half a file")
    index, embedded = run(folder, store, UnloadedEmbedder())
    assert (index.n_images, embedded) == (20, 0)
    assert not caplog.messages


# Embeds images in segments of 5, and prints what was embedded. The model begins when it is told to,
# and breaks off without an end after a number of images.
RUN = """
import sys, threading
from pathlib import Path
from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.source import Read, read_concurrently
from visdiv_assets.store import segments
from visdiv_assets.store.store import Store
from visdiv_assets_tests.embedding.fakes import FakeEmbedder

segments.SEGMENT_ROWS = 5

class Supervised(FakeEmbedder):
    def embed(self, pixels):
        if not self.batches:
            print("ready", flush=True)
            sys.stdin.readline()
        if sum(self.batches) >= int(sys.argv[3]):
            threading.Event().wait()
        return super().embed(pixels)

source = DirectorySource(Path(sys.argv[1]))
store = Store(sys.argv[2])
index, embedded = embed_manifest("dataset", list_images(source), source, Supervised(), store)
print(index.n_images, embedded)
"""


@contextlib.contextmanager
def run_elsewhere(folder, store, until=1_000_000):
    """A process in which the model is about to embed its first images."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, folder, store.root, str(until)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def many(tmp_path):
    return write_images(tmp_path / "many", 60)


def test_after_kills_only_what_is_missing_is_embedded(many, store, tmp_path):
    # Of what the model gave, its last two batches of four may not have been taken yet.
    for enough, until in ((1, 14), (4, 26)):
        with run_elsewhere(many, store, until) as process:
            go_on(process)
            while len(store.segment_names("fake")) < enough:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    committed = len(store.key_index("fake"))
    assert 20 <= committed < 60
    index, embedded = run(many, store)
    assert (index.n_images, embedded) == (60, 60 - committed)

    other = Store(tmp_path / "uninterrupted")
    expected, _ = run(many, other)
    assert stored_rows(store) == stored_rows(other)
    assert diversity(add_up(store, index)).score == diversity(add_up(other, expected)).score


def test_two_processes_may_embed_one_dataset_into_one_store(many, store, tmp_path):
    with run_elsewhere(many, store) as one, run_elsewhere(many, store) as two:
        for process in (one, two):
            go_on(process)
        results = [process.communicate()[0].split() for process in (one, two)]
    assert [n_images for n_images, _ in results] == ["60", "60"]
    other = Store(tmp_path / "alone")
    run(many, other)
    assert stored_rows(store) == stored_rows(other)
    assert run(many, store, UnloadedEmbedder())[1] == 0


def test_the_score_is_the_same_to_the_last_bit_however_the_work_is_cut(
    folder, tmp_path, monkeypatch
):
    write_image(folder / "copy.png", seed=5)
    renamed = tmp_path / "renamed"
    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        renamed.mkdir(exist_ok=True)
        shutil.copy(path, renamed / f"{number * 7 % 23:02}.png")
    scores = set()
    cuts = [(folder, 4096, 4, 1), (folder, 1, 1, 4), (renamed, 3, 8, 4), (renamed, 7, 21, 1)]
    for number, (path, segment_rows, batch_size, threads) in enumerate(cuts):
        monkeypatch.setattr(segments, "SEGMENT_ROWS", segment_rows)
        monkeypatch.setattr(pipeline, "usable_cpus", lambda threads=threads: threads)
        root = tmp_path / f"store-{number}"
        evaluation, _ = evaluate(
            "dataset",
            WatchedSource(path),
            FakeEmbedder(batch_size=batch_size),
            Store(root),
            Warehouse(root / "visdiv.duckdb"),
        )
        assert evaluation.n_images == 21
        scores.add(evaluation.diversity_score)
    assert len(scores) == 1


# --- ended early ---


def test_what_the_model_has_given_is_told_of_when_a_stream_ends_early(folder):
    ids = [path.name for path in sorted(folder.iterdir())]
    told = []
    embedder = FakeEmbedder(batch_size=4)
    stream = embed_stream(DirectorySource(folder), ids, embedder, on_end=told.append)
    taken = [next(stream), next(stream)]
    stream.close()
    keys = {outcome.content_key for outcome in [*taken, *told]}
    assert len(keys) == sum(embedder.batches)


def test_an_interrupt_between_two_rows_loses_none_that_the_model_has_given(folder, store):
    embedder = FakeEmbedder(batch_size=4)

    def interrupt(done, total, embedded, limit):
        if embedded == 2:
            raise KeyboardInterrupt

    source = DirectorySource(folder)
    with pytest.raises(KeyboardInterrupt):
        embed_manifest("birds", list_images(source), source, embedder, store, on_progress=interrupt)
    index = store.key_index(embedder.model_id)
    keys = [content_key(path.read_bytes()) for path in sorted(folder.iterdir())]
    assert sum(key in index for key in keys) == sum(embedder.batches) >= 4
