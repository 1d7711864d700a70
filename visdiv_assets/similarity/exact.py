"""Exact search: all pairs at a threshold, by comparing every row with every other in blocks.

Here: the blocks, their threads, and turning candidates into pairs. Not here: the bound
(`sketch.py`), exact similarities (`units.py`), the index (`ivf.py`).

Memory does not grow with the number of rows or pairs: only a panel of rows and a few blocks are
held.
"""

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from visdiv_assets.similarity.levels import Needed
from visdiv_assets.similarity.sketch import Sketch, margin
from visdiv_assets.similarity.units import (
    Rows,
    Units,
    similarities_of_all,
    similarities_of_pairs,
    units,
)

Pairs = NDArray[np.int64]
Similarities = NDArray[np.float32]
Positions = tuple[NDArray[np.integer], NDArray[np.integer]]
OnProgress = Callable[[int, int], None]

# A panel of PANEL numbers (256 MiB) stays in memory while all other rows stream by, BLOCK rows at a
# time. A task compares CHUNK rows of the panel with a block. A product is TILE × BLOCK (1 MiB,
# which fits into a core's own cache).
PANEL, CHUNK, BLOCK, TILE = 2**26, 4096, 1024, 256
# Candidates to fetch at a time, and the number per tile above which computing it all is cheaper.
FETCHED, DENSE = 1024, TILE * BLOCK // 32


class Processor(Protocol):
    """Computes products: this module's `Cpu`, or a GPU."""

    def put(self, vectors: NDArray[np.float32]) -> Any:
        """Move vectors to where products are computed."""

    def candidates(self, left: Any, right: Any, needed: Needed, slack: np.float32) -> Positions:
        """Positions (i, j), by i, where left · rightᵀ + `slack` exceeds what is needed."""


