"""Decoder processes that crash, hang or talk rubbish cost one image each, and none stays behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from visdiv_assets.embedding import pipeline
from visdiv_assets.embedding.decoders import COMMAND, Decoders
from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.embedding.pipeline import embed_stream
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, decode_image
from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.store.store import Store
from visdiv_assets_tests.conftest import PHOTOS
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, WatchedSource, write_images

linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

# A decoder that does what some images say, and decodes all others.
WORKER = """
import json, os, signal, sys, time
from visdiv_assets.embedding import decode_worker
from visdiv_assets.embedding.preprocess import Decoding

answer = decode_worker._answer

def act(request, data, decoding, answers):
    for order, act in {
        b"CRASH": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        b"EXIT": lambda: os._exit(3),
        b"HANG": lambda: time.sleep(1000),
        b"HALF": lambda: (answers.write(b"+half"), answers.flush(), os._exit(0)),
        b"STALL": lambda: (answers.write(b"+half"), answers.flush(), time.sleep(1000)),
        b"RUBBISH": lambda: (answers.write(b"-" + (7).to_bytes(4) + b"rubbish"), answers.flush()),
        b"PRINT": lambda: print("hello"),
    }.items():
        if data.startswith(order):
            act()
            if order == b"RUBBISH":
                return
    answer(request, data, decoding, answers)

decode_worker._answer = act
decode_worker.main()
"""
# For what never comes.
DECODING = Decoding(max_seconds=0.5)
PATIENT = Decoding(max_seconds=60)


def command(code=WORKER):
    return (sys.executable, "-c", textwrap.dedent(code))


def decoders(decoding=PATIENT, processes=1, code=WORKER):
    return Decoders(decoding, processes, command(code))


def children():
    """Process ids of this process's children that have not ended; none may be left unwaited for."""
    own, found = str(os.getpid()), []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if fields[1] == own:
            found.append(int(status.parent.name))
    return set(found)


def until(holds):
    """Wait for what other processes are about to do; /proc may lag behind on a busy machine."""
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about in a minute")


@pytest.fixture
def warm_decoders():
    """None here: these tests are about the start and the end of decoders."""


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = children()
    yield
    until(lambda: children() <= before)


@pytest.fixture
def photo():
    return min(PHOTOS.glob("*.jpg")).read_bytes()


# --- the same pixels ---


def test_photographs_have_the_pixels_that_this_process_would_give_them():
    contents = [path.read_bytes() for path in PHOTOS.glob("*.jpg")]
    assert len(contents) == 213
    with Decoders(Decoding(), 2) as real, ThreadPoolExecutor(2) as pool:
        for data, pixels in zip(contents, pool.map(real.decode, contents), strict=True):
            assert np.array_equal(pixels, decode_image(data))


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff" + bytes(100)], ids=repr
)
def test_what_cannot_be_decoded_has_the_reason_that_this_process_would_give(data):
    with pytest.raises(DecodeError) as here:
        decode_image(data)
    with Decoders(Decoding(), 1) as real, pytest.raises(DecodeError) as there:
        real.decode(data)
    assert (there.value.reason, there.value.exception) == (
        here.value.reason,
        here.value.exception,
    )


def test_settings_reach_the_process(photo):
    with (
        Decoders(Decoding(max_pixels=10), 1) as real,
        pytest.raises(DecodeError, match="pixels exceed the limit"),
    ):
        real.decode(photo)


def test_an_image_larger_than_any_pipe_passes(photo):
    with Decoders(Decoding(), 1) as real:
        pixels = real.decode(photo + bytes(20_000_000))
    assert np.array_equal(pixels, decode_image(photo))


def test_processes_start_when_they_are_needed(photo):
    before = children()
    with decoders(processes=8) as eight:
        until(lambda: children() == before)
        eight.decode(photo)
        eight.decode(photo)
        assert len(children() - before) == 1


@linux_only
def test_all_processes_are_ended(photo):
    before = children()
    with Decoders(Decoding(), 3) as three, ThreadPoolExecutor(3) as pool:
        while len(children() - before) < 3:
            list(pool.map(three.decode, [photo] * 9))
    until(lambda: children() == before)


# --- what brings a process down ---

