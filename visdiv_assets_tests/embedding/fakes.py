"""A cheap model, and a source that keeps count and can fail."""

import threading
from pathlib import Path

import numpy as np
from PIL import Image

from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.source import read_concurrently, read_one


class FakeEmbedder:
    """Unit vectors from a 4 × 4 thumbnail, in microseconds; the same whatever the batch."""

    decoding = Decoding()
    calls_at_once = 1

    def __init__(self, model_id="fake", batch_size=4):
        self.model_id = model_id
        self.batch_size = batch_size
        self.batches = []

    def embed(self, pixels):
        assert 0 < len(pixels) <= self.batch_size
        self.batches.append(len(pixels))
        patches = (
            np.asarray(pixels)
            .reshape(len(pixels), 4, 80, 4, 80, 3)
            .sum(axis=(2, 4), dtype=np.int64)
        )
        thumbnails = patches.reshape(len(pixels), 48) / (80 * 80 * 255) - 0.5
        norms = np.linalg.norm(thumbnails, axis=1, keepdims=True)
        return (thumbnails / norms).astype(np.float32)


class UnloadedEmbedder:
    """Has a name, but must not be asked for anything that loads the model."""

    model_id = "fake"
    decoding = Decoding()

    @property
    def batch_size(self):
        raise AssertionError("the model was loaded")

    def embed(self, pixels):
        raise AssertionError("the model was run")


class WatchedSource(DirectorySource):
    """Writes down what is read; reading the images named in `broken` fails."""

    def __init__(self, path, broken=()):
        super().__init__(path)
        self.broken = set(broken)
        self.read_ids = []
        self._lock = threading.Lock()

    def read_all(self, image_ids):
        return read_concurrently(self._read_watched, image_ids, 4)

    def _read_watched(self, image_id):
        with self._lock:
            self.read_ids.append(image_id)
        if image_id in self.broken:
            raise PermissionError(13, "Permission denied")
        return read_one(DirectorySource(self.path), image_id)


def write_image(path: Path, seed: int) -> None:
    """A small image of noise; every seed gives another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_images(folder: Path, count: int) -> Path:
    """A folder of `count` different images: 000.png, 001.png …"""
    for seed in range(count):
        write_image(folder / f"{seed:03}.png", seed)
    return folder
