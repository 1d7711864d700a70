"""The store: manifests, embedding segments, image indexes, moments.

Here: file names, writing and reading back. Not here: where the files are (`objects.py`), DuckDB
(`warehouse/`), deciding what to embed (`embedding/incremental.py`).

    manifests/<dataset>/<fingerprint>.parquet          images of a source; `latest` names one
    plans/<dataset>/                                   units of work (`plans.py`)
    embeddings/<model id>/<segment>.npy + .parquet     float16 rows and their content keys
    embeddings/<model id>/.keys/<hash>.run             content key → segment, row; made of segments
    indexes/<dataset>/<model id>/<fingerprint>.parquet image → content key → segment, row
    indexes/<dataset>/newest                           which of them were written last
    moments/<dataset>/<model id>/<fingerprint>.npz     n, Σx, Σxxᵀ, a sample; .slices: of slices

A file is there once all of it is written. A segment exists once its key file does, and is never
edited. A damaged file counts as absent wherever it can be made again. No order is read off the
times of files: what is newest has been named.
"""

import contextlib
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from visdiv_assets.errors import Unreachable, VisdivError
from visdiv_assets.sources.manifest import SAMPLE_MARK, Manifest
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Kept, Sample
from visdiv_assets.store.files import (
    DamagedError,
    noticing_damage,
    read_table,
    stored_pieces,
    write_joined,
    writing,
)
from visdiv_assets.store.index import KEPT_COLUMNS, PART_MARK, EmbeddingIndex, Keys, to_keys
from visdiv_assets.store.key_index import RUNS_FOLDER, KeyIndex, RunFolder
from visdiv_assets.store.objects import TEMPORARY, Folder, Objects
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
# Either file of a segment that is not what was written.
DAMAGED = ".damaged-"

# Which results refer to the store, if they are not in it.
RESULTS = "results"
LONGEST_PLACE = 1000

# Which indexes of a dataset were written last.
NEWEST = "newest"

HEADER_BYTES = 128  # of a segment, as NumPy writes it


class UnsafeNameError(VisdivError, ValueError):
    """The name of a dataset, model, manifest or segment cannot be part of a path."""


