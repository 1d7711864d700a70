"""The script that moves images away and back, run by the shells that are here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from visdiv_assets.cli.move_script import move_script

NAMES = [
    "plain.jpg",
    "-n.jpg",
    "--undo",
    'a b/it\'s "so".jpg',
    "line\nbreak\n/end\n",
    "$HOME `id` $(touch hacked) \\ * ? [x] ; & | # !.jpg",
    "~/x.jpg",
    "deep/er/猫.jpg",
    os.fsdecode(b"\xff\xfe/\xe9.jpg"),
]
SHELLS = [
    shell for shell in ("sh", "dash", "bash", "busybox sh", "zsh") if shutil.which(shell.split()[0])
]
pytestmark = pytest.mark.skipif(not SHELLS, reason="needs a POSIX shell")


@pytest.fixture(params=SHELLS)
def run(request, tmp_path, monkeypatch):
    """Runs the script for a folder with an odd name in an odd folder."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "-it's\n"
    write(root, "kept.jpg", *NAMES)
    (tmp_path / "move.sh").write_bytes(move_script(root, NAMES))

    def run(*arguments, code=0):
        command = [*request.param.split(), "move.sh", *arguments]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == code, done
        return done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")

    run.root = root
    return run


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))


def files(root):
    found = (path for path in Path(root).rglob("*") if not path.is_dir())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


@pytest.mark.parametrize("target", ["away", "-t\n", "deep/er", "it's $HOME"])
def test_everything_is_moved_with_its_folders_and_moved_back(run, target):
    before = files(run.root)
    assert f"moved {len(NAMES)} images" in run(target)
    assert files(run.root) == {"kept.jpg": b"kept.jpg"}
    assert files(target) == {name: os.fsencode(name) for name in map(os.path.normpath, NAMES)}
    assert f"moved {len(NAMES)} images" in run("--undo", target)
    assert files(run.root) == before
    assert files(target) == {}
    assert not Path("hacked").exists()


def test_run_twice_it_moves_nothing_more(run):
    run("away")
    assert f"moved 0 images, found {len(NAMES)} moved before" in run("away")
    run("--undo", "away")
    assert f"moved 0 images, found {len(NAMES)} moved before" in run("--undo", "away")


@pytest.mark.parametrize("blocked", ["plain.jpg", "-n.jpg"])
def test_nothing_is_overwritten(run, blocked):
    write(Path("away"), blocked)
    Path("away", blocked).write_bytes(b"older")
    assert "not moved, since there is one already" in run("away", code=1)
    assert Path("away", blocked).read_bytes() == b"older"
    assert (run.root / blocked).read_bytes() == os.fsencode(blocked)
    assert f"found {len(NAMES) - 1} moved before" in run("away", code=1)


def test_a_link_is_moved_as_a_link_even_if_it_leads_nowhere(run):
    (run.root / "plain.jpg").unlink()
    (run.root / "plain.jpg").symlink_to("nowhere")
    run("away")
    assert Path("away/plain.jpg").readlink() == Path("nowhere")
    run("--undo", "away")
    assert (run.root / "plain.jpg").readlink() == Path("nowhere")


def test_what_is_gone_is_told(run):
    (run.root / "plain.jpg").unlink()
    assert "not found: " in run("away", code=1)


def test_a_target_in_the_folder_itself_is_refused(run):
    before = files(run.root)
    Path("link").symlink_to(run.root)
    for target in (str(run.root / "away"), str(run.root), "link/away"):
        assert "it is in the folder that the images are to leave" in run(target, code=2)
    assert files(run.root) == before


@pytest.mark.parametrize("arguments", [[], [""], ["--undo"], ["a", "b"], ["--undo", "nowhere"]])
def test_wrong_usage_moves_nothing(run, arguments):
    before = files(run.root)
    run(*arguments, code=2)
    assert files(run.root) == before
