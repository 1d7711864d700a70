"""PyTorch without its faster and less exact modes, for as long as that is needed.

Here: switches of the whole process, shared by the model (`embedding/runtime_torch.py`) and products
of blocks (`pairs_torch.py`). Not here: what is computed.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

from torch.backends import cuda, cudnn, mkldnn

from visdiv_assets.spectral.threads import WhileNeeded


def exact_torch(device_type: str) -> AbstractContextManager[None]:
    """PyTorch computes float32 in full, and the same every time, within a `with` block.

    By default, GPUs convolve in TF32, which has only 10 bits of mantissa, and a program may allow
    it, or bfloat16, for products as well. cuDNN's trials pick other convolutions every time.

    Args:
        device_type: `cuda` or `cpu`; the settings of the other are left alone.
    """
    return _exact_cuda() if device_type == "cuda" else _exact_cpu()


def _changed(values: list[tuple[object, str, object]]) -> Callable[[], object]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]

    def put(settings: list[tuple[object, str, object]]) -> None:
        for owner, name, value in settings:
            setattr(owner, name, value)

    put(values)
    return functools.partial(put, before)


def _make_cuda_exact() -> Callable[[], object]:
    return _changed(
        [
            # Of each operation: the older switches for all of them cannot be read once a program
            # has used these.
            (cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
            (cuda.matmul, "fp32_precision", "ieee"),
            (cudnn, "deterministic", True),
            (cudnn, "benchmark", False),
        ]
    )


def _make_cpu_exact() -> Callable[[], object]:
    return _changed(
        [
            (mkldnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
            (mkldnn.matmul, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
        ]
    )


_exact_cuda = WhileNeeded(_make_cuda_exact)
_exact_cpu = WhileNeeded(_make_cpu_exact)
