"""A small soak, as its command plays it: real processes, real accidents, nothing wrong after."""

import os
import signal
import subprocess
import sys

import pytest

from visdiv_assets_tests.dagster_dev import ROOT

PATIENCE = 2400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE + 300)]


def test_after_many_accidents_everyone_has_been_told_the_truth_once(tmp_path):
    command = [sys.executable, "-m", "visdiv_assets_tests.campaigns.soak"]
    options = ["--minutes", "2.5", "--datasets", "8", "--seed", "0", "--patience", "10"]
    soak = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = soak.communicate(timeout=PATIENCE)
    finally:
        if soak.poll() is None:  # it ends all that it has started
            soak.send_signal(signal.SIGINT)
            soak.wait()
    assert soak.returncode == 0, said
