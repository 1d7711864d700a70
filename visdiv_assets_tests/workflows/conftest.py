"""A store with datasets that repeat themselves and each other."""

import shutil

import numpy as np
import pytest
from PIL import Image

from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.duplicates import find_duplicates
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image
from visdiv_assets_tests.store.homes import BOTH, homes

DECODING = Decoding()


@pytest.fixture(scope="session", params=BOTH)
def make_home(request):
    """What makes a new place for a store in a folder, on a disk or in a bucket."""
    with homes(request.param) as make:
        yield make


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


class Project:
    """A store with datasets that are folders of its own."""

    def __init__(self, root):
        self.root = root
        self.store = Store(root / "store")
        self.warehouse = Warehouse(root / "store" / "visdiv.duckdb")

    def path(self, name, image):
        path = self.root / name / image
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, name, image, picture, **how):
        picture.save(self.path(name, image), **how)

    def source(self, name):
        return DirectorySource(self.root / name)

    def evaluate(self, name, model="fake"):
        embedder = FakeEmbedder(model, batch_size=64)
        evaluation, _ = evaluate(name, self.source(name), embedder, self.store, self.warehouse)
        return evaluation

    def find(self, name, threshold=0.75, source=None, evaluation=None, **how):
        return find_duplicates(
            evaluation or self.evaluate(name),
            self.store,
            source or self.source(name),
            DECODING,
            threshold=threshold,
            **how,
        )


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def double(picture):
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


@pytest.fixture
def birds(project):
    """70 images; of 000 there are a larger one and a copy, of 003 two copies."""
    for seed in range(70):
        write_image(project.path("birds", f"{seed:03}.png"), seed)
    project.add("birds", "large of 000.png", double(noise(0)))
    for copy, of in (("copy of 000", 0), ("copy of 003", 3), ("another of 003", 3)):
        shutil.copy(project.path("birds", f"{of:03}.png"), project.path("birds", f"{copy}.png"))
    return project


def blend(share):
    return Image.blend(noise(1), noise(2), share)


@pytest.fixture
def film(project):
    for frame in range(21):
        project.add("film", f"{frame:02}.png", blend(frame / 20))
    return project


@pytest.fixture
def leaky(birds):
    """A benchmark that has one photograph's bytes, a larger one of another, and 5 of its own."""
    shutil.copy(birds.path("birds", "003.png"), birds.path("bench", "x.png"))
    birds.add("bench", "y.png", double(noise(7)))
    for seed in range(200, 205):
        write_image(birds.path("bench", f"{seed}.png"), seed)
    return birds
