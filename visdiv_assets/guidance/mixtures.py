"""Mixtures of datasets: their diversity from moments and samples, and the most diverse one.

Here: moments and sample of a weighted mixture, the search for weights.
Not here: the corrected score (`spectral/corrected.py`), reading moments, commands.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from visdiv_assets.spectral.corrected import CorrectedScore, corrected, score_influences
from visdiv_assets.spectral.moments import FloatArray, Moments
from visdiv_assets.spectral.sample import HEAVY_SHARE, Kept, Sample
from visdiv_assets.spectral.sampling import near_duplicate_units, units_of
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio
from visdiv_assets.spectral.threads import one_blas_thread

# A score has several maxima if the parts differ. Up to this many parts, the search starts near each
# of them, and the others are reweighted when one is left out.
FEW_PARTS = 5

# One evaluation costs an eigendecomposition and some more: 0.1 to 0.2 s at D = 512.
STEPS = 50
TOLERANCE = 1e-4

# A climb ends after so many evaluations in a row that raised ln(score) by less than TOLERANCE.
PATIENCE = 5

# A part with a smaller weight is left out.
DROPPED = 1e-3

# The weight of a part that has none, so that the search knows what its rows would change.
NEXT_TO_NOTHING = 1e-6

# What the search takes for ln(score) where nothing can be told.
UNTOLD = -50.0

# Total number of rows from which a mixture's corrected score is computed.
MIXED_ROWS = 4096

# Gives a value for weights, and its gradient, shape (K,).
Objective = Callable[[FloatArray], tuple[float, FloatArray]]


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
        adds: shape (K,), how much of that score would be lost without each part; NaN where the
            others are too few to tell, or may not fill the mixture. The others are reweighted, but
            keep their proportions if there are more than FEW_PARTS parts.
        dropped: parts that are best left out.
        even: corrected score of the mixture with equal weights, or the nearest weights that are
            allowed, for comparison.
    """

    names: tuple[str, ...]
    weights: FloatArray
    corrected: CorrectedScore
    adds: FloatArray
    dropped: tuple[str, ...]
    even: CorrectedScore


def best_mixture(
    names: Sequence[str],
    samples: Sequence[Sample],
    most: FloatArray | None = None,
    least: FloatArray | None = None,
    on_found: Callable[[float], None] = lambda score: None,
) -> Mixture:
    """The weights with the highest corrected score.

    The search climbs the corrected score, since the plain score of a part of few images is too
    low, so that it would be left out. The score has several maxima if the parts differ: entropy
    and purity of a normalised covariance are quasi-concave in the covariance, but their product
    need not be, and the covariance of a mixture is quadratic in the weights. So the search starts
    from equal weights and near each part or, if there are more than FEW_PARTS, from the best plain
    score and near the part that scores highest alone. In small cases, a fine grid finds nothing
    better. What is returned is never worse than equal weights, or than a part alone that may fill
    the mixture.

    Where a mixture has too few sampling units for a corrected score, the plain score is climbed
    instead.

    Args:
        names: names of K parts, K ≥ 1.
        samples: samples of the parts, each with at least 2 images.
        most: shape (K,), largest weight of each part (a small part cannot fill a large budget of
            images); None means 1 each.
        least: shape (K,), smallest weight of each part; None means 0 each.
        on_found: is told the best corrected score so far, whenever the search has a new one.

    Raises:
        ValueError: there are no parts, or `most` and `least` allow no mixture.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> few, many = rng.standard_normal((60, 16)), rng.standard_normal((600, 16))
        >>> few[:, 8:] = many[:, :8] = 0
        >>> found = best_mixture(["few", "many"], [Sample.of(few), Sample.of(many)])
        >>> [round(weight, 1) for weight in found.weights.tolist()]
        [0.5, 0.5]
        >>> capped = best_mixture(
        ...     ["few", "many"], [Sample.of(few), Sample.of(many)], most=np.array([0.2, 1.0])
        ... )
        >>> [round(weight, 1) for weight in capped.weights.tolist()]
        [0.2, 0.8]
    """
    if not samples:
        raise ValueError("a mixture needs at least one part")
    count = len(samples)
    most = np.ones(count) if most is None else np.minimum(most, 1.0)
    least = np.zeros(count) if least is None else np.maximum(least, 0.0)
    if most.sum() < 1 - 1e-9:
        raise ValueError("the parts together cannot fill the mixture")
    if least.sum() > 1 + 1e-9 or (least > most).any():
        raise ValueError("the smallest weights are too large")
    with one_blas_thread():
        search = _Search(samples, on_found)
        even = _project(np.full(count, 1 / count), least, most)
        ends = [even, *(search.climb(start, least, most) for start in search.starts(least, most))]
        ends += [alone for alone in np.eye(count) if _allowed(alone, least, most)]
        weights = search.best(ends)
        if sum(len(each.keys) for each in samples) > MIXED_ROWS:  # now more rows of what counts
            weights = search.best([weights, search.climb(weights, least, most)])
        without = [_without(search, weights, least, most, at) for at in range(count)]
        others = [end for end in without if end is not None and _allowed(end, least, most)]
        further = search.best([weights, *others])
        if search.judged(further).score > search.judged(weights).score * (1 + TOLERANCE):
            weights = further  # leaving a part out has led to a higher maximum
            without = [_without(search, weights, least, most, at) for at in range(count)]
        mixture = search.judged(weights)
        nothing = 0.0 if count == 1 else np.nan
        left = [nothing if end is None else search.judged(end).score for end in without]
        return Mixture(
            tuple(names),
            weights,
            mixture,
            mixture.score - np.array(left),
            tuple(name for name, weight in zip(names, weights, strict=True) if weight == 0),
            search.judged(even),
        )


