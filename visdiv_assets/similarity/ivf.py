"""Approximate search: most pairs at a threshold, for sets too large for exact search.

Here: FAISS's inverted lists over sketches, the number of lists to search, and the recall. Not here:
the bound (`sketch.py`), exact search (`exact.py`).

Similar rows have similar sketches, since the map shortens distances. So a row is compared only with
the rows of its nearest lists. A pair is missed only if its list is not searched, never because of
the sketch, whose product is an upper bound. Candidates are checked as in exact search, so every
pair returned is correct.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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
from visdiv_assets.similarity.levels import Labels, Levels, Needed, lowest_open
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
# Rows from which a component is searched for on its own, without what it is joined with.
LARGE = 1024


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
    joined: Levels | None = None,
    on_progress: OnProgress | None = None,
) -> Generator[tuple[Pairs, Similarities]]:
    """Pairs, block by block, identical for any number of threads.

    Args:
        rows: shape (N, D).
        others: shape (M, D); None means pairs i < j of rows.
        threshold: lowest similarity of a pair.
        sketch: the sketch of rows that is indexed.
        recall: collects the measured recall, shard by shard.
        joined: leave out pairs that are joined in here; pairs inside `rows` only. The recall is
            that of the others.
        on_progress: called with (done, total) rows searched.
    """
    second = rows if others is None else others
    known = known_pairs(rows, others, threshold, sketch, joined)
    thresholds, labels = [threshold], np.empty((0, len(rows)), np.int32)
    if joined is not None:
        thresholds, labels = list(joined.thresholds), joined.of(slice(None))
    groups = _groups(len(rows), labels)
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
                for group, level in groups:
                    asked = group[: np.searchsorted(group, last)]
                    if not len(asked):
                        continue
                    due = _searches(int(asked[0]), level, labels, thresholds, begin, end)
                    for top in range(0, len(asked), batch):
                        if len(running) >= threads + 2:
                            yield running.popleft().result()
                        part = asked[top : top + batch]
                        job = partial(_search, index, probes, rows, second, begin, sketch)
                        running.append(pool.submit(job, part, due, others is None, joined))
                        done += len(part)
                        if on_progress is not None:
                            on_progress(done, total)
                while running:
                    yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


Searches = list[tuple[NDArray[np.uint8] | None, np.float32]]
"""Rows of a shard, as a bitmap, and from which similarity they are searched; None means all."""


def _groups(count: int, labels: Labels) -> list[tuple[NDArray[np.int64], int]]:
    """Rows that are searched for together, and the strictest level at which they are joined.

    Large components at the strictest level that has one, then all other rows, which are joined at
    none: −1.
    """
    left = np.ones(count, dtype=np.bool_)
    groups = []
    for level in reversed(range(len(labels))):
        sizes = np.bincount(labels[level][left], minlength=1)
        for component in np.flatnonzero(sizes >= LARGE):
            rows = np.flatnonzero(left & (labels[level] == component))
            groups.append((rows, level))
            left[rows] = False
    return [*groups, (np.flatnonzero(left), -1)]


def _searches(
    row: int, level: int, labels: Labels, thresholds: Sequence[np.float32], begin: int, end: int
) -> Searches:
    """What is searched for a row that is joined up to a level: what joins it to any other."""
    if level < 0:
        return [(None, thresholds[0])]
    searches: Searches = []
    around = np.ones(end - begin, dtype=np.bool_)
    inner = [each[begin:end] == each[row] for each in labels[: level + 1]]
    for within, threshold in zip([*inner, np.zeros_like(around)], thresholds, strict=False):
        wanted = around & ~within
        if wanted.any():
            searches.append((np.packbits(wanted, bitorder="little"), threshold))
        around = within
    return searches


def known_pairs(
    rows: Rows,
    others: Rows | None,
    threshold: np.float32,
    sketch: Sketch,
    joined: Levels | None = None,
) -> Known:
    """All pairs of random rows, as many rows as it takes to find some thousand pairs."""
    order = np.random.default_rng(0).permutation(len(rows))[:MOST_ASKED].astype(np.int64)
    query, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    asked, count = 0, 0
    while asked < len(order) and count < KNOWN_PAIRS:
        more = order[asked : max(4 * asked, FIRST_ASKED)]
        second = rows if others is None else others
        needed = None if joined is None else partial(_needed, joined, more)
        with closing(exact_pairs(rows[more], second, threshold, sketch, needed=needed)) as blocks:
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


def _needed(joined: Levels, numbers: NDArray[np.int64], own: slice, other: slice) -> Needed:
    return joined.needed(numbers[own], other)


def _search(
    index: faiss.IndexIVFFlat,
    probes: int,
    rows: Rows,
    second: Rows,
    begin: int,
    sketch: Sketch,
    numbers: NDArray[np.int64],
    searches: Searches,
    inside: bool,
    joined: Levels | None,
) -> tuple[Pairs, Similarities]:
    """Pairs of some rows with the rows of a shard."""
    asked = units(rows[numbers])
    vectors = sketch.of(asked)
    slack = margin(vectors.shape[1])
    row, other = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for bitmap, least in searches:
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = probes
        later = faiss.IDSelectorRange(max(0, int(numbers[0]) + 1 - begin), index.ntotal)
        if bitmap is not None:
            wanted = faiss.IDSelectorBitmap(bitmap)  # type: ignore[call-arg, arg-type]
            both = faiss.IDSelectorAnd(later, wanted)
            parameters.sel = both
        elif inside:
            parameters.sel = later
        limits, _, labels = index.range_search(vectors, float(least - slack), params=parameters)
        row.append(np.repeat(np.arange(len(vectors)), np.diff(limits).astype(np.int64)))
        other.append(labels + begin)
    i, j = np.concatenate(row), np.concatenate(other)
    if inside:
        i, j = i[numbers[i] < j], j[numbers[i] < j]
    if joined is None:
        open_at = np.full(len(i), searches[0][1])
    else:
        open_at = lowest_open(joined.thresholds, joined.of(numbers[i]), joined.of(j))
        of_use = np.isfinite(open_at)
        i, j, open_at = i[of_use], j[of_use], open_at[of_use]
    pairs, similar = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for at in range(0, len(i), FETCHED):
        part = slice(at, at + FETCHED)
        fetched, position = np.unique(j[part], return_inverse=True)
        candidates: Units = units(second[fetched])
        left, right, values = judged(asked, candidates, i[part], position, open_at[part])
        pairs.append(np.stack([numbers[left], fetched[right]], axis=1))
        similar.append(values)
    return np.concatenate(pairs), np.concatenate(similar)
