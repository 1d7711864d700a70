"""Evaluating a dataset again: 200,000 files unchanged, and with one per cent new.

    .venv/bin/python -m benchmarks.reevaluation [--images 200000]

The files that are known hold text, not images, and their embeddings are made up: whatever opened
one would find another content than the index says. Every file that Python opens below the folder
is counted. New are photographs of the demo, each with a few bytes more, so that none is like
another; the real int8 model embeds them. What embedding everything would cost follows from the
same photographs, embedded in a store of their own, times a hundred.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.made_up import index_of, machine, random_keys, seconds, write_segments
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate, list_dataset

PHOTOS = sorted((Path(__file__).parents[1] / "examples/demo/photos").glob("*.jpg"))
FOLDERS = 20


def write_texts(folder: Path, n: int) -> None:
    """So many files that are no images, in a few folders."""
    for number in range(n):
        place = folder / f"{number % FOLDERS:02}"
        if number < FOLDERS:
            place.mkdir(parents=True)
        (place / f"{number:07}.jpg").write_text("no image")


def write_photographs(folder: Path, n: int) -> None:
    """So many photographs, each of another content."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        data = PHOTOS[number % len(PHOTOS)].read_bytes()
        (folder / f"new{number:06}.jpg").write_bytes(data + f"{number}".encode())


def main() -> None:
    """Prepare, then evaluate: the new ones alone, the old ones again, and both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    images = parser.parse_args().images
    new = images // 100
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        opened: list[str] = []
        watched = str(root / "images")

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event == "open" and str(arguments[0]).startswith(watched):
                opened.append(str(arguments[0]))

        def evaluation(folder: Path, store: Store) -> None:
            embedder = SSCDEmbedder(ONNX_CHECKPOINT)
            warehouse = Warehouse(store.root / "visdiv.duckdb")
            evaluate("dataset", DirectorySource(folder), embedder, store, warehouse)

        write_texts(root / "images", images)
        write_photographs(root / "new", new)
        store, model_id = Store(root / "store"), SSCDEmbedder(ONNX_CHECKPOINT).model_id
        manifest = list_dataset("dataset", DirectorySource(root / "images"), store)
        keys = random_keys(images)
        write_segments(store, keys, model_id)
        store.write_index("dataset", model_id, manifest.fingerprint, index_of(manifest, keys))
        first = seconds(lambda: evaluation(root / "images", store))  # sums up the moments
        sys.addaudithook(watch)
        unchanged = seconds(lambda: evaluation(root / "images", store))
        print(f"{images:,} files, moments not yet summed   {first:8.1f} s")
        print(f"{images:,} files, unchanged   {unchanged:8.1f} s   files opened: {len(opened)}")
        alone = seconds(lambda: evaluation(root / "new", Store(root / "alone")))
        print(f"{new:,} photographs alone, from nothing   {alone:8.1f} s")
        write_photographs(root / "images/00", new)
        opened.clear()
        changed = seconds(lambda: evaluation(root / "images", store))
        print(f"{images:,} files and {new:,} new   {changed:8.1f} s   files opened: {len(opened)}")
        full = alone * images / new
        print(
            f"embedding everything: {alone:.1f} s × {images // new} = {full:.0f} s; one per cent "
            f"new costs {(changed - unchanged) / full:.2%} of that and the {unchanged:.1f} s of "
            f"an unchanged dataset (allowed: 1.5 %, {0.015 * full + unchanged:.0f} s in all)"
        )


if __name__ == "__main__":
    main()
