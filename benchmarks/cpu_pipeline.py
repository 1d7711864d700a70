"""Images per second from files to committed embeddings on a CPU, and what bounds each stage.

    .venv/bin/python -m benchmarks.cpu_pipeline --published ../visual-diversity-evaluation

The demo photographs are repeated to 1,000, each copy with a few bytes of its own after the JPEG's
end, since content is embedded once. Every measurement has a process to itself, which loads its
model before the clock starts; they take turns, and the median of the rounds counts. Beside the
images per second stands the CPU time an image takes, which hardly depends on what else the machine
is doing. The peer is `neverabandon80/visual-diversity-evaluation`, from a checkout (`--published`):
its `extract_batch`, with a seeded random ResNet-50 as TorchScript, float32. Without a checkout its
line is left out.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import onnxruntime

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.embedding.preprocess import Decoding, Pixels, decode_image
from visdiv_assets.embedding.weights import installed_onnx_model
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.store.store import Store

T = TypeVar("T")

PHOTOS = Path(__file__).parents[1] / "examples" / "demo" / "photos"
BATCH = 8


class Spent(NamedTuple):
    """Seconds by the clock and seconds of CPU time."""

    wall: float
    cpu: float


@contextlib.contextmanager
def stopwatch() -> Iterator[list[Spent]]:
    """Measure a block, with the processes that it starts and ends."""
    spent: list[Spent] = []
    started, cpu = time.perf_counter(), _cpu_seconds()
    yield spent
    spent.append(Spent(time.perf_counter() - started, _cpu_seconds() - cpu))


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_photos(folder: Path, count: int) -> None:
    """The demo photographs again and again, no two files with the same bytes."""
    folder.mkdir()
    photos = sorted(PHOTOS.glob("*.jpg"))
    for number, photo in zip(range(count), itertools.cycle(photos)):
        (folder / f"{number:06}.jpg").write_bytes(photo.read_bytes() + number.to_bytes(4))


def decoded(folder: Path) -> list[Pixels]:
    """The pixels of all photographs; each is decoded once, copies share its memory."""
    paths = sorted(folder.glob("*.jpg"))
    different = min(len(paths), len(list(PHOTOS.glob("*.jpg"))))
    pixels = [decode_image(path.read_bytes()) for path in paths[:different]]
    return [pixels[number % different] for number in range(len(paths))]


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Batches of `size`, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def published(folder: Path, scratch: Path, checkout: Path) -> Spent:
    """`extract_batch` of the published implementation, as its settings for a CPU call it."""
    import torch

    from visdiv_assets.embedding.model import SSCD

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; theirs is no other way
        torch.jit.script(SSCD().eval()).save(str(scratch / "model.pt"))
    sys.path.insert(0, str(checkout))
    from embedders.sscd_embedding import SSCDImageEmbedder  # type: ignore[import-not-found]

    paths = [str(path) for path in sorted(folder.glob("*.jpg"))]
    with contextlib.redirect_stdout(sys.stderr):
        embedder = SSCDImageEmbedder(str(scratch / "model.pt"), device="cpu")
        with stopwatch() as spent:
            vectors, _ = embedder.extract_batch(paths, batch_size=32)
    assert vectors.shape == (len(paths), 512)
    return spent[0]


def plain_loop(folder: Path, scratch: Path) -> Spent:
    """What anyone would write first: read, decode, run, a batch at a time."""
    session = onnxruntime.InferenceSession(installed_onnx_model())
    name = session.get_inputs()[0].name
    with stopwatch() as spent:
        for paths in batched(sorted(folder.glob("*.jpg")), BATCH):
            pixels = [decode_image(path.read_bytes()) for path in paths]
            session.run(None, {name: np.stack(pixels)})
    return spent[0]


def plain_model(folder: Path, scratch: Path) -> Spent:
    """ONNX Runtime as it comes: one session whose threads share each layer; images decoded."""
    session = onnxruntime.InferenceSession(installed_onnx_model())
    name = session.get_inputs()[0].name
    pixels = decoded(folder)
    with stopwatch() as spent:
        for batch in batched(pixels, BATCH):
            session.run(None, {name: np.stack(batch)})
    return spent[0]


def model_only(folder: Path, scratch: Path) -> Spent:
    """Our runtime, kept as busy as the pipeline keeps it; images decoded."""
    runtime = SSCDEmbedder().runtime
    pixels = decoded(folder)
    with stopwatch() as spent, ThreadPoolExecutor(runtime.calls_at_once) as threads:
        batches = batched(pixels, runtime.batch_size)
        list(threads.map(lambda batch: runtime.embed(np.stack(batch)), batches))
    return spent[0]


def decode_only(folder: Path, scratch: Path) -> Spent:
    """Reading, and decoding in as many processes as there are CPUs."""
    paths = sorted(folder.glob("*.jpg"))
    cpus = usable_cpus()
    with (
        stopwatch() as spent,
        Decoders(Decoding(), cpus) as decoders,
        ThreadPoolExecutor(cpus) as threads,
    ):
        list(threads.map(lambda path: decoders.decode(path.read_bytes()).shape, paths))
    return spent[0]


def end_to_end(folder: Path, scratch: Path) -> Spent:
    """From files to an index of committed embeddings, listing included."""
    embedder = SSCDEmbedder()
    embedder.runtime  # noqa: B018
    list_images(DirectorySource(PHOTOS))  # loads libraries, as all others have theirs loaded
    store = Store(scratch / "store")
    with stopwatch() as spent:
        source = DirectorySource(folder)
        manifest = list_images(source)
        _, embedded = embed_manifest("photos", manifest, source, embedder, store)
    assert embedded == len(manifest)
    assert len(store.key_index(embedder.model_id)) == embedded
    return spent[0]


STAGES: dict[str, Callable[[Path, Path], Spent]] = {
    "plain ONNX Runtime loop": plain_loop,
    "model only, ONNX Runtime as it comes": plain_model,
    "model only, as the pipeline runs it": model_only,
    "decoding only": decode_only,
    "pipeline, files to store": end_to_end,
}
PUBLISHED = "published implementation"


def measure(folder: Path, stage: str, checkout: Path | None) -> Spent:
    """One measurement; runs in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        if checkout is not None:
            return published(folder, Path(scratch), checkout)
        return STAGES[stage](folder, Path(scratch))


