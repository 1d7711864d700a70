"""SSCD through PyTorch, on the CPU or on GPUs.

Here: devices, precision, normalisation, batches, and keeping GPUs busy without pauses.
Not here: the architecture (`model.py`); JPEG on the GPU (`gpu_decode.py`).
"""

import contextlib
import functools
import itertools
import logging
import threading
from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor, nn

from visdiv_assets.embedding.model import FusedSSCD, fold_batch_norms, load_sscd, load_torchscript
from visdiv_assets.embedding.preprocess import IMAGE_SIDE, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.embedding.weights import Weights
from visdiv_assets.errors import VisdivError
from visdiv_assets.similarity.exact_torch import exact_torch

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CPU_BATCH = 8
GPU_BATCH = 128

# One worker copies to the GPU while the other computes.
WORKERS_PER_GPU = 2

# Initial work of cuDNN and the allocator must not be part of a CUDA graph.
WARM_UP = 3

# Of vectors by a GPU and by the CPU, for any precision; bfloat16 reaches 0.998.
LEAST_COSINE = 0.99


class TorchRuntime:
    """The model on each device; whole batches go to whichever device is free.

    Every call runs the full batch size, padded with black images, so that a vector does not
    depend on how many images are left for the last batch. cuDNN's benchmark mode is off: the
    convolutions that it picks differ between processes and GPUs, and so would the last bits. Such
    settings of the whole process hold only while a batch is computed.

    A device that does not start, that fails, or whose vectors are not those of the CPU is left out,
    with a warning, as long as another remains.

    Args:
        weights: the weights to load.
        devices: `auto`, or names of devices.
        precision: `fp32`, `bf16` or `fp16`; GeM and L2 norm always use float32.
        batch_size: images per call; None means 8 on a CPU and 128 on GPUs. It is halved until it
            fits into the GPU's memory.
        cuda_graphs: record the work for a batch as a CUDA graph once, and replay it.

    Raises:
        VisdivError: the file is not a model, or a device does not exist, or none can run it.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        devices: Sequence[str] = ("auto",),
        precision: str = "fp32",
        batch_size: int | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        places = resolve_devices(devices)
        self.description = f"PyTorch {torch.__version__}, {precision} on " + ", ".join(
            map(str, places)
        )
        self._weights = weights
        self._lock = threading.Lock()
        self._last_failure = ""
        # The model of each device that works; its workers share it.
        self._models = [_load(weights, DTYPES[precision], place) for place in places]
        graphs = (
            cuda_graphs and weights.format != "torchscript"
        )  # its executor does not support graphs
        gpu = places[0].type == "cuda"
        self.batch_size, workers = self._start(
            batch_size or (GPU_BATCH if gpu else CPU_BATCH), graphs
        )
        self.dimension = self._try_out(workers)
        self._workers = [worker for worker in workers if worker.model in self._models]
        self.calls_at_once = len(self._workers)
        self._free: SimpleQueue[_Worker | None] = SimpleQueue()  # None: no device is left
        for worker in self._workers:
            self._free.put(worker)

    def _start(self, batch_size: int, graphs: bool) -> tuple[int, list["_Worker"]]:
        """The batch size that fits into the devices' memory, and the workers."""
        while True:
            try:
                return batch_size, self._start_workers(batch_size, graphs)
            except torch.OutOfMemoryError as error:
                if batch_size == 1:
                    raise self._refusal(error) from error
            # Outside the `except` block, nothing references the allocated memory.
            torch.cuda.empty_cache()
            logger.warning(
                "batches of %d images do not fit into the memory of %s; trying %d",
                batch_size,
                ", ".join(str(model.device) for model in self._models),
                batch_size // 2,
            )
            batch_size //= 2

    def _start_workers(self, batch_size: int, graphs: bool) -> list["_Worker"]:
        """In turns for each device.

        Raises:
            torch.OutOfMemoryError: one of them has too little memory for such batches.
        """
        started: list[list[_Worker]] = []
        for model in [*self._models]:
            each = WORKERS_PER_GPU if model.device.type == "cuda" else 1
            try:
                started.append([_Worker(model, batch_size, graph=graphs) for _ in range(each)])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # TorchScript may raise anything, and a broken device raises RuntimeError.
                if not self._goes_on_without(model, _first_line(error)):
                    raise self._refusal(error) from error
        turns = itertools.zip_longest(*started)
        return [worker for turn in turns for worker in turn if worker]

    def _goes_on_without(self, model: "_FromPixels", why: str) -> bool:
        """Use a device no more, and say so, if there is another one."""
        with self._lock:
            if model not in self._models:
                return bool(self._models)
            self._models.remove(model)
            if self._models:
                others = ", ".join(str(other.device) for other in self._models)
                logger.warning("%s is left out, %s goes on: %s", model.device, others, why)
            return bool(self._models)

    def _try_out(self, workers: Sequence["_Worker"]) -> int:
        """Embed a few pictures on each device, and return D.

        Raises:
            VisdivError: the model does not run there, or does not return unit vectors, or no device
                returns the right ones.
        """
        pictures = _pictures()[: self.batch_size]
        expected: Vectors | None = None
        dimension = 0
        for worker in workers:
            if worker.model not in self._models:
                continue
            try:
                vectors = worker.embed(pictures)
                # On a CPU, vectors may well be rounded otherwise in a batch of another size.
                alone = worker.embed(pictures[:1]) if worker.device.type == "cuda" else vectors[:1]
            except Exception as error:
                if not self._goes_on_without(worker.model, _first_line(error)):
                    raise self._refusal(error) from error
                continue
            if vectors.ndim != 2 or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
                why = "does not return one unit vector per image"
                if not self._goes_on_without(worker.model, f"the model {why}"):
                    raise VisdivError(f"{self._weights.path} {why} on {worker.device}")
                continue
            if worker.device.type == "cuda":
                if expected is None:
                    expected = _on_the_cpu(self._weights, pictures)
                if (doubt := _doubt(vectors, alone, expected)) and not self._goes_on_without(
                    worker.model, doubt
                ):
                    raise VisdivError(f"{worker.device} cannot be used: {doubt}")
            dimension = int(vectors.shape[1])
        return dimension

    @property
    def devices(self) -> list[torch.device]:
        """Those that work, in the order in which they were named."""
        return [model.device for model in self._models]

    def _refusal(self, error: Exception) -> VisdivError:
        return VisdivError(
            f"{self._weights.path} does not run with {self.description}: {_first_line(error)}"
        )

    def embed(self, pixels: Pixels | Sequence[Pixels] | Tensor) -> Vectors:
        """B images of shape (320, 320, 3), uint8, B ≤ batch size → (B, D) float32, L2 norm 1.

        `calls_at_once` concurrent calls keep all devices busy. Each call uses a free worker, so a
        fast device does not wait for a slow one. If a device fails, another one embeds its images.

        Args:
            pixels: arrays, one array, or one tensor on one of the devices.

        Raises:
            VisdivError: the last device failed, or one of them did while it decoded, too.
        """
        while worker := self._free.get():
            if worker.model not in self._models:
                continue
            try:
                vectors = worker.embed(pixels)
            except RuntimeError as error:
                why = f"{worker.device} failed: {_first_line(error)}"
                others = self._goes_on_without(worker.model, why)
                if not others:
                    self._last_failure = why
                    self._free.put(None)
                # Pixels on a device that fails can't be had any more.
                if not others or (isinstance(pixels, Tensor) and pixels.is_cuda):
                    raise VisdivError(why) from error
            except BaseException:  # bad pixels or an interrupt: the device is not to blame
                self._free.put(worker)
                raise
            else:
                self._free.put(worker)
                return vectors
        self._free.put(None)  # for the next one
        raise VisdivError(self._last_failure)


