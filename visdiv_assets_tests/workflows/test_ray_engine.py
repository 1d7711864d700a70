"""Units of work on Ray: as one process does it, whatever happens to workers."""

import json
import os
import signal
import socket
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import RayEngine
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.source import read_concurrently, read_one
from visdiv_assets.store.plans import done_units, forget_plan, read_plan
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows import ray_engine
from visdiv_assets.workflows.engine import Job
from visdiv_assets.workflows.evaluate import evaluate, list_dataset
from visdiv_assets.workflows.plan import embed_units, make_plan
from visdiv_assets.workflows.ray_engine import Ray
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_images
from visdiv_assets_tests.workflows.test_plan import without_names

IMAGES, UNIT = 24, 4


class Troubled(FakeEmbedder):
    """Something happens with the first image; with `folder`, only to the first who creates it."""

    def __init__(self, what, folder=None):
        super().__init__()
        self.what, self.folder = what, folder

    def embed(self, pixels):
        if self.is_my_turn():
            if self.what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "hangs":
                time.sleep(3600)
        return super().embed(pixels)

    def is_my_turn(self):
        return self.folder is None or took(self.folder)


def took(folder):
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def without_model(folder):
    """The embedder of a machine, of which the first one has no model."""
    if folder is None or took(folder):
        raise VisdivError("no model is installed here")
    return FakeEmbedder()


