"""What a GPU does: its accuracy, the ceiling of each stage, and the whole, against the targets.

    .venv/bin/python -m benchmarks.gpu [--device cuda:0] [--images 20000] [--folder FOLDER]
    .venv/bin/python -m benchmarks.gpu --workers 1 2 4 [--images 60000] [--folder FOLDER]

Files are made from the demo photographs, 448 pixels square, each with a content of its own, in a
temporary folder (about 2 GB for 20,000; FOLDER says where). The weights are the official ones where
they are cached, else random, in Meta's format. Half precision is checked on all demo photographs
against float32 on the same device. Without a GPU it says so, and checks half precision on the CPU,
on some of the photographs, in two minutes. Exit code 1: something is not as accurate as it must be.
"""

import argparse
import contextlib
import io
import platform
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.gpu_decode import GpuDecoder
from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.embedding.preprocess import Decoding, Pixels, decode_image
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.embedding.runtime_torch import TorchRuntime
from visdiv_assets.embedding.runtimes import resolve_precision
from visdiv_assets.embedding.weights import DEFAULT_CHECKPOINT, Weights, find_weights
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import RayEngine
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.engine import Job
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.ray_engine import Ray
from visdiv_assets_tests.embedding.reference import preprocess, random_reference

PHOTOS = Path(__file__).parents[1] / "examples" / "demo" / "photos"

# Of one H100, in images/s; and what half precision may cost.
MODEL_TARGET, WHOLE_TARGET = 15_000, 8_000
LEAST_COSINE, LARGEST_SHIFT = 0.999, 0.001

SECONDS = 2.0  # how long each figure is measured, at least, three times over
FILE_SIDE = 448
UNIT_IMAGES = 5000  # of workers


def photographs(count: int | None = None) -> Pixels:
    """The demo photographs as the model sees them, or so many spread over all of them."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    step = len(paths) // count if count else 1
    return np.stack([decode_image(path.read_bytes()) for path in paths[::step][:count]])


def weights_at_hand(folder: Path) -> Weights:
    """The official weights where they are cached, else random ones in Meta's format."""
    try:
        return find_weights(DEFAULT_CHECKPOINT, allow_download=False)
    except VisdivError:
        path = folder / "sscd_random.torchvision.pt"
        examples = preprocess(sorted(PHOTOS.glob("*.jpg"))[::27], side=160)
        torch.save(random_reference(examples).state_dict(), path)
        return find_weights(str(path))


def runtime_of(weights: Weights, device: str, precision: str, **options: bool) -> TorchRuntime:
    """The model, as it is used."""
    return TorchRuntime(weights, devices=[device], precision=precision, **options)


def embed_many(runtime: TorchRuntime, batches: Iterable[Pixels | Tensor]) -> Iterator[Vectors]:
    """`embed` of each batch, in order, from as many threads as keep the runtime busy."""
    ahead: deque[Future[Vectors]] = deque()
    with ThreadPoolExecutor(runtime.calls_at_once) as threads:
        for batch in batches:
            ahead.append(threads.submit(runtime.embed, batch))
            if len(ahead) >= 2 * runtime.calls_at_once:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def embed_all(runtime: TorchRuntime, pixels: Pixels) -> Vectors:
    """Vectors of any number of images."""
    size = runtime.batch_size
    batches = (pixels[at : at + size] for at in range(0, len(pixels), size))
    return np.concatenate([*embed_many(runtime, batches)])


