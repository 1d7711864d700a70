"""Time and memory of manifest, moments and metrics for 10⁴, 10⁵ and 10⁶ images.

    .venv/bin/python -m benchmarks.growth [--sizes 10000 100000 1000000] [--chart FILE]

The images are empty files in folders of 1,000, which nobody opens; their embeddings are made up
and stand in a store. Each step runs in a process of its own, whose peak memory is its own; that of
the moments has loaded PyTorch before, as one that embedded images has. The chart goes to
docs/images/growth.png; the last lines extrapolate to FineVision's 17.3 million images, from the
slope between the two largest sizes.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.made_up import (
    MODEL,
    index_of,
    machine,
    peak_megabytes,
    random_keys,
    seconds,
    write_segments,
)
from visdiv_assets.settings.model import ColumnSlices
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import list_dataset, score_dataset
from visdiv_assets.workflows.moments import accumulate_moments

STEPS = ("manifest", "moments", "metrics")
LARGE = 17_300_000
CHART = Path(__file__).parents[1] / "docs" / "images" / "growth.png"


def make_files(root: Path, n: int) -> None:
    """A tree of folders of 1,000 empty files each."""
    for number in range(0, n, 1000):
        folder = root / f"{number // 100_000:03}" / f"{number // 1000:06}"
        folder.mkdir(parents=True)
        for file in range(number, min(number + 1000, n)):
            (folder / f"{file:09}.jpg").touch()


def embed(store: Store) -> None:
    """An embedding for each image of the manifest, without any image or model."""
    manifest = store.latest_manifest("dataset")
    keys = random_keys(len(manifest))
    write_segments(store, keys)
    store.write_index("dataset", MODEL, manifest.fingerprint, index_of(manifest, keys))


def do(step: str, root: Path) -> None:
    """One step, measured; prints its seconds, peak memory, and memory before it began."""
    store = Store(root / "store")

    def list_images() -> None:
        manifest = list_dataset("dataset", DirectorySource(root / "images"), store)
        store.name_latest("dataset", manifest.fingerprint)

    def listed() -> str:
        return store.latest_manifest("dataset").fingerprint

    works = {
        "manifest": list_images,
        # No folder as a slice: 40 parts of a thousand are another question than how it grows.
        "moments": lambda: accumulate_moments(
            "dataset", MODEL, listed(), store, slices=ColumnSlices(column="label")
        ),
        "metrics": lambda: score_dataset(
            "dataset",
            MODEL,
            listed(),
            store,
            Warehouse(root / "store/visdiv.duckdb"),
            listed=listed(),
            started=time.time(),
            threshold=0.3,
        ),
    }
    before = peak_megabytes()
    print(seconds(works[step]), peak_megabytes(), before)


def draw(sizes: list[int], found: dict[str, np.ndarray], chart: Path) -> None:
    """Seconds and memory against the number of images, with a line of slope 1 to compare with."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for at, (ax, title) in enumerate(zip(axes, ("seconds", "peak memory, MB"), strict=True)):
        for step in STEPS:
            ax.loglog(sizes, found[step][:, at], "o-", label=step)
        top = max(found[step][-1, at] for step in STEPS)
        linear = [2 * top * size / sizes[-1] for size in sizes]
        ax.loglog(sizes, linear, ":", color="grey", label="linear")
        ax.set(xlabel="images", title=title)
        ax.grid(visible=True, which="major", alpha=0.3)
    axes[0].legend()
    chart.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(chart, dpi=110)


def main() -> None:
    """Measure each size, draw, extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--chart", type=Path, default=CHART)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        do(arguments.step[0], Path(arguments.step[1]))
        return
    print(machine())
    sizes = arguments.sizes
    found: dict[str, list[list[float]]] = {step: [] for step in STEPS}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_files(Path(folder) / "images", size)
            for step in STEPS:
                if step == "moments":
                    embed(Store(Path(folder) / "store"))
                command = [sys.executable, "-m", "benchmarks.growth", "--step", step, folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                took, peak, before = map(float, done.stdout.split())
                found[step].append([took, peak])
                print(
                    f"{size:>10,} images   {step:<9}{took:8.2f} s   {peak:6.0f} MB at most, "
                    f"{before:.0f} MB before it began",
                    flush=True,
                )
    if len(sizes) < 2:
        return
    measured = {step: np.array(rows) for step, rows in found.items()}
    draw(sizes, measured, arguments.chart)
    for step, rows in measured.items():
        (t0, m0), (t1, m1) = rows[-2:]
        step_size, more = sizes[-1] - sizes[-2], LARGE - sizes[-1]
        power = np.log(t1 / t0) / np.log(sizes[-1] / sizes[-2])
        print(
            f"{step}: grows as N^{power:.2f}; at {LARGE:,}: "
            f"{t1:.2f} s + {more:,} × {(t1 - t0) / step_size * 1e6:.2f} µs = "
            f"{t1 + more * (t1 - t0) / step_size:.0f} s, "
            f"{m1:.0f} MB + {more:,} × {max(m1 - m0, 0) / step_size * 1e6:.0f} B = "
            f"{m1 + more * max(m1 - m0, 0) / step_size:.0f} MB"
        )


if __name__ == "__main__":
    main()
