"""Core-sets: the k rows that represent all others best, or differ most.

Here: the public function, its validation, and the covering radius. Not here: the methods
(`coreset_*.py`), reading the store, exporting lists.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.similarity.coreset_facility import by_facility_location
from visdiv_assets.similarity.coreset_greedy import CentreGains, DeterminantGains, greedy
from visdiv_assets.similarity.coreset_leverage import by_leverage
from visdiv_assets.similarity.coreset_neighbours import closeness
from visdiv_assets.similarity.coreset_rows import Matrix, OnProgress, Rows, as_matrix
from visdiv_assets.spectral.moments import FloatArray

Method = Literal["k-centre", "log-det", "leverage", "facility-location"]
METHODS: tuple[Method, ...] = get_args(Method)

# ε of the log-determinant.
RIDGE = 0.01


def select_diverse_samples(
    embeddings: NDArray[Any] | Matrix,
    k: int,
    method: Method = "k-centre",
    *,
    include: Iterable[int] = (),
    exclude: Iterable[int] = (),
    trim: float = 0.0,
    weights: NDArray[Any] | None = None,
    on_progress: OnProgress | None = None,
) -> NDArray[np.int64]:
    """Choose k rows that represent the others, or differ most from each other.

    - `k-centre`: the most central row, then repeatedly the row farthest from all chosen ones, by
      Euclidean distance. At most twice the optimal covering radius.
    - `log-det`: greedily maximises `log det(I + X_S X_Sᵀ/ε)`, ε = 0.01, for rows of unit length
      (the mode of a determinantal point process). You may choose more than D rows; directions are
      then filled evenly.
    - `leverage`: the greatest ridge leverage scores `xᵀ(XᵀX + λI)⁻¹x`, for rows of unit length,
      with λ a hundredth of the mean eigenvalue. Rows are scored independently, so near-copies may
      be chosen together.
    - `facility-location`: greedily maximises the weighted sum, over all rows (or a sample of
      16,384), of the cosine similarity with the most similar chosen row, among the 128 nearest
      neighbours of each.

    Deterministic for any number of threads: ties go to the lowest index. Rows are read in blocks,
    so they are never all in memory.

    Args:
        embeddings: shape (N, D), any real dtype: an array, or any object with `shape` whose rows
            can be indexed by slices and index arrays.
        k: number of rows to choose, 1 ≤ k ≤ N.
        method: one of METHODS.
        include: row indices to choose in any case; they count towards k and come first, in the
            given order.
        exclude: row indices to ignore.
        trim: share of rows, in [0, 1), to ignore as outliers: those with the farthest fifth
            nearest neighbour by cosine, among a sample of 4,096 rows. 0 by default, since rare
            images may be the purpose of a core-set. Rows in `include` are never trimmed.
        weights: importance of representing each row, shape (N,), non-negative; only for
            facility-location. None means the inverse of the density around a row, so that a rare
            group of images counts as much as a frequent one. Ones give textbook facility location,
            which chooses typical rather than diverse rows.
        on_progress: called after each choice with the number of rows chosen and the total.

    Returns:
        k distinct row indices in the order of choice, int64.

    Raises:
        ValueError: `embeddings` is not a finite real matrix; k is not between 1 and the number of
            remaining rows; more than k rows are included; an index is out of range, repeated, or
            both included and excluded; the method is unknown; trim is outside [0, 1); weights do
            not match the method or the rows.

    References:
        Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
        Sener & Savarese, "Active learning for convolutional neural networks: a core-set
        approach", ICLR 2018.
        Chen, Zhang & Zhou, "Fast greedy MAP inference for determinantal point process to improve
        recommendation diversity", NeurIPS 2018.
        Papailiopoulos, Kyrillidis & Boutsidis, "Provable deterministic leverage score sampling",
        KDD 2014.
        Alaoui & Mahoney, "Fast randomized kernel ridge regression with statistical guarantees",
        NeurIPS 2015 (ridge leverage scores).
        Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978.

    Example:
        >>> import numpy as np
        >>> line = np.array([[0.0], [1.0], [2.0], [9.0]])
        >>> select_diverse_samples(line, k=3).tolist()
        [2, 3, 0]
        >>> select_diverse_samples(line, k=2, include=[1], exclude=[3]).tolist()
        [1, 0]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if not 0.0 <= trim < 1.0:
        raise ValueError(f"trim must be a share of the rows, in [0, 1); got {trim}")
    matrix = as_matrix(embeddings)
    count = matrix.shape[0]
    demand = None if weights is None else _weights(weights, count, method)
    first = _indices(include, count, "include")
    out = _indices(exclude, count, "exclude")
    if both := set(first.tolist()) & set(out.tolist()):
        raise ValueError(f"row {min(both)} is both included and excluded")
    if len(first) > max(k, 0):
        raise ValueError(f"{len(first)} rows are included, more than k = {k}")
    present = np.ones(count, dtype=bool)
    present[out] = False
    what = "the number of embeddings"
    if len(out):
        what += " that are not excluded"
    _check_k(k, int(present.sum()), what)
    if isolated := int(trim * present.sum()):
        kept = np.flatnonzero(present)
        closest = closeness(Rows(matrix, kept if len(out) else None))
        order = kept[np.lexsort((kept, closest))]
        present[order[~np.isin(order, first)][:isolated]] = False
        _check_k(k, int(present.sum()), what + " and not trimmed")
    rows = Rows(matrix, None if present.all() else np.flatnonzero(present))
    start = (np.cumsum(present) - 1)[first].tolist()
    match method:
        case "k-centre":
            centres = CentreGains(rows)
            chosen = greedy(rows, k, centres, start or [centres.most_central], on_progress)
        case "log-det":
            determinant = DeterminantGains(rows, k, RIDGE)
            chosen = greedy(rows, k, determinant, start, on_progress)
        case "leverage":
            chosen = by_leverage(rows, k, start)
        case "facility-location":
            demand = None if demand is None else rows.of_kept(demand)
            chosen = by_facility_location(rows, k, start, demand, on_progress)
    return rows.numbers(chosen)


