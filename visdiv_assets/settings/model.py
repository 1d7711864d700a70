"""What can be set in `visdiv.yaml`: names, types, defaults, descriptions.

Not here: reading the file (`reading.py`) and editing it (`editing.py`); opening stores and loading
models, which the settings only name.
"""

import os
import re
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import platformdirs
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import BUCKET_SCHEMES, without_secrets

DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def _check_dataset_name(name: object) -> object:
    if not isinstance(name, str) or not DATASET_NAME.fullmatch(name):
        raise ValueError(
            "a dataset name has up to 100 letters, digits, '.', '_' and '-' and starts with a "
            "letter or digit; put it in quotes if it looks like a number"
        )
    return name


def _check_devices(device: object) -> object:
    names = device if isinstance(device, list) else [device]
    if not names or not all(isinstance(name, str) and DEVICE.fullmatch(name) for name in names):
        raise ValueError("use auto, cpu, cuda, cuda:1 or a list such as [cuda:0, cuda:1]")
    return device


def folder_path(given: object) -> object:
    """A folder on a disk, as it was given; `file://` and a path mean that path.

    Raises:
        ValueError: it is an address.
    """
    scheme = _scheme(given)
    if scheme is None or not isinstance(given, str):
        return given
    if scheme == "file" and given[7:8] == "/":
        return given[7:]
    raise ValueError(f"must be a folder on a disk, not {scheme}://")


def store_place(given: object) -> object:
    """What a store's place means: a folder as `folder_path`, or what BucketSettings take.

    Raises:
        ValueError: it is an address that is neither.
    """
    scheme = _scheme(given)
    if scheme in BUCKET_SCHEMES and isinstance(given, str):
        return {"uri": given}
    if scheme is not None and scheme != "file":
        raise ValueError(f"must be a folder, s3://, gs:// or az://, not {scheme}://")
    return folder_path(given)


def _scheme(given: object) -> str | None:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", given) if isinstance(given, str) else None
    return scheme[1].lower() if scheme else None


# A dataset's name is a folder name in the store and a partition key in Dagster.
DatasetName = Annotated[str, BeforeValidator(_check_dataset_name)]
Devices = Annotated[str | list[str], BeforeValidator(_check_devices)]
FolderPath = Annotated[Path, BeforeValidator(folder_path)]

DEFAULT_THRESHOLD = 0.30

# For SSCD embeddings of photographs, a cosine similarity of 0.75 finds copies with 90 % precision
# (Pizzi et al., CVPR 2022); screenshots that are no copies may reach it, too. FineVision uses 0.95
# to detect benchmark images.
COPY_THRESHOLD = 0.75
LEAK_THRESHOLD = 0.95

# Interval at which the nightly schedule checks the time.
TICK_MINUTES = 15

# `${NAME}` in a value is replaced by an environment variable.
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

TagName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,50}$")]
Role = Literal["training", "benchmark"]
Basis = Literal["corrected", "plain"]
SelectionMethod = Literal["k-centre", "log-det", "leverage", "facility-location"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty(cls, content: Any) -> Any:
        """A key without a value, such as one whose lines are commented out, means the default."""
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None}


class EmbedderSettings(_Strict):
    """Which model turns images into vectors, and where it runs."""

    weights: str = Field(
        "auto",
        min_length=1,
        description="auto, a path, a URL, or the name of a published checkpoint",
    )
    device: Devices = Field(
        "auto",
        description="auto, cpu, cuda, cuda:1, or a list of devices to share the work",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="images per model call; the default depends on the device",
    )
    precision: Precision = Field("auto", description="auto, fp32, bf16, fp16 or int8")
    decode: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="gpu: decode ordinary JPEGs with nvJPEG, in the run's own process, so use it "
        "only for images you trust; these embeddings are stored separately",
    )
    exif_orientation: bool = Field(
        False, description="apply EXIF orientation before embedding; FineVision does not"
    )
    alpha_background: Annotated[str, StringConstraints(pattern="^#[0-9A-Fa-f]{6}$")] | None = Field(
        None,
        description="background colour for transparent images, such as '#ffffff'; FineVision "
        "uses none",
    )


