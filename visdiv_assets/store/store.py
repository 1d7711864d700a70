"""The store on disk: manifests, embedding segments, image indexes, moments.

Here: file names, atomic writes, reading back. Not here: DuckDB (`warehouse/`), deciding what to
embed (`embedding/incremental.py`).

    manifests/<dataset>/<fingerprint>.parquet          images of a source; `latest` names one
    embeddings/<model id>/<segment>.npy + .parquet     float16 rows and their content keys
    indexes/<dataset>/<model id>/<fingerprint>.parquet image → content key → segment, row
    moments/<dataset>/<model id>/<fingerprint>.npz     n, Σx, Σxxᵀ, a sample; .slices: of slices

Files are written under a temporary name and renamed when complete. A segment exists once its key
file does, and is never edited.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.manifest import Manifest
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.store.files import read_pieces, write_atomically, write_table
from visdiv_assets.store.index import (
    EmbeddingIndex,
    Keys,
    to_keys,
)
from visdiv_assets.store.key_index import KeyIndex
from visdiv_assets.store.segments import SegmentWriter

logger = logging.getLogger(__name__)

# One part of a path: it neither leads elsewhere nor is hidden, as temporary files are.
SAFE_NAME = re.compile(r"[^./\\\x00-\x1f\x7f\ud800-\udfff][^/\\\x00-\x1f\x7f\ud800-\udfff]*")
MAX_NAME_BYTES = 230  # file systems allow 255, and files are written under longer names


class UnsafeNameError(VisdivError, ValueError):
    """The name of a dataset, model, manifest or segment cannot be part of a path."""


class Store:
    """A store in a folder, created at the first write. Several processes may share it."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # --- manifests ---

    def write_manifest(self, dataset: str, manifest: Manifest) -> Path:
        """Store a manifest and make it the dataset's latest."""
        path = self._manifest(dataset, manifest.fingerprint)
        if not path.exists():
            write_table(path, manifest.table)
        write_atomically(path.with_name("latest"), lambda f: f.write(manifest.fingerprint.encode()))
        return path

    def latest_manifest(self, dataset: str) -> Manifest:
        """The manifest written last.

        Raises:
            VisdivError: the dataset has never been listed.
        """
        return self.read_manifest(dataset, self.listed_fingerprint(dataset))

    def listed_fingerprint(self, dataset: str) -> str:
        """Fingerprint of the manifest written last; raises as `latest_manifest`."""
        fingerprint, _ = self.latest_fingerprint(dataset)
        if fingerprint is None:
            raise VisdivError(
                f"the images of {dataset} have never been listed; run `visdiv score {dataset}`"
            )
        return fingerprint

    def read_manifest(self, dataset: str, fingerprint: str) -> Manifest:
        """The manifest with this fingerprint.

        Raises:
            VisdivError: there is no such manifest.
        """
        try:
            return Manifest(pq.read_table(self._manifest(dataset, fingerprint)), fingerprint)
        except FileNotFoundError as error:
            raise VisdivError(f"{dataset} has no manifest {fingerprint}") from error

    def manifest_length(self, dataset: str, fingerprint: str) -> int:
        """Number of images in a manifest; raises as `read_manifest`."""
        try:
            return int(pq.read_metadata(self._manifest(dataset, fingerprint)).num_rows)
        except FileNotFoundError as error:
            raise VisdivError(f"{dataset} has no manifest {fingerprint}") from error

    def manifest_pieces(
        self, dataset: str, fingerprint: str, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Some columns of a manifest, PIECE_ROWS at a time; raises as `read_manifest`."""
        try:
            yield from read_pieces(self._manifest(dataset, fingerprint), columns)
        except FileNotFoundError as error:
            raise VisdivError(f"{dataset} has no manifest {fingerprint}") from error

    def latest_fingerprint(self, dataset: str) -> tuple[str | None, int]:
        """Fingerprint of the manifest written last, and its time in ns; `None, 0` if there is none.

        Cheap, since it does not read the manifest.
        """
        path = self._below("manifests", dataset, "latest")
        try:
            fingerprint = path.read_text(encoding="ascii")
            self._manifest(dataset, fingerprint)  # an older version may have stored any text
            return fingerprint, path.stat().st_mtime_ns
        except (FileNotFoundError, ValueError):
            return None, 0

    def _manifest(self, dataset: str, fingerprint: str) -> Path:
        return self._below("manifests", dataset, f"{fingerprint}.parquet")

    # --- segments ---

    def model_ids(self) -> list[str]:
        """The model ids that have embeddings, sorted."""
        return sorted(path.name for path in (self.root / "embeddings").glob("[!.]*"))

    def segment_names(self, model_id: str) -> list[str]:
        """The committed segments of a model, sorted."""
        return sorted(path.stem for path in self._segments(model_id).glob("[!.]*.parquet"))

    def rows(self, model_id: str, segment: str) -> NDArray[np.float16]:
        """The vectors of a segment, memory-mapped, shape (rows, D), float16."""
        path = self._below("embeddings", model_id, f"{segment}.npy")
        rows: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        return rows

    def key_index(self, model_id: str) -> KeyIndex:
        """Read the keys of all segments, except damaged ones, whose images are embedded again."""
        keys: dict[str, Keys] = {}
        for name in self.segment_names(model_id):
            try:
                table = pq.read_table(self._segments(model_id) / f"{name}.parquet")
                if len(self.rows(model_id, name)) != len(table):
                    raise ValueError("the numbers of rows and keys differ")
            except (OSError, EOFError, ValueError, pa.ArrowException) as error:
                logger.warning(
                    "segment %s of %s is damaged, so its images will be embedded again: %s",
                    name,
                    model_id,
                    error,
                )
                continue
            keys[name] = to_keys(table["content_key"])
        return KeyIndex.of(keys)

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
            yield from read_pieces(self._index(dataset, model_id, fingerprint), columns)
        except FileNotFoundError as error:
            raise _not_embedded(dataset, model_id) from error

    def latest_index(self, dataset: str) -> EmbeddingIndex | None:
        """The newest index of a dataset, of any model; it has the keys of unchanged images."""
        paths = list(self._below("indexes", dataset).glob("*/[!.]*.parquet"))
        if not paths:
            return None
        newest = max(paths, key=lambda path: (path.stat().st_mtime_ns, path))
        return EmbeddingIndex(pq.read_table(newest))

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
    ) -> Path:
        """Store the moments and the sample of a manifest's embeddings.

        Args:
            dataset: name of the dataset.
            model_id: model id of the embeddings.
            fingerprint: fingerprint of the manifest.
            sample: moments and sample.
            norm_error: the largest | ‖x‖ − 1 |.
            contents: digest of the rows, their counts and their slices.
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
            "contents": np.str_(contents),
        }
        write_atomically(path, lambda file: np.savez(file, **arrays))
        return path

    def read_moments(self, dataset: str, model_id: str, fingerprint: str) -> Moments:
        """The moments of a manifest's embeddings.

        Raises:
            VisdivError: they have not been computed.
        """
        try:
            with np.load(self._moments(dataset, model_id, fingerprint)) as arrays:
                return Moments(int(arrays["n"]), arrays["total"], arrays["outer"])
        except FileNotFoundError as error:
            raise VisdivError(
                f"the moments of {dataset} have not been computed for {model_id}; "
                f"run `visdiv score {dataset}`"
            ) from error

    def read_sample(self, dataset: str, model_id: str, fingerprint: str) -> Sample:
        """The moments and the sample of a manifest's embeddings; raises as `read_moments`."""
        moments = self.read_moments(dataset, model_id, fingerprint)
        with np.load(self._moments(dataset, model_id, fingerprint)) as arrays:
            if "sample_keys" not in arrays:
                raise VisdivError(
                    f"the moments of {dataset} were stored without a sample by an older version; "
                    f"run `visdiv score {dataset}`"
                )
            rows = arrays["sample_rows"].astype(np.float64)
            return Sample(moments, arrays["sample_keys"], rows, arrays["sample_counts"])

    def write_slices(
        self, dataset: str, model_id: str, fingerprint: str, slices: Mapping[str, Sample]
    ) -> None:
        """Store the moments and sample of each slice of a dataset, replacing earlier ones."""
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
        write_atomically(path, lambda file: np.savez(file, **arrays))

    def read_slices(self, dataset: str, model_id: str, fingerprint: str) -> dict[str, Sample]:
        """The slices of a dataset by name; empty if it has none."""
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
        """The largest | ‖x‖ − 1 | among a manifest's embeddings; NaN if unknown."""
        path = self._moments(dataset, model_id, fingerprint)
        if not path.is_file():
            return float("nan")
        with np.load(path) as arrays:
            return float(arrays["norm_error"]) if "norm_error" in arrays else float("nan")

    def moments_digest(
        self, dataset: str, model_id: str, fingerprint: str
    ) -> tuple[str, int] | None:
        """The digest of the contents of a manifest's moments, and their time in ns.

        None if there are none.
        """
        path = self._moments(dataset, model_id, fingerprint)
        try:
            with np.load(path) as arrays:
                digest = str(arrays["contents"]) if "contents" in arrays else ""
            return digest, path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _moments(self, dataset: str, model_id: str, fingerprint: str) -> Path:
        return self._below("moments", dataset, model_id, f"{fingerprint}.npz")

    def _below(self, *names: str) -> Path:
        """A path below the store; raises UnsafeNameError for names that may lead elsewhere."""
        for name in names:
            if not SAFE_NAME.fullmatch(name) or len(os.fsencode(name)) > MAX_NAME_BYTES:
                raise UnsafeNameError(f"the store cannot hold the name {name[:100]!r}")
        return self.root.joinpath(*names)


def _not_embedded(dataset: str, model_id: str) -> VisdivError:
    return VisdivError(
        f"the latest images of {dataset} have not been embedded with {model_id}; "
        f"run `visdiv score {dataset}`"
    )
