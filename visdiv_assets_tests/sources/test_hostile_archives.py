"""Archives and lists made to do harm, or damaged: refused, or one failure; nothing gets out."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.source import to_image_id
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image
from visdiv_assets_tests.sources.servers import http_server

# What zipfile cannot write as it is: it would cut or turn these.
NAMES = [
    "../../x.jpg",
    "/etc/x.jpg",
    "//host/x.jpg",
    "a/../../../x.jpg",
    "C:\\x.jpg",
    "up\\..\\..\\x.jpg",
    "line\nbreak.jpg",
    "a#b#c.jpg",
    "<script>|x.jpg",
    "'); DROP TABLE failures; --.jpg",
    "x.jpg",
    "X.jpg",
    "~/x.jpg",
    "-rf.jpg",
    "\x1b[31mred.jpg",
]


@pytest.fixture(autouse=True)
def guarded(tmp_path, monkeypatch):
    """The tests' own folder for archives, and an empty current one in which nothing may appear."""
    (tmp_path / "cwd/deep").mkdir(parents=True)
    (tmp_path / "archives").mkdir()
    monkeypatch.chdir(tmp_path / "cwd/deep")
    before = snapshot(tmp_path / "cwd")
    yield
    assert snapshot(tmp_path / "cwd") == before


def snapshot(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "archives"


@pytest.fixture(scope="session")
def png(tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "x.png"
    write_image(path, 0)
    return path.read_bytes()


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def write_tar(path, members, mode="w", **options):
    """Members are a name and bytes, or a finished TarInfo."""
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


WRITERS = {"zip": write_zip, "tar": write_tar}


def read_all(source, root=None):
    """What listing and reading give, by id; nothing is written beside the archive."""
    source = open_source(SourceSettings(uri=str(source), root=root))
    path = Path(source.uri)
    before = snapshot(path.parent) if path.parent.is_dir() else None
    ids = list_images(source).table["image_id"].to_pylist()
    reads = {ids[at]: data for at, data in source.read_all(ids)}
    assert sorted(reads) == ids
    if before is not None:
        assert snapshot(path.parent) == before
    return reads


def failure(data):
    assert isinstance(data, OSError), data
    return str(data)


# --- names ---


@pytest.mark.parametrize("kind", WRITERS)
def test_no_name_of_a_member_leads_anywhere(folder, kind):
    path = WRITERS[kind](folder / f"x.{kind}", [(name, name.encode()) for name in NAMES])
    reads = read_all(path)
    assert reads == {f"x.{kind}#{to_image_id(name)}": name.encode() for name in NAMES}


def test_a_zip_member_with_a_nul_in_its_name_is_read_under_the_part_before_it(folder):
    path = write_zip(folder / "x.zip", [("ab.jpg_cd.jpg", b"content")])
    path.write_bytes(path.read_bytes().replace(b"ab.jpg_", b"ab.jpg\0"))
    assert list(read_all(path)) == ["x.zip#ab.jpg"]


def test_a_tar_member_with_a_nul_in_its_name_is_read_or_a_failure(folder):
    member = tarfile.TarInfo("short.jpg")
    member.pax_headers = {"path": "a\0b.jpg"}
    reads = read_all(write_tar(folder / "x.tar", [(member, b"content")]))
    assert list(reads.values()) == [b"content"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_is_one_image(folder, kind):
    path = WRITERS[kind](folder / f"x.{kind}", [("a.jpg", b"one"), ("a.jpg", b"other")])
    [data] = read_all(path).values()
    assert data in (b"one", b"other")


@pytest.mark.parametrize("kind", WRITERS)
def test_names_that_differ_in_case_only_are_two_images(folder, kind):
    path = WRITERS[kind](folder / f"x.{kind}", [("a.jpg", b"one"), ("A.jpg", b"two")])
    assert sorted(read_all(path).values()) == [b"one", b"two"]


# --- members that are no files ---

KINDS = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "real.jpg"])
def test_links_devices_and_folders_in_a_tar_are_no_images(folder, kind, target):
    member = tarfile.TarInfo("link.jpg")
    member.type, member.linkname = KINDS[kind], target
    path = write_tar(folder / "x.tar", [(member, b""), ("real.jpg", b"real")])
    assert read_all(path) == {"x.tar#real.jpg": b"real"}


def test_a_link_in_a_zip_is_the_text_that_it_holds(folder):
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    path = write_zip(folder / "x.zip", [(link, "/etc/passwd")])
    assert read_all(path) == {"x.zip#link.jpg": b"/etc/passwd"}


@pytest.mark.parametrize("kind", WRITERS)
def test_archives_in_archives_are_not_opened(folder, kind):
    write = WRITERS[kind]
    inner = write(folder / f"inner.{kind}", [("x.jpg", b"inner")]).read_bytes()
    members = [("inner.zip", inner), ("inner.tar", inner), ("real.jpg", b"real")]
    assert read_all(write(folder / f"x.{kind}", members)) == {f"x.{kind}#real.jpg": b"real"}
    with pytest.raises(VisdivError, match="there are no images in"):
        read_all(write(folder / f"y.{kind}", members[:2]))


# --- damage ---


def test_an_encrypted_member_is_a_failure(folder):
    path = write_zip(folder / "x.zip", [("a.jpg", b"secret"), ("b.jpg", b"plain")])
    content = bytearray(path.read_bytes())
    content[6] |= 1  # in the member's own header, and in the list at the end
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    reads = read_all(path)
    assert reads["x.zip#b.jpg"] == b"plain"
    assert "encrypted" in failure(reads["x.zip#a.jpg"])


def test_a_wrong_checksum_is_a_failure(folder):
    path = write_zip(folder / "x.zip", [("a.jpg", b"original"), ("b.jpg", b"plain")])
    path.write_bytes(path.read_bytes().replace(b"original", b"0riginal"))
    reads = read_all(path)
    assert reads["x.zip#b.jpg"] == b"plain"
    assert "Bad CRC-32" in failure(reads["x.zip#a.jpg"])


def test_a_packing_that_is_not_known_is_a_failure(folder):
    path = write_zip(folder / "x.zip", [("a.jpg", b"one"), ("b.jpg", b"plain")])
    content = bytearray(path.read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 99
    path.write_bytes(content)
    reads = read_all(path)
    assert reads["x.zip#b.jpg"] == b"plain"
    assert "NotImplementedError" in failure(reads["x.zip#a.jpg"])


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packed_data_that_is_damaged_is_a_failure(folder, packing):
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a.jpg", bytes(range(256)) * 40)
        archive.writestr("b.jpg", b"plain", zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[45:90] = bytes(45)
    path.write_bytes(content)
    reads = read_all(path)
    assert reads["x.zip#b.jpg"] == b"plain"
    assert failure(reads["x.zip#a.jpg"])


def rows(count=40):
    return pa.table({"image": [os.urandom(1000) for _ in range(count)]})


def parquet(path):
    pq.write_table(rows(), path, row_group_size=4)
    return path


def arrow_file(path):
    with pa.ipc.new_file(str(path), rows().schema) as file:
        file.write_table(rows(), max_chunksize=4)
    return path


def arrow_stream(path):
    with pa.ipc.new_stream(str(path), rows().schema) as file:
        file.write_table(rows(), max_chunksize=4)
    return path


def images(count=40):
    return [(f"{number:03}.jpg", os.urandom(1000)) for number in range(count)]


WHOLE = {
    "x.zip": lambda path: write_zip(path, images()),
    "x.tar": lambda path: write_tar(path, images()),
    "x.tar.gz": lambda path: write_tar(path, images(), "w:gz"),
    "x.tar.bz2": lambda path: write_tar(path, images(), "w:bz2"),
    "x.tar.xz": lambda path: write_tar(path, images(), "w:xz"),
    "x.parquet": parquet,
    "x.arrow": arrow_file,
    "y.arrow": arrow_stream,
}


@pytest.mark.parametrize("part", [0.0, 0.001, 0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_cut_off_is_refused_by_name(folder, name, part):
    path = WHOLE[name](folder / name)
    whole = path.read_bytes()
    assert len(read_all(path)) == 40
    path.write_bytes(whole[: int(part * len(whole))])
    try:
        assert len(read_all(path)) == 40  # nothing is missing but zeros at the end of a tar
    except VisdivError as error:
        assert f"/{name}" in str(error)  # noqa: PT017


@pytest.mark.parametrize("blocks", range(1, 12))
def test_a_tar_cut_off_between_two_members_is_refused(folder, blocks):
    path = write_tar(folder / "x.tar", images())
    path.write_bytes(path.read_bytes()[: blocks * tarfile.BLOCKSIZE])
    with pytest.raises(VisdivError, match=r"/x\.tar: .*unexpected end of data"):
        read_all(path)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_cut_off_since_it_was_listed_is_failures(folder, name):
    path = WHOLE[name](folder / name)
    source = open_source(str(path))
    ids = list_images(source).table["image_id"].to_pylist()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reads = dict(source.read_all(ids))
    assert len(reads) == 40
    assert any(isinstance(data, OSError) for data in reads.values())
    assert all(isinstance(data, OSError) or len(data) == 1000 for data in reads.values())


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_gone_since_it_was_listed_is_failures(folder, name):
    path = WHOLE[name](folder / name)
    source = open_source(str(path))
    ids = list_images(source).table["image_id"].to_pylist()
    path.unlink()
    assert all(isinstance(data, OSError) for _, data in source.read_all(ids))


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_of_another_kind_is_refused_by_name(folder, name):
    (folder / name).write_bytes(b"I am a text and not what my name says.\n" * 100)
    with pytest.raises(VisdivError, match=f"/{name}"):
        read_all(folder / name)


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_table_without_images_is_refused_by_name(folder, name):
    table = pa.table({"a": [1]})
    if name == "x.parquet":
        pq.write_table(table, folder / name)
    else:
        with pa.ipc.new_file(str(folder / name), table.schema) as file:
            file.write_table(table)
    with pytest.raises(
        VisdivError, match=f"/{name}.*no column holds encoded images; there are the columns 'a'"
    ):
        read_all(folder / name)


# --- too large ---

LIMIT = 1000


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr("visdiv_assets.sources.source.MAX_IMAGE_BYTES", LIMIT)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_member_that_unpacks_to_more_than_an_image_is_a_failure(folder, small_limit, kind):
    path = folder / f"x.{kind}"
    members = [("bomb.jpg", bytes(50_000)), ("exact.jpg", bytes(LIMIT))]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members:
                archive.writestr(name, data)
    else:
        write_tar(path, members, "w" if kind == "tar" else "w:gz")
    reads = read_all(path)
    assert reads[f"x.{kind}#exact.jpg"] == bytes(LIMIT)
    assert failure(reads[f"x.{kind}#bomb.jpg"]) == f"larger than {LIMIT:,} bytes"


def test_a_size_that_a_zip_lies_about_is_not_believed(folder, small_limit):
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(50_000))
    told = (50_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(told, (10).to_bytes(4, "little")))
    assert failure(read_all(path)["x.zip#bomb.jpg"])


def test_a_large_file_beside_an_image_is_left_alone(folder):
    members = [("a.jpg", b"one"), ("a.txt", b"x" * 100_000), ("a.cls", b"7")]
    path = write_tar(folder / "x.tar", members)
    [item] = open_source(str(path)).items()
    assert item.metadata == {"cls": "7"}


@pytest.mark.parametrize(
    "text",
    [b"[" * 60_000, b'{"a":' * 12_000, b"{", b"\xff\xfe", b'"text"', b'{"a": NaN}', b"1e999"],
)
def test_a_damaged_label_is_no_label(folder, text):
    path = write_tar(folder / "x.tar", [("a.jpg", b"one"), ("a.json", text)])
    [item] = open_source(str(path)).items()
    assert not item.metadata


# --- lists ---


@pytest.fixture
def outside(tmp_path):
    """A file that no list may reach, beside the folder that lists are relative to."""
    path = tmp_path / "outside.jpg"
    path.write_bytes(b"OUTSIDE")
    return path


def entries_of(outside):
    return [
        "inside.jpg",
        "../outside.jpg",
        "deep/../../outside.jpg",
        str(outside),
        "../../../../../../../../../../etc/passwd",
        "/etc/passwd",
        "https://elsewhere.invalid/x.jpg",
        f"file://{outside}",
        "s3://bucket/x.jpg",
        "folder.jpg",
        "pipe.jpg",
        "gone.jpg",
        "/dev/zero",
        "a\tb.jpg",
    ]


def write_list(path, entries):
    kind = path.suffix
    if kind == ".txt":
        path.write_text("\n".join(entries))
    elif kind == ".csv":
        path.write_text("path,label\n" + "".join(f'"{entry}",x\n' for entry in entries))
    elif kind == ".jsonl":
        path.write_text("\n".join(json.dumps({"path": entry}) for entry in entries))
    else:
        images = [{"id": at, "file_name": entry} for at, entry in enumerate(entries)]
        path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return path


LISTS = ["list.txt", "list.csv", "list.jsonl", "list.json"]


@pytest.mark.parametrize("name", LISTS)
def test_entries_of_a_list_lead_nowhere_else(folder, outside, name):
    (folder / "inside.jpg").write_bytes(b"inside")
    (folder / "deep").mkdir()
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    reads = read_all(write_list(folder / name, entries_of(outside)))
    assert reads.pop("inside.jpg") == b"inside"
    assert len(reads) == 12  # two entries mean the same file outside
    for image_id, data in reads.items():
        assert failure(data), image_id


@pytest.mark.parametrize("name", LISTS)
def test_entries_of_a_list_on_the_web_lead_nowhere_else(tmp_path, outside, name):
    (tmp_path / "served").mkdir()
    (tmp_path / "served/inside.jpg").write_bytes(b"inside")
    write_list(
        tmp_path / "served" / name,
        ["inside.jpg", "../outside.jpg", "%2e%2e/outside.jpg", "deep/../../outside.jpg"],
    )
    with http_server(tmp_path) as address:
        reads = read_all(f"{address}/served/{name}")
    assert reads.pop("inside.jpg") == b"inside"
    for image_id, data in reads.items():
        assert failure(data), image_id


def test_a_link_that_a_person_made_below_the_root_is_followed(folder, outside):
    (folder / "link.jpg").symlink_to(outside)
    assert read_all(write_list(folder / "list.txt", ["link.jpg"])) == {"link.jpg": b"OUTSIDE"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        "\ufeff",
        "a,b\n",
        "a,b\nx,y\n",
        "path\n",
        '"',
        "path\n\0\n",
        "path\n" + "x" * 200_000,
    ],
)
def test_a_list_in_csv_without_images_is_refused_or_is_failures(folder, content):
    path = folder / "list.csv"
    path.write_text(content)
    try:
        reads = read_all(path)
    except VisdivError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert all(failure(data) for data in reads.values())


def test_everything_hostile_ends_as_rows_of_the_failures_table(folder, outside, png, tmp_path):
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(png + name.encode())
    entries = [*entries_of(outside)[1:], "a.png", "b.png"]
    path = write_list(folder / "list.jsonl", entries)
    warehouse = Warehouse(tmp_path / "store/visdiv.duckdb")
    store = Store(tmp_path / "store")
    evaluation, _ = evaluate("x", open_source(str(path)), FakeEmbedder(), store, warehouse)
    failed = warehouse.failures("x")
    assert evaluation.n_images == 2
    assert evaluation.n_failed == len(failed) == len(set(entries)) - 2 - 1
    assert all(image.reason for image in failed)


# --- folders of save_to_disk ---


def saved(folder, files, state=None):
    folder.mkdir(exist_ok=True)
    named = [{"filename": name} for name in files]
    content = {"_data_files": named} if state is None else state
    (folder / "state.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["../x.arrow", "../../archives/x.arrow", "/etc/passwd", "a\0b"])
def test_a_saved_folder_that_names_files_elsewhere_is_refused(folder, name):
    arrow_file(folder / "x.arrow")
    with pytest.raises(VisdivError, match="leads outside"):
        list_images(open_source(str(saved(folder / "saved", [name]))))


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        1,
        None,
        {"_data_files": 1},
        {"_data_files": ["x.arrow"]},
        {"_data_files": [{"filename": 7}]},
        {"_data_files": [{"filename": "gone.arrow"}]},
        {"_data_files": [{"filename": "\ud800"}]},
        {"_data_files": []},
    ],
)
def test_a_saved_folder_with_a_damaged_list_is_refused(folder, state):
    path = saved(folder / "saved", [], state if state is not None else "null")
    with pytest.raises(VisdivError, match="/saved"):
        list_images(open_source(str(path)))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0"])
def test_a_saved_folder_whose_list_is_no_json_is_refused(folder, text):
    path = saved(folder / "saved", [])
    (path / "state.json").write_text(text)
    with pytest.raises(VisdivError, match="save_to_disk"):
        list_images(open_source(str(path)))


@pytest.mark.parametrize("splits", [{"splits": ["../.."]}, {"splits": 1}, {"splits": ["gone"]}, {}])
def test_a_saved_folder_with_splits_elsewhere_is_refused(folder, splits):
    path = saved(folder / "saved", [])
    (path / "dataset_dict.json").write_text(json.dumps(splits))
    with pytest.raises(VisdivError, match="save_to_disk"):
        list_images(open_source(str(path)))


# --- packed streams that never end ---


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_tar_of_nothing_but_zeros_is_refused(folder, pack):
    (folder / "x.tar.gz").write_bytes(pack(bytes(20_000_000)))
    with pytest.raises(VisdivError, match=r"x\.tar\.gz"):
        read_all(folder / "x.tar.gz")
