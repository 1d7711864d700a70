"""The store on disk: manifests, embedding segments, image indexes, moments.

Here: file names, atomic writes, reading back. Not here: DuckDB (`warehouse/`), deciding what to
embed (`embedding/incremental.py`).

    manifests/<dataset>/<fingerprint>.parquet          images of a source; `latest` names one
    embeddings/<model id>/<segment>.npy + .parquet     float16 rows and their content keys
    embeddings/<model id>/.keys/<hash>.run             content key → segment, row; made of segments
    indexes/<dataset>/<model id>/<fingerprint>.parquet image → content key → segment, row
    moments/<dataset>/<model id>/<fingerprint>.npz     n, Σx, Σxxᵀ, a sample; .slices: of slices

Files are written under a temporary name and renamed when complete. A segment exists once its key
file does, and is never edited. A damaged file counts as absent wherever it can be made again.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.manifest import SAMPLE_MARK, Manifest
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Kept, Sample
from visdiv_assets.store.files import (
    DamagedError,
    noticing_damage,
    read_pieces,
    read_table,
    write_atomically,
    write_joined,
    write_table,
)
from visdiv_assets.store.index import KEPT_COLUMNS, EmbeddingIndex, Keys, to_keys
from visdiv_assets.store.key_index import RUNS_FOLDER, KeyIndex, RunFolder
from visdiv_assets.store.segments import ROWS_DIGEST, SegmentWriter, digest_of

logger = logging.getLogger(__name__)

# A temporary file that is older than this belongs to no process that still runs.
LEFTOVER_SECONDS = 24 * 3600.0

# Threads that verify segments; hashing lets them run at once.
VERIFIERS = 4
# One part of a path: it neither leads elsewhere nor is hidden, as temporary files are.
SAFE_NAME = re.compile(r"[^./\\\x00-\x1f\x7f\ud800-\udfff][^/\\\x00-\x1f\x7f\ud800-\udfff]*")
MAX_NAME_BYTES = 230  # file systems allow 255, and files are written under longer names

# The key file of a segment that no index names: the segment takes no part in look-ups any more, but
# can still be read.
UNUSED = ".unused-"


class UnsafeNameError(VisdivError, ValueError):
    """The name of a dataset, model, manifest or segment cannot be part of a path."""


class Store:
    """A store in a folder, created at the first write. Several processes may share it."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._verified: set[tuple[Path, int, int]] = set()

    # --- manifests ---

    def remove_leftovers(self, now: float) -> None:
        """Remove temporary files that are a day old: the processes that wrote them were killed.

        Args:
            now: Unix time.
        """
        # Not all of the store: Dagster may keep hundreds of thousands of files of its own in it.
        for folder in ("manifests", "embeddings", "indexes", "moments", "exports", "pictures"):
            for path in self.root.glob(f"{folder}/**/.tmp-*"):
                with contextlib.suppress(OSError):  # another process was faster, or read-only
                    if now - path.stat().st_mtime > LEFTOVER_SECONDS:
                        path.unlink()

    def write_manifest(self, dataset: str, manifest: Manifest) -> Path:
        """Store a manifest, in place of an earlier one with its fingerprint."""
        path = self._manifest(dataset, manifest.fingerprint)
        write_table(path, manifest.table)
        return path

    def write_picture(self, dataset: str, name: str, png: bytes) -> Path:
        """Store a picture of a dataset, in place of an earlier one of that name."""
        path = self._below("pictures", dataset, f"{name}.png")
        write_atomically(path, lambda file: file.write(png))
        return path

    def name_latest(self, dataset: str, fingerprint: str) -> None:
        """Note which manifest was evaluated last; written when the evaluation is on record."""
        path = self._below("manifests", dataset, "latest")
        write_atomically(path, lambda file: file.write(fingerprint.encode()))

    def latest_manifest(self, dataset: str) -> Manifest:
        """The manifest that was evaluated last.

        Raises:
            VisdivError: the dataset has never been evaluated, or the manifest is damaged.
        """
        fingerprint, _ = self.latest_fingerprint(dataset)
        if fingerprint is None:
            raise VisdivError(f"{dataset} has never been evaluated; run `visdiv score {dataset}`")
        return self.read_manifest(dataset, fingerprint)

    def read_manifest(self, dataset: str, fingerprint: str) -> Manifest:
        """The manifest with this fingerprint.

        Raises:
            VisdivError: there is no such manifest, or it is damaged.
        """
        with self._reading_manifest(dataset, fingerprint) as path:
            return Manifest(read_table(path), fingerprint)

    def manifest_length(self, dataset: str, fingerprint: str) -> int:
        """Number of images in a manifest; raises as `read_manifest`."""
        with self._reading_manifest(dataset, fingerprint) as path:
            return int(pq.read_metadata(path).num_rows)

    def manifest_pieces(
        self, dataset: str, fingerprint: str, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Some columns of a manifest, PIECE_ROWS at a time; raises as `read_manifest`."""
        with self._reading_manifest(dataset, fingerprint) as path:
            yield from read_pieces(path, columns)

    def latest_fingerprint(self, dataset: str) -> tuple[str | None, int]:
        """Fingerprint of the manifest evaluated last, and when, in ns; `None, 0` if there is none.

        Cheap, since it does not read the manifest.
        """
        path = self._below("manifests", dataset, "latest")
        try:
            fingerprint = path.read_text(encoding="ascii")
            self._manifest(dataset, fingerprint)  # an older version may have stored any text
            return fingerprint, path.stat().st_mtime_ns
        except (FileNotFoundError, IsADirectoryError, ValueError):
            return None, 0

    def datasets(self) -> list[str]:
        """The datasets that were evaluated, sorted."""
        return sorted(path.parent.name for path in (self.root / "manifests").glob("*/latest"))

    @contextmanager
    def _reading_manifest(self, dataset: str, fingerprint: str) -> Iterator[Path]:
        path = self._manifest(dataset, fingerprint)
        try:
            with noticing_damage(path, f"run `visdiv score {dataset}`"):
                yield path
        except FileNotFoundError as error:
            raise VisdivError(
                f"{dataset} has no list of images {fingerprint}; run `visdiv score {dataset}`"
            ) from error

    def _manifest(self, dataset: str, fingerprint: str) -> Path:
        return self._below("manifests", dataset, f"{fingerprint}.parquet")

    # --- segments ---

    def model_ids(self) -> list[str]:
        """The model ids that have embeddings, sorted."""
        return sorted(path.name for path in (self.root / "embeddings").glob("[!.]*"))

    def segment_names(self, model_id: str) -> list[str]:
        """The committed segments of a model, sorted."""
        try:
            with os.scandir(self._segments(model_id)) as entries:
                names = [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        ending = ".parquet"
        stems = (name.removesuffix(ending) for name in names if name.endswith(ending))
        return sorted(stem for stem in stems if SAFE_NAME.fullmatch(stem))

    def rows(self, model_id: str, segment: str) -> NDArray[np.float16]:
        """The vectors of a segment, memory-mapped, shape (rows, D), float16.

        They are verified when this object first reads them.

        Raises:
            DamagedError: they are not what was written. The segment counts as absent from now on.
        """
        path = self._below("embeddings", model_id, f"{segment}.npy")
        try:
            with noticing_damage(path, "run `visdiv score` again"):
                rows = self._verified_rows(path)
        except (DamagedError, FileNotFoundError) as error:
            self._retire(path)
            raise DamagedError(
                f"embeddings of {model_id} are damaged ({path.name}) and have to be made again; "
                "run `visdiv score` again"
            ) from error
        return rows

    def _verified_rows(self, path: Path) -> NDArray[np.float16]:
        rows = _mapped(path)
        stat = path.stat()
        version = (path, stat.st_size, stat.st_mtime_ns)
        if version not in self._verified:
            digest = (pq.read_schema(_key_file(path)).metadata or {}).get(ROWS_DIGEST)
            if digest is None:  # written by an older version; an empty row is not an embedding
                if not (np.isfinite(rows).all() and np.any(rows, axis=1).all()):
                    raise ValueError("rows without values")
            elif digest_of(rows) != digest:
                raise ValueError("the checksum of its rows differs")
            self._verified.add(version)
        return rows

    def check_segment(self, model_id: str, segment: str) -> None:
        """Verify a segment, and leave it as it is.

        Raises:
            DamagedError: its rows are not what was written.
        """
        path = self._below("embeddings", model_id, f"{segment}.npy")
        with noticing_damage(path, "its images are embedded again by the next evaluation"):
            self._verified_rows(path)

    def holds(self, model_id: str, segment: str) -> bool:
        """Whether a segment is there, if only set aside."""
        path = self._below("embeddings", model_id, f"{segment}.npy")
        return path.exists() and _key_file(path).exists()

    def folders_of(self, dataset: str) -> list[Path]:
        """The folders that hold what is kept of one dataset alone."""
        kinds = ("manifests", "indexes", "moments", "pictures")
        return [self._below(kind, dataset) for kind in kinds]

    def _retire(self, path: Path) -> None:
        """Take a damaged segment out of use; its files are kept under hidden names."""
        _warn_of_damage(path)
        for each in (_key_file(path), path):  # the key file is what commits a segment
            with contextlib.suppress(OSError):  # read-only, or another process was faster
                each.replace(each.with_name(f".damaged-{each.name}"))

    def retire_damaged(self, model_id: str, segments: Iterable[str]) -> int:
        """Verify segments, take the damaged ones out of use, and return how many those were."""

        def is_damaged(segment: str) -> bool:
            try:
                self.rows(model_id, segment)
            except DamagedError:
                return True
            return False

        with ThreadPoolExecutor(VERIFIERS, thread_name_prefix="verify") as threads:
            return sum(threads.map(is_damaged, segments))

    def key_index(self, model_id: str) -> KeyIndex:
        """An index of the keys of all segments.

        The keys of segments are read when they are new. So a segment that the index names may have
        been damaged since: `segment_keys` tells.
        """

        def keys_of(segment: str) -> Keys | None:
            found = self.segment_keys(model_id, segment)
            return None if found is None else found[0]

        folder = self._segments(model_id)
        names = partial(self.segment_names, model_id)
        return RunFolder(folder / RUNS_FOLDER, names, keys_of).index()

    def segment_keys(self, model_id: str, segment: str) -> tuple[Keys, NDArray[np.bool_]] | None:
        """The content keys of a segment in order of rows, and which pictures are flat.

        None if it is gone, or damaged, so that its images are embedded again.
        """
        path = self._below("embeddings", model_id, f"{segment}.parquet")
        if not path.exists():
            return None
        try:
            with noticing_damage(path, "its images are embedded again"):
                table = read_table(path)
                keys = to_keys(table["content_key"])
                if len(_mapped(path.with_suffix(".npy"))) != len(keys):
                    raise ValueError("the numbers of rows and keys differ")
                if "flat" not in table.column_names:  # written by an older version
                    return keys, np.zeros(len(keys), dtype=np.bool_)
                return keys, pc.fill_null(table["flat"], False).to_numpy()
        except (DamagedError, FileNotFoundError):
            _warn_of_damage(path)
            return None

    def segment_time(self, model_id: str, segment: str) -> int:
        """When the vectors of a segment were written, in ns; raises OSError if it is missing."""
        return self._below("embeddings", model_id, f"{segment}.npy").stat().st_mtime_ns

    def segment_writer(self, model_id: str) -> "SegmentWriter":
        """A context manager that commits added rows as segments, the last ones on exit."""
        return SegmentWriter(self._segments(model_id))

    def _segments(self, model_id: str) -> Path:
        return self._below("embeddings", model_id)

    # --- image indexes ---

    def write_index(
        self, dataset: str, model_id: str, fingerprint: str, index: EmbeddingIndex
    ) -> Path:
        """Store the index of a manifest."""
        path = self._index(dataset, model_id, fingerprint)
        write_table(path, index.table)
        return path

    def read_index(
        self, dataset: str, model_id: str, fingerprint: str, columns: Sequence[str] | None = None
    ) -> EmbeddingIndex:
        """The index of a manifest, with all columns or some.

        Raises:
            VisdivError: the manifest has not been embedded with this model.
        """
        with self._reading_index(dataset, model_id, fingerprint) as path:
            return EmbeddingIndex(read_table(path, columns))

    def index_pieces(
        self, dataset: str, model_id: str, fingerprint: str, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Some columns of an index, PIECE_ROWS at a time; raises as `read_index`."""
        with self._reading_index(dataset, model_id, fingerprint) as path:
            yield from read_pieces(path, columns)

    def earlier_indexes(self, dataset: str) -> list[EmbeddingIndex]:
        """The newest index of a dataset, of any model, and if that is of a sample, of all images.

        They have the keys of unchanged images. Damaged ones are passed over.
        """
        found: list[EmbeddingIndex] = []
        for path in self._newest_indexes(dataset):
            of_sample = SAMPLE_MARK in path.stem
            if found and of_sample:
                continue
            try:
                with noticing_damage(path, "older ones are used"):
                    found.append(EmbeddingIndex(read_table(path).select(KEPT_COLUMNS)))
            except (DamagedError, FileNotFoundError) as error:
                logger.warning("%s", error)
                continue
            if not of_sample:
                break
        return found

    def _newest_indexes(self, dataset: str) -> list[Path]:
        dated = []
        for path in self._below("indexes", dataset).glob("*/[!.]*.parquet"):
            with contextlib.suppress(FileNotFoundError):
                dated.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(dated, reverse=True)]

    @contextmanager
    def _reading_index(self, dataset: str, model_id: str, fingerprint: str) -> Iterator[Path]:
        path = self._index(dataset, model_id, fingerprint)
        try:
            with noticing_damage(path, f"run `visdiv score {dataset}`"):
                yield path
        except FileNotFoundError as error:
            raise VisdivError(
                f"the latest images of {dataset} have not been embedded with {model_id}; "
                f"run `visdiv score {dataset}`"
            ) from error

    def _index(self, dataset: str, model_id: str, fingerprint: str) -> Path:
        return self._below("indexes", dataset, model_id, f"{fingerprint}.parquet")

    # --- moments ---

    def write_moments(
        self,
        dataset: str,
        model_id: str,
        fingerprint: str,
        sample: Sample,
        norm_error: float = 0.0,
        contents: str = "",
        n_slices: int = 0,
    ) -> Path:
        """Store the moments and the sample of a manifest's embeddings.

        Args:
            dataset: name of the dataset.
            model_id: model id of the embeddings.
            fingerprint: fingerprint of the manifest.
            sample: moments and sample.
            norm_error: the largest | ‖x‖ − 1 |.
            contents: digest of the rows, their counts and their slices.
            n_slices: number of slices that `write_slices` stored beside it.
        """
        path = self._moments(dataset, model_id, fingerprint)
        arrays: dict[str, Any] = {
            "n": np.int64(sample.moments.n),
            "total": sample.moments.total,
            "outer": sample.moments.outer,
            "norm_error": np.float64(norm_error),
            "sample_keys": sample.keys,
            "sample_rows": sample.rows.astype(np.float16),  # exact: the rows are on the grid
            "sample_counts": sample.counts,
            **({} if sample.units is None else {"sample_units": sample.units}),
            **_heavy_arrays(sample.heavy),
            "contents": np.str_(contents),
            "n_slices": np.int64(n_slices),
        }
        write_atomically(path, lambda file: np.savez(file, **arrays))
        return path

    def read_moments(self, dataset: str, model_id: str, fingerprint: str) -> Moments:
        """The moments of a manifest's embeddings.

        Raises:
            VisdivError: they have not been computed, or are damaged.
        """
        with self._reading_moments(dataset, model_id, fingerprint) as arrays:
            return Moments(int(arrays["n"]), arrays["total"], arrays["outer"])

    def read_sample(self, dataset: str, model_id: str, fingerprint: str) -> Sample:
        """The moments and the sample of a manifest's embeddings; raises as `read_moments`."""
        with self._reading_moments(dataset, model_id, fingerprint) as arrays:
            if "sample_keys" not in arrays:
                raise VisdivError(
                    f"the moments of {dataset} were stored without a sample by an older version; "
                    f"run `visdiv score {dataset}`"
                )
            moments = Moments(int(arrays["n"]), arrays["total"], arrays["outer"])
            rows = arrays["sample_rows"].astype(np.float64)
            units = arrays.get("sample_units")
            keys, counts = arrays["sample_keys"], arrays["sample_counts"]
            heavy = _heavy_rows(arrays, slice(None)) if "heavy_keys" in arrays else None
            return Sample(moments, keys, rows, counts, units=units, heavy=heavy)

    def write_slices(
        self, dataset: str, model_id: str, fingerprint: str, slices: Mapping[str, Sample]
    ) -> None:
        """Store the moments and sample of each slice of a dataset, replacing earlier ones."""
        path = self._slices(dataset, model_id, fingerprint)
        parts = list(slices.values())
        if not parts:
            path.unlink(missing_ok=True)
            return
        sizes = np.array([len(part.keys) for part in parts], dtype=np.int64)
        n_rows = int(sizes.sum())
        arrays: dict[str, tuple[int, Iterable[NDArray[Any]]]] = {
            "names": (len(parts), [np.array(list(slices), dtype=np.str_)]),
            "n": (len(parts), [np.array([part.moments.n for part in parts], dtype=np.int64)]),
            "total": (len(parts), (part.moments.total[None] for part in parts)),
            "outer": (len(parts), (part.moments.outer[None] for part in parts)),
            "sizes": (len(parts), [sizes]),
            "sample_keys": (n_rows, (part.keys for part in parts)),
            "sample_rows": (n_rows, (part.rows.astype(np.float16) for part in parts)),
            "sample_counts": (n_rows, (part.counts for part in parts)),
        }
        if all(part.units is not None for part in parts):
            arrays["sample_units"] = (n_rows, (np.asarray(part.units) for part in parts))
        heavy = [_heavy_arrays(part.heavy) for part in parts if part.heavy is not None]
        if heavy:
            of_each = [0 if part.heavy is None else len(part.heavy.keys) for part in parts]
            arrays["heavy_sizes"] = (len(parts), [np.array(of_each, dtype=np.int64)])
            for name in heavy[0]:
                arrays[name] = (sum(of_each), [each[name] for each in heavy])
        write_atomically(path, lambda file: write_joined(file, arrays))

    def read_slices(self, dataset: str, model_id: str, fingerprint: str) -> dict[str, Sample]:
        """The slices of a dataset by name; empty if it has none. Raises as `read_moments`."""
        path = self._slices(dataset, model_id, fingerprint)
        with self._reading_moments(dataset, model_id, fingerprint) as arrays:
            expected = int(arrays["n_slices"]) if "n_slices" in arrays else None
        if expected == 0 or (expected is None and not path.exists()):
            return {}
        try:
            with _reading_arrays(path, dataset) as stored:
                arrays = dict(stored)
                ends = np.cumsum(arrays["sizes"])
                of_each = arrays.get("heavy_sizes", np.zeros(len(ends), dtype=np.int64))
                heavy_ends = np.cumsum(of_each)
                slices = {}
                for at, name in enumerate(arrays["names"].tolist()):
                    own = slice(int(ends[at] - arrays["sizes"][at]), int(ends[at]))
                    heavy = slice(int(heavy_ends[at] - of_each[at]), int(heavy_ends[at]))
                    slices[name] = Sample(
                        Moments(int(arrays["n"][at]), arrays["total"][at], arrays["outer"][at]),
                        arrays["sample_keys"][own],
                        arrays["sample_rows"][own].astype(np.float64),
                        arrays["sample_counts"][own],
                        units=arrays["sample_units"][own] if "sample_units" in arrays else None,
                        heavy=_heavy_rows(arrays, heavy) if of_each[at] else None,
                    )
        except FileNotFoundError as error:
            raise DamagedError(f"{path} is missing; run `visdiv score {dataset}`") from error
        return slices

    def read_norm_error(self, dataset: str, model_id: str, fingerprint: str) -> float:
        """The largest | ‖x‖ − 1 | among a manifest's embeddings; NaN if unknown."""
        with self._reading_moments(dataset, model_id, fingerprint) as arrays:
            return float(arrays["norm_error"]) if "norm_error" in arrays else float("nan")

    def moments_digest(
        self, dataset: str, model_id: str, fingerprint: str
    ) -> tuple[str, int] | None:
        """The digest of the contents of a manifest's moments, and their time in ns.

        None if there are none, or if they or the slices beside them are damaged.
        """
        path = self._moments(dataset, model_id, fingerprint)
        try:
            self.read_sample(dataset, model_id, fingerprint)
            self.read_slices(dataset, model_id, fingerprint)
            with _reading_arrays(path, dataset) as arrays:
                digest = str(arrays["contents"]) if "contents" in arrays else ""
            return digest, path.stat().st_mtime_ns
        except (FileNotFoundError, VisdivError):
            return None

    @contextmanager
    def _reading_moments(
        self, dataset: str, model_id: str, fingerprint: str
    ) -> Iterator[Mapping[str, Any]]:
        try:
            with _reading_arrays(self._moments(dataset, model_id, fingerprint), dataset) as arrays:
                yield arrays
        except FileNotFoundError as error:
            raise VisdivError(
                f"the moments of {dataset} have not been computed for {model_id}; "
                f"run `visdiv score {dataset}`"
            ) from error

    def _moments(self, dataset: str, model_id: str, fingerprint: str) -> Path:
        return self._below("moments", dataset, model_id, f"{fingerprint}.npz")

    def _below(self, *names: str) -> Path:
        """A path below the store; raises UnsafeNameError for names that may lead elsewhere."""
        for name in names:
            if not SAFE_NAME.fullmatch(name) or len(os.fsencode(name)) > MAX_NAME_BYTES:
                raise UnsafeNameError(f"the store cannot hold the name {name[:100]!r}")
        return self.root.joinpath(*names)

    def _slices(self, dataset: str, model_id: str, fingerprint: str) -> Path:
        return self._moments(dataset, model_id, fingerprint).with_suffix(".slices")