class ColumnSlices(_Strict):
    """Slices by the values of a column of the source, such as its labels."""

    column: str = Field(min_length=1, description="name of the column")


def _check_slices(slices: object) -> object:
    if isinstance(slices, ColumnSlices):
        return slices
    by_column = isinstance(slices, dict) and list(slices) == ["column"]
    column = slices["column"] if isinstance(slices, dict) and by_column else slices
    if not isinstance(column, str) or not column or (column != "folder" and not by_column):
        raise ValueError("use folder, or {column: NAME}")
    return slices


def _check_sampling_unit(unit: object) -> object:
    if isinstance(unit, ColumnSlices) or unit in ("row", "near-duplicates", "folder"):
        return unit
    if (
        not isinstance(unit, dict)
        or list(unit) != ["column"]
        or not isinstance(unit["column"], str)
    ):
        raise ValueError("use near-duplicates, row, folder, or {column: NAME}")
    return unit


Slices = Annotated[Literal["folder"] | ColumnSlices | None, BeforeValidator(_check_slices)]

SamplingUnit = Annotated[
    Literal["near-duplicates", "row", "folder"] | ColumnSlices,
    BeforeValidator(_check_sampling_unit),
]


def unit_name(unit: "SamplingUnit") -> str:
    """A sampling unit in words, as it is recorded: `near-duplicates`, `column clip`."""
    return f"column {unit.column}" if isinstance(unit, ColumnSlices) else unit


class SourceSettings(_Strict):
    """Where a dataset's images are, and how to read them there."""

    uri: str = Field(
        min_length=1,
        description="a directory, s3://bucket/prefix/, *.parquet, shards/{000..099}.tar, "
        "photos.zip, list.csv …",
    )
    include: list[str] = Field(
        default_factory=list, description="use only images whose path matches one of these globs"
    )
    exclude: list[str] = Field(
        default_factory=list, description="skip images whose path matches one of these globs"
    )
    root: str | None = Field(
        None, description="folder that the paths in a list start at; default: the list's folder"
    )
    column: str | None = Field(
        None, description="column with the images or their paths; detected if not set"
    )
    options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="for object stores: endpoint, region, skip_signature, access_key_id …",
    )


def _as_source(source: object) -> object:
    return {"uri": source} if isinstance(source, str) else source


class LimitSettings(_Strict):
    """Limits for decoding one image; an image that exceeds them counts as failed."""

    seconds: float = Field(30.0, gt=0, le=3600, description="longest time, in seconds")
    pixels: int = Field(178_956_970, ge=1, description="largest width × height")


class SampleSettings(_Strict):
    """Scoring a dataset from a random sample of its images."""

    precision: float = Field(
        gt=0, lt=0.5, description="half the width of the corrected score's 95 % interval"
    )


class NearDuplicateSettings(_Strict):
    """When images count as near-duplicates, and how many are too many."""

    threshold: float = Field(
        COPY_THRESHOLD,
        ge=0,
        le=1,
        description="images whose embeddings reach this cosine similarity are near-duplicates",
    )
    split: bool = Field(
        True,
        description="divide chains, so that every redundant image reaches the threshold with the "
        "image that is kept for it; false: keep one image of a whole chain",
    )
    warn_rate: float = Field(
        0.05, ge=0, le=1, description="warn when more than this share of the images is redundant"
    )


class LeakageSettings(_Strict):
    """When an image counts as a copy of a benchmark image."""

    threshold: float = Field(
        LEAK_THRESHOLD,
        ge=0,
        le=1,
        description="images that reach this cosine similarity to a benchmark image are leaks",
    )


class CoreSetSettings(_Strict):
    """How the asset `core_set` selects images of a dataset."""

    k: int | None = Field(
        None,
        ge=1,
        description="number of images; default: 5 % of the dataset, at least 10, at most 1,000",
    )
    method: SelectionMethod = Field(
        "k-centre", description="k-centre, log-det, leverage or facility-location"
    )
    trim: float = Field(
        0.0, ge=0, lt=1, description="share of the most isolated images to leave out as outliers"
    )


