"""What the pipeline itself costs an image: everything but decoding and the model.

    .venv/bin/python -m benchmarks.pipeline_overhead [--images 10000]

JPEGs of 448 × 448 are listed, read, hashed, looked up, passed through batches of 128, and their
rows written to a store. In place of the model stands one that takes encoded JPEGs, as a GPU does,
and returns vectors of noise. A single process can't embed more images a second than it prints.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu import FILE_SIDE, make_files
from visdiv_assets.embedding.gpu_decode import GpuDecoder, plain_jpeg_size
from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.store.store import Store

DIMENSION = 512


class Takes:
    """Takes what nvJPEG takes."""

    def takes(self, data: bytes) -> bool:
        """Whether it is a plain JPEG."""
        return plain_jpeg_size(data) is not None


class Noise:
    """Vectors of noise, at once."""

    model_id = "noise"
    batch_size, calls_at_once = 128, 2
    decoding = Decoding(jpeg_on_gpu=True)
    gpu_decoder = cast(GpuDecoder, Takes())

    def embed(self, pixels: Sequence[Pixels]) -> Vectors:
        """Not called: nothing is decoded."""
        raise NotImplementedError

    def embed_encoded(
        self, images: Sequence[Pixels | bytes], otherwise: Callable[[bytes], Pixels]
    ) -> Sequence[tuple[NDArray[np.float32], bool] | DecodeError]:
        """Unit vectors."""
        vectors = np.random.default_rng().standard_normal((len(images), DIMENSION), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return [(vector, False) for vector in vectors]


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=10_000)
    count = arguments.parse_args().images
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        make_files(folder / "files", count, FILE_SIDE)
        source = DirectorySource(folder / "files")
        manifest = list_images(source)
        found = []
        for number in range(6):
            begin, cpu = time.perf_counter(), time.process_time()
            store = Store(folder / f"store{number}")
            _, done = embed_manifest("files", manifest, source, Noise(), store)
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
            if number:  # the first one is not counted
                found.append((seconds / done * 1e6, cpu / done * 1e6))
        wall, cpu = map(statistics.median, zip(*found, strict=True))
        print(f"{count:,} files, {os.cpu_count()} CPUs, load before: {os.getloadavg()[0]:.1f}")
        print(f"{wall:.0f} µs an image, {cpu:.0f} µs of CPU: {1e6 / wall:,.0f} images/s at most")


if __name__ == "__main__":
    main()
