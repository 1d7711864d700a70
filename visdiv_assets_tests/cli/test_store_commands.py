"""`visdiv store stats`, `gc` and `verify`, and `visdiv remove --purge`."""

import json
import os

import pytest
from typer.testing import CliRunner

from visdiv_assets.cli.main import app
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

SETTINGS = """store: store
keep: {evaluations: 1, days: 0}
datasets:
  birds: {source: birds}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Three evaluations of a dataset whose images were all replaced, ten days old."""
    monkeypatch.delenv("VISDIV_STORE", raising=False)
    monkeypatch.setenv("VISDIV_CONFIG", str(tmp_path / "visdiv.yaml"))
    (tmp_path / "visdiv.yaml").write_text(SETTINGS)
    store = Store(tmp_path / "store")
    warehouse = Warehouse(store.root / "visdiv.duckdb")
    for night in range(3):
        for number in range(3):
            write_image(tmp_path / f"birds/{number}.png", seed=10 * night + number)
        source = DirectorySource(tmp_path / "birds")
        evaluate("birds", source, FakeEmbedder(), store, warehouse)
    for path in store.root.rglob("*"):
        if path.is_file():
            past = path.stat().st_mtime - 10 * 86_400
            os.utime(path, (past, past))

    def command(*arguments, code=0):
        done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if "--json" in arguments else done.output

    return command


def test_a_clean_up_is_told_first_and_done_only_if_you_ask_for_it(run, tmp_path):
    before = run("store", "stats", "--json")
    assert before["kinds"]["manifests"]["files"] == 4  # and which is the latest
    told = run("store", "gc")
    assert "can go" in told
    assert "nothing was changed: add --apply" in told
    assert run("store", "stats", "--json") == before
    done = run("store", "gc", "--apply", "--json")
    assert done["applied"]
    assert done["removed"]["moments"]["files"] == 2
    assert done["set_aside"] == 2
    assert done["bytes_after"] < done["bytes_before"]
    assert "nothing can go" in run("store", "gc")
    assert len(Warehouse(tmp_path / "store/visdiv.duckdb").history("birds")) == 3


def test_the_store_is_described_in_words(run):
    told = run("store", "stats")
    assert "embeddings" in told
    assert "birds" in told
    assert "together" in told


def test_what_is_damaged_is_told_with_exit_code_1(run, tmp_path):
    assert "are as they were written" in run("store", "verify")
    [rows, *_] = (tmp_path / "store/embeddings/fake").glob("*.npy")
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.write_bytes(content)
    told = run("store", "verify", code=1)
    assert "checksum" in told
    assert "1 file of" in told
    assert rows.exists()


def test_a_dataset_can_be_removed_with_all_that_is_its_own(run, tmp_path):
    assert "were deleted" in run("remove", "birds", "--purge")
    store = tmp_path / "store"
    assert not any(store.glob("*/birds"))
    assert any(store.glob("embeddings/fake/*.npy"))
    assert "birds" not in (tmp_path / "visdiv.yaml").read_text()
    told = run("remove", "birds", "--purge", code=1)
    assert "the store has nothing of it" in told


def test_a_dataset_that_was_removed_before_can_be_purged_later(run, tmp_path):
    run("remove", "birds")
    assert (tmp_path / "store/moments/birds").exists()
    run("remove", "birds", "--purge")
    assert not (tmp_path / "store/moments/birds").exists()


def test_names_in_the_store_are_shown_as_they_are(run, tmp_path):
    for name in ("[red]x", "x[bold]"):
        folder = tmp_path / "store/manifests" / name
        folder.mkdir(parents=True)
        (folder / "latest").write_text("f")
        assert name in run("store", "stats")
    run("store", "gc")
