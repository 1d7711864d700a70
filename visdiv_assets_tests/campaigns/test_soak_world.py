"""What a soak is made of: its schedule, its images, its servers."""

import itertools
import subprocess
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from visdiv_assets.embedding.preprocess import decode_image
from visdiv_assets.notify.delivery import Target
from visdiv_assets.notify.messages import Message
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.manifest import list_images, look
from visdiv_assets.sources.opening import open_source
from visdiv_assets.spectral.score import DiversityCalculator
from visdiv_assets_tests.campaigns import soak_schedule as schedule
from visdiv_assets_tests.campaigns import soak_service
from visdiv_assets_tests.campaigns.datasets import CheapRuntime
from visdiv_assets_tests.campaigns.soak import excused
from visdiv_assets_tests.campaigns.soak_servers import Hook, ImageServer, MailServer
from visdiv_assets_tests.campaigns.soak_service import Disk
from visdiv_assets_tests.campaigns.soak_sources import ALIKE, FEW, MANY, THRESHOLD, Images, pictures

SIZES = [(1.7, 8), (2.5, 8), (20.0, 50), (60.0, 100)]


@pytest.mark.parametrize(("minutes", "count"), SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_is_over_before_the_end_and_the_same_for_a_seed(minutes, count, seed):
    datasets = schedule.datasets_of(count)
    events = schedule.draw(seed, minutes * 60, datasets)
    assert events == schedule.draw(seed, minutes * 60, datasets)
    assert events != schedule.draw(seed + 1, minutes * 60, datasets)
    for event in events:
        end = event.until or event.at
        assert event.at <= end
        assert end <= 0.9 * minutes * 60 or event.what == "fall for good"


@pytest.mark.parametrize(("minutes", "count"), SIZES)
def test_a_dataset_has_one_accident_at_a_time_and_the_settings_one_fault(minutes, count):
    events = schedule.draw(0, minutes * 60, schedule.datasets_of(count))
    names = {each.name for each in schedule.datasets_of(count)}
    lanes = [[each for each in events if each.whom == name] for name in names]
    of_sources = [[each for each in lane if not each.what.startswith("settings")] for lane in lanes]
    of_settings = [each for each in events if each.what.startswith("settings")]
    for lane in [*of_sources, of_settings]:
        for one, other in itertools.pairwise(lane):
            assert (one.until or one.at) < other.at


@pytest.mark.parametrize("seed", range(5))
def test_a_long_soak_has_every_kind_of_accident(seed):
    events = schedule.draw(seed, 1200, schedule.datasets_of(50))
    kinds = {each.what for each in events}
    sources = {*schedule.SOURCE_FAULTS, "fall", "fall for good", "gone", "lose", "change"}
    settings = {f"settings {fault}" for fault in schedule.SETTINGS_FAULTS}
    others = {"change in a run", "reader", "disk full", "kill"}
    assert kinds >= sources | settings | others
    assert {each.whom for each in events if each.what == "kill"} == set(schedule.KILLS)


@pytest.mark.parametrize(("state", "is_low"), [(MANY, False), (ALIKE, True), (FEW, True)])
@pytest.mark.parametrize("number", range(3))
def test_the_score_of_each_state_is_far_from_the_threshold(state, is_low, number):
    images = pictures(state, number, 1).values()
    pixels = np.stack([decode_image(data) for data in images])
    score = DiversityCalculator().calculate(CheapRuntime(batch_size=len(pixels)).embed(pixels))
    assert (score < THRESHOLD / 2) if is_low else (score > 1.5 * THRESHOLD)


@pytest.mark.parametrize("layout", sorted(set(schedule.LAYOUTS)))
def test_each_layout_changes_and_is_seen_to_have_changed(layout, tmp_path):
    server = ImageServer(tmp_path)
    try:
        dataset = schedule.Dataset("d", layout)
        images = Images(dataset, 0, tmp_path / "d", f"{server.url}/d")
        seen = []
        for state, count in ((MANY, 12), (None, 12), (FEW, 3), (ALIKE, 11)):
            images.put(state)
            source = SourceSettings(uri=images.uri)
            assert len(list_images(open_source(source))) == count
            seen.append(look(open_source(source)))
        assert len(set(seen)) == 4
    finally:
        server.close()


def test_a_folder_is_hidden_and_shown(tmp_path):
    images = Images(schedule.Dataset("d", "folder"), 0, tmp_path / "d", "")
    images.hide()
    assert not (tmp_path / "d").exists()
    images.show()
    images.show()
    assert len(list((tmp_path / "d").iterdir())) == 12


@pytest.fixture
def worker():
    """A process that writes a file when it is told to, and tells what became of it."""
    program = (
        "import sys\n"
        "for path in sys.stdin:\n"
        "    try:\n"
        "        with open(path.strip(), 'wb') as file:\n"
        "            file.write(bytes(100_000))\n"
        "        print('written', flush=True)\n"
        "    except OSError as error:\n"
        "        print(error.strerror, flush=True)\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield process
        process.kill()


def written(worker, path):
    print(path, file=worker.stdin, flush=True)
    return worker.stdout.readline().strip()


@pytest.mark.parametrize("may_mount", [True, False])
def test_nothing_can_be_written_while_the_disk_is_full(may_mount, worker, tmp_path, monkeypatch):
    monkeypatch.setattr(soak_service, "DISK_MIB", 4)
    if not may_mount:
        refused = subprocess.CompletedProcess([], 1)
        monkeypatch.setattr(soak_service.subprocess, "run", lambda *_, **__: refused)
    disk = Disk(tmp_path / "store", SimpleNamespace(processes=lambda: [worker.pid]))
    try:
        if may_mount and not disk.mounted:
            pytest.skip("mounting is forbidden here")
        assert written(worker, tmp_path / "store/before") == "written"
        disk.fill()
        while (said := written(worker, tmp_path / "store/while")) == "written":
            pass
        assert said == ("No space left on device" if may_mount else "File too large")
        disk.free()
        assert written(worker, tmp_path / "store/after") == "written"
    finally:
        disk.close(keep=True)
    assert {"before", "after"} <= {path.name for path in (tmp_path / "store").iterdir()}
    assert not (tmp_path / "store").is_mount()


def test_a_dataset_that_was_not_in_order_in_the_night_is_excused():
    events = [
        schedule.Event(100, "settings unset variable", "a", 150),
        schedule.Event(500, "settings unregistered", "b", 550),
        schedule.Event(120, "hang", "c", 150),
    ]
    assert excused(events, 120) == {"a"}
    assert excused(events, 520) == {"b"}


def status(url):
    try:
        return urllib.request.urlopen(url, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_of_images_is_at_fault_for_one_dataset_only(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    server = ImageServer(tmp_path)
    try:
        server.faults["a"] = "503"
        assert (status(f"{server.url}/a/x"), status(f"{server.url}/b/x")) == (503, 200)
        server.faults["a"] = "404"
        assert (status(f"{server.url}/a/x"), status(f"{server.url}/b/x")) == (404, 200)
        server.faults["a"] = None
        assert status(f"{server.url}/a/x") == 200
    finally:
        server.close()


MESSAGE = Message("visdiv: a has recovered", "a has recovered\nat: noon")


def test_a_hook_receives_what_it_accepts_and_is_back_on_its_port_after_it_was_closed():
    received = []
    hook = Hook("x", lambda *message: received.append(message))
    try:
        target = Target(hook.url)
        for fault in ("503", "closed"):
            hook.set_fault(fault)
            assert target.send(MESSAGE)
        assert received == []
        hook.set_fault(None)
        assert target.send(MESSAGE) is None
        assert received == [("hook x", *MESSAGE)]
    finally:
        hook.close()


def test_a_mail_server_rejects_one_address_and_is_back_after_it_was_closed():
    received = []
    server = MailServer(lambda *message: received.append(message))
    try:
        target = Target(server.url("kept@example.com", MailServer.REJECTED))
        assert target.send(MESSAGE)  # as one of the two addresses is rejected
        assert {recipient for recipient, _, _ in received} == {"mail kept@example.com"}
        for fault in ("503", "closed"):
            server.set_fault(fault)
            assert Target(server.url("team@example.com")).send(MESSAGE)
        server.set_fault(None)
        assert Target(server.url("team@example.com")).send(MESSAGE) is None
        assert received[-1][:2] == ("mail team@example.com", MESSAGE.title)
        assert received[-1][2].startswith("a has recovered")
    finally:
        server.close()