def covering_radius(embeddings: NDArray[Any] | Matrix, chosen: NDArray[np.int64]) -> float:
    """The greatest Euclidean distance of any row from its nearest chosen row.

    Args:
        embeddings: shape (N, D), as for `select_diverse_samples`; read once.
        chosen: row indices, at least one.

    Example:
        >>> import numpy as np
        >>> covering_radius(np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([2, 3]))
        2.0
    """
    rows = Rows(as_matrix(embeddings))
    centres = rows.take(chosen)
    origin = centres.mean(axis=0)
    centres -= origin
    half = 0.5 * np.einsum("ij,ij->i", centres, centres)
    farthest = 0.0
    for _, block in rows.blocks():
        block -= origin
        squares = np.einsum("ij,ij->i", block, block) - 2 * (block @ centres.T - half).max(axis=1)
        farthest = max(farthest, float(squares.max()))
    return float(farthest**0.5)


def _check_k(k: int, count: int, what: str) -> None:
    if not 1 <= k <= count:
        raise ValueError(f"k must be between 1 and {what}, {count}; got {k}")


def _weights(weights: NDArray[Any], count: int, method: Method) -> FloatArray:
    if method != "facility-location":
        raise ValueError(f"weights work only with facility-location; the method is {method}")
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all() or (found < 0).any():
        raise ValueError(f"weights must be {count} finite, non-negative numbers")
    return found


def _indices(wanted: Iterable[int], count: int, name: str) -> NDArray[np.int64]:
    found = np.asarray(list(wanted))
    if not len(found):
        return np.empty(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"{name} must be row indices")
    if found.min() < 0 or found.max() >= count:
        wrong = found[(found < 0) | (found >= count)][0]
        raise ValueError(f"{name}: there is no row {wrong} among {count}")
    values, times = np.unique(found, return_counts=True)
    if times.max() > 1:
        raise ValueError(f"{name}: row {values[times > 1][0]} is repeated")
    return found.astype(np.int64)
