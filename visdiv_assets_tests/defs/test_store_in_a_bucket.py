"""A project whose store is in a bucket, as Dagster runs it."""

import json
import logging

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets_tests.campaigns.datasets import cheap_model, write_birds
from visdiv_assets_tests.store.homes import homes


def test_a_dataset_is_evaluated_and_analysed_and_the_store_cleaned_up(tmp_path, instance):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    write_birds(tmp_path / "birds")
    instance.add_dynamic_partitions("datasets", ["birds"])
    with homes("bucket") as make, cheap_model():
        home = make(tmp_path / "unused")
        options = json.dumps(home.options)
        (tmp_path / "visdiv.yaml").write_text(
            f"store: {{uri: {home.uri}, options: {options}}}\n"
            "results: results\n"
            "cache: {folder: cache}\n"
            "datasets: {birds: {source: birds}}\n"
        )
        settings = SettingsResource(config_path=str(tmp_path / "visdiv.yaml"))
        definitions = build_defs(resource_overrides={"settings": settings})
        for job in ("evaluate_dataset", "analyze_dataset"):
            result = definitions.resolve_job_def(job).execute_in_process(
                partition_key="birds", instance=instance
            )
            assert result.success
        [event] = result.asset_materializations_for_node("core_set")
        assert home.bucket in str(event.metadata["first images"].value)  # where it is in full
        done = definitions.resolve_job_def("maintain_store").execute_in_process(instance=instance)
        assert done.success
    assert (tmp_path / "results/visdiv.duckdb").exists()