def accuracy(weights: Weights, device: str, pixels: Pixels) -> bool:
    """Print what half precision costs; whether what `auto` chooses on a GPU costs little enough."""
    exact = embed_all(runtime_of(weights, device, "fp32"), pixels)
    score = diversity(Moments.of(exact)).score
    auto = resolve_precision(weights, "auto", ["cuda"])
    good: dict[str, bool] = {"fp32": True}
    print(f"\nagainst fp32 on {device}, {len(pixels)} photographs, plain score {score:.6f}")
    print("precision   cosine: least    median   score shift")
    for precision in ("fp16", "bf16"):
        vectors = embed_all(runtime_of(weights, device, precision), pixels)
        cosines = np.sum(vectors.astype(np.float64) * exact, axis=1)
        shift = diversity(Moments.of(vectors)).score - score
        good[precision] = bool(cosines.min() >= LEAST_COSINE) and abs(shift) <= LARGEST_SHIFT
        verdict = "within" if good[precision] else "OUTSIDE"
        mark = " (auto)" if precision == auto else ""
        print(
            f"{precision:9}   {cosines.min():13.6f}  {np.median(cosines):8.6f}  {shift:+12.6f}   "
            f"{verdict} {LEAST_COSINE} and {LARGEST_SHIFT}{mark}"
        )
    return good[auto]


def consistency(weights: Weights, device: str, pixels: Pixels) -> bool:
    """Print and tell whether a GPU gives what the CPU gives, and always the same."""
    few = pixels[::14]
    exact = embed_all(runtime_of(weights, "cpu", "fp32"), few)
    cosines = np.sum(exact * embed_all(runtime_of(weights, device, "fp32"), few), axis=1)
    first, second = (runtime_of(weights, device, "fp16") for _ in range(2))
    eager = runtime_of(weights, device, "fp16", cuda_graphs=False)
    size = min(first.batch_size, len(pixels))
    vectors = first.embed(pixels[:size])
    again = [*embed_many(first, [pixels[:size]] * 20), second.embed(pixels[:size])]
    alone = [*map(first.embed, pixels[:8, None])]
    found = {
        "the least cosine of fp32 on the GPU to fp32 on the CPU is above 0.99999": (
            cosines.min() > 0.99999
        ),
        "both workers, and a model loaded anew, give the same bits": all(
            np.array_equal(vectors, other) for other in again
        ),
        "images left over give the same bits": np.array_equal(vectors[:8], np.concatenate(alone)),
        "the CUDA graph gives the bits that the model gives without": np.array_equal(
            vectors, eager.embed(pixels[:size])
        ),
    }
    print()
    for what, holds in found.items():
        print(f"{'yes' if holds else 'NO ':3}  {what}")
    return all(found.values())


def rate(run: Callable[[], int]) -> float:
    """Images/s: the median of three measurements, after one that does not count."""
    run()
    found = []
    for _ in range(3):
        images, begin = 0, time.perf_counter()
        while (seconds := time.perf_counter() - begin) < SECONDS:
            images += run()
        found.append(images / seconds)
    return statistics.median(found)


def told(name: str, found: float, target: float | None = None) -> float:
    """Print a figure, beside its target if it has one."""
    verdict = ""
    if target:
        verdict = f"   target {target:,}: {'met' if found >= target else 'MISSED'}"
    print(f"{name:52}  {found:10,.0f}{verdict}")
    return found


def model_alone(weights: Weights, device: str, pixels: Pixels) -> None:
    """The model's ceiling for each precision, eagerly and as a CUDA graph; then transfers."""
    print(f"\n{'model alone, 320 × 320, pixels on the GPU':52}  {'images/s':>10}")
    for precision in ("fp32", "bf16", "fp16"):
        for graphs in (False, True):
            runtime = runtime_of(weights, device, precision, cuda_graphs=graphs)
            batch = torch.from_numpy(pixels[: runtime.batch_size]).to(device)
            name = f"{precision}, {'CUDA graph' if graphs else 'eager'}"
            best = precision == "fp16" and graphs
            told(name, many(runtime, batch), MODEL_TARGET if best else None)
    torch.backends.cudnn.benchmark = True
    runtime = runtime_of(weights, device, "fp16")
    told("fp16, CUDA graph, convolutions chosen by trying", many(runtime, batch))
    torch.backends.cudnn.benchmark = False

    print(f"\n{'fp16, CUDA graph, pixels in pageable memory':52}  {'images/s':>10}")
    runtime = runtime_of(weights, device, "fp16")
    there = np.ascontiguousarray(pixels[: runtime.batch_size])
    told("one batch after the other", rate(lambda: len(runtime.embed(there))))
    told("copied while others are computed", many(runtime, there))


