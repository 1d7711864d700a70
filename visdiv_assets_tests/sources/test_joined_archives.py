"""Archives that were concatenated, appended to, updated or damaged: every member, or an error."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile

import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources import tar
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source

UNPACKED = {"a.jpg": b"old" * 200, "b.jpg": b"b" * 512, "c/d.jpg": b"d"}
LATER = {"e.jpg": b"e" * 1024, "a.jpg": b"newer"}
BOTH = {**UNPACKED, **LATER}
REPLACED = "members replaced by later ones of the same name: 1"


def tar_of(members, **options):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", **options) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def zip_of(members, packing=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def read(path, *, fresh=False):
    """What is listed and read; `fresh`: by another process, which has not listed the archive."""
    source = open_source(str(path))
    manifest = list_images(source)
    ids = manifest.table["image_id"].to_pylist()
    sizes = dict(zip(ids, manifest.table["size"].to_pylist(), strict=True))
    if fresh:
        tar._repeated.clear()
        source = open_source(str(path))
    reads = {ids[at]: data for at, data in source.read_all(ids)}
    assert all(isinstance(data, OSError) or len(data) == sizes[at] for at, data in reads.items())
    return {image_id.partition("#")[2]: data for image_id, data in reads.items()}, manifest.notes


PACKERS = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", PACKERS)
def test_tars_one_after_the_other_are_one(tmp_path, kind, fresh):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(PACKERS[kind](tar_of(UNPACKED)) + PACKERS[kind](tar_of(LATER)))
    assert read(path, fresh=fresh) == (BOTH, (REPLACED,))


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz"])
def test_a_tar_packed_in_several_streams_is_read_whole(tmp_path, kind):
    whole = tar_of(UNPACKED)
    parts = [whole[start : start + 700] for start in range(0, len(whole), 700)]
    (tmp_path / f"x.{kind}").write_bytes(b"".join(map(PACKERS[kind], parts)))
    assert read(tmp_path / f"x.{kind}") == (UNPACKED, ())


@pytest.mark.parametrize("pack", list(PACKERS.values())[1:])
def test_a_packed_tar_that_is_named_like_another_is_read(tmp_path, pack):
    (tmp_path / "x.tar").write_bytes(pack(tar_of(UNPACKED)))
    assert read(tmp_path / "x.tar") == (UNPACKED, ())


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
@pytest.mark.parametrize("option", ["-A", "-r"])
def test_a_tar_that_tar_added_to_is_read_as_tar_extracts_it(tmp_path, option):
    (tmp_path / "x.tar").write_bytes(tar_of(UNPACKED))
    if option == "-A":
        (tmp_path / "y.tar").write_bytes(tar_of(LATER))
        added = ["y.tar"]
    else:
        for name, data in LATER.items():
            (tmp_path / name).write_bytes(data)
        added = list(LATER)
    subprocess.run(["tar", "-f", "x.tar", option, *added], cwd=tmp_path, check=True)
    reads, notes = read(tmp_path / "x.tar")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", "../x.tar"], cwd=tmp_path / "out", check=True)
    assert reads == {name: (tmp_path / "out" / name).read_bytes() for name in BOTH}
    assert notes == (REPLACED,)


@pytest.mark.parametrize("times", [2, 5])
def test_of_several_members_of_a_tar_with_one_name_the_last_counts(tmp_path, times):
    parts = [tar_of({"a.jpg": str(number).encode()}) for number in range(times)]
    (tmp_path / "x.tar").write_bytes(b"".join(parts))
    reads, notes = read(tmp_path / "x.tar")
    assert reads == {"a.jpg": str(times - 1).encode()}
    assert notes == (f"members replaced by later ones of the same name: {times - 1}",)


def test_labels_of_a_sample_that_occurs_again_are_those_of_the_last(tmp_path):
    parts = [tar_of({"a.jpg": data, "a.cls": data}) for data in (b"1", b"2")]
    (tmp_path / "x.tar").write_bytes(b"".join(parts))
    manifest = list_images(open_source(str(tmp_path / "x.tar")))
    assert manifest.table["metadata"].to_pylist() == [[("cls", "2")]]


def test_a_damaged_header_in_a_tar_is_no_end(tmp_path):
    whole = bytearray(tar_of(UNPACKED))
    at = whole.index(b"b.jpg")
    whole[at] ^= 1
    (tmp_path / "x.tar").write_bytes(whole)
    with pytest.raises(VisdivError, match=r"x\.tar: .*no header"):
        read(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", PACKERS)
def test_a_second_tar_that_is_cut_off_is_refused(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    later = PACKERS[kind](tar_of(LATER, format=tarfile.USTAR_FORMAT)[:1024])
    path.write_bytes(PACKERS[kind](tar_of(UNPACKED)) + later)
    with pytest.raises(VisdivError, match=f"x.{kind}: "):
        read(path)


def test_links_to_images_in_a_tar_are_told(tmp_path):
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(link)
    (tmp_path / "x.tar").write_bytes(tar_of(UNPACKED) + content.getvalue())
    assert read(tmp_path / "x.tar") == (
        UNPACKED,
        ("links to images, which are not followed: 1",),
    )


def test_zips_one_after_the_other_are_one(tmp_path):
    parts = [zip_of(UNPACKED), zip_of({"f.jpg": b"f"}, zipfile.ZIP_STORED), zip_of(LATER)]
    (tmp_path / "x.zip").write_bytes(b"".join(parts))
    assert read(tmp_path / "x.zip") == ({**BOTH, "f.jpg": b"f"}, (REPLACED,))


@pytest.mark.parametrize("before", [b"#!/bin/sh\nexit\n", b"\0" * 5000])
def test_a_zip_after_other_data_is_read(tmp_path, before):
    (tmp_path / "x.zip").write_bytes(before + zip_of(UNPACKED))
    assert read(tmp_path / "x.zip") == (UNPACKED, ())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_was_appended_to_has_the_last_of_each_name(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(zip_of(UNPACKED))
    with zipfile.ZipFile(path, "a") as archive:
        for name, data in LATER.items():
            archive.writestr(name, data)
    assert read(path) == (BOTH, (REPLACED,))


def test_the_rest_of_a_zip_before_another_is_told(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of(UNPACKED)[:-40] + zip_of(LATER))
    reads, notes = read(tmp_path / "x.zip")
    assert reads == LATER
    assert notes == ("parts at the start of a file that no directory lists: 1",)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_an_archive_below_a_folder_with_signs_of_globs_in_its_name_is_read(tmp_path, name):
    folder = tmp_path / "[2024] x" / "what?"
    folder.mkdir(parents=True)
    make = zip_of if name.endswith("zip") else tar_of
    for each in (name, f"[1] {name}"):
        (folder / each).write_bytes(make(UNPACKED))
        assert read(folder / each) == (UNPACKED, ())
    assert len(list_images(open_source(f"{folder}/*{name}"))) == 2 * len(UNPACKED)
