"""From a folder to a row in `evaluations`, and that bad input leaves none."""

import os
import shutil
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from visdiv_assets import SSCDEmbedder, VisdivError, evaluate_diversity
from visdiv_assets.embedding.incremental import Earlier
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.settings.model import ColumnSlices
from visdiv_assets.sources import pieces
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.contents import Contents
from visdiv_assets.store.index import EmbeddingIndex
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import (
    embed_dataset,
    evaluate,
    list_dataset,
    score_dataset,
)
from visdiv_assets.workflows.judge import judge_dataset
from visdiv_assets.workflows.moments import accumulate_moments
from visdiv_assets.workflows.project import dataset_name_for
from visdiv_assets_tests.embedding.fakes import (
    FakeEmbedder,
    WatchedSource,
    write_image,
    write_images,
)

PHOTOS = Path(__file__).parents[2] / "examples/demo/photos"


@pytest.fixture
def home(tmp_path):
    """A store, its warehouse, and a folder of six images."""
    return SimpleNamespace(
        store=Store(tmp_path / "store"),
        warehouse=Warehouse(tmp_path / "store/visdiv.duckdb"),
        images=write_images(tmp_path / "images", 6),
    )


def score(home):
    source = DirectorySource(home.images)
    return evaluate("dataset", source, FakeEmbedder(), home.store, home.warehouse)


def test_an_evaluation_says_what_was_scored(home):
    (home.images / "fake.png").write_text("text")
    evaluation, embedded = score(home)
    assert home.warehouse.history("dataset") == [evaluation]
    assert (evaluation.n_images, evaluation.n_failed, embedded.n_new) == (6, 1, 6)
    assert (evaluation.model_id, evaluation.dimension) == ("fake", 48)
    assert evaluation.manifest_fingerprint == home.store.latest_manifest("dataset").fingerprint
    assert evaluation.run_id is None
    ranks = evaluation.effective_rank * evaluation.participation_ratio
    assert evaluation.diversity_score == pytest.approx(ranks**0.5 / 48, rel=1e-12)
    assert evaluation.seconds > 0
    assert datetime.now(UTC) - evaluation.evaluated_at < timedelta(minutes=5)


def test_a_second_evaluation_has_the_same_score_and_stands_beside_the_first(home):
    first, _ = score(home)
    second, embedded = score(home)
    assert embedded.n_new == 0
    assert second.diversity_score == first.diversity_score
    assert home.warehouse.history("dataset") == [first, second]


def test_one_image_many_times_scores_exactly_0(home):
    for path in sorted(home.images.iterdir())[1:]:
        write_image(path, seed=0)
    evaluation, _ = score(home)
    assert evaluation.n_images == 6
    assert (evaluation.diversity_score, evaluation.rating) == (0.0, "nearly one image")


def nothing(folder):
    shutil.rmtree(folder)


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("text")


def an_empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def text_files(folder):
    an_empty_folder(folder)
    (folder / "readme.txt").write_text("text")


def no_decodable_image(folder):
    for path in folder.iterdir():
        path.write_text("text")


def one_image(folder):
    an_empty_folder(folder)
    write_image(folder / "0.png", seed=0)


def one_decodable_image(folder):
    no_decodable_image(folder)
    write_image(folder / "000.png", seed=0)


BAD_INPUT = {
    nothing: "no such file or directory:",
    a_file: "is not a directory",
    an_empty_folder: "it is empty",
    text_files: r"1 file left out by its name: 1 × \.txt",
    no_decodable_image: "none of the 6 images in .* can be decoded",
    one_image: "only 1 decodable image; diversity needs at least 2",
    one_decodable_image: "only 1 decodable image; diversity needs at least 2",
}


@pytest.mark.parametrize("spoil", BAD_INPUT)
def test_bad_input_is_one_clear_sentence_and_no_evaluation(home, spoil):
    spoil(home.images)
    with pytest.raises(VisdivError, match=BAD_INPUT[spoil]) as caught:
        score(home)
    assert "\n" not in str(caught.value)
    assert home.warehouse.latest_evaluations() == []


@pytest.mark.parametrize("spoil", BAD_INPUT)
def test_a_dataset_that_goes_bad_keeps_the_evaluations_it_has(home, spoil):
    evaluation, _ = score(home)
    spoil(home.images)
    with pytest.raises(VisdivError):
        score(home)
    assert home.warehouse.history("dataset") == [evaluation]


