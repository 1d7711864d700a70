"""Whether rows that are next to each other are more alike than others: a list in some order.

Here: which neighbours to look at, and the test. Not here: reading rows, names, messages.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import FloatArray, check_embeddings
from visdiv_assets.spectral.threads import one_blas_thread

# Pairs of neighbours to look at. Of more rows, runs are taken, spread over all of them: a run is
# read from one or two places of the disk, and pairs far from each other would be from a thousand.
PAIRS, RUNS = 1024, 32
RUN_ROWS = 2 * PAIRS // RUNS

# With fewer pairs, two near-copies that happen to be neighbours would decide.
LEAST_PAIRS = 10

# An order is told if no shuffle of so many has neighbours as alike, and if neighbours are a tenth
# of the way from as alike as others to identical. At a tenth, a hundred rows of a list whose
# groups have ten rows each are worth fifty drawn at random.
SHUFFLES, SIGNIFICANT = 1999, 0.001
LARGE = 0.1


@dataclass(frozen=True)
class Order:
    """How alike neighbours in a list are.

    Attributes:
        neighbours: mean cosine similarity of rows that are next to each other, in [-1, 1].
        by_chance: mean cosine similarity of rows that are not, in [-1, 1].
        p_value: probability that neighbours in a list without order are as alike, in (0, 1].
    """

    neighbours: float
    by_chance: float
    p_value: float

    @property
    def ordered(self) -> bool:
        """Whether the list has an order that matters, so that its beginning is no sample of it."""
        excess = self.neighbours - self.by_chance
        return self.p_value < SIGNIFICANT and excess >= LARGE * (1 - self.by_chance)


def adjacent(count: int) -> NDArray[np.int64]:
    """Which neighbours to look at: the first row of each pair, ascending; no row is in two pairs.

    Args:
        count: number of rows.

    Returns:
        at most PAIRS row numbers, shape (m,): all of 0, 2, 4, … if there are no more pairs, else
        runs of such, evenly spread from the first row to the last.

    Example:
        >>> adjacent(7).tolist()
        [0, 2, 4]
        >>> firsts = adjacent(1_000_000)
        >>> len(firsts), firsts[[0, 1, 31, 32, -1]].tolist()
        (1024, [0, 2, 62, 32256, 999998])
    """
    if count // 2 <= PAIRS:
        return 2 * np.arange(count // 2)
    runs = np.linspace(0, count - RUN_ROWS, RUNS).astype(np.int64)
    return (runs[:, None] + np.arange(0, RUN_ROWS, 2)).ravel()


def measure_order(left: NDArray[Any], right: NDArray[Any]) -> Order | None:
    """Compare the likeness of neighbours with that of the same rows, paired at random.

    If the order of rows is random, so is which row of `right` belongs to which of `left`. A
    permutation test therefore needs no assumption about the rows. The same shuffles are used every
    time.

    Args:
        left: the first row of each pair, shape (m, D), any real dtype, rows of any length.
        right: the row next to each, shape (m, D). No row may be in two pairs.

    Returns:
        None with fewer than LEAST_PAIRS pairs.

    Raises:
        ValueError: `left` or `right` is not a finite (m, D) matrix, or their shapes differ.

    References:
        Good, "Permutation, parametric and bootstrap tests of hypotheses", 2005.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).standard_normal((200, 16))
        >>> bool(measure_order(rows[0::2], rows[1::2]).ordered)
        False
        >>> album = rows + 2 * np.repeat(rows[:20], 10, axis=0)  # ten of each subject, in a row
        >>> measure_order(album[0::2], album[1::2]).ordered
        True
    """
    check_embeddings(left)
    check_embeddings(right, dimension=left.shape[1])
    if len(left) != len(right):
        raise ValueError(f"each row needs one next to it; got {len(left)} and {len(right)}")
    count = len(left)
    if count < LEAST_PAIRS:
        return None
    with one_blas_thread():
        cosines = _unit(left) @ _unit(right).T
    at = np.arange(count)
    together = float(cosines[at, at].sum())
    rng = np.random.default_rng(0)
    shuffled = np.array([cosines[at, rng.permutation(count)].sum() for _ in range(SHUFFLES)])
    return Order(
        neighbours=together / count,
        by_chance=(float(cosines.sum()) - together) / (count * (count - 1)),
        # A rounding error must not make equal rows differ.
        p_value=(1 + int(np.sum(shuffled >= together - 1e-9 * count))) / (1 + SHUFFLES),
    )


def _unit(rows: NDArray[Any]) -> FloatArray:
    """Rows of length 1; a row of zeros stays, and is like nothing."""
    points = np.asarray(rows, dtype=np.float64)
    largest = np.abs(points).max(axis=1, keepdims=True)
    points = points / np.where(largest > 0, largest, 1)  # so that squares stay within float64
    length = np.sqrt(np.square(points).sum(axis=1, keepdims=True))
    unit: FloatArray = points / np.where(length > 0, length, 1)
    return unit
