"""Connected components at several thresholds at once, and which pairs can still change them.

Here: joining pairs as they are found, and the similarity from which another pair is of use.
Not here: components of one graph (`clusters.py`), finding pairs (`exact.py`, `ivf.py`).

Components at a stricter level lie within those at the others. So a pair is of use only if it
reaches the lowest level at which its ends are not joined. Among near-identical rows hardly any pair
is, and most need not even be extracted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.clusters import Components
from visdiv_assets.similarity.units import Rows, similarities_of_all, units

Labels = NDArray[np.int32]
"""The component of each row at each level, shape (levels, rows)."""

Part = slice | NDArray[np.int64]
"""Some rows."""

# Every row is first compared with some random rows. Whoever has many neighbours shares one of these
# with most of them: N rows with P of them leave at most N²/(2eP) pairs of cliques to be extracted.
MOST_PIVOTS, ROWS_PER_PIVOT, BLOCK_ROWS = 256, 64, 4096


class Levels:
    """Connected components of rows at each of several thresholds.

    Args:
        count: number of rows.
        thresholds: cosine similarities, in any order; some may be equal.

    Attributes:
        thresholds: in ascending order, float32.
        graphs: the components at each of them.

    Example:
        >>> import numpy as np
        >>> levels = Levels(3, [0.9, 0.75])
        >>> levels.join(np.array([[0, 1], [1, 2]]), np.array([0.8, 0.95], np.float32))
        >>> [graph.labels().tolist() for graph in levels.graphs]
        [[0, 0, 0], [0, 1, 1]]
    """

    def __init__(self, count: int, thresholds: Iterable[float]) -> None:
        self.thresholds = np.sort(np.array([*thresholds], dtype=np.float32))
        self.graphs = [Components(count) for _ in self.thresholds]

    def join(self, pairs: NDArray[np.int64], similarities: NDArray[np.float32]) -> None:
        """Add pairs of rows, shape (P, 2), and their similarities."""
        for threshold, graph in zip(self.thresholds, self.graphs, strict=True):
            graph.join(pairs[similarities >= threshold])

    def of(self, rows: Part) -> Labels:
        """The components of some rows as far as they are joined; equal ones stay equal."""
        return np.stack([graph.joined[rows] for graph in self.graphs])

    def needed(self, left: Part, right: Part) -> "Needed":
        """What pairs of some rows with others must reach to join anything."""
        return Needed(self.thresholds, self.of(left), self.of(right))

    def join_with_pivots(self, rows: Rows) -> None:
        """Join rows with a few random ones that are similar; takes time linear in their number."""
        count = len(rows)
        size = min(MOST_PIVOTS, count // ROWS_PER_PIVOT)
        if not size:
            return
        pivots = np.sort(np.random.default_rng(0).permutation(count)[:size])
        centres = units(rows[pivots])
        for first in range(0, count, BLOCK_ROWS):
            similar = similarities_of_all(units(rows[first : first + BLOCK_ROWS], first), centres)
            for threshold, graph in zip(self.thresholds, self.graphs, strict=True):
                # One pair for all pivots of a component.
                order = np.argsort(graph.joined[pivots], kind="stable")
                joined = graph.joined[pivots[order]]
                starts = np.flatnonzero(np.r_[True, joined[1:] != joined[:-1]])
                best = np.maximum.reduceat(similar[:, order], starts, axis=1)
                row, at = np.nonzero(best >= threshold)
                graph.join(np.stack([row + first, pivots[order[starts]][at]], axis=1))
        for graph in self.graphs:
            graph.merge()


@dataclass(frozen=True, eq=False)
class Needed:
    """The similarity that pairs of rows on the left and on the right must have to be of use.

    Attributes:
        thresholds: in ascending order, float32.
        left: labels of the rows on the left; None if every pair is of use from the first threshold.
        right: labels of the rows on the right.
    """

    thresholds: NDArray[np.float32]
    left: Labels | None = None
    right: Labels | None = None

    @property
    def least(self) -> np.float32:
        """The lowest for any pair; infinity if all rows are joined at each level."""
        if self.left is None or self.right is None:
            return np.float32(self.thresholds[0])
        uniform = [(each == each[:, :1]).all(axis=1) for each in (self.left, self.right)]
        other = np.where(uniform[0] & uniform[1], self.right[:, 0], -1)
        return np.float32(lowest_open(self.thresholds, self.left[:, 0], other))

    def of(self, i: Any, j: Any) -> Any:
        """The least for rows i on the left and j on the right, broadcast; float32."""
        if self.left is None or self.right is None:
            return self.thresholds[0]
        return lowest_open(self.thresholds, self.left[:, i], self.right[:, j])


def lowest_open(
    thresholds: NDArray[np.float32], left: NDArray[np.integer], right: NDArray[np.integer]
) -> NDArray[np.float32]:
    """The lowest threshold at which two rows are not joined; infinity if there is none.

    Args:
        thresholds: in ascending order, shape (K,).
        left: labels of rows, shape (K, …).
        right: labels of rows, broadcast with those on the left.

    Example:
        >>> import numpy as np
        >>> lowest_open(np.float32([0.5, 0.75]), np.array([[0, 0], [0, 1]]), np.array([[0], [1]]))
        array([0.75,  inf], dtype=float32)
    """
    lowest = np.full(np.broadcast_shapes(left[0].shape, right[0].shape), np.inf, dtype=np.float32)
    for threshold, mine, other in zip(thresholds[::-1], left[::-1], right[::-1], strict=True):
        lowest = np.where(mine != other, threshold, lowest)
    return lowest
