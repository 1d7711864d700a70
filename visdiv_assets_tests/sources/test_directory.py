"""Images in a directory: what is listed, what is left out, and what cannot be read."""

import os
import socket
import sys
from pathlib import Path

import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.source import IMAGE_EXTENSIONS, read_one


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def listed(root: Path) -> list[str]:
    return sorted(item.image_id for item in DirectorySource(root).items())


# --- what is listed ---


def test_folders_are_searched_to_the_bottom(tmp_path):
    write(tmp_path, "a.jpg", "deep/b.png", "deep/er/still/c.webp")
    assert listed(tmp_path) == ["a.jpg", "deep/b.png", "deep/er/still/c.webp"]


def test_images_are_known_by_extension_in_any_case(tmp_path):
    names = sorted(f"x{extension}" for extension in IMAGE_EXTENSIONS)
    write(tmp_path, *names, "UPPER.JPG", "two.dots.jpg", "notes.txt", "jpg", "x.jpg.bak")
    assert listed(tmp_path) == sorted([*names, "UPPER.JPG", "two.dots.jpg"])


def test_hidden_files_and_folders_are_left_out(tmp_path):
    write(tmp_path, "a.jpg", ".hidden.jpg", "._a.jpg", ".git/b.jpg", "deep/.thumbnails/c.jpg")
    assert listed(tmp_path) == ["a.jpg"]


def test_a_hidden_folder_that_is_asked_for_is_listed(tmp_path):
    assert listed(write(tmp_path / ".photos", "a.jpg")) == ["a.jpg"]


def test_size_and_time_of_change_are_listed(tmp_path):
    write(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(0, 255))
    [item] = DirectorySource(tmp_path).items()
    assert item == ("a.jpg", 5, "ff", None)


def test_names_in_unicode_stay_as_they_are(tmp_path):
    names = ["猫/黒.jpg", "Ünïcode.jpg", "🦆.jpg", "a b.jpg", "line\nbreak.jpg", "tab\t.jpg"]
    assert listed(write(tmp_path, *names)) == sorted(names)


def test_markup_and_quotes_in_names_stay_as_they_are(tmp_path):
    names = ["[bold]x[", "[", "'; DROP TABLE evaluations; --.jpg", "%s.jpg", "~.jpg", "*.jpg"]
    names = [name if name.endswith(".jpg") else f"{name}/red].jpg" for name in names]
    assert listed(write(tmp_path, *names)) == sorted(names)


# --- links ---


def test_links_that_lead_back_up_end(tmp_path):
    write(tmp_path, "a/b/c.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    assert listed(tmp_path) == ["a/b/c.jpg"]


def test_a_folder_linked_twice_is_listed_once(tmp_path):
    outside = write(tmp_path / "outside", "x.jpg")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "second").symlink_to(outside)
    (inside / "first").symlink_to(outside)
    assert listed(inside) == ["first/x.jpg"]


@pytest.mark.parametrize("link", ["a link before", "z link behind"])
def test_an_image_has_the_path_of_its_own_folder_and_not_that_of_a_link(tmp_path, link):
    write(tmp_path, "m/deep/x.jpg")
    (tmp_path / link).symlink_to(tmp_path / "m/deep")
    assert listed(tmp_path) == ["m/deep/x.jpg"]


