"""The asset `core_set`, as Dagster runs it."""

import dagster as dg
import pytest

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.defs.conftest import CheapEmbedder, metadata, score
from visdiv_assets_tests.embedding.fakes import write_image


@pytest.fixture
def run(tmp_path, instance):
    instance.add_dynamic_partitions("datasets", ["birds"])
    for number in range(80):
        write_image(tmp_path / "birds" / f"{number:03}.png", number)

    def execute(options, *, evaluated=True):
        (tmp_path / "visdiv.yaml").write_text(
            f"store: store\ndatasets: {{birds: {{source: birds{options}}}}}\n"
        )
        settings = SettingsResource(config_path=str(tmp_path / "visdiv.yaml"))
        overrides = {"settings": settings, "embedder": CheapEmbedder(settings=settings)}
        definitions = build_defs(resource_overrides=overrides)
        if evaluated:
            score(tmp_path, "birds")
        return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            partition_key="birds",
            instance=instance,
            asset_selection=[dg.AssetKey("core_set")],
            raise_on_error=False,
        )

    return execute


def test_a_core_set_is_chosen_recorded_and_shown(run, tmp_path):
    told = metadata(run(""), "core_set")
    assert (told["images"], told["of distinct images"], told["method"]) == (10, 80, "k-centre")
    assert 0 < told["diversity score (plain)"] < 1
    assert "±" in told["random selections (plain)"]
    assert not [name for name in told if "corrected" in name]
    assert told["covering radius"] < told["covering radius at random"]
    assert told["first images"].startswith("![")
    rows = Warehouse(tmp_path / "store/visdiv.duckdb").rows("core_sets", "birds")
    assert [row["rank"] for row in rows] == list(range(1, 11))
    assert (tmp_path / "store/exports/core_sets.parquet").exists()


def test_size_and_method_are_settings(run):
    told = metadata(run(", core_set: {k: 60, method: log-det, trim: 0.1}"), "core_set")
    assert (told["images"], told["method"]) == (60, "log-det")


@pytest.mark.parametrize(
    ("options", "evaluated", "sentence"),
    [
        (", core_set: {k: 81}", True, "the number of embeddings, 80; got 81"),
        ("", False, "birds has never been evaluated"),
        (", core_set: {method: best}", False, "'datasets.birds.core_set.method'"),
    ],
)
def test_what_is_wrong_fails_with_one_sentence(run, options, evaluated, sentence):
    result = run(options, evaluated=evaluated)
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert sentence in failure.step_failure_data.user_failure_data.description