def mix_samples(
    samples: Sequence[Sample], weights: FloatArray, rows: NDArray[np.int64] | None = None
) -> Sample:
    """A sample of a mixture, made from the samples of its parts.

    Its size n is Kish's effective size, 1/Σ(wᵢ²/nᵢ): a mean of n images is as precise as that of
    the mixture. Counts are shares of n, and not integers.

    Args:
        samples: samples of K parts.
        weights: shape (K,), non-negative, with sum 1.
        rows: shape (K,), how many rows to take of each part that has a weight; None means
            MIXED_ROWS in all, more of the parts with more weight.

    Raises:
        ValueError: the weights are invalid.
    """
    weights = np.asarray(weights, dtype=np.float64)
    check_weights(weights, len(samples))
    rows = _rows_of_each(samples, weights) if rows is None else rows
    used = [
        (w, each, most)  # the first rows of a sample are a smaller sample
        for w, each, most in zip(weights, samples, rows.tolist(), strict=True)
        if w > 0
    ]
    size = round(1 / sum(w**2 / each.moments.n for w, each, _ in used))
    parts = [_taken(each, most) for _, each, most in used]
    keys = np.concatenate([part.keys for part in parts])
    taken = np.concatenate([part.rows for part in parts])
    shares = np.concatenate([w * part.counts for (w, _, _), part in zip(used, parts, strict=True)])
    kept, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    taken, share = taken[first], np.bincount(inverse, weights=shares)
    with one_blas_thread():
        moments = Moments(size, share @ taken * size, (taken.T * share) @ taken * size)
    told = [part.units for part in parts if part.units is not None]
    units = np.concatenate(told)[first] if len(told) == len(used) else None
    return Sample(moments, kept, taken, share * size, len(taken), units)


