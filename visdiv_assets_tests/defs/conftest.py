"""What the tests of Dagster's side share: its real SQLite storage, and a cheap model."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from visdiv_assets.defs.resources import EmbedderResource
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder

QUIET = {"telemetry": {"enabled": False}}


class CheapEmbedder(EmbedderResource):
    """Real images, real decoding, no model."""

    def open(self, dataset: str) -> FakeEmbedder:
        return FakeEmbedder(batch_size=64)


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dagster's databases with all their tables: to create them takes longer than most tests."""
    home = tmp_path_factory.mktemp("dagster")
    with dg.DagsterInstance.local_temp(str(home), overrides=QUIET) as instance:
        instance.get_dynamic_partitions("datasets")
    return home


@pytest.fixture
def instance(tmp_path: Path, empty_home: Path) -> Iterator[dg.DagsterInstance]:
    home = shutil.copytree(empty_home, tmp_path / "dagster")
    with dg.DagsterInstance.local_temp(str(home), overrides=QUIET) as instance:
        yield instance


def score(root: Path, dataset: str, model_id: str = "fake") -> None:
    """Evaluate a dataset outside Dagster, which is faster, where its run is not what is tested."""
    store, warehouse = Store(root / "store"), Warehouse(root / "store/visdiv.duckdb")
    embedder = FakeEmbedder(model_id, batch_size=64)
    evaluate(dataset, DirectorySource(root / dataset), embedder, store, warehouse)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    """What the materialization of an asset in a run says."""
    [materialization] = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in materialization.metadata.items()}
