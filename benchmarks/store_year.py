"""The size of a store over a year of nightly evaluations, with and without retention.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.store_year [--nights 365] [--chart FILE]

A dataset of 2,000 images in 8 folders gains and loses 10 images each night. The model is a made-up
one of 512 dimensions, everything else is real: listing, hashing, moments, slices, results. Nights
follow each other at once, and the times of all files are set to those of the nights. A clean-up
runs every Sunday. What it removes, added up, is what the store would have had without it. The chart
goes to docs/images/store-year.png. Takes about 15 minutes.
"""

import argparse
import hashlib
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.made_up import machine
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.settings.model import KeepSettings, Settings
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.cleaning import files_of
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.maintenance import clean_up, compact_store, sizes
from visdiv_assets.workflows.project import Project

IMAGES, FOLDERS, CHANGED, DIMENSION = 2000, 8, 10, 512
START = datetime(2026, 1, 4, 2, tzinfo=UTC)
CHART = Path(__file__).parents[1] / "docs" / "images" / "store-year.png"


class MadeUp:
    """Unit vectors from a hash of the pixels."""

    model_id, batch_size, calls_at_once, decoding = "made-up", 16, 1, Decoding()

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A vector for each picture, shape (B, 512)."""
        seeds = (hashlib.blake2b(each.tobytes(), digest_size=8).digest() for each in pixels)
        rows = np.stack(
            [
                np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(DIMENSION)
                for seed in seeds
            ]
        )
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit.astype(np.float32)


def write_picture(folder: Path, number: int) -> Path:
    """A small picture of its own, as PPM."""
    path = folder / f"{number % FOLDERS}" / f"{number}.ppm"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, 48, dtype=np.uint8).tobytes()
    path.write_bytes(b"P6 4 4 255\n" + pixels)
    return path


class Clock(datetime):
    """The time of the night that is played."""

    current = START

    @classmethod
    def now(cls, tz=None):  # type: ignore[no-untyped-def]
        """The time of the night."""
        return cls.current


def play(nights: int, folder: Path) -> list[tuple[int, int, int]]:
    """Of each night: bytes in the store, bytes without any clean-up, evaluations."""
    store = Store(folder / "store")
    keep = KeepSettings()
    project = Project(
        Settings(store=store.root, keep=keep), store, Warehouse(store.root / "visdiv.duckdb")
    )
    pictures = [write_picture(folder / "images", number) for number in range(IMAGES)]
    source, embedder, freed, found = DirectorySource(folder / "images"), MadeUp(), 0, []
    dated: set[tuple[str, int]] = set()
    for night in range(nights):
        Clock.current = START + timedelta(days=night)  # type: ignore[assignment]
        with mock.patch("visdiv_assets.workflows.evaluate.datetime", Clock):
            evaluate("dataset", source, embedder, store, project.warehouse)
        moment = Clock.current.timestamp()
        for file in files_of(store):
            path = store.root / file.name
            inode = (file.name, path.stat().st_ino)
            if inode not in dated:
                os.utime(path, (moment, moment))
                dated.add(inode)
        if night % 7 == 6:
            freed += clean_up(project, Clock.current, apply=True).plan.freed
            compact_store(project, Clock.current, apply=True)
        held = sum(file.size for file in files_of(store)) + project.warehouse.path.stat().st_size
        found.append((held, held + freed, night + 1))
        for old in pictures[:CHANGED]:
            old.unlink()
        fresh = range(IMAGES + CHANGED * night, IMAGES + CHANGED * (night + 1))
        pictures = pictures[CHANGED:] + [
            write_picture(folder / "images", number) for number in fresh
        ]
        if night % 30 == 29 or night == nights - 1:
            print(
                f"{night + 1:4} nights {held / 1e6:8.1f} MB, without clean-up "
                f"{(held + freed) / 1e6:8.1f} MB",
                flush=True,
            )
    for kind, (number, size) in sizes(files_of(store)).items():
        print(f"     {kind:<12} {number:6,} files {size / 1e6:8.1f} MB")
    print(f"     results            {project.warehouse.path.stat().st_size / 1e6:14.1f} MB")
    return found


def draw(found: list[tuple[int, int, int]], chart: Path) -> None:
    """Both curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    held, without, nights = np.array(found).T
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(nights, without / 1e6, color="#999999", label="without clean-up")
    axes.plot(nights, held / 1e6, color="#1f6feb", label="keep: {evaluations: 30, days: 90}")
    axes.set_xlabel("nights")
    axes.set_ylabel("MB in the store")
    axes.set_ylim(0)
    axes.set_xlim(0, len(found))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(chart, dpi=150)


def main() -> None:
    """Play a year, print it, draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--chart", type=Path, default=CHART)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="visdiv-year-") as folder:
        found = play(options.nights, Path(folder))
    draw(found, options.chart)


if __name__ == "__main__":
    main()