DEADLY = [
    (b"CRASH", PATIENT, "ProcessError", "signal 11"),
    (b"EXIT", PATIENT, "ProcessError", "exit code 3"),
    (b"HALF", PATIENT, "ProcessError", "exit code 0"),
    (b"HANG", DECODING, "TimeoutError", r"decoding took longer than 0\.5 seconds"),
    (b"STALL", DECODING, "TimeoutError", r"decoding took longer than 0\.5 seconds"),
]


@linux_only
@pytest.mark.parametrize(("order", "decoding", "exception", "reason"), DEADLY)
def test_one_image_is_lost_and_the_next_is_decoded(photo, order, decoding, exception, reason):
    with decoders(decoding) as one:
        for _ in range(2):
            with pytest.raises(DecodeError, match=reason) as caught:
                one.decode(order)
            assert caught.value.exception == exception
        if decoding is PATIENT:
            assert np.array_equal(one.decode(photo), decode_image(photo))


def test_a_process_that_dies_while_it_is_written_to_costs_one_image(photo):
    with decoders(code="import sys, os; os.write(1, b'!'); sys.stdin.buffer.read(9)") as one:
        for _ in range(2):
            with pytest.raises(DecodeError, match="the decoder crashed"):
                one.decode(photo + bytes(20_000_000))


def test_a_process_that_talks_rubbish_is_ended_and_costs_no_other_image(photo):
    with decoders() as one:
        with pytest.raises(DecodeError) as caught:
            one.decode(b"RUBBISH")
        assert caught.value.exception == "ProcessError"
        assert np.array_equal(one.decode(photo), decode_image(photo))


@pytest.mark.parametrize("lie", ["b'-' + b'\\xff' * 4", "b'?'", "b'-' + bytes(4)"])
def test_an_answer_that_is_none_costs_one_image(photo, lie):
    code = f"""
        import os, sys
        os.write(1, b"!")
        sys.stdin.buffer.read(100)
        os.write(1, {lie})
    """
    with decoders(code=code) as one, pytest.raises(DecodeError):
        one.decode(photo)


def test_what_a_decoder_prints_is_no_answer(photo):
    with decoders() as one:
        with pytest.raises(DecodeError, match="not an image"):
            one.decode(b"PRINT")
        assert np.array_equal(one.decode(photo), decode_image(photo))


@pytest.mark.parametrize(
    "code", ["", "raise SystemExit(1)", "print('usage: …', flush=True)", "import no_such_module"]
)
def test_a_decoder_that_does_not_start_is_an_error_of_the_surroundings(photo, code):
    with decoders(code=code) as one, pytest.raises(VisdivError, match="the decoder does not start"):
        one.decode(photo)


def test_a_command_that_does_not_exist_is_an_error_of_the_surroundings(photo):
    with (
        Decoders(PATIENT, 1, ("/no/such/command",)) as one,
        pytest.raises(VisdivError, match="the decoder does not start"),
    ):
        one.decode(photo)


# --- in a run ---


@pytest.fixture
def folder(tmp_path):
    """Twenty images, and one of each that brings a process down."""
    folder = write_images(tmp_path / "images", 20)
    for order in (b"CRASH", b"EXIT", b"HALF", b"RUBBISH"):
        (folder / f"{order.decode()}.png").write_bytes(order)
    (folder / "text.png").write_bytes(b"I am no image")
    return folder


@pytest.fixture
def deadly(monkeypatch):
    monkeypatch.setattr(pipeline, "Decoders", partial(Decoders, command=command()))


def test_a_run_loses_no_image_but_those_that_bring_decoders_down(folder, deadly, tmp_path):
    source, store = DirectorySource(folder), Store(tmp_path / "store")
    index, n_new = embed_manifest("x", list_images(source), source, FakeEmbedder(), store)
    assert (n_new, index.n_images) == (20, 20)
    failed = {row["image_id"]: row["exception"] for row in index.failed().to_pylist()}
    assert failed == {
        "CRASH.png": "ProcessError",
        "EXIT.png": "ProcessError",
        "HALF.png": "ProcessError",
        "RUBBISH.png": "ProcessError",
        "text.png": "UnidentifiedImageError",
    }


