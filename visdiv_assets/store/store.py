"""The store on disk: manifests, embedding segments, image indexes, moments.

Here: file names, atomic writes, reading back. Not here: DuckDB (`warehouse/`), deciding what to
embed (`pipeline.py`).

    manifests/<dataset>/<fingerprint>.parquet          what the source held; `latest` names one
    embeddings/<model id>/<segment>.npy + .parquet     float16 rows and their content keys
    indexes/<dataset>/<model id>/<fingerprint>.parquet image → content key → segment, row
    moments/<dataset>/<model id>/<fingerprint>.npz     n, Σx, Σxxᵀ, a sample; .slices: of parts

A file is written under a temporary name and renamed when whole. A segment exists once its key
file does; it is never edited.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.manifest import Manifest
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.store.index import (
    KEY_BYTES,
    EmbeddingIndex,
    Keys,
    content_key,
    to_keys,
)

logger = logging.getLogger(__name__)

# Rows are kept on a grid of 2⁻¹⁵, in float16. Products of two such numbers are multiples of 2⁻³⁰,
# which float64 adds up without any rounding: moments come out the same in every order. That moves
# a unit vector by about 3e-4, as float16 alone does, and a score by less than 1e-6.
GRID = 2.0**-15

SEGMENT_ROWS = 4096
SEGMENT_SECONDS = 30.0

# Rows of a manifest or an index in memory at a time, where they are read in pieces.
PIECE_ROWS = 131_072


def to_grid(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round vectors with entries in [-1, 1] to the store's grid, as float16; same shape.

    Example:
        >>> to_grid(np.array([0.1, -1.0], dtype=np.float32)).tolist()
        [0.0999755859375, -1.0]
    """
    return (np.round(vectors.astype(np.float64) / GRID) * GRID).astype(np.float16)


