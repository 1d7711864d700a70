"""Near-duplicates: all pairs of rows whose cosine similarity reaches a threshold.

Here: the public functions that find pairs and neighbours, and the choice of a search method.
Not here: clusters of pairs, images, files.
"""

import logging
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.exact import (
    BLOCK,
    OnProgress,
    Pairs,
    Processor,
    Similarities,
    blas_threads,
    exact_pairs,
)
from visdiv_assets.similarity.levels import Levels
from visdiv_assets.similarity.sketch import Sketch, choose_sketch
from visdiv_assets.similarity.units import (
    Rows,
    Units,
    check_rows,
    evenly,
    similarities_of_all,
    units,
)

logger = logging.getLogger(__name__)

OnPairs = Callable[[Pairs, Similarities], None]
Method = Literal["auto", "exact", "index"]

# Largest number of pairs to collect: 400 MB. `on_pairs` has no such limit.
MAX_PAIRS = 20_000_000
# Rows for choosing a sketch, and the number of pairs from which that is worthwhile.
SAMPLE_ROWS, SKETCH_FROM_PAIRS = 8192, 10**8
# Seconds that an exact search may take before an index is considered.
PATIENCE = 900.0
# For estimating the cost of an index: nanoseconds to fetch a row from the store, normalise and
# multiply it; share of all pairs that are in the searched lists.
INDEX_CANDIDATE, INDEX_SCANNED = 4000.0, 0.02


