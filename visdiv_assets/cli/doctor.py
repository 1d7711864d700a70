"""What `visdiv doctor` finds out.

Here: looking at the installation, the devices, the codecs, the settings, the model, the store and
Dagster's settings. Not here: printing.
"""

import os
import platform
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal

from visdiv_assets import __version__
from visdiv_assets.cli.dagster_settings import advice, settings_file
from visdiv_assets.embedding.codecs import examine_codecs
from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.embedding.weights import find_weights
from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.quality.verdicts import CLOCK_TOLERANCE
from visdiv_assets.settings.model import Settings
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.project import store_of, warehouse_of

PACKAGES = ("dagster", "dagster-webserver", "torch", "torchvision", "onnxruntime", "duckdb", "ray")
OPTIONAL = ("onnxruntime", "ray")
LITTLE_DISK = 2 * 1024**3
NOT_CREATED = "not created yet"
PROBE = "visdiv-doctor"  # an object that is written and deleted


class Finding(NamedTuple):
    """One thing looked at: whether it is as it should be, and what was seen.

    Attributes:
        ok: whether everything works as it is.
        subject: what was looked at.
        detail: what was seen.
        warning: whether it works, but had better be changed.
    """

    ok: bool
    subject: str
    detail: str
    warning: bool = False


def examine(settings: Settings) -> list[Finding]:
    """Everything that a person would be asked when something does not work."""
    findings = [
        Finding(True, "visdiv", f"{__version__}, Python {platform.python_version()}"),
        *_packages(),
        *_devices(),
        *_codecs(),
        *(Finding(False, "settings", fault) for fault in settings.faults.values()),
        *_model(settings),
        *_store(settings),
        *_dagster(),
    ]
    return [finding._replace(detail=redacted(finding.detail)) for finding in findings]


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(True, name, version(name))
        except PackageNotFoundError:
            yield Finding(name in OPTIONAL, name, "not installed")


def _devices() -> Iterator[Finding]:
    yield Finding(True, "CPU", f"{usable_cpus()} usable")
    try:
        import torch
    except ImportError as error:
        yield Finding(False, "GPU", f"torch cannot be imported: {error}")
        return
    if not torch.cuda.is_available():
        yield Finding(True, "GPU", "none that PyTorch can use")
        return
    for number in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(number).total_memory / 1024**3
        name = torch.cuda.get_device_name(number)
        yield Finding(True, f"GPU cuda:{number}", f"{name}, {memory:.0f} GiB")


def _codecs() -> Iterator[Finding]:
    try:
        with Decoders(Decoding(), 1) as decoders:
            for codec in examine_codecs(decoders):
                detail = f"{codec.state}: {codec.reason}" if codec.reason else codec.state
                yield Finding(codec.is_fine, codec.name, detail)
    except VisdivError as error:
        yield Finding(False, "decoder", str(error))


def _model(settings: Settings) -> Iterator[Finding]:
    configured = settings.embedder
    try:
        weights = find_weights(configured.weights, allow_download=False)
    except VisdivError as error:
        yield Finding(False, "weights", f"{configured.weights}: {error}")
        return
    name = f"{weights.checkpoint} ({weights.format}, SHA-256 {weights.sha256[:12]}…)"
    yield Finding(True, "weights", f"{configured.weights}: {name} in {weights.path}")
    try:
        runtime = SSCDEmbedder(
            configured.weights, configured.device, configured.batch_size, configured.precision
        ).runtime
    except VisdivError as error:
        yield Finding(False, "model", str(error))
        return
    yield Finding(True, "model", f"{runtime.description}, {runtime.dimension} dimensions")


def _dagster() -> Iterator[Finding]:
    path = settings_file()
    if path is None:
        return
    told = advice(path)
    for sentence in told:
        yield Finding(True, "Dagster", f"{path}: {sentence}", warning=True)
    if not told:
        yield Finding(True, "Dagster", f"{path}, as it should be")


def _store(settings: Settings) -> Iterator[Finding]:
    if isinstance(settings.store, Path):
        found = _folder("store", settings.store)
    else:
        found = _bucket(settings)
    yield found
    if found.ok and not found.detail.endswith(NOT_CREATED):
        try:
            yield from _embeddings(store_of(settings))
        except VisdivError as error:
            yield Finding(False, "embeddings", str(error))
    if settings.results_folder != settings.store:
        found = _folder("results", settings.results_folder)
        yield found
    if found.ok and not found.detail.endswith(NOT_CREATED):
        yield from _results(warehouse_of(settings))


def _folder(what: str, path: Path) -> Finding:
    if not path.exists():
        return Finding(True, what, f"{path}, {NOT_CREATED}")
    if not path.is_dir() or not os.access(path, os.W_OK):
        return Finding(False, what, f"{path} is not a folder that can be written to")
    free = shutil.disk_usage(path).free
    return Finding(free > LITTLE_DISK, what, f"{path}, {free / 1024**3:.0f} GiB free")


def _bucket(settings: Settings) -> Finding:
    try:
        objects = store_of(settings).objects
        objects.write(PROBE, lambda file: file.write(b"visdiv doctor was here"))
        objects.delete(PROBE)
    except VisdivError as error:
        return Finding(False, "store", str(error))
    cache = settings.cache
    return Finding(
        True,
        "store",
        f"{objects.uri}, can be written to; copies of up to {decimal(cache.max_bytes)} are kept "
        f"in {cache.folder}",
    )


def _embeddings(store: Store) -> Iterator[Finding]:
    for model_id in store.model_ids():
        names = store.segment_names(model_id)
        found = (store.segment_keys(model_id, name) for name in names)
        sizes = [len(each[0]) for each in found if each is not None]
        damaged = len(names) - len(sizes)
        detail = f"{model_id}: {counted(sum(sizes), 'image')} in {counted(len(names), 'segment')}"
        if damaged:
            detail += f", {damaged:,} of them damaged; their images will be embedded again"
        yield Finding(not damaged, "embeddings", detail)


def _results(warehouse: Warehouse) -> Iterator[Finding]:
    try:
        latest = warehouse.latest_evaluations()
        detail = f"{counted(len(latest), 'dataset')} scored, schema {warehouse.schema_version()}"
        yield Finding(True, "results", detail)
    except VisdivError as error:
        yield Finding(False, "results", str(error))
        return
    now = datetime.now(UTC)
    if early := [each.dataset for each in latest if each.evaluated_at - now > CLOCK_TOLERANCE]:
        shown = ", ".join(early[:3]) + (" …" if len(early) > 3 else "")
        wrong = "was evaluated at a time that is still to come; a clock was wrong then, or is now"
        yield Finding(False, "clock", f"{shown} {wrong}")
