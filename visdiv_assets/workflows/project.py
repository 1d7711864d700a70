"""What every workflow starts from: a project's datasets with their sources, models and results.

Here: settings turned into objects, datasets found by name or by place, recording of findings.
Not here: what is done with them.
"""

import hashlib
import logging
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.embedding.runtimes import check_gpus
from visdiv_assets.errors import VisdivError, never_evaluated
from visdiv_assets.settings.model import DatasetSettings, EmbedderSettings, Settings, SourceSettings
from visdiv_assets.settings.reading import absolute_path
from visdiv_assets.settings.secrets import redacted, remember, secrets_in, without_secrets
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.source import Source
from visdiv_assets.sources.uris import scheme_of
from visdiv_assets.store.bucket import Bucket
from visdiv_assets.store.cache import Cache
from visdiv_assets.store.objects import Folder
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.state.database import STATE_FILE, StateFile
from visdiv_assets.warehouse.warehouse import Warehouse

logger = logging.getLogger(__name__)

RESULTS_FILE = "visdiv.duckdb"

# With fewer rows, importing torch takes longer than comparing them on the CPU.
WORTH_A_GPU = 20_000


@dataclass(frozen=True)
class Project:
    """What one settings file describes, and where its results are kept."""

    settings: Settings
    store: Store
    warehouse: Warehouse

    @property
    def state(self) -> StateFile:
        """What the service remembers."""
        return state_beside(self.warehouse)

    @property
    def recovery(self) -> timedelta:
        """How long a score must stay above its threshold to count as recovered."""
        return timedelta(days=self.settings.alerts.recovery_days)

    def dataset(self, name: str) -> "EvaluatedDataset":
        """A registered dataset and its newest evaluation.

        Raises:
            VisdivError: it is not registered, or was never evaluated.
        """
        configured = self.settings.dataset(name)
        [evaluation] = self.warehouse.newest_evaluations([name])
        return EvaluatedDataset(self, configured, evaluation)

    def dataset_at(self, called: str) -> "EvaluatedDataset":
        """A dataset by its name or by where it is, and its newest evaluation.

        A registered name comes first, then a place, then the name of results whose dataset is not
        registered: it was removed, or the name was made from its place.

        Raises:
            VisdivError: there is no such dataset, or it was never evaluated.
        """
        latest = {each.dataset: each for each in self.warehouse.latest_evaluations()}
        name, source = dataset_at(called, self.settings)
        if name not in latest and called in latest:
            name, source = called, SourceSettings.model_construct(uri="")  # nobody knows
        if name not in latest:
            if not scheme_of(called) and not absolute_path(called).exists():
                try:
                    self.settings.dataset(called)
                except VisdivError as unknown:  # it says which there are
                    raise VisdivError(f"{called} has never been evaluated, and {unknown}") from None
            raise never_evaluated(called)
        configured = self.settings.datasets.get(name)
        if configured is None:
            configured = DatasetSettings.model_construct(source=source)
        return EvaluatedDataset(self, configured, latest[name])

    def evaluated(self) -> list[Evaluation]:
        """The newest evaluation of each registered dataset that has one."""
        latest = {each.dataset: each for each in self.warehouse.latest_evaluations()}
        return [latest[name] for name in self.settings.datasets if name in latest]


@dataclass(frozen=True)
class EvaluatedDataset:
    """A dataset, how it is set up, and its newest evaluation."""

    project: Project
    settings: DatasetSettings
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """Its name, registered or made from its place."""
        return self.evaluation.dataset

    @cached_property
    def source(self) -> Source:
        """Where its images are.

        Raises:
            VisdivError: it is not registered, and only its results are known.
        """
        if not self.settings.source.uri:
            raise VisdivError(f"{self.name} is not registered, so its images cannot be found")
        return open_source(self.settings.source)

    @cached_property
    def decoding(self) -> Decoding:
        """How its images are decoded."""
        return decoding_of(self.project.settings, self.name)

    def embedder(self) -> SSCDEmbedder:
        """Its model; loaded when first used."""
        return embedder_of(self.project.settings, self.name)

    @property
    def device(self) -> str:
        """Where its rows are compared.

        Raises:
            VisdivError: the settings name a GPU that does not exist.
        """
        embedder = self.project.settings.embedder_of(self.name)
        device = device_for(embedder, self.evaluation.n_images)
        check_gpus([device])
        return device


def store_of(settings: Settings, patience: float | None = None) -> Store:
    """The store that the settings name; nothing is read from it yet.

    Args:
        settings: where it is.
        patience: seconds for a request to a bucket; None is for work that may wait.

    Raises:
        VisdivError: its address or options are not valid.
    """
    place = settings.store
    if isinstance(place, Path):
        return Store(place)
    remember(secrets_in(place.uri, place.options))
    cache = Cache(settings.cache.folder, settings.cache.max_bytes)
    return Store(Bucket(place.uri, place.options, cache, patience))


def note_results(store: Store, warehouse: Warehouse) -> None:
    """Note in a store that these results refer to it, unless they are in it.

    Whoever cleans up a store has to know what all of them need.
    """
    if not _is_in(warehouse, store):
        where = f"{socket.gethostname()}:{warehouse.path.parent}"
        store.note_results(results_id(warehouse), where)


def results_id(warehouse: Warehouse) -> str:
    """The id of some results, which stays the same if their folder is moved."""
    path = warehouse.path.with_name("results-id")
    try:
        with path.open("x") as file:
            file.write(uuid.uuid4().hex)
    except FileExistsError:
        pass
    found = path.read_text().strip()
    if not re.fullmatch("[0-9a-f]{32}", found):
        raise VisdivError(f"{path} is damaged; delete it")
    return found


