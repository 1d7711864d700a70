"""The assets as Dagster runs them, on its real SQLite storage."""

import os
import shutil
import signal
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import EmbedderResource, SettingsResource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.defs.conftest import CheapEmbedder, metadata
from visdiv_assets_tests.embedding.fakes import FakeEmbedder

PHOTOS = Path(__file__).parents[2] / "examples/demo/photos"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with `visdiv.yaml`, twelve photographs, and a dataset that has nothing usable."""
    (tmp_path / "photos").mkdir()
    for photograph in sorted(PHOTOS.glob("*.jpg"))[:12]:
        shutil.copy(photograph, tmp_path / "photos")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/fake.png").write_text("I am not an image")
    (tmp_path / "visdiv.yaml").write_text(
        "store: store\n"
        "datasets:\n"
        "  photos: {source: photos}\n"
        "  texts: {source: texts}\n"
        "  gone: {source: gone}\n"
    )
    return tmp_path


@pytest.fixture(autouse=True)
def partitions(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("datasets", ["photos", "texts", "gone", "unregistered"])


def run(
    project: Path,
    instance: dg.DagsterInstance,
    dataset: str,
    embedder: type[EmbedderResource] = CheapEmbedder,
) -> dg.ExecuteInProcessResult:
    settings = SettingsResource(config_path=str(project / "visdiv.yaml"))
    overrides = {"settings": settings, "embedder": embedder(settings=settings)}
    job = build_defs(resource_overrides=overrides).resolve_job_def("evaluate_dataset")
    return job.execute_in_process(partition_key=dataset, instance=instance, raise_on_error=False)


def warehouse(project: Path) -> Warehouse:
    return Warehouse(project / "store/visdiv.duckdb")


def test_one_run_takes_a_dataset_from_its_source_to_its_score_and_says_what_it_found(
    project, instance
):
    result = run(project, instance, "photos", EmbedderResource)
    assert result.success
    [evaluation] = warehouse(project).latest_evaluations()
    assert (evaluation.dataset, evaluation.run_id) == ("photos", result.run_id)
    assert (evaluation.n_images, evaluation.n_failed) == (12, 0)
    assert evaluation.seconds > 0

    manifest = metadata(result, "image_manifest")
    assert manifest["images"] == 12
    assert manifest["bytes"] == sum(p.stat().st_size for p in (project / "photos").iterdir())
    embeddings = metadata(result, "sscd_embeddings")
    assert embeddings["newly embedded"] == 12
    assert embeddings["images/s"] > 0
    assert metadata(result, "embedding_moments")["dimension"] == 512
    metrics = metadata(result, "diversity_metrics")
    assert metrics["diversity score (corrected)"] == "too few to tell"
    assert metrics["diversity score (as it is)"] == pytest.approx(
        evaluation.diversity_score, abs=1e-6
    )
    assert metrics["effective rank (as it is)"] == pytest.approx(
        evaluation.effective_rank, abs=0.01
    )
    assert metrics["images listed"] == 12
    assert metrics["order by name"] == "none that matters"
    assert metrics["spectrum"].startswith("![")
    assert "data:image/png;base64," in metrics["spectrum"]


def test_a_second_run_embeds_nothing_and_says_that_the_data_are_the_same(project, instance):
    versions = []
    for expected in (12, 0):
        result = run(project, instance, "photos")
        assert metadata(result, "sscd_embeddings")["newly embedded"] == expected
        record = instance.get_latest_data_version_record(dg.AssetKey("sscd_embeddings"))
        versions.append(record.asset_materialization.tags["dagster/data_version"])
    assert versions[0] == versions[1]
    first, second = warehouse(project).history("photos")
    assert first.diversity_score == second.diversity_score


def test_undecodable_images_are_listed_in_the_ui_and_do_not_stop_the_run(project, instance):
    (project / "photos" / "<script>|x.png").write_text("not an image")
    result = run(project, instance, "photos")
    assert result.success
    embeddings = metadata(result, "sscd_embeddings")
    assert embeddings["failed"] == 1
    assert "&#60;script&#62;&#124;x.png" in embeddings["failures"]
    [evaluation] = warehouse(project).latest_evaluations()
    assert (evaluation.n_images, evaluation.n_failed) == (12, 1)


def test_images_that_are_in_an_order_are_told(project, instance):
    for photograph in sorted(PHOTOS.glob("*.jpg"))[:12]:
        with Image.open(photograph) as picture:
            small = picture.resize((picture.width // 2, picture.height // 2))
            small.save(project / "photos" / f"{photograph.stem} small.png")
    result = run(project, instance, "photos")
    assert metadata(result, "diversity_metrics")["order by name"].startswith(
        "Images next to each other by name are much more alike"
    )


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("texts", "none of the 1 image"),
        ("gone", "no such file or directory:"),
        ("unregistered", "there is no dataset 'unregistered' in the settings"),
    ],
)
def test_a_bad_dataset_fails_with_one_sentence_and_records_no_evaluation(
    project, instance, dataset, sentence
):
    result = run(project, instance, dataset)
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description.startswith(sentence)
    assert warehouse(project).latest_evaluations() == []


class _EndedByTheSecondBatch(FakeEmbedder):
    def __init__(self, by: signal.Signals) -> None:
        super().__init__()
        self.by = by

    def embed(self, pixels):
        if len(self.batches) == 1:
            assert signal.getsignal(self.by) is not signal.SIG_DFL, "it would end the tests"
            os.kill(os.getpid(), self.by)
        return super().embed(pixels)


class _Terminated(EmbedderResource):
    def open(self, dataset):
        return _EndedByTheSecondBatch(signal.SIGTERM)


class _HungUp(EmbedderResource):
    def open(self, dataset):
        return _EndedByTheSecondBatch(signal.SIGHUP)


@pytest.fixture
def started_from_a_terminal():
    """Whoever started the tests with nohup has them ignore what this one is about."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("started_from_a_terminal")
@pytest.mark.parametrize("embedder", [_Terminated, _HungUp])
def test_a_run_that_a_signal_ends_keeps_its_finished_rows(project, instance, embedder):
    assert not run(project, instance, "photos", embedder).success
    assert len(Store(project / "store").key_index("fake")) >= 4
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert run(project, instance, "photos").success
    assert warehouse(project).history("photos")[-1].n_images == 12


def test_resources_can_be_replaced(project, instance):
    assert run(project, instance, "photos", CheapEmbedder).success
    [evaluation] = warehouse(project).latest_evaluations()
    assert (evaluation.model_id, evaluation.dimension) == ("fake", 48)


def test_an_override_of_a_resource_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="there is no resource embeder"):
        build_defs(resource_overrides={"embeder": object()})
