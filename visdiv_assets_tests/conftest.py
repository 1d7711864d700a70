"""What tests of several modules share: decoder processes, and the embedded demo photographs."""

import contextlib
import os
import pickle
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import filelock
import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from visdiv_assets.embedding import decoders
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.preprocess import Decoding, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.contents import Contents
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate

PHOTOS = Path(__file__).parents[1] / "examples/demo/photos"

# The same examples in every run, and no time limits: machines differ.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that may take longest come first, so that none is left over when all others are done.

    That is, those with the longest time limits; the others stay in their order.
    """
    items.sort(key=lambda item: -_time_limit(item))


def _time_limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker else 0.0


@pytest.fixture(scope="session", autouse=True)
def _state_of_the_user_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The last good settings of tests are kept apart, also by the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISDIV_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def no_dagster_instance_stays_open() -> Iterator[None]:
    """A context that a test leaves open would break the tests that happen to come after it."""
    yield
    if state := sys.modules.get("dagster._core.storage.defs_state.base"):
        left = state.DefsStateStorage.get()
        state._current_storage.set(None)
        assert left is None, "this test left a Dagster context open: close it with `with`"


class DecoderPool:
    """Keeps decoder processes for the next test: starting them takes longer than most runs do."""

    def __init__(self) -> None:
        self._start = decoders._Process
        self._idle: dict[tuple[Sequence[str], Decoding], list[decoders._Process]]
        self._idle = defaultdict(list)

    def start(
        self, command: Sequence[str], decoding: Decoding, clock: Callable[[], float]
    ) -> decoders._Process:
        with contextlib.suppress(IndexError):
            while True:
                process = self._idle[command, decoding].pop()
                if process._process.poll() is None:
                    return process
        return self._start(command, decoding, clock)

    def take_back(self, run: Decoders) -> None:
        for process in [run._idle.get() for _ in range(run._processes)]:
            if process:
                self._idle[run._command, run._decoding].append(process)
            run._idle.put(None)

    def close(self) -> None:
        for process in [process for idle in self._idle.values() for process in idle]:
            process.kill()


@pytest.fixture(scope="session")
def decoder_pool() -> Iterator[DecoderPool]:
    with contextlib.closing(DecoderPool()) as pool:
        yield pool


@pytest.fixture(autouse=True)
def warm_decoders(decoder_pool: DecoderPool) -> Iterator[None]:
    """Every run in this process takes its decoders from the pool and leaves them there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "_Process", decoder_pool.start)
        patch.setattr(Decoders, "close", lambda run: decoder_pool.take_back(run))
        yield


class Demo(NamedTuple):
    """The 213 demo photographs, evaluated with the int8 model, in a store at `root`.

    `vectors` as the model gave them, float32; `rows` as the store keeps them, in its own order.
    """

    root: Path
    evaluation: Evaluation
    vectors: NDArray[np.float32]
    rows: NDArray[np.float16]


class RecordingEmbedder(SSCDEmbedder):
    """Keeps what the model gives."""

    def embed(self, pixels: Pixels) -> Vectors:
        self.batches = [*getattr(self, "batches", []), super().embed(pixels)]
        return self.batches[-1]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Made once, by whichever of pytest-xdist's workers is first; only to be read."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    made = folder / "demo.pickle"
    with filelock.FileLock(folder / "demo.lock"):
        if not made.exists():
            made.write_bytes(pickle.dumps(_make_demo(folder / "demo")))
        return cast(Demo, pickle.loads(made.read_bytes()))


def _make_demo(root: Path) -> Demo:
    store, warehouse = Store(root), Warehouse(root / "visdiv.duckdb")
    embedder = RecordingEmbedder(ONNX_CHECKPOINT)
    evaluation, embedded = evaluate("photos", DirectorySource(PHOTOS), embedder, store, warehouse)
    rows = [
        rows.copy() for rows, _ in Contents.of(embedded.index).blocks(store, evaluation.model_id)
    ]
    return Demo(root, evaluation, np.concatenate(embedder.batches), np.concatenate(rows))
