"""Places that do not answer, answer without end, or are gone: a clear error, and no waiting."""

import contextlib
import errno
import itertools
import os
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from visdiv_assets.errors import Unreachable, VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources import buckets, places, web
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images, look
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.places import WebPlace
from visdiv_assets.sources.reaching import MOST_FAILURES, time_limit
from visdiv_assets.sources.source import Item, read_one
from visdiv_assets_tests.sources.servers import (
    answering,
    head,
    http_server,
    silent,
    socket_server,
)

NAMES = ["x.tar", "x.zip", "x.parquet", "x.arrow", "list.csv", "{0..9}.tar"]


@pytest.fixture
def impatient(monkeypatch):
    """The limits of a place that is waited for, small."""
    monkeypatch.setattr(web, "CONNECT_SECONDS", 10.0)
    monkeypatch.setattr(web, "SILENT_SECONDS", 1.0)  # a busy machine answers within that time
    monkeypatch.setattr(web, "HEAD_SECONDS", 5.0)
    monkeypatch.setattr(places, "ATTEMPTS", 1)
    monkeypatch.setattr(buckets, "ATTEMPTS", 1)
    monkeypatch.setattr(places, "RETRY_SECONDS", 1)
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 1)


def refused(source: str | SourceSettings) -> VisdivError:
    """The error of looking at a source and of listing it, which is the same."""
    errors = []
    for act in (look, list_images):
        with pytest.raises(VisdivError) as caught:
            act(open_source(source))
        errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    return errors[0]


# --- web servers ---


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_accepts_and_never_answers_is_given_up(impatient, name):
    with socket_server(silent) as address:
        error = refused(f"http://{address}/{name}")
    assert isinstance(error, Unreachable)
    assert "the server does not answer (1 s)" in str(error)
    assert str(error).startswith(f"cannot {'list' if '{' in name else 'read'} http://{address}")


def test_limits_are_as_the_handbook_says():
    timeout = WebPlace("http://host")._web._files.client_kwargs["timeout"]
    assert (timeout.sock_connect, timeout.connect, timeout.sock_read) == (10, 10, 30)
    longest = places.RETRY_SECONDS + max(web.HEAD_SECONDS, web.SILENT_SECONDS)
    assert longest <= 120


def test_a_server_that_is_not_there_cannot_be_connected_to(impatient):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    error = refused(f"http://{address}/x.tar")
    assert isinstance(error, Unreachable)
    told = f"cannot connect to {address}: "
    assert str(error).startswith(f"cannot read http://{address}/x.tar: {told}")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_overloaded_may_be_better_later(impatient, status):
    answer = head(f"{status} No", Content_Length=0)
    with socket_server(answering(lambda method, path: answer)) as address:
        error = refused(f"http://{address}/x.tar")
    assert isinstance(error, Unreachable)
    assert str(error) == f"cannot read http://{address}/x.tar: HTTP status {status}"


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (404, "no such file: {uri}"),
        (410, "no such file: {uri}"),
        (400, "cannot read {uri}: HTTP status 400"),
        (401, "cannot read {uri}: HTTP status 401"),
        (403, "cannot read {uri}: HTTP status 403"),
    ],
)
def test_a_file_that_is_missing_or_forbidden_is_not_worth_another_attempt(impatient, status, told):
    asked = Counter[str]()

    def answer(method: str, path: str) -> bytes:
        asked[method] += 1
        return head(f"{status} No", Content_Length=0)

    with socket_server(answering(answer)) as address:
        error = refused(f"http://{address}/x.tar")
    assert type(error) is VisdivError
    assert str(error) == told.format(uri=f"http://{address}/x.tar")
    assert asked == {"HEAD": 2, "GET": 2}  # once each for look and list


def test_a_server_that_answers_head_and_hangs_on_content_is_given_up(impatient):
    told = head(Content_Length=1000, Accept_Ranges="bytes")

    def answer(method: str, path: str) -> bytes | None:
        return told if method == "HEAD" else None

    with socket_server(answering(answer)) as address:
        for name in ("x.tar", "x.zip", "x.parquet", "x.arrow", "list.csv"):
            source = open_source(f"http://{address}/{name}")
            assert look(source)
            with pytest.raises(Unreachable, match=r"the server does not answer \(1 s\)"):
                list_images(source)