def _key_file(rows: Path) -> Path:
    """The key file of a segment, hidden or not."""
    keys = rows.with_suffix(".parquet")
    hidden = keys.with_name(UNUSED + keys.name)
    return hidden if hidden.exists() and not keys.exists() else keys


def _warn_of_damage(path: Path) -> None:
    logger.warning(
        "segment %s of %s is damaged, so its images have to be embedded again",
        path.stem,
        path.parent.name,
    )


def _mapped(path: Path) -> NDArray[np.float16]:
    """A segment's vectors, memory-mapped."""
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.ndim != 2 or rows.dtype != np.float16:
        raise ValueError(f"not a matrix of float16: {rows.dtype} {rows.shape}")
    found: NDArray[np.float16] = rows
    return found


@contextmanager
def _reading_arrays(path: Path, dataset: str) -> Iterator[Mapping[str, Any]]:
    """The arrays of an .npz file, whose checksums NumPy verifies as it reads them."""
    cure = f"run `visdiv score {dataset}`"
    with noticing_damage(path, cure), np.load(path, allow_pickle=False) as arrays:
        yield arrays


def _heavy_arrays(heavy: Kept | None) -> dict[str, NDArray[Any]]:
    """The arrays of heavy rows, by name; none if there are none."""
    if heavy is None:
        return {}
    arrays: dict[str, NDArray[Any]] = {
        "heavy_keys": heavy.keys,
        "heavy_rows": heavy.rows.astype(np.float16),
        "heavy_counts": heavy.counts,
    }
    return arrays if heavy.units is None else {**arrays, "heavy_units": heavy.units}


def _heavy_rows(arrays: Mapping[str, Any], which: slice) -> Kept:
    units = arrays["heavy_units"][which] if "heavy_units" in arrays else None
    rows = arrays["heavy_rows"][which].astype(np.float64)
    return Kept(arrays["heavy_keys"][which], rows, arrays["heavy_counts"][which], units)
