"""Second moments of rows on the store's grid, by products of 8-bit integers.

Here: splitting rows into integers, multiplying, and whether this processor gains by it.
Not here: what moments are, and the float64 way to them (`spectral/moments.py`).

A row on the grid is an integer k = x·2¹⁵ in each coordinate, and k = 128·h + l with h and l from
−64 to 63. Then s = h + l has 8 bits, and Σ(hlᵀ + lhᵀ) = Σssᵀ − Σhhᵀ − Σllᵀ (Karatsuba's trick). So

    Σkkᵀ = 2¹⁴·Σhhᵀ + 2⁷·(Σssᵀ − Σhhᵀ − Σllᵀ) + Σllᵀ

takes three products of a matrix with itself, of which one half is the mirror image of the other,
and all of it is exact. Processors that have instructions for 8 bits (AVX-512 VNNI, AMX) do these
in less time than one product in float32.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from visdiv_assets.spectral.moments import BLOCK_ROWS, FloatArray, Moments, check_embeddings

if TYPE_CHECKING:
    import torch


# Fewer rows than this take less time in float64 than torch takes to load.
INTEGERS_PAY_ROWS = 1_000_000
# With torch in memory: what finding out costs.
LOADED_PAY_ROWS = 100_000

SCALE = 2.0**15
# Of a larger |k|, h has more than 7 bits: |x| > 0.248. Rare, and no more than 16 in a unit vector.
LIMIT = 63 * 128 + 63
# Rows split at a time, and rows multiplied at a time: what stays in the caches.
CHUNK_ROWS, PRODUCT_ROWS = 1024, 4096
# So many s² fit into 32 bits.
FLUSH_ROWS = (2**31 - 1) // 128**2
# Columns multiplied at a time with themselves and those to the right of them.
PANEL = 128


def integers_pay(rows: int) -> bool:
    """Whether `IntegerMoments` is the faster road for so many rows on this machine."""
    enough = LOADED_PAY_ROWS if "torch" in sys.modules else INTEGERS_PAY_ROWS
    return rows >= enough and _faster_and_exact()


@functools.cache
def _faster_and_exact() -> bool:
    """Try it: processors without such instructions are slow at it, and some do not even add up."""
    # Steps of 8, since float16 has 11 bits.
    k = np.random.default_rng(0).integers(-LIMIT // 8 + 1, LIMIT // 8, (BLOCK_ROWS, 512)) * 8
    rows, once = (k / SCALE).astype(np.float16), np.ones(BLOCK_ROWS, dtype=np.int64)

    def seconds(add_up: Callable[[], object]) -> float:
        started = time.perf_counter()
        add_up()
        return time.perf_counter() - started

    integers, scratch = IntegerMoments(rows.shape[1]), Scratch(rows.shape[1])
    try:
        # All of one kind and then of the other, as threads of both would disturb each other.
        integer = min(seconds(lambda: integers.add(rows, once, scratch)) for _ in range(4))
    except (AttributeError, RuntimeError):
        return False
    double = min(seconds(lambda: Moments.of(rows)) for _ in range(4))
    if double < integer:
        return False
    ours, theirs = integers.moments(), Moments.of(rows, 4 * once)
    return np.array_equal(ours.outer, theirs.outer) and np.array_equal(ours.total, theirs.total)


class _Split(NamedTuple):
    """What is known of rows that were split.

    Attributes:
        error: largest | ‖x‖ − 1 |.
        total: Σk, shape (D,), float64.
        clipped: k in the rows that have an excess, without it, shape (R, D), float64.
        excess: what of k is beyond ±LIMIT there and was left out of the parts; likewise.
    """

    error: float
    total: FloatArray
    clipped: FloatArray
    excess: FloatArray


class Scratch:
    """Where a thread splits rows into integers.

    Args:
        dimension: D of the rows.

    Attributes:
        parts: h, l and s of the rows split last, three tensors of shape (PRODUCT_ROWS, D), int8.
        product: room for a product, as many panels as there are, int32.
    """

    def __init__(self, dimension: int) -> None:
        import torch

        shape = CHUNK_ROWS, dimension
        self.parts = [torch.empty((PRODUCT_ROWS, dimension), dtype=torch.int8) for _ in range(3)]
        self.product = _panels(dimension)
        self._scaled = torch.empty(shape, dtype=torch.float32)
        self._again = torch.empty(shape, dtype=torch.float32)
        self._integers = torch.empty(shape, dtype=torch.int16)
        self._high = torch.empty(shape, dtype=torch.int16)

    def split(self, rows: "torch.Tensor", at: int) -> _Split | None:
        """Split up to CHUNK_ROWS rows, float16, into those of `parts` from `at` on.

        Returns None where a row is not on the grid, or too large for it.
        """
        import torch

        n = len(rows)
        scaled, again = self._scaled[:n], self._again[:n]
        integers, high = self._integers[:n], self._high[:n]
        scaled.copy_(rows).mul_(SCALE)
        norms = torch.linalg.vector_norm(scaled, dim=1)
        lowest, highest = torch.aminmax(scaled)
        clipped = excess = np.empty((0, rows.shape[1]))
        if not (lowest >= -LIMIT and highest <= LIMIT):
            if not (lowest >= -SCALE and highest <= SCALE):
                return None
            again.copy_(scaled)
            again.sub_(scaled.clamp_(-LIMIT, LIMIT))
            those = again.abs().amax(dim=1).nonzero()[:, 0]
            clipped, excess = (each[those].double().numpy() for each in (scaled, again))
        # Exact: CHUNK_ROWS · LIMIT fits into the 24 bits of float32.
        total = scaled.sum(dim=0).double().numpy() + excess.sum(axis=0)
        integers.copy_(scaled)
        rounding = torch.aminmax(again.copy_(integers).sub_(scaled))
        if not rounding.min == rounding.max == 0:
            return None
        h, l, s = (part[at : at + n] for part in self.parts)  # noqa: E741
        torch.add(integers, 64, out=high)
        h.copy_(high.bitwise_right_shift_(7))
        l.copy_(integers.sub_(high, alpha=128))
        torch.add(h, l, out=s)
        error = float((norms / SCALE - 1).abs().max())
        return _Split(error, total, clipped, excess)


def _panels(dimension: int) -> "list[torch.Tensor]":
    """Of a symmetric matrix, PANEL rows at a time, what is not left of the diagonal; zeros."""
    import torch

    return [
        torch.zeros((min(PANEL, dimension - at), dimension - at), dtype=torch.int32)
        for at in range(0, dimension, PANEL)
    ]


class IntegerMoments:
    """Adds up float16 rows exactly: in integers, or in float64 those that 8 bits do not hold.

    All of it by torch, since its threads and NumPy's would wait for each other awake.

    Args:
        dimension: D of the rows.
    """

    def __init__(self, dimension: int) -> None:
        self._flushed = Moments.zero(dimension)
        self._total, self._n = np.zeros(dimension), 0
        self._cross = np.zeros((dimension, dimension))
        self._sums = [_panels(dimension) for _ in range(3)]  # of h, l and s

    def add(self, rows: NDArray[np.float16], counts: NDArray[np.int64], scratch: Scratch) -> float:
        """Add rows, shape (R, D), each as often as `counts`, shape (R,), says; at least once.

        Returns:
            the largest | ‖x‖ − 1 |.

        Raises:
            ValueError: a row is not finite.
        """
        error = 0.0
        for start in range(0, len(rows), PRODUCT_ROWS):
            block, times = rows[start : start + PRODUCT_ROWS], counts[start : start + PRODUCT_ROWS]
            if (found := self._add_once(block, scratch)) is None:
                error = max(error, self._add_in_float64(block, times))
                continue
            error = max(error, found)
            if len(more := np.flatnonzero(times > 1)):
                self._add_in_float64(block[more], times[more] - 1)
        return error

    def _add_once(self, rows: NDArray[np.float16], scratch: Scratch) -> float | None:
        """Add each row once; None, and nothing is added, where one cannot be split."""
        import torch

        if self._n + len(rows) > FLUSH_ROWS:
            self._flush()
        given, found = torch.from_numpy(rows), []
        for start in range(0, len(rows), CHUNK_ROWS):
            split = scratch.split(given[start : start + CHUNK_ROWS], start)
            if split is None:
                return None
            found.append(split)
        for part, sums in zip(scratch.parts, self._sums, strict=True):
            for number, (panel, product) in enumerate(zip(sums, scratch.product, strict=True)):
                right = part[: len(rows), number * PANEL :]
                panel += torch._int_mm(right[:, : len(panel)].T, right, out=product)
        clipped, excess = (np.concatenate(each) for each in list(zip(*found, strict=True))[2:])
        if len(excess):
            # (c + e)(c + e)ᵀ = ccᵀ + e(c + e/2)ᵀ + (c + e/2)eᵀ
            self._cross += csr_array(excess.T) @ (clipped + excess / 2)
        self._total += sum(split.total for split in found)
        self._n += len(rows)
        return max(split.error for split in found)

    def _add_in_float64(self, rows: NDArray[np.float16], counts: NDArray[np.int64]) -> float:
        """Add rows as often as they count, whatever numbers they are made of."""
        import torch

        check_embeddings(rows)
        exact = torch.from_numpy(rows).double()
        weighted = exact * torch.from_numpy(counts)[:, None]
        outer, total = weighted.T @ exact, weighted.sum(dim=0)
        self._flushed += Moments(int(counts.sum()), total.numpy(), outer.numpy())
        return float((torch.linalg.vector_norm(exact, dim=1) - 1).abs().max())

    def _flush(self) -> None:
        """Move what was added up so far from 32 bits to float64, which is as exact."""
        hh, ll, ss = map(self._square, self._sums)
        outer = 2.0**14 * hh + 2.0**7 * (ss - hh - ll) + ll + self._cross + self._cross.T
        self._flushed += Moments(self._n, self._total / SCALE, outer / SCALE**2)
        self._total, self._n = np.zeros_like(self._total), 0
        self._cross[...] = 0
        for sums in self._sums:
            for panel in sums:
                panel.zero_()

    def _square(self, panels: "list[torch.Tensor]") -> FloatArray:
        dimension = len(self._total)
        square = np.zeros((dimension, dimension))
        for at, panel in zip(range(0, dimension, PANEL), panels, strict=True):
            square[at : at + len(panel), at:] = panel.numpy()
            square[at:, at : at + len(panel)] = panel.numpy().T
        return square

    def moments(self) -> Moments:
        """Of all rows that were added."""
        self._flush()
        return self._flushed
