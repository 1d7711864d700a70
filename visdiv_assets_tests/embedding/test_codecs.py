"""A codec that is missing or broken costs its own format alone, for as long as it is."""

import base64
import io
import sys
import zlib

import pyarrow as pa
import pytest
from PIL import Image

from visdiv_assets.embedding.codecs import SAMPLES, examine_codecs, sample
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.decoding import FORMATS, Decoding, is_passing
from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.embedding.preprocess import DecodeError
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.store.index import JUDGE, EmbeddingIndex
from visdiv_assets.store.store import Store
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, WatchedSource, write_images

START = "\nfrom visdiv_assets.embedding import decode_worker\ndecode_worker.main()"

# What is done to a decoder process before it starts, the format concerned, and what is wrong then.
BROKEN = {
    "HEIC library that is not there": (
        "import sys; sys.modules['_pillow_heif'] = sys.modules['pi_heif'] = None",
        "HEIC",
        "broken",
    ),
    "HEIC codec of another system": (
        "import importlib.abc, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pillow_heif': raise OSError('libheif.so.1: wrong ELF class')\n"
        "sys.meta_path.insert(0, Finder())",
        "HEIC",
        "broken",
    ),
    "HEIC codec that is not installed": (
        "import importlib.abc, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pillow_heif': raise ModuleNotFoundError('no', name=name)\n"
        "sys.meta_path.insert(0, Finder())",
        "HEIC",
        "missing",
    ),
    "no AVIF": ("import sys; sys.modules['PIL._avif'] = None", "AVIF", "missing"),
    "no AVIF in an older Pillow": (
        "import sys; sys.modules['PIL.AvifImagePlugin'] = None; sys.modules['PIL._avif'] = None",
        "AVIF",
        "missing",
    ),
    "no WebP": ("import sys; sys.modules['PIL._webp'] = None", "WebP", "missing"),
    "no JPEG 2000": (
        "from PIL import Image; del Image.core.jpeg2k_decoder",
        "JPEG 2000",
        "missing",
    ),
    "no libtiff": ("from PIL import Image; del Image.core.libtiff_decoder", "TIFF", "missing"),
    "no plugin for QOI": ("import sys; sys.modules['PIL.QoiImagePlugin'] = None", "QOI", "missing"),
}


def decoders(code=""):
    return Decoders(Decoding(), 1, (sys.executable, "-c", code + START))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_codec_that_is_missing_or_broken_costs_its_own_format_alone(kind):
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    code, name, state = BROKEN[kind]
    with decoders(code) as broken:
        wrong = {codec.name: codec for codec in examine_codecs(broken) if codec.state != "ok"}
    assert list(wrong) == [name]
    assert wrong[name].state == state


@pytest.mark.parametrize("kind", BROKEN)
def test_images_of_a_missing_codec_are_tried_again_and_the_reason_says_what_to_do(kind):
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    code, name, _ = BROKEN[kind]
    with decoders(code) as broken, pytest.raises(DecodeError, match="run `pip install") as caught:
        broken.decode(sample(name))
    assert is_passing(caught.value.exception, caught.value.reason)


def test_every_format_has_a_sample():
    names = {name.upper().replace(" ", "") for name in SAMPLES}
    assert names == {*FORMATS, "HEIC"}


def test_a_codec_that_gives_other_pixels_is_broken(monkeypatch):
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "GIF")
    black = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    monkeypatch.setitem(SAMPLES, "GIF", black)
    with decoders() as sound:
        wrong = [codec for codec in examine_codecs(sound) if codec.state != "ok"]
    assert wrong == [("GIF", "broken", "its pixels are wrong")]


# --- which failures stay ---


@pytest.mark.parametrize(
    ("exception", "reason"),
    [
        ("TimeoutError", "decoding took longer than 30 seconds"),
        ("ProcessError", "the decoder crashed (signal 9)"),
        ("KeyError", "'AVIF'"),
        ("ImportError", "libheif.so.1: cannot open shared object file: No such file or directory"),
        ("OSError", "libtiff.so.6: cannot open shared object file: No such file or directory"),
        ("OSError", "decoder jpeg2k not available"),
        ("OSError", "[Errno 24] Too many open files"),
        ("MemoryError", "cannot be decoded"),
    ],
)
def test_failures_of_the_surroundings_pass(exception, reason):
    assert is_passing(exception, reason)


@pytest.mark.parametrize(
    ("exception", "reason"),
    [
        ("OSError", "image file is truncated (24 bytes not processed)"),
        ("UnidentifiedImageError", "not an image in a known format"),
        ("DecompressionBombError", "Image size (10000000000 pixels) exceeds limit"),
        ("SyntaxError", "broken PNG file"),
        ("", "100000 × 100000 pixels exceed the limit"),
    ],
)
def test_failures_of_the_image_stay(exception, reason):
    assert not is_passing(exception, reason)


def kept_failure(folder, store, exception, reason, judge=None):
    """An evaluation whose only failure is said to be this one; returns what the next one reads."""
    source = DirectorySource(folder)
    manifest = list_images(source)
    index, _ = embed_manifest("x", manifest, source, FakeEmbedder(), store)
    table = index.table
    told = {"exception": exception, "reason": reason}
    for name, text in told.items():
        texts = [text if old is not None else None for old in table[name].to_pylist()]
        at = table.schema.get_field_index(name)
        table = table.set_column(at, (field := table.schema.field(at)), pa.array(texts, field.type))
    if judge is not None:
        table = table.replace_schema_metadata({JUDGE: judge.encode()})
    store.write_index("x", "fake", manifest.fingerprint, EmbeddingIndex(table))
    again = WatchedSource(folder)
    embed_manifest("x", list_images(again), again, FakeEmbedder(), store)
    return again.read_ids


@pytest.fixture
def folder(tmp_path):
    folder = write_images(tmp_path / "images", 2)
    (folder / "bad.png").write_bytes(b"I am no image")
    return folder


JUDGE_OF_0_2 = "pillow-13.0.0+heif.178956970.rgb-squash320-bilinear"


@pytest.mark.parametrize(
    ("exception", "judge", "read"),
    [
        ("UnidentifiedImageError", None, []),
        ("KeyError", None, ["bad.png"]),
        ("CodecMissing", None, ["bad.png"]),
        ("UnidentifiedImageError", JUDGE_OF_0_2, ["bad.png"]),
    ],
    ids=["the image's fault", "surroundings", "codec missing", "kept by an older version"],
)
def test_only_failures_that_may_pass_are_tried_again(folder, tmp_path, exception, judge, read):
    store = Store(tmp_path / "store")
    assert kept_failure(folder, store, exception, "as it was", judge) == read
