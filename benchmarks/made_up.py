"""Stores, datasets and figures that several benchmarks make alike. Not here: any claim."""

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.sources.manifest import SCHEMA, Manifest
from visdiv_assets.store.index import INDEX_SCHEMA, KEY_BYTES, EmbeddingIndex, Keys
from visdiv_assets.store.segments import SEGMENT_ROWS
from visdiv_assets.store.store import Store

MODEL, DIMENSION = "made-up", 512
REAL = Path(__file__).parents[1] / "visdiv_assets_tests/data/embeddings_icons.npy"


def machine() -> str:
    """The processor, how many CPUs this process may use, and how busy the machine is."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    busy = os.getloadavg()[0]
    return (
        f"{names[0] if names else platform.processor()}, {usable_cpus()} CPUs, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"load before: {busy:.1f}"
    )


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def told(values: list[float]) -> str:
    """The median, and from where to where."""
    return f"{statistics.median(values):8.2f} s   ({min(values):.2f} to {max(values):.2f})"


def peak_megabytes() -> float:
    """Most memory that this process has held so far, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def random_keys(n: int, seed: int = 0) -> Keys:
    """Content keys as hashes are: uniformly distributed."""
    return np.frombuffer(np.random.default_rng(seed).bytes(n * KEY_BYTES), f"S{KEY_BYTES}")


@functools.cache
def _real() -> tuple[np.ndarray, np.ndarray]:
    """Mean of real embeddings, and a matrix that gives noise their covariance; float32."""
    rows = np.load(REAL).astype(np.float64)
    spread = np.linalg.cholesky(np.cov(rows, rowvar=False) + 1e-9 * np.eye(DIMENSION)).T
    return rows.mean(axis=0).astype(np.float32), spread.astype(np.float32)


def rows_on_the_grid(n: int, seed: int) -> np.ndarray:
    """Vectors of norm 1 with mean and covariance of 4,446 real embeddings; float16."""
    mean, spread = _real()
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, DIMENSION), dtype=np.float32) @ spread + mean
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows *= np.float32(2.0**15)
    np.round(rows, out=rows)
    rows *= np.float32(2.0**-15)
    # float16 has 11 bits: what it holds of a number on the grid is on the grid.
    return rows.astype(np.float16)


def write_segments(store: Store, keys: Keys, model_id: str = MODEL) -> None:
    """A segment for each SEGMENT_ROWS keys, its files written as a SegmentWriter's are.

    A few hundred thousand different rows are made; further segments repeat them under new keys,
    each turned by its number of places, which is another row.
    """
    folder = store.root / "embeddings" / model_id
    folder.mkdir(parents=True, exist_ok=True)
    made = [rows_on_the_grid(SEGMENT_ROWS, seed) for seed in range(min(32, -(-len(keys) // 4096)))]
    for number, start in enumerate(range(0, len(keys), SEGMENT_ROWS)):
        own = keys[start : start + SEGMENT_ROWS]
        turned = np.roll(made[number % len(made)][: len(own)], number // len(made), axis=1)
        np.save(folder / f"{number:06}.npy", turned)
        column = pa.Array.from_buffers(
            pa.binary(KEY_BYTES), len(own), [None, pa.py_buffer(own.tobytes())]
        )
        pq.write_table(pa.table({"content_key": column}), folder / f"{number:06}.parquet")


def index_of(manifest: Manifest, keys: Keys) -> EmbeddingIndex:
    """The index of a manifest whose n-th image has the n-th key, as `write_segments` placed it."""
    n = len(keys)
    at = np.arange(n)
    names = [f"{number:06}" for number in range(-(-n // SEGMENT_ROWS))]
    columns = {
        "image_id": manifest.table["image_id"],
        "size": manifest.table["size"],
        "version": manifest.table["version"],
        "content_key": pa.Array.from_buffers(
            pa.binary(KEY_BYTES), n, [None, pa.py_buffer(keys.tobytes())]
        ),
        "segment": pa.DictionaryArray.from_arrays(
            pa.array((at // SEGMENT_ROWS).astype(np.int32)), pa.array(names)
        ),
        "row": pa.array((at % SEGMENT_ROWS).astype(np.int32)),
    }
    filled = [columns.get(field.name, pa.nulls(n, field.type)) for field in INDEX_SCHEMA]
    return EmbeddingIndex(pa.table(filled, schema=INDEX_SCHEMA))


def manifest_of(n: int) -> Manifest:
    """A manifest of n images in one folder."""
    ids = pa.array([f"{number:09}.jpg" for number in range(n)])
    sizes, versions = pa.array(np.full(n, 1000)), pa.array(["1"]).take(pa.array(np.zeros(n, int)))
    columns = [ids, sizes, versions, pa.nulls(n, SCHEMA.field("metadata").type)]
    return Manifest.of(pa.table(columns, schema=SCHEMA))
