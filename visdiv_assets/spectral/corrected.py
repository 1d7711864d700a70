"""The diversity score corrected for the size of a dataset, with an interval.

Here: effective rank, participation ratio and score of the population that a dataset was drawn
from, estimated from a sample of its rows, with their uncertainty.
Not here: the plain score (`score.py`), the sample and its merging (`sample.py`).

`docs/corrected-score.md` explains the estimator and measures its accuracy. This module is longer
than most, because it is one estimator whose steps have no use alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from visdiv_assets.spectral.moments import BLOCK_ROWS, FloatArray, Shift, check_embeddings
from visdiv_assets.spectral.sample import Sample, row_keys
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio
from visdiv_assets.spectral.threads import one_blas_thread

# Fewer distinct rows give no reliable estimate: with 30, scores may be 20 to 30 % too high.
ENOUGH_ROWS = 50

# If at most this share of the rows occurs only once, the dataset has few contents and all of them
# have been seen. By Good and Turing, that share estimates the probability of an unseen content.
UNSEEN = 0.05

# If less than this share is not heavy, heavy contents determine the score.
MOSTLY = 0.5

# A content with at least this share of a dataset and this many copies is heavy: it counts as a
# known part of the population, not as a row drawn from it.
HEAVY_SHARE = 0.02
HEAVY_COUNT = 5

LEVEL = 0.95

# The share of the degrees of freedom that is read from the sample; the rest is extrapolated.
# Closer to 1, the smallest eigenvalues dominate, and so do a few near-duplicates.
RESOLVED = 0.8

# Points on the curve df(κ). Using 800 instead changes an effective rank by less than 0.1 %.
GRID = 200

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class CorrectedScore:
    """Diversity of the population that a dataset was sampled from.

    Attributes:
        score: `sqrt(ER/D · PR/D)`, in [0, 1]; NaN if there are too few rows.
        low: lower end of the 95 % interval of the score, in [0, `score`], or NaN.
        high: upper end, in [`score`, 1], or NaN.
        effective_rank: in [1, D], or NaN.
        participation_ratio: in [1, `effective_rank`], or NaN.
        n: number of rows, copies included.
    """

    score: float
    low: float
    high: float
    effective_rank: float
    participation_ratio: float
    n: int

    @property
    def too_few(self) -> bool:
        """Whether there were too few distinct rows for an estimate."""
        return bool(np.isnan(self.score))


def corrected_score(embeddings: NDArray[Any]) -> CorrectedScore:
    """The size-corrected diversity score of a matrix of embeddings.

    The result is bit-identical for any order of the rows. Equal rows count as copies: they add
    weight in the population, but no evidence about it.

    Args:
        embeddings: shape (N, D), N ≥ 2, any real dtype, rows of any length.

    Returns:
        The score with its 95 % interval, effective rank and participation ratio; NaN with fewer
        than 50 distinct rows.

    Raises:
        ValueError: not a matrix, NaN or infinity in it, or fewer than 2 rows.

    Example:
        >>> import numpy as np
        >>> from visdiv_assets.spectral.score import DiversityCalculator
        >>> rows = np.random.default_rng(0).standard_normal((200, 128))
        >>> round(DiversityCalculator().calculate(rows), 2)
        0.66
        >>> measured = corrected_score(rows)
        >>> round(measured.score, 2), measured.high
        (0.99, 1.0)
        >>> corrected_score(rows[:20]).too_few
        True
    """
    rows = np.asarray(embeddings)
    check_embeddings(rows)
    if len(rows) < 2:
        raise ValueError(f"a diversity score needs at least 2 embeddings; got {len(rows)}")
    shift = Shift.of(rows)
    blocks = range(0, len(rows), BLOCK_ROWS)
    keys = np.concatenate([row_keys(rows[start : start + BLOCK_ROWS]) for start in blocks])
    order = np.argsort(keys, kind="stable")
    sample: Sample | None = None
    for start in blocks:
        chosen = order[start : start + BLOCK_ROWS]
        part = Sample.of(shift.apply(rows[chosen]), keys=keys[chosen])
        sample = part if sample is None else sample + part
    assert sample is not None
    return corrected(sample)


def corrected(sample: Sample) -> CorrectedScore:
    """The size-corrected diversity score of a dataset, from its moments and sample.

    Returns:
        The score with its 95 % interval, effective rank and participation ratio; NaN with fewer
        than 50 distinct rows. Copies are discounted by Kish's formula: rows with the shares p of
        a dataset count as 1/Σp². If a dataset of 50 rows or more consists of copies of few
        contents, nothing new is expected, and the score is the plain score.

    Raises:
        ValueError: fewer than 2 rows.

    References:
        Silverstein, "Strong convergence of the empirical distribution of eigenvalues of
        large dimensional random matrices", J. Multivariate Analysis 55, 1995.
        El Karoui, "Spectrum estimation for large dimensional covariance matrices using random
        matrix theory", Annals of Statistics 36, 2008.
        Jaeckel, "The infinitesimal jackknife", Bell Laboratories, 1972.
        Good, "The population frequencies of species and the estimation of population
        parameters", Biometrika 40, 1953.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> halves = [Sample.of(rng.standard_normal((100, 64))) for _ in range(2)]
        >>> both = corrected(halves[0] + halves[1])
        >>> both.n, both.low <= both.score <= both.high
        (200, True)
    """
    n, dimension = sample.moments.n, sample.moments.dimension
    too_few = CorrectedScore(np.nan, np.nan, np.nan, np.nan, np.nan, n)
    data = _spectral(sample)
    if data is None or data.effective_rows < ENOUGH_ROWS:
        return _of_few_contents(sample, data) or too_few
    ratio = _log_participation_ratio(data)
    if ratio is None:
        return too_few
    entropy = _entropy(data)
    log_score = (entropy.value + ratio.value) / 2 - np.log(dimension)
    reach = _reach(data, entropy, ratio)

    er = float(np.clip(np.exp(entropy.value), 1.0, dimension))
    pr = float(np.clip(np.exp(ratio.value), 1.0, er))
    score = min(float(np.sqrt(er * pr)) / dimension, 1.0)
    low = min(float(np.exp(log_score - reach)), score)
    high = min(max(float(np.exp(log_score + reach)), score), 1.0)
    return CorrectedScore(score, low, high, er, pr, n)


def _of_few_contents(sample: Sample, data: "_Spectral | None") -> CorrectedScore | None:
    """The plain score if unseen contents hardly matter, else None.

    That holds if all contents have been seen, or if most of the dataset is heavy contents. The
    interval is that of rows drawn from these contents. Its upper end is the score that would
    result if all rows that occur only once had nothing in common.
    """
    n, dimension = sample.moments.n, sample.moments.dimension
    unseen = float((sample.counts == 1).sum()) / n
    mostly_heavy = data is not None and data.drawn < MOSTLY
    if n < ENOUGH_ROWS or not sample.complete or not (unseen <= UNSEEN or mostly_heavy):
        return None
    if data is None:
        return CorrectedScore(0.0, 0.0, 0.0, 0.0, 0.0, n)
    er, pr = effective_rank(data.eigenvalues), participation_ratio(data.eigenvalues)
    score = float(np.sqrt(er * pr)) / dimension
    p = np.maximum(data.eigenvalues, 1e-300)
    entropy = float(-p @ np.log(p))
    # The derivative of ln(score) with respect to the share of a row.
    influence = -data.components @ (np.log(p) + entropy + 2 * p / float(p @ p)) / 2
    influence += data.components.sum(axis=1)
    influence -= float(data.shares @ influence)
    error = float(np.sqrt(data.shares @ influence**2 / n))
    reach = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    single = sample.counts == 1
    spread = float(data.shares[single] @ data.components[single].sum(axis=1))
    known = data.eigenvalues - data.shares[single] @ data.components[single]
    p = np.clip(known, 0, None) + spread / dimension
    most = float(np.sqrt(effective_rank(p) * participation_ratio(p))) / dimension
    low, high = score * np.exp(-reach), min(max(score, most) * np.exp(reach), 1.0)
    return CorrectedScore(score, float(low), float(high), er, pr, n)


@dataclass(frozen=True, eq=False)
class _Spectral:
    """Spectrum and rows of a dataset whose total variance is scaled to 1.

    Sums over all distinct rows are estimated from the sampled ones by the ratio to Σp, which is 1
    over all rows. If the sample is complete, they are exact.

    Attributes:
        eigenvalues: ℓ, shape (D,): eigenvalues of the covariance with 1/n; they sum to 1.
        shares: p, shape (k,): share of the dataset of each sampled row with its copies.
        components: a, shape (k, D): squared coordinates of the centred rows along the axes.
        heavy: shape (k,): whether a row is a known part of the population, not drawn from it.
        heavy_rows: shape (h, D): the heavy rows along the axes, centred.
        drawn: share of the dataset that is not heavy.
        effective_rows: (Σp)²/Σp² of the drawn rows; the number of distinct rows if all have
            equally many copies.
        n: number of rows, copies included.
    """

    eigenvalues: FloatArray
    shares: FloatArray
    components: FloatArray
    heavy: NDArray[np.bool_]
    heavy_rows: FloatArray
    drawn: float
    effective_rows: float
    n: int

    def over_rows(self, values: FloatArray) -> float:
        """Σ p·value over all distinct rows."""
        return float(self.shares[self.heavy] @ values[self.heavy]) + self.over_drawn(values)

    def over_drawn(self, values: FloatArray) -> float:
        """Σ p·value over all distinct rows that are not heavy."""
        shares = self.shares[~self.heavy]
        return self.drawn * float(shares @ values[~self.heavy]) / float(shares.sum())


@dataclass(frozen=True, eq=False)
class _Estimate:
    """An estimate with its sources of error.

    Attributes:
        value: the estimate.
        influence: ψ, shape (k,): the estimate moves by ε·p·ψ if a row's weight grows by 1 + ε.
        systematic: standard error of the extrapolated part.
    """

    value: float
    influence: FloatArray
    systematic: float = 0.0


def _spectral(sample: Sample) -> _Spectral | None:
    """Spectrum and rows, or None if there is no variance."""
    moments = sample.moments
    covariance = moments.covariance() * ((moments.n - 1) / moments.n)
    variance = float(np.trace(covariance))
    second_moment = float(np.trace(moments.outer)) / moments.n
    if variance <= np.finfo(np.float64).eps * moments.dimension * second_moment:
        return None
    with one_blas_thread():
        eigenvalues, axes = np.linalg.eigh(covariance / variance)
        along = ((sample.rows - moments.mean) @ axes) / np.sqrt(variance)
    counts = sample.counts.astype(np.float64)
    heavy = (counts >= HEAVY_SHARE * moments.n) & (counts >= HEAVY_COUNT)
    rare = counts[~heavy]
    n_drawn = moments.n - float(counts[heavy].sum())
    return _Spectral(
        eigenvalues=np.clip(eigenvalues, 0.0, None),
        shares=counts / moments.n,
        components=along**2,
        heavy=heavy,
        heavy_rows=along[heavy],
        drawn=n_drawn / moments.n,
        effective_rows=n_drawn * float(rare.sum()) / float(rare @ rare) if len(rare) else 0.0,
        n=moments.n,
    )


def _log_participation_ratio(data: _Spectral) -> _Estimate | None:
    """The logarithm of PR, from unbiased (tr Σ)² and tr Σ²; None if one of them is not positive.

    Pairs of a row with itself or with a copy are removed from tr S². For rows without copies,
    numerator and denominator are unbiased for any distribution of the rows.
    """
    n = data.effective_rows
    lengths = data.components.sum(axis=1)
    own = np.where(data.heavy, 0.0, data.shares * lengths**2)
    if data.heavy.any():
        return _ratio_with_heavy_rows(data, lengths, own)
    trace = n / (n - 1)
    square = trace**2 * float(data.eigenvalues @ data.eigenvalues)
    fourth = n**3 / (n - 1) * data.over_rows(own)
    scale = (n - 1) / (n * (n - 2) * (n - 3))
    above = scale * (2 * square + (n**2 - 3 * n + 1) * trace**2 - fourth)
    below = scale * ((n - 1) * (n - 2) * square + trace**2 - fourth)
    if above <= 0 or below <= 0:
        return None
    influence = 2 * lengths - 2 * (data.components @ data.eigenvalues - own) / below
    return _Estimate(float(np.log(above / below)), influence)


def _ratio_with_heavy_rows(
    data: _Spectral, lengths: FloatArray, own: FloatArray
) -> _Estimate | None:
    """The same with heavy rows: pairs are removed only from drawn rows; first order in 1/n."""
    n, weights = data.effective_rows, data.shares[data.heavy]
    gram = data.heavy_rows @ data.heavy_rows.T
    among_heavy = float(weights @ gram**2 @ weights)
    heavy_and_all = float(weights @ data.components[data.heavy] @ data.eigenvalues)
    square = float(data.eigenvalues @ data.eigenvalues)
    among_drawn = square - 2 * heavy_and_all + among_heavy
    unbiased = (among_drawn - data.over_drawn(own)) / (1 - 1 / n)
    below = among_heavy + 2 * (heavy_and_all - among_heavy) + unbiased
    centre = weights @ data.heavy_rows / data.drawn
    within = data.over_drawn(lengths) / data.drawn - float(centre @ centre)
    trace = 1 + data.drawn**2 * within / n
    if below <= 0:
        return None
    influence = 2 * lengths - 2 * (data.components @ data.eigenvalues - own) / below
    return _Estimate(float(np.log(trace**2 / below)), influence)


def _entropy(data: _Spectral) -> _Estimate:
    """The logarithm of ER, from the degrees of freedom at each ridge penalty.

    With df(κ) = Σ λ/(λ+κ) of the *population*, its entropy is ∫₀^∞ df(κ) − 1/(1+κ) dκ. The
    sample has the same degrees of freedom, Σ ℓ/(ℓ+z) = df(κ), at a smaller penalty z. The κ that
    belongs to z follows from leave-one-out prediction: with the leverage h of a row, which is
    h/(1−h) when the row is left out, κ = z · mean(h/(1−h)) / mean(h).
    """
    ell, (rows, dimension) = data.eigenvalues, data.components.shape
    z = _penalties(ell, RESOLVED * (data.effective_rows - 1) + int(data.heavy.sum()))
    resolvent = 1.0 / (ell[:, None] + z)
    # p/(1−p) instead of p, since the mean is also computed without the row.
    odds = data.shares / np.maximum(1.0 - data.shares, 1.0 / rows)
    with one_blas_thread():
        leverage = np.minimum(odds[:, None] * (data.components @ resolvent), 1 - 1e-9)
        freedom = ell @ resolvent
    left_out = leverage / (1 - leverage)
    # d ln κ / d ln df if all leverages grow together
    growth = left_out / (1 - leverage)
    # Heavy rows are part of the population, so they are not left out.
    left_out[data.heavy] = growth[data.heavy] = data.shares[data.heavy, None] * (
        data.components[data.heavy] @ resolvent
    )
    leverage[data.heavy] = left_out[data.heavy]
    kappa = z * left_out.sum(axis=0) / leverage.sum(axis=0)
    stretch = growth.sum(axis=0) / left_out.sum(axis=0) - 1

    log_kappa = np.log(kappa)
    integrand = (freedom - 1 / (1 + kappa)) * kappa
    steps = np.diff(log_kappa)
    widths = np.zeros_like(kappa)
    widths[:-1] += steps / 2
    widths[1:] += steps / 2
    start, first = float(kappa[0]), float(freedom[0])
    slope = -float(np.gradient(freedom[:3], log_kappa[:3], edge_order=2)[0])
    head, error = _unresolved(start, first, slope, dimension)
    # Beyond the grid df(κ) is 1/κ − Σλ²/κ².
    beyond = np.log1p(1 / kappa[-1]) - 1 / kappa[-1] + freedom[-1]
    value = head - np.log1p(start) + float(integrand @ widths) + float(beyond)

    by_freedom = kappa * widths
    by_log_kappa = (freedom - 1 / (1 + kappa) ** 2) * kappa * widths
    between = (integrand[:-1] + integrand[1:]) / 2
    by_log_kappa[1:] += between
    by_log_kappa[:-1] -= between
    step = 1e-4
    more, _ = _unresolved(start, first * (1 + step), slope * (1 + step), dimension)
    by_freedom[0] += (more - head) / (first * step)
    by_log_kappa[0] += head - start / (1 + start)
    by_eigenvalue = resolvent**2 @ (z * (by_freedom + by_log_kappa * stretch / freedom))
    influence = data.components @ (by_eigenvalue - float(ell @ by_eigenvalue))
    return _Estimate(value, influence, error)


def _penalties(ell: FloatArray, most: float) -> FloatArray:
    """Penalties z on a log grid, the first of which gives `most` degrees of freedom.

    If no penalty gives that many (few dimensions, many rows), the first one is almost 0.
    """
    low, high = np.log(1e-6 / len(ell)), np.log(1e3 * ell.max())
    if np.sum(ell / (ell + np.exp(low))) > most:
        above, below = low, high
        while below - above > 1e-9:
            low = (above + below) / 2
            if np.sum(ell / (ell + np.exp(low))) > most:
                above = low
            else:
                below = low
    grid: FloatArray = np.exp(np.linspace(low, high, GRID))
    return grid


def _unresolved(kappa: float, freedom: float, slope: float, dimension: int) -> tuple[float, float]:
    """∫ df from 0 to the smallest resolved κ, and its standard error.

    Two facts bound the integral: df is convex in κ, so it lies above its tangent, and by the
    Cauchy-Schwarz inequality ln(D/df − 1) grows no faster than ln κ. The estimate extrapolates
    with the slope of ln(D/df − 1) in ln κ, which is exact for a flat spectrum (slope 1) and for
    one of low rank (slope 0). The standard error is that of a uniform distribution between the
    bounds.

    Args:
        kappa: the smallest resolved κ.
        freedom: df at kappa, in (0, D].
        slope: −d df / d ln κ at kappa, in [0, df].
        dimension: D.
    """
    odds = dimension / freedom - 1
    if odds < 1e-9:
        return kappa * freedom, 0.0
    power = float(np.clip(slope / freedom * dimension / (dimension - freedom), 0.0, 1.0))
    # Substitute t⁴, t in [0, 1], for κ, since the curve may be steep at 0.
    t = (_NODES + 1) / 2
    heights = dimension / (1 + odds * t ** (4 * power))
    integral = kappa * float(2 * t**3 * heights @ _NODE_WEIGHTS)
    most = kappa * dimension * np.log1p(odds) / odds
    least = kappa * (freedom + slope / 2)
    return integral, max(float(most - least), 0.0) / np.sqrt(12)


def _reach(data: _Spectral, entropy: _Estimate, ratio: _Estimate) -> float:
    """Half-width of the interval of ln score, by the infinitesimal jackknife over distinct rows."""
    n = data.effective_rows
    influence = (entropy.influence + ratio.influence) / 2
    influence = influence - data.over_rows(influence)
    variance = data.over_drawn(data.shares * influence**2) * n / (n - 1)
    variance += float(data.shares[data.heavy] @ influence[data.heavy] ** 2) / data.n
    error = np.sqrt(variance + (entropy.systematic / 2) ** 2)
    return float(special.stdtrit(n - 1, (1 + LEVEL) / 2) * error)


def score_influences(sample: Sample) -> tuple[float, FloatArray] | None:
    """The logarithm of the corrected score, and what each sampled row would change about it.

    The influence of a row is judged by the other rows: no row vouches for its own direction.
    In-sample influences, which suffice for the interval, favour whatever has many rows, and so
    mislead a search for the weights of a mixture whose parts differ in size.

    Returns:
        ln(score), not clipped to what a score can be, and ψ, shape (k,): ln(score) of the
        *population* moves by about ε·p·ψ if a row with the share p of the dataset gets 1 + ε times
        its weight. The weighted mean of ψ is 0. None if the rows are too few, if there is no
        variance, or if the score would be the plain score of few contents.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).standard_normal((200, 8)) * [3, 1, 1, 1, 1, 1, 1, 1]
        >>> sample = Sample.of(rows)
        >>> value, influence = score_influences(sample)
        >>> round(float(np.exp(value)), 9) == round(corrected(sample).score, 9)
        True
        >>> bool(np.corrcoef(influence, sample.rows[:, 0] ** 2)[0, 1] < -0.9)
        True
    """
    data = _spectral(sample)
    if data is None or data.effective_rows < ENOUGH_ROWS:
        return None
    ratio = _log_participation_ratio(data)
    if ratio is None:
        return None
    ell, (rows, dimension) = data.eigenvalues, data.components.shape
    z = _penalties(ell, RESOLVED * (data.effective_rows - 1) + int(data.heavy.sum()))
    resolvent = 1.0 / (ell[:, None] + z)
    odds = np.where(data.heavy, 0.0, data.shares / np.maximum(1.0 - data.shares, 1.0 / rows))
    with one_blas_thread():
        within = data.components @ resolvent  # xᵀ(S+z)⁻¹x
        freedom = ell @ resolvent
    left_out = within / (1 - np.minimum(odds[:, None] * within, 1 - 1e-9))
    kappa = z * (data.shares @ left_out) / (data.shares @ within)
    # xᵀ(Σ+κ)⁻¹x of the population. Its integral over κ, made finite, is −xᵀ(ln Σ)x, and the
    # entropy −tr(Σ ln Σ) is the mean of that over the rows.
    whitened = left_out * (z / kappa)
    lengths = data.components.sum(axis=1)
    log_kappa = np.log(kappa)
    middle = (whitened - lengths[:, None] / (1 + kappa)) * kappa
    slope = -float(np.gradient(freedom[:3], log_kappa[:3], edge_order=2)[0])
    head, _ = _unresolved(float(kappa[0]), float(freedom[0]), slope, dimension)
    surprise = whitened[:, 0] * head / freedom[0] - lengths * np.log1p(kappa[0])
    surprise += np.trapezoid(middle, log_kappa, axis=1)
    surprise += lengths * (np.log1p(1 / kappa[-1]) - 1 / kappa[-1]) + whitened[:, -1]
    influence = (surprise - lengths * data.over_rows(surprise) + ratio.influence) / 2
    value = (_entropy(data).value + ratio.value) / 2 - np.log(dimension)
    return float(value), influence - data.over_rows(influence)
