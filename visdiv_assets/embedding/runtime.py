"""The protocol that all runtimes of a model implement.

Not here: choosing one (`runtimes.py`), and the runtimes (`runtime_onnx.py`, `runtime_torch.py`).
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class Runtime(Protocol):
    """A loaded model. The vector of an image depends only on its pixels."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def batch_size(self) -> int:
        """Best number of images per call."""

    @property
    def calls_at_once(self) -> int:
        """Number of concurrent `embed` calls that keep it busy; more gain nothing."""

    @property
    def description(self) -> str:
        """Runtime and device, as shown to users."""

    def embed(self, pixels: Any) -> Vectors:
        """B images of shape (H, W, 3), uint8, B ≤ batch size → (B, D) float32, L2 norm 1.

        Takes `Pixels` of shape (B, H, W, 3) or a sequence of them, one for each image; the torch
        runtime also takes a tensor.
        """