@pytest.fixture(scope="module")
def cluster():
    """A Ray that all tests here share, since each takes seconds to start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback only
    import ray

    before = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def home(tmp_path):
    write_images(tmp_path / "images", IMAGES)
    (tmp_path / "images/fake.png").write_bytes(b"I am not an image")
    return SimpleNamespace(root=tmp_path, marker=tmp_path / "the first")


def evaluated(
    home,
    embedder=None,
    stored="store",
    progress=None,
    source=DirectorySource,
    **settings,
):
    """What Ray makes of the images; None for the embedder is one process alone."""
    folder = home.root / stored
    images, store, engine = partial(source, home.root / "images"), Store(folder), None
    if embedder is not None:
        settings = RayEngine(**{"workers": 2, "unit_images": UNIT, **settings})
        engine = Ray(settings, Job(embedder, images, partial(Store, folder)))
    evaluation, embedded = evaluate(
        "photos",
        images(),
        FakeEmbedder(),
        store,
        Warehouse(home.root / f"{stored}.duckdb"),
        engine=engine,
        on_progress=progress,
    )
    kept = store.read_sample(*evaluation.where)
    return SimpleNamespace(
        evaluation=without_names(evaluation),
        embedded=embedded,
        moments=kept.moments.outer.tobytes(),
        store=store,
    )


@pytest.mark.slow
class TestOnRay:
    pytestmark = pytest.mark.usefixtures("cluster")

    @pytest.mark.parametrize(("workers", "unit"), [(1, 3), (2, 4), (3, 100)])
    def test_any_number_of_workers_and_any_unit_size_give_the_same_to_the_last_bit(
        self, home, workers, unit
    ):
        alone = evaluated(home, stored="alone")
        said = []
        shared = evaluated(
            home,
            FakeEmbedder,
            workers=workers,
            unit_images=unit,
            progress=lambda done, total, *_: said.append((done, total)),
        )
        assert shared.evaluation == alone.evaluation
        assert shared.moments == alone.moments
        assert shared.embedded.n_new == alone.embedded.n_new == IMAGES
        assert shared.embedded.index.failures() == alone.embedded.index.failures()
        if unit < IMAGES:
            work = shared.embedded.work
            assert work.units == sum(worker.units for worker in work.workers) == -(-25 // unit)
            assert sum(worker.images for worker in work.workers) == IMAGES + 1
        assert all(done <= total for done, total in said)
        again = evaluated(home, FakeEmbedder, workers=workers, unit_images=unit)
        assert (again.embedded.n_new, again.embedded.work) == (0, None)

    def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(self, home):
        alone = evaluated(home, stored="alone")
        shared = evaluated(home, partial(Troubled, "killed", home.marker))
        assert home.marker.exists()
        assert shared.embedded.work.retries == 1
        assert (shared.evaluation, shared.moments) == (alone.evaluation, alone.moments)

    def test_a_worker_that_hangs_is_ended_and_replaced(self, home):
        alone = evaluated(home, stored="alone")
        hanging = partial(Troubled, "hangs", home.marker)
        shared = evaluated(home, hanging, stall_seconds=15)
        assert shared.embedded.work.retries >= 1  # on a busy machine, others may seem to hang
        assert (shared.evaluation, shared.moments) == (alone.evaluation, alone.moments)

    def test_a_worker_without_the_model_leaves_its_units_to_the_others(self, home):
        shared = evaluated(home, partial(without_model, home.marker))
        assert shared.embedded.n_new == IMAGES

    @pytest.mark.parametrize(
        ("embedder", "told"),
        [
            (partial(without_model, None), "no model is installed here"),
            (partial(Troubled, "killed"), "its process was killed, perhaps for want of memory"),
        ],
    )
    def test_what_fails_for_everyone_ends_soon_with_its_reason(self, home, embedder, told):
        with pytest.raises(VisdivError, match=told) as failed:
            evaluated(home, embedder)
        assert "\n" not in str(failed.value)
        assert "7 of 7 units could not be embedded (unit" in str(failed.value)
        assert "are kept" not in str(failed.value)
        assert evaluated(home, FakeEmbedder).embedded.n_new == IMAGES

    def test_units_that_others_have_done_are_kept_where_one_keeps_failing(self, home):
        with pytest.raises(VisdivError, match="1 of 7 units") as failed:
            evaluated(home, partial(_FailsOn, 5))
        assert "the others are kept" in str(failed.value)
        again = evaluated(home, FakeEmbedder)
        assert again.embedded.n_new == UNIT

    def test_workers_for_which_there_is_no_room_are_told(self, home):
        with pytest.raises(VisdivError, match="each needs 64 CPUs and 0 GPUs, and Ray has 4 CPUs"):
            evaluated(home, FakeEmbedder, cpus=64, start_seconds=3)

    def test_another_version_of_ray_is_told_in_one_sentence(self, cluster, home, monkeypatch):
        from ray._private import worker
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

        name = b"CLUSTER_METADATA"
        before = _internal_kv_get(name, namespace=b"cluster")
        other = {**json.loads(before), "ray_version": "1.0.0"}
        address = worker.global_worker.gcs_client.address
        _internal_kv_put(name, json.dumps(other).encode(), overwrite=True, namespace=b"cluster")
        try:
            monkeypatch.setattr(cluster, "is_initialized", lambda: False)
            with pytest.raises(VisdivError, match=r"cannot use Ray at .*1\.0\.0") as failed:
                evaluated(home, FakeEmbedder, address=address)
        finally:
            _internal_kv_put(name, before, overwrite=True, namespace=b"cluster")
        assert "\n" not in str(failed.value)

    def test_units_of_which_no_worker_can_read_anything_are_told_as_one_process_tells_them(
        self, home
    ):
        alone = evaluated(home, stored="alone", source=Blind)
        shared = evaluated(home, FakeEmbedder, source=Blind, workers=1)
        assert shared.evaluation == alone.evaluation
        assert shared.embedded.index.failures() == alone.embedded.index.failures()
        assert shared.embedded.index.n_failed == 13

    def test_a_worker_that_dies_while_it_starts_is_replaced(self, home):
        shared = evaluated(home, _Dies(home.marker, FakeEmbedder))
        assert home.marker.exists()
        assert shared.embedded.n_new == IMAGES

    def test_workers_that_cannot_start_say_why(self, home):
        with pytest.raises(VisdivError, match=r"a worker cannot start on Ray: .*no such package"):
            evaluated(home, _NotImported())

    def test_a_plan_made_by_hand_is_not_disturbed(self, home, caplog):
        source, store = DirectorySource(home.root / "images"), Store(home.root / "store")
        listed = list_dataset("photos", source, store)
        plan = make_plan("photos", listed, source, FakeEmbedder(), store, lambda _: 10)
        embed_units(plan, [0], source, FakeEmbedder(), store)
        shared = evaluated(home, FakeEmbedder)
        assert (shared.embedded.work, shared.embedded.n_new) == (None, IMAGES - 10)
        assert "`visdiv merge` ends it" in caplog.text
        assert read_plan(store, "photos") == plan
        assert done_units(store, plan) == {0}

    def test_another_evaluation_that_was_faster_does_not_make_it_fail(self, home):
        shared = evaluated(home, partial(_Overtaken, home.root / "store"))
        assert shared.evaluation.n_images == IMAGES


class _FailsOn(FakeEmbedder):
    """Cannot embed the picture of one image."""

    def __init__(self, seed):
        super().__init__()
        picture = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        self.colour = picture.mean(axis=(0, 1))

    def embed(self, pixels):
        for each in pixels:
            if np.allclose(each.mean(axis=(0, 1)), self.colour, atol=1):
                raise VisdivError("this picture is too much")
        return super().embed(pixels)


class Blind(DirectorySource):
    """Cannot read the first images."""

    def read_all(self, image_ids):
        return read_concurrently(self._read, image_ids, 2)

    def _read(self, image_id):
        if image_id < "012":
            raise PermissionError(13, "Permission denied")
        return read_one(DirectorySource(self.path), image_id)


class _Dies:
    """Once, as it is unpacked by a worker."""

    def __init__(self, marker, embedder):
        self.marker, self.embedder = marker, embedder

    def __reduce__(self):
        return _unpacked, (self.marker, self.embedder, os.getpid())


def _unpacked(marker, embedder, packed_by):
    if os.getpid() != packed_by and took(marker):
        os.kill(os.getpid(), signal.SIGKILL)
    return embedder


class _NotImported:
    def __reduce__(self):
        return _missing, (os.getpid(),)


def _missing(packed_by):
    raise ModuleNotFoundError("there is no such package")


class _Overtaken(FakeEmbedder):
    """While it is at work, the plan is merged."""

    def __init__(self, folder):
        super().__init__()
        self.store = Store(folder)

    def embed(self, pixels):
        if plan := read_plan(self.store, "photos"):
            forget_plan(self.store, plan)
        return super().embed(pixels)


def test_an_address_where_something_else_listens_is_told(home, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(ray_engine, "PROBE_SECONDS", 8)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(VisdivError, match=f"there is no Ray cluster at {address}"):
            evaluated(home, FakeEmbedder, address=address)


def test_an_address_without_a_cluster_is_told_at_once(home, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # in other tests, it is
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(VisdivError, match=f"there is no Ray cluster at {address}"):
        evaluated(home, FakeEmbedder, address=address)


def test_without_ray_it_is_told_what_to_install(home, monkeypatch):
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(VisdivError, match=r"pip install 'visdiv_assets\[ray\]'"):
        evaluated(home, FakeEmbedder)


@pytest.mark.parametrize(
    ("here", "settings", "size"),
    [
        (0, {}, (6, 1.0, 0.0)),
        (0, {"cpus": 4}, (1, 4.0, 0.0)),
        (2, {"cpus": 3}, (2, 3.0, 1.0)),
        (2, {"gpus": 0.5}, (4, 1.0, 0.5)),
        (2, {"gpus": 0}, (6, 1.0, 0.0)),
        (0, {"gpus": 1, "workers": 8}, (8, 1.0, 1.0)),  # of a cluster
    ],
)
def test_there_are_as_many_workers_as_the_machine_has_gpus_or_cpus_for(
    monkeypatch, here, settings, size
):
    monkeypatch.setattr(ray_engine, "gpus_here", lambda: here)
    monkeypatch.setattr(ray_engine, "usable_cpus", lambda: 6)
    engine = Ray(RayEngine(**settings), Job(FakeEmbedder, None, None))
    found = engine._size
    assert (found.workers, found.cpus, found.gpus) == size
