"""Approximate search: most pairs at a threshold, for sets too large for exact search.

Here: FAISS's inverted lists over sketches, the number of lists to search, and the recall. Not here:
the bound (`sketch.py`), exact search (`exact.py`).

Similar rows have similar sketches, since the map shortens distances. So a row is compared only with
the rows of its nearest lists. A pair is missed only if its list is not searched, never because of
the sketch, whose product is an upper bound. Candidates are checked as in exact search, so every
pair returned is correct.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from visdiv_assets.similarity.exact import (
    BLOCK,
    FETCHED,
    OnProgress,
    Pairs,
    Similarities,
    blas_threads,
    exact_pairs,
    judged,
)
from visdiv_assets.similarity.sketch import Sketch, margin
from visdiv_assets.similarity.units import Rows, Units, evenly, units

A = TypeVar("A")
B = TypeVar("B")

# An index holds up to SHARD numbers (1 GiB); larger sets are searched shard by shard.
SHARD = 2**28
LISTS_PER_ROOT, ROWS_PER_LIST, ITERATIONS = 2, 32, 8
# Enough lists are searched for a recall of AIM on one half of the known pairs, and of LEAST on the
# other half, which also measures the recall.
AIM, LEAST = 0.995, 0.99
KNOWN_PAIRS, MOST_KNOWN, FIRST_ASKED, MOST_ASKED = 4000, 2**22, 512, 32768
# Rows per search, and the largest number of candidates that a search may return.
BATCH, BATCH_CANDIDATES = 256, 2**22


@dataclass(frozen=True, eq=False)
class Known:
    """All pairs of some rows, found by comparing them with all others.

    Attributes:
        asked: numbers of the query rows, shape (Q,).
        query: for each pair, which query it belongs to, shape (P,).
        found: for each pair, the number of the other row, shape (P,).
        busiest: the largest number of pairs of one query.
    """

    asked: NDArray[np.int64]
    query: NDArray[np.int64]
    found: NDArray[np.int64]
    busiest: int


@dataclass
class Recall:
    """Counts how many of the known pairs were found, over all shards."""

    known: int = 0
    found: int = 0

    @property
    def value(self) -> float:
        """The share that was found; NaN if no pair is known."""
        return self.found / self.known if self.known else float("nan")


def index_pairs(
    rows: Rows,
    others: Rows | None,
    threshold: np.float32,
    sketch: Sketch,
    recall: Recall,
    *,
    on_progress: OnProgress | None = None,
) -> Generator[tuple[Pairs, Similarities]]:
    """Pairs, block by block, identical for any number of threads.

    Args:
        rows: shape (N, D).
        others: shape (M, D); None means pairs i < j of rows.
        threshold: lowest similarity of a pair.
        sketch: the sketch of rows that is indexed.
        recall: collects the measured recall, shard by shard.
        on_progress: called with (done, total) rows searched.
    """
    second = rows if others is None else others
    known = known_pairs(rows, others, threshold, sketch)
    length = rows.shape[1] if sketch.basis is None else sketch.basis.shape[1] + 1
    shard_rows = SHARD // length
    shards = [
        (begin, min(begin + shard_rows, len(second))) for begin in range(0, len(second), shard_rows)
    ]
    total = sum(len(rows) if others is not None else end for _, end in shards)
    done = 0
    threads = blas_threads()
    batch = int(np.clip(BATCH_CANDIDATES // (1 + known.busiest), 1, BATCH))
    alone = partial(faiss.omp_set_num_threads, 1)
    with (
        threadpool_limits(1, user_api="blas"),
        threadpool_limits(1, user_api="openmp"),
        ThreadPoolExecutor(threads, initializer=alone) as pool,
    ):
        running: deque[Future[tuple[Pairs, Similarities]]] = deque()
        try:
            for begin, end in shards:
                index = _build(second, begin, end, sketch, pool)
                probes = _probes(index, rows, second, begin, end, sketch, known, recall)
                last = end if others is None else len(rows)
                for top in range(0, last, batch):
                    if len(running) >= threads + 2:
                        yield running.popleft().result()
                    numbers = (top, min(top + batch, last))
                    job = partial(_search, index, probes, rows, second, begin, sketch, threshold)
                    running.append(pool.submit(job, numbers, others is None))
                    done += numbers[1] - numbers[0]
                    if on_progress is not None:
                        on_progress(done, total)
                while running:
                    yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def known_pairs(rows: Rows, others: Rows | None, threshold: np.float32, sketch: Sketch) -> Known:
    """All pairs of random rows, as many rows as it takes to find some thousand pairs."""
    order = np.random.default_rng(0).permutation(len(rows))[:MOST_ASKED].astype(np.int64)
    query, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    asked, count = 0, 0
    while asked < len(order) and count < KNOWN_PAIRS:
        more = order[asked : max(4 * asked, FIRST_ASKED)]
        second = rows if others is None else others
        with closing(exact_pairs(rows[more], second, threshold, sketch)) as blocks:
            for pairs, _ in blocks:
                i, j = pairs.T
                if others is None:
                    i, j = i[more[i] != j], j[more[i] != j]
                query.append(i + asked)
                found.append(j)
                count += len(i)
                if count > MOST_KNOWN:  # nearly everything is similar, and this is enough
                    break
        asked += len(more)
    of_query = np.concatenate(query)
    busiest = int(np.bincount(of_query, minlength=1).max())
    enough = evenly(count, 2 * KNOWN_PAIRS)
    return Known(order[:asked], of_query[enough], np.concatenate(found)[enough], busiest)


def _build(
    rows: Rows, begin: int, end: int, sketch: Sketch, pool: ThreadPoolExecutor
) -> faiss.IndexIVFFlat:
    """Inverted lists of the rows of a shard, trained on evenly spaced rows."""
    count = end - begin
    lists = max(1, min(int(LISTS_PER_ROOT * count**0.5), count // ROWS_PER_LIST))
    training = begin + evenly(count, lists * ROWS_PER_LIST)
    vectors = np.concatenate(
        [sketch.of(units(rows[training[at : at + BLOCK]])) for at in range(0, len(training), BLOCK)]
    )
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.niter = True, ITERATIONS
    index.cp.min_points_per_centroid = 1
    pool.submit(index.train, vectors).result()

    def assigned(start: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        made = sketch.of(units(rows[start : min(start + BLOCK, end)], start))
        return made, quantizer.search(made, 1)[1][:, 0]

    for made, nearest in _ahead(pool, assigned, range(begin, end, BLOCK)):
        numbers = np.arange(index.ntotal, index.ntotal + len(made))
        pointers = [faiss.swig_ptr(each) for each in (made, numbers, nearest)]
        index.add_core(len(made), *pointers)
    return index


def _ahead(pool: ThreadPoolExecutor, act: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Results in order, a few computed ahead."""
    running: deque[Future[B]] = deque()
    for item in items:
        running.append(pool.submit(act, item))
        if len(running) > 8:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _probes(
    index: faiss.IndexIVFFlat,
    rows: Rows,
    second: Rows,
    begin: int,
    end: int,
    sketch: Sketch,
    known: Known,
    recall: Recall,
) -> int:
    """The number of lists to search so that known pairs are found, and the measured recall."""
    here = (known.found >= begin) & (known.found < end)
    query, found = known.query[here], known.found[here]
    if not len(query):
        return min(64, index.nlist)
    rank = np.empty(len(query), dtype=np.int64)
    for at in range(0, len(query), FETCHED):
        part = slice(at, at + FETCHED)
        lists = index.quantizer.search(sketch.of(units(second[found[part]])), 1)[1]
        asked = sketch.of(units(rows[known.asked[query[part]]]))
        order = index.quantizer.search(asked, index.nlist)[1]
        rank[part] = np.argmax(order == lists, axis=1)
    aimed = query % 2 == 0
    chosen = rank[aimed] if aimed.any() else rank
    measured = rank[~aimed] if (~aimed).any() else rank
    probes = max(_reaching(chosen, AIM), _reaching(measured, LEAST))
    recall.known += len(measured)
    recall.found += int(np.count_nonzero(measured < probes))
    return probes


