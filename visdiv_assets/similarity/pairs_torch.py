"""Products of blocks on a PyTorch device, such as a GPU.

Here: the counterpart of `exact.Cpu` with tensors. Imported only if a device is requested.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from visdiv_assets.similarity.exact import Positions
from visdiv_assets.similarity.exact_torch import exact_torch
from visdiv_assets.similarity.levels import Needed


class TorchProcessor:
    """Products by PyTorch in full float32, since TensorFloat-32 would exceed the rounding margin.

    Args:
        device: "cuda", "cuda:1", "mps", "cpu" …

    Raises:
        ValueError: the device does not exist.
    """

    def __init__(self, device: str) -> None:
        try:
            self.device = torch.device(device)
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {device!r} cannot be used: {reason}") from error

    def put(self, vectors: NDArray[np.float32]) -> torch.Tensor:
        """The vectors on the device."""
        return torch.from_numpy(vectors).to(self.device)

    def candidates(
        self, left: torch.Tensor, right: torch.Tensor, needed: Needed, slack: np.float32
    ) -> Positions:
        """Compute one product on the device, and return only positions."""
        with exact_torch(self.device.type):
            products = left @ right.T
        enough = products > float(needed.least - slack)
        if needed.left is not None and needed.right is not None:
            open_at = torch.full_like(products, torch.inf)
            levels = list(zip(needed.thresholds, needed.left, needed.right, strict=True))
            for threshold, mine, other in reversed(levels):
                differ = self._labels(mine)[:, None] != self._labels(other)
                open_at[differ] = float(threshold - slack)
            enough &= products > open_at
        above = enough.flatten().nonzero().flatten().cpu().numpy()
        return above // len(right), above % len(right)

    def _labels(self, labels: NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(labels).to(self.device)
