"""While `visdiv.yaml` is broken, missing or cut off, the last good settings hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings import last_good
from visdiv_assets.settings.last_good import (
    Watched,
    WatchedSettings,
    keep_text,
    kept_text,
    state_folder,
)
from visdiv_assets.settings.reading import load_settings

GOOD = "store: store\ndatasets:\n  a: {source: pics}\n  b: {source: pics}\n"


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder and state folder, and no settings in the environment."""
    monkeypatch.chdir(tmp_path_factory.mktemp("project"))
    monkeypatch.setenv("VISDIV_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    for name in ("VISDIV_CONFIG", "VISDIV_STORE", "VISDIV_TEST_UNSET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def watched() -> WatchedSettings:
    """Of a process that has seen good settings."""
    watched = WatchedSettings()
    write(GOOD)
    assert watched.watch().problem is None
    return watched


def write(text: str) -> Path:
    path = Path("visdiv.yaml").absolute()
    path.write_text(text, encoding="utf-8")
    return path


def damage(kind: str) -> None:
    path = Path("visdiv.yaml")
    path.unlink()
    match kind:
        case "gone":
            pass
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "a link to nothing":
            path.symlink_to("nothing")
        case "a link to itself":
            path.symlink_to("visdiv.yaml")
        case "not UTF-8":
            path.write_bytes(b"datasets: {a: {source: '\xff\xfe'}}")
        case "binary":
            path.write_bytes(bytes(range(256)) * 100)
        case _:
            path.write_text(kind)


BROKEN = [
    ("gone", "there is no visdiv.yaml in "),
    ("a folder", "cannot read the settings file .*: it is not a file"),
    ("a pipe", "cannot read the settings file .*: it is not a file"),
    ("a link to nothing", "cannot read the settings file .*: No such file"),
    ("a link to itself", "cannot read the settings file .*: Too many levels"),
    ("not UTF-8", "not a valid YAML file"),
    ("binary", "not a valid YAML file"),
    ("", "visdiv.yaml is empty"),
    ("# only a comment\n", "visdiv.yaml is empty"),
    ("~\n", "visdiv.yaml is empty"),
    ("store: store\n", "visdiv.yaml has lost its datasets; write `datasets: {}`"),
    ("store: store\ndatasets:\n", "visdiv.yaml has lost its datasets; write `datasets: {}`"),
    ("stor: store\ndatasets: {a: {source: pics}}\n", "'stor' is not a setting"),
    ("datasets: [", "not a valid YAML file"),
    ("datasets: [a]", "'datasets' must hold"),
    ("store: ${VISDIV_TEST_UNSET}\ndatasets: {a: {source: x}}\n", "used by 'store', is not set"),
]
KINDS = [text.strip()[:20] or "empty" for text, _ in BROKEN]


@pytest.mark.parametrize(("kind", "problem"), BROKEN, ids=KINDS)
def test_while_the_file_cannot_be_used_the_last_good_settings_hold(watched, kind, problem):
    good = watched.load()
    damage(kind)
    for process in (watched, WatchedSettings()):
        now = process.watch()
        assert now.settings == process.load() == good
        assert list(now.settings.datasets) == ["a", "b"]
        with pytest.raises(VisdivError, match=problem.replace("{}", r"\{\}")):
            raise VisdivError(now.problem)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [each for each in BROKEN if "lost" not in each[1]],
    ids=[kind for kind, (_, problem) in zip(KINDS, BROKEN, strict=True) if "lost" not in problem],
)
def test_what_was_never_good_is_a_problem_and_nothing_else(kind, problem):
    write(GOOD)
    damage(kind)
    watched = WatchedSettings()
    now = watched.watch()
    assert now.settings is None
    with pytest.raises(VisdivError, match=problem):
        watched.load()


def test_a_corrected_file_holds_at_once(watched):
    write("stor: x")
    assert watched.watch().problem
    path = write("datasets: {c: {source: x}}\n")
    assert watched.watch() == Watched(load_settings(path), None)
    assert list(watched.load().datasets) == ["c"]


@pytest.mark.parametrize("text", ["datasets: {}\n", "store: s\ndatasets: {}  # none\n"])
def test_no_datasets_are_meant_where_that_is_written_out(watched, text):
    write(text)
    assert watched.watch().problem is None
    assert watched.load().datasets == {}
    write("store: s\ndatasets:\n")  # there were none to lose
    assert watched.watch().problem is None


