"""A store made by version 0.1: nothing is embedded again, and every score and bit stays.

`data/store_0_1.tar.xz` was made by 0.1.0 with `visdiv score` of a folder: the first 72 photographs
of the demo, in turns in folders `b` and `a`, `a/copy.jpg`, and `b/broken.jpg`, which is no image.
Its moments by slice were left out, to keep it small.
"""

import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from visdiv_assets import SSCDEmbedder
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / "visdiv_assets_tests/data/store_0_1.tar.xz"
PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))[:72]

SCORES = {
    "n_images": 73,
    "n_failed": 1,
    "diversity_score": 0.11899193479189325,
    "effective_rank": 63.89483718112937,
    "participation_ratio": 58.09104732519033,
    "corrected_score": 0.7471927060811051,
    "corrected_low": 0.571794977056809,
    "corrected_high": 0.9763935718612249,
    "rating": "Very Good",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """That store, and the folder it is of, with other times of modification."""
    folder = tmp_path_factory.mktemp("of_0_1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for number, photo in enumerate(PHOTOS):
        place = folder / "photos" / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, place)
    shutil.copy(PHOTOS[0], folder / "photos/a/copy.jpg")
    (folder / "photos/b/broken.jpg").write_bytes(b"no image")
    store = Store(folder / "store")
    return SimpleNamespace(
        store=store,
        warehouse=Warehouse(store.root / "visdiv.duckdb"),
        source=DirectorySource(folder / "photos"),
        before=store.latest_fingerprint("photos"),
    )


@pytest.fixture(scope="module")
def again(home):
    """The folder evaluated once more, by this version."""
    [before] = home.warehouse.history("photos")
    embedder = SSCDEmbedder(ONNX_CHECKPOINT)
    evaluation, embedded = evaluate("photos", home.source, embedder, home.store, home.warehouse)
    return SimpleNamespace(before=before, evaluation=evaluation, embedded=embedded)


def test_the_evaluation_of_then_is_read_as_it_was_written(again):
    assert {name: getattr(again.before, name) for name in SCORES} == SCORES


def test_no_image_is_embedded_again(again):
    assert again.embedded.n_new == 0
    assert again.evaluation.model_id == f"{again.before.model_id}-depth"


def test_every_score_is_the_same(again):
    # The interval is another one, as the estimator is; and so few images have no stars any more.
    now = SCORES | {
        "corrected_low": pytest.approx(0.604933, rel=1e-5),
        "corrected_high": pytest.approx(0.799291, rel=1e-5),
        "rating": "too few for stars",
    }
    for name, value in now.items():  # LAPACK's last bits depend on the processor
        same = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert getattr(again.evaluation, name) == same, name


def test_moments_are_the_same_to_the_last_bit(home, again):
    assert again.evaluation.manifest_fingerprint != home.before  # files have other times
    then, now = (
        home.store.read_sample(*evaluation.where) for evaluation in (again.before, again.evaluation)
    )
    assert now.moments.n == then.moments.n
    assert now.moments.total.tobytes() == then.moments.total.tobytes()
    assert now.moments.outer.tobytes() == then.moments.outer.tobytes()
    assert np.array_equal(now.keys, then.keys)
    assert np.array_equal(now.rows, then.rows)
    assert np.array_equal(now.counts, then.counts)