def test_a_folder_is_scored_in_one_call(tmp_path):
    for photograph in sorted(PHOTOS.glob("*.jpg"))[:12]:
        shutil.copy(photograph, tmp_path)
    embedder = SSCDEmbedder(ONNX_CHECKPOINT)
    warehouse = Warehouse(tmp_path / "visdiv.duckdb")
    stored, _ = evaluate(
        "photos", DirectorySource(tmp_path), embedder, Store(tmp_path / "store"), warehouse
    )
    assert evaluate_diversity(tmp_path, embedder) == pytest.approx(stored.diversity_score, abs=1e-5)


def test_folders_of_one_name_are_kept_apart():
    names = {dataset_name_for(Path(path)) for path in ("/a/images", "/b/images", "/a/images/")}
    assert len(names) == 2
    assert all(name.startswith("images-") for name in names)


@pytest.mark.parametrize(
    "path", ["/", "/…/a b/ü%/", "/x/" + "long" * 60, "/x/.hidden", "/x/\udcff"]
)
def test_the_name_of_any_folder_is_fit_for_a_file(path):
    name = dataset_name_for(Path(path))
    assert len(name) < 100
    assert name[0] not in ".-"
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def moments_kept(store, fingerprint):
    """All that is kept of the moments of a manifest, as bytes; norms as they are."""
    place = ("dataset", "fake", fingerprint)
    whole, parts = store.read_sample(*place), store.read_slices(*place)
    samples = {"": whole, **parts}
    return {
        name: (each.moments.n, *(
            array.tobytes()
            for array in (
                each.moments.total, each.moments.outer, *each.everything[:3]
            )
        ))
        for name, each in samples.items()
    }  # fmt: skip


def count_rows(monkeypatch):
    """Counts the rows that moments are made of."""
    rows = []
    blocks = Contents.blocks

    def counted(self, *arguments):
        rows.append(len(self))
        return blocks(self, *arguments)

    monkeypatch.setattr(Contents, "blocks", counted)
    return rows


def add_some(images):
    write_image(images / "b/900.png", seed=900)
    write_image(images / "a/901.png", seed=901)
    write_image(images / "a/copy.png", seed=3)


def remove_some(images):
    for number in (2, 17, 33):
        next(images.rglob(f"{number:03}.png")).unlink()


def change_some(images):
    add_some(images)
    remove_some(images)
    write_image(images / "a/005.png", seed=905)


def move_some(images):
    (images / "b").mkdir(exist_ok=True)
    (images / "a/006.png").rename(images / "b/006.png")


def a_new_folder(images):
    write_image(images / "c/900.png", seed=900)