@dataclass(frozen=True, eq=False)
class SimilarPairs:
    """The pairs that were found, and the recall.

    Attributes:
        pairs: shape (P, 2), int64, sorted. Within one set i < j; between two sets (row, other).
            Empty if they went to `on_pairs`.
        similarities: cosine similarity of each pair, shape (P,), float32.
        count: number of pairs found; P unless they went to `on_pairs`.
        method: the method used, "exact" or "index".
        recall: share of all pairs that were found. 1 if exact; with an index, measured on random
            rows, and NaN if these have no pairs.
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

    Exact, and bit-identical for any number of threads; see `similar_pairs`.

    Args:
        embeddings: shape (N, D), any real dtype; rows need not have unit length.
        threshold: 0 to 1. For SSCD embeddings of photographs, 0.75 finds copies with 90 %
            precision.

    Returns:
        pairs (i, j) with i < j, sorted, shape (P, 2), int64; their similarities, shape (P,),
        float32.

    Raises:
        ValueError: `embeddings` is not a finite real matrix or has no rows; `threshold` is not
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
    strongest: bool = False,
    method: Method = "auto",
    device: str = "cpu",
    on_pairs: OnPairs | None = None,
    on_progress: OnProgress | None = None,
) -> SimilarPairs:
    """All pairs of rows, or of a row and one of `others`, whose similarity reaches a threshold.

    A row of zeros is similar to nothing, not even to another row of zeros.

    Args:
        rows: shape (N, D), any real dtype, read in parts.
        threshold: 0 to 1.
        others: shape (M, D); find pairs (row, other) instead of pairs of rows.
        strongest: with `others`, where there are many pairs, leave out those that are not needed to
            know the most similar other of each row (the first of equal ones), and the most
            similar row of each other.
        method: "exact"; "index" (FAISS, from the extra `faiss`; recall is measured); or "auto":
            exact, unless that takes over 15 minutes and FAISS is installed and much faster.
        device: where products are computed: "cpu", or a PyTorch device such as "cuda".
        on_pairs: called with (pairs, similarities), block by block, in the calling thread, each
            pair once, in no particular order. Nothing is collected then, so memory stays bounded
            for any number of pairs.
        on_progress: called with (done, total) pairs compared or, with an index, rows searched.

    Raises:
        ValueError: a matrix is not finite and real or has no rows, or their dimensions differ; the
            threshold is not between 0 and 1; the method is unknown, or "index" without FAISS; there
            are more than 20 million pairs and no `on_pairs`.
    """
    _check_threshold(threshold)
    _check_method(method)
    _check_sets(rows, others)
    used, blocks, recall = _search(
        rows,
        others,
        threshold,
        method,
        device,
        strongest=strongest and others is not None,
        on_progress=on_progress,
    )
    kept: list[tuple[Pairs, Similarities]] = []
    count = 0
    with closing(blocks):  # stops threads and resets BLAS even if `on_pairs` raises
        for pairs, similarities in blocks:
            count += len(pairs)
            if on_pairs is not None:
                on_pairs(pairs, similarities)
                continue
            kept.append((pairs, similarities))
            if count > MAX_PAIRS:
                raise ValueError(
                    f"more than {MAX_PAIRS:,} pairs reach the threshold {threshold}; raise it"
                )
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(each for each, _ in kept)])
    similarities = np.concatenate([np.empty(0, np.float32), *(each for _, each in kept)])
    order = np.lexsort(pairs.T[::-1])
    return SimilarPairs(pairs[order], similarities[order], count, used, recall())


@dataclass(frozen=True, eq=False)
class SimilarComponents:
    """Connected components of similar rows.

    Attributes:
        labels: for each threshold, the component of each row, shape (N,), int64, numbered in order
            of their first rows.
        pairs: number of pairs that were looked at; of near-identical rows, few are.
        method: the method used, "exact" or "index".
        recall: as of `SimilarPairs`.
    """

    labels: Mapping[float, NDArray[np.int64]]
    pairs: int
    method: Literal["exact", "index"]
    recall: float


def similar_components(
    rows: Rows,
    thresholds: Collection[float],
    *,
    method: Method = "auto",
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> SimilarComponents:
    """Rows that are connected by pairs whose similarity reaches a threshold, at each of several.

    The same components as those of all pairs, but pairs whose ends are already connected are left
    out. So near-identical rows take hardly longer than different ones.

    Args:
        rows: shape (N, D), any real dtype, read in parts.
        thresholds: at least one, 0 to 1, in any order.
        method: as for `similar_pairs`.
        device: as for `similar_pairs`.
        on_progress: as for `similar_pairs`.

    Raises:
        ValueError: as `similar_pairs`.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [4.0, 3.0], [8.0, 6.0]])
        >>> found = similar_components(rows, [0.95, 0.75])
        >>> {level: labels.tolist() for level, labels in found.labels.items()}
        {0.75: [0, 1, 0, 0], 0.95: [0, 1, 2, 2]}
    """
    ordered = sorted(set(thresholds))
    for threshold in ordered:
        _check_threshold(threshold)
    _check_method(method)
    _check_sets(rows, None)
    levels = Levels(len(rows), ordered)
    levels.join_with_pivots(rows)
    used, blocks, recall = _search(
        rows, None, ordered[0], method, device, joined=levels, on_progress=on_progress
    )
    count = 0
    with closing(blocks):
        for pairs, similarities in blocks:
            count += len(pairs)
            levels.join(pairs, similarities)
    labels = {each: graph.labels() for each, graph in zip(ordered, levels.graphs, strict=True)}
    return SimilarComponents(labels, count, used, recall())


def _search(
    rows: Rows,
    others: Rows | None,
    threshold: float,
    method: Method,
    device: str,
    *,
    joined: Levels | None = None,
    strongest: bool = False,
    on_progress: OnProgress | None,
) -> tuple[Literal["exact", "index"], Generator[tuple[Pairs, Similarities]], Callable[[], float]]:
    """The method used, pairs block by block, and the recall once all of them are there."""
    least = np.float32(threshold)
    used, sketch = _plan(rows, others, threshold, method, device, joined)
    if used == "index":
        from visdiv_assets.similarity import ivf

        recall = ivf.Recall()
        blocks = ivf.index_pairs(
            rows, others, least, sketch, recall, joined=joined, on_progress=on_progress
        )
        return used, blocks, lambda: recall.value
    processor = None if device == "cpu" else _torch_processor(device)
    blocks = exact_pairs(
        rows,
        others,
        least,
        sketch,
        needed=None if joined is None else joined.needed,
        strongest=strongest,
        processor=processor,
        on_progress=on_progress,
    )
    return used, blocks, lambda: 1.0


def nearest(rows: Rows, queries: NDArray[Any], k: int) -> tuple[Pairs, Similarities]:
    """The k rows most similar to each query, most similar first; ties go to the lowest index.

    Args:
        rows: shape (N, D), any real dtype, read in parts.
        queries: shape (Q, D).
        k: 1 ≤ k ≤ N.

    Returns:
        indices, shape (Q, k), int64; similarities, shape (Q, k), float32.

    Raises:
        ValueError: a matrix is not finite and real or has no rows, or their dimensions differ; k
            is not between 1 and N.
    """
    _check_sets(queries, rows)
    if not 1 <= k <= len(rows):
        raise ValueError(f"k must be between 1 and the number of rows, {len(rows)}; got {k}")
    asked = units(np.asarray(queries))
    best = np.empty((len(queries), 0), dtype=np.int64)
    closeness = np.empty((len(queries), 0), dtype=np.float32)
    for start in range(0, len(rows), BLOCK):
        table = similarities_of_all(asked, units(rows[start : start + BLOCK], start))
        numbers = np.broadcast_to(np.arange(start, start + table.shape[1]), table.shape)
        closeness = np.concatenate([closeness, table], axis=1)
        best = np.concatenate([best, numbers], axis=1)
        order = np.argsort(-closeness, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(best, order, axis=1)
        closeness = np.take_along_axis(closeness, order, axis=1)
    return best, closeness


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1; got {threshold}")


def _check_method(method: str) -> None:
    if method not in ("auto", "exact", "index"):
        raise ValueError(f'method must be "auto", "exact" or "index"; got {method!r}')


def _check_sets(rows: Rows, others: Rows | None) -> None:
    check_rows(rows)
    if others is not None:
        check_rows(others)
        if rows.shape[1] != others.shape[1]:
            raise ValueError(f"dimensions differ: {rows.shape[1]} and {others.shape[1]}")


def _plan(
    rows: Rows,
    others: Rows | None,
    threshold: float,
    method: Method,
    device: str,
    joined: Levels | None = None,
) -> tuple[Literal["exact", "index"], Sketch]:
    """The method and its sketch: as requested, else exact unless an index is much faster."""
    compared = len(rows) * (len(rows) / 2 if others is None else len(others))
    if device != "cpu":
        if method == "index":
            raise ValueError(
                'the method "index" runs only on the CPU; change the device or the method'
            )
        return "exact", Sketch()
    installed = find_spec("faiss") is not None
    if method == "index" and not installed:
        raise ValueError("the method \"index\" needs FAISS; run pip install 'visdiv_assets[faiss]'")
    if method != "index" and compared < SKETCH_FROM_PAIRS:
        return "exact", Sketch()
    left, right = _sample(rows), None if others is None else _sample(others)
    needed = None
    if joined is not None:
        sampled = evenly(len(rows), SAMPLE_ROWS)
        needed = joined.needed(sampled, sampled)
    if method != "index":
        exact = choose_sketch(left, right, threshold, needed=needed)
        seconds = exact.cost * compared * 1e-9 / blas_threads()
        if method == "exact" or seconds < PATIENCE:
            return "exact", exact
        if not installed:
            logger.warning(
                "comparing all pairs will take about %.0f minutes; FAISS may be faster: "
                "pip install 'visdiv_assets[faiss]'",
                seconds / 60,
            )
            return "exact", exact
    index = choose_sketch(
        left,
        right,
        threshold,
        needed=needed,
        scanned=INDEX_SCANNED,
        candidate=INDEX_CANDIDATE,
    )
    if method != "index" and 2 * index.cost > exact.cost:
        return "exact", exact
    return "index", index


def _torch_processor(device: str) -> Processor:
    from visdiv_assets.similarity.pairs_torch import TorchProcessor

    return TorchProcessor(device)


def _sample(rows: Rows) -> Units:
    numbers = evenly(len(rows), SAMPLE_ROWS)
    parts = [units(rows[numbers[at : at + BLOCK]]) for at in range(0, len(numbers), BLOCK)]
    return Units(
        np.concatenate([each.rows for each in parts]),
        np.concatenate([each.norms for each in parts]),
    )
