"""What assets are given: settings, store, warehouse, all three as a project, and the embedder.

Here: turning settings into objects when an asset runs. Nothing is read or opened before that.
"""

from pathlib import Path

import dagster as dg
from pydantic import Field

from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.settings.last_good import Watched, WatchedSettings
from visdiv_assets.settings.model import Settings
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.state.database import StateFile
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.project import (
    Project,
    decoding_of,
    state_beside,
    store_of,
    warehouse_of,
)

# GPU work and DuckDB writes each happen one at a time; `dagster.yaml` sets the pools' limits.
GPU_POOL = "gpu"
DUCKDB_WRITER_POOL = "duckdb_writer"


# Of this process: a resource is made anew for each step and each tick.
_watched = WatchedSettings()


class SettingsResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """`visdiv.yaml`, read anew by each asset, so that an edit needs no reload."""

    config_path: str | None = Field(
        None,
        description="the settings file; default: $VISDIV_CONFIG, else ./visdiv.yaml",
    )

    def load(self) -> Settings:
        """The file's settings; while the file is broken or gone, the last good ones.

        Raises:
            VisdivError: there are no good ones.
        """
        return _watched.load(self._path)

    def watch(self) -> Watched:
        """The same, and what is wrong with the file: for those who tell it, or must not guess."""
        return _watched.watch(self._path)

    @property
    def _path(self) -> Path | None:
        return Path(self.config_path) if self.config_path else None


class StoreResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The store: manifests, embeddings, moments."""

    settings: dg.ResourceDependency[SettingsResource]
    root: str | None = Field(None, description="a folder; default: as in the settings")

    def open(self, patience: float | None = None) -> Store:
        """The store, which waits so many seconds for a bucket; nothing is created yet."""
        return Store(self.root) if self.root else store_of(self.settings.load(), patience)


class WarehouseResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The results in DuckDB."""

    settings: dg.ResourceDependency[SettingsResource]
    path: str | None = Field(None, description="the file; default: as in the settings")

    def open(self, patience: float | None = None) -> Warehouse:
        """The warehouse, which waits so many seconds for others; nothing is created yet."""
        return (
            Warehouse(self.path, patience)
            if self.path
            else warehouse_of(self.settings.load(), patience)
        )

    def state(self) -> StateFile:
        """What the service remembers; it is kept beside the file."""
        return state_beside(self.open())


class ProjectResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Settings, store and warehouse together: what most assets start from."""

    settings: dg.ResourceDependency[SettingsResource]
    store: dg.ResourceDependency[StoreResource]
    warehouse: dg.ResourceDependency[WarehouseResource]

    def open(self) -> Project:
        """The project; VisdivError when the settings cannot be read."""
        return Project(self.settings.load(), self.store.open(), self.warehouse.open())


class EmbedderResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """What turns images into vectors. Values left out are as in the settings."""

    settings: dg.ResourceDependency[SettingsResource]
    weights: str | None = None
    device: str | None = None
    batch_size: int | None = None
    precision: str | None = None

    def open(self, dataset: str) -> SSCDEmbedder:
        """The embedder of a dataset; weights are found now, the model is loaded at need."""
        settings = self.settings.load()
        configured = settings.embedder_of(dataset)
        return SSCDEmbedder(
            weights=self.weights or configured.weights,
            device=self.device or configured.device,
            batch_size=self.batch_size or configured.batch_size,
            precision=self.precision or configured.precision,
            decoding=decoding_of(settings, dataset),
        )