def test_a_linked_file_is_an_image_of_its_own(tmp_path):
    write(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert listed(tmp_path) == ["a.jpg", "b.jpg"]
    assert read_one(DirectorySource(tmp_path), "b.jpg") == b"a.jpg"


# --- what cannot be read is listed all the same ---


def test_a_dangling_link_is_one_image_that_cannot_be_read(tmp_path):
    write(tmp_path, "a.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    assert listed(tmp_path) == ["a.jpg", "dangling.jpg"]
    with pytest.raises(FileNotFoundError):
        read_one(DirectorySource(tmp_path), "dangling.jpg")


def test_a_link_to_itself_is_one_image_that_cannot_be_read(tmp_path):
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert listed(tmp_path) == ["self.jpg"]
    with pytest.raises(OSError, match="symbolic links"):
        read_one(DirectorySource(tmp_path), "self.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_that_looks_like_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert listed(tmp_path) == ["pipe.jpg"]
    with pytest.raises(OSError, match="not a file"):
        read_one(DirectorySource(tmp_path), "pipe.jpg")


def test_an_image_that_is_gone_since_it_was_listed_cannot_be_read(tmp_path):
    write(tmp_path, "a.jpg")
    source = DirectorySource(tmp_path)
    [item] = source.items()
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        read_one(source, item.image_id)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8_is_listed_as_text_and_read(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"odd")
    (tmp_path / r"\xff.jpg").write_bytes(b"plain")
    source = DirectorySource(tmp_path)
    ids = sorted(item.image_id for item in source.items())
    assert ids == [r"\\xff.jpg", r"\xff.jpg"]
    assert [read_one(source, image_id) for image_id in ids] == [b"plain", b"odd"]


# --- what cannot be listed ---


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(VisdivError, match=f"^no such file or directory: {tmp_path}/nowhere$"):
        listed(tmp_path / "nowhere")


def test_a_file_is_refused(tmp_path):
    write(tmp_path, "a.jpg")
    with pytest.raises(VisdivError, match=r"/a\.jpg is not a directory$"):
        listed(tmp_path / "a.jpg")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    with pytest.raises(VisdivError, match=r"there are no image files in .* \(it is empty\)$"):
        listed(tmp_path)


def test_a_folder_without_images_is_refused_with_what_there_is(tmp_path):
    write(tmp_path, "a.txt", "b.txt", "deep/c.TXT", "d.json", "LICENSE")
    counted = r"\(5 files left out by their names: 3 × \.txt, 1 × "
    with pytest.raises(VisdivError, match=rf"there are no image files in .* {counted}"):
        listed(tmp_path)


def test_a_folder_that_fails_to_list_is_never_taken_for_an_empty_one(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(VisdivError, match=r"^cannot list .*/loop: .*symbolic links"):
        listed(tmp_path / "loop")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_one_folder_without_permission_fails_the_whole_listing(tmp_path):
    write(tmp_path, "a.jpg", "locked/b.jpg")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(VisdivError, match=r"^cannot list .*/locked: Permission denied"):
            listed(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)


LOCKED = ["locked", "locked/", "locked/**", "**/locked", "**/locked/**", "lock*", "{locked,x}/**"]


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder in which one may not be listed, also for root."""
    write(tmp_path, "a.jpg", "locked/b.jpg", "locked/deep/c.jpg", "lost+found/d.jpg")
    scandir = os.scandir

    def refuse(path):
        if "/locked" in str(path) or "/lost+found" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return tmp_path


@pytest.mark.parametrize("pattern", LOCKED)
def test_a_folder_without_permission_can_be_excluded(locked, pattern):
    source = DirectorySource(locked, exclude=[pattern])
    assert [item.image_id for item in source.items()] == ["a.jpg"]


def test_a_folder_without_permission_is_not_entered_if_nothing_in_it_is_included(locked):
    write(locked, "train/b.jpg")
    source = DirectorySource(locked, include=["train/**"])
    assert [item.image_id for item in source.items()] == ["train/b.jpg"]


def test_a_folder_without_permission_is_named_with_how_to_leave_it_out(locked):
    hint = r'to leave it out, set exclude: \["locked/\*\*"\] in the settings$'
    with pytest.raises(VisdivError, match=rf"^cannot list .*/locked: Permission denied; {hint}"):
        listed(locked)


def test_what_is_excluded_does_not_come_back_by_a_link(tmp_path):
    write(tmp_path, "a.jpg", "thumbs/b.jpg")
    (tmp_path / "link").symlink_to("thumbs")
    (tmp_path / "loop").symlink_to(".")
    source = DirectorySource(tmp_path, exclude=["thumbs/**"])
    assert [item.image_id for item in source.items()] == ["a.jpg"]


def test_an_excluded_link_does_not_exclude_the_folder_it_leads_to(tmp_path):
    write(tmp_path, "z/a.jpg")
    (tmp_path / "link").symlink_to("z")
    source = DirectorySource(tmp_path, exclude=["link"])
    assert [item.image_id for item in source.items()] == ["z/a.jpg"]


@pytest.mark.parametrize("target", ["nowhere", "link.jpg"])
def test_dangling_links_and_loops_can_be_excluded(tmp_path, target):
    write(tmp_path, "a.jpg")
    (tmp_path / "link.jpg").symlink_to(target)
    source = DirectorySource(tmp_path, exclude=["link.jpg"])
    assert [item.image_id for item in source.items()] == ["a.jpg"]


# --- URIs ---


def test_a_directory_is_named_by_path_or_file_url(tmp_path):
    for uri in (str(tmp_path), f"file://{tmp_path}"):
        assert open_source(uri).uri == str(tmp_path)


def test_other_urls_are_refused():
    with pytest.raises(VisdivError, match=r"cannot read images from ftp://; use a path or one of"):
        open_source("ftp://host/photos")


def test_a_folder_whose_path_begins_with_two_slashes_is_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"content")
    source = DirectorySource(f"/{tmp_path}")
    ids = [item.image_id for item in source.items()]
    assert [read.data for read in source.read_all(ids)] == [b"content"]


def test_sockets_and_pipes_are_no_images_and_end_no_run(tmp_path):
    for number in range(5):
        os.mkfifo(tmp_path / f"pipe{number}.jpg")
        with socket.socket(socket.AF_UNIX) as server:
            here = os.open(tmp_path, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{here}/socket{number}.jpg")
            os.close(here)
    (tmp_path / "whole.jpg").write_bytes(b"content")
    source = DirectorySource(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    *others, whole = [read.data for read in source.read_all(names)]
    assert whole == b"content"
    assert {str(each) for each in others} == {"not a file"}


def test_a_file_that_grows_while_it_is_read_is_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(5000))
    status = Path.stat

    def smaller(self, **options):
        found = status(self, **options)
        return os.stat_result((*found[:6], 100, *found[7:10])) if self == path else found

    source = DirectorySource(tmp_path)
    monkeypatch.setattr(Path, "stat", smaller)
    assert [read.data for read in source.read_all(["a.jpg"])] == [bytes(5000)]
