"""Mixtures of datasets: their diversity from moments alone, and the most diverse one.

Here: moments of a weighted mixture, the search for weights. Not here: reading moments, commands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from visdiv_assets.spectral.corrected import ENOUGH_ROWS, UNSEEN, CorrectedScore, corrected
from visdiv_assets.spectral.moments import FloatArray, Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio
from visdiv_assets.spectral.threads import one_blas_thread

STEPS = 50
TOLERANCE = 1e-5
DROPPED = 1e-3
MOST_CORNERS = 5

# Up to this many parts, the others are reweighted when one is left out.
MOST_REWEIGHTED = 5

# Total number of rows from which a mixture's corrected score is computed.
MIXED_ROWS = 4096


def mixture_covariance(parts: Sequence[Moments], weights: FloatArray) -> FloatArray:
    """Population covariance (`ddof = 0`) of a mixture that draws from part i with weight wᵢ.

    Args:
        parts: K moments of dimension D, none of them empty.
        weights: shape (K,), non-negative, with sum 1.

    Returns:
        shape (D, D): Σwᵢ(Σxxᵀ/n)ᵢ − μμᵀ with μ = Σwᵢx̄ᵢ.

    Raises:
        ValueError: the weights are invalid.
    """
    check_weights(weights, len(parts))
    used = [(w, part) for w, part in zip(weights, parts, strict=True) if w > 0]
    mean = sum(w * part.mean for w, part in used)
    second = sum(w / part.n * part.outer for w, part in used)
    covariance: FloatArray = np.asarray(second - np.outer(mean, mean))
    return (covariance + covariance.T) / 2


def mixture_score(parts: Sequence[Moments], weights: FloatArray) -> float:
    """Plain diversity score of a weighted mixture, in [0, 1], from moments alone.

    Example:
        >>> import numpy as np
        >>> x, y = np.eye(4)[:2], np.eye(4)[2:]
        >>> parts = [Moments.of(x), Moments.of(y)]
        >>> round(mixture_score(parts, np.array([0.5, 0.5])), 12)
        0.75
    """
    with one_blas_thread():
        eigenvalues = np.clip(np.linalg.eigvalsh(mixture_covariance(parts, weights)), 0, None)
    scale = float(np.sqrt(effective_rank(eigenvalues) * participation_ratio(eigenvalues)))
    return scale / len(eigenvalues)


def check_weights(weights: FloatArray, count: int) -> None:
    """Check that weights are shares of `count` parts.

    Raises:
        ValueError: their number is wrong, one is negative, or their sum is not 1.
    """
    if weights.shape != (count,):
        raise ValueError(f"{count} parts need {count} weights; got shape {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or abs(weights.sum() - 1) > 1e-9:
        raise ValueError("weights must not be negative and must sum to 1")


@dataclass(frozen=True, eq=False)
class Mixture:
    """The most diverse mixture that was found.

    Attributes:
        names: names of the parts.
        weights: shape (K,), share of the mixture that is drawn from each part.
        corrected: size-corrected score of the mixture, from the parts' samples.
        adds: shape (K,), how much plain score the best mixture would lose without each part. The
            others are reweighted, but keep their proportions if there are more than
            MOST_REWEIGHTED parts.
        dropped: parts that are best left out.
        even: corrected score of the mixture with equal weights, for comparison.
    """

    names: tuple[str, ...]
    weights: FloatArray
    corrected: CorrectedScore
    adds: FloatArray
    dropped: tuple[str, ...]
    even: CorrectedScore


def best_mixture(
    names: Sequence[str], samples: Sequence[Sample], most: FloatArray | None = None
) -> Mixture:
    """The weights with the highest diversity score.

    In general, the logarithm of the score is not concave in the weights: entropy and purity of a
    normalised covariance are quasi-concave in the covariance, but their product need not be, and
    the covariance of a mixture is quadratic in the weights. So the search, which uses the exact
    gradient, starts from equal weights and, with few parts, also near each corner, and takes the
    best result. In small cases, a fine grid finds nothing better. The search uses moments, which
    are unbiased for the covariance of each part; results are compared by corrected score.

    Args:
        names: names of K parts, K ≥ 1.
        samples: samples of the parts, each with at least 2 images.
        most: shape (K,), largest weight of each part (a small part cannot fill a large budget of
            images); None means 1 each.

    Raises:
        ValueError: there are no parts, or `most` allows no mixture.
    """
    if not samples:
        raise ValueError("a mixture needs at least one part")
    most = np.ones(len(samples)) if most is None else np.minimum(most, 1.0)
    if most.sum() < 1 - 1e-9:
        raise ValueError("the parts together cannot fill the mixture")
    parts = [sample.moments for sample in samples]
    ascent = _Ascent(parts)
    ends = [ascent.climb(_project(start, most), most) for start in _starts(len(parts), most)]
    if len(parts) <= MOST_CORNERS:
        ends += [alone for alone, bound in zip(np.eye(len(parts)), most, strict=True) if bound >= 1]
    judged = [(_judge(samples, weights), weights) for weights in ends]
    best, weights = max(
        judged, key=lambda end: (_or_zero(end[0].score), mixture_score(parts, end[1]))
    )
    weights = np.where(weights < DROPPED, 0.0, weights)
    weights = weights / weights.sum()
    score = mixture_score(parts, weights)
    even = _project(np.full(len(parts), 1 / len(parts)), most)
    return Mixture(
        tuple(names),
        weights,
        best,
        np.array([score - _without(ascent, parts, weights, most, at) for at in range(len(parts))]),
        tuple(name for name, weight in zip(names, weights, strict=True) if weight == 0),
        _judge(samples, even),
    )


def mix_samples(samples: Sequence[Sample], weights: FloatArray) -> Sample:
    """A sample of a mixture, made from the samples of its parts.

    Its size n is Kish's effective size, 1/Σ(wᵢ²/nᵢ): a mean of n images is as precise as that of
    the mixture. Counts are shares of n, and not integers.
    """
    check_weights(np.asarray(weights, dtype=np.float64), len(samples))
    used = [(w, each) for w, each in zip(weights, samples, strict=True) if w > 0]
    size = round(1 / sum(w**2 / each.moments.n for w, each in used))
    most = MIXED_ROWS // len(used)  # the first rows of a sample are a smaller sample
    keys = np.concatenate([each.keys[:most] for _, each in used])
    rows = np.concatenate([each.rows[:most] for _, each in used])
    shares = np.concatenate([w * _shares(each.counts[:most]) for w, each in used])
    kept, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rows, share = rows[first], np.bincount(inverse, weights=shares)
    moments = Moments(size, share @ rows * size, (rows.T * share) @ rows * size)
    return Sample(moments, kept, rows, share * size, len(rows))


def _judge(samples: Sequence[Sample], weights: FloatArray) -> CorrectedScore:
    """Corrected score of a mixture; only the parts know which contents occur once."""
    mixed = mix_samples(samples, weights)
    measured = corrected(mixed)
    counts = mixed.counts.astype(np.float64)
    effective_rows = mixed.moments.n * float(counts.sum()) / float(counts @ counts)
    if measured.too_few or effective_rows >= ENOUGH_ROWS:
        return measured
    used = [(w, each) for w, each in zip(weights, samples, strict=True) if w > 0]
    unseen = sum(w * float((each.counts == 1).sum()) / each.moments.n for w, each in used)
    if unseen > UNSEEN or not all(each.complete for _, each in used):
        return CorrectedScore(np.nan, np.nan, np.nan, np.nan, np.nan, mixed.moments.n)
    return measured


def _shares(counts: NDArray[Any]) -> FloatArray:
    shares: FloatArray = counts / counts.sum()
    return shares


def _or_zero(score: float) -> float:
    return 0.0 if np.isnan(score) else score


def _starts(count: int, most: FloatArray) -> list[FloatArray]:
    """Equal weights, and with few parts also most of the weight on each of them."""
    even = np.full(count, 1 / count)
    if not 1 < count <= MOST_CORNERS:
        return [even]
    return [even, *(0.2 * even + 0.8 * np.eye(count))]


def _without(
    ascent: "_Ascent", parts: Sequence[Moments], weights: FloatArray, most: FloatArray, at: int
) -> float:
    """Plain score of the best mixture without one part; 0 if there is none."""
    bound = most.copy()
    bound[at] = 0.0
    if weights[at] == 0:
        return mixture_score(parts, weights)
    if bound.sum() < 1 - 1e-9:
        return 0.0
    rest = np.where(np.arange(len(parts)) == at, 0.0, weights)
    start = _project(rest / max(rest.sum(), 1e-12), bound)
    end = ascent.climb(start, bound) if len(parts) <= MOST_REWEIGHTED else start
    return mixture_score(parts, end)


class _Ascent:
    """Logarithm of a mixture's score, with its gradient; the moments are prepared once."""

    def __init__(self, parts: Sequence[Moments]) -> None:
        self._second = np.stack([part.outer.ravel() / part.n for part in parts])
        self._means = np.stack([part.mean for part in parts])

    def value(self, weights: FloatArray) -> tuple[float, FloatArray]:
        """Half of ln ER + ln PR, and its gradient, shape (K,)."""
        dimension = self._means.shape[1]
        mean = weights @ self._means
        covariance = (weights @ self._second).reshape(dimension, dimension) - np.outer(mean, mean)
        with one_blas_thread():
            eigenvalues, axes = np.linalg.eigh((covariance + covariance.T) / 2)
        eigenvalues = np.clip(eigenvalues, 0, None)
        trace, square = float(eigenvalues.sum()), float(eigenvalues @ eigenvalues)
        if trace <= 0:
            return -np.inf, np.zeros(len(weights))
        p = np.maximum(eigenvalues / trace, 1e-15)
        entropy = -float(p @ np.log(p))
        slope = -(np.log(p) + entropy) / trace + 2 / trace - 2 * eigenvalues / square
        inner = (axes * slope) @ axes.T / 2
        gradient = self._second @ inner.ravel() - 2 * self._means @ (inner @ mean)
        return (entropy + 2 * np.log(trace) - np.log(square)) / 2, gradient

    def climb(self, start: FloatArray, most: FloatArray) -> FloatArray:
        """The nearest maximum, by sequential quadratic programming with the exact gradient."""
        found = optimize.minimize(
            lambda weights: tuple(-each for each in self.value(weights)),
            start,
            jac=True,
            method="SLSQP",
            bounds=optimize.Bounds(np.zeros(len(start)), most),
            constraints={
                "type": "eq",
                "fun": lambda weights: weights.sum() - 1,
                "jac": lambda weights: np.ones(len(weights)),
            },
            options={"maxiter": STEPS, "ftol": TOLERANCE},
        )
        return _project(found.x, most)


def _project(weights: FloatArray, most: FloatArray) -> FloatArray:
    """The nearest weights with 0 ≤ w ≤ most and Σw = 1, by bisection on the shift."""
    low, high = float((weights - most).min()) - 1, float(weights.max()) + 1
    for _ in range(100):
        shift = (low + high) / 2
        if np.clip(weights - shift, 0, most).sum() > 1:
            low = shift
        else:
            high = shift
    projected: FloatArray = np.clip(weights - (low + high) / 2, 0, most)
    return projected / projected.sum()
