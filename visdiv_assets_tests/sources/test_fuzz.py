"""Any text as an address, a name or a label, and any bytes as a file: items, or a VisdivError."""

import contextlib
import csv
import io
import json
import os
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import DATASET_NAME, SourceSettings
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.source import from_image_id, to_image_id
from visdiv_assets.sources.tables import MAX_VALUE_CHARACTERS
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.project import dataset_name_for
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

INJECTIONS = [
    "'); DROP TABLE evaluations; --",
    'x" OR "1"="1',
    "${HOME}`id`$(id)",
    "<script>alert(1)</script>",
    "[bold red]x[/]",
    "=cmd|'/c calc'!A1",
    "%s%n%x{0}",
    "\x1b]0;title\x07",
    "a\0b",
    "\u202egpj.exe",
    "line\r\nbreak\ttab",
    "NULL",
    "#",
    "\\x41",
]

# A folder of each test's own; hypothesis and fixtures do not go together well.
fresh = tempfile.TemporaryDirectory


# --- addresses ---

PARTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "/",
            "*",
            "**",
            "?",
            "#",
            "{",
            "}",
            "{0..3}",
            "{a,b}",
            "[",
            "]",
            "[!a]",
            "@",
            ":",
            "~",
        ]
    ),
    st.sampled_from(
        [".zip", ".tar", ".parquet", ".csv", ".jpg", ".json", ".arrow", "\0", " ", "%41"]
    ),
)
LOCAL_SCHEMES = st.sampled_from(["", "", "", "ROOT/", "file://ROOT/", "ftp://", "x-y://", "s3://"])


@given(LOCAL_SCHEMES, st.lists(PARTS, max_size=8).map("".join))
@settings(max_examples=400)
@example("", "x" * 5000)
@example("", "x" * 5000 + ".zip")
@example("", "\ud800")
@example("", "\ud800.zip")
@example("", "\udcff.jpg")
@example("", "")
@example("file://", "")
@example("https://", "[::1/x.zip")
@example("https://", "host:port/x.zip")
@example("s3://", "")
@example("s3://", "*/x")
@example("", "{" * 500 + ".zip")
@example("", "[" * 500 + ".jpg")
@example("", "{1..3}" * 20 + ".zip")
@example("", "**/" * 50 + "*.jpg")
def test_any_address_is_opened_or_refused(scheme, rest):
    with fresh() as folder:
        os.chdir(folder)
        try:
            # Below a folder of its own, or the whole machine would be listed.
            rest = rest.lstrip("/") if "ROOT" not in scheme else rest
            source = open_source(scheme.replace("ROOT", folder) + rest)
            if not source.uri.startswith("s3://"):  # a bucket would be asked for over the network
                list_images(source)
        except VisdivError:
            pass
        finally:
            os.chdir("/")
        assert os.listdir(folder) == []


@given(st.lists(PARTS, max_size=4).map("".join), st.lists(PARTS, max_size=4).map("".join))
@example("{" * 500, "[" * 500)
@example("{0..9}" * 9, "")
@example("!(" * 40, "@(a|b)" * 40)
def test_any_include_and_exclude_work_or_are_refused(include, exclude):
    with fresh() as folder:
        (Path(folder) / "a.jpg").write_bytes(b"x")
        source = SourceSettings(uri=folder, include=[include], exclude=[exclude])
        with contextlib.suppress(VisdivError):
            assert [item.image_id for item in open_source(source).items()] == ["a.jpg"]


@given(st.text(max_size=200))
def test_any_address_gives_a_name_that_a_dataset_may_have(place):
    assert DATASET_NAME.fullmatch(dataset_name_for(place.replace("\0", "")))


# --- names of files ---

BYTES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text(min_size=1, max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from([b"\\x", b"\\", b"\xff", b"41", b"a", b" ", b"#", b"\xc3\xa9"])).map(
        b"".join
    ),
)
NAMES = BYTES.map(lambda name: name.replace(b"\0", b"").replace(b"/", b"").lstrip(b".") + b".jpg")
# The extension needs something before it.
NAMES = NAMES.filter(lambda name: len(name) > 4).map(os.fsdecode)


@given(BYTES.map(os.fsdecode))
def test_any_name_is_an_id_and_back(name):
    image_id = to_image_id(name)
    image_id.encode()
    assert from_image_id(image_id) == name


@given(st.lists(BYTES.map(os.fsdecode), unique=True))
def test_different_names_have_different_ids(names):
    assert len({to_image_id(name) for name in names}) == len(names)


