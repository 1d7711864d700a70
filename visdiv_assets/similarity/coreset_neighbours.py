"""Nearest neighbours by direction, the basis of facility location and trimming.

Here: exact nearest neighbours of a limited number of rows. Not here: pairs above a threshold, or
an index of all rows.

Directions are rounded to multiples of 2⁻¹¹. Products of two such numbers are multiples of 2⁻²²,
which float32 sums to a cosine without rounding. So similarities are identical for any number of
threads and any size of blocks, ties are exact, and the rounded cosine differs from the exact one by
about 2e-4 (D = 512).
"""

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.coreset_rows import Rows, unit
from visdiv_assets.spectral.moments import FloatArray

GRID = np.float32(2.0**11)

# If there are more rows, a sample of this many represents them; 16,384 × 512 × 4 = 32 MiB.
SAMPLE_ROWS = 16_384

# How isolated a row is follows from its similarity to its fifth nearest neighbour in a sample.
RANK = 5
ISOLATION_SAMPLE_ROWS = 4096

_FIRST_PART, _PART = 64, 1024

SimilarityArray = NDArray[np.float32]
Found = tuple[NDArray[np.int64], NDArray[np.int64], SimilarityArray]
"""Arrays of query numbers, positions of neighbours, and cosine similarities."""


def directions(block: FloatArray) -> SimilarityArray:
    """The rows scaled to unit length and rounded to the grid, float32."""
    return (np.rint(unit(block) * GRID) / GRID).astype(np.float32)


def sample_of(n: int, size: int) -> NDArray[np.int64]:
    """Positions of a fixed random sample, ascending; all positions if there are few."""
    if n <= size:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, size, replace=False))


def nearest(rows: Rows, queries: NDArray[np.int64], m: int) -> Found:
    """The m rows most similar to each query, except itself; ties go to the lowest position.

    Args:
        rows: N rows, read once.
        queries: positions, shape (Q,).
        m: number of neighbours per query; fewer if there are not enough rows.

    Returns:
        query numbers, positions of neighbours and cosine similarities, sorted by query and then by
        similarity.
    """
    wanted = np.concatenate([directions(rows.take(part)) for part in _parts(queries)])
    # A new neighbour must be closer than the m-th one so far.
    floor = np.full(len(queries), -np.inf, dtype=np.float32)
    waiting: list[Found] = []
    start, size, new = 0, _FIRST_PART, 0
    while start < len(rows):
        stop = min(start + size, len(rows))
        cosines = directions(rows.block(start, stop)) @ wanted.T
        own = np.flatnonzero((queries >= start) & (queries < stop))
        cosines[queries[own] - start, own] = -np.inf
        hits = np.flatnonzero(cosines > floor)
        row, number = np.divmod(hits, len(queries))
        waiting.append((number, row + start, cosines.ravel()[hits]))
        new += len(hits)
        if new >= len(queries) * m or size < _PART or stop == len(rows):
            query, at, cosine = _closest(waiting, m)
            waiting, new = [(query, at, cosine)], 0
            full = np.bincount(query, minlength=len(queries)) >= m
            last = np.flatnonzero(np.r_[query[1:] != query[:-1], True]) if len(query) else query
            floor[query[last]] = np.where(full[query[last]], cosine[last], -np.inf)
        # The first parts are small, since all of their rows may be among the nearest.
        start, size = stop, min(2 * size, _PART)
    return waiting[0]


def _parts(positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [positions[start : start + _PART] for start in range(0, len(positions), _PART)]


def _closest(found: list[Found], m: int) -> Found:
    """The first m neighbours of each query, sorted by query, similarity and position.

    In the input, positions of equally similar neighbours ascend from one part to the next.
    """
    query = np.concatenate([each[0] for each in found])
    at = np.concatenate([each[1] for each in found])
    cosine = np.concatenate([each[2] for each in found])
    # On the grid, a cosine is an integer multiple of 2⁻²², so cosine and query fit in one key.
    less = 2**23 - np.rint(cosine.astype(np.float64) * 2**22).astype(np.int64)
    order = np.argsort((query << 24) | less, kind="stable")
    query, at, cosine = query[order], at[order], cosine[order]
    begins = np.flatnonzero(np.r_[True, query[1:] != query[:-1]]) if len(query) else query
    rank = np.arange(len(query)) - np.repeat(begins, np.diff(np.r_[begins, len(query)]))
    return query[rank < m], at[rank < m], cosine[rank < m]


def closeness(rows: Rows) -> SimilarityArray:
    """Each row's similarity to its fifth nearest neighbour in a sample of 4,096 rows, shape (N,).

    The lower it is, the more isolated is the row. Smaller sets are their own sample.

    References:
        Ramaswamy, Rastogi & Shim, "Efficient algorithms for mining outliers from large data
        sets", SIGMOD 2000.
    """
    sample = sample_of(len(rows), ISOLATION_SAMPLE_ROWS)
    reference = np.concatenate([directions(rows.take(part)) for part in _parts(sample)])
    rank = min(RANK, len(sample) - 1)
    closest = np.ones(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _PART):
        stop = min(start + _PART, len(rows))
        cosines = directions(rows.block(start, stop)) @ reference.T
        own = np.flatnonzero((sample >= start) & (sample < stop))
        cosines[sample[own] - start, own] = -np.inf
        each = np.arange(stop - start)
        for _ in range(rank):
            best = cosines.argmax(axis=1)
            closest[start:stop] = cosines[each, best]
            cosines[each, best] = -np.inf
    return closest