def test_a_file_that_never_had_datasets_is_good_without_them():
    write("store: s\ndatasets:\n# a: {source: x}\n")
    assert WatchedSettings().watch().problem is None


def test_datasets_that_are_all_faulty_can_be_lost_too(watched):
    write("datasets: {a: {zzz: 1}}\n")
    assert watched.watch().problem is None
    write("store: s\n")
    assert "has lost its datasets" in watched.watch().problem
    assert list(watched.load().faults) == ["a"]


def test_a_dataset_that_is_faulty_makes_no_file_bad(watched):
    write(GOOD + "  c: {source: '${VISDIV_TEST_UNSET}'}\n")
    now = watched.watch()
    assert now.problem is None
    assert (list(now.settings.datasets), list(now.settings.faults)) == (["a", "b"], ["c"])


def test_variables_are_filled_in_when_settings_are_loaded(watched, monkeypatch):
    write("store: ${VISDIV_TEST_UNSET}\ndatasets: {a: {source: '${VISDIV_TEST_UNSET}/a'}}\n")
    monkeypatch.setenv("VISDIV_TEST_UNSET", "/first")
    assert watched.load().store == Path("/first")
    write("datasets: [")
    monkeypatch.setenv("VISDIV_TEST_UNSET", "/second")
    for process in (watched, WatchedSettings()):
        assert process.load().store == Path("/second")
        assert process.load().dataset("a").source.uri == "/second/a"
    [kept] = state_folder().iterdir()
    assert "/first" not in kept.read_text()
    monkeypatch.delenv("VISDIV_TEST_UNSET")
    assert watched.watch().settings is None  # what was good is so no longer
    with pytest.raises(VisdivError, match="not a valid YAML file"):
        watched.load()