def other_results(store: Store, warehouse: Warehouse) -> list[str]:
    """Where other results are that refer to this store."""
    inside = _is_in(warehouse, store)
    noted = store.noted_results()
    if not inside:
        noted.pop(results_id(warehouse), None)
    others = sorted(redacted(where) for where in noted.values())
    if not inside and isinstance(store.objects, Folder) and (store.root / RESULTS_FILE).exists():
        others.append(str(store.root))
    return others


def _is_in(warehouse: Warehouse, store: Store) -> bool:
    return isinstance(store.objects, Folder) and os.path.realpath(
        warehouse.path.parent
    ) == os.path.realpath(store.root)


def warehouse_of(settings: Settings, patience: float | None = None) -> Warehouse:
    """The results that the settings name; nothing is opened yet.

    Args:
        settings: where the file is.
        patience: seconds to wait for others; None is the default.
    """
    return Warehouse(settings.results_folder / RESULTS_FILE, patience)


def state_of(settings: Settings) -> StateFile:
    """What the service remembers; it is kept beside the results."""
    return StateFile(settings.results_folder / STATE_FILE)


def state_beside(warehouse: Warehouse) -> StateFile:
    """The same, beside these results."""
    return StateFile(warehouse.path.parent / STATE_FILE)


def decoding_of(settings: Settings, dataset: str) -> Decoding:
    """How the images of a dataset are decoded, as the settings say."""
    embedder = settings.embedder_of(dataset)
    return Decoding(
        exif_orientation=embedder.exif_orientation,
        alpha_background=embedder.alpha_background,
        jpeg_on_gpu=embedder.decode == "gpu",
        max_pixels=settings.limits.pixels,
        max_seconds=settings.limits.seconds,
    )


def embedder_of(settings: Settings, dataset: str) -> SSCDEmbedder:
    """The model of a dataset, as the settings say; loaded when first used."""
    configured = settings.embedder_of(dataset)
    return SSCDEmbedder(
        weights=configured.weights,
        device=configured.device,
        batch_size=configured.batch_size,
        precision=configured.precision,
        decoding=decoding_of(settings, dataset),
    )


def device_for(embedder: EmbedderSettings, n_rows: int) -> str:
    """Where to compare so many rows: as set; for `auto`, on a GPU if there are enough rows."""
    devices = [embedder.device] if isinstance(embedder.device, str) else embedder.device
    if devices != ["auto"]:
        return devices[0]
    if n_rows < WORTH_A_GPU:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dataset_at(path: str, settings: Settings) -> tuple[str, SourceSettings]:
    """Name and source of what a user calls a dataset: a registered name, a path or a URI.

    A registered name comes first: `birds` is the dataset, `./birds` the folder.

    Raises:
        VisdivError: what the settings say of that dataset is wrong.
    """
    path = path.removeprefix("file://")
    if scheme_of(path):
        return dataset_name_for(path), SourceSettings.model_construct(uri=path)
    if path in settings.datasets or path in settings.faults:
        return path, settings.dataset(path).source
    folder = absolute_path(path)
    for name, dataset in settings.datasets.items():
        if os.path.realpath(dataset.source.uri) == os.path.realpath(folder):
            return name, dataset.source
    # Not validated, since the path may hold bytes that are not Unicode.
    return dataset_name_for(folder), SourceSettings.model_construct(uri=str(folder))


def which_was_taken(called: str, settings: Settings) -> str | None:
    """A sentence about what a dataset's name could have meant as well; None if nothing."""
    dataset, place = settings.datasets.get(called), absolute_path(called)
    if dataset is None or not os.path.lexists(place):
        return None
    if os.path.realpath(dataset.source.uri) == os.path.realpath(place):
        return None
    return f"{called} is taken as the dataset of that name; ./{called} names the file or folder"


def dataset_name_for(place: str | Path) -> str:
    """The name under which results of an unregistered source are kept.

    The folder's own name, and a hash of where it is, so that two folders `images` stay apart.

    Args:
        place: a path, or a URI, whose secrets leave no trace in the name.

    Example:
        >>> dataset_name_for(Path("/data/voc/JPEGImages"))
        'JPEGImages-ef4afe3b'
    """
    whole = str(place)
    # A path may hold an address that lacks a slash.
    whole = without_secrets(whole) if scheme_of(whole) else redacted(str(Path(place).absolute()))
    digest = hashlib.blake2b(whole.encode("utf-8", "surrogateescape"), digest_size=4)
    last = whole.rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "images"
    return f"{name[:80]}-{digest.hexdigest()}"


def record(dataset: str, findings: Mapping[str, pa.Table], warehouse: Warehouse) -> None:
    """Replace what the tables of the warehouse say of a dataset, and export them if possible.

    Args:
        dataset: whose findings they are.
        findings: rows by name of their table; no rows where nothing was found.
        warehouse: gets the rows.
    """
    for table, rows in findings.items():
        warehouse.replace_rows(table, dataset, rows)
    export(warehouse)


def export(warehouse: Warehouse) -> None:
    """Replace the exports of what was recorded, beside the warehouse.

    It stays recorded where that fails, and everything is exported each time: so a failure is only
    told, and the next success makes up for it.
    """
    folder = warehouse.path.parent / "exports"
    try:
        warehouse.export(folder)
    except (VisdivError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        logger.warning(
            "the results are recorded, but cannot be exported to %s (%s); the next command that "
            "records results exports these, too",
            folder,
            reason,
        )
