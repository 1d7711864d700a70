"""The whole story, with the real daemon: a dataset is registered, falls, and recovers.

Starts `dagster dev` as a user would, edits `visdiv.yaml` and copies files, and never touches the
UI. Alerts arrive at a real web hook and a real mail server.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.dagster_dev import (
    ROOT,
    copy_project,
    dagster_dev,
    project_environment,
)
from visdiv_assets_tests.notify.receivers import smtp_server, webhook

PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))[:60]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def wait_until(what: str, is_so: Callable[[], bool], seconds: int = 600) -> None:
    for _ in range(seconds):
        if is_so():
            return
        time.sleep(1)
    pytest.fail(f"waited {seconds} s in vain until {what}")


def visdiv(project: Path, *arguments: str) -> str:
    command = [Path(sys.executable).with_name("visdiv"), *arguments]
    done = subprocess.run(
        command,
        cwd=project,
        env=project_environment(project),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_dataset_is_scored_watched_and_told_of_without_touching_the_ui(tmp_path):
    copy_project(tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for photo in PHOTOS:
        shutil.copy(photo, pictures)
    warehouse = Warehouse(tmp_path / ".visdiv/visdiv.duckdb")

    def evaluations() -> int:
        return len(warehouse.history("pictures"))

    with webhook() as hook, smtp_server() as (mail_url, mails):
        (tmp_path / "visdiv.yaml").write_text(
            "store: .visdiv\n"
            "settle_seconds: 5\n"
            f"alerts:\n  urls: ['{hook.url}', '{mail_url}']\n"
            "datasets: {}\n"
        )
        with dagster_dev(tmp_path):
            # Registered, it becomes a partition and is scored; 60 photographs are diverse enough.
            visdiv(tmp_path, "add", "pictures", "pictures", "--missing-ok")
            wait_until("it is scored", lambda: evaluations() == 1)
            assert warehouse.history("pictures")[0].judged_score > 0.30
            assert "pictures" in visdiv(tmp_path, "list")

            # Redundant copies make it fall; the service is down at first.
            hook.down = True
            copies = tmp_path / "copies"
            copies.mkdir()
            for copy in range(400):
                shutil.copy(PHOTOS[0], copies / f"{copy}.jpg")
            copies.rename(pictures / "copies")  # all at one moment, so one run
            wait_until("the mail arrives", lambda: len(mails) == 1)
            wait_until("the web hook refuses", lambda: hook.refused > 0)
            hook.down = False
            wait_until("the web hook hears of it", lambda: len(hook.received) == 1)
            assert evaluations() == 2
            assert hook.titles == ["visdiv: 2 changes in pictures"]  # and out of its usual range
            assert "fell below its threshold" in hook.received[0]["message"]
            assert "400 of 460 images are exact copies" in hook.received[0]["message"]

        # Dagster stops, and starts anew: nothing is told twice.
        with dagster_dev(tmp_path):
            (pictures / "copies").rename(tmp_path / "copies")
            wait_until("it has recovered", lambda: len(hook.received) == 2)
            wait_until("the mail arrives", lambda: len(mails) == 2)
            assert hook.titles[1] == "visdiv: pictures has recovered"

            # The source vanishes: one alert, and the history stays.
            pictures.rename(tmp_path / "elsewhere")
            before = evaluations()
            evaluate_now(tmp_path, "pictures")
            wait_until("it is told", lambda: len(hook.received) == 3)
            assert hook.titles[2] == "visdiv: pictures could not be evaluated"
            assert evaluations() == before
        assert len(hook.received) == 3
        assert [mail["subject"] for mail in mails][:2] == hook.titles[:2]


def evaluate_now(project: Path, dataset: str) -> None:
    """What the nightly schedule does: ask the daemon for a run of one dataset."""
    command = [
        Path(sys.executable).with_name("dagster"),
        *("job", "launch", "-m", "visdiv_assets.definitions", "-j", "evaluate_dataset"),
        *("--tags", f'{{"dagster/partition": "{dataset}"}}'),
    ]
    subprocess.run(command, cwd=project, env=project_environment(project), check=True)
