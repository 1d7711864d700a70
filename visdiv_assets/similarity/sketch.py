"""Short vectors whose products are never less than the similarities of the rows they stand for.

Here: the projection, its margin of rounding, and how long it should be. Not here: the search.

With x = x_d + x_rest, x_d the part along d orthonormal directions, Cauchy-Schwarz gives

    x·y ≤ x_d·y_d + ‖x_rest‖ ‖y_rest‖

so the d coordinates with ‖x_rest‖ after them have a product that bounds the similarity from
above: what stays below a threshold can be left out, and nothing is lost. The bound is close
where the d directions hold most of the rows' second moment, hence the principal ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from visdiv_assets.similarity.units import Units

LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
COMPARED = 2048  # rows of a sample compared with each other for each length

# Nanoseconds of one thread (AVX-512, 2.6 GHz): to write and scan one number of a product, for each
# dimension of it, and for one full product of two rows fetched on their own. Only ratios matter.
SCAN, DIMENSION, CANDIDATE = 0.8, 0.0163, 700.0


@dataclass(frozen=True, eq=False)
class Sketch:
    """A map of unit rows to vectors of d + 1 numbers, or the rows as they are.

    Attributes:
        basis: d orthonormal directions, shape (D, d), float64; None: rows as they are.
        cost: nanoseconds of one thread that comparing two rows takes, as estimated.
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
        # A norm, not 1: a row of zeros has no rest. Rounded up: the bound must hold in float32.
        whole = np.square(np.nan_to_num(units.norms))
        rest = np.sqrt(np.maximum(whole - np.square(along).sum(axis=1), 0))
        vectors[:, -1] = np.nextafter(rest.astype(np.float32), np.float32(np.inf))
        return vectors


def margin(length: int) -> np.float32:
    """How far a float32 product of unit vectors may be below the similarity in exact numbers.

    n·2⁻²⁴ for a sum of n products in any order; 4e-6 for the roundings of the vectors
    themselves and for lengths that are 1 only up to the grid.
    """
    return np.float32(length * 2.0**-24 * 1.01 + 4e-6)


def choose_sketch(
    left: Units,
    right: Units | None,
    threshold: float,
    *,
    scanned: float = 1.0,
    candidate: float = CANDIDATE,
) -> Sketch:
    """The sketch that makes a search at this threshold cheapest, judged by a sample of the rows.

    Args:
        left: sample of the first set.
        right: sample of the second; None: pairs inside one set.
        threshold: cosine similarity that pairs must reach.
        scanned: share of all pairs whose bound is looked at: less than 1 with an index.
        candidate: nanoseconds to judge a pair whose bound reaches the threshold.
    """
    dimension = left.rows.shape[1]
    lengths: list[int | None] = [each for each in LENGTHS if each < dimension]
    with threadpool_limits(1, user_api="blas"):  # no last bit may depend on the number of threads
        both = left.rows if right is None else np.concatenate([left.rows, right.rows])
        points = both.astype(np.float64)
        basis = np.linalg.eigh(points.T @ points)[1][:, ::-1]
        few = [each[:: len(each) // COMPARED + 1] for each in (left, right or left)]
        judged = []
        for length in [*lengths, None]:
            chosen = None if length is None else np.ascontiguousarray(basis[:, :length])
            first, second = (Sketch(chosen).of(each) for each in few)
            bounds = first @ second.T
            passing = int(np.count_nonzero(bounds >= threshold))
            if right is None:
                passing -= len(bounds)  # each row with itself
            cost = scanned * (SCAN + DIMENSION * first.shape[1])
            cost += candidate * max(passing, 0) / bounds.size
            judged.append(Sketch(chosen, cost))
    return min(judged, key=lambda each: each.cost)
