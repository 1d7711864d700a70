"""Options of a source: what selects images changes its fingerprint, how to reach them does not."""

import io
import os
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.manifest import list_images, look
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image
from visdiv_assets_tests.sources.servers import http_server


@pytest.fixture
def photos(tmp_path):
    """Six images in each of the folders `a` and `b`; no two are alike."""
    for number in range(12):
        write_image(tmp_path / "photos" / "ab"[number % 2] / f"{number // 2}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def score(tmp_path):
    """Evaluate one dataset again and again; what was listed, and how many images were embedded."""
    store, warehouse = Store(tmp_path / "store"), Warehouse(tmp_path / "store/visdiv.duckdb")

    def evaluated(**source):
        opened = open_source(SourceSettings(**source))
        evaluation, embedded = evaluate("birds", opened, FakeEmbedder(), store, warehouse)
        assert evaluation.manifest_fingerprint == look(opened)
        return evaluation, embedded.n_new

    return evaluated


def zipped(photos):
    path = photos.parent / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(photos.rglob("*.png")):
            archive.write(file, file.relative_to(photos))
    return path


def tarred(photos):
    path = photos.parent / "x.tar"
    with tarfile.open(path, "w") as archive:
        for file in sorted(photos.rglob("*.png")):
            archive.add(file, file.relative_to(photos))
    return path


def table(photos):
    """A Parquet file whose two columns hold the images of one folder each."""
    path = photos.parent / "x.parquet"
    columns = {
        name: [file.read_bytes() for file in sorted((photos / name).iterdir())] for name in "ab"
    }
    pq.write_table(pa.table(columns), path)
    return path


def arrow_table(photos):
    path = photos.parent / "x.arrow"
    columns = pq.read_table(table(photos))
    with pa.ipc.new_file(path, columns.schema) as file:
        file.write_table(columns)
    return path


@pytest.mark.parametrize("archive", [zipped, tarred])
@pytest.mark.parametrize(
    ("options", "expected"), [({"include": ["*#a/*"]}, 6), ({"exclude": ["*/0.png"]}, 10)]
)
def test_another_include_or_exclude_of_an_archive_is_heeded(
    photos, score, archive, options, expected
):
    uri = str(archive(photos))
    assert score(uri=uri)[0].n_images == 12
    assert score(uri=uri, **options)[0].n_images == expected
    assert score(uri=uri)[0].n_images == 12  # and back


@pytest.mark.parametrize("kind", [table, arrow_table])
def test_another_column_of_a_table_is_embedded(photos, score, kind):
    uri = str(kind(photos))
    first, new = score(uri=uri, column="a")
    assert new == 6
    second, new = score(uri=uri, column="b")
    assert new == 6
    assert second.diversity_score != first.diversity_score
    again, new = score(uri=uri, column="a")
    assert (again.diversity_score, new) == (first.diversity_score, 0)


def test_another_root_of_a_list_is_embedded_even_if_its_files_look_the_same(photos, score):
    listed = photos.parent / "list.txt"
    listed.write_text("\n".join(f"{number}.png" for number in range(6)))

    for file in photos.rglob("*.png"):
        file.write_bytes(file.read_bytes().ljust(5000, b"\0"))
        os.utime(file, (1, 1))
    first, _ = score(uri=str(listed), root=str(photos / "a"))
    second, new = score(uri=str(listed), root=str(photos / "b"))
    assert new == 6
    assert second.diversity_score != first.diversity_score


def test_another_root_or_column_of_a_list_of_remote_images_is_embedded(photos, score):
    listed = photos.parent / "list.csv"
    listed.write_text("path,other\n" + "".join(f"{at}.png,{5 - at}.png\n" for at in range(3)))
    with http_server(photos) as address:
        assert score(uri=str(listed), root=f"{address}/a")[1] == 3
        assert score(uri=str(listed), root=f"{address}/b")[1] == 3
        assert score(uri=str(listed), root=f"{address}/b", column="other")[1] == 3
        assert score(uri=str(listed), root=f"{address}/b", include=["[01].png"])[0].n_images == 2


@pytest.mark.parametrize("archive", [zipped, table])
def test_how_a_source_is_reached_changes_nothing(photos, archive):
    uri = str(archive(photos))
    column = "a" if archive is table else None
    plain, told = (
        list_images(open_source(SourceSettings(uri=uri, column=column, options=options)))
        for options in ({}, {"region": "eu-1", "secret_access_key": "new"})
    )
    assert plain.fingerprint == told.fingerprint
    assert plain.table.equals(told.table)


def test_the_order_of_globs_changes_nothing(photos):
    uri = str(zipped(photos))
    one, other = (
        look(open_source(SourceSettings(uri=uri, include=globs)))
        for globs in (["x.zip#a/*", "x.zip#b/*"], ["x.zip#b/*", "x.zip#a/*", "x.zip#a/*"])
    )
    assert one == other


def test_images_of_an_archive_have_the_versions_of_earlier_versions(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    os.utime(path, ns=(0x1234, 0x1234))
    manifest = list_images(open_source(str(path)))
    assert manifest.table["version"].to_pylist() == ["1234"]
