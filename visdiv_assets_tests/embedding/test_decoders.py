"""Decoder processes that crash, hang or talk rubbish cost one image each, and none stays behind."""

import contextlib
import io
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
import PIL
import pytest
from PIL import Image

from visdiv_assets.embedding import pipeline
from visdiv_assets.embedding.decoders import COMMAND, Decoders
from visdiv_assets.embedding.decoding import PASSING
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

ROOT, INSTALLED = PHOTOS.parents[2], Path(PIL.__file__).parents[1]

# A decoder that does what some images say, and decodes all others.
WORKER = """
import json, os, pathlib, signal, sys, time
from visdiv_assets.embedding import decode_worker
from visdiv_assets.embedding.preprocess import Decoding

answer = decode_worker._answer

def wait(where):
    # Tells its process id, and waits to be told to go on.
    (pathlib.Path(where) / str(os.getpid())).touch()
    while not (pathlib.Path(where) / "go").exists():
        time.sleep(0.01)

def act(request, data, decoding, answers):
    if data.startswith(b"WAIT"):
        where, data = data[4:].split(b";", 1)
        wait(where.decode())
    for order, act in {
        b"CRASH": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        b"EXIT": lambda: os._exit(3),
        b"HANG": lambda: time.sleep(1000),
        b"HALF": lambda: (answers.write(b"+half"), answers.flush(), os._exit(0)),
        b"STALL": lambda: (answers.write(b"+half"), answers.flush(), time.sleep(1000)),
        b"RUBBISH": lambda: (answers.write(b"-" + (7).to_bytes(4) + b"rubbish"), answers.flush()),
        b"PRINT": lambda: print("hello", flush=True),
        b"PUTS": lambda: os.write(1, b"hello"),
        b"CHATTER": lambda: [os.write(2, b"warning " * 1000) for _ in range(1000)],
        b"EXHAUST": lambda: bytearray(2**40),
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
    """As the real one, with other code."""
    *python, _boot, homes = COMMAND
    code = "import json, sys; sys.path += json.loads(sys.argv.pop(1))\n" + textwrap.dedent(code)
    return (*python, code, homes)


def decoders(decoding=PATIENT, processes=1, code=WORKER, **options):
    """Decoders that do not pause before they are started again."""
    options = {"sleep": lambda seconds: None, **options}
    return Decoders(decoding, processes, command(code), **options)


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


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "flat", "changed"),
    [
        (Image.linear_gradient("L"), False, False),
        (Image.new("L", (9, 9), 7), True, False),
        (Image.linear_gradient("L").convert("I;16"), False, True),
        (Image.new("I;16", (9, 9), 700), True, True),
    ],
    ids=["neither", "flat", "changed", "both"],
)
def test_it_is_told_whether_a_picture_is_flat_or_has_changed(image, flat, changed):
    if image.mode == "I;16" and not flat:
        image = Image.fromarray(np.asarray(image) * 257)
    with Decoders(Decoding(), 1) as real:
        picture = real.picture(encoded(image))
    assert picture[1:] == (*image.size, flat, changed)


def test_numpy_is_loaded_for_deep_pictures_only(photo):
    code = """
        import sys
        from visdiv_assets.embedding.decoding import Decoding, decode_square
        decode_square(sys.stdin.buffer.read(), Decoding())
        print("numpy" in sys.modules)
    """
    loaded = [
        subprocess.run(command(code), input=data, stdout=subprocess.PIPE, check=True).stdout
        for data in (photo, encoded(Image.new("I;16", (9, 9), 700)))
    ]
    assert loaded == [b"False\n", b"True\n"]


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


@pytest.mark.parametrize("order", [b"PRINT", b"PUTS"])
def test_what_a_decoder_prints_is_no_answer(photo, order):
    with decoders() as one:
        with pytest.raises(DecodeError, match="not an image"):
            one.decode(order)
        assert np.array_equal(one.decode(photo), decode_image(photo))


def test_chatter_of_codecs_is_not_shown_and_blocks_nothing(photo, capfd):
    with decoders() as one:
        with pytest.raises(DecodeError, match="not an image"):
            one.decode(b"CHATTER")
        assert np.array_equal(one.decode(photo), decode_image(photo))
    assert capfd.readouterr() == ("", "")


def test_a_decoder_that_does_not_read_has_a_time_limit_too(photo):
    deaf = "import os, time; os.write(1, b'!'); time.sleep(1000)"
    with decoders(DECODING, code=deaf) as one:
        with pytest.raises(DecodeError, match="took longer than") as caught:
            one.decode(photo + bytes(20_000_000))
        assert caught.value.exception == "TimeoutError"


def test_a_decoder_that_runs_out_of_memory_is_told_from_one_that_crashes(photo):
    with decoders() as one:
        with pytest.raises(DecodeError, match="more memory than there is") as caught:
            one.decode(b"EXHAUST")
        assert caught.value.exception == "MemoryError"
        assert caught.value.exception in PASSING
        assert np.array_equal(one.decode(photo), decode_image(photo))


def test_an_image_that_takes_more_memory_than_allowed_says_so(photo):
    large = io.BytesIO()
    Image.new("L", (8000, 8000)).save(large, "PNG")  # 64 MB, and 256 MB as RGB
    code = WORKER.replace(
        "decode_worker.main()", "decode_worker.MAX_BYTES = 2**28\ndecode_worker.main()"
    )
    with decoders(code=code) as one:
        with pytest.raises(DecodeError, match="more memory than there is") as caught:
            one.decode(large.getvalue())
        assert caught.value.exception == "MemoryError"
        assert np.array_equal(one.decode(photo), decode_image(photo))


# --- starting ---

# What a decoder that starts at the third attempt begins with.
THIRD = """
import os, signal, sys
from pathlib import Path

