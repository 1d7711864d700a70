"""Clusters of near-duplicates: which rows belong together, how far apart they are, which to keep.

Here: connected components, how chains are divided, medoids, diameters, the order in which to keep
images. Not here: finding pairs (`pairs.py`), images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from visdiv_assets.similarity.units import Rows, Units, similarities_of_all, units
from visdiv_assets.spectral.sampling import members_of, numbered

Members = NDArray[np.int64]
Similarities = NDArray[np.float32]

# Edges to collect before joining components: 16 MB.
WAITING_EDGES = 2**20

# Up to this many members, the diameter of a cluster is computed from all pairs.
EXACT_MEMBERS = 1024
SWEEPS = 8

BLOCK_ROWS = 8192
BLOCK_CENTRES = 256


class Components:
    """Connected components of a graph whose edges arrive in blocks.

    Takes memory for one number per node and about a million edges, however many edges there are.

    Args:
        count: number of nodes.

    Attributes:
        joined: a number of each node, shape (count,); equal for nodes of one component as far as
            edges were merged, which waits for many of them.

    Example:
        >>> import numpy as np
        >>> graph = Components(5)
        >>> graph.join(np.array([[0, 3], [1, 2]]))
        >>> graph.join(np.array([[3, 4]]))
        >>> graph.labels().tolist(), graph.count
        ([0, 1, 1, 0, 0], 2)
    """

    def __init__(self, count: int) -> None:
        self.joined: NDArray[np.int32] = np.arange(count, dtype=np.int32)
        self._count = count
        self._waiting: list[NDArray[np.int32]] = []
        self._n_waiting = 0

    def join(self, edges: NDArray[np.int64]) -> None:
        """Add edges, node numbers of shape (E, 2); those within one component are dropped."""
        ends = self.joined[edges]
        ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(ends):
            return
        self._waiting.append(ends)
        self._n_waiting += len(ends)
        if self._n_waiting >= WAITING_EDGES:
            self.merge()

    @property
    def count(self) -> int:
        """Number of components, including single nodes."""
        self.merge()
        return self._count

    def labels(self) -> NDArray[np.int64]:
        """The component of each node, shape (count,), numbered in order of their first nodes."""
        self.merge()
        return numbered(self.joined)

    def merge(self) -> None:
        """Take all edges so far into account."""
        if not self._n_waiting:
            return
        left, right = np.concatenate(self._waiting).T
        edges = (np.ones(len(left), dtype=np.int8), (left, right))
        graph = coo_array(edges, shape=(self._count, self._count))
        self._count, merged = connected_components(graph, directed=False)
        self.joined = merged[self.joined].astype(np.int32)
        self._waiting, self._n_waiting = [], 0


class Extent(NamedTuple):
    """Medoid and diameter of a cluster.

    Attributes:
        medoid: position, among the members, of the one with the greatest mean similarity to all.
        to_medoid: similarity of each member to the medoid, shape (m,), float32.
        smallest: the smallest similarity of two members, that is, the cluster's diameter. If it is
            far below the threshold, the cluster is a chain.
    """

    medoid: int
    to_medoid: Similarities
    smallest: float


def extent_of(rows: Rows, members: Members) -> Extent:
    """Medoid and diameter of a cluster.

    The medoid is exact: the mean similarity to all members is the similarity to their mean. The
    diameter is exact for up to 1,024 members. For more, it is estimated by walking from the medoid
    to the member least similar to it, from there to the one least similar to that, and so on, up
    to 8 times. Two members are that far apart, but others may be slightly farther.

    Args:
        rows: shape (N, D), rows of any non-zero length.
        members: row numbers, shape (m,), m ≥ 1.

    Example:
        >>> import numpy as np
        >>> angles = np.radians([0, 30, 60])
        >>> chain = np.column_stack([np.cos(angles), np.sin(angles)])
        >>> extent = extent_of(chain, np.arange(3))
        >>> extent.medoid, round(extent.smallest, 3)
        (1, 0.5)
    """
    if len(members) == 1:
        return Extent(0, np.ones(1, dtype=np.float32), 1.0)
    if len(members) <= EXACT_MEMBERS:
        points = units(rows[members])
        pairwise = similarities_of_all(points, points)
        medoid = int(np.argmax(pairwise.mean(axis=1, dtype=np.float64)))
        return Extent(medoid, pairwise[medoid], float(pairwise.min()))
    total = sum(_unit_rows(rows[block]).sum(axis=0) for block in _blocks(members))
    to_mean = np.concatenate([_unit_rows(rows[block]) @ total for block in _blocks(members)])
    medoid = int(np.argmax(np.round(to_mean / len(members), 9)))  # for any number of threads
    to_medoid = similarities_to(rows, members, members[medoid])
    farthest, smallest = int(np.argmin(to_medoid)), float(to_medoid.min())
    for _ in range(SWEEPS):
        across = similarities_to(rows, members, members[farthest])
        if across.min() >= smallest:
            break
        farthest, smallest = int(np.argmin(across)), float(across.min())
    return Extent(medoid, to_medoid, smallest)


def similarities_to(rows: Rows, members: Members, row: int | np.integer[Any]) -> Similarities:
    """Cosine similarity of each member to one row, shape (m,), float32; read in blocks.

    Args:
        rows: shape (N, D).
        members: row numbers, shape (m,).
        row: a row number.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[4.0, 3.0], [0.0, 2.0], [1.0, 0.0]])
        >>> similarities_to(rows, np.array([1, 2]), 0).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    point = units(rows[np.array([row])])
    parts = [similarities_of_all(units(rows[block]), point)[:, 0] for block in _blocks(members)]
    return np.concatenate(parts)


