"""A project whose store is in a bucket: every command."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from visdiv_assets.settings.reading import load_settings
from visdiv_assets.workflows.project import store_of
from visdiv_assets_tests.campaigns.datasets import add_copies, cheap_model, write_birds
from visdiv_assets_tests.sources.servers import SECRET
from visdiv_assets_tests.store.homes import homes

SETTINGS = """store:
  uri: {uri}
  options: {options}
results: results
cache: {{folder: cache}}
datasets:
  birds: {{source: birds}}
  few: {{source: few}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder with images and settings; where the store is."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    monkeypatch.chdir(tmp_path)
    for name in ("VISDIV_CONFIG", "VISDIV_STORE", "VISDIV_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    write_birds(tmp_path / "birds")
    add_copies(tmp_path / "birds")
    write_birds(tmp_path / "few")
    shutil.rmtree(tmp_path / "few/b")
    with homes("bucket") as make, cheap_model():
        home = make(tmp_path / "unused")
        Path("visdiv.yaml").write_text(
            SETTINGS.format(uri=home.uri, options=json.dumps(home.options))
        )
        yield home


def test_every_command_works_and_leaves_no_folder_of_that_name(place, visdiv):
    told = json.loads(visdiv("score", "birds", "--json").stdout)
    visdiv("score", "few")
    for command in (
        "list",
        "history birds",
        "compare birds few",
        "slices birds",
        "axes birds",
        "similar birds a/000.png",
        "select birds -k 10",
        "duplicates birds",
        "duplicates birds --against few",
        "mix",
        "store stats",
        "store gc",
        "store gc --apply",
        "store compact",
        "store compact --apply",
        "store verify",
        "doctor --json",
    ):
        result = visdiv(*command.split(), code=None)
        assert result.exit_code in (0, 1), result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert SECRET not in result.output
    assert {each.name for each in Path("results").iterdir()} >= {
        "visdiv.duckdb",
        "state.sqlite",
        "exports",
    }
    assert not Path("s3:").exists()
    assert "as they were written" in visdiv("store", "verify").output
    stored = json.loads(visdiv("store", "stats", "--json").stdout)
    assert stored["store"] == place.uri
    assert stored["kinds"]["embeddings"]["bytes"] > 0
    again = json.loads(visdiv("score", "birds", "--json").stdout)
    assert again["score"] == told["score"]


def test_the_doctor_says_whether_the_bucket_can_be_written_to(place, visdiv):
    found = json.loads(visdiv("doctor", "--json", code=None).stdout)["findings"]
    [store] = [each for each in found if each["subject"] == "store"]
    assert store["ok"]
    assert place.uri in store["detail"]
    shutil.rmtree("results", ignore_errors=True)
    text = Path("visdiv.yaml").read_text().replace(place.bucket, "no-such-bucket")
    Path("visdiv.yaml").write_text(text)
    found = json.loads(visdiv("doctor", "--json", code=None).stdout)["findings"]
    [store] = [each for each in found if each["subject"] == "store"]
    assert not store["ok"]
    assert "there is no such bucket" in store["detail"]


def test_what_is_purged_is_gone_from_the_bucket(place, visdiv):
    visdiv("score", "birds")
    visdiv("score", "few")
    visdiv("remove", "few", "--purge")
    store = store_of(load_settings())
    assert store.datasets() == ["birds"]
    assert not list(store.objects.files("moments/few"))