starts = Path({starts!r})
starts.write_text(starts.read_text() + "x")
if len(starts.read_text()) < 3:
    {end}
"""


@pytest.mark.parametrize(
    "end", ["sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)", "print('hello'); sys.exit()"]
)
def test_a_decoder_that_dies_while_it_starts_is_started_again(photo, tmp_path, end):
    starts, pauses = tmp_path / "starts", []
    starts.touch()
    code = THIRD.format(starts=str(starts), end=end) + WORKER
    with decoders(code=code, sleep=pauses.append) as one:
        assert np.array_equal(one.decode(photo), decode_image(photo))
    assert starts.read_text() == "xxx"
    assert pauses == [0.5, 1]


@pytest.mark.parametrize(
    "code", ["", "raise SystemExit(1)", "print('usage: …', flush=True)", "import no_such_module"]
)
def test_a_decoder_that_never_starts_is_an_error_of_the_surroundings(photo, code):
    pauses = []
    with (
        decoders(code=code, sleep=pauses.append) as one,
        pytest.raises(VisdivError, match="the decoder does not start"),
    ):
        one.decode(photo)
    assert pauses == [0.5, 1, 2, 4]


def test_why_a_decoder_does_not_start_is_told(photo):
    with (
        decoders(code="import no_such_module") as one,
        pytest.raises(
            VisdivError,
            match=r"it crashed \(exit code 1\) and said: ModuleNotFoundError: No module named",
        ),
    ):
        one.decode(photo)


def test_a_reason_is_one_short_printable_line(photo):
    code = "import sys; sys.exit('first\\n\\x1b[31m' + 1_000_000 * 'long ' + '\\n\\n')"
    with decoders(code=code) as one, pytest.raises(VisdivError) as caught:
        one.decode(photo)
    assert "said: " in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_command_that_does_not_exist_is_an_error_of_the_surroundings(photo):
    with (
        Decoders(PATIENT, 1, ("/no/such/command",), sleep=lambda seconds: None) as one,
        pytest.raises(VisdivError, match="the decoder does not start: No such file or directory"),
    ):
        one.decode(photo)


@linux_only
def test_processes_that_were_started_in_vain_leave_no_pipe_open(photo):
    before = len(os.listdir("/proc/self/fd"))
    with decoders(code="exit(1)") as one, pytest.raises(VisdivError):
        one.decode(photo)
    with decoders() as one, pytest.raises(DecodeError):
        one.decode(b"CRASH")
    assert len(os.listdir("/proc/self/fd")) == before


# --- what code runs ---

TRAP = "open({ran!r}, 'a').write(__name__)\nImage = ImageOps = None\n__version__ = '0'\n"
MODULES = [
    "json.py",
    "signal.py",
    "fractions.py",
    "typing.py",
    "resource.py",
    "sitecustomize.py",
    "usercustomize.py",
    "PIL/__init__.py",
    "pillow_heif.py",
    "defusedxml.py",
    "visdiv_assets/__init__.py",
]


@pytest.fixture
def traps(tmp_path):
    """A folder with traps named like modules, and the file that is there once one has run."""
    ran, folder = tmp_path / "RAN", tmp_path / "folder"
    for name in MODULES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TRAP.format(ran=str(ran)))
    return folder, ran


def test_no_code_of_the_current_folder_runs(photo, traps, monkeypatch):
    folder, ran = traps
    monkeypatch.chdir(folder)
    with Decoders(Decoding(), 1) as real:
        assert np.array_equal(real.decode(photo), decode_image(photo))
    assert not ran.exists()


@pytest.mark.parametrize("path", ["{folder}", "", ".:{folder}"])
def test_no_code_of_what_the_environment_names_runs(photo, traps, monkeypatch, path):
    folder, ran = traps
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", path.format(folder=folder))
    with Decoders(Decoding(), 1) as real:
        assert np.array_equal(real.decode(photo), decode_image(photo))
    assert not ran.exists()


DECODE = """
import json, sys
from pathlib import Path
import visdiv_assets
from visdiv_assets.embedding.decoders import COMMAND, Decoders
from visdiv_assets.embedding.preprocess import Decoding

