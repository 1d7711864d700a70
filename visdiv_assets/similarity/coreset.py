"""Core-sets: the k rows that represent all others best.

Here: selection methods on a matrix of embeddings. Not here: reading the store, exporting lists.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import check_embeddings

# Rows compared at a time: small enough for a processor's cache.
BLOCK_ROWS = 512


def select_diverse_samples(embeddings: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Greedy k-centre: the most central row, then again and again the row farthest from all chosen.

    At most twice the optimal covering radius. Deterministic on any number of threads: of equal
    candidates the lowest index. Computed in float32, or in float64 where the input needs it.

    Args:
        embeddings: shape (N, D), any real dtype.
        k: how many rows to choose, 1 ≤ k ≤ N.

    Returns:
        k distinct row indices in the order of choice, int64.

    Raises:
        ValueError: `embeddings` is not a finite real matrix, or k is not between 1 and N.

    References:
        Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
        Sener & Savarese, "Active learning for convolutional neural networks: a core-set
        approach", ICLR 2018.

    Example:
        >>> import numpy as np
        >>> select_diverse_samples(np.array([[0.0], [1.0], [2.0], [9.0]]), k=3).tolist()
        [2, 3, 0]
    """
    rows = np.asarray(embeddings)
    check_embeddings(rows)
    count = len(rows)
    if not 1 <= k <= count:
        raise ValueError(f"k must be between 1 and the number of embeddings, {count}; got {k}")
    points = rows.astype(np.result_type(rows.dtype, np.float32), copy=False)
    mean = points.mean(axis=0, dtype=np.float64).astype(points.dtype)
    chosen = np.empty(k, dtype=np.int64)
    chosen[0] = np.argmin(_squared_distances(points, mean))
    distance = np.full(count, np.inf, dtype=points.dtype)
    for step in range(1, k):
        newest = chosen[step - 1]
        np.minimum(distance, _squared_distances(points, points[newest]), out=distance)
        distance[newest] = -np.inf  # below every distance: not to be chosen again
        chosen[step] = np.argmax(distance)
    return chosen


def _squared_distances(points: NDArray[Any], centre: NDArray[Any]) -> NDArray[Any]:
    """‖x − centre‖² of each row x, by differences: exact for equal points, unlike x·x − 2x·c + c·c.

    No BLAS, whose last bits depend on the number of threads.
    """
    squares = np.empty(len(points), dtype=points.dtype)
    for start in range(0, len(points), BLOCK_ROWS):
        block = points[start : start + BLOCK_ROWS] - centre
        np.einsum("ij,ij->i", block, block, out=squares[start : start + BLOCK_ROWS])
    return squares
