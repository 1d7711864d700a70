"""SSCD through PyTorch, on the CPU or on GPUs.

Here: devices, precision, normalisation, batches, and keeping GPUs busy without pauses.
Not here: the architecture (`model.py`); JPEG on the GPU (`gpu_decode.py`).
"""

import contextlib
import functools
import logging
from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor, nn

from visdiv_assets.embedding.model import fold_batch_norms, load_sscd, load_torchscript
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


class TorchRuntime:
    """The model on each device; whole batches go to whichever device is free.

    Every call runs the full batch size, padded with black images, so that a vector does not
    depend on how many images are left for the last batch. cuDNN's benchmark mode is off: the
    convolutions that it picks differ between processes and GPUs, and so would the last bits. Such
    settings of the whole process hold only while a batch is computed.

    Args:
        weights: the weights to load.
        devices: `auto`, or names of devices.
        precision: `fp32`, `bf16` or `fp16`; GeM and L2 norm always use float32.
        batch_size: images per call; None means 8 on a CPU and 128 on GPUs. It is halved until it
            fits into the GPU's memory.
        cuda_graphs: record the work for a batch as a CUDA graph once, and replay it.

    Raises:
        VisdivError: the file is not a model, or a device does not exist or cannot run it.
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
        gpu = places[0].type == "cuda"
        self.description = f"PyTorch {torch.__version__}, {precision} on " + ", ".join(
            map(str, places)
        )
        models = [_load(weights, DTYPES[precision]) for _ in places]
        graphs = (
            cuda_graphs and weights.format != "torchscript"
        )  # its executor does not support graphs
        self.batch_size, self._workers = self._start(
            weights, models, places, batch_size or (GPU_BATCH if gpu else CPU_BATCH), graphs
        )
        self.dimension = self._try_out(weights)
        self.calls_at_once = len(self._workers)
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    def _start(
        self,
        weights: Weights,
        models: Sequence[nn.Module],
        places: Sequence[torch.device],
        batch_size: int,
        graphs: bool,
    ) -> tuple[int, list["_Worker"]]:
        """The batch size that fits into the devices' memory, and the workers."""
        each = WORKERS_PER_GPU if places[0].type == "cuda" else 1
        while True:
            try:
                return batch_size, [
                    _Worker(model, place, batch_size, graph=graphs)
                    for _ in range(each)
                    for model, place in zip(models, places, strict=True)
                ]
            except torch.OutOfMemoryError as error:
                if batch_size == 1:
                    raise self._refusal(weights, error) from error
            except Exception as error:
                # TorchScript may raise anything, and a broken device raises RuntimeError.
                raise self._refusal(weights, error) from error
            # Outside the `except` block, nothing references the allocated memory.
            torch.cuda.empty_cache()
            logger.warning(
                "batches of %d images do not fit into the memory of %s; trying %d",
                batch_size,
                ", ".join(map(str, places)),
                batch_size // 2,
            )
            batch_size //= 2

    def _try_out(self, weights: Weights) -> int:
        """Embed one image and return D.

        Raises:
            VisdivError: the model does not run there, or does not return unit vectors.
        """
        black = np.zeros((1, IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
        try:
            vectors = self._workers[0].embed(black)
        except Exception as error:
            raise self._refusal(weights, error) from error
        if vectors.ndim != 2 or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise VisdivError(f"{weights.path} does not return one unit vector per image")
        return int(vectors.shape[1])

    def _refusal(self, weights: Weights, error: Exception) -> VisdivError:
        return VisdivError(
            f"{weights.path} does not run with {self.description}: {_first_line(error)}"
        )

    def embed(self, pixels: Pixels | Tensor) -> Vectors:
        """(B, 320, 320, 3) uint8 with B ≤ batch size → (B, D) float32, L2 norm 1.

        `calls_at_once` concurrent calls keep all devices busy. Each call uses a free worker, so a
        fast device does not wait for a slow one.

        Args:
            pixels: an array, or a tensor on one of the devices.

        Raises:
            VisdivError: the device failed.
        """
        worker = self._free.get()
        try:
            return worker.embed(pixels)
        except RuntimeError as error:
            raise VisdivError(f"{worker.device} failed: {_first_line(error)}") from error
        finally:
            self._free.put(worker)


class _Worker:
    """Runs one batch at a time on a device.

    On a GPU, each worker has its own stream, page-locked memory and CUDA graph, so that one worker
    copies while another computes.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, batch_size: int, *, graph: bool
    ) -> None:
        self.device = device
        self._model = model.to(device)
        gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if gpu else None  # type: ignore[no-untyped-call]
        shape = (batch_size, IMAGE_SIDE, IMAGE_SIDE, 3)
        self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=gpu)
        self._host_array = self._host.numpy()
        with exact_torch(device.type), torch.inference_mode(), self._on_stream():
            self._pixels = self._host.to(device)  # on the CPU, the same tensor
            for _ in range(WARM_UP if gpu else 1):
                self._vectors = model(self._pixels)
            self._graph = self._record() if gpu and graph else None

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        """A context with this worker's device and stream as the current ones."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _record(self) -> torch.cuda.CUDAGraph | None:
        """Pixels to vectors as one CUDA graph; None if recording fails."""
        try:
            recording = torch.cuda.CUDAGraph()
            # Other threads may use CUDA in the meantime.
            with torch.cuda.graph(
                recording, stream=self._stream, capture_error_mode="thread_local"
            ):
                self._vectors = self._model(self._pixels)
        except RuntimeError as error:
            logger.warning(
                "%s runs without a CUDA graph, which is slower: %s", self.device, _first_line(error)
            )
            return None
        return recording

    @torch.inference_mode()
    def embed(self, pixels: Pixels | Tensor) -> Vectors:
        count = len(pixels)
        if self._stream is not None and isinstance(pixels, Tensor) and pixels.is_cuda:
            # The pixels were produced on the caller's current stream.
            self._stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with exact_torch(self.device.type), self._on_stream():
            if isinstance(pixels, Tensor):
                self._pixels[:count].copy_(pixels)
                self._pixels[count:].zero_()
            else:
                self._host_array[:count] = pixels
                self._host_array[count:] = 0
                if self._pixels is not self._host:
                    self._pixels.copy_(self._host, non_blocking=True)
            if self._graph:
                self._graph.replay()
            else:
                self._vectors = self._model(self._pixels)
            vectors: Vectors = self._vectors[:count].cpu().numpy()  # waits for all of the above
        return vectors


class _FromPixels(nn.Module):
    """(B, H, W, 3) uint8 → float32 vectors, by a model that takes normalised images."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        # Buffers, since nothing may be copied to the GPU while a graph is recorded.
        self.mean = nn.Buffer(torch.tensor(IMAGENET_MEAN, dtype=torch.float32).view(3, 1, 1) * 255)
        self.std = nn.Buffer(torch.tensor(IMAGENET_STD, dtype=torch.float32).view(3, 1, 1) * 255)

    def forward(self, pixels: Tensor) -> Tensor:
        # Pixels in this order are torch's channels-last format, without a copy.
        images = pixels.permute(0, 3, 1, 2).sub(self.mean).div_(self.std)
        vectors: Tensor = self.model(images.to(self.dtype)).float()
        return vectors


def _load(weights: Weights, dtype: torch.dtype) -> nn.Module:
    """Load the model on the CPU."""
    model: nn.Module
    if weights.format == "torchscript":
        model = load_torchscript(weights.path)
    else:
        model = load_sscd(weights.path)
        fold_batch_norms(model)
        model = model.to(dtype).to(memory_format=torch.channels_last)
    return _FromPixels(model, dtype)


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