def machine() -> str:
    """Processor and number of usable CPUs."""
    name = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split("\t", 1) for line in lines if "\t" in line)
        name = " ".join(fields.get(key, "").strip("\t: ") for key in ("model name", "flags"))
        vnni = "with VNNI" if "avx512_vnni" in name or "avx_vnni" in name else "without VNNI"
        name = f"{fields['model name'].strip(': ')} {vnni}"
    return f"{name}, {usable_cpus()} CPUs usable, ONNX Runtime {onnxruntime.__version__}"


def main() -> None:
    """Measure all stages in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--published", type=Path, default=os.environ.get("VISDIV_PUBLISHED"))
    parser.add_argument("--published-rounds", type=int, default=1, help="it takes minutes")
    options = parser.parse_args()

    print(machine())
    context = multiprocessing.get_context("spawn")
    results: dict[str, list[Spent]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photos"
        write_photos(folder, options.images)

        def take(stage: str, checkout: Path | None = None) -> None:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                spent = pool.submit(measure, folder, stage, checkout).result()
            results.setdefault(stage, []).append(spent)

        for number in range(options.rounds):
            if options.published and number < options.published_rounds:
                take(PUBLISHED, Path(options.published))
            for stage in STAGES:
                take(stage)

    n = options.images
    print(f"\n{n:,} photographs, {options.rounds} rounds      images/s (median)   CPU ms an image")
    rate, cpu = {}, {}
    for stage, spent in results.items():
        rate[stage] = n / statistics.median(each.wall for each in spent)
        cpu[stage] = statistics.median(each.cpu for each in spent) / n
        spread = " ".join(f"{n / each.wall:.1f}" for each in spent)
        print(f"{stage:38} {rate[stage]:10.1f}  ({spread})  {1e3 * cpu[stage]:8.1f}")
    ours, model = "pipeline, files to store", "model only, as the pipeline runs it"
    print()
    if PUBLISHED in rate:
        print(f"pipeline / published implementation: {rate[ours] / rate[PUBLISHED]:.2f}")
    else:
        print("published implementation: no checkout given (--published), so not measured")
    for stage in list(STAGES)[:3]:
        print(f"pipeline / {stage}: {rate[ours] / rate[stage]:.3f}")
    print(f"CPU time of the model / CPU time of the pipeline: {cpu[model] / cpu[ours]:.3f}")


if __name__ == "__main__":
    main()
