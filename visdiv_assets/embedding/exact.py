"""Second moments of rows on the store's grid, by products of 8-bit integers.

Here: splitting rows into integers, multiplying, and whether this processor gains by it.
Not here: what moments are, and the float64 way to them (`spectral/moments.py`).

A row on the grid is an integer k = x·2¹⁵ in each coordinate, and k = 256·h + l with h and l of
8 bits. So Σkkᵀ = 65536·Σhhᵀ + 256·(Σhlᵀ + Σlhᵀ) + Σllᵀ, and all of it is exact in integers.
Processors that have instructions for 8 bits (AVX-512 VNNI, AMX) do these three products in a
third of the time of one in float64.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import BLOCK_ROWS, Moments

if TYPE_CHECKING:
    import torch

# Fewer rows than this take less time in float64 than torch takes to load.
INTEGERS_PAY_ROWS = 1_000_000
# With torch in memory: what finding out costs.
LOADED_PAY_ROWS = 100_000

SCALE = 2.0**15
# Of a larger |k|, h has more than 8 bits: a unit vector that is almost a coordinate axis.
LIMIT = 127 * 256 + 127
# Rows split at a time: what stays in the cache.
CHUNK_ROWS = 512
# Columns multiplied at a time with those to the right of them.
PANEL = 256


def integers_pay(rows: int) -> bool:
    """Whether `IntegerMoments` is the faster road for so many rows on this machine."""
    enough = LOADED_PAY_ROWS if "torch" in sys.modules else INTEGERS_PAY_ROWS
    return rows >= enough and _faster_and_exact()


@functools.cache
def _faster_and_exact() -> bool:
    """Try it: processors without such instructions are slow at it, and some do not even add up."""
    import torch

    made_up = np.random.default_rng(0).integers(-128, 128, (BLOCK_ROWS, 256), dtype=np.int8)
    numbers = made_up.astype(np.float64)
    parts = torch.from_numpy(made_up)
    try:
        product = torch._int_mm(parts.T, parts)
    except (AttributeError, RuntimeError):
        return False
    if not np.array_equal(product.numpy(), numbers.T @ numbers):
        return False

    def seconds(multiply: Callable[[], object]) -> float:
        started = time.perf_counter()
        multiply()
        return time.perf_counter() - started

    integer = min(seconds(lambda: torch._int_mm(parts.T, parts)) for _ in range(3))
    double = min(seconds(lambda: numbers.T @ numbers) for _ in range(3))
    return 3 * integer < double


class IntegerMoments:
    """Adds up blocks of float16 rows on the store's grid, exactly.

    Args:
        dimension: D of the rows.
    """

    def __init__(self, dimension: int) -> None:
        import torch

        self._dimension, self._n = dimension, 0
        # Columns: h, l, and a one, whose products are the sums of the columns.
        self._parts = torch.zeros((BLOCK_ROWS, 2 * dimension + 16), dtype=torch.int8)
        self._parts[:, 2 * dimension] = 1
        self._scaled = torch.empty((CHUNK_ROWS, dimension), dtype=torch.float32)
        self._again = torch.empty_like(self._scaled)
        self._integers = torch.empty((CHUNK_ROWS, dimension), dtype=torch.int16)
        # Of the symmetric product only what is right of the diagonal, a panel of rows at a time.
        self._panels = [
            torch.zeros(
                (min(PANEL, 2 * dimension - at), 2 * dimension + 16 - at), dtype=torch.int64
            )
            for at in range(0, 2 * dimension, PANEL)
        ]

    def add(self, rows: NDArray[np.float16]) -> float | None:
        """Add rows, up to BLOCK_ROWS; returns their largest | ‖x‖ − 1 |.

        Returns None, and adds nothing, where a row is not on the grid, not finite, or too near
        to a coordinate axis for 8 bits.
        """
        import torch

        error = 0.0
        given = torch.from_numpy(rows)
        for start in range(0, len(rows), CHUNK_ROWS):
            norms = self._split(given[start : start + CHUNK_ROWS], start)
            if norms is None:
                return None
            error = max(error, float((norms / SCALE - 1).abs().max()))
        parts = self._parts[: len(rows)]
        for at, panel in zip(range(0, 2 * self._dimension, PANEL), self._panels, strict=True):
            panel += torch._int_mm(parts[:, at : at + len(panel)].T, parts[:, at:])
        self._n += len(rows)
        return error

    def _split(self, rows: "torch.Tensor", start: int) -> "torch.Tensor | None":
        """Write h and l of a chunk into their columns; returns the norms of k."""
        import torch

        n, dimension = rows.shape
        scaled, integers = self._scaled[:n], self._integers[:n]
        scaled.copy_(rows).mul_(SCALE)
        lowest, highest = torch.aminmax(scaled)
        if not (float(lowest) >= -LIMIT and float(highest) <= LIMIT):
            return None
        integers.copy_(scaled)
        if not torch.equal(self._again[:n].copy_(integers), scaled):
            return None
        target = self._parts[start : start + n]
        target[:, dimension : 2 * dimension].copy_(integers)  # keeps the lower 8 bits
        target[:, :dimension].copy_(integers.add_(128).bitwise_right_shift_(8))
        norms: torch.Tensor = torch.linalg.vector_norm(scaled, dim=1)
        return norms

    def moments(self) -> Moments:
        """Of all rows that were added."""
        dimension = self._dimension
        products = np.zeros((2 * dimension, 2 * dimension + 16), dtype=np.int64)
        for at, panel in zip(range(0, 2 * dimension, PANEL), self._panels, strict=True):
            products[at : at + len(panel), at:] = panel.numpy()
        high, low = slice(0, dimension), slice(dimension, 2 * dimension)
        square = np.triu(products[:, :-16])
        square += np.triu(square, 1).T
        cross = square[high, low]
        outer = 65536 * square[high, high] + 256 * (cross + cross.T) + square[low, low]
        total = 256 * products[high, -16] + products[low, -16]
        return Moments(self._n, total / SCALE, outer / SCALE**2)
