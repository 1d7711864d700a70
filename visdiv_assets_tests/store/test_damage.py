"""Files of a store that are not what was written: they count as absent, nothing else is lost."""

import errno
import io
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.files import DamagedError, writing
from visdiv_assets.store.segments import to_grid
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_images


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path):
    path.write_bytes(b"")


def zero(path):
    path.write_bytes(bytes(len(path.read_bytes())))


def zero_the_middle(path):
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)


def delete(path):
    path.unlink()


DAMAGES = [cut, zero_the_middle, delete]


@pytest.fixture
def home(tmp_path, place):
    """A folder with two slices, evaluated."""
    for name in "ab":
        write_images(tmp_path / f"images/{name}", 6 if name == "a" else 9)
    source = DirectorySource(tmp_path / "images")
    warehouse = Warehouse(tmp_path / "results/visdiv.duckdb")

    def score():
        return evaluate("dataset", source, FakeEmbedder(), place.store(), warehouse)

    return place, score


def only(place, pattern):
    [path] = place.root.glob(pattern)
    return path


FILES = [
    "manifests/dataset/latest",
    "manifests/dataset/*.parquet",
    "embeddings/fake/*.npy",
    "embeddings/fake/*.parquet",
    "indexes/dataset/fake/*.parquet",
    "moments/dataset/fake/*.npz",
    "moments/dataset/fake/*.slices",
]


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_next_evaluation_makes_a_damaged_file_again(home, pattern, damage):
    place, score = home
    before, _ = score()
    damage(only(place, pattern))
    after, _ = score()
    for name in ("n_images", "n_failed", "diversity_score", "corrected_score", "n_listed"):
        assert getattr(after, name) == getattr(before, name), name
    assert place.store().latest_manifest("dataset").fingerprint == before.manifest_fingerprint
    assert set(place.store().read_slices(*after.where)) == {"a", "b"}
    assert place.store().read_index(*after.where).n_images == 15


@pytest.mark.parametrize("damage", [empty, zero, zero_the_middle])
@pytest.mark.parametrize(
    ("pattern", "read"),
    [
        (
            "manifests/dataset/*.parquet",
            lambda store, where: store.read_manifest(*where[::2]),
        ),
        (
            "embeddings/fake/*.npy",
            lambda store, where: store.rows("fake", *store.segment_names("fake")),
        ),
        ("indexes/dataset/fake/*.parquet", lambda store, where: store.read_index(*where)),
        ("moments/dataset/fake/*.npz", lambda store, where: store.read_sample(*where)),
        ("moments/dataset/fake/*.slices", lambda store, where: store.read_slices(*where)),
    ],
)
def test_who_reads_a_damaged_file_is_told_what_to_run(home, pattern, read, damage):
    place, score = home
    evaluation, _ = score()
    damage(only(place, pattern))
    with pytest.raises(DamagedError, match=r"damaged.*run `visdiv score"):
        read(place.store(), evaluation.where)


def test_slices_that_are_gone_are_missed(home):
    place, score = home
    evaluation, _ = score()
    delete(only(place, "moments/dataset/fake/*.slices"))
    with pytest.raises(DamagedError, match=r"missing; run `visdiv score dataset`"):
        place.store().read_slices(*evaluation.where)


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "of_an_older_version"])
def test_zeroed_rows_change_no_score(home, checksums):
    place, score = home
    before, _ = score()
    path = only(place, "embeddings/fake/*.npy")
    if not checksums:
        keys, file = path.with_suffix(".parquet"), io.BytesIO()
        table = pq.read_table(io.BytesIO(keys.read_bytes()))
        writing(table.select(["content_key"]).replace_schema_metadata())(file)
        keys.write_bytes(file.getvalue())
    rows, file = np.load(io.BytesIO(path.read_bytes())), io.BytesIO()
    rows[3:5] = 0
    np.save(file, rows)
    path.write_bytes(file.getvalue())
    after, embedded = score()
    assert embedded.n_new == 9  # contents: the images of one slice are in the other
    assert after.corrected_score == before.corrected_score
    assert after.diversity_score == before.diversity_score


def test_one_bit_of_one_row_is_noticed(home):
    place, score = home
    score()
    path = only(place, "embeddings/fake/*.npy")
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    assert place.store().retire_damaged("fake", place.store().segment_names("fake")) == 1
    assert place.store().segment_names("fake") == []
    assert len(list(path.parent.glob(".damaged-*"))) == 2  # kept, out of use


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM, errno.EIO])
def test_what_the_system_refuses_is_no_damage(home, number, monkeypatch):
    place, score = home
    score()
    store, local = place.store(), place.store().objects.local

    def refuse(objects, name, **options):
        if name.endswith(".parquet"):
            raise OSError(number, os.strerror(number))
        return local(name, **options)

    names = store.segment_names("fake")
    for path in place.root.glob("embeddings/fake/.keys/*"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(type(store.objects), "local", refuse)
        with pytest.raises(OSError, match=os.strerror(number)):
            store.segment_keys("fake", *names)
        with pytest.raises(OSError, match=os.strerror(number)):
            store.key_index("fake")
    assert len(store.key_index("fake")) == 9


def test_a_folder_in_place_of_a_file_is_damage(home):
    place, score = home
    if place.kind == "bucket":
        pytest.skip("buckets have no folders")
    evaluation, _ = score()
    path = only(place, "indexes/dataset/fake/*.parquet")
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedError, match="damaged"):
        place.store().read_index(*evaluation.where)
    again, _ = score()
    assert place.store().read_index(*again.where).n_images == 15


def test_rows_on_the_grid_keep_their_checksum(home):
    """What is adopted from an older model id is rounded twice, to the same bits."""
    rows = to_grid(np.random.default_rng(0).uniform(-1, 1, (7, 5)).astype(np.float32))
    assert to_grid(rows.astype(np.float32)).tobytes() == rows.tobytes()


def test_what_a_killed_process_left_is_removed_after_a_day(home):
    place, score = home
    if place.kind == "bucket":
        pytest.skip("in a bucket, nothing is left of what was not written to its end")
    score()
    old, new = (place.root / f"embeddings/fake/.tmp-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    score()
    assert (old.exists(), new.exists()) == (False, True)