class RayEngine(_Strict):
    """Workers on Ray, on this machine or on a cluster."""

    address: str | None = Field(
        None,
        description="auto, or host:port of the head node; default: a Ray of its own on this "
        "machine, which ends with the run",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="how many; default: as many as this machine has GPUs for, or else CPUs",
    )
    cpus: float = Field(1.0, ge=1, le=1024, description="CPUs of each worker")
    gpus: float | None = Field(
        None,
        ge=0,
        le=64,
        description="GPUs of each worker; 0.5 is half of one; default: 1 if this machine has any",
    )
    unit_images: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="images in a unit of work; default: a quarter of a worker's share, at most "
        "20,000",
    )
    start_seconds: float = Field(
        600.0, gt=0, le=86_400, description="how long to wait until the first worker has started"
    )
    stall_seconds: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="a worker that makes no progress for so long is ended, and its unit tried "
        "again",
    )

    @field_validator("gpus")
    @classmethod
    def _are_whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("above 1, it must be a whole number")
        return gpus

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        if address is None or address == "auto":
            return address
        host, _, port = address.rpartition(":")
        if not host or "/" in address or not re.fullmatch("[0-9]{1,5}", port):
            raise ValueError("use auto, or host:port of the head node, such as 10.0.0.5:6379")
        return address


class EngineChoice(_Strict):
    """An engine, and how it is set up."""

    ray: RayEngine


def _check_engine(engine: object) -> object:
    if isinstance(engine, RayEngine) or engine == "local":
        return engine
    if engine == "ray":
        return {}
    if isinstance(engine, dict) and list(engine) == ["ray"]:
        set_up = engine["ray"]
        if set_up is None or isinstance(set_up, dict | RayEngine):
            return {} if set_up is None else set_up
    raise ValueError("use local, ray, or {ray: {workers: 4, cpus: 2, …}}")


def _is_ray(given: object) -> str:
    return "local" if given == "local" else "ray"


EngineSettings = Annotated[
    Annotated[Literal["local"], Tag("local")] | Annotated[RayEngine, Tag("ray")],
    Discriminator(_is_ray),
    BeforeValidator(_check_engine, json_schema_input_type=Literal["local", "ray"] | EngineChoice),
]


class DatasetSettings(_Strict):
    """One dataset: a named set of images with a source."""

    source: Annotated[
        SourceSettings, BeforeValidator(_as_source, json_schema_input_type=str | SourceSettings)
    ] = Field(
        description="where the images are: a URI, or a mapping of uri, include, exclude, root, "
        "column, options",
    )
    threshold: float = Field(
        DEFAULT_THRESHOLD, ge=0, le=1, description="send an alert when the score falls below this"
    )
    basis: Basis = Field(
        "corrected",
        description="score that the threshold applies to: corrected (for dataset size) or plain",
    )
    sampling_unit: SamplingUnit = Field(
        "near-duplicates",
        description="what the corrected score takes for one piece of evidence: near-duplicates, "
        "row (each image), folder, or {column: NAME}, such as clip or album",
    )
    sample: SampleSettings | None = Field(
        None, description="embed only a random sample, as large as this precision requires"
    )
    watch: bool = Field(True, description="evaluate the dataset again when its source changes")
    schedule: bool = Field(True, description="evaluate the dataset every night")
    tags: dict[TagName, str] = Field(
        default_factory=dict,
        description="your own keys and values, such as team or purpose; added to Dagster runs",
    )
    slices: Slices = Field(
        None, description="what divides the dataset into slices: folder, or {column: NAME}"
    )
    role: Role = Field(
        "training",
        description="benchmark: held-out images, which must not appear in other datasets",
    )
    near_duplicates: NearDuplicateSettings = Field(
        default_factory=NearDuplicateSettings, description="what counts as a near-duplicate"
    )
    leakage: LeakageSettings = Field(
        default_factory=LeakageSettings, description="what counts as a copy of a benchmark image"
    )
    core_set: CoreSetSettings = Field(
        default_factory=CoreSetSettings, description="how a core-set is chosen"
    )
    embedder: EmbedderSettings | None = Field(
        None, description="a different model for this dataset only"
    )
    engine: EngineSettings | None = Field(
        None, description="a different engine for this dataset only"
    )


