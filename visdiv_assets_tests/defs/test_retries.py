"""Steps whose source is out of reach for a while are tried again, and others are not."""

import errno
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.plan.active import ActiveExecution

from visdiv_assets.definitions import build_defs
from visdiv_assets.defs import reporting
from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import GPU_POOL, SettingsResource
from visdiv_assets.errors import Unreachable
from visdiv_assets.sources import places
from visdiv_assets_tests.defs.conftest import CheapEmbedder
from visdiv_assets_tests.sources.servers import answering, head, socket_server

PHOTOS = Path(__file__).parents[2] / "examples/demo/photos"


@pytest.fixture
def waits(monkeypatch) -> list[Callable[[], None]]:
    """Retries come at once; what is in this list is called while a step waits for one."""
    called: list[Callable[[], None]] = []
    sleep = ActiveExecution.sleep_til_ready

    def wait(execution: ActiveExecution) -> None:
        for each in called:
            each()
        sleep(execution)

    monkeypatch.setattr(reporting, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(ActiveExecution, "sleep_til_ready", wait)
    monkeypatch.setattr(places, "ATTEMPTS", 1)
    return called


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for photograph in sorted(PHOTOS.glob("*.jpg"))[:12]:
        shutil.copy(photograph, tmp_path / "photos")
    return tmp_path / "photos"


class Server:
    """Serves one archive, after some answers of another kind."""

    def __init__(self, photos: Path) -> None:
        path = photos.with_name("photos.zip")
        with zipfile.ZipFile(path, "w") as archive:
            for photograph in photos.iterdir():
                archive.write(photograph, photograph.name)
        self._whole = path.read_bytes()
        self.status, self.times = "200 OK", 0

    def fail(self, status: str, times: int) -> None:
        self.status, self.times = status, times

    def answer(self, method: str, path: str) -> bytes:
        if self.times:
            self.times -= method == "GET"  # HEAD comes first, and either fails
            return head(self.status, Content_Length=0)
        told = head(Content_Length=len(self._whole))
        return told if method == "HEAD" else told + self._whole


@pytest.fixture
def server(photos) -> Iterator[Server]:
    made = Server(photos)
    with socket_server(answering(made.answer)) as address:
        made.uri = f"http://{address}/photos.zip"
        yield made


def run(root: Path, source: str, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    (root / "visdiv.yaml").write_text(f"store: store\ndatasets: {{far: {{source: '{source}'}}}}\n")
    instance.add_dynamic_partitions("datasets", ["far"])
    settings = SettingsResource(config_path=str(root / "visdiv.yaml"))
    overrides = {"settings": settings, "embedder": CheapEmbedder(settings=settings)}
    job = build_defs(resource_overrides=overrides).resolve_job_def("evaluate_dataset")
    return job.execute_in_process(partition_key="far", instance=instance, raise_on_error=False)


def tried_again(result: dg.ExecuteInProcessResult) -> dict[str, int]:
    return Counter(str(event.step_key) for event in result.all_events if event.is_step_up_for_retry)


def failure(result: dg.ExecuteInProcessResult) -> str:
    [event] = [event for event in result.all_events if event.is_step_failure]
    told = event.step_failure_data.user_failure_data
    return told.description if told else ""


def test_attempts_are_further_apart_each_time():
    for attempt, low, high in ((0, 20, 40), (1, 40, 80)):
        with pytest.raises(dg.RetryRequested) as caught, clear_errors(attempt):
            raise Unreachable("the server does not answer")
        assert caught.value.max_retries == 2
        assert low <= caught.value.seconds_to_wait <= high


def test_a_step_that_reads_no_source_is_not_tried_again():
    with pytest.raises(dg.Failure) as caught, clear_errors():
        raise Unreachable("the server does not answer")
    assert not caught.value.allow_retries


def test_a_server_that_is_overloaded_for_a_while_is_asked_again(waits, tmp_path, server, instance):
    server.fail("503 No", times=2)
    result = run(tmp_path, server.uri, instance)
    assert result.success
    assert tried_again(result) == {"image_manifest": 2}


def test_a_server_that_stays_overloaded_fails_the_run_with_one_sentence(
    waits, tmp_path, server, instance
):
    server.fail("503 No", times=10**6)
    result = run(tmp_path, server.uri, instance)
    assert not result.success
    assert tried_again(result) == {"image_manifest": 2}
    assert failure(result) == f"cannot read {server.uri}: HTTP status 503"


@pytest.mark.parametrize("status", ["404 No", "403 No"])
def test_a_file_that_is_missing_or_forbidden_is_not_asked_for_again(
    waits, tmp_path, server, instance, status
):
    server.fail(status, times=10**6)
    result = run(tmp_path, server.uri, instance)
    assert not result.success
    assert tried_again(result) == {}
    assert server.uri in failure(result)


def test_a_step_that_waits_for_its_source_holds_no_place_in_its_pool(
    waits, tmp_path, photos, instance, monkeypatch
):
    instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
    read, gone, held = places._content, [True], []

    def stale(path: str):
        if gone:
            held.append(instance.event_log_storage.get_concurrency_info(GPU_POOL))
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path)

    def look_at_the_pool() -> None:
        held.append(instance.event_log_storage.get_concurrency_info(GPU_POOL))
        gone.clear()

    monkeypatch.setattr(places, "_content", stale)
    waits.append(look_at_the_pool)
    result = run(tmp_path, str(photos), instance)
    assert result.success
    assert tried_again(result) == {"sscd_embeddings": 1}
    assert held[0].active_slot_count == 1
    assert held[-1].active_slot_count == 0
    [materialization] = result.asset_materializations_for_node("sscd_embeddings")
    assert materialization.metadata["failed"].value == 0