@dataclass(frozen=True, eq=False)
class KeyIndex:
    """Where in the segments of one model each content key is. Holds 32 bytes a key."""

    segments: tuple[str, ...]
    _keys: Keys  # sorted
    _heads: NDArray[np.uint64]  # the first halves of the keys: numbers are found faster than texts
    _segment: NDArray[np.int32]
    _row: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return bool(self.find(np.array([key], dtype=f"S{KEY_BYTES}"))[0][0] >= 0)

    def find(self, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """For each key, the position of its segment in `segments` and its row; -1 where unknown."""
        if not len(self._keys):
            missing = np.full(len(keys), -1, dtype=np.int32)
            return missing, missing
        heads, last = _heads(keys), len(self._keys) - 1
        at = np.minimum(np.searchsorted(self._heads, heads), last)
        found = self._keys[at] == keys
        if len(alike := np.flatnonzero(~found & (self._heads[at] == heads))):
            at[alike] = np.minimum(np.searchsorted(self._keys, keys[alike]), last)
            found[alike] = self._keys[at[alike]] == keys[alike]
        return (
            np.where(found, self._segment[at], -1).astype(np.int32),
            np.where(found, self._row[at], -1).astype(np.int32),
        )


def _heads(keys: Keys) -> NDArray[np.uint64]:
    """The first 8 bytes of each key as a number; in the order of the keys."""
    return np.frombuffer(keys.tobytes(), dtype=">u8")[::2].astype(np.uint64)


class Store:
    """A store in a folder; created at the first write. Several processes may use it at once."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # --- manifests ---

    def write_manifest(self, dataset: str, manifest: Manifest) -> Path:
        """Keep a manifest and make it the dataset's latest."""
        folder = self.root / "manifests" / dataset
        path = self._manifest(dataset, manifest.fingerprint)
        if not path.exists():
            _write_table(path, manifest.table)
        _write_atomically(folder / "latest", lambda f: f.write(manifest.fingerprint.encode()))
        return path

    def latest_manifest(self, dataset: str) -> Manifest:
        """The manifest written last.

        Raises:
            VisdivError: the dataset was never listed.
        """
        return self.read_manifest(dataset, self.listed_fingerprint(dataset))

    def listed_fingerprint(self, dataset: str) -> str:
        """Fingerprint of the manifest written last; raises as `latest_manifest`."""
        fingerprint, _ = self.latest_fingerprint(dataset)
        if fingerprint is None:
            raise VisdivError(f"the images of {dataset} were never listed")
        return fingerprint

    def read_manifest(self, dataset: str, fingerprint: str) -> Manifest:
        """The manifest with this fingerprint.

        Raises:
            VisdivError: there is none.
        """
        try:
            return Manifest(pq.read_table(self._manifest(dataset, fingerprint)), fingerprint)
        except FileNotFoundError as error:
            raise VisdivError(f"{dataset} has no manifest {fingerprint}") from error

    def manifest_length(self, dataset: str, fingerprint: str) -> int:
        """Images of a manifest; raises as `read_manifest`."""
        try:
            return int(pq.read_metadata(self._manifest(dataset, fingerprint)).num_rows)
        except FileNotFoundError as error:
            raise VisdivError(f"{dataset} has no manifest {fingerprint}") from error

    def manifest_pieces(
        self, dataset: str, fingerprint: str, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Some columns of a manifest, PIECE_ROWS at a time; raises as `read_manifest`."""
        try:
            yield from _pieces(self._manifest(dataset, fingerprint), columns)
        except FileNotFoundError as error:
            raise VisdivError(f"{dataset} has no manifest {fingerprint}") from error

    def latest_fingerprint(self, dataset: str) -> tuple[str | None, int]:
        """Fingerprint of the manifest written last, and when that was, in ns; `None, 0` if never.

        Cheap: the manifest itself is not read.
        """
        path = self.root / "manifests" / dataset / "latest"
        try:
            return path.read_text(encoding="ascii"), path.stat().st_mtime_ns
        except FileNotFoundError:
            return None, 0

    def _manifest(self, dataset: str, fingerprint: str) -> Path:
        return self.root / "manifests" / dataset / f"{fingerprint}.parquet"

    # --- segments ---

    def model_ids(self) -> list[str]:
        """The models that there are embeddings of, sorted."""
        return sorted(path.name for path in (self.root / "embeddings").glob("[!.]*"))

    def segment_names(self, model_id: str) -> list[str]:
        """The committed segments of a model, sorted."""
        return sorted(path.stem for path in self._segments(model_id).glob("[!.]*.parquet"))

    def rows(self, model_id: str, segment: str) -> NDArray[np.float16]:
        """The vectors of a segment, memory-mapped, shape (rows, D), float16."""
        path = self._segments(model_id) / f"{segment}.npy"
        rows: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        return rows

    def key_index(self, model_id: str) -> KeyIndex:
        """Read the keys of all segments. Damaged segments are left out, so their images return."""
        names: list[str] = []
        keys, segment, row = [], [], []
        for name in self.segment_names(model_id):
            try:
                table = pq.read_table(self._segments(model_id) / f"{name}.parquet")
                if len(self.rows(model_id, name)) != len(table):
                    raise ValueError("as many rows as keys are expected")
            except (OSError, EOFError, ValueError, pa.ArrowException) as error:
                logger.warning("segment %s of %s is damaged: %s", name, model_id, error)
                continue
            segment.append(np.full(len(table), len(names), dtype=np.int32))
            row.append(np.arange(len(table), dtype=np.int32))
            keys.append(to_keys(table["content_key"]))
            names.append(name)
        if not names:
            nothing, no_keys = np.empty(0, dtype=np.int32), np.empty(0, dtype=f"S{KEY_BYTES}")
            return KeyIndex((), no_keys, _heads(no_keys), nothing, nothing)
        all_keys = np.concatenate(keys)
        # Stable, so that of two rows with one key the one in the first segment is found.
        order = np.argsort(all_keys, kind="stable")
        all_keys = all_keys[order]
        return KeyIndex(
            tuple(names),
            all_keys,
            _heads(all_keys),
            np.concatenate(segment)[order],
            np.concatenate(row)[order],
        )

    def segment_time(self, model_id: str, segment: str) -> int:
        """When the vectors of a segment were written, in ns; OSError where there is none."""
        return (self._segments(model_id) / f"{segment}.npy").stat().st_mtime_ns

    def segment_writer(self, model_id: str) -> "SegmentWriter":
        """A context manager that commits added rows as segments, the last ones at its end."""
        return SegmentWriter(self._segments(model_id))

    def _segments(self, model_id: str) -> Path:
        return self.root / "embeddings" / model_id

    # --- image indexes ---

    def write_index(
        self, dataset: str, model_id: str, fingerprint: str, index: EmbeddingIndex
    ) -> Path:
        """Keep which row belongs to each image of a manifest."""
        path = self._index(dataset, model_id, fingerprint)
        _write_table(path, index.table)
        return path

    def read_index(
        self, dataset: str, model_id: str, fingerprint: str, columns: Sequence[str] | None = None
    ) -> EmbeddingIndex:
        """The index of a manifest, with all of its columns or some.

        Raises:
            VisdivError: that manifest was not embedded with that model.
        """
        path = self._index(dataset, model_id, fingerprint)
        try:
            return EmbeddingIndex(pq.read_table(path, columns=columns and list(columns)))
        except FileNotFoundError as error:
            raise _not_embedded(dataset, model_id) from error

    def index_pieces(
        self, dataset: str, model_id: str, fingerprint: str, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Some columns of an index, PIECE_ROWS at a time; raises as `read_index`."""
        try:
            yield from _pieces(self._index(dataset, model_id, fingerprint), columns)
        except FileNotFoundError as error:
            raise _not_embedded(dataset, model_id) from error

    def latest_index(self, dataset: str) -> EmbeddingIndex | None:
        """The newest index of a dataset, of any model: it knows the keys of unchanged images."""
        paths = list((self.root / "indexes" / dataset).glob("*/[!.]*.parquet"))
        if not paths:
            return None
        newest = max(paths, key=lambda path: (path.stat().st_mtime_ns, path))
        return EmbeddingIndex(pq.read_table(newest))

    def _index(self, dataset: str, model_id: str, fingerprint: str) -> Path:
        return self.root / "indexes" / dataset / model_id / f"{fingerprint}.parquet"

    # --- moments ---

    def write_moments(
        self,
        dataset: str,
        model_id: str,
        fingerprint: str,
        sample: Sample,
        norm_error: float = 0.0,
        contents: str = "",
    ) -> Path:
        """Keep moments and sample of a manifest's embeddings.

        Args:
            dataset: its name.
            model_id: of the embeddings.
            fingerprint: of the manifest.
            sample: moments and sample.
            norm_error: the largest | ‖x‖ − 1 |.
            contents: digest of the rows, how often each occurs and which slice it is in.
        """
        path = self._moments(dataset, model_id, fingerprint)
        arrays: dict[str, Any] = {
            "n": np.int64(sample.moments.n),
            "total": sample.moments.total,
            "outer": sample.moments.outer,
            "norm_error": np.float64(norm_error),
            "sample_keys": sample.keys,
            "sample_rows": sample.rows.astype(np.float16),  # exact: they come from the grid
            "sample_counts": sample.counts,
            "contents": np.str_(contents),
        }
        _write_atomically(path, lambda file: np.savez(file, **arrays))
        return path

    def read_moments(self, dataset: str, model_id: str, fingerprint: str) -> Moments:
        """The moments of a manifest's embeddings.

        Raises:
            VisdivError: they were never computed.
        """
        try:
            with np.load(self._moments(dataset, model_id, fingerprint)) as arrays:
                return Moments(int(arrays["n"]), arrays["total"], arrays["outer"])
        except FileNotFoundError as error:
            raise VisdivError(
                f"the moments of {dataset} as last listed were not computed for {model_id}"
            ) from error

    def read_sample(self, dataset: str, model_id: str, fingerprint: str) -> Sample:
        """The moments and the sample of a manifest's embeddings; raises as `read_moments`."""
        moments = self.read_moments(dataset, model_id, fingerprint)
        with np.load(self._moments(dataset, model_id, fingerprint)) as arrays:
            if "sample_keys" not in arrays:
                raise VisdivError(
                    f"the moments of {dataset} were kept without a sample, by an older version; "
                    "evaluate it once more"
                )
            rows = arrays["sample_rows"].astype(np.float64)
            return Sample(moments, arrays["sample_keys"], rows, arrays["sample_counts"])

    def write_slices(
        self, dataset: str, model_id: str, fingerprint: str, slices: Mapping[str, Sample]
    ) -> None:
        """Keep moments and sample of each part of a dataset; replaces those kept before."""
        path = self._moments(dataset, model_id, fingerprint).with_suffix(".slices")
        parts = list(slices.values())
        if not parts:
            path.unlink(missing_ok=True)
            return
        arrays: dict[str, Any] = {
            "names": np.array(list(slices), dtype=np.str_),
            "n": np.array([part.moments.n for part in parts], dtype=np.int64),
            "total": np.stack([part.moments.total for part in parts]),
            "outer": np.stack([part.moments.outer for part in parts]),
            "sizes": np.array([len(part.keys) for part in parts], dtype=np.int64),
            "sample_keys": np.concatenate([part.keys for part in parts]),
            "sample_rows": np.concatenate([part.rows for part in parts]).astype(np.float16),
            "sample_counts": np.concatenate([part.counts for part in parts]),
        }
        _write_atomically(path, lambda file: np.savez(file, **arrays))

    def read_slices(self, dataset: str, model_id: str, fingerprint: str) -> dict[str, Sample]:
        """The parts of a dataset by name; none where it was not divided."""
        path = self._moments(dataset, model_id, fingerprint).with_suffix(".slices")
        if not path.is_file():
            return {}
        with np.load(path) as stored:
            arrays = dict(stored)
        ends = np.cumsum(arrays["sizes"])
        slices = {}
        for at, name in enumerate(arrays["names"].tolist()):
            own = slice(int(ends[at] - arrays["sizes"][at]), int(ends[at]))
            moments = Moments(int(arrays["n"][at]), arrays["total"][at], arrays["outer"][at])
            rows = arrays["sample_rows"][own].astype(np.float64)
            slices[name] = Sample(
                moments, arrays["sample_keys"][own], rows, arrays["sample_counts"][own]
            )
        return slices

    def read_norm_error(self, dataset: str, model_id: str, fingerprint: str) -> float:
        """The largest | ‖x‖ − 1 | among a manifest's embeddings; NaN where that is not known."""
        path = self._moments(dataset, model_id, fingerprint)
        if not path.is_file():
            return float("nan")
        with np.load(path) as arrays:
            return float(arrays["norm_error"]) if "norm_error" in arrays else float("nan")

    def moments_digest(
        self, dataset: str, model_id: str, fingerprint: str
    ) -> tuple[str, int] | None:
        """Of which contents the moments of a manifest are, and when they were written, in ns.

        None where there are none.
        """
        path = self._moments(dataset, model_id, fingerprint)
        try:
            with np.load(path) as arrays:
                digest = str(arrays["contents"]) if "contents" in arrays else ""
            return digest, path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _moments(self, dataset: str, model_id: str, fingerprint: str) -> Path:
        return self.root / "moments" / dataset / model_id / f"{fingerprint}.npz"


class SegmentWriter:
    """Collects rows and commits them as segments of up to SEGMENT_ROWS, in a thread of its own.

    Also commits when rows have waited SEGMENT_SECONDS, and on leaving the `with` block for
    whatever reason, so an interrupted run keeps everything it has finished.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[tuple[bytes, NDArray[np.float32]]] = []
        self._oldest = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._committing: Future[None] | None = None

    def add(self, key: bytes, vector: NDArray[np.float32]) -> None:
        """Take one row, shape (D,); raises what went wrong with the segment before."""
        now = time.monotonic()
        if not self._waiting:
            self._oldest = now
        self._waiting.append((key, vector))
        if len(self._waiting) >= SEGMENT_ROWS or now - self._oldest >= SEGMENT_SECONDS:
            self._commit_soon()

    def _commit_soon(self) -> None:
        """Begin to write the collected rows, once those before them are written."""
        before, self._committing = self._committing, None
        if before is not None:
            before.result()
        waiting, self._waiting = self._waiting, []
        self._committing = self._thread.submit(self._commit, waiting)

    def _commit(self, waiting: Sequence[tuple[bytes, NDArray[np.float32]]]) -> None:
        """Write rows as one segment, named by its keys."""
        keys, vectors = zip(*waiting, strict=True)
        rows = to_grid(np.stack(vectors))
        column = pa.array(keys, type=pa.binary(KEY_BYTES))
        name = content_key(b"".join(keys)).hex()
        _write_atomically(self._folder / f"{name}.npy", lambda file: np.save(file, rows))
        _write_table(self._folder / f"{name}.parquet", pa.table({"content_key": column}))

    def close(self) -> None:
        """Commit what is left, and wait until all is on disk."""
        with self._thread:
            if self._waiting:
                self._commit_soon()
            if self._committing is not None:
                self._committing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _not_embedded(dataset: str, model_id: str) -> VisdivError:
    return VisdivError(f"the images of {dataset} as last listed were not embedded with {model_id}")


def _pieces(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path, pre_buffer=False) as file:  # else all that was read stays
        for batch in file.iter_batches(PIECE_ROWS, columns=list(columns)):
            yield pa.Table.from_batches([batch])


def _write_table(path: Path, table: pa.Table) -> None:
    _write_atomically(path, lambda file: pq.write_table(table, file, row_group_size=PIECE_ROWS))


def _write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write under a hidden temporary name in the same folder, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