def _reaching(rank: NDArray[np.int64], share: float) -> int:
    """The number of nearest lists that contain a share of the partners."""
    return int(np.sort(rank)[int(np.ceil(share * len(rank))) - 1]) + 1


def _search(
    index: faiss.IndexIVFFlat,
    probes: int,
    rows: Rows,
    second: Rows,
    begin: int,
    sketch: Sketch,
    threshold: np.float32,
    numbers: tuple[int, int],
    inside: bool,
) -> tuple[Pairs, Similarities]:
    """Pairs of some rows with the rows of a shard."""
    top, bottom = numbers
    asked = units(rows[top:bottom], top)
    vectors = sketch.of(asked)
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = probes
    later = faiss.IDSelectorRange(max(0, top + 1 - begin), index.ntotal)
    if inside:
        parameters.sel = later
    floor = float(threshold - margin(vectors.shape[1]))
    limits, _, labels = index.range_search(vectors, floor, params=parameters)
    i = np.repeat(np.arange(len(vectors)), np.diff(limits).astype(np.int64))
    j = labels + begin
    if inside:
        i, j = i[i + top < j], j[i + top < j]
    pairs, similar = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for at in range(0, len(i), FETCHED):
        fetched, position = np.unique(j[at : at + FETCHED], return_inverse=True)
        candidates: Units = units(second[fetched])
        left, right, values = judged(asked, candidates, i[at : at + FETCHED], position, threshold)
        pairs.append(np.stack([left + top, fetched[right]], axis=1))
        similar.append(values)
    return np.concatenate(pairs), np.concatenate(similar)
