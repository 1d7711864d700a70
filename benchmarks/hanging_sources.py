"""How long a dataset waits for its look while the sources of others hang.

    .venv/bin/python -m benchmarks.hanging_sources
    .venv/bin/python -m benchmarks.hanging_sources --minutes 10 --hanging 100

1,000 datasets, 50 of them on a web server that accepts connections and never answers. Their names
come first, which is the worst order. The other 950 are local folders of five images that were
scored as they are. `dataset_change_sensor` ticks every 15 seconds, as the daemon lets it.
"""

import argparse
import os
import socket
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import dagster as dg

from visdiv_assets.defs import sensors
from visdiv_assets.defs.resources import SettingsResource, StoreResource
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.settings.reading import load_settings
from visdiv_assets.sources.looking import look_at
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store

IMAGES = 5
TICK_SECONDS = 15.0


def silent_server() -> str:
    """Host and port of a server that accepts connections and never answers."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    accepted = []

    def accept() -> None:
        while True:
            accepted.append(listening.accept())

    threading.Thread(target=accept, daemon=True).start()
    return f"127.0.0.1:{listening.getsockname()[1]}"


def prepare(root: Path, datasets: int, hanging: int, instance: dg.DagsterInstance) -> None:
    """A settings file with those that hang first, and a store that has scored all others."""
    server = silent_server()
    lines = [
        f"  a{number:04}: {{source: 'http://{server}/{number}.tar'}}" for number in range(hanging)
    ]
    store = Store(root / "store")
    for number in range(datasets - hanging):
        folder = root / f"{number:04}"
        folder.mkdir()
        for image in range(IMAGES):
            (folder / f"{image}.jpg").write_bytes(b"an image")
        manifest = list_images(open_source(str(folder)))
        store.write_manifest(f"b{number:04}", manifest)
        store.name_latest(f"b{number:04}", manifest.fingerprint)
        lines.append(f"  b{number:04}: {{source: '{number:04}'}}")
    (root / "visdiv.yaml").write_text("\n".join(["store: store", "datasets:", *lines, ""]))
    names = list(load_settings(root / "visdiv.yaml").datasets)
    instance.add_dynamic_partitions("datasets", names)


def resident_megabytes() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Record:
    """When each dataset was looked at, and what was wrong."""

    def __init__(self) -> None:
        self.ended: dict[str, list[float]] = defaultdict(list)
        self.errors: dict[str, int] = defaultdict(int)

    def look_at(self, dataset: str, source: SourceSettings) -> str:
        """Look, and note when that was over."""
        try:
            return look_at(dataset, source)
        except Exception as error:
            self.errors[str(error).partition(": ")[2]] += 1
            raise
        finally:
            self.ended[dataset].append(time.time())


def main() -> None:
    """Prepare, tick, and print."""
    arguments = argparse.ArgumentParser(description="Looks while sources hang.")
    arguments.add_argument("--minutes", type=float, default=4.0)
    arguments.add_argument("--datasets", type=int, default=1000)
    arguments.add_argument("--hanging", type=int, default=50)
    chosen = arguments.parse_args()
    record = Record()
    sensors.look_at = record.look_at  # type: ignore[assignment]
    quiet = {"telemetry": {"enabled": False}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["VISDIV_STATE_DIR"] = str(root / "state")
        (root / "dagster").mkdir()
        with dg.DagsterInstance.local_temp(str(root / "dagster"), overrides=quiet) as instance:
            prepare(root, chosen.datasets, chosen.hanging, instance)
            watch(root, instance, record, 60 * chosen.minutes)


def watch(root: Path, instance: dg.DagsterInstance, record: Record, seconds: float) -> None:
    """Tick for a while, and print how that went."""
    settings = SettingsResource(config_path=str(root / "visdiv.yaml"))
    resources = {"settings": settings, "store": StoreResource(settings=settings)}
    names = list(settings.load().datasets)
    healthy = [name for name in names if name.startswith("b")]
    memory, threads = resident_megabytes(), threading.active_count()
    began, cpu = time.time(), time.process_time()
    longest_tick, most_threads, most_memory = 0.0, 0, memory
    cursor: str | None = None
    while time.time() < began + seconds:
        tick, looks = time.time(), sum(map(len, record.ended.values()))
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, resources=resources
        ) as context:
            asked = len(sensors.dataset_change_sensor(context).run_requests or [])
        took = time.time() - tick
        longest_tick = max(longest_tick, took)
        most_threads = max(most_threads, threading.active_count())
        most_memory = max(most_memory, resident_megabytes())
        looks = sum(map(len, record.ended.values())) - looks
        print(
            f"{tick - began:4.0f} s  {looks:4} looks in {took:5.2f} s, {asked} runs asked for",
            flush=True,
        )
        time.sleep(max(0.0, TICK_SECONDS - took))
    ended, cpu = time.time(), time.process_time() - cpu
    # The time until the first look counts, and so does the time since the last one.
    gaps = [
        max(after - before for before, after in zip(moments, [*moments[1:], ended], strict=True))
        for moments in ([began, *record.ended[name]] for name in healthy)
    ]
    looks = sum(len(record.ended[name]) for name in healthy)
    print(f"{len(healthy)} healthy datasets, {len(names) - len(healthy)} that hang")
    print(f"longest time between two looks at a healthy dataset: {max(gaps):.1f} s")
    print(f"its mean over the healthy datasets: {sum(gaps) / len(gaps):.1f} s; {looks} looks")
    print(f"longest tick: {longest_tick:.1f} s; CPU {cpu / (ended - began):.0%} of one core")
    print(f"threads: {threads} before, at most {most_threads}")
    print(f"memory: {memory:.0f} MB before, at most {most_memory:.0f} MB")
    for error, count in sorted(record.errors.items()):
        print(f"{count:4} looks failed: {error}")


if __name__ == "__main__":
    main()
