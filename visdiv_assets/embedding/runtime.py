"""What a loaded model can do: the protocol that all runtimes follow.

Not here: choosing one (`runtimes.py`), and the runtimes (`runtime_onnx.py`, `runtime_torch.py`).
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class Runtime(Protocol):
    """A loaded model. The vector of an image depends on nothing but its pixels."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def batch_size(self) -> int:
        """Images per call that suit it."""

    @property
    def calls_at_once(self) -> int:
        """Calls of `embed`, from threads of their own, that keep it busy; more gain nothing."""

    @property
    def description(self) -> str:
        """Where it runs, for people."""

    def embed(self, pixels: Any) -> Vectors:
        """(B, H, W, 3) uint8 with B ≤ batch size → (B, D) float32, L2 norm 1.

        `Pixels`; the torch runtime takes tensors as well.
        """