class AlertSettings(_Strict):
    """Where alerts go."""

    urls: list[str] = Field(
        default_factory=list,
        description="Apprise URLs: slack://…, mailto://…, json://host/path; ${NAME} is replaced "
        "by an environment variable",
    )
    dagster_url: str = Field(
        "http://localhost:3000", description="address of Dagster's UI, for links to runs"
    )
    recovery_days: float = Field(
        14.0,
        ge=0,
        le=365,
        description="days that a score must stay above its threshold to count as recovered, if "
        "its 95 % interval does not lie above it",
    )

    def resolved(self, url: str) -> str:
        """One URL, with environment variables filled in; the others need not have theirs.

        Raises:
            VisdivError: a variable is not set.
        """
        return fill_in(url, "alerts.urls")


class NightlySettings(_Strict):
    """When the nightly re-evaluation starts."""

    time: str = Field("02:00", description="start time, HH:MM on a 24-hour clock")
    timezone: str = Field("UTC", description="IANA time zone, such as Europe/Berlin")

    @field_validator("time")
    @classmethod
    def _check_time(cls, time: str) -> str:
        if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", time):
            raise ValueError('write the time as HH:MM in quotes, such as "02:00"')
        return time

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("use an IANA time zone, such as Europe/Berlin or UTC") from None
        return timezone

    def begins(self, day: date) -> datetime:
        """When the night of a local date begins, in UTC.

        A time that is skipped when clocks go forward counts as the moment when it would have been.
        """
        hour, minute = map(int, self.time.split(":"))
        return datetime.combine(day, time(hour, minute), ZoneInfo(self.timezone)).astimezone(UTC)

    def night_at(self, moment: datetime) -> date:
        """The local date of the night that began last.

        Args:
            moment: aware datetime.

        Example:
            >>> nightly = NightlySettings(time="02:00")
            >>> nightly.night_at(datetime(2026, 3, 10, 1, 59, tzinfo=UTC)).isoformat()
            '2026-03-09'
        """
        day = moment.astimezone(ZoneInfo(self.timezone)).date()
        return day if self.begins(day) <= moment else day - timedelta(days=1)

    def __str__(self) -> str:
        return f"{self.time} {self.timezone}"


class BucketSettings(_Strict):
    """A store in a bucket."""

    uri: str = Field(repr=False, description="s3://bucket/prefix, gs:// or az://")
    options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="as those of sources: endpoint, region, access_key_id …",
    )

    @field_validator("uri")
    @classmethod
    def _names_a_bucket(cls, uri: str) -> str:
        if _scheme(uri) not in BUCKET_SCHEMES or not uri.partition("://")[2].strip("/"):
            raise ValueError("must name a bucket: s3://bucket/prefix, gs://… or az://…")
        return uri

    def __str__(self) -> str:
        return without_secrets(self.uri)


class CacheSettings(_Strict):
    """Copies on this machine of what was read from a store in a bucket."""

    folder: FolderPath = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("visdiv")) / "store",
        description="where they are; nothing else should be in it",
    )
    max_bytes: int = Field(
        20_000_000_000, ge=1, description="how much they may take; the least recently used go first"
    )


class KeepSettings(_Strict):
    """Which evaluations keep their lists of images, indexes and moments. All keep their scores."""

    evaluations: int = Field(30, ge=1, description="so many of the newest of each dataset")
    days: int = Field(90, ge=0, description="and all that are not older than this")


def _is_bucket(given: object) -> str:
    return "bucket" if isinstance(given, dict | BucketSettings) else "folder"


StorePlace = Annotated[
    Annotated[Path, Tag("folder")] | Annotated[BucketSettings, Tag("bucket")],
    Discriminator(_is_bucket),
    BeforeValidator(store_place),
]


