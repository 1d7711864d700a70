"""SSCD through PyTorch, on the CPU or on GPUs.

Here: devices, precision, normalisation, batches. Not here: the architecture (`model.py`).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from visdiv_assets.embedding.model import load_sscd, load_torchscript
from visdiv_assets.embedding.preprocess import IMAGE_SIDE, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.embedding.weights import Weights
from visdiv_assets.errors import VisdivError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRuntime:
    """A replica of the model on each device; a batch is shared out among them.

    Every call runs the full batch size, padded with black images, so that a vector does not
    depend on how many images were left over for the last batch.
    """

    calls_at_once = 1

    def __init__(
        self,
        weights: Weights,
        *,
        devices: Sequence[str] = ("auto",),
        precision: str = "fp32",
        batch_size: int | None = None,
    ) -> None:
        self._devices = resolve_devices(devices)
        self._dtype = DTYPES[precision]
        per_device = 128 if self._devices[0].type == "cuda" else 8
        self.batch_size = batch_size or per_device * len(self._devices)
        self.description = (
            f"PyTorch {torch.__version__}, {precision} on {', '.join(map(str, self._devices))}"
        )
        self._models = [self._load(weights, place) for place in self._devices]
        self._threads = ThreadPoolExecutor(len(self._devices))
        self.dimension = self._try_out(weights)

    def _load(self, weights: Weights, device: torch.device) -> nn.Module:
        if device.type == "cuda" and self._dtype is torch.float32:
            # By default GPUs convolve in TF32, with 10 bits of mantissa: that is not fp32.
            torch.backends.cudnn.allow_tf32 = False
        model: nn.Module
        if weights.format == "torchscript":
            model = load_torchscript(weights.path)
        else:
            model = load_sscd(weights.path).to(self._dtype)
        return model.to(device)

    def _try_out(self, weights: Weights) -> int:
        """Embed one image and return D.

        Raises:
            VisdivError: the model does not run there, or does not give unit vectors.
        """
        try:
            vectors = self.embed(np.zeros((1, IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8))
        except Exception as error:
            # TorchScript may raise anything; a device with too little memory, RuntimeError.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            message = f"{weights.path} does not run with {self.description}: {reason}"
            raise VisdivError(message) from error
        if vectors.ndim != 2 or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise VisdivError(f"{weights.path} does not give one unit vector per image")
        return int(vectors.shape[1])

    def embed(self, pixels: Pixels) -> Vectors:
        """(B, H, W, 3) uint8 with B ≤ batch size → (B, D) float32, L2 norm 1."""
        padded = np.zeros((self.batch_size, *pixels.shape[1:]), dtype=np.uint8)
        padded[: len(pixels)] = pixels
        shares = [share for share in np.array_split(padded, len(self._devices)) if len(share)]
        vectors = self._threads.map(self._embed_share, self._models, self._devices, shares)
        return np.concatenate(list(vectors))[: len(pixels)]

    @torch.inference_mode()
    def _embed_share(self, model: nn.Module, device: torch.device, share: Pixels) -> Vectors:
        images = normalize(torch.from_numpy(share).to(device)).to(self._dtype)
        vectors: Vectors = model(images).float().cpu().numpy()
        return vectors


def normalize(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) with ImageNet's mean and standard deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(3, 1, 1)
    return pixels.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)


def resolve_devices(names: Sequence[str]) -> list[torch.device]:
    """The devices of these names; `auto` is all that CUDA has, else the CPU.

    Raises:
        VisdivError: a device is not there.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if list(names) == ["auto"]:
        names = [f"cuda:{number}" for number in range(available)] or ["cpu"]
    devices = []
    for name in names:
        place = torch.device(name)
        if place.type == "cuda" and (place.index or 0) >= available:
            raise VisdivError(
                f"the device {name} is not there: PyTorch {torch.__version__} sees "
                f"{available or 'no'} CUDA device{'' if available == 1 else 's'}"
            )
        devices.append(place)
    return devices