with Decoders(Decoding(), 1) as one:
    print(one.decode(Path(sys.argv[1]).read_bytes()).sum(), visdiv_assets.__file__)
"""


@pytest.fixture
def environment(tmp_path):
    """A virtual environment without anything, its Python and its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    [site] = (tmp_path / "env").glob("lib/python*/site-packages")
    return tmp_path / "env/bin/python", site


def decoded_by(python, photo, **options):
    """What `DECODE` prints, run by another Python."""
    command = [python, "-P", "-c", DECODE, photo]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert not done.returncode, done.stderr
    return done.stdout


def test_an_installation_through_path_files_decodes(environment, tmp_path):
    python, site = environment
    photo = min(PHOTOS.glob("*.jpg"))
    (site / "all.pth").write_text(f"{INSTALLED}\n{ROOT}\n")
    assert decoded_by(python, photo) == (
        f"{decode_image(photo.read_bytes()).sum()} {ROOT}/visdiv_assets/__init__.py\n"
    )


def test_an_installation_through_the_environment_decodes(environment):
    python, _ = environment
    photo = min(PHOTOS.glob("*.jpg"))
    path = {**os.environ, "PYTHONPATH": f"{ROOT}:{INSTALLED}"}
    assert decoded_by(python, photo, env=path).endswith(f" {ROOT}/visdiv_assets/__init__.py\n")