def dripping(part: bytes, start: bytes = b""):
    def behave(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(part)
            time.sleep(0.02)

    return behave


def in_content(behave):
    """Answers HEAD at once, and behaves so when it is asked for content."""

    def either(connection: socket.socket) -> None:
        asked = connection.recv(65_536)
        if asked.startswith(b"HEAD"):
            connection.sendall(head(Content_Length=10**6, Connection="close"))
        else:
            behave(connection)

    return either


def test_a_server_that_drips_the_head_of_its_answer_is_given_up(impatient, monkeypatch):
    monkeypatch.setattr(web, "SILENT_SECONDS", 60.0)
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.2)
    with socket_server(dripping(b"X-Y: z\r\n", b"HTTP/1.1 200 OK\r\n")) as address:
        assert isinstance(refused(f"http://{address}/x.tar"), Unreachable)


def test_a_server_that_drips_content_is_given_up(impatient, monkeypatch):
    monkeypatch.setattr(web, "SILENT_SECONDS", 60.0)
    monkeypatch.setattr(web, "SLOW_SECONDS", 0.1)
    with (
        socket_server(in_content(dripping(b"x", head(Content_Length=10**6)))) as address,
        pytest.raises(Unreachable, match="sends less than 10,000 bytes a second"),
    ):
        list_images(open_source(f"http://{address}/x.tar"))


def test_a_server_that_closes_connections_midway_may_be_better_later(impatient):
    def behave(connection: socket.socket) -> None:
        connection.sendall(head(Content_Length=1000) + b"begins")

    with (
        socket_server(in_content(behave)) as address,
        pytest.raises(Unreachable, match="the server closed the connection midway"),
    ):
        list_images(open_source(f"http://{address}/x.zip"))


def test_a_server_that_closes_connections_at_once_may_be_better_later(impatient):
    with socket_server(lambda connection: None) as address:
        assert isinstance(refused(f"http://{address}/x.zip"), Unreachable)


def test_redirections_that_go_in_circles_are_an_error(impatient):
    answer = head("302 Found", Location="/x.tar", Content_Length=0)
    with socket_server(answering(lambda method, path: answer)) as address:
        error = refused(f"http://{address}/x.tar")
    assert type(error) is VisdivError
    assert "its redirections do not end" in str(error)


@pytest.mark.parametrize("location", ["ftp://host/x", "file:///etc/passwd", "http://[::1/x"])
def test_a_redirection_that_leads_nowhere_is_an_error(impatient, location):
    answer = head("302 Found", Location=location, Content_Length=0)
    with socket_server(answering(lambda method, path: answer)) as address:
        assert type(refused(f"http://{address}/x.tar")) is VisdivError


def test_tls_is_not_spoken_at_a_plain_port(impatient, tmp_path):
    (tmp_path / "x.tar").touch()
    with http_server(tmp_path) as address:
        error = refused(f"{address.replace('http', 'https')}/x.tar")
    assert type(error) is VisdivError
    assert "there is no TLS at this address" in str(error)


def test_a_server_of_another_kind_is_an_error(impatient):
    with socket_server(lambda connection: connection.sendall(b"SSH-2.0-server\r\n")) as address:
        error = refused(f"http://{address}/x.tar")
    assert type(error) is VisdivError
    assert "the server does not speak HTTP" in str(error)