def test_an_image_that_hangs_is_tried_again_and_undecodable_content_is_not(
    tmp_path, monkeypatch, deadly
):
    folder = write_images(tmp_path / "images", 2)
    (folder / "hang.png").write_bytes(b"HANG")
    (folder / "crash.png").write_bytes(b"CRASH")
    (folder / "text.png").write_bytes(b"I am no image")
    decode = Decoders.decode

    def give_up(self, data):
        # Time is short for this image alone, however slow the machine is.
        if data == b"HANG":
            with decoders(DECODING) as hasty:
                return decode(hasty, data)
        return decode(self, data)

    monkeypatch.setattr(Decoders, "decode", give_up)
    store = Store(tmp_path / "store")
    read = []
    for _ in range(2):
        source = WatchedSource(folder)
        index, _ = embed_manifest("x", list_images(source), source, FakeEmbedder(), store)
        assert [name for name, _ in index.failures()] == ["crash.png", "hang.png", "text.png"]
        read.append(sorted(source.read_ids))
    assert read == [
        ["000.png", "001.png", "crash.png", "hang.png", "text.png"],
        ["crash.png", "hang.png"],
    ]


def stream(folder):
    source = DirectorySource(folder)
    ids = list_images(source).table["image_id"].to_pylist()
    return embed_stream(source, ids, FakeEmbedder())


@linux_only
def test_no_process_is_left_after_the_end(folder, deadly):
    before = children()
    assert len(list(stream(folder))) == 25
    until(lambda: children() == before)


@linux_only
def test_no_process_is_left_after_an_exception_in_the_consumer(folder, deadly):
    before = children()
    # As long as someone holds the exception, its traceback holds the stream.
    with contextlib.suppress(ZeroDivisionError):
        for _ in stream(folder):
            1 / 0  # noqa: B018
    until(lambda: children() == before)


@linux_only
def test_no_process_is_left_after_the_consumer_stops(folder, deadly):
    before = children()
    outcomes = stream(folder)
    next(outcomes)
    until(lambda: children() > before)
    outcomes.close()
    until(lambda: children() == before)


@linux_only
def test_no_process_is_left_when_the_model_fails(folder):
    class Failing(FakeEmbedder):
        def embed(self, pixels):
            raise RuntimeError("out of memory")

    before = children()
    source = DirectorySource(folder)
    ids = list_images(source).table["image_id"].to_pylist()
    with contextlib.suppress(RuntimeError):
        list(embed_stream(source, ids, Failing()))
        raise AssertionError("it went well")
    until(lambda: children() == before)


def test_a_decoder_that_does_not_start_ends_the_run_and_is_no_failure_of_images(
    folder, monkeypatch
):
    monkeypatch.setattr(pipeline, "Decoders", partial(Decoders, command=command("exit(1)")))
    with pytest.raises(VisdivError, match="the decoder does not start"):
        list(stream(folder))


# --- signals ---

RUN = """
import signal, sys, time
from pathlib import Path
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.preprocess import Decoding

signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
data = Path(sys.argv[1]).read_bytes()
decoders = Decoders(Decoding(), 1)
decoders.decode(data)
print(decoders._idle.queue[-1]._process.pid, flush=True)
sys.stdin.readline()
decoders.decode(data)
print(decoders._idle.queue[-1]._process.pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def run_elsewhere():
    """A process group with a run in it, and the id of its decoder."""
    photo = min(PHOTOS.glob("*.jpg"))
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(photo)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@linux_only
def test_an_interrupt_of_the_whole_group_leaves_decoders_alone(run_elsewhere):
    process, decoder = run_elsewhere
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    process.stdin.write("\n")
    process.stdin.flush()
    assert int(process.stdout.readline()) == decoder  # the same process has decoded again


@linux_only
def test_a_run_that_is_killed_takes_its_decoders_along(run_elsewhere):
    process, decoder = run_elsewhere
    process.kill()
    process.wait()
    while Path(f"/proc/{decoder}/cmdline").exists():
        if not Path(f"/proc/{decoder}/cmdline").read_bytes():
            break  # ended, and waits for someone to take note
        time.sleep(0.02)


def test_the_command_is_the_worker_of_this_python():
    assert COMMAND[0] == sys.executable
