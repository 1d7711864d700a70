"""The folder in which a command is started is only looked into where it is asked to be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from visdiv_assets.cli import _trusted

VISDIV = Path(sys.executable).with_name("visdiv")
MODULES = ["json.py", "signal.py", "fractions.py", "logging.py", "PIL/__init__.py", "typer.py"]


@pytest.fixture
def traps(tmp_path):
    """A folder with traps named like modules, and the file that is there once one has run."""
    ran, folder = tmp_path / "RAN", tmp_path / "folder"
    for name in MODULES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(ran)!r}, 'a').write(__name__)\n")
    return folder, ran


@pytest.mark.slow
@pytest.mark.parametrize("pythonpath", [None, "{empty}:", ".", "{empty}:./"])
@pytest.mark.parametrize("command", [[VISDIV], [sys.executable, "-m", "visdiv_assets.cli.main"]])
def test_no_command_runs_code_of_the_current_folder(traps, tmp_path, command, pythonpath):
    folder, ran = traps
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    if pythonpath is not None:
        environment["PYTHONPATH"] = pythonpath.format(empty=tmp_path)
    shown = subprocess.run(
        [*command, "list"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert "no datasets are registered" in shown.stderr
    assert shown.returncode == 0
    assert not ran.exists()


def test_folders_that_are_named_in_full_stay():
    here = str(Path.cwd())
    assert _trusted([here, "/x"], "visdiv", f"{here}{os.pathsep}/x") == [here, "/x"]
    assert _trusted([here, "/x"], "visdiv", f"{os.pathsep}/x") == ["/x"]
    assert _trusted([here, "/x"], "visdiv", "") == [here, "/x"]


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path):
    (tmp_path / "gone").mkdir()
    script = 'cd "$1" && rmdir "$1" && "$2" list'
    shown = subprocess.run(
        ["sh", "-c", script, "sh", tmp_path / "gone", VISDIV],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    assert shown.stderr == (
        "error: the folder that you are in no longer exists; change to another one\n"
    )
