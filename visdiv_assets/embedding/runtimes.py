"""Choosing runtime, device and precision for weights.

Not here: the runtimes (`runtime_onnx.py`, `runtime_torch.py`). They are imported on demand,
because importing torch takes seconds.
"""

import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from visdiv_assets.embedding.runtime import Runtime
from visdiv_assets.embedding.weights import DEFAULT_CHECKPOINT, Weights
from visdiv_assets.errors import VisdivError

logger = logging.getLogger(__name__)

# Linux lists NVIDIA GPUs here; asking PyTorch would take seconds.
DEVICES = Path("/dev")


def resolve_precision(weights: Weights, precision: str, devices: Sequence[str] = ("cpu",)) -> str:
    """The precision that a setting means for these weights.

    `auto` is the fastest precision that changes scores by at most 0.001 (docs/performance.md):
    float16 if the model runs only on GPUs, else the best that the weights support. For the device
    `auto`, this imports PyTorch to find out whether there are GPUs.

    Args:
        weights: the weights to run.
        precision: `auto`, or the name of a precision.
        devices: as `device_names` returns them.

    Raises:
        VisdivError: the weights do not support that precision.
    """
    offered = ("int8",) if weights.format == "onnx" else ("fp32", "bf16", "fp16")
    if weights.format == "torchscript":
        offered = ("fp32",)
    if precision == "auto":
        return "fp16" if "fp16" in offered and _gpus_only(devices) else offered[0]
    if precision not in offered:
        raise VisdivError(
            f"{weights.checkpoint} as {weights.format} runs in {' or '.join(offered)}, "
            f"not in {precision}"
        )
    return precision


def _gpus_only(devices: Sequence[str]) -> bool:
    if "auto" in devices:
        import torch

        return torch.cuda.is_available()
    return all(name.startswith("cuda") for name in devices)


def runtime_name(weights: Weights, precision: str) -> str:
    """The part of the model id that names runtime and precision."""
    return f"{'onnx' if weights.format == 'onnx' else 'torch'}-{precision}"


def device_names(weights: Weights, device: str | Sequence[str]) -> list[str]:
    """The devices in a setting; the runtime checks whether they exist.

    Raises:
        VisdivError: the list is empty, or a device is invalid or cannot run these weights.
    """
    names = valid_devices(device)
    if weights.format == "onnx" and any(name.startswith("cuda") for name in names):
        raise VisdivError(
            f"{weights.checkpoint} runs on the CPU only; for {', '.join(names)} set weights to "
            "an official checkpoint such as sscd_disc_mixup"
        )
    return names


def valid_devices(device: str | Sequence[str]) -> list[str]:
    """The devices in a setting, whatever the weights.

    Raises:
        VisdivError: the list is empty, or a device is invalid.
    """
    names = [device] if isinstance(device, str) else list(device)
    if not names:
        raise VisdivError("the list of devices is empty")
    for name in names:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
            raise VisdivError(f"{name!r} is not a device; use auto, cpu, cuda or cuda:N")
    if "auto" in names and len(names) > 1:
        raise VisdivError("the device auto cannot be combined with others")
    return names


def check_gpus(names: Sequence[str]) -> None:
    """Ask PyTorch whether the GPUs among these devices exist.

    Raises:
        VisdivError: one of them does not.
    """
    if gpus := [name for name in names if name.startswith("cuda")]:
        from visdiv_assets.embedding.runtime_torch import resolve_devices

        resolve_devices(gpus)


def load_runtime(
    weights: Weights,
    *,
    device: str | Sequence[str],
    precision: str,
    batch_size: int | None,
) -> Runtime:
    """Load the model.

    Args:
        weights: the weights to load.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, or a list of these without `auto`.
        precision: as `resolve_precision` returns it.
        batch_size: images per call; None uses the device's default.

    Raises:
        VisdivError: the file is not a model, or the device does not exist or cannot run it.
    """
    names = device_names(weights, device)
    if weights.format == "onnx":
        if importlib.util.find_spec("onnxruntime") is None:
            raise VisdivError(
                f"{weights.path} needs ONNX Runtime; run pip install 'visdiv_assets[onnx]'"
            )
        from visdiv_assets.embedding.runtime_onnx import OnnxRuntime

        if names == ["auto"] and any(DEVICES.glob("nvidia[0-9]*")):
            logger.warning(
                "this machine has a GPU, but %s runs on the CPU only; to use the GPU, set weights "
                "to %s",
                weights.checkpoint,
                DEFAULT_CHECKPOINT,
            )
        return OnnxRuntime(weights.path, batch_size=batch_size)

    from visdiv_assets.embedding.runtime_torch import TorchRuntime

    return TorchRuntime(weights, devices=names, precision=precision, batch_size=batch_size)