def _pictures() -> Pixels:
    """Four pictures that are unlike each other, (4, 320, 320, 3), the same every time."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    return coarse.repeat(IMAGE_SIDE // 5, axis=1).repeat(IMAGE_SIDE // 5, axis=2)


def _on_the_cpu(weights: Weights, pixels: Pixels) -> Vectors:
    """What the vectors of a GPU are compared with."""
    model = _load(weights, torch.float32, torch.device("cpu"))
    return _Worker(model, len(pixels), graph=False).embed(pixels)


def _doubt(vectors: Vectors, alone: Vectors, expected: Vectors) -> str:
    """Why a device is not to be trusted; empty if it is.

    Args:
        vectors: (N, D), of one batch.
        alone: (1, D), of the first image in a batch of its own.
        expected: (N, D), by the CPU.
    """
    cosine = float(np.sum(vectors * expected, axis=1).min())
    if not cosine >= LEAST_COSINE:  # nor NaN
        return f"its vectors have a cosine of {cosine:.4f} with those of the CPU"
    if not np.array_equal(vectors[:1], alone):
        return "the vector of an image depends on the images beside it"
    return ""


class _Worker:
    """Runs one batch at a time on a device.

    On a GPU, each worker has its own stream, page-locked memory and CUDA graph, so that one worker
    copies while another computes.
    """

    def __init__(self, model: "_FromPixels", batch_size: int, *, graph: bool) -> None:
        self.model = model.to(model.device)
        device = self.device = model.device
        gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if gpu else None  # type: ignore[no-untyped-call]
        shape = (batch_size, IMAGE_SIDE, IMAGE_SIDE, 3)
        self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=gpu)
        self._host_array = self._host.numpy()
        with exact_torch(device.type), torch.inference_mode(), self._on_stream():
            self._pixels = self._host.to(device)  # on the CPU, the same tensor
            self._warm_up(WARM_UP if gpu else 1)
            self._graph = self._record() if gpu and graph else None

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        """A context with this worker's device and stream as the current ones."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _warm_up(self, times: int) -> None:
        try:
            for _ in range(times):
                self._vectors = self.model(self._pixels)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not self.model.use_plain():
                raise
            logger.warning(
                "%s runs without fused convolutions, which is slower: %s",
                self.device,
                _first_line(error),
            )
            self._warm_up(times)

    def _record(self) -> torch.cuda.CUDAGraph | None:
        """Pixels to vectors as one CUDA graph; None if recording fails."""
        try:
            recording = torch.cuda.CUDAGraph()
            # Other threads may use CUDA in the meantime.
            with torch.cuda.graph(
                recording, stream=self._stream, capture_error_mode="thread_local"
            ):
                self._vectors = self.model(self._pixels)
        except torch.OutOfMemoryError:  # smaller batches may fit
            raise
        except RuntimeError as error:
            logger.warning(
                "%s runs without a CUDA graph, which is slower: %s", self.device, _first_line(error)
            )
            return None
        return recording

    @torch.inference_mode()
    def embed(self, pixels: Pixels | Sequence[Pixels] | Tensor) -> Vectors:
        count = len(pixels)
        if self._stream is not None and isinstance(pixels, Tensor) and pixels.is_cuda:
            # The pixels were produced on the caller's current stream.
            self._stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with exact_torch(self.device.type), self._on_stream():
            if isinstance(pixels, Tensor):
                self._pixels[:count].copy_(pixels)
                self._pixels[count:].zero_()
            else:
                for at, image in enumerate(pixels):
                    self._host_array[at] = image
                self._host_array[count:] = 0
                if self._pixels is not self._host:
                    self._pixels.copy_(self._host, non_blocking=True)
            if self._graph:
                self._graph.replay()
            else:
                self._vectors = self.model(self._pixels)
            vectors: Vectors = self._vectors[:count].cpu().numpy()  # waits for all of the above
        return vectors


