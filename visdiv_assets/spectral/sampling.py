"""Sampling units: what counts as one piece of evidence about the population.

Here: which rows belong to one unit. Not here: what follows for an estimate (`corrected.py`), the
sample itself (`sample.py`).
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from visdiv_assets.spectral.moments import FloatArray
from visdiv_assets.spectral.sample import Sample, row_keys
from visdiv_assets.spectral.threads import one_blas_thread

# The unit of each row, shape (k,): numbers from 0 on, each of which occurs.
Units = NDArray[np.int64]

# Rows at least this similar are one picture that was collected twice: a copy in another size, the
# next frame of a burst. Photographs that merely show the same thing are below.
NEAR_DUPLICATE = 0.90


def near_duplicate_units(rows: NDArray[Any]) -> Units:
    """Rows that are connected by cosine similarities of at least 0.90.

    Args:
        rows: shape (k, D), any real dtype; a row of zeros is a unit of its own.

    Returns:
        the unit of each row, shape (k,), int64, numbered from 0 in order of their first rows.

    Example:
        >>> import numpy as np
        >>> near_duplicate_units(np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 0.5]])).tolist()
        [0, 1, 0]
    """
    with one_blas_thread():
        unit = _unit(_unit(np.asarray(rows, dtype=np.float64), np.inf), 2)
        alike = unit @ unit.T >= NEAR_DUPLICATE
    _, labels = connected_components(csr_array(alike), directed=False)
    return numbered(labels)


def _unit(rows: FloatArray, order: float) -> FloatArray:
    """Rows of norm 1; first by the largest number, as squares may leave float64."""
    norms = np.linalg.norm(rows, order, axis=1, keepdims=True)
    unit: FloatArray = rows / np.where(norms > 0, norms, 1.0)
    return unit


def row_units(rows: NDArray[Any]) -> Units:
    """Every row a unit of its own, shape (k,); equal rows are one unit.

    Example:
        >>> row_units(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist()
        [0, 1, 0]
    """
    return numbered(row_keys(rows))


def units_of(sample: Sample, unit: Literal["near-duplicates", "row"] | None = None) -> Units:
    """The sampling unit of each kept row, shape (k,), heavy ones last.

    Args:
        sample: of k rows.
        unit: what a sampling unit is; None means as the source says, else near-duplicates.
    """
    kept = sample.everything
    if unit is None and kept.units is not None:
        return numbered(kept.units)
    return row_units(kept.rows) if unit == "row" else near_duplicate_units(kept.rows)


def numbered(labels: NDArray[Any]) -> Units:
    """Labels as numbers from 0 on, in order of their first rows.

    Example:
        >>> numbered(np.array([7, 5, 7])).tolist()
        [0, 1, 0]
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return np.asarray(order[inverse], dtype=np.int64)


def members_of(units: Units) -> list[NDArray[np.int64]]:
    """The rows of each unit that has several.

    Example:
        >>> [each.tolist() for each in members_of(np.array([0, 1, 0, 2, 1, 0]))]
        [[0, 2, 5], [1, 4]]
    """
    order = np.argsort(units, kind="stable")
    ends = np.flatnonzero(np.diff(units[order])) + 1
    return [rows for rows in np.split(order, ends) if len(rows) > 1]


def known_share(counts: FloatArray, units: Units, times: FloatArray | None = None) -> FloatArray:
    """How far each unit is taken for a part of the population, and not for an accident of drawing.

    A picture that fills a tenth of a dataset, while others occur once, says how the dataset is. If
    all occur ten times, that says how it was collected. A unit counts as known from six to 24 times
    the size of the mean unit on, 1 to 4 % of the dataset, and 3 to 10 images. In between it
    counts in part, so that nothing jumps when one image is added.

    Args:
        counts: how many images each kept row stands for, shape (k,), positive.
        units: the unit of each, shape (k,).
        times: how many rows of the dataset each kept row stands for, shape (k,); None means one.

    Returns:
        share of each unit that is known, in [0, 1], shape (units,).

    Example:
        >>> known_share(np.array([400.0, *[1.0] * 100]), np.arange(101))[:2].tolist()
        [1.0, 0.0]
        >>> float(known_share(np.full(30, 10.0), np.arange(30)).max())
        0.0
    """
    images = np.bincount(units, counts)
    each = np.ones(len(images)) if times is None else np.bincount(units, times) / np.bincount(units)
    share = each * images / (each @ images)
    known: FloatArray = (
        _ramp(share / each * each.sum(), 6.0, 24.0)
        * _ramp(share, 0.01, 0.04)
        * _ramp(images, 3.0, 10.0)
    )
    return known


def _ramp(values: FloatArray, start: float, end: float) -> FloatArray:
    """0 up to `start`, 1 from `end` on, smooth on a logarithmic scale in between."""
    part = np.clip(np.log(np.maximum(values, start) / start) / np.log(end / start), 0.0, 1.0)
    smooth: FloatArray = part * part * (3 - 2 * part)
    return smooth


def squares_of_sums(values: FloatArray, units: Units, times: FloatArray | float = 1.0) -> float:
    """Σ over units of (Σ of the values in it)², also if only a random part of the rows was kept.

    Args:
        values: a value of each kept row, shape (k,).
        units: the unit of each, shape (k,).
        times: how many rows of the dataset each kept row stands for, shape (k,).

    Example:
        >>> squares_of_sums(np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]))
        18.0
    """
    all_of_it = times * values
    sums = np.bincount(units, all_of_it)
    # Of 100 rows, 10 are kept; but of 100 pairs of rows, 1 is.
    pairs = float(sums @ sums) - float(all_of_it @ all_of_it)
    return max(float(all_of_it @ values) + pairs, 0.0)


def times_larger(units: Units, kept: float) -> FloatArray:
    """How many times larger each unit is, as far as can be told, than what was kept of it.

    Args:
        units: the unit of each kept row, shape (k,).
        kept: share of all rows that was kept, at random.

    Returns:
        factor of each unit, ≥ 1, shape (units,).

    References:
        Robbins, "Estimating the total probability of the unobserved outcomes of an experiment",
        Annals of Mathematical Statistics 39, 1968: of the units of which m rows were kept, each has
        (m+1)·N(m+1)/N(m)·(1−f)/f more, with N(m) the number of such units and f the share kept.

    Example:
        >>> times_larger(np.array([0, 1, 2, 2]), 0.5).tolist()  # pairs of which half was kept
        [2.0, 2.0, 1.0]
    """
    sizes = np.bincount(units)
    if kept >= 1:
        return np.ones(len(sizes))
    number = np.bincount(sizes, minlength=int(sizes.max()) + 2).astype(np.float64)
    m = np.arange(1, len(number) - 1)
    missing = (m + 1) * number[2:] / np.maximum(number[1:-1], 1.0) * (1 - kept) / kept
    # Of large units there are few, and their numbers rise and fall by chance.
    factors: FloatArray = np.minimum(np.r_[1.0, 1 + missing / m], 1 / kept)[sizes]
    return factors