class Store:
    """A store, created at the first write. Several processes may share it.

    Attributes:
        objects: where its files are.
    """

    def __init__(self, place: Path | str | Objects) -> None:
        """A store somewhere; nothing is read yet.

        Args:
            place: a folder on a disk, or anything else that keeps files.
        """
        self.objects = Folder(Path(place)) if isinstance(place, Path | str) else place
        # Segments whose rows are what was written: where they are on this machine, size and time.
        self._verified: dict[str, tuple[Path, int, int]] = {}

    @property
    def uri(self) -> str:
        """Where it is, as shown to users."""
        return self.objects.uri

    @property
    def root(self) -> Path:
        """Its folder, if it is on a disk."""
        if not isinstance(self.objects, Folder):
            raise VisdivError(f"{self.uri} is no folder on a disk")
        return self.objects.root

    # --- manifests ---

    def remove_leftovers(self, now: float) -> None:
        """Remove temporary files that are a day old: the processes that wrote them were killed.

        Args:
            now: Unix time.
        """
        # Not all of the store: Dagster may keep hundreds of thousands of files of its own in it.
        if not isinstance(self.objects, Folder):
            return
        for folder in (
            "manifests",
            "plans",
            "embeddings",
            "indexes",
            "moments",
            "exports",
            "pictures",
        ):
            for path in self.root.glob(f"{folder}/**/{TEMPORARY}*"):
                with contextlib.suppress(OSError):  # another process was faster, or read-only
                    if now - path.stat().st_mtime > LEFTOVER_SECONDS:
                        path.unlink()

    def write_manifest(self, dataset: str, manifest: Manifest) -> None:
        """Store a manifest, in place of an earlier one with its fingerprint."""
        self.objects.write(self._manifest(dataset, manifest.fingerprint), writing(manifest.pieces))

    def write_picture(self, dataset: str, name: str, png: bytes) -> str:
        """Store a picture of a dataset, in place of an earlier one of that name; where it is."""
        name = below("pictures", dataset, f"{name}.png")
        self.objects.write(name, lambda file: file.write(png))
        return self.objects.shown(name)

    def note_results(self, results: str, where: str) -> None:
        """Note that some results refer to this store, unless it is noted already.

        Args:
            results: their id, 32 hexadecimal digits.
            where: where they are, for people.
        """
        name = below(RESULTS, results)
        if not self._is_there(name):
            self.objects.write(name, lambda file: file.write(where.encode()))

    def noted_results(self) -> dict[str, str]:
        """Where the results are that refer to this store and are not in it, by id."""
        noted = {}
        for file in self.objects.files(RESULTS):
            with contextlib.suppress(FileNotFoundError):
                where, _ = self.objects.head(file.name, LONGEST_PLACE)
                noted[file.name.rpartition("/")[2]] = where.decode("utf-8", "replace")
        return noted

    def name_latest(self, dataset: str, latest: str | Callable[[], str]) -> None:
        """Note which manifest was evaluated last, as soon as an evaluation is on record.

        Args:
            dataset: its name.
            latest: the fingerprint, or what tells it; that is asked again if somebody else notes
                one meanwhile.
        """

        def named(_: bytes | None) -> bytes:
            return (latest if isinstance(latest, str) else latest()).encode()

        self.objects.update(below("manifests", dataset, "latest"), named)

    def latest_manifest(self, dataset: str) -> Manifest:
        """The manifest that was evaluated last.

        Raises:
            VisdivError: the dataset has never been evaluated, or the manifest is damaged.
        """
        fingerprint = self.latest_fingerprint(dataset)
        if fingerprint is None:
            raise VisdivError(f"{dataset} has never been evaluated; run `visdiv score {dataset}`")
        return self.read_manifest(dataset, fingerprint)

    def read_manifest(self, dataset: str, fingerprint: str) -> Manifest:
        """The manifest with this fingerprint; its rows are read when they are needed.

        Raises:
            VisdivError: there is no such manifest, or it is damaged, which may show later.
        """
        opened = partial(self._reading_manifest, dataset, fingerprint)
        return Manifest(stored_pieces(opened), fingerprint)

    def manifest_length(self, dataset: str, fingerprint: str) -> int:
        """Number of images in a manifest; raises as `read_manifest`."""
        with self._reading_manifest(dataset, fingerprint) as path:
            return int(pq.read_metadata(path).num_rows)

    def latest_fingerprint(self, dataset: str) -> str | None:
        """Fingerprint of the manifest evaluated last; None if there is none.

        Cheap, since it does not read the manifest.
        """
        name = below("manifests", dataset, "latest")
        try:
            content, _ = self.objects.head(name, MAX_NAME_BYTES)
            fingerprint = content.decode("ascii")
            self._manifest(dataset, fingerprint)  # an older version may have stored any text
        except (FileNotFoundError, IsADirectoryError, ValueError):
            return None
        return fingerprint

    def datasets(self) -> list[str]:
        """The datasets that were evaluated, sorted."""
        names = (file.name.split("/") for file in self.objects.files("manifests"))
        return sorted(parts[1] for parts in names if parts[2:] == ["latest"])

    @contextmanager
    def _reading_manifest(self, dataset: str, fingerprint: str) -> Iterator[Path]:
        name = self._manifest(dataset, fingerprint)
        try:
            with self.reading(name, f"run `visdiv score {dataset}`") as path:
                yield path
        except FileNotFoundError as error:
            raise VisdivError(
                f"{dataset} has no list of images {fingerprint}; run `visdiv score {dataset}`"
            ) from error

    def _manifest(self, dataset: str, fingerprint: str) -> str:
        return below("manifests", dataset, f"{fingerprint}.parquet")

    @contextmanager
    def reading(self, name: str, cure: str) -> Iterator[Path]:
        """A file to read; whatever damage raises in the block says which it is, and the cure."""
        with noticing_damage(self.objects.shown(name), cure):
            yield self.objects.local(name)

    # --- segments ---

    def model_ids(self) -> list[str]:
        """The model ids that have embeddings, sorted."""
        names = {file.name.split("/")[1] for file in self.objects.files("embeddings")}
        return sorted(name for name in names if SAFE_NAME.fullmatch(name))

    def segment_names(self, model_id: str) -> list[str]:
        """The committed segments of a model, sorted."""
        folder, ending = below("embeddings", model_id), ".parquet"
        stems = (
            file.name[len(folder) + 1 :].removesuffix(ending)
            for file in self.objects.files(folder)
            if file.name.endswith(ending)
        )
        return sorted(stem for stem in stems if SAFE_NAME.fullmatch(stem))

    def rows(self, model_id: str, segment: str) -> NDArray[np.float16]:
        """The vectors of a segment, memory-mapped, shape (rows, D), float16.

        They are verified when this object first reads them.

        Raises:
            DamagedError: they are not what was written. The segment counts as absent from now on.
        """
        name = _rows_file(model_id, segment)
        try:
            try:
                return self._verified_rows(name)
            except (DamagedError, FileNotFoundError):  # perhaps only the copy of it is damaged
                return self._verified_rows(name, fresh=True)
        except (DamagedError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) and self.holds(model_id, segment):
                shown = self.objects.shown(name)
                raise VisdivError(f"the copy of {shown} has gone meanwhile; try again") from error
            self._retire(model_id, segment)
            raise DamagedError(
                f"embeddings of {model_id} are damaged ({segment}.npy) and have to be made again; "
                "run `visdiv score` again"
            ) from error

    def _verified_rows(
        self, name: str, cure: str = "run `visdiv score` again", *, fresh: bool = False
    ) -> NDArray[np.float16]:
        with noticing_damage(self.objects.shown(name), cure):
            known = self._verified.get(name)
            if known is not None and not fresh and known == _as_it_is(known[0]):
                return _mapped(known[0])
            path = self.objects.local(name, fresh=fresh)
            rows = _mapped(path)
            keys = self._key_file(name, fresh=fresh)
            digest = (pq.read_schema(keys).metadata or {}).get(ROWS_DIGEST)
            if digest is None:  # written by an older version; an empty row is not an embedding
                if not (np.isfinite(rows).all() and np.any(rows, axis=1).all()):
                    raise ValueError("rows without values")
            elif digest_of(rows) != digest:
                raise ValueError("the checksum of its rows differs")
            if (now := _as_it_is(path)) is not None:
                self._verified[name] = now
            return rows

    def _key_file(self, rows: str, *, fresh: bool = False) -> Path:
        """The key file of a segment, hidden or not."""
        try:
            return self.objects.local(_keys_beside(rows), fresh=fresh)
        except FileNotFoundError:
            return self.objects.local(hidden(_keys_beside(rows), UNUSED), fresh=fresh)

    def check_segment(self, model_id: str, segment: str) -> None:
        """Verify a segment, and leave it as it is.

        Raises:
            DamagedError: its rows are not what was written.
        """
        cure = "its images are embedded again by the next evaluation"
        self._verified_rows(_rows_file(model_id, segment), cure, fresh=True)

    def holds(self, model_id: str, segment: str) -> bool:
        """Whether a segment is there, if only set aside."""
        rows = _rows_file(model_id, segment)
        keys = _keys_beside(rows)
        return self._is_there(rows) and (
            self._is_there(keys) or self._is_there(hidden(keys, UNUSED))
        )

    def segment_rows(self, model_id: str, segment: str) -> int | None:
        """The number of rows of a segment; None if it is gone or cut short."""
        try:
            return _rows_in(*self.objects.head(_rows_file(model_id, segment), HEADER_BYTES))
        except (FileNotFoundError, ValueError):
            return None

    def set_aside(self, model_id: str, segment: str) -> None:
        """Let nothing new refer to a segment; whoever refers to it already still reads it."""
        keys = _keys_beside(_rows_file(model_id, segment))
        with contextlib.suppress(FileNotFoundError):  # somebody was faster
            self.objects.rename(keys, hidden(keys, UNUSED))

    def _is_there(self, name: str) -> bool:
        try:
            self.objects.about(name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def folders_of(self, dataset: str) -> list[str]:
        """The folders that hold what is kept of one dataset alone."""
        kinds = ("manifests", "plans", "indexes", "moments", "pictures")
        return [below(kind, dataset) for kind in kinds]

    def _retire(self, model_id: str, segment: str) -> None:
        """Take a damaged segment out of use; its files are kept under hidden names."""
        _warn_of_damage(model_id, segment)
        rows = _rows_file(model_id, segment)
        keys = _keys_beside(rows)
        for each in (keys, hidden(keys, UNUSED), rows):  # the key file is what commits a segment
            with contextlib.suppress(OSError, VisdivError):  # read-only, or somebody was faster
                self.objects.rename(each, hidden(each, DAMAGED))

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

        folder = below("embeddings", model_id)
        names = partial(self.segment_names, model_id)
        return RunFolder(self.objects, f"{folder}/{RUNS_FOLDER}", names, keys_of).index()

    def segment_keys(self, model_id: str, segment: str) -> tuple[Keys, NDArray[np.bool_]] | None:
        """The content keys of a segment in order of rows, and which pictures are flat.

        None if it is gone, or damaged, so that its images are embedded again.
        """
        rows = _rows_file(model_id, segment)
        name = _keys_beside(rows)
        try:
            path = self.objects.local(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            with noticing_damage(self.objects.shown(name), "its images are embedded again"):
                table = read_table(path)
                keys = to_keys(table["content_key"])
                if _rows_in(*self.objects.head(rows, HEADER_BYTES)) != len(keys):
                    raise ValueError("the numbers of rows and keys differ")
                if "flat" not in table.column_names:  # written by an older version
                    return keys, np.zeros(len(keys), dtype=np.bool_)
                return keys, pc.fill_null(table["flat"], False).to_numpy()
        except (DamagedError, FileNotFoundError):
            _warn_of_damage(model_id, segment)
            return None

    def segment_writer(self, model_id: str) -> "SegmentWriter":
        """A context manager that commits added rows as segments, the last ones on exit."""
        return SegmentWriter(self.objects, below("embeddings", model_id))

    # --- image indexes ---

    def write_index(
        self, dataset: str, model_id: str, fingerprint: str, index: EmbeddingIndex
    ) -> None:
        """Store the index of a manifest, and note that it is the newest one."""
        self.objects.write(self._index(dataset, model_id, fingerprint), writing(index.pieces))
        written = [model_id, fingerprint]

        def with_it(before: bytes | None) -> bytes:
            named = {**_named(before), "any": written}
            if SAMPLE_MARK not in fingerprint:
                named["whole"] = written
            return json.dumps(named).encode()

        self.objects.update(below("indexes", dataset, NEWEST), with_it)

    def read_index(
        self, dataset: str, model_id: str, fingerprint: str, columns: Sequence[str] | None = None
    ) -> EmbeddingIndex:
        """The index of a manifest, with all columns or some.

        Raises:
            VisdivError: the manifest has not been embedded with this model.
        """
        with self._reading_index(dataset, model_id, fingerprint) as path:
            return EmbeddingIndex(read_table(path, columns))

    def index_of(self, dataset: str, model_id: str, fingerprint: str) -> EmbeddingIndex:
        """As `read_index`, but rows are read when they are needed, a piece at a time."""
        return EmbeddingIndex(
            stored_pieces(partial(self._reading_index, dataset, model_id, fingerprint))
        )

    def earlier_indexes(self, dataset: str) -> list[EmbeddingIndex]:
        """The newest index of a dataset, of any model, and if that is of a sample, of all images.

        They have the keys of unchanged images. Damaged ones are passed over. Their rows are read
        when they are needed.
        """
        found: list[EmbeddingIndex] = []
        for name in self._indexes_by_age(dataset):
            of_sample = SAMPLE_MARK in name.rpartition("/")[2]
            if found and of_sample:
                continue
            try:
                pieces = stored_pieces(partial(self.reading, name, "older ones are used"))
                for _ in pieces(KEPT_COLUMNS):
                    pass
                found.append(EmbeddingIndex(pieces))
            except (DamagedError, FileNotFoundError) as error:
                logger.warning("%s", error)
                continue
            if not of_sample:
                break
        return found

    def newest_indexes(self, dataset: str) -> list[str]:
        """The files of the index that was written last, and of the last of all images.

        They may be one, or gone. Older versions named none.
        """
        name = below("indexes", dataset, NEWEST)
        try:
            with self.reading(name, "others are used") as path:
                named = _named(path.read_bytes())
        except (DamagedError, FileNotFoundError):
            return []
        places = [named[key] for key in ("any", "whole") if key in named]
        return list(dict.fromkeys(self._index(dataset, *place) for place in places))

    def _indexes_by_age(self, dataset: str) -> Iterator[str]:
        """The files of all indexes, the newest first, as far as is known."""
        newest = self.newest_indexes(dataset)
        yield from newest
        # They are gone, or an older version wrote them: any index will do, and of these the times
        # are likely to be right.
        others = [
            file
            for file in self.objects.files(below("indexes", dataset))
            if file.name.endswith(".parquet") and "/." not in file.name and file.name not in newest
            if PART_MARK not in file.name.rpartition("/")[2]
        ]
        others.sort(key=lambda file: (file.changed, file.name), reverse=True)
        yield from (file.name for file in others)

    @contextmanager
    def _reading_index(self, dataset: str, model_id: str, fingerprint: str) -> Iterator[Path]:
        name = self._index(dataset, model_id, fingerprint)
        try:
            with self.reading(name, f"run `visdiv score {dataset}`") as path:
                yield path
        except FileNotFoundError as error:
            raise VisdivError(
                f"the latest images of {dataset} have not been embedded with {model_id}; "
                f"run `visdiv score {dataset}`"
            ) from error

    def _index(self, dataset: str, model_id: str, fingerprint: str) -> str:
        return below("indexes", dataset, model_id, f"{fingerprint}.parquet")

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
    ) -> None:
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
        name = _moments(dataset, model_id, fingerprint)
        self.objects.write(name, lambda file: np.savez(file, **arrays))

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
        name = _slices(dataset, model_id, fingerprint)
        parts = list(slices.values())
        if not parts:
            with contextlib.suppress(FileNotFoundError):
                self.objects.delete(name)
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
            for array in heavy[0]:
                arrays[array] = (sum(of_each), [each[array] for each in heavy])
        self.objects.write(name, lambda file: write_joined(file, arrays))

    def read_slices(self, dataset: str, model_id: str, fingerprint: str) -> dict[str, Sample]:
        """The slices of a dataset by name; empty if it has none. Raises as `read_moments`."""
        file = _slices(dataset, model_id, fingerprint)
        with self._reading_moments(dataset, model_id, fingerprint) as arrays:
            expected = int(arrays["n_slices"]) if "n_slices" in arrays else None
        if expected == 0 or (expected is None and not self._is_there(file)):
            return {}
        try:
            with self._reading_arrays(file, dataset) as stored:
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
            shown = self.objects.shown(file)
            raise DamagedError(f"{shown} is missing; run `visdiv score {dataset}`") from error
        return slices

    def read_norm_error(self, dataset: str, model_id: str, fingerprint: str) -> float:
        """The largest | ‖x‖ − 1 | among a manifest's embeddings; NaN if unknown."""
        with self._reading_moments(dataset, model_id, fingerprint) as arrays:
            return float(arrays["norm_error"]) if "norm_error" in arrays else float("nan")

    def moments_digest(self, dataset: str, model_id: str, fingerprint: str) -> str | None:
        """The digest of the contents of a manifest's moments.

        None if there are none, or if they or the slices beside them are damaged.
        """
        try:
            self.read_sample(dataset, model_id, fingerprint)
            self.read_slices(dataset, model_id, fingerprint)
            with self._reading_moments(dataset, model_id, fingerprint) as arrays:
                return str(arrays["contents"]) if "contents" in arrays else ""
        except Unreachable:
            raise
        except VisdivError:
            return None

    @contextmanager
    def _reading_moments(
        self, dataset: str, model_id: str, fingerprint: str
    ) -> Iterator[Mapping[str, Any]]:
        try:
            name = _moments(dataset, model_id, fingerprint)
            with self._reading_arrays(name, dataset) as arrays:
                yield arrays
        except FileNotFoundError as error:
            raise VisdivError(
                f"the moments of {dataset} have not been computed for {model_id}; "
                f"run `visdiv score {dataset}`"
            ) from error

    @contextmanager
    def _reading_arrays(self, name: str, dataset: str) -> Iterator[Mapping[str, Any]]:
        """The arrays of an .npz file, whose checksums NumPy verifies as it reads them."""
        with (
            self.reading(name, f"run `visdiv score {dataset}`") as path,
            np.load(path, allow_pickle=False) as arrays,
        ):
            yield arrays


def below(*names: str) -> str:
    """The name of a file of a store; UnsafeNameError for parts that may lead elsewhere."""
    for name in names:
        if not SAFE_NAME.fullmatch(name) or len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise UnsafeNameError(f"the store cannot hold the name {name[:100]!r}")
    return "/".join(names)


def _moments(dataset: str, model_id: str, fingerprint: str) -> str:
    return below("moments", dataset, model_id, f"{fingerprint}.npz")


def _slices(dataset: str, model_id: str, fingerprint: str) -> str:
    return below("moments", dataset, model_id, f"{fingerprint}.slices")


def _rows_file(model_id: str, segment: str) -> str:
    return below("embeddings", model_id, f"{segment}.npy")


def _keys_beside(rows: str) -> str:
    return f"{rows.removesuffix('.npy')}.parquet"


def hidden(name: str, mark: str) -> str:
    """The name of a file under a mark that hides it."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{mark}{last}"


def _named(content: bytes | None) -> dict[str, list[str]]:
    """The indexes that `newest` names, by what they are: model id and fingerprint of each."""
    try:
        named = json.loads(content or b"{}")
        return {key: [str(model_id), str(of)] for key, (model_id, of) in named.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _as_it_is(path: Path) -> tuple[Path, int, int] | None:
    """A file, its size and time; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return path, status.st_size, status.st_mtime_ns


def _warn_of_damage(model_id: str, segment: str) -> None:
    logger.warning(
        "segment %s of %s is damaged, so its images have to be embedded again", segment, model_id
    )


def _rows_in(head: bytes, size: int) -> int:
    """The number of rows of a segment, by the head of its file.

    Raises:
        ValueError: the file is too short for them.
    """
    file = io.BytesIO(head)
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy's parser raises whatever Python's does
        raise ValueError("its head is damaged") from error
    if file.tell() + math.prod(shape) * dtype.itemsize > size:
        raise ValueError("it is cut short")
    return int(shape[0])


def _mapped(path: Path) -> NDArray[np.float16]:
    """A segment's vectors, memory-mapped."""
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.ndim != 2 or rows.dtype != np.float16:
        raise ValueError(f"not a matrix of float16: {rows.dtype} {rows.shape}")
    found: NDArray[np.float16] = rows
    return found


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