class Settings(_Strict):
    """All settings of `visdiv.yaml`. Relative paths start at the file's folder."""

    store: StorePlace = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("visdiv")),
        description="where embeddings are kept: a folder, or a bucket such as s3://bucket/prefix",
    )
    results: FolderPath | None = Field(
        None,
        description="folder for scores, history and alerts; default: the store, if that is a "
        "folder",
    )
    cache: CacheSettings = Field(
        default_factory=CacheSettings, description="of a store in a bucket, on this machine"
    )
    keep: KeepSettings = Field(
        default_factory=KeepSettings,
        description="of what `visdiv store gc` and the asset store_maintenance leave in the store",
    )
    embedder: EmbedderSettings = Field(
        default_factory=EmbedderSettings,
        description="the model, where it runs, and how images are decoded",
    )
    engine: EngineSettings = Field(
        "local",
        description="who embeds: local (one process), ray, or {ray: {workers: 4, cpus: 2, …}}",
    )
    datasets: dict[DatasetName, DatasetSettings] = Field({}, description="datasets by name")
    alerts: AlertSettings = Field(
        default_factory=AlertSettings, description="where alerts are sent"
    )
    nightly: NightlySettings = Field(
        default_factory=NightlySettings, description="when datasets are evaluated every night"
    )
    limits: LimitSettings = Field(
        default_factory=LimitSettings, description="what decoding one image may cost"
    )
    settle_seconds: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that a changed source must stay unchanged before it is evaluated",
    )

    _faults: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _may_be_benchmarks: frozenset[str] = PrivateAttr(default_factory=frozenset)

    @property
    def results_folder(self) -> Path:
        """Where scores, history and alerts are kept.

        Raises:
            VisdivError: the store is in a bucket, and no folder is set.
        """
        if self.results is not None:
            return self.results
        if isinstance(self.store, BucketSettings):
            raise VisdivError(
                f"the store is in a bucket ({self.store}), and a database cannot be: set 'results' "
                "in visdiv.yaml, or $VISDIV_RESULTS, to a folder on a disk for visdiv.duckdb"
            )
        return self.store

    @property
    def faults(self) -> Mapping[str, str]:
        """What is wrong with the datasets that are registered and cannot be used, by name.

        They are not in `datasets`, and are not gone either.
        """
        return self._faults

    @property
    def may_be_benchmarks(self) -> frozenset[str]:
        """Those of `faults` that are benchmarks, as far as can be told."""
        return self._may_be_benchmarks

    def note_faults(self, faults: Mapping[str, str], may_be_benchmarks: Collection[str]) -> None:
        """Keep what was found wrong with single datasets; called once, by whoever reads a file."""
        self._faults = faults
        self._may_be_benchmarks = frozenset(may_be_benchmarks)

    def dataset(self, name: str) -> DatasetSettings:
        """The settings of one dataset.

        Raises:
            VisdivError: no dataset has that name, or what is written about it is wrong.
        """
        if name in self.datasets:
            return self.datasets[name]
        if name in self.faults:
            raise VisdivError(self.faults[name])
        known = ", ".join(sorted([*self.datasets, *self.faults])) or "none"
        raise VisdivError(f"there is no dataset {name!r} in the settings; known datasets: {known}")

    def embedder_of(self, name: str) -> EmbedderSettings:
        """The model of one dataset: its own if it has one, else the common one."""
        dataset = self.datasets.get(name)
        return dataset.embedder if dataset and dataset.embedder else self.embedder

    def engine_of(self, name: str) -> Literal["local"] | RayEngine:
        """Who embeds one dataset: its own engine if it has one, else the common one."""
        dataset = self.datasets.get(name)
        return dataset.engine if dataset and dataset.engine else self.engine


def fill_in(value: str, where: str) -> str:
    """A value with its `${NAME}`s replaced; VisdivError, naming `where`, if one is not set."""

    def lookup(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise VisdivError(f"the environment variable {name}, used by '{where}', is not set")
        return os.environ[name]

    return VARIABLE.sub(lookup, value)