def test_a_codec_in_the_current_folder_is_none_of_the_decoders(environment, tmp_path):
    python, site = environment
    (site / "all.pth").write_text(f"{INSTALLED}\n{ROOT}\n")
    ran = tmp_path / "RAN"
    for name in ("pillow_heif", "PIL"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(TRAP.format(ran=str(ran)))
    heic = tmp_path / "x.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    # The current folder comes first, as it does for `python -c`; Pillow is loaded from elsewhere.
    code = "import PIL.Image, sys; sys.path.insert(0, '')\n" + DECODE
    command = [python, "-P", "-c", code, heic]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "DecodeError" in done.stderr
    assert not ran.exists()


def test_modules_in_site_packages_do_not_replace_the_standard_library(environment, tmp_path):
    python, site = environment
    (site / "visdiv_assets").symlink_to(ROOT / "visdiv_assets")
    (site / "others.pth").write_text(f"{INSTALLED}\n")
    ran = tmp_path / "RAN"
    for name in MODULES:
        if "/" not in name and "customize" not in name and "heif" not in name:
            (site / name).write_text(TRAP.format(ran=str(ran)))
    assert f" {site}/" in decoded_by(python, min(PHOTOS.glob("*.jpg")))
    assert not ran.exists()


def test_a_current_folder_that_is_gone_changes_nothing(photo, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with Decoders(Decoding(), 1) as real:
        assert np.array_equal(real.decode(photo), decode_image(photo))


# --- what others do to decoders ---


def pids(where):
    """Of the decoders that wait in this folder."""
    return [int(path.name) for path in where.iterdir() if path.name.isdigit()]


def waiting(where, photo):
    return f"WAIT{where};".encode() + photo


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_idle_decoder_that_is_killed_costs_no_image(photo, number):
    before = children()
    with decoders() as one:
        one.decode(photo)
        [pid] = children() - before
        os.kill(pid, number)
        assert np.array_equal(one.decode(photo), decode_image(photo))


def test_an_image_whose_decoder_is_killed_is_tried_again_in_a_fresh_one(photo, tmp_path):
    with decoders() as one, ThreadPoolExecutor(1) as thread:
        decoding = thread.submit(one.decode, waiting(tmp_path, photo))
        until(lambda: pids(tmp_path))
        [first] = pids(tmp_path)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(pids(tmp_path)) == 2)
        (tmp_path / "go").touch()
        assert np.array_equal(decoding.result(), decode_image(photo))


def test_an_image_whose_decoder_is_killed_twice_is_a_failure_that_may_pass(photo, tmp_path):
    with decoders() as one, ThreadPoolExecutor(1) as thread:
        decoding = thread.submit(one.decode, waiting(tmp_path, photo))
        killed = set()
        for _ in range(2):
            until(lambda: set(pids(tmp_path)) - killed)
            [pid] = set(pids(tmp_path)) - killed
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        with pytest.raises(DecodeError, match=r"was killed \(signal 9\)") as caught:
            decoding.result()
        assert caught.value.exception in PASSING
        assert np.array_equal(one.decode(photo), decode_image(photo))


@linux_only
def test_an_image_whose_decoder_is_stopped_is_tried_again_in_a_fresh_one(photo):
    before = children()
    with decoders(Decoding(max_seconds=2)) as one:
        one.decode(photo)
        [pid] = children() - before
        os.kill(pid, signal.SIGSTOP)
        assert np.array_equal(one.decode(photo), decode_image(photo))
        assert pid not in children()


def test_closing_waits_for_what_decodes_and_nothing_starts_later(photo, tmp_path):
    one = decoders()
    with ThreadPoolExecutor(3) as threads:
        decoding = threads.submit(one.decode, waiting(tmp_path, photo))
        until(lambda: pids(tmp_path))
        late = threads.submit(one.decode, photo)
        closing = threads.submit(one.close)
        until(lambda: one._closed)
        (tmp_path / "go").touch()
        assert np.array_equal(decoding.result(), decode_image(photo))
        with pytest.raises(RuntimeError, match="closed"):
            late.result()
        closing.result()


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
    picture = Decoders.picture

    def give_up(self, data):
        # Time is short for this image alone, however slow the machine is.
        if data == b"HANG":
            with decoders(DECODING) as hasty:
                return picture(hasty, data)
        return picture(self, data)

    monkeypatch.setattr(Decoders, "picture", give_up)
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
    never = partial(Decoders, command=command("exit(1)"), sleep=lambda seconds: None)
    monkeypatch.setattr(pipeline, "Decoders", never)
    with pytest.raises(VisdivError, match="the decoder does not start"):
        list(stream(folder))


# --- signals ---

RUN = """
import signal, sys, time
from pathlib import Path
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.preprocess import Decoding

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: print("interrupted", flush=True))
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_decoders_alone(run_elsewhere, number):
    process, decoder = run_elsewhere
    os.killpg(process.pid, number)
    assert process.stdout.readline() == "interrupted\n"
    process.stdin.write("\n")
    process.stdin.flush()
    assert int(process.stdout.readline()) == decoder  # the same process has decoded again


# Decodes one image; its time is in a file.
STOPPED = """
import sys
from pathlib import Path
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.preprocess import Decoding

where, photo = Path(sys.argv[2]), Path(sys.argv[3]).read_bytes()
clock = lambda: float((where / "clock").read_text())
with Decoders(Decoding(), 1, tuple(sys.argv[4:]), clock) as one:
    one.decode(f"WAIT{where};".encode() + photo)
    print("decoded")
"""


@linux_only
def test_a_run_that_was_stopped_and_goes_on_drops_no_image(tmp_path):
    (tmp_path / "clock").write_text("0")
    photo = min(PHOTOS.glob("*.jpg"))
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, "", tmp_path, photo, *command()],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            until(lambda: pids(tmp_path))
            os.killpg(run.pid, signal.SIGSTOP)
            until(lambda: is_stopped(run.pid))
            partial = tmp_path / "hours later"
            partial.write_text("10000")
            partial.replace(tmp_path / "clock")
            os.killpg(run.pid, signal.SIGCONT)
            until(lambda: not is_stopped(run.pid))
            (tmp_path / "go").touch()
            assert run.stdout.read() == "decoded\n"
            assert len(pids(tmp_path)) == 1  # at the first attempt
        finally:
            run.kill()


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


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
