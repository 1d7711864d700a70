"""Versions that servers tell: text in a table, whatever they send, and never part of a path."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.sources.manifest import list_images, look
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.places import version_told
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image
from visdiv_assets_tests.sources.layouts import tar_archive, zip_archive
from visdiv_assets_tests.sources.servers import http_server

ODD = {
    "up": '"x/../../../../../victim"',
    "rooted": '"/etc/passwd"',
    "weak": 'W/"abc"',
    "not ASCII": '"\xe9"',
    "bytes": '"\x80\xff\x9c"',
    "long": '"' + "x" * 7000 + '"',
    "empty": '""',
    "quotes": '"a"b"c"',
    "backslash": '"..\\\\..\\\\x"',
    "hidden": '".latest"',
}


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    for number in range(3):
        write_image(folder / f"photos/{number}.png", number)
    (folder / "list.txt").write_text("".join(f"photos/{number}.png\n" for number in range(3)))
    zip_archive(folder / "photos", folder)
    tar_archive(folder / "photos", folder)
    return folder


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["list.txt", "photos.zip", "photos.tar"])
@pytest.mark.parametrize("etag", ODD.values(), ids=ODD.keys())
def test_no_etag_becomes_part_of_a_path(tmp_path, served, name, etag):
    victim = tmp_path / "victim.parquet"
    victim.write_bytes(b"precious")
    home = tmp_path / "deep/er/home"
    store, warehouse = Store(home / "store"), Warehouse(home / "store/visdiv.duckdb")
    before = files_below(tmp_path)
    with http_server(served, {"ETag": etag}) as address:
        source = open_source(f"{address}/{name}")
        evaluation, _ = evaluate("birds", source, FakeEmbedder(), store, warehouse)
        assert look(source) == evaluation.manifest_fingerprint
    assert evaluation.n_images == 3
    assert re.fullmatch("[0-9a-f]{32}", evaluation.manifest_fingerprint)
    assert victim.read_bytes() == b"precious"
    new = files_below(tmp_path) - before
    assert new
    assert all(path.startswith("deep/er/home/store/") for path in new)
    assert len(list((store.root / "manifests/birds").iterdir())) == 2  # no odd folders


def test_another_etag_of_a_list_is_another_fingerprint(served):
    seen = set()
    for etag in ('"one"', '"two"', 'W/"two"'):
        with http_server(served, {"ETag": etag}) as address:
            seen.add(look(open_source(f"{address}/list.txt")))
    assert len(seen) == 3


def test_an_ordinary_etag_is_an_images_version_as_in_earlier_versions(served):
    with http_server(served, {"ETag": '"33a64df5"'}) as address:
        listed = list_images(open_source(f"{address}/list.txt"))
    assert set(listed.table["version"].to_pylist()) == {"33a64df5"}


@given(st.text(st.characters(codec=None)))
def test_any_version_is_told_as_short_text(told):
    version = version_told(told)
    assert len(version.encode()) <= 100
    assert version.isprintable()


@given(st.text(), st.text())
def test_odd_versions_differ_where_they_did(one, other):
    if one.strip('"') != other.strip('"'):
        assert version_told(one) != version_told(other)
