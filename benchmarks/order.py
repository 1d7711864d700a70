"""Which lists count as ordered, and how long it takes to see.

    .venv/bin/python -m benchmarks.order lists               # half a minute
    .venv/bin/python -m benchmarks.order cost                # 1,000,000 rows, 1 GB on disk

`lists` measures real embeddings in several orders: the icons of the tests, the demo's photographs
(embedded with the int8 model), and made-up clips. *excess* is how far neighbours are on the way
from as alike as others (0) to identical (1). `cost` measures one order of a made-up dataset, in a
store that has not verified its segments yet, and again in one that has.
"""

import argparse
import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.made_up import (
    MODEL,
    index_of,
    machine,
    manifest_of,
    random_keys,
    seconds,
    write_segments,
)
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.spectral.order import adjacent, measure_order
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.workflows.order import order_of

ROOT = Path(__file__).parents[1]
ICONS = ROOT / "visdiv_assets_tests/data/embeddings_icons.npy"
PHOTOS = ROOT / "examples/demo/photos"

Rows = NDArray[np.float64]


def shuffled(rows: Rows) -> Rows:
    """The same rows in random order."""
    return np.asarray(rows[np.random.default_rng(0).permutation(len(rows))])


def by_class(rows: Rows, count: int) -> Rows:
    """In random order, then sorted by which of some rows each is most like."""
    rows = shuffled(rows)
    order = np.argsort(np.argmax(rows @ rows[:count].T, axis=1), kind="stable")
    return np.asarray(rows[order])


def clips(frames: int, cosine: float) -> Rows:
    """3,000 frames of clips, one after the other; the similarity of any two of a clip is given."""
    rng = np.random.default_rng(0)
    first = np.repeat(rng.standard_normal((3000 // frames, 512)), frames, axis=0)
    noise = rng.standard_normal(first.shape)
    return np.asarray(cosine**0.5 * first + (1 - cosine) ** 0.5 * noise)


def lists() -> None:
    """Measure and print."""
    icons = np.load(ICONS).astype(np.float64)
    photos = SSCDEmbedder(ONNX_CHECKPOINT).extract(PHOTOS).astype(np.float64)
    kinds = {
        "icons, by name": icons,
        "icons, the first 100 by name": icons[:100],
        "icons, shuffled": shuffled(icons),
        "icons, by 30 classes": by_class(icons, 30),
        "icons, by 10 classes": by_class(icons, 10),
        "demo photographs, by name": photos,
        "demo photographs, shuffled": shuffled(photos),
        "clips of 20 frames, 0.9 alike": clips(20, 0.9),
        "clips of 2 frames, 0.9 alike": clips(2, 0.9),
        "the latter, shuffled": shuffled(clips(2, 0.9)),
    }
    print(f"{'':<30} {'rows':>6} {'neighbours':>11} {'others':>7} {'excess':>7} {'p':>7} ordered")
    for name, rows in kinds.items():
        firsts = adjacent(len(rows))
        found = measure_order(rows[firsts], rows[firsts + 1])
        assert found is not None
        excess = (found.neighbours - found.by_chance) / (1 - found.by_chance)
        print(
            f"{name:<30} {len(rows):>6,} {found.neighbours:>11.3f} {found.by_chance:>7.3f} "
            f"{excess:>7.3f} {found.p_value:>7.4f} {'yes' if found.ordered else 'no'}"
        )


def cost(count: int) -> None:
    """Measure and print."""
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        manifest, keys = manifest_of(count), random_keys(count)
        store = Store(root)
        write_segments(store, keys)
        store.write_index("dataset", MODEL, manifest.fingerprint, index_of(manifest, keys))
        where = ("dataset", MODEL, manifest.fingerprint)
        scored = SimpleNamespace(is_sample=False, where=where, model_id=MODEL)
        for _ in range(3):
            look = functools.partial(order_of, cast(Evaluation, scored), Store(root))
            first, again = seconds(look), seconds(look)
            print(f"{count:,} rows: {first:.2f} s, {again:.2f} s where they are verified")


def main() -> None:
    """Lists or cost, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["lists", "cost"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.part == "lists":
        lists()
    else:
        cost(arguments.rows)


if __name__ == "__main__":
    main()