class _FromPixels(nn.Module):
    """(B, H, W, 3) uint8 → float32 vectors, by a model that takes normalised images.

    Args:
        model: takes (B, 3, H, W) of the dtype.
        dtype: of the normalised images.
        device: where this is to run; it is made on the CPU.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.device = device
        # Buffers, since nothing may be copied to the GPU while a graph is recorded.
        self.mean = nn.Buffer(torch.tensor(IMAGENET_MEAN, dtype=torch.float32).view(3, 1, 1) * 255)
        self.std = nn.Buffer(torch.tensor(IMAGENET_STD, dtype=torch.float32).view(3, 1, 1) * 255)

    def forward(self, pixels: Tensor) -> Tensor:
        # Pixels in this order are torch's channels-last format, without a copy.
        images = pixels.permute(0, 3, 1, 2).sub(self.mean).div_(self.std)
        vectors: Tensor = self.model(images.to(self.dtype)).float()
        return vectors

    def use_plain(self) -> bool:
        """Do without fused convolutions; False if there were none."""
        if not isinstance(self.model, FusedSSCD):
            return False
        self.model = self.model.plain
        return True


def _load(weights: Weights, dtype: torch.dtype, device: torch.device) -> _FromPixels:
    """Load the model for a device, on the CPU."""
    if weights.format == "torchscript":
        return _FromPixels(load_torchscript(weights.path), dtype, device)
    model = load_sscd(weights.path)
    fold_batch_norms(model)
    runs = FusedSSCD(model) if device.type == "cuda" else model
    return _FromPixels(runs.to(dtype).to(memory_format=torch.channels_last), dtype, device)


def resolve_devices(names: Sequence[str]) -> list[torch.device]:
    """The devices of these names; `auto` means all CUDA devices, else the CPU, logged once.

    Raises:
        VisdivError: a device does not exist.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if list(names) == ["auto"]:
        if not available:
            _say_that_the_cpu_embeds()
        names = [f"cuda:{number}" for number in range(available)] or ["cpu"]
    devices = []
    for name in names:
        number = int(name.partition(":")[2] or 0) if name.startswith("cuda") else None
        if number is not None and number >= available:
            raise VisdivError(
                f"the device {name} does not exist: PyTorch {torch.__version__} finds "
                f"{available or 'no'} CUDA device{'' if available == 1 else 's'}"
            )
        devices.append(torch.device(name))
    return devices


@functools.cache
def _say_that_the_cpu_embeds() -> None:
    logger.warning(
        "PyTorch %s finds no CUDA device, so the model runs on the CPU", torch.__version__
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