def endless(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(head(Connection="close"))
    while True:
        connection.sendall(b"x" * 65_536)


def test_a_long_answer_in_no_language_is_searched_for_secrets_in_no_time(impatient):
    with socket_server(endless) as address, pytest.raises(VisdivError) as caught:
        list_images(open_source(f"http://{address}/x.tar"))  # its HEAD has a body, too
    assert len(str(caught.value)) < 500


def test_an_image_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(places, "MAX_IMAGE_BYTES", 10**6)
    with socket_server(endless) as address, pytest.raises(OSError, match="larger than 1,000,000"):
        WebPlace(f"http://{address}").read("a.jpg")


def test_an_image_that_is_told_to_be_too_large_is_not_fetched(monkeypatch):
    monkeypatch.setattr(places, "MAX_IMAGE_BYTES", 10**6)
    answer = head(Content_Length=10**6 + 1)  # and nothing follows
    with (
        socket_server(answering(lambda method, path: answer)) as address,
        pytest.raises(OSError, match="larger than 1,000,000"),
    ):
        WebPlace(f"http://{address}").read("a.jpg")


def has_free(monkeypatch, free: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=places.SPARE_BYTES + free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def untold(connection: socket.socket) -> None:
    """Has no end, and its size is not told."""
    asked = connection.recv(65_536)
    connection.sendall(head(Connection="close"))
    while asked.startswith(b"GET"):
        connection.sendall(b"x" * 65_536)


def test_a_file_without_end_never_fills_the_disk(monkeypatch):
    has_free(monkeypatch, 10**6)
    with (
        socket_server(untold) as address,
        pytest.raises(VisdivError, match=r"larger than 1,000,000 bytes"),
    ):
        list_images(open_source(f"http://{address}/x.tar"))


def test_a_file_that_the_disk_has_no_room_for_is_not_fetched(monkeypatch):
    has_free(monkeypatch, 10**6)
    answer = head(Content_Length=10**6 + 1)
    with (
        socket_server(answering(lambda method, path: answer)) as address,
        pytest.raises(VisdivError, match="has room for; set TMPDIR to another folder"),
    ):
        list_images(open_source(f"http://{address}/x.tar"))


def test_a_part_longer_than_asked_for_is_an_error(impatient):
    answer = head("206 Partial Content", Accept_Ranges="bytes", Connection="close")

    def behave(connection: socket.socket) -> None:
        method = connection.recv(65_536).split()[0]
        if method == b"HEAD":
            connection.sendall(head(Content_Length=1000, Accept_Ranges="bytes"))
            return
        connection.sendall(answer)
        while True:
            connection.sendall(b"x" * 65_536)

    with (
        socket_server(behave) as address,
        pytest.raises(OSError, match="larger than 1,000 bytes"),
    ):
        WebPlace(f"http://{address}").open("x.tar").read(10)


CONTENT = bytes(range(256)) * 100


def parts_of(content: bytes):
    """A server that sends parts of one file."""

    def behave(connection: socket.socket) -> None:
        asked = connection.makefile("rb")
        while line := asked.readline():
            lines = list(iter(lambda: asked.readline().strip().decode(), ""))
            span = next((each for each in lines if each.startswith("Range: bytes=")), None)
            if line.startswith(b"HEAD"):
                connection.sendall(head(Content_Length=len(content), Accept_Ranges="bytes"))
            elif span is None:
                connection.sendall(head("400 Whole", Content_Length=0))
            else:
                start, end = map(int, span.removeprefix("Range: bytes=").split("-"))
                data = content[start : end + 1]
                connection.sendall(head("206 Partial", Content_Length=len(data)) + data)

    return behave


def test_a_server_that_sends_parts_is_asked_for_parts(monkeypatch):
    monkeypatch.setattr(places, "BUFFER_BYTES", 1000)
    with socket_server(parts_of(CONTENT)) as address:
        file = WebPlace(f"http://{address}").open("x.zip")
        assert file.seek(-300, os.SEEK_END) == len(CONTENT) - 300
        assert file.read() == CONTENT[-300:]
        file.seek(5000)
        assert file.read(10) == CONTENT[5000:5010]
        assert file.tell() == 5010
        file.seek(0)
        assert file.read() == CONTENT
        assert file.read(1) == b""


def test_a_server_that_only_says_that_it_sends_parts_is_an_error(impatient):
    told = head(Content_Length=len(CONTENT), Accept_Ranges="bytes")

    def answer(method: str, path: str) -> bytes:
        return told if method == "HEAD" else told + CONTENT

    with (
        socket_server(answering(answer)) as address,
        pytest.raises(OSError, match="the server sends whole files only"),
    ):
        WebPlace(f"http://{address}").open("x.zip").read(1)


# --- names of servers ---


def test_a_server_whose_name_is_unknown_may_be_found_later(impatient, monkeypatch):
    def unknown(host: str, *args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refused("http://images.invalid/x.tar")
    assert isinstance(error, Unreachable)
    assert "cannot find the server images.invalid (DNS)" in str(error)


@contextlib.contextmanager
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Names that end in `.hangs` are looked up until the end; gives how often."""
    over, asked, find = threading.Event(), Counter[str](), socket.getaddrinfo

    def hang(host: str, *args: object, **options: object) -> object:
        if str(host).endswith(".hangs"):
            asked[host] += 1
            over.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return find(host, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        yield asked
    finally:
        over.set()


def test_a_name_that_is_looked_up_for_ever_is_given_up(impatient, monkeypatch):
    monkeypatch.setattr(web, "CONNECT_SECONDS", 0.2)
    with hanging_names(monkeypatch):
        error = refused("http://images.hangs/x.tar")
    assert isinstance(error, Unreachable)
    assert "cannot connect to the server (0.2 s)" in str(error)


def test_names_that_are_looked_up_for_ever_keep_no_other_server_waiting(monkeypatch, tmp_path):
    monkeypatch.setattr(web, "CONNECT_SECONDS", 30.0)
    (tmp_path / "x.tar").touch()
    with (
        ThreadPoolExecutor(20) as pool,
        http_server(tmp_path) as address,
        hanging_names(monkeypatch) as asked,
    ):
        monkeypatch.setattr(places, "ATTEMPTS", 1)
        for number in range(20):
            pool.submit(WebPlace(f"http://{number}.hangs").info, "x.tar")
        port = address.rpartition(":")[2]
        assert WebPlace(f"http://localhost:{port}").info("x.tar").size == 0
        while len(asked) < 20:
            time.sleep(0.01)


# --- a place that is gone in the middle of a run ---


def test_a_server_that_stops_answering_is_not_asked_for_every_image(impatient, monkeypatch):
    asked = Counter[str]()

    def answer(method: str, path: str) -> bytes | None:
        asked[path] += 1
        return None

    with socket_server(answering(answer)) as address:
        monkeypatch.setattr("visdiv_assets.sources.image_list.READERS", 2)
        source = open_source(f"http://{address}/list.txt")
        with pytest.raises(Unreachable, match="cannot be read any more: the server does not"):
            list(source.read_all(f"{number}.jpg" for number in range(1000)))
    assert len(asked) <= MOST_FAILURES + 2 * 2


def test_an_archive_on_a_server_that_stops_answering_is_given_up(impatient, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(100):
            archive.writestr(f"{number:03}.jpg", bytes(9 * 2**20 if number < 2 else 1000))
    whole = (tmp_path / "x.zip").read_bytes()
    gone = threading.Event()
    serve = parts_of(whole)

    def behave(connection: socket.socket) -> None:
        (silent if gone.is_set() else serve)(connection)

    with socket_server(behave) as address:
        source = open_source(f"http://{address}/x.zip")
        ids = [item.image_id for item in source.items()]
        assert len(ids) == 100
        gone.set()
        source = open_source(f"http://{address}/x.zip")
        with pytest.raises(Unreachable):
            list(source.read_all(ids))


def test_images_that_are_missing_are_failures_and_the_server_is_asked_on(impatient):
    answer = head("404 No", Content_Length=0)
    with socket_server(answering(lambda method, path: answer)) as address:
        source = open_source(f"http://{address}/list.txt")
        reads = list(source.read_all(f"{number}.jpg" for number in range(50)))
    assert [type(read.data) for read in reads] == [FileNotFoundError] * 50


def test_one_image_in_many_that_hangs_is_a_failure(impatient):
    def answer(method: str, path: str) -> bytes | None:
        return None if path == "/5.jpg" else head(Content_Length=4) + b"data"

    with socket_server(answering(answer)) as address:
        source = open_source(f"http://{address}/list.txt")
        reads = list(source.read_all(f"{number}.jpg" for number in range(20)))
    assert [read.at for read in reads if isinstance(read.data, OSError)] == [5]


# --- buckets ---


def bucket(address: str, name: str) -> SourceSettings:
    options = {
        "endpoint": f"http://{address}",
        "region": "us-east-1",
        "access_key_id": "me",
        "secret_access_key": "SECRET",
    }
    return SourceSettings(uri=f"s3://bucket/{name}", options=options)


@pytest.mark.parametrize("name", ["", "x.tar", "*.parquet", "list.csv", "**/*.jpg"])
def test_a_bucket_that_accepts_and_never_answers_is_given_up(impatient, name):
    with socket_server(silent) as address:
        error = refused(bucket(address, name))
    assert isinstance(error, Unreachable)
    assert "the server does not answer (1 s)" in str(error)
    assert "s3://bucket" in str(error)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_bucket_that_is_overloaded_may_be_better_later(impatient, status):
    answer = head(f"{status} No", Content_Length=0)
    with socket_server(answering(lambda method, path: answer)) as address:
        error = refused(bucket(address, ""))
    assert isinstance(error, Unreachable)
    assert str(error) == f"cannot list s3://bucket: HTTP status {status}"


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_bucket_that_is_missing_or_forbidden_is_not_worth_another_attempt(impatient, status):
    answer = head(f"{status} No", Content_Length=0)
    with socket_server(answering(lambda method, path: answer)) as address:
        assert type(refused(bucket(address, ""))) is VisdivError


def test_a_bucket_that_is_not_there_may_be_better_later(impatient):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    error = refused(bucket(address, ""))
    assert isinstance(error, Unreachable)
    assert str(error) == "cannot list s3://bucket: cannot connect to the server"


def test_a_bucket_that_drips_is_given_up(impatient, monkeypatch):
    monkeypatch.setattr(buckets, "REQUEST_SECONDS", 0.5)
    with socket_server(in_content(dripping(b"x", head(Content_Length=10**6)))) as address:
        error = refused(bucket(address, ""))
    assert isinstance(error, Unreachable)
    assert str(error) == "cannot list s3://bucket: the server did not send all of its answer"


def test_a_bucket_that_stops_answering_is_not_asked_for_every_object(impatient, monkeypatch):
    monkeypatch.setattr("visdiv_assets.sources.bucket.READERS", 2)
    with socket_server(silent) as address:
        source = open_source(bucket(address, ""))
        with pytest.raises(Unreachable, match="s3://bucket cannot be read any more"):
            list(source.read_all(f"{number}.jpg" for number in range(1000)))


# --- this machine ---

pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


@pipes
@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.parquet", "x.arrow", "list.csv", "list.txt"])
def test_a_named_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    error = refused(f"{tmp_path}/{name}")
    assert type(error) is VisdivError
    assert str(error).endswith(f"/{name}: not a file")


@pipes
def test_a_named_pipe_among_images_or_their_list_of_files_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "state.json")
    (tmp_path / "a.jpg").write_bytes(b"an image")
    source = open_source(str(tmp_path))
    assert {item.image_id for item in source.items()} == {"a.jpg", "pipe.jpg"}
    with pytest.raises(OSError, match="not a file"):
        read_one(source, "pipe.jpg")


def test_a_device_in_the_place_of_a_list_is_refused(tmp_path):
    (tmp_path / "list.txt").symlink_to("/dev/zero")
    assert "not a file" in str(refused(f"{tmp_path}/list.txt"))


GONE = [errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN]


def gone(monkeypatch: pytest.MonkeyPatch, number: int, *below: Path) -> None:
    """Everything below some folders is on a mount whose server is gone."""

    def guard(module: object, name: str) -> None:
        act = getattr(module, name)

        def guarded(path: object = ".", *args: object, **options: object) -> object:
            if not isinstance(path, int) and any(
                os.fspath(path).rstrip("/").startswith(str(each))  # type: ignore[call-overload]
                for each in below
            ):
                raise OSError(number, os.strerror(number), str(path))
            return act(path, *args, **options)

        monkeypatch.setattr(module, name, guarded)

    guard(os, "stat")
    guard(os, "scandir")
    guard(os, "lstat")


@pytest.mark.parametrize("number", [*GONE, errno.EIO])
@pytest.mark.parametrize("name", ["", "x.tar", "*.parquet", "list.csv", "**/*.jpg"])
def test_a_mount_that_is_gone_may_be_back_later(tmp_path, monkeypatch, number, name):
    mount = tmp_path / "mount"
    mount.mkdir()
    for each in ("a.jpg", "x.tar", "list.csv", "x.parquet"):
        (mount / each).write_bytes(b"data")
    gone(monkeypatch, number, mount)
    error = refused(f"{mount}/{name}")
    assert isinstance(error, Unreachable)
    assert os.strerror(number) in str(error)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.ELOOP])
def test_a_folder_that_is_missing_or_forbidden_is_not_worth_another_attempt(
    tmp_path, monkeypatch, number
):
    (tmp_path / "mount").mkdir()
    gone(monkeypatch, number, tmp_path / "mount")
    assert type(refused(f"{tmp_path}/mount")) is VisdivError


@pytest.mark.parametrize("number", GONE)
def test_images_of_a_list_on_a_mount_that_is_gone_are_not_taken_for_changed(
    tmp_path, monkeypatch, number
):
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount/a.jpg").touch()
    (tmp_path / "list.txt").write_text("a.jpg\n")
    source = SourceSettings(uri=f"{tmp_path}/list.txt", root=f"{tmp_path}/mount")
    assert look(open_source(source))
    gone(monkeypatch, number, tmp_path / "mount")
    assert isinstance(refused(source), Unreachable)


@pytest.mark.parametrize("number", GONE)
def test_a_linked_folder_on_a_mount_that_is_gone_is_not_taken_for_empty(
    tmp_path, monkeypatch, number
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    (tmp_path / "mount").mkdir()
    link = tmp_path / "photos/more"
    link.symlink_to(tmp_path / "mount")

    class Link:
        """As the system's, whose answers cannot be replaced."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path = entry.name, entry.path
            self.is_symlink, self.stat, self._entry = entry.is_symlink, entry.stat, entry

        def is_dir(self, *, follow_symlinks: bool = True) -> bool:
            if follow_symlinks and self.path == str(link):
                raise OSError(number, os.strerror(number))
            return self._entry.is_dir(follow_symlinks=follow_symlinks)

    scan = os.scandir

    @contextlib.contextmanager
    def scandir(path: str) -> Iterator[Iterator[Link]]:
        with scan(path) as entries:
            yield map(Link, entries)

    monkeypatch.setattr("visdiv_assets.sources.directory.os.scandir", scandir)
    assert isinstance(refused(str(tmp_path / "photos")), Unreachable)


def test_a_mount_that_goes_away_in_the_middle_is_not_asked_for_every_image(tmp_path, monkeypatch):
    for number in range(50):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"an image")
    source = DirectorySource(tmp_path)
    ids = [item.image_id for item in source.items()]

    def stale(path: str) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(places, "_content", stale)
    with pytest.raises(Unreachable, match="cannot be read any more: Stale file handle"):
        list(source.read_all(ids))


# --- the time of a look ---


class Counted:
    """A source of many items, which counts those that were taken."""

    uri = "counted"

    def __init__(self) -> None:
        self.taken = 0

    def items(self) -> Iterator[Item]:
        for number in itertools.count():
            self.taken += 1
            yield Item(str(number), 1, "")

    def fingerprint(self) -> None:
        return

    def read_all(self, image_ids: object) -> Iterator[object]:
        raise NotImplementedError


@pytest.mark.parametrize("act", [look, list_images])
def test_the_time_of_a_look_is_over_between_two_items(act):
    source = Counted()
    with pytest.raises(VisdivError, match="listing counted took longer than -1 seconds"):
        act(source, within_seconds=-1.0)
    assert source.taken == 1


def in_a_list(folder: Path, line: str) -> str:
    (folder / "list.txt").write_text(f"{line}\n" * 10)
    return f"{folder}/list.txt"


def test_the_time_of_a_look_is_over_where_no_image_comes_for_long(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/notes.txt").touch()
    for uri in (str(tmp_path / "photos"), in_a_list(tmp_path, "# a comment")):
        with pytest.raises(VisdivError, match="took longer than"):
            look(open_source(uri), within_seconds=-1.0)


def test_the_time_of_a_look_is_over_among_many_files(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.tar").touch()
    for pattern in ("{0..2}.tar", "*.tar"):
        with pytest.raises(VisdivError, match="took longer than"):
            look(open_source(f"{tmp_path}/{pattern}"), within_seconds=-1.0)


def test_the_time_of_a_look_is_over_in_the_middle_of_a_request():
    with socket_server(silent) as address, pytest.raises(VisdivError, match="took longer than 0 s"):
        look(open_source(f"http://{address}/x.tar"), within_seconds=0.1)


def test_a_limit_within_another_one_does_not_lift_it(tmp_path):
    (tmp_path / "a.jpg").touch()
    with time_limit(-1.0), pytest.raises(VisdivError):
        list_images(DirectorySource(tmp_path), within_seconds=1000.0)
    assert list_images(DirectorySource(tmp_path))
