"""The clean-up as an asset and its schedule."""

import os

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image


def test_the_store_is_cleaned_up_by_an_asset_that_says_what_it_did(tmp_path, instance):
    (tmp_path / "visdiv.yaml").write_text("store: store\nkeep: {evaluations: 1, days: 0}\n")
    store = Store(tmp_path / "store")
    warehouse = Warehouse(store.root / "visdiv.duckdb")
    for night in range(3):
        for number in range(3):
            write_image(tmp_path / f"birds/{number}.png", seed=10 * night + number)
        evaluate("birds", DirectorySource(tmp_path / "birds"), FakeEmbedder(), store, warehouse)
    for path in store.root.rglob("*"):
        past = path.stat().st_mtime - 10 * 86_400
        os.utime(path, (past, past))
    settings = SettingsResource(config_path=str(tmp_path / "visdiv.yaml"))
    job = build_defs(resource_overrides={"settings": settings}).resolve_job_def("maintain_store")
    result = job.execute_in_process(instance=instance)
    [event] = result.asset_materializations_for_node("store_maintenance")
    told = {name: value.value for name, value in event.metadata.items()}
    assert told["files removed"] == 6  # two lists, two indexes, two moments
    assert told["segments set aside"] == 2
    assert told["bytes before"] > told["bytes after"] > 0
    assert told["problems"] == 0


def test_a_store_whose_results_are_gone_is_left_as_it_is(tmp_path, instance):
    (tmp_path / "visdiv.yaml").write_text("store: store\n")
    store = Store(tmp_path / "store")
    warehouse = Warehouse(store.root / "visdiv.duckdb")
    for number in range(3):
        write_image(tmp_path / f"birds/{number}.png", seed=number)
    evaluate("birds", DirectorySource(tmp_path / "birds"), FakeEmbedder(), store, warehouse)
    warehouse.path.unlink()
    settings = SettingsResource(config_path=str(tmp_path / "visdiv.yaml"))
    job = build_defs(resource_overrides={"settings": settings}).resolve_job_def("maintain_store")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    [failed] = result.filter_events(lambda each: each.is_step_failure)
    told = failed.step_failure_data.user_failure_data
    assert told is not None
    assert "nobody knows what is needed" in (told.description or "")
