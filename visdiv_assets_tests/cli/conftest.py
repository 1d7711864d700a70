"""What tests of commands share: a project's folder, the command in this process, its tables."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from visdiv_assets.cli.main import app
from visdiv_assets.settings.reading import load_settings
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.project import dataset_at
from visdiv_assets_tests.embedding.fakes import FakeEmbedder


@pytest.fixture
def project_folder(request, tmp_path, monkeypatch):
    """The current folder, with the SETTINGS of the test's module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISDIV_CONFIG", raising=False)
    monkeypatch.delenv("VISDIV_STORE", raising=False)
    Path("visdiv.yaml").write_text(request.module.SETTINGS)
    return tmp_path


@pytest.fixture
def visdiv(monkeypatch):
    """Runs a command in this process, and checks its exit code; None is any."""
    from visdiv_assets.cli import console

    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr(console.err, "width", 200)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, list(arguments))
        assert code is None or result.exit_code == code, result.output
        return result

    return run


def score(called, model="fake"):
    """Evaluate a dataset of `visdiv.yaml`, or a folder, in the current folder."""
    settings = load_settings(None)
    name, source = dataset_at(called, settings)
    registered = settings.datasets.get(name)
    return evaluate(
        name,
        open_source(source),
        FakeEmbedder(model, batch_size=64),
        Store("store"),
        Warehouse("store/visdiv.duckdb"),
        slices=registered.slices if registered else None,
    )[0]


def prepared(tmp_path_factory, settings, prepare):
    """A folder in which something was prepared once, to be copied by each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("prepared"))
        patch.delenv("VISDIV_CONFIG", raising=False)
        patch.delenv("VISDIV_STORE", raising=False)
        Path("visdiv.yaml").write_text(settings)
        prepare()
        return Path.cwd()


def copy_here(folder):
    """A prepared folder, copied into the current one."""
    shutil.copytree(folder, ".", dirs_exist_ok=True)


def cells(result):
    """The rows of a table, cell by cell."""
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]