class Cpu:
    """Products by NumPy."""

    def put(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors themselves."""
        return vectors

    def candidates(
        self,
        left: NDArray[np.float32],
        right: NDArray[np.float32],
        needed: Needed,
        slack: np.float32,
    ) -> Positions:
        """Compute the product tile by tile, and scan each tile while it is in the cache."""
        floor = needed.least - slack
        product = np.empty((min(TILE, len(left)), len(right)), dtype=np.float32)
        above = np.empty(product.shape, dtype=bool)
        found = []
        for top in range(0, len(left), TILE):
            rows = left[top : top + TILE]
            here = slice(0, len(rows))
            np.matmul(rows, right.T, out=product[here])
            np.greater(product[here], floor, out=above[here])
            if needed.left is not None and np.count_nonzero(above[here]) > DENSE:
                own = np.arange(top, top + len(rows))[:, None]
                np.greater(product[here], needed.of(own, slice(None)) - slack, out=above[here])
            found.append(np.flatnonzero(above[here]) + top * len(right))
        positions = np.concatenate(found)
        return positions // len(right), positions % len(right)


def exact_pairs(
    rows: Rows,
    others: Rows | None,
    threshold: np.float32,
    sketch: Sketch,
    *,
    needed: Callable[[slice, slice], Needed] | None = None,
    strongest: bool = False,
    processor: Processor | None = None,
    on_progress: OnProgress | None = None,
) -> Generator[tuple[Pairs, Similarities]]:
    """All pairs, block by block, in an order that does not depend on the number of threads.

    Args:
        rows: shape (N, D).
        others: shape (M, D); None means pairs i < j of rows.
        threshold: lowest similarity of a pair.
        sketch: the sketch of rows that is compared first.
        needed: tells which pairs of some rows and some others are still of use; the threshold is
            the lowest for any.
        strongest: leave out pairs, where there are many, that are neither the most similar of
            their row nor of their other row in a block.
        processor: computes products.
        on_progress: called with (done, total) pairs compared.
    """
    processor = processor or Cpu()
    second = rows if others is None else others
    panel_rows = max(CHUNK, PANEL // rows.shape[1])
    total = len(rows) * (len(rows) - 1) // 2 if others is None else len(rows) * len(second)
    done = 0
    threads = blas_threads()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        running: deque[Future[tuple[Pairs, Similarities] | None]] = deque()
        try:
            for first in range(0, len(rows), panel_rows):
                panel = _units_in_blocks(rows, first, min(first + panel_rows, len(rows)))
                chunks = [panel[top : top + CHUNK] for top in range(0, len(panel), CHUNK)]
                placed = [processor.put(sketch.of(chunk)) for chunk in chunks]
                for start in range(first if others is None else 0, len(second), BLOCK):
                    block = units(second[start : start + BLOCK], start)
                    vectors = processor.put(sketch.of(block))
                    for number, (chunk, left) in enumerate(zip(chunks, placed, strict=True)):
                        top = first + number * CHUNK
                        if others is None and top >= start + len(block):
                            break  # below the diagonal
                        while len(running) >= threads + 2:
                            if (result := running.popleft().result()) is not None:
                                yield result
                        due = Needed(np.array([threshold]))
                        if needed is not None:
                            own = slice(top, top + len(chunk))
                            due = needed(own, slice(start, start + len(block)))
                        if np.isinf(due.least):
                            continue  # no pair of these is of use
                        running.append(
                            pool.submit(
                                _compare,
                                (chunk, left, top),
                                (block, vectors, start),
                                due,
                                processor,
                                others is None,
                                strongest,
                            )
                        )
                    if on_progress is not None:
                        done += _compared(first, len(panel), start, len(block), others)
                        on_progress(done, total)
            while running:
                if (result := running.popleft().result()) is not None:
                    yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _compared(first: int, height: int, start: int, width: int, others: Rows | None) -> int:
    """Number of pairs of a panel and a block; within one set, only those above the diagonal."""
    if others is not None or start >= first + height:
        return height * width
    return sum(range(start - first, start - first + width))


def _compare(
    left: tuple[Units, Any, int],
    right: tuple[Units, Any, int],
    needed: Needed,
    processor: Processor,
    inside: bool,
    strongest: bool,
) -> tuple[Pairs, Similarities] | None:
    """Pairs of a chunk and a block; None if there are none."""
    chunk, chunk_vectors, top = left
    block, block_vectors, start = right
    i, j = processor.candidates(
        chunk_vectors, block_vectors, needed, margin(block_vectors.shape[1])
    )
    if inside and start < top + len(chunk):
        above = i + top < j + start
        i, j = i[above], j[above]
    if not len(i):
        return None
    found = []
    edges = np.searchsorted(i, np.arange(0, len(chunk) + TILE, TILE))
    sparse = np.ones(len(i), dtype=bool)
    for tile in np.flatnonzero(np.diff(edges) > DENSE):
        here = slice(edges[tile], edges[tile + 1])
        sparse[here] = False
        table = similarities_of_all(chunk[tile * TILE : (tile + 1) * TILE], block)
        if strongest:
            row, column = _strongest(table)
        else:
            row, column = i[here] - tile * TILE, j[here]
        similar = table[row, column]
        enough = similar >= needed.of(row + tile * TILE, column)
        found.append((row[enough] + tile * TILE, column[enough], similar[enough]))
    i, j = i[sparse], j[sparse]
    for begin in range(0, len(i), FETCHED):
        part = i[begin : begin + FETCHED], j[begin : begin + FETCHED]
        found.append(judged(chunk, block, *part, needed.of(*part)))
    i, j, similar = (np.concatenate(each) for each in zip(*found, strict=True))
    if not len(i):
        return None
    return np.stack([i + top, j + start], axis=1).astype(np.int64), similar


def _strongest(table: Similarities) -> Positions:
    """Positions of the greatest of each row and of each column, the first of equal ones."""
    np.nan_to_num(table, copy=False, nan=-np.inf)
    rows, columns = np.arange(len(table)), np.arange(table.shape[1])
    of_rows = rows * len(columns) + table.argmax(axis=1)
    of_columns = table.argmax(axis=0) * len(columns) + columns
    row, column = np.divmod(np.union1d(of_rows, of_columns), len(columns))
    return row, column


def judged(
    left: Units,
    right: Units,
    i: NDArray[np.integer],
    j: NDArray[np.integer],
    threshold: NDArray[np.float32],
) -> tuple[NDArray[np.integer], NDArray[np.integer], Similarities]:
    """The candidates that are pairs, checked by a float32 product, then by exact similarity."""
    open_at = np.broadcast_to(threshold, i.shape)
    products = np.einsum("ij,ij->i", left.rows[i], right.rows[j])
    close = products > open_at - margin(left.rows.shape[1])
    i, j, open_at = i[close], j[close], open_at[close]
    similar = similarities_of_pairs(left, right, i, j)
    enough = similar >= open_at
    return i[enough], j[enough], similar[enough]


def _units_in_blocks(rows: Rows, first: int, last: int) -> Units:
    """The unit rows of a panel, converted block by block to save memory in float64."""
    made = Units(np.empty((last - first, rows.shape[1]), dtype=np.float32), np.empty(last - first))
    for begin in range(first, last, BLOCK):
        here = slice(begin - first, begin - first + BLOCK)
        block = units(rows[begin : min(begin + BLOCK, last)], begin)
        made.rows[here], made.norms[here] = block.rows, block.norms
    return made


def blas_threads() -> int:
    """The number of threads that BLAS would use, as set by OMP_NUM_THREADS or threadpoolctl."""
    found = [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]
    return min(found) if found else os.cpu_count() or 1
