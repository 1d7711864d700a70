"""Sketches: short vectors whose products are upper bounds of the similarities of rows.

Here: the projection, its rounding margin, and the choice of its length. Not here: the search.

With x = x_d + x_rest, where x_d is the part along d orthonormal directions, Cauchy-Schwarz gives

    x·y ≤ x_d·y_d + ‖x_rest‖ ‖y_rest‖

so the product of the d coordinates followed by ‖x_rest‖ is an upper bound of the similarity. Pairs
whose bound is below the threshold can be skipped without loss. The bound is tight if the d
directions contain most of the rows' second moment, so they are the principal ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from visdiv_assets.similarity.levels import Needed
from visdiv_assets.similarity.units import Units

LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
COMPARED = 2048  # rows of a sample that are compared with each other for each length

# Nanoseconds of one thread (AVX-512, 2.6 GHz) to write and scan one number of a product, for each
# dimension of it, and for the full product of two rows fetched one by one. Only ratios matter.
SCAN, DIMENSION, CANDIDATE = 0.8, 0.0163, 700.0


@dataclass(frozen=True, eq=False)
class Sketch:
    """A map from unit rows to vectors of d + 1 numbers, or to the rows themselves.

    Attributes:
        basis: d orthonormal directions, shape (D, d), float64; None means the rows themselves.
        cost: estimated nanoseconds of one thread to compare two rows.
    """

    basis: NDArray[np.float64] | None = None
    cost: float = 0.0

    def of(self, units: Units) -> NDArray[np.float32]:
        """The vectors, shape (n, d + 1) or (n, D), float32."""
        if self.basis is None:
            return units.rows
        vectors = np.empty((len(units), self.basis.shape[1] + 1), dtype=np.float32)
        along = units.rows.astype(np.float64) @ self.basis
        vectors[:, :-1] = along
        # Norms instead of 1, since a row of zeros has no rest. Rounded up, so that the bound also
        # holds in float32.
        whole = np.square(np.nan_to_num(units.norms))
        rest = np.sqrt(np.maximum(whole - np.square(along).sum(axis=1), 0))
        vectors[:, -1] = np.nextafter(rest.astype(np.float32), np.float32(np.inf))
        return vectors


def margin(length: int) -> np.float32:
    """How far a float32 product of unit vectors may be below the exact similarity.

    It is n·2⁻²⁴ for a sum of n products in any order, and 4e-6 for rounding the vectors themselves
    and for lengths that are 1 only up to the grid.
    """
    return np.float32(length * 2.0**-24 * 1.01 + 4e-6)


def choose_sketch(
    left: Units,
    right: Units | None,
    threshold: float,
    *,
    needed: Needed | None = None,
    scanned: float = 1.0,
    candidate: float = CANDIDATE,
) -> Sketch:
    """The sketch with the cheapest search at this threshold, according to a sample of the rows.

    Args:
        left: sample of the first set.
        right: sample of the second set; None means pairs within one set.
        threshold: cosine similarity that pairs must reach.
        needed: what pairs must reach where it depends on their rows.
        scanned: share of all pairs whose bound is computed; less than 1 with an index.
        candidate: nanoseconds to check a pair whose bound reaches the threshold.
    """
    dimension = left.rows.shape[1]
    lengths: list[int | None] = [each for each in LENGTHS if each < dimension]
    with threadpool_limits(
        1, user_api="blas"
    ):  # last bits must not depend on the number of threads
        both = left.rows if right is None else np.concatenate([left.rows, right.rows])
        points = both.astype(np.float64)
        basis = np.linalg.eigh(points.T @ points)[1][:, ::-1]
        few = [each[:: len(each) // COMPARED + 1] for each in (left, right or left)]
        enough = np.full((len(few[0]), len(few[1])), threshold, dtype=np.float32)
        if needed is not None:
            step = slice(None, None, len(left) // COMPARED + 1)
            enough[...] = needed.of(np.arange(len(left))[step, None], step)
        if right is None:
            np.fill_diagonal(enough, np.inf)
        judged = []
        for length in [*lengths, None]:
            chosen = None if length is None else np.ascontiguousarray(basis[:, :length])
            first, second = (Sketch(chosen).of(each) for each in few)
            bounds = first @ second.T
            passing = int(np.count_nonzero(bounds >= enough))
            cost = scanned * (SCAN + DIMENSION * first.shape[1])
            cost += candidate * passing / bounds.size
            judged.append(Sketch(chosen, cost))
    return min(judged, key=lambda each: each.cost)
