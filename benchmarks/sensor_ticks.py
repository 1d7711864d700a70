"""How long a tick of each sensor takes with 1,000 registered datasets, none of them changed.

    .venv/bin/python -m benchmarks.sensor_ticks

Every dataset has five images and one evaluation. Nothing may be asked for, and nothing embedded.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np

from visdiv_assets.defs.resources import SettingsResource, StoreResource, WarehouseResource
from visdiv_assets.defs.sensors import (
    alert_sensor,
    dataset_change_sensor,
    dataset_registry_sensor,
)
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store.store import Store

DATASETS, IMAGES, TICKS = 1000, 5, 3


def prepare(root: Path, instance: dg.DagsterInstance) -> None:
    """A settings file, and a store that has listed every dataset as it is."""
    names = [f"dataset{number:04}" for number in range(DATASETS)]
    lines = [f"  {name}: {{source: images/{name}}}" for name in names]
    (root / "visdiv.yaml").write_text("\n".join(["store: store", "datasets:", *lines, ""]))
    store = Store(root / "store")
    for name in names:
        folder = root / "images" / name
        folder.mkdir(parents=True)
        for number in range(IMAGES):
            (folder / f"{number}.jpg").write_bytes(b"an image")
        manifest = list_images(open_source(str(folder)))
        store.write_manifest(name, manifest)
        store.name_latest(name, manifest.fingerprint)
    instance.add_dynamic_partitions("datasets", names)


def measure(name: str, tick: Callable[[], str]) -> None:
    """Time some ticks and print them, with what the last one said."""
    seconds = []
    for _ in range(TICKS):
        started = time.perf_counter()
        said = tick()
        seconds.append(time.perf_counter() - started)
    print(f"{name:<26} {min(seconds):6.2f} to {max(seconds):.2f} s a tick   {said}")


def main() -> None:
    """Prepare, then tick."""
    rows = np.eye(4)
    assert diversity(Moments.of(rows)).n == 4  # loads the libraries that a code server has loaded
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["VISDIV_STATE_DIR"] = str(root / "state")
        (root / "dagster").mkdir()
        quiet = {"telemetry": {"enabled": False}}
        with dg.DagsterInstance.local_temp(str(root / "dagster"), overrides=quiet) as instance:
            prepare(root, instance)
            settings = SettingsResource(config_path=str(root / "visdiv.yaml"))
            resources = {
                "settings": settings,
                "store": StoreResource(settings=settings),
                "warehouse": WarehouseResource(settings=settings),
            }

            def registry() -> str:
                given = {"settings": settings}
                with dg.build_sensor_context(instance=instance, resources=given) as context:
                    return str(dataset_registry_sensor(context).skip_message)

            cursor: str | None = None

            def change() -> str:
                nonlocal cursor
                given = {name: resources[name] for name in ("settings", "store")}
                with dg.build_sensor_context(
                    instance=instance, cursor=cursor, resources=given
                ) as context:
                    result = dataset_change_sensor(context)
                cursor = result.cursor
                asked = len(result.run_requests or [])
                return f"{asked} runs asked for; {result.skip_reason.skip_message}"

            def alert() -> str:
                given = {name: resources[name] for name in ("settings", "warehouse")}
                with dg.build_sensor_context(instance=instance, resources=given) as context:
                    return str(alert_sensor(context).skip_message)

            print(f"{DATASETS:,} datasets of {IMAGES} images, none changed; {TICKS} ticks each")
            measure("dataset_registry_sensor", registry)
            measure("dataset_change_sensor", change)
            measure("alert_sensor", alert)
            print(f"embeddings in the store: {len(Store(root / 'store').model_ids())}")


if __name__ == "__main__":
    main()
