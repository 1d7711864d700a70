"""What a dataset repeats and what leaks, as Dagster shows it."""

import shutil

import dagster as dg
import pytest
from PIL import Image

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.defs.conftest import CheapEmbedder, metadata, score
from visdiv_assets_tests.embedding.fakes import write_image

NAMES = ["birds", "test", "cars"]
ASSETS = [dg.AssetKey("near_duplicates"), dg.AssetKey("benchmark_leakage")]


@pytest.fixture
def project(tmp_path):
    """Birds with a copy and a larger image, half of them in the benchmark; cars have none."""
    for name, seeds in (("birds", range(60)), ("test", range(200, 210)), ("cars", range(300, 310))):
        for seed in seeds:
            write_image(tmp_path / name / f"{seed:03}.png", seed)
    shutil.copy(tmp_path / "birds/001.png", tmp_path / "birds/<b>copy.png")
    with Image.open(tmp_path / "birds/000.png") as image:
        image.resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / "birds/large.png")
    shutil.copy(tmp_path / "birds/002.png", tmp_path / "test/leak.png")
    (tmp_path / "visdiv.yaml").write_text(
        "store: store\n"
        "datasets:\n"
        "  birds: {source: birds, near_duplicates: {warn_rate: 0.01}}\n"
        "  test: {source: test, role: benchmark}\n"
        "  cars: {source: cars}\n"
    )
    return tmp_path


@pytest.fixture
def run(project, instance):
    instance.add_dynamic_partitions("datasets", NAMES)
    settings = SettingsResource(config_path=str(project / "visdiv.yaml"))
    overrides = {"settings": settings, "embedder": CheapEmbedder(settings=settings)}
    definitions = build_defs(resource_overrides=overrides)

    def execute(job, dataset):
        chosen = ASSETS if job == "analyze_dataset" else None
        return definitions.resolve_job_def(job).execute_in_process(
            partition_key=dataset,
            instance=instance,
            asset_selection=chosen,
            raise_on_error=False,
        )

    return execute


def checks(result):
    return {each.check_name: each for each in result.get_asset_check_evaluations()}


def test_a_scored_dataset_is_analyzed_in_one_run(project, run):
    for name in ("birds", "test"):
        assert run("evaluate_dataset", name).success
    result = run("analyze_dataset", "birds")
    assert result.success

    found = metadata(result, "near_duplicates")
    assert found["share of redundant images at 0.75"] == pytest.approx(2 / 62, abs=1e-6)
    assert "share of redundant images at 0.95" in found
    assert (found["exact copies"], found["clusters"]) == (1, 1)
    assert found["largest clusters"].startswith("![largest clusters](data:image/webp;base64,")
    assert len(found["largest clusters"]) < 17_000  # Dagster keeps it twice and for ever
    full_size = project / "store/pictures/birds/near_duplicates.png"
    with Image.open(full_size) as picture:
        assert (picture.format, picture.width) == ("PNG", 480)
    assert "large.png" in found["images by cluster"]
    assert found["score (plain), duplicates removed"] > found["score (plain), as it is"]
    assert (found["method"], found["recall"]) == ("exact", 1.0)

    leaks = metadata(result, "benchmark_leakage")
    assert (leaks["images in benchmarks"], leaks["threshold"]) == (1, 0.95)
    assert "leak.png" in leaks["images"]
    assert "| test | 1 | 1.61% | 1 | 1 | 9.09% | all |" in leaks["benchmarks"]
    assert leaks["leaks"].startswith("![")
    assert leaks["not compared"] == "none"

    verdicts = checks(result)
    assert set(verdicts) == {"near_duplicate_rate", "no_leakage"}
    assert not verdicts["near_duplicate_rate"].passed
    assert verdicts["near_duplicate_rate"].severity == dg.AssetCheckSeverity.WARN
    assert not verdicts["no_leakage"].passed
    assert verdicts["no_leakage"].severity == dg.AssetCheckSeverity.ERROR
    assert {each.partition for each in verdicts.values()} == {"birds"}

    warehouse = Warehouse(project / "store/visdiv.duckdb")
    assert len(warehouse.rows("duplicates", "birds")) == 4
    assert len(warehouse.rows("leaks", "birds")) == 1


def test_a_benchmark_of_another_model_is_named_and_what_repeats_nothing_passes(project, run):
    score(project, "test")
    score(project, "cars", "another")
    result = run("analyze_dataset", "cars")
    assert result.success
    assert metadata(result, "near_duplicates")["largest clusters"] == "none"
    leaks = metadata(result, "benchmark_leakage")
    assert leaks["not compared"] == "test: it was embedded with another model, fake"
    verdicts = checks(result)
    assert verdicts["near_duplicate_rate"].passed
    assert verdicts["no_leakage"].severity == dg.AssetCheckSeverity.WARN
    assert not verdicts["no_leakage"].passed


def test_a_benchmark_leaks_into_none(project, run):
    score(project, "test")
    result = run("analyze_dataset", "test")
    assert metadata(result, "benchmark_leakage")["not compared"] == "it is a benchmark itself"
    assert checks(result)["no_leakage"].passed


def test_a_dataset_that_was_never_scored_fails_with_one_sentence(run):
    result = run("analyze_dataset", "birds")
    assert not result.success
    reasons = {
        event.step_key: event.step_failure_data.user_failure_data.description
        for event in result.all_events
        if event.is_step_failure
    }
    assert set(reasons) == {"near_duplicates", "benchmark_leakage"}
    assert set(reasons.values()) == {"birds has never been evaluated; run `visdiv score birds`"}