def many(runtime: TorchRuntime, batch: Pixels | Tensor, times: int = 50) -> float:
    """Images/s of `embed_many`."""
    return rate(lambda: sum(len(vectors) for vectors in embed_many(runtime, [batch] * times)))


def make_files(folder: Path, count: int, side: int | None) -> list[Path]:
    """Photographs, each with a number in a comment, so that no two are one content.

    Args:
        folder: where they are written.
        count: how many.
        side: their width and height in pixels; None: each of the 213 has a size of its own.
    """
    originals = []
    for at, path in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        file = io.BytesIO()
        size = (side, side) if side else (FILE_SIDE - 100 + at, FILE_SIDE + 100 - at)
        Image.open(path).resize(size).save(file, "JPEG", quality=90)
        originals.append(file.getvalue())
    paths = []
    for number in range(count):
        original = originals[number % len(originals)]
        place = folder / f"{number // 1000:03}"
        place.mkdir(exist_ok=True)
        paths.append(place / f"{number:06}.jpg")
        comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8)
        paths[-1].write_bytes(original[:2] + comment + original[2:])
    return paths


def decoding_alone(device: str, folder: Path) -> None:
    """The ceilings of nvJPEG and of the decoder processes, and how far their pixels are apart."""
    print(
        f"\n{f'decoding alone, JPEGs of {FILE_SIDE} × {FILE_SIDE} in memory':52}  {'images/s':>10}"
    )
    decoder = GpuDecoder(torch.device(device), Decoding())
    encoded: list[bytes] = []

    def on_gpu() -> int:
        for at in range(0, len(encoded), 128):
            _, left = decoder.decode(encoded[at : at + 128])
            if left:
                raise SystemExit(f"nvJPEG left {len(left)} of 128 images to others")
        torch.cuda.synchronize(device)
        return len(encoded)

    for name, side in (("of 213 sizes, ", None), ("", FILE_SIDE)):
        place = folder / f"few_{side}"
        place.mkdir()
        encoded[:] = [path.read_bytes() for path in make_files(place, 1024, side)]
        told(f"nvJPEG, {name}decoded and resized on the GPU", rate(on_gpu))
    cpus = usable_cpus()
    with Decoders(Decoding(), cpus) as decoders, ThreadPoolExecutor(cpus) as threads:
        told(
            f"decoder processes, {cpus} CPUs",
            rate(lambda: len([*threads.map(decoders.decode, encoded)])),
        )
    squares, _ = decoder.decode(encoded[:64])
    exact = np.stack([decode_image(data) for data in encoded[:64]]).astype(int)
    difference = np.abs(squares.cpu().numpy() - exact)
    print(
        f"pixels differ by {difference.mean():.2f} on average, {difference.max()} at most, of 255"
    )


def whole(weights: Weights, device: str, count: int, folder: Path) -> None:
    """From files to committed embeddings, as an evaluation makes them, by both ways of decoding."""
    print(f"\n{f'the pipeline, {count:,} files to committed embeddings':52}  {'images/s':>10}")
    for name, jpeg_on_gpu, side, target in (
        ("JPEG on the GPU", True, FILE_SIDE, WHOLE_TARGET),
        ("JPEG on the GPU, of 213 sizes", True, None, None),
        (f"decoding on {usable_cpus()} CPUs", False, FILE_SIDE, None),
    ):
        place = folder / f"files_{side}"
        if not place.exists():
            place.mkdir()
            make_files(place, count, side)
        decoding = Decoding(jpeg_on_gpu=jpeg_on_gpu)
        embedder = SSCDEmbedder(str(weights.path), device, precision="fp16", decoding=decoding)
        _ = embedder.runtime, embedder.gpu_decoder
        source = DirectorySource(place)
        manifest = list_images(source)
        begin = time.perf_counter()
        cpu = time.process_time()
        _, done = embed_manifest("files", manifest, source, embedder, Store(folder / name))
        told(name, done / (time.perf_counter() - begin), target)
        print(
            f"   of the process: {(time.process_time() - cpu) / done * 1e6:.0f} µs of CPU an image"
        )


