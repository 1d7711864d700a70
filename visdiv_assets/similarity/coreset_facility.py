"""Facility location: the rows that represent all others best.

Here: lazy greedy selection on a sparse graph of neighbours. Not here: building the graph
(`coreset_neighbours.py`), validation (`coreset.py`).
"""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.coreset_neighbours import SAMPLE_ROWS, nearest, sample_of
from visdiv_assets.similarity.coreset_rows import OnProgress, Rows
from visdiv_assets.spectral.moments import FloatArray

NEIGHBOURS = 128

# Similarities are multiples of 2⁻²², and weights are rounded to multiples of 2⁻¹⁵ of the greatest
# one, so that float64 adds the gains of up to 65,536 rows without rounding.
SIMILARITY_GRID, WEIGHT_GRID = 2.0**22, 2.0**15


def by_facility_location(
    rows: Rows,
    k: int,
    first: Sequence[int] = (),
    weights: FloatArray | None = None,
    on_progress: OnProgress | None = None,
) -> NDArray[np.int64]:
    """Greedily maximise `f(S) = Σᵢ wᵢ max over j ∈ S of max(0, cos(i, j) − τ)`.

    The sum is over all rows, or over a random sample of 16,384 if there are more. A row is served
    by itself and by its 128 most similar rows, if they are more similar than τ, the mean
    similarity of the rows' 128th neighbours. All rows are candidates.

    Args:
        rows: N rows.
        k: number of rows to choose.
        first: positions that are chosen first.
        weights: wᵢ ≥ 0, shape (N,). None means 1 / Σⱼ max(0, cos(i, j) − τ), the inverse of the
            density around i, so that the covered space counts rather than the number of rows.
        on_progress: called with the progress.

    Returns:
        positions in the order of choice, shape (k,).
    """
    sample = sample_of(len(rows), max(SAMPLE_ROWS, 2 * k))
    number, server, cosine = nearest(rows, sample, NEIGHBOURS)
    own = np.arange(len(sample))
    last = np.flatnonzero(np.r_[number[1:] != number[:-1], True]) if len(number) else number
    floor = float(np.clip(cosine[last], 0.0, 1.0).sum(dtype=np.float64)) / max(len(last), 1)
    floor = np.rint(floor * SIMILARITY_GRID) / SIMILARITY_GRID
    demand, server = np.concatenate([own, number]), np.concatenate([sample, server])
    similarity = np.concatenate([np.ones(len(sample)), np.clip(cosine, 0.0, 1.0)])
    similarity = np.maximum(similarity - floor, 0.0)
    if weights is None:
        density = np.bincount(demand, similarity)
        weights = np.divide(1.0, density, out=np.ones(len(sample)), where=density > 0)
    else:
        weights = weights[sample]
    weights = np.rint(weights / (weights.max() or 1.0) * WEIGHT_GRID) / WEIGHT_GRID
    similarity *= weights[demand]
    return greedy_facilities(len(rows), demand, server, similarity, k, first, on_progress)


def greedy_facilities(
    n: int,
    demand: NDArray[np.int64],
    server: NDArray[np.int64],
    similarity: FloatArray,
    k: int,
    first: Sequence[int] = (),
    on_progress: OnProgress | None = None,
) -> NDArray[np.int64]:
    """Choose k of n servers, each time the one with the greatest gain; ties go to the lowest index.

    Gains only fall as others are chosen, so a gain is recomputed only if its old value is the
    greatest (Minoux 1978).

    Args:
        n: number of servers.
        demand: for each edge, the customer, ≥ 0.
        server: for each edge, the server.
        similarity: for each edge, how well the server serves the customer, ≥ 0.
        k: number of servers to choose.
        first: servers that are chosen first.
        on_progress: called with the progress.
    """
    order = np.argsort(server, kind="stable")
    demand, similarity = demand[order], similarity[order]
    begins = np.searchsorted(server[order], np.arange(n + 1))
    served = np.zeros(int(demand.max()) + 1)

    def edges(each: int) -> slice:
        return slice(begins[each], begins[each + 1])

    def adds(each: int) -> float:
        better = similarity[edges(each)] - served[demand[edges(each)]]
        return float(better[better > 0].sum())

    chosen: list[int] = []

    def choose(each: int) -> None:
        chosen.append(each)
        mine = demand[edges(each)]
        served[mine] = np.maximum(served[mine], similarity[edges(each)])
        if on_progress:
            on_progress(len(chosen), k)

    for each in first:
        choose(each)
    taken = set(first)
    upper = np.bincount(server[order], similarity, minlength=n)
    waiting = [(-gain, each, 0) for each, gain in enumerate(upper.tolist()) if each not in taken]
    heapq.heapify(waiting)
    while len(chosen) < k:
        gain, each, as_of = heapq.heappop(waiting)
        if as_of == len(chosen):
            choose(each)
        else:
            heapq.heappush(waiting, (-adds(each) if gain else 0.0, each, len(chosen)))
    return np.array(chosen, dtype=np.int64)
