"""Near-duplicates: all pairs of rows whose cosine similarity reaches a threshold.

Here: what a similarity is, to the last bit, and the functions that find pairs and neighbours.
Not here: clusters of pairs, images, files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import check_embeddings

Pairs = NDArray[np.int64]
Similarities = NDArray[np.float32]
OnPairs = Callable[[Pairs, Similarities], None]
OnProgress = Callable[[int, int], None]
Method = Literal["auto", "exact", "index"]

# More pairs than this are not collected: 400 MB. `on_pairs` takes any number.
MAX_PAIRS = 20_000_000
BLOCK_ROWS = 1024


class Rows(Protocol):
    """An (N, D) matrix that is read in parts: an array, or `embedding.rows.DatasetRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __len__(self) -> int: ...

    def __getitem__(self, wanted: Any, /) -> NDArray[Any]:
        """The rows of a slice, or of an array of row numbers."""


@dataclass(frozen=True, eq=False)
class SimilarPairs:
    """All pairs that were found, and how far they are all there are.

    Attributes:
        pairs: shape (P, 2), int64, sorted. In one set i < j; between two, (row, other). Empty
            where they went to `on_pairs`.
        similarities: cosine similarity of each pair, shape (P,), float32.
        count: how many pairs were found, P unless they went to `on_pairs`.
        method: "exact" or "index", as used.
        recall: share of all such pairs that were found: 1 where exact, measured where not.
    """

    pairs: Pairs
    similarities: Similarities
    count: int
    method: Literal["exact", "index"]
    recall: float


def find_near_duplicates(
    embeddings: NDArray[Any], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All pairs of rows with a cosine similarity of at least `threshold`.

    Exact, and the same to the last bit on any number of threads: see `similar_pairs`.

    Args:
        embeddings: shape (N, D), any real dtype; rows need not have unit length.
        threshold: 0 to 1. Of SSCD's embeddings, 0.75 means a copy with 90 % precision.

    Returns:
        pairs (i, j) with i < j, sorted, shape (P, 2), int64; their similarities, shape (P,),
        float32.

    Raises:
        ValueError: `embeddings` is not a finite real matrix, or has no row; `threshold` is not
            between 0 and 1; more than 20 million pairs reach it.

    References:
        Pizzi et al., "A self-supervised descriptor for image copy detection", CVPR 2022.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [4.0, 3.0], [8.0, 6.0]])
        >>> pairs, similarities = find_near_duplicates(rows, 0.75)
        >>> pairs.tolist(), similarities.tolist()
        ([[0, 2], [0, 3], [2, 3]], [0.800000011920929, 0.800000011920929, 1.0])
    """
    found = similar_pairs(np.asarray(embeddings), threshold, method="exact")
    return found.pairs, found.similarities


def similar_pairs(
    rows: Rows,
    threshold: float,
    *,
    others: Rows | None = None,
    method: Method = "auto",
    device: str = "cpu",
    on_pairs: OnPairs | None = None,
    on_progress: OnProgress | None = None,
) -> SimilarPairs:
    """All pairs of rows, or of a row and one of `others`, whose similarity reaches a threshold.

    A row of zeros is similar to nothing, not even to its like.

    Args:
        rows: shape (N, D), any real dtype, read in parts.
        threshold: 0 to 1.
        others: shape (M, D): look for pairs (row, other) instead of pairs of rows.
        method: "exact", "index" (FAISS; recall is measured), or the cheaper of both.
        device: where products are computed: "cpu", or a device of PyTorch's such as "cuda".
        on_pairs: given (pairs, similarities), block by block, in the calling thread, each pair
            once, in no stated order; nothing is collected then, so that memory stays bounded
            however many pairs there are.
        on_progress: told (done, total) in pairs of rows compared.

    Raises:
        ValueError: a matrix is not finite and real, or has no row, or they differ in dimension;
            threshold not between 0 and 1; method unknown; more than 20 million pairs, and no
            `on_pairs`.
    """
    _check_threshold(threshold)
    if method not in ("auto", "exact", "index"):
        raise ValueError(f'method must be "auto", "exact" or "index"; got {method!r}')
    left = _unit(rows)
    right = left if others is None else _unit(others)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"dimensions differ: {left.shape[1]} and {right.shape[1]}")
    kept_pairs, kept_similarities, count = [], [], 0
    total = len(left) * (len(left) - 1) // 2 if others is None else len(left) * len(right)
    done = 0
    for begin in range(0, len(left), BLOCK_ROWS):
        for start in range(begin if others is None else 0, len(right), BLOCK_ROWS):
            block = (left[begin : begin + BLOCK_ROWS] @ right[start : start + BLOCK_ROWS].T).astype(
                np.float32
            )
            hits = block >= np.float32(threshold)
            if others is None and begin == start:
                hits = np.triu(hits, 1)
                done += len(block) * (len(block) - 1) // 2
            else:
                done += block.size
            i, j = np.nonzero(hits)
            if len(i):
                pairs, similarities = np.stack([i + begin, j + start], axis=1), block[i, j]
                count += len(pairs)
                if on_pairs is not None:
                    on_pairs(pairs, similarities)
                else:
                    kept_pairs.append(pairs)
                    kept_similarities.append(similarities)
                    if count > MAX_PAIRS:
                        raise ValueError(
                            f"more than {MAX_PAIRS:,} pairs reach {threshold}: raise the threshold"
                        )
            if on_progress is not None:
                on_progress(done, total)
    pairs = np.concatenate([np.empty((0, 2), np.int64), *kept_pairs])
    similarities = np.concatenate([np.empty(0, np.float32), *kept_similarities])
    order = np.lexsort(pairs.T[::-1])
    return SimilarPairs(pairs[order], similarities[order], count, "exact", 1.0)


def nearest(rows: Rows, queries: NDArray[Any], k: int) -> tuple[Pairs, Similarities]:
    """The k rows most similar to each query, most similar first; of equal ones the lowest index.

    Args:
        rows: shape (N, D), any real dtype, read in parts.
        queries: shape (Q, D).
        k: 1 ≤ k ≤ N.

    Returns:
        indices, shape (Q, k), int64; similarities, shape (Q, k), float32.

    Raises:
        ValueError: a matrix is not finite and real, or has no row, or they differ in dimension; k
            is not between 1 and N.
    """
    left, right = _unit(queries), _unit(rows)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"dimensions differ: {left.shape[1]} and {right.shape[1]}")
    if not 1 <= k <= len(right):
        raise ValueError(f"k must be between 1 and the number of rows, {len(right)}; got {k}")
    similarities = (left @ right.T).astype(np.float32)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarities, order, axis=1)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1; got {threshold}")


def _unit(rows: Rows) -> NDArray[np.float64]:
    array = np.asarray(rows[:])
    check_embeddings(array)
    if not len(array):
        raise ValueError("there are no embeddings")
    points = array.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", points, points))[:, None]
    unit: NDArray[np.float64] = np.divide(points, norms, out=np.zeros_like(points), where=norms > 0)
    return unit