def read_back(source):
    ids = list_images(source).table["image_id"].to_pylist()
    return {ids[at]: data for at, data in source.read_all(ids)}


names_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names")


@names_on_linux
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_files_of_any_name_are_listed_and_read(names):
    with fresh() as folder:
        for name in names:
            Path(folder, name).write_bytes(os.fsencode(name))
        expected = {to_image_id(name): os.fsencode(name) for name in names}
        assert read_back(open_source(folder)) == expected


@given(st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_tar_members_of_any_name_are_listed_and_read(names):
    with fresh() as folder:
        path = Path(folder, "x.tar")
        with tarfile.open(path, "w", errors="surrogateescape") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(os.fsencode(name))
                archive.addfile(member, io.BytesIO(os.fsencode(name)))
        expected = {f"x.tar#{to_image_id(name)}": os.fsencode(name) for name in names}
        assert read_back(open_source(str(path))) == expected


@given(st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_zip_members_of_any_name_are_listed_and_read(names):
    # A zip's names are Unicode.
    names = {os.fsencode(name).decode("utf-8", "replace") for name in names}
    with fresh() as folder:
        path = Path(folder, "x.zip")
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, name.encode())
        expected = {f"x.zip#{to_image_id(name)}": name.encode() for name in names}
        assert read_back(open_source(str(path))) == expected


@names_on_linux
@given(NAMES, NAMES)
def test_archives_of_any_name_with_members_of_any_name_are_read(archive_name, name):
    name = os.fsencode(name).decode("utf-8", "replace")
    with fresh() as folder:
        path = Path(folder, archive_name + ".zip")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"content")
        try:
            reads = read_back(open_source(str(path)))
        except VisdivError as error:
            # Taken for a pattern that stands for too much is allowed, where it is no plain name.
            assert any(letter in archive_name for letter in "*?[{"), error  # noqa: PT017
        else:
            assert list(reads.values()) == [b"content"]


# --- labels ---

LABELS = st.one_of(st.sampled_from(INJECTIONS), st.text(), st.text(min_size=190, max_size=260))


def kept(label):
    return label[:MAX_VALUE_CHARACTERS].encode("utf-8", "replace").decode()


def labels_listed(path):
    (path.parent / "a.jpg").touch()  # a list of nothing that exists is refused
    manifest = list_images(open_source(str(path)))
    return [dict(row or ()).get("label") for row in manifest.table["metadata"].to_pylist()]


@given(LABELS.filter(lambda label: "\r" not in label or "\n" in label))
def test_any_label_in_csv_arrives_unchanged(label):
    with fresh() as folder:
        path = Path(folder, "x.csv")
        with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label"])
            rows.writerow(["a.jpg", label])
        assert labels_listed(path) == [kept(label)]


@given(LABELS)
@example("\ud800")
def test_any_label_in_json_lines_arrives_unchanged(label):
    with fresh() as folder:
        path = Path(folder, "x.jsonl")
        path.write_text(json.dumps({"path": "a.jpg", "label": label}))
        assert labels_listed(path) == [kept(label)]


@given(LABELS)
def test_any_label_in_parquet_arrives_unchanged(label):
    with fresh() as folder:
        path = Path(folder, "x.parquet")
        # Light columns are labels; a column of nothing but long texts is not.
        cells = [label, *[""] * 31]
        pq.write_table(pa.table({"image": [b"x"] * 32, "label": cells}), path)
        rows = list_images(open_source(str(path))).table
        if rows["metadata"][0].as_py() is not None:
            first = rows["image_id"].to_pylist().index("x.parquet#0")
            assert dict(rows["metadata"][first].as_py())["label"] == kept(label)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), LABELS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
@example({"label": 10**5000})
@example({"": "x", "\ud800": "y", "path": "b.jpg"})
def test_any_columns_beside_the_path_become_a_manifest_or_are_refused(row):
    with fresh() as folder:
        path = Path(folder, "x.jsonl")
        try:
            path.write_text(json.dumps({**row, "path": "a.jpg"}))
        except ValueError:  # Python does not write such numbers either
            return
        with contextlib.suppress(VisdivError):
            assert len(list_images(open_source(str(path)))) == 1


# --- any bytes as a file ---