@pytest.mark.parametrize("change", [add_some, remove_some, change_some, move_some, a_new_folder])
@pytest.mark.parametrize("folders", ["aab", "aaa"], ids=["slices", "whole"])
def test_moments_of_a_changed_dataset_are_those_of_a_new_one(home, change, folders, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ROWS", 7)
    shutil.rmtree(home.images)
    for number in range(40):
        write_image(home.images / folders[number % 3] / f"{number:03}.png", seed=number)
    score(home)
    change(home.images)
    score(home)
    fingerprint = home.store.latest_manifest("dataset").fingerprint
    kept = moments_kept(home.store, fingerprint)
    norm_error = home.store.read_norm_error("dataset", "fake", fingerprint)
    shutil.rmtree(home.store.root / "moments")
    accumulate_moments("dataset", "fake", fingerprint, home.store)
    assert moments_kept(home.store, fingerprint) == kept
    assert home.store.read_norm_error("dataset", "fake", fingerprint) == norm_error


@pytest.mark.parametrize("change", [add_some, remove_some, change_some, move_some, a_new_folder])
def test_a_changed_dataset_is_evaluated_the_same_however_much_is_read_at_a_time(
    tmp_path, change, monkeypatch
):
    def evaluated(images, at_a_time):
        for module in ("sources.pieces", "store.index"):
            monkeypatch.setattr(f"visdiv_assets.{module}.PIECE_ROWS", at_a_time)
        source, store = WatchedSource(images), Store(images.parent / "store")
        warehouse = Warehouse(images.parent / "visdiv.duckdb")
        evaluation, embedded = evaluate("dataset", source, FakeEmbedder(), store, warehouse)
        table = store.read_index(*evaluation.where).table
        return {
            "said": [evaluation.n_images, evaluation.n_failed, evaluation.n_distinct],
            "flat": [evaluation.n_flat, embedded.index.flat()],
            "score": [evaluation.diversity_score, evaluation.corrected_low],
            "read": [sorted(source.read_ids), embedded.n_new],
            "keys": table.select(["image_id", "size", "content_key", "reason"]).to_pylist(),
            "content": embedded.index.content_fingerprint(),
            "failures": embedded.index.failures(),
        }

    for number in range(40):
        write_image(tmp_path / "images" / "aab"[number % 3] / f"{number:03}.png", seed=number)
    for name in ("a/broken.png", "b/broken as well.png"):
        (tmp_path / "images" / name).write_bytes(b"broken")
    Image.new("RGB", (9, 9)).save(tmp_path / "images/b/flat.png")
    found = []
    for first, then in ((131_072, 131_072), (131_072, 15), (7, 15)):
        images = tmp_path / f"{len(found)}/images"
        shutil.copytree(tmp_path / "images", images)
        before = evaluated(images, first)
        change(images)
        found.append([before, evaluated(images, then)])
    assert found[0][0]["said"] == [41, 2, 41]
    assert all(each == found[0] for each in found)


def test_an_archive_that_is_larger_than_a_piece_is_read_once(tmp_path, home, monkeypatch):
    for name, numbers in {"a": range(2), "b": range(2, 30), "c": range(30, 33)}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for at in numbers:
                write_image(tmp_path / "images" / f"{at:03}.png", seed=at)
                archive.add(tmp_path / "images" / f"{at:03}.png", f"{at:03}.png")
    monkeypatch.setattr(pieces, "PIECE_ROWS", 5)
    source, read = open_source(f"{tmp_path}/*.tar"), []
    of_file = type(source)._read

    def noted(self, file, places):
        read.append((file.name, len(places)))
        return of_file(self, file, places)

    monkeypatch.setattr(type(source), "_read", noted)
    evaluation, _ = evaluate("tars", source, FakeEmbedder(), home.store, home.warehouse)
    assert evaluation.n_images == 33
    assert read == [("a.tar", 2), ("b.tar", 28), ("c.tar", 3)]


def test_an_index_that_is_deleted_while_it_is_read_costs_reading_only(home, monkeypatch, caplog):
    (home.images / "broken.png").write_bytes(b"broken")
    first, _ = score(home)
    of = Earlier.of

    def gone(self, images):
        shutil.rmtree(home.store.root / "indexes", ignore_errors=True)
        return of(self, images)

    monkeypatch.setattr(Earlier, "of", gone)
    again, embedded = score(home)
    assert embedded.n_new == 0
    assert again.diversity_score == first.diversity_score
    assert (again.n_images, again.n_failed) == (6, 1)
    assert "images are read again, since what was known of them is gone" in caplog.text


@pytest.mark.parametrize(
    ("slices", "names"),
    [
        (None, {"kinds/0", "kinds/1", "kinds/2", "kinds/3"}),
        (ColumnSlices(column="label"), {"(none)", "cat", "dog"}),
    ],
    ids=["folder", "column"],
)
@pytest.mark.parametrize("step", [1, 4], ids=["everything", "a_sample"])
def test_moments_do_not_depend_on_how_much_of_an_index_is_read_at_a_time(
    tmp_path, home, slices, names, step, monkeypatch
):
    rows = ["path,label"]
    for number in range(50):
        name = f"kinds/{number % 4}/{number:03}.png"
        write_image(tmp_path / name, seed=number)
        rows.append(f"{name},{['', 'cat', 'dog'][number % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    source = open_source(str(tmp_path / "labels.csv"))
    evaluate("dataset", source, FakeEmbedder(), home.store, home.warehouse)
    fingerprint = home.store.latest_manifest("dataset").fingerprint
    where = "dataset", "fake", fingerprint
    index = home.store.read_index(*where)
    part = index.table.take(list(range(0, 50, step)))
    home.store.write_index(*where, EmbeddingIndex(part))
    found = []
    for piece in (131_072, 1, 7, 49):
        monkeypatch.setattr(pieces, "PIECE_ROWS", piece)
        shutil.rmtree(home.store.root / "moments")
        accumulate_moments("dataset", "fake", fingerprint, home.store, slices=slices)
        found.append(moments_kept(home.store, where[2]))
    assert set(found[0]) == {"", *names}
    assert all(kept == found[0] for kept in found)


@pytest.mark.parametrize("folders", [1, 4])
def test_what_is_much_of_a_dataset_is_kept_however_its_index_is_read(home, folders, monkeypatch):
    shutil.rmtree(home.images)
    for number in range(60):
        seed = number if number % 3 else 999
        write_image(home.images / f"{number % folders}/{number:03}.png", seed=seed)
    score(home)
    where = "dataset", "fake", home.store.latest_manifest("dataset").fingerprint
    found = []
    for piece in (131_072, 1, 7):
        monkeypatch.setattr(pieces, "PIECE_ROWS", piece)
        shutil.rmtree(home.store.root / "moments")
        with monkeypatch.context() as patch:
            for module in ("store.contents", "workflows.moments"):
                patch.setattr(f"visdiv_assets.{module}.CAPACITY", 5)
            accumulate_moments("dataset", "fake", where[2], home.store, sampling_unit="folder")
        samples = [home.store.read_sample(*where), *home.store.read_slices(*where).values()]
        for sample in samples:
            kept = sample.everything
            assert kept.counts.max() == sample.moments.n // 3
            assert len(kept.units) == len(kept.rows)
        assert len(samples) == (1 if folders == 1 else 5)
        found.append(moments_kept(home.store, where[2]))
    assert all(kept == found[0] for kept in found)
    again = accumulate_moments("dataset", "fake", where[2], home.store, sampling_unit="folder")
    assert again.everything.counts.max() == 20


def test_an_image_that_changed_in_secret_is_noticed_when_all_are_read_again(home):
    before, _ = score(home)
    path = sorted(home.images.rglob("*.png"))[0]
    stat = path.stat()
    write_image(path, seed=77)
    path.write_bytes(path.read_bytes().ljust(stat.st_size, b"\0")[: stat.st_size])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    unnoticed, embedded = score(home)
    assert (unnoticed.diversity_score, embedded.n_new) == (before.diversity_score, 0)
    source = DirectorySource(home.images)
    arguments = "dataset", source, FakeEmbedder(), home.store, home.warehouse
    noticed, embedded = evaluate(*arguments, reread=True)
    assert embedded.n_new == 1
    assert noticed.diversity_score != before.diversity_score
    again, embedded = evaluate(*arguments, reread=True)
    assert (again.diversity_score, embedded.n_new) == (noticed.diversity_score, 0)


def test_moments_of_an_unchanged_dataset_are_not_summed_again(home, monkeypatch):
    score(home)
    read = count_rows(monkeypatch)
    score(home)
    assert sum(read) == 0


@pytest.mark.parametrize("slices", [None, ColumnSlices(column="label")], ids=["folder", "column"])
def test_moments_depend_on_no_time_of_a_file(home, slices, monkeypatch):
    score(home)
    fingerprint = home.store.latest_manifest("dataset").fingerprint
    accumulate_moments("dataset", "fake", fingerprint, home.store, slices=slices)
    [segment] = home.store.root.glob("embeddings/fake/*.npy")
    later = segment.stat().st_mtime_ns + 10**10
    os.utime(segment, ns=(later, later))  # as after a copy of the store
    read = count_rows(monkeypatch)
    accumulate_moments("dataset", "fake", fingerprint, home.store, slices=slices)
    assert sum(read) == 0


def test_moments_are_summed_anew_when_their_index_was_written_anew(home, monkeypatch):
    score(home)
    fingerprint = home.store.latest_manifest("dataset").fingerprint
    index = home.store.read_index("dataset", "fake", fingerprint)
    part = EmbeddingIndex(index.table.slice(0, 5))
    home.store.write_index("dataset", "fake", fingerprint, part)
    read = count_rows(monkeypatch)
    assert accumulate_moments("dataset", "fake", fingerprint, home.store).moments.n == 5
    assert sum(read) == 5


# --- one evaluation, one list of images ---


def sampled(home, precision=0.05):
    source = DirectorySource(home.images)
    return evaluate(
        "dataset", source, FakeEmbedder(), home.store, home.warehouse, precision=precision
    )


@pytest.fixture
def small_samples(monkeypatch):
    """Samples of 40 images, then of twice as many, whatever they are worth."""
    monkeypatch.setattr("visdiv_assets.workflows.evaluate.sample_sizes", lambda n: (40, 80, n))
    monkeypatch.setattr(
        "visdiv_assets.workflows.evaluate.precise_enough", lambda fair, precision: True
    )


def test_a_sample_leaves_what_is_known_of_all_images_alone(home, small_samples):
    write_images(home.images, 100)
    whole, _ = score(home)
    kept = home.store.read_index(*whole.where).table, home.store.read_moments(*whole.where).n
    part, embedded = sampled(home)
    assert (part.n_images, part.n_listed, part.is_sample, embedded.n_new) == (40, 100, True, 0)
    assert part.where != whole.where
    assert home.store.read_moments(*part.where).n == 40
    assert home.store.read_index(*part.where).n_images == 40
    assert home.store.read_index(*whole.where).table.equals(kept[0])
    assert home.store.read_moments(*whole.where).n == kept[1] == 100


def test_images_that_a_sample_left_out_are_not_read_again(home, small_samples):
    write_images(home.images, 100)
    score(home)
    sampled(home)
    source = WatchedSource(home.images)
    evaluate("dataset", source, FakeEmbedder(), home.store, home.warehouse)
    assert source.read_ids == []


def test_a_sample_of_a_dataset_that_is_small_is_all_of_it(home, small_samples, monkeypatch):
    monkeypatch.setattr("visdiv_assets.workflows.evaluate.sample_sizes", lambda n: (n,))
    whole, _ = score(home)
    part, _ = sampled(home)
    assert part.where == whole.where
    assert not part.is_sample


def test_two_overlapping_evaluations_of_a_changing_dataset_both_end_with_what_they_saw(home):
    source = DirectorySource(home.images)
    first = list_dataset("dataset", source, home.store)
    write_images(home.images / "new", 9)
    second, _ = score(home)
    embedded = embed_dataset("dataset", first, source, FakeEmbedder(), home.store, home.warehouse)
    accumulate_moments("dataset", "fake", first.fingerprint, home.store)
    late, _ = score_dataset(
        "dataset",
        "fake",
        first.fingerprint,
        home.store,
        home.warehouse,
        listed=first.fingerprint,
        started=0,
    )
    assert (second.n_images, late.n_images, embedded.n_new) == (15, 6, 0)
    assert late.n_listed == 6


def test_what_was_listed_is_the_latest_only_once_it_is_scored(home):
    score(home)
    before = home.store.latest_fingerprint("dataset")
    write_images(home.images / "new", 2)
    listed = list_dataset("dataset", DirectorySource(home.images), home.store)
    assert listed.fingerprint != before[0]
    assert home.store.latest_fingerprint("dataset") == before


class Broken(FakeEmbedder):
    """Overflows at one image, as a model in half precision may."""

    def embed(self, pixels):
        vectors = super().embed(pixels)
        vectors[0] = float("inf")
        return vectors


def test_a_failure_of_one_model_is_not_inherited_by_another(home):
    source = DirectorySource(home.images)
    broken = Broken("half", batch_size=6)
    first, _ = evaluate("dataset", source, broken, home.store, home.warehouse)
    other, _ = evaluate("dataset", source, FakeEmbedder(), home.store, home.warehouse)
    assert (first.n_failed, other.n_failed) == (1, 0)


def test_pictures_of_one_flat_colour_are_counted(home):
    for name in ("grey", "white"):
        Image.new("RGB", (40, 30), name).save(home.images / f"{name}.png")
    evaluation, embedded = score(home)
    assert evaluation.n_flat == 2
    assert embedded.index.flat() == ["grey.png", "white.png"]
    again, embedded = score(home)
    assert (again.n_flat, embedded.n_new) == (2, 0)
    assert home.warehouse.history("dataset")[-1].n_flat == 2
    verdict = judge_dataset("dataset", 0.3, home.store, home.warehouse)["flat_images"]
    assert not verdict.passed
    assert "2 of 8 pictures" in verdict.text


def test_a_disk_that_is_full_once_the_evaluation_is_recorded_does_not_make_it_a_failure(
    home, monkeypatch, caplog
):
    def full(self, dataset, fingerprint):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "name_latest", full)
    evaluation, _ = score(home)
    assert home.warehouse.history("dataset") == [evaluation]
    assert "cannot be noted (No space left on device)" in caplog.text
    assert home.store.latest_fingerprint("dataset") is None  # so it is asked for again