def test_relative_paths_of_kept_settings_start_at_the_files_folder(watched, monkeypatch, tmp_path):
    folder = Path.cwd()
    Path("visdiv.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    settings = WatchedSettings().load(folder / "visdiv.yaml")
    assert settings.store == folder / "store"
    assert settings.dataset("a").source.uri == str(folder / "pics")


def test_each_file_has_its_own_last_good_settings(watched, monkeypatch, tmp_path):
    first = Path.cwd()
    monkeypatch.chdir(tmp_path)
    for process in (watched, WatchedSettings()):
        now = process.watch()
        assert now.settings is None  # those of another project are not taken
        assert now.problem == (
            f"there is no visdiv.yaml in {tmp_path}; start Dagster in its folder, or set "
            "VISDIV_CONFIG"
        )
    monkeypatch.setenv("VISDIV_CONFIG", str(first / "visdiv.yaml"))
    assert list(watched.load().datasets) == ["a", "b"]
    (tmp_path / "named.yaml").write_text("datasets: {n: {source: x}}")
    assert list(watched.load(Path("named.yaml")).datasets) == ["n"]


def test_a_named_file_that_is_not_there_is_a_problem_by_its_name(monkeypatch):
    problem = "cannot read the settings file /nowhere/visdiv.yaml: No such file or directory"
    assert WatchedSettings().watch(Path("/nowhere/visdiv.yaml")) == Watched(None, problem)
    monkeypatch.setenv("VISDIV_CONFIG", "/nowhere/visdiv.yaml")
    assert WatchedSettings().watch() == Watched(None, problem)


def test_a_current_folder_that_is_gone_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    now = WatchedSettings().watch()
    assert now == Watched(None, "the folder that Dagster was started in no longer exists")
    monkeypatch.chdir(tmp_path)


def test_the_environment_overrides_the_store_of_kept_settings_too(watched, monkeypatch):
    write("")
    monkeypatch.setenv("VISDIV_STORE", "/elsewhere")
    assert watched.load().store == Path("/elsewhere")


# --- what is kept ---


def test_the_kept_text_is_for_its_user_only(watched):
    [kept] = state_folder().iterdir()
    assert kept.read_text() == GOOD
    assert kept.stat().st_mode & 0o777 == 0o600
    assert state_folder().stat().st_mode & 0o777 == 0o700
    assert kept == state_folder() / kept.name
    assert str(Path.cwd()) not in kept.name


def test_a_folder_that_others_may_read_is_closed_to_them():
    state_folder().mkdir()
    state_folder().chmod(0o777)
    write(GOOD)
    WatchedSettings().load()
    assert state_folder().stat().st_mode & 0o777 == 0o700
    assert list(state_folder().iterdir())


def test_the_text_is_written_only_when_it_has_changed(watched):
    [kept] = state_folder().iterdir()
    first = kept.stat().st_ino
    for process in (watched, WatchedSettings(), WatchedSettings()):
        process.load()
        assert kept.stat().st_ino == first
    write(GOOD + "  c: {source: x}\n")
    watched.load()
    assert kept.stat().st_ino != first
    assert kept.read_text().endswith("  c: {source: x}\n")
    assert list(state_folder().iterdir()) == [kept]


@pytest.mark.parametrize("kind", ["a file", "a link", "a link to itself"])
def test_a_folder_that_cannot_be_written_is_told_once_and_memory_serves(kind, caplog, tmp_path):
    match kind:
        case "a file":
            state_folder().touch()
        case "a link":
            state_folder().symlink_to(tmp_path)
        case "a link to itself":
            state_folder().symlink_to(state_folder())
    write(GOOD)
    watched = WatchedSettings()
    for _ in range(3):
        assert watched.watch().problem is None
    assert len([each for each in caplog.messages if "cannot be kept" in each]) == 1
    assert list(tmp_path.iterdir()) == []
    write("")
    assert list(watched.load().datasets) == ["a", "b"]


def test_a_disk_that_was_full_for_a_moment_is_tried_again(monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    write(GOOD)
    watched = WatchedSettings()
    with monkeypatch.context() as patch:
        patch.setattr(last_good.os, "fsync", full)
        watched.load()
        watched.load()
    assert list(state_folder().iterdir()) == []
    assert len(caplog.messages) == 1
    watched.load()
    assert kept_text(Path("visdiv.yaml").absolute()) == GOOD


def test_a_broken_file_is_told_once_in_the_log(watched, caplog):
    write("stor: x")
    for _ in range(3):
        watched.load()
    [told] = caplog.messages
    assert "'stor' is not a setting" in told
    assert told.endswith("; the last good settings hold until it is corrected")


def test_kept_settings_that_are_not_to_be_trusted_are_ignored(watched, monkeypatch, tmp_path):
    place = write("")
    [kept] = state_folder().iterdir()

    def now():
        return WatchedSettings().watch().settings

    assert now() is not None
    kept.chmod(0o622)  # others could have written it
    assert now() is None
    kept.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: kept.stat().st_uid + 1)
    assert now() is None
    monkeypatch.undo()
    monkeypatch.chdir(place.parent)
    monkeypatch.setenv("VISDIV_STATE_DIR", str(kept.parent.parent))
    assert now() is not None
    for content in (b"", b"# nothing\n", b"\xff\xfe\x00", b"- a\n", b"datasets: [", b"stor: x\n"):
        kept.write_bytes(content)
        assert now() is None
    kept.write_bytes(b"[" * 100_000)
    assert now() is None
    monkeypatch.setattr(last_good, "LARGEST_FILE", len(GOOD))
    kept.write_text(GOOD + "# more\n")
    assert now() is None
    kept.write_text(GOOD)
    assert now() is not None
    other = tmp_path / "other.yaml"
    kept.rename(other)
    kept.symlink_to(other)
    assert now() is None
    kept.unlink()
    os.mkfifo(kept, 0o600)
    assert now() is None
    kept.unlink()
    kept.mkdir()
    assert now() is None


def test_what_is_not_to_be_trusted_is_replaced(watched):
    [kept] = state_folder().iterdir()
    kept.write_bytes(b"garbage: [")
    WatchedSettings().load()
    assert kept.read_text() == GOOD


def test_a_text_that_is_kept_replaces_the_one_before_as_a_whole(tmp_path):
    place = tmp_path / "visdiv.yaml"
    keep_text(place, GOOD)
    keep_text(place, "datasets: {}\n")
    assert kept_text(place) == "datasets: {}\n"
    assert kept_text(tmp_path / "other.yaml") is None


def test_without_a_state_folder_in_the_environment_it_is_the_users_own(monkeypatch):
    monkeypatch.delenv("VISDIV_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/.state")
    if sys.platform == "linux":
        assert state_folder() == Path("/home/me/.state/visdiv/settings")
    assert state_folder().parts[-2:] == ("visdiv", "settings")


def test_the_next_process_knows_them(watched):
    write("datasets: [")
    code = (
        "from visdiv_assets.settings.last_good import WatchedSettings\n"
        "print(*WatchedSettings().load().datasets)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert told.stdout == "a b\n"