STARTS = {
    "x.csv": [b"", b"path,label\n", b'"', b"\xef\xbb\xbfpath\n", b"path\n\xff\xfe"],
    "x.tsv": [b"", b"path\tlabel\n"],
    "x.txt": [b"", b"a.jpg\n", b"\0"],
    "x.json": [
        b"",
        b"[",
        b'["a.jpg",',
        b'{"images":[{"file_name":"a.jpg","id":1}],',
        b'{"images":[{"file_name":"a.jpg","id":[1]}]}',
        b'{"images":[{"file_name":"a.jpg","id":{}}],"categories":[{"id":[],"name":1}]}',
        b'{"annotations":[{"image_id":[1],"category_id":{}}],"images":[{"file_name":"a"}]}',
        b'{"images":[{"file_name":"\\ud800"}]}',
        b'{"images":' + b"[" * 100_000,
        b"[" * 1_000_000,
    ],
    "x.jsonl": [b"", b'{"path":"a.jpg"}\n', b'"a.jpg"\n', b'{"path":[1]}\n', b'{"path":"\\ud800"}'],
    "x.parquet": [b"", b"PAR1"],
    "x.arrow": [b"", b"ARROW1\0\0", b"\xff\xff\xff\xff"],
    "x.tar": [b"", b"a.jpg".ljust(100, b"\0"), bytes(512)],
    "x.tar.gz": [b"", b"\x1f\x8b\x08\0", b"BZh9", b"\xfd7zXZ\0"],
    "x.zip": [b"", b"PK\3\4", b"PK\5\6"],
}


@pytest.mark.parametrize("name", STARTS)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_listed_or_refused(name, data):
    content = data.draw(st.sampled_from(STARTS[name])) + data.draw(st.binary(max_size=600))
    lists_reads_or_refuses(name, content)


@pytest.mark.parametrize(
    ("name", "content"), [(name, start) for name, starts in STARTS.items() for start in starts]
)
def test_a_file_that_only_begins_is_listed_or_refused(name, content):
    lists_reads_or_refuses(name, content)


def lists_reads_or_refuses(name, content):
    with fresh() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        source = open_source(str(path))
        try:
            ids = list_images(source).table["image_id"].to_pylist()
        except VisdivError as error:
            assert name in str(error)  # noqa: PT017
            return
        assert {at for at, _ in source.read_all(ids)} == set(range(len(ids)))


def whole_files():
    members = [(f"{number}.jpg", bytes([number]) * 300) for number in range(3)]
    files = {name: io.BytesIO() for name in ("x.zip", "x.tar", "x.tar.gz", "x.parquet", "x.arrow")}
    with zipfile.ZipFile(files["x.zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    for name, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz")):
        with tarfile.open(fileobj=files[name], mode=mode) as archive:
            for member_name, content in members:
                member = tarfile.TarInfo(member_name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    table = pa.table({"image": [{"bytes": content, "path": name} for name, content in members]})
    pq.write_table(table, files["x.parquet"])
    with pa.ipc.new_file(files["x.arrow"], table.schema) as file:
        file.write_table(table)
    return {name: file.getvalue() for name, file in files.items()}


WHOLE = whole_files()


@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_flipped_bytes_are_listed_or_refused(name, data):
    content = bytearray(WHOLE[name])
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] ^= data.draw(st.integers(1, 255))
    lists_reads_or_refuses(name, bytes(content))


# --- all the way through ---


def test_names_and_labels_that_look_like_code_go_through_unharmed(tmp_path):
    names = [text.replace("/", "⁄").replace("\0", "") for text in INJECTIONS]
    folder = tmp_path / "images"
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "'); DROP TABLE failures; --"])
        for at, name in enumerate(names):
            write_image(folder / f"{name} good.png", at)
            (folder / f"{name} bad.png").write_text(name)
            rows.writerow([f"{name} good.png", INJECTIONS[at], name])
            rows.writerow([f"{name} bad.png", INJECTIONS[at], name])
    warehouse, store = Warehouse(tmp_path / "store/visdiv.duckdb"), Store(tmp_path / "store")
    listed = SourceSettings(uri=str(tmp_path / "list.csv"), root=str(folder))
    for dataset, source in (("list", listed), ("folder", SourceSettings(uri=str(folder)))):
        for _ in range(2):
            evaluation, _ = evaluate(dataset, open_source(source), FakeEmbedder(), store, warehouse)
        assert (evaluation.n_images, evaluation.n_failed) == (len(names), len(names))
        failed = [image.image_id for image in warehouse.failures(dataset)]
        assert sorted(failed) == sorted(to_image_id(f"{name} bad.png") for name in names)
    assert len(warehouse.history("list")) == len(warehouse.history("folder")) == 2
    labels = {
        dict(row)["label"] for row in store.latest_manifest("list").table["metadata"].to_pylist()
    }
    assert labels == set(INJECTIONS)