def _rows_of_each(samples: Sequence[Sample], weights: FloatArray) -> NDArray[np.int64]:
    """How many rows to take of each part: all, or half of MIXED_ROWS evenly, half by weight."""
    kept: NDArray[np.int64] = np.array([len(each.keys) for each in samples]) * (weights > 0)
    if kept.sum() <= MIXED_ROWS:
        return kept
    evenly = max(MIXED_ROWS // 2 // int((weights > 0).sum()), 1)
    return np.minimum(kept, evenly + (MIXED_ROWS // 2 * weights).astype(np.int64))


def _judge(samples: Sequence[Sample], weights: FloatArray) -> CorrectedScore:
    """Corrected score of a mixture."""
    return corrected(mix_samples(samples, weights))


def _taken(sample: Sample, most: int) -> Kept:
    """Heavy rows, and the first others up to `most`, with shares of the part in place of counts."""
    everything = sample.everything
    heavy = everything.counts >= HEAVY_SHARE * sample.moments.n
    first = (np.arange(len(heavy)) < most) & ~heavy
    shares = everything.counts / sample.moments.n
    scale = max(1 - shares[heavy].sum(), 0.0) / shares[first].sum() if first.any() else 1.0
    chosen = np.flatnonzero(heavy | first)
    counts = np.where(heavy, shares, scale * shares)[chosen]
    return everything.part(chosen)._replace(counts=counts / counts.sum())


def _with_units(samples: Sequence[Sample]) -> list[Sample]:
    """Samples whose sampling units are told, so that they are not looked for in each mixture."""
    kept = [each.everything for each in samples]
    sizes = [len(each.keys) for each in kept]
    if all(each.units is None for each in samples) and sum(sizes) <= MIXED_ROWS:
        together = near_duplicate_units(np.concatenate([each.rows for each in kept]))
        parts = np.split(together.astype(np.uint64), np.cumsum(sizes)[:-1])
    else:  # those of different parts are then different ones
        parts = [
            units_of(each).astype(np.uint64) + np.uint64(at << 32)
            for at, each in enumerate(samples)
        ]
    return [each.with_units(units) for each, units in zip(samples, parts, strict=True)]


class _Search:
    """Climbs from start to start, and remembers what each mixture scores."""

    def __init__(self, samples: Sequence[Sample], on_found: Callable[[float], None]) -> None:
        self._samples = _with_units(samples)
        self._parts = [each.moments for each in samples]
        self._plain = _plain_objective(self._parts)
        self._on_found = on_found
        self._found = 0.0
        self._judged: dict[bytes, CorrectedScore] = {}

    def judged(self, weights: FloatArray) -> CorrectedScore:
        """Corrected score of a mixture, NaN where too few rows tell."""
        key = weights.tobytes()
        if key not in self._judged:
            self._judged[key] = _judge(self._samples, weights)
            self._tell(self._judged[key].score)
        return self._judged[key]

    def best(self, ends: Sequence[FloatArray]) -> FloatArray:
        """The weights with the highest corrected score, or plain score where none can be told."""

        def worth(weights: FloatArray) -> tuple[float, float]:
            judged = self.judged(weights)
            return 0.0 if judged.too_few else judged.score, mixture_score(self._parts, weights)

        return max(ends, key=worth)

    def starts(self, least: FloatArray, most: FloatArray) -> list[FloatArray]:
        """Where to begin: equal weights or the best plain score, most of the weight on one part."""
        count = len(least)
        if count == 1:
            return []
        even, corners = np.full(count, 1 / count), list(np.eye(count))
        starts = [even]
        if count > FEW_PARTS:
            starts = [_climb(self._plain, _project(even, least, most), least, most)]
            corners = [self.best(corners)]
        starts += [0.2 * even + 0.8 * corner for corner in corners]
        return [_project(start, least, most) for start in starts]

    def climb(self, start: FloatArray, least: FloatArray, most: FloatArray) -> FloatArray:
        """The nearest maximum of the corrected score, or of the plain one if none can be told."""
        opened = most > 0
        rows = _rows_of_each(self._samples, np.where(opened, start + NEXT_TO_NOTHING, 0.0))
        fair = self._fair_objective(opened, rows)
        told = fair(start)[0] > UNTOLD
        return _without_crumbs(
            _climb(fair if told else self._plain, start, least, most), least, most
        )

    def _fair_objective(self, opened: NDArray[np.bool_], rows: NDArray[np.int64]) -> Objective:
        """The logarithm of the corrected score, from the first rows of each part that is open."""
        chosen = [
            (at, _taken(each, most))
            for at, (each, most) in enumerate(zip(self._samples, rows.tolist(), strict=True))
            if opened[at]
        ]

        def value(weights: FloatArray) -> tuple[float, FloatArray]:
            gradient = np.zeros(len(weights))
            used = np.where(opened, np.maximum(weights, NEXT_TO_NOTHING), 0.0)
            mixed = mix_samples(self._samples, used / used.sum(), rows)
            told = score_influences(mixed)
            if told is None:
                return UNTOLD, gradient
            for at, taken in chosen:
                gradient[at] = taken.counts @ told[1][np.searchsorted(mixed.keys, taken.keys)]
            self._tell(float(np.exp(min(told[0], 0.0))))
            return told[0], gradient

        return value

    def _tell(self, score: float) -> None:
        if score > self._found:
            self._found = score
            self._on_found(score)


def _without(
    search: _Search, weights: FloatArray, least: FloatArray, most: FloatArray, at: int
) -> FloatArray | None:
    """The weights of the best mixture without one part; None if none is allowed."""
    if weights[at] == 0:
        return weights
    others = np.arange(len(weights)) != at
    least, most = np.where(others, least, 0.0), np.where(others, most, 0.0)
    if most.sum() < 1 - 1e-9:
        return None
    rest = weights * others
    start = _project(rest / max(float(rest.sum()), 1e-12), least, most)
    if len(weights) > FEW_PARTS or (most > 0).sum() == 1:
        return _without_crumbs(start, least, most)
    return search.climb(start, least, most)


def _plain_objective(parts: Sequence[Moments]) -> Objective:
    """The logarithm of a mixture's plain score, but for a constant: (ln ER + ln PR)/2."""
    seconds = np.stack([part.outer.ravel() / part.n for part in parts])
    means = np.stack([part.mean for part in parts])
    dimension = means.shape[1]

    def value(weights: FloatArray) -> tuple[float, FloatArray]:
        mean = weights @ means
        covariance = (weights @ seconds).reshape(dimension, dimension) - np.outer(mean, mean)
        eigenvalues, axes = np.linalg.eigh((covariance + covariance.T) / 2)
        eigenvalues = np.clip(eigenvalues, 0, None)
        trace, square = float(eigenvalues.sum()), float(eigenvalues @ eigenvalues)
        if trace <= 0:
            return UNTOLD, np.zeros(len(weights))
        p = np.maximum(eigenvalues / trace, 1e-15)
        entropy = -float(p @ np.log(p))
        slope = -(np.log(p) + entropy) / trace + 2 / trace - 2 * eigenvalues / square
        inner = (axes * slope) @ axes.T / 2
        gradient = seconds @ inner.ravel() - 2 * means @ (inner @ mean)
        return (entropy + 2 * np.log(trace) - np.log(square)) / 2, gradient

    return value


def _climb(
    objective: Objective, start: FloatArray, least: FloatArray, most: FloatArray
) -> FloatArray:
    """The best weights on the way to the nearest maximum, by sequential quadratic programming.

    The best on the way, not the last: the gradient of the corrected score is an estimate of its
    own, so that the last step may lead down.
    """
    best, highest, in_vain = start, -np.inf, 0

    def descended(weights: FloatArray) -> tuple[float, FloatArray]:
        nonlocal best, highest, in_vain
        weights = _project(weights, least, most)
        height, gradient = objective(weights)
        in_vain = 0 if height > highest + TOLERANCE else in_vain + 1
        if height > highest:
            best, highest = weights, height
        if in_vain >= PATIENCE:
            raise _ArrivedError
        return -height, -gradient

    with suppress(_ArrivedError):
        optimize.minimize(
            descended,
            start,
            jac=True,
            method="SLSQP",
            bounds=optimize.Bounds(least, most),
            constraints={
                "type": "eq",
                "fun": lambda weights: weights.sum() - 1,
                "jac": lambda weights: np.ones(len(weights)),
            },
            options={"maxiter": STEPS, "ftol": TOLERANCE},
        )
    return best


class _ArrivedError(Exception):
    """Ends a climb from within; SciPy would only ask after a step of up to 10 evaluations."""


def _without_crumbs(weights: FloatArray, least: FloatArray, most: FloatArray) -> FloatArray:
    """The weights without those next to nothing, if the others may fill the mixture."""
    most = np.where((weights < DROPPED) & (least <= 0), 0.0, most)
    return weights if most.sum() < 1 - 1e-9 else _project(weights, least, most)


def _allowed(weights: FloatArray, least: FloatArray, most: FloatArray) -> bool:
    return bool((weights >= least - 1e-9).all() and (weights <= most + 1e-9).all())


def _project(weights: FloatArray, least: FloatArray, most: FloatArray) -> FloatArray:
    """The nearest weights with `least` ≤ w ≤ `most` and Σw = 1, by bisection on the shift."""
    low, high = float((weights - most).min()) - 1, float((weights - least).max()) + 1
    for _ in range(100):
        shift = (low + high) / 2
        if np.clip(weights - shift, least, most).sum() > 1:
            low = shift
        else:
            high = shift
    projected: FloatArray = np.clip(weights - (low + high) / 2, least, most)
    return projected / projected.sum()
