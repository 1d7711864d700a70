"""Covariance → spectrum → effective rank and participation ratio.

Here: eigenvalues, and two measures of how many directions they use.
Not here: the score, which combines both (`score.py`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import SMALLEST_SQUARES, FloatArray, Moments
from visdiv_assets.spectral.threads import one_blas_thread


def spectrum(moments: Moments) -> FloatArray:
    """Eigenvalues λ of the centred covariance (`ddof = 1`), descending, clipped at 0, shape (D,).

    A total variance within the rounding error of the sums (one image repeated) counts as none: all
    λ are then 0. Runs on one thread, because LAPACK's last bits depend on the number of threads.

    Raises:
        ValueError: fewer than 2 vectors, or moments that exceed float64 or vanish in it.

    Example:
        >>> import numpy as np
        >>> spectrum(Moments.of(np.array([[1.0, 0.0], [-1.0, 0.0]]))).tolist()
        [2.0, 0.0]
    """
    covariance = moments.covariance()
    squares = float(np.trace(moments.outer))
    if squares < SMALLEST_SQUARES and (moments.total.any() or moments.outer.any()):
        raise ValueError("the moments are too small: their digits vanish in float64")
    second_moment = squares / moments.n
    rounding = np.finfo(np.float64).eps * moments.dimension * second_moment
    if float(np.trace(covariance)) <= rounding:
        return np.zeros(moments.dimension)
    with one_blas_thread():
        eigenvalues = np.linalg.eigvalsh(covariance)
    descending: FloatArray = np.clip(eigenvalues[::-1], 0.0, None)
    return descending


def _shares(eigenvalues: NDArray[Any]) -> FloatArray:
    """Shares of variance λ/Σλ, or an empty array if there is no variance."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("eigenvalues must be a vector of finite, non-negative numbers")
    if not values.any():
        return np.empty(0)
    _, power = np.frexp(values.max())
    values = np.ldexp(values, -power)  # so that the sum is within float64
    shares: FloatArray = values / values.sum()
    return shares


def effective_rank(eigenvalues: NDArray[Any]) -> float:
    """Effective rank `ER = exp(−Σ p ln p)` with p = λ/Σλ and 0·ln 0 = 0.

    Args:
        eigenvalues: λ ≥ 0, shape (D,).

    Returns:
        Between 1 and D; 0 when all λ are 0.

    References:
        Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Example:
        >>> round(effective_rank([1.0, 1.0, 0.0]), 12)
        2.0
    """
    p = _shares(eigenvalues)
    if p.size == 0:
        return 0.0
    positive = p[p > 0]
    return _within(1, np.exp(-np.sum(positive * np.log(positive))), p.size)


def participation_ratio(eigenvalues: NDArray[Any]) -> float:
    """Participation ratio `PR = (Σλ)² / Σλ²`.

    Args:
        eigenvalues: λ ≥ 0, shape (D,).

    Returns:
        Between 1 and D, never above the effective rank; 0 when all λ are 0.

    References:
        Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017.

    Example:
        >>> participation_ratio([2.0, 1.0, 1.0])
        2.6666666666666665
    """
    p = _shares(eigenvalues)
    if p.size == 0:
        return 0.0
    return _within(1, 1.0 / np.sum(p * p), p.size)


def _within(low: float, value: float, high: float) -> float:
    """`value`, clipped, since rounding may have pushed it over a bound by an ulp or two."""
    return float(min(max(value, low), high))
