"""What the campaigns are played with: small datasets, and a model that costs nothing.

Here: images, settings, the model. Not here: what is done to them.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

# Few rows, so that a small dataset has several segments.
SEGMENT_ROWS = 16

# Real weights are found and hashed; only what runs them is replaced.
SETTINGS = """\
store: store
settle_seconds: 0
embedder: {weights: sscd_disc_mixup_int8, device: cpu}
alerts: {urls: []}
datasets:
"""


class CheapRuntime(FakeEmbedder):
    """A model that takes microseconds. Its vectors depend on nothing but the pixels."""

    dimension = 48
    description = "thumbnails"


@contextmanager
def cheap_model(runtime: CheapRuntime | None = None) -> Iterator[CheapRuntime]:
    """Every embedder of this process gets this runtime, and segments are short."""
    used = runtime or CheapRuntime(batch_size=4)
    with (
        mock.patch("visdiv_assets.embedding.embedder.load_runtime", return_value=used),
        mock.patch("visdiv_assets.store.segments.SEGMENT_ROWS", SEGMENT_ROWS),
    ):
        yield used


def write_settings(folder: Path, *datasets: str) -> None:
    """`visdiv.yaml` with these datasets, each as `name: {…}`."""
    lines = "".join(f"  {dataset}\n" for dataset in datasets)
    (folder / "visdiv.yaml").write_text(SETTINGS + lines)


def write_birds(folder: Path) -> None:
    """64 different images in two folders, and a file that is none."""
    for seed in range(64):
        write_image(folder / "ab"[seed % 2] / f"{seed:03}.png", seed)
    (folder / "a/broken.png").write_text("I am not an image")
    _age(folder)


def add_copies(folder: Path) -> None:
    """To what `write_birds` wrote: five exact copies, and five images that are nearly the same."""
    (folder / "c").mkdir()
    for seed in range(0, 10, 2):
        shutil.copy(folder / f"a/{seed:03}.png", folder / f"c/copy-{seed}.png")
        pixels = np.array(Image.open(folder / f"a/{seed:03}.png"))
        pixels[0, 0] = 255 - pixels[0, 0]
        Image.fromarray(pixels).save(folder / f"c/near-{seed}.png")
    _age(folder)


def write_cars(folder: Path, first: int, last: int) -> None:
    """Images of these seeds; those below 64 are birds, too."""
    for seed in range(first, last):
        write_image(folder / f"{seed:03}.png", seed)
    _age(folder)


def _age(folder: Path) -> None:
    """The same times in every campaign, so that fingerprints are."""
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        os.utime(path, (1_700_000_000 + number,) * 2)
