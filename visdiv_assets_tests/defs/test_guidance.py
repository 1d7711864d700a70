"""The assets of the group `guidance`, as Dagster runs them."""

import dagster as dg
import pytest

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.defs.conftest import CheapEmbedder, metadata
from visdiv_assets_tests.embedding.fakes import write_image


@pytest.fixture
def run(tmp_path, instance):
    instance.add_dynamic_partitions("datasets", ["birds"])
    for seed in range(60):
        write_image(tmp_path / "birds" / ("a|b" if seed % 2 else "c") / f"{seed}.png", seed)
    (tmp_path / "visdiv.yaml").write_text("store: store\ndatasets: {birds: {source: birds}}\n")
    settings = SettingsResource(config_path=str(tmp_path / "visdiv.yaml"))
    overrides = {"settings": settings, "embedder": CheapEmbedder(settings=settings)}
    definitions = build_defs(resource_overrides=overrides)

    def materialize(*groups):
        return dg.materialize(
            definitions.assets,
            selection=dg.AssetSelection.groups(*groups),
            partition_key="birds",
            instance=instance,
            resources=definitions.resources,
            raise_on_error=False,
        )

    return materialize


@pytest.mark.slow
def test_a_dataset_is_told_what_dominates_it_and_what_would_help(run, tmp_path):
    assert run("ingest", "embed", "score").success
    result = run("guidance")
    assert result.success
    axes = metadata(result, "bias_axes")
    assert axes["summary"].startswith("- No single contrast dominates")
    assert axes["images at both ends"].startswith(
        "![images at both ends of each axis](data:image/webp;base64"
    )
    assert 0 < axes["largest contrast (share of variance)"] < 1
    guidance = metadata(result, "augmentation_guidance")
    assert guidance["images"] == 60
    assert guidance["effects"].count("\n| ") == 20
    assert "| mixup | too few to tell |" in guidance["effects"]
    for picture in ("changes", "examples"):
        assert "data:image/" in guidance[picture]
    warehouse = Warehouse(tmp_path / "store/visdiv.duckdb")
    assert len(warehouse.rows("augmentation_effects", "birds")) == 20
    assert len(warehouse.rows("bias_axes", "birds")) == 5 * 2 * 8


def test_what_was_never_evaluated_fails_with_a_sentence_that_says_what_to_do(run):
    result = run("guidance")
    failures = [event for event in result.all_events if event.is_step_failure]
    assert {each.step_failure_data.user_failure_data.description for each in failures} == {
        "birds has never been evaluated; run `visdiv score birds`"
    }
