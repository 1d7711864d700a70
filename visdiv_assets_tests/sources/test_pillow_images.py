"""The images that Pillow tests itself with: every oddity and attack that it has met."""

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.quality.verdicts import count_reasons
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc"),
]

MAX_BYTES = 4 * 10**9
MIN_FILES = 500


class PatientEmbedder(FakeEmbedder):
    decoding = Decoding(max_seconds=20)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """`Tests/images` of the source distribution of the Pillow that is installed."""
    folder = tmp_path_factory.mktemp("pillow")
    version = importlib.metadata.version("pillow")
    command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "pillow"]
    fetched = subprocess.run(
        [sys.executable, "-m", *command, f"pillow=={version}", "--dest", folder],
        capture_output=True,
        text=True,
    )
    archives = list(folder.glob("*.tar.gz"))
    if fetched.returncode or not archives:
        said = fetched.stderr.strip().splitlines() or ["pip says nothing"]
        pytest.skip(f"the sources of Pillow {version} cannot be had: {said[-1]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    [found] = folder.glob("*/Tests/images")
    return found


class Memory:
    """The most that this process and its decoders have held together while it was watched."""

    def __init__(self):
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.05):
            self.peak = max(self.peak, sum(map(resident, family())))


def family():
    """This process and its children."""
    own = os.getpid()
    yield own
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[1]) == own:
                yield int(status.parent.name)


def resident(process):
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    return 0


def as_directory(images):
    return DirectorySource(images)


def as_list(images):
    """Every file, whatever its extension."""
    names = sorted(str(path) for path in images.rglob("*") if path.is_file())
    listed = images / "all.txt"
    listed.write_text("\n".join(str(Path(name).relative_to(images)) for name in names))
    return open_source(str(listed))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for both layouts: the second embeds only what the first has left out."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("layout", [as_directory, as_list], ids=lambda layout: layout.__name__)
def test_every_file_is_either_embedded_or_a_failure(images, store, layout):
    source, warehouse = layout(images), Warehouse(store.root / "visdiv.duckdb")
    with Memory() as memory:
        evaluation, embedded = evaluate("pillow", source, PatientEmbedder(), store, warehouse)
    table = embedded.index.table
    listed = set(table["image_id"].to_pylist())
    missing = table["row"].is_null().to_pylist()
    ids = table["image_id"].to_pylist()
    images_embedded = {name for name, gone in zip(ids, missing, strict=True) if not gone}
    failed = warehouse.failures("pillow")
    images_failed = {image.image_id for image in failed}

    reasons = count_reasons(f"{image.exception}: {image.reason}" for image in failed)
    print(f"\n{len(listed)} files, {len(images_embedded)} embedded, {len(images_failed)} failed;")
    print(f"most memory: {memory.peak / 1e6:.0f} MB, {evaluation.seconds:.0f} s")
    for reason, count in reasons:
        print(f"{count:5} × {reason}")

    assert len(listed) > MIN_FILES
    assert images_embedded | images_failed == listed == {item.image_id for item in source.items()}
    assert not images_embedded & images_failed
    assert len(images_embedded) == evaluation.n_images > MIN_FILES / 2
    assert len(images_failed) == evaluation.n_failed == len(failed)
    assert all(image.reason for image in failed)
    assert 0 < memory.peak < MAX_BYTES
