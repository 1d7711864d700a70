"""Leverage: the rows in directions that few other rows have.

Here: ridge leverage scores, and the k greatest ones. Not here: validation (`coreset.py`).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from threadpoolctl import threadpool_limits

from visdiv_assets.similarity.coreset_rows import Rows, unit
from visdiv_assets.spectral.moments import FloatArray

# λ as a multiple of the mean eigenvalue of XᵀX.
RIDGE = 0.01


def by_leverage(rows: Rows, k: int, first: Sequence[int] = ()) -> NDArray[np.int64]:
    """Positions in `first`, then those with the greatest scores; ties go to the lowest position.

    The score of a row of unit length is `xᵀ(XᵀX + λI)⁻¹x`, in [0, 1). λ is a hundredth of the mean
    eigenvalue of XᵀX: enough if rows span fewer than D directions, and too little to favour common
    directions, as the mean eigenvalue itself would.

    Args:
        rows: N rows, read twice.
        k: number of rows to choose.
        first: positions that are chosen first.

    Returns:
        positions, shape (k,).
    """
    chosen = np.array(first, dtype=np.int64)
    # On one thread, since the last bits depend on the number of threads.
    with threadpool_limits(limits=1, user_api="blas"):
        whiten = _whitening(rows)
        scores = np.empty(len(rows))
        for here, block in rows.blocks():
            white = unit(block) @ whiten.T
            scores[here] = np.einsum("ij,ij->i", white, white)
    scores[chosen] = -np.inf
    wanted = k - len(chosen)
    if not wanted:
        return chosen
    # A product's last bits also depend on a row's position in its block. So it only selects
    # rows that may be among the greatest; their scores are recomputed, one row at a time.
    tolerance = 4 / RIDGE * (rows.dimension + 8) ** 2 * float(np.finfo(np.float64).eps)
    least = np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
    candidates = np.flatnonzero(scores >= least - 2 * tolerance)
    exact = np.array([_score(rows.take(each[None])[0], whiten) for each in candidates])
    best = candidates[np.lexsort((candidates, -exact))][:wanted]
    return np.concatenate([chosen, best])


def _whitening(rows: Rows) -> FloatArray:
    """L⁻¹, where XᵀX + λI = LLᵀ; a row's score is the squared length of L⁻¹x."""
    gram = np.zeros((rows.dimension, rows.dimension))
    for _, block in rows.blocks():
        each = unit(block)
        gram += each.T @ each
    ridge = RIDGE * float(np.trace(gram)) / rows.dimension
    identity = np.eye(rows.dimension)
    lower = np.linalg.cholesky(gram + (ridge or 1.0) * identity)
    whiten: FloatArray = solve_triangular(lower, identity, lower=True)
    return np.ascontiguousarray(whiten)


def _score(row: FloatArray, whiten: FloatArray) -> float:
    white = np.einsum("ij,j->i", whiten, unit(row[None])[0])
    return float(np.einsum("i,i->", white, white))
