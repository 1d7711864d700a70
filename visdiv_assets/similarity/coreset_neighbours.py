"""The most similar rows of rows, by direction: what facility location and trimming are made from.

Here: exact nearest neighbours of a limited number of rows. Not here: pairs above a threshold, or
an index of all rows.

Directions are rounded to multiples of 2⁻¹¹. Products of two such numbers are multiples of 2⁻²²,
and float32 adds those up to a cosine without any rounding. So similarities are the same for any
number of threads and any size of blocks, equal ones are equal, and differ from the exact cosine by
some 2e-4 (D = 512).
"""

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.coreset_rows import Rows, unit
from visdiv_assets.spectral.moments import FloatArray

GRID = np.float32(2.0**11)

# Rows that stand for all others where there are more than so many; 16,384 × 512 × 4 = 32 MiB.
SAMPLE_ROWS = 16_384

# A row is as isolated as its similarity to the fifth nearest of a sample says.
RANK = 5
ISOLATION_SAMPLE_ROWS = 4096

_FIRST_PART, _PART = 64, 1024

SimilarityArray = NDArray[np.float32]
Found = tuple[NDArray[np.int64], NDArray[np.int64], SimilarityArray]
"""Number of a query, position of a neighbour, cosine; an array each."""


def directions(block: FloatArray) -> SimilarityArray:
    """Rows of unit length on the grid, float32."""
    return (np.rint(unit(block) * GRID) / GRID).astype(np.float32)


def sample_of(n: int, size: int) -> NDArray[np.int64]:
    """Positions of a random sample, ascending, the same every time; all where they are few."""
    if n <= size:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, size, replace=False))


def nearest(rows: Rows, queries: NDArray[np.int64], m: int) -> Found:
    """The m rows most similar to each of some rows, itself left out; the lowest of equal ones.

    Args:
        rows: N of them, read once.
        queries: positions, shape (Q,).
        m: how many; fewer where there are fewer.

    Returns:
        number of the query, position of the neighbour, cosine, by query and then by similarity.
    """
    wanted = np.concatenate([directions(rows.take(part)) for part in _parts(queries)])
    # A neighbour must be closer than the m-th of those before.
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
        # The first parts are small, since every row in them may be among the nearest.
        start, size = stop, min(2 * size, _PART)
    return waiting[0]


def _parts(positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [positions[start : start + _PART] for start in range(0, len(positions), _PART)]


def _closest(found: list[Found], m: int) -> Found:
    """Sorted by query, similarity and position, and only the first m of each query.

    Positions ascend among those of a query that are equal, from one part to the next.
    """
    query = np.concatenate([each[0] for each in found])
    at = np.concatenate([each[1] for each in found])
    cosine = np.concatenate([each[2] for each in found])
    # On the grid, a cosine is a whole number of 2⁻²²; with the query it is one key.
    less = 2**23 - np.rint(cosine.astype(np.float64) * 2**22).astype(np.int64)
    order = np.argsort((query << 24) | less, kind="stable")
    query, at, cosine = query[order], at[order], cosine[order]
    begins = np.flatnonzero(np.r_[True, query[1:] != query[:-1]]) if len(query) else query
    rank = np.arange(len(query)) - np.repeat(begins, np.diff(np.r_[begins, len(query)]))
    return query[rank < m], at[rank < m], cosine[rank < m]


def closeness(rows: Rows) -> SimilarityArray:
    """Each row's similarity to the fifth nearest of a sample of 4,096 rows, shape (N,).

    The lower, the more isolated. Sets that are smaller than the sample are their own sample.

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