def cover(rows: Rows, members: Members, threshold: float) -> list[Members]:
    """Split a cluster so that each member's similarity to its group's first is ≥ `threshold`.

    Greedy: the first member without a group starts one, and takes all remaining members that are
    similar enough to it. So each member is similar enough to one that is preferred to it, and no
    two first members are that similar to each other.

    Args:
        rows: shape (N, D).
        members: row numbers, shape (m,), preferred ones first.
        threshold: cosine similarity.

    Returns:
        the groups, each in the order of `members`, starting with its first member.

    References:
        Hochbaum & Shmoys, "A best possible heuristic for the k-center problem", 1985.

    Example:
        >>> import numpy as np
        >>> angles = np.radians([0, 30, 60])
        >>> chain = np.column_stack([np.cos(angles), np.sin(angles)])
        >>> [group.tolist() for group in cover(chain, np.arange(3), threshold=0.8)]
        [[0, 1], [2]]
    """
    groups: list[Members] = []
    left = members
    while len(left):
        head = units(rows[left[:BLOCK_CENTRES]])
        near = similarities_of_all(head, head) >= np.float32(threshold)
        np.fill_diagonal(near, val=True)
        taken = np.zeros(len(head), dtype=np.bool_)
        centres = []
        for at in range(len(head)):
            if not taken[at]:
                centres.append(at)
                taken |= near[at]
        begun = Units(head.rows[centres], head.norms[centres])
        owner = np.empty(len(left), dtype=np.int64)
        for at, block in enumerate(_blocks(left)):
            similar = similarities_of_all(units(rows[block]), begun) >= np.float32(threshold)
            owner[at * BLOCK_ROWS : (at + 1) * BLOCK_ROWS] = np.where(
                similar.any(axis=1), similar.argmax(axis=1), len(centres)
            )
        owner[: len(head)] = near[centres].argmax(axis=0)  # also for zero rows, similar to nothing
        groups += [left[owner == number] for number in range(len(centres))]
        left = left[owner == len(centres)]
    return groups


def groups_of(
    rows: Rows,
    labels: NDArray[np.int64],
    rank: NDArray[np.int64],
    threshold: float,
    *,
    split: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Members]:
    """Rows of which one is enough, each group with the row to keep first.

    Memory is a few blocks of rows, whatever the sizes of components. Time grows with members
    times groups of a component, so it is long only for a long chain.

    Args:
        rows: shape (N, D).
        labels: the component of each row at the threshold, shape (N,), as `similar_components`
            finds it.
        rank: the place of each row in the order of preference, shape (N,).
        threshold: cosine similarity.
        split: divide components by `cover`, so that every row of a group is at least this similar
            to the row to keep. Otherwise a group is a component, and if that is a chain, most of it
            may resemble nothing that is kept.
        on_progress: told of components done, and of all.

    Example:
        >>> import numpy as np
        >>> angles = np.radians([0, 30, 60, 170])
        >>> rows = np.column_stack([np.cos(angles), np.sin(angles)])
        >>> labels, rank = np.array([0, 0, 0, 1]), np.array([2, 1, 0, 3])
        >>> [group.tolist() for group in groups_of(rows, labels, rank, threshold=0.8)]
        [[2, 1]]
        >>> [group.tolist() for group in groups_of(rows, labels, rank, 0.8, split=False)]
        [[2, 1, 0]]
    """
    components = [members[np.argsort(rank[members])] for members in members_of(labels)]
    if not split:
        return components
    groups = []
    for done, members in enumerate(components, start=1):
        # Two rows are connected by nothing but their similarity, so they need not be read.
        parts = cover(rows, members, threshold) if len(members) > 2 else [members]
        groups += [group for group in parts if len(group) > 1]
        if on_progress is not None:
            on_progress(done, len(components))
    return groups


def keep_order(pixels: NDArray[np.integer[Any]], sizes: NDArray[np.integer[Any]]) -> Members:
    """The order of preference in which to keep images.

    Images with more pixels come first. Ties go to the larger file, then to the first name.

    Args:
        pixels: width × height of each image, shape (N,), in the order of the images' names; 0 if
            unknown.
        sizes: encoded size in bytes, shape (N,).

    Returns:
        all positions from 0 to N − 1, the image to keep first.

    Example:
        >>> import numpy as np
        >>> keep_order(np.array([100, 400, 400]), np.array([90, 30, 50])).tolist()
        [2, 1, 0]
    """
    return np.lexsort((-np.asarray(sizes, np.int64), -np.asarray(pixels, np.int64)))


def _blocks(members: Members) -> list[Members]:
    return [members[at : at + BLOCK_ROWS] for at in range(0, len(members), BLOCK_ROWS)]


def _unit_rows(rows: NDArray[Any]) -> NDArray[np.float64]:
    points = units(rows)
    scaled: NDArray[np.float64] = points.rows / points.norms[:, None]
    return scaled
