"""Which runtime runs given weights, on which device and in which precision.

Not here: the runtimes themselves (`runtime_onnx.py`, `runtime_torch.py`). They are imported when
they are needed, because importing torch takes seconds.
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

# Where Linux shows NVIDIA's GPUs; PyTorch would take seconds to say whether there are any.
DEVICES = Path("/dev")


def resolve_precision(weights: Weights, precision: str, devices: Sequence[str] = ("cpu",)) -> str:
    """The arithmetic that a precision setting means for these weights.

    `auto` is the fastest that moves no score by more than 0.001 (docs/performance.md): float16
    where the model runs on GPUs only, else the best that the weights have. For the devices
    `auto`, PyTorch is asked whether there are GPUs, and is imported for that.

    Args:
        weights: what is to be run.
        precision: `auto`, or the name of one.
        devices: as `device_names` returns them.

    Raises:
        VisdivError: the weights cannot be run in that precision.
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
    """The part of the model id that tells by what arithmetic vectors were made."""
    return f"{'onnx' if weights.format == 'onnx' else 'torch'}-{precision}"


def device_names(weights: Weights, device: str | Sequence[str]) -> list[str]:
    """The devices that a setting lists; whether they are there is for the runtime to say.

    Raises:
        VisdivError: it lists none, or nonsense, or one that cannot run these weights.
    """
    names = [device] if isinstance(device, str) else list(device)
    if not names:
        raise VisdivError("the list of devices is empty")
    for name in names:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
            raise VisdivError(f"{name!r} is not a device; use auto, cpu, cuda or cuda:N")
    if "auto" in names and len(names) > 1:
        raise VisdivError("the device auto cannot stand beside others")
    if weights.format == "onnx" and any(name.startswith("cuda") for name in names):
        raise VisdivError(
            f"{weights.checkpoint} runs on the CPU only; for {', '.join(names)} set weights to "
            "an official checkpoint such as sscd_disc_mixup"
        )
    return names


def load_runtime(
    weights: Weights,
    *,
    device: str | Sequence[str],
    precision: str,
    batch_size: int | None,
) -> Runtime:
    """Load the model.

    Args:
        weights: what to load.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, or several of these but `auto`.
        precision: as `resolve_precision` returns it.
        batch_size: images per call; chosen by device when None.

    Raises:
        VisdivError: the file is no model, or the device is not there or cannot run it.
    """
    names = device_names(weights, device)
    if weights.format == "onnx":
        if importlib.util.find_spec("onnxruntime") is None:
            raise VisdivError(
                f"{weights.path} needs ONNX Runtime; pip install 'visdiv_assets[onnx]'"
            )
        from visdiv_assets.embedding.runtime_onnx import OnnxRuntime

        if names == ["auto"] and any(DEVICES.glob("nvidia[0-9]*")):
            logger.warning(
                "this machine has a GPU, and %s runs on the CPU only; set weights to %s to use it",
                weights.checkpoint,
                DEFAULT_CHECKPOINT,
            )
        return OnnxRuntime(weights.path, batch_size=batch_size)

    from visdiv_assets.embedding.runtime_torch import TorchRuntime

    return TorchRuntime(weights, devices=names, precision=precision, batch_size=batch_size)
