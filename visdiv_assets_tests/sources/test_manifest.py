"""Manifests: the same images give the same fingerprint, and no others do."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import SCHEMA, TEXT, Manifest, list_images
from visdiv_assets.sources.source import Item, Read


class ListSource:
    """A source that lists what it was given, in that order."""

    uri = "list"

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def items(self) -> Iterator[Item]:
        yield from self._items

    def fingerprint(self) -> None:
        return

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        raise NotImplementedError


# Few characters, so that different lists look alike: what separates columns and rows is among them.
awkward = st.text(st.sampled_from("a1\t\n\\\0é"), max_size=5)
images = st.lists(
    st.builds(Item, awkward, st.integers(0, 12), awkward),
    unique_by=lambda item: item.image_id,
    max_size=4,
)


def fingerprint(items: Sequence[Item]) -> str:
    return list_images(ListSource(items)).fingerprint


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "deep/c.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"


def look(folder: Path) -> str:
    return list_images(DirectorySource(folder)).fingerprint


def test_a_manifest_has_one_row_an_image_sorted_by_id(photos):
    manifest = list_images(DirectorySource(photos))
    assert manifest.table.schema == SCHEMA
    assert manifest.table["image_id"].to_pylist() == ["a.jpg", "b.jpg", "deep/c.jpg"]
    assert manifest.table["size"].to_pylist() == [5, 5, 10]
    assert len(manifest) == 3
    assert manifest.total_bytes == 20


def test_two_looks_at_the_same_images_give_the_same_fingerprint(photos):
    assert look(photos) == look(photos)


def test_fingerprints_are_128_bits_in_hex_and_do_not_change_with_time():
    assert fingerprint([Item("a.jpg", 5, "ff")]) == "de210b0e9a3f15df6b9f9528b3956265"


def test_a_fingerprint_is_of_the_images_and_not_of_where_they_are(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")  # with the times of change
    assert look(tmp_path / "copy") == look(photos)


def add(photos: Path) -> None:
    (photos / "new.jpg").touch()


def remove(photos: Path) -> None:
    (photos / "a.jpg").unlink()


def rename(photos: Path) -> None:
    (photos / "a.jpg").rename(photos / "z.jpg")


def move(photos: Path) -> None:
    (photos / "a.jpg").rename(photos / "deep/a.jpg")


def swap(photos: Path) -> None:
    (photos / "a.jpg").rename(photos / "x")
    (photos / "b.jpg").rename(photos / "a.jpg")
    (photos / "x").rename(photos / "b.jpg")


def touch(photos: Path) -> None:
    os.utime(photos / "a.jpg", ns=(0, 1))


def resize(photos: Path) -> None:
    before = (photos / "a.jpg").stat()
    with (photos / "a.jpg").open("ab") as file:
        file.write(b"more")
    os.utime(photos / "a.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [add, remove, rename, move, swap, touch, resize])
def test_a_fingerprint_changes_when_a_file_does(photos, change):
    os.utime(photos / "b.jpg", ns=(0, 2))  # files written at once may have one time of change
    before = look(photos)
    change(photos)
    assert look(photos) != before


def test_a_fingerprint_comes_back_when_a_change_is_undone(photos):
    before = look(photos)
    rename(photos)
    (photos / "z.jpg").rename(photos / "a.jpg")
    assert look(photos) == before


def test_what_is_no_image_does_not_count(photos):
    before = look(photos)
    (photos / "notes.txt").touch()
    (photos / ".hidden.jpg").touch()
    assert look(photos) == before


@given(images, st.randoms(use_true_random=False))
def test_the_order_of_listing_does_not_matter(items, random):
    shuffled = random.sample(items, len(items))
    manifest, other = (list_images(ListSource(order)) for order in (items, shuffled))
    assert manifest.table.equals(other.table)
    assert manifest.fingerprint == other.fingerprint


@given(images, images)
def test_different_images_never_share_a_fingerprint_whatever_their_names_hold(some, others):
    same = sorted(some) == sorted(others)
    assert (fingerprint(some) == fingerprint(others)) == same


def test_tabs_and_line_breaks_in_a_name_cannot_fake_another_manifest():
    two = [Item("a", 1, "x"), Item("b", 2, "y")]
    one = [Item("a\t1\tx\n1\tb", 2, "y")]
    assert fingerprint(one) != fingerprint(two)


@given(images)
def test_a_manifest_made_of_its_own_table_is_the_same(items):
    manifest = list_images(ListSource(items))
    assert Manifest.of(manifest.table).fingerprint == manifest.fingerprint


def hash_with_32_bit_lengths(items: Sequence[Item]) -> str:
    """The fingerprint as it was when columns of text had offsets of 32 bits."""
    rows = sorted(items)
    digest = hashlib.blake2b(str(len(rows)).encode(), digest_size=16)
    for texts in ([row.image_id.encode() for row in rows], [row.version.encode() for row in rows]):
        digest.update(np.array([len(text) for text in texts], np.int32).tobytes())
        digest.update(b"".join(texts))
    digest.update(np.array([row.size for row in rows], np.int64).tobytes())
    if any(row.metadata for row in rows):
        for row in rows:
            told = None if row.metadata is None else list(row.metadata.items())
            digest.update(repr(told).encode())
    return digest.hexdigest()


@given(images)
def test_a_fingerprint_does_not_depend_on_how_columns_hold_their_text(items):
    columns = [[getattr(item, name) for item in items] for name in ("image_id", "size", "version")]
    said = [None if item.metadata is None else list(item.metadata.items()) for item in items]
    said = said if any(said) else [None] * len(items)
    columns = [*map(pa.array, columns), pa.array(said, pa.map_(pa.string(), pa.string()))]
    table = pa.table(columns, names=SCHEMA.names)
    assert Manifest.of(table).fingerprint == fingerprint(items) == hash_with_32_bit_lengths(items)


def test_ids_and_versions_may_be_longer_together_than_2_gib():
    manifest = list_images(ListSource([Item("b", 1, "x", {"label": "cat"}), Item("a", 2, "y")]))
    for listed in (manifest, manifest.sample(np.array([1]))):
        assert listed.table.schema == SCHEMA
        types = [listed.table[name].type for name in ("image_id", "version", "metadata")]
        assert types == [TEXT, TEXT, pa.map_(TEXT, TEXT)]
    assert pa.types.is_large_string(TEXT)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf_8_are_listed_visibly(tmp_path):
    for name in (b"\xff.jpg", b"caf\xe9.jpg", "café.jpg".encode()):
        (tmp_path / os.fsdecode(name)).touch()
    names = list_images(DirectorySource(tmp_path)).table["image_id"].to_pylist()
    assert names == sorted([r"\xff.jpg", r"caf\xe9.jpg", "café.jpg"])


def test_twenty_thousand_files_are_listed(tmp_path):
    for number in range(20_000):
        (tmp_path / f"{number:05}.jpg").touch()
    manifest = list_images(DirectorySource(tmp_path))
    assert len(manifest) == 20_000
    assert manifest.total_bytes == 0


def test_a_table_without_rows_is_a_manifest_of_nothing():
    manifest = Manifest.of(SCHEMA.empty_table())
    assert len(manifest) == 0
    assert manifest.total_bytes == 0


def test_columns_that_a_manifest_does_not_know_are_left_out():
    columns = {"version": ["ff"], "image_id": ["a.jpg"], "size": [5], "metadata": [None]}
    table = pa.table({**columns, "extra": [1]})
    assert Manifest.of(table).fingerprint == fingerprint([Item("a.jpg", 5, "ff")])