def shared(weights: Weights, workers: int, count: int, folder: Path) -> tuple[float, float]:
    """Print images/s of workers on Ray that share a GPU; returns the scores that come of it.

    The steady rate leaves out the first and the last quarter: workers take seconds to start, and do
    not end at the same time.
    """
    place, results = folder / "files", folder / f"workers_{workers}"
    if not place.exists():
        place.mkdir()
        make_files(place, count, FILE_SIDE)
    decoding = Decoding(jpeg_on_gpu=True)
    embedder = partial(SSCDEmbedder, str(weights.path), "cuda", precision="fp16", decoding=decoding)
    source, store = partial(DirectorySource, place), partial(Store, results)
    each = RayEngine(
        workers=workers, gpus=1 / workers, cpus=usable_cpus() // workers, unit_images=UNIT_IMAGES
    )
    seen: list[tuple[float, int]] = []
    begin = time.perf_counter()
    evaluation, _ = evaluate(
        "files",
        source(),
        embedder(),
        store(),
        Warehouse(results / "visdiv.duckdb"),
        engine=Ray(each, Job(embedder, source, store)),
        on_progress=lambda done, *_: seen.append((time.perf_counter(), done)),
    )
    told(f"{workers} workers, from start to end", count / (time.perf_counter() - begin))
    first, last = (next(at for at in seen if at[1] >= share * count) for share in (0.25, 0.75))
    told("   when all of them are at work", (last[1] - first[1]) / (last[0] - first[0]))
    return evaluation.diversity_score, evaluation.corrected_low or 0.0


def machine(device: str) -> str:
    """What was measured on."""
    cpu = f"{usable_cpus()} CPUs, {_cpu_name()}; PyTorch {torch.__version__}"
    if device == "cpu":
        return cpu
    wanted = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    properties = torch.cuda.get_device_properties(device)
    command = ["nvidia-smi", f"--id=GPU-{properties.uuid}", f"--query-gpu={wanted}", "--format=csv"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        said = f"{properties.name}, clocks unknown"
    return f"{cpu}, CUDA {torch.version.cuda}\n{said}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def main() -> int:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", default="cuda:0")
    arguments.add_argument("--images", type=int, default=20_000)
    arguments.add_argument("--workers", type=int, nargs="+", help="on Ray, sharing one GPU")
    arguments.add_argument("--folder", type=Path, help="for temporary files")
    chosen = arguments.parse_args()
    with TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        weights = weights_at_hand(folder)
        if not torch.cuda.is_available():
            print(
                "no GPU that PyTorch can use: nothing is measured, accuracy is checked on the CPU"
            )
            print(f"{weights.checkpoint}; {machine('cpu')}")
            return 0 if accuracy(weights, "cpu", photographs(count=64)) else 1
        print(f"{weights.checkpoint}; {machine(chosen.device)}")
        if chosen.workers:
            scores = {shared(weights, each, chosen.images, folder) for each in chosen.workers}
            print(f"all have the same scores: {'yes' if len(scores) == 1 else 'NO'}")
            return 0 if len(scores) == 1 else 1
        pixels = photographs()
        good = accuracy(weights, chosen.device, pixels)
        good &= consistency(weights, chosen.device, pixels)
        model_alone(weights, chosen.device, pixels)
        decoding_alone(chosen.device, folder)
        whole(weights, chosen.device, chosen.images, folder)
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
