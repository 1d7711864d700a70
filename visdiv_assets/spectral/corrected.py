"""The diversity score of the population that a dataset was drawn from, with an interval.

Here: effective rank, participation ratio and score of the population, estimated from a sample of
its rows, with their uncertainty.
Not here: the score as it is (`score.py`), the sample and its merging (`sample.py`), which rows are
one piece of evidence (`sampling.py`).

`docs/corrected-score.md` explains the estimator and measures its accuracy. This module is longer
than most, because it is one estimator whose steps have no use alone.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from visdiv_assets.spectral.moments import BLOCK_ROWS, FloatArray, Moments, Shift, check_embeddings
from visdiv_assets.spectral.sample import HEAVY_SHARE, Kept, Sample, row_keys
from visdiv_assets.spectral.sampling import (
    Units,
    known_share,
    members_of,
    near_duplicate_units,
    squares_of_sums,
    times_larger,
    units_of,
)
from visdiv_assets.spectral.threads import one_blas_thread

# Estimates of different versions are not compared. 1 took every distinct row for a piece of
# evidence; 2 takes sampling units.
ESTIMATOR = 2

# Fewer sampling units give no reliable estimate: with 30, scores may be 20 to 30 % too high. Where
# nearly all images are alike, everything depends on the few others; then it takes more.
ENOUGH_UNITS, ENOUGH_IF_ALIKE = 50, 250

# Images are not alike, or are as alike as it gets, from this spread around their mean on.
NOT_ALIKE, ALIKE = 0.7, 0.5

LEVEL = 0.95

# The share of the degrees of freedom that is read from the sample; the rest is extrapolated.
# Closer to 1, the smallest eigenvalues dominate, and so do a few near-duplicates.
RESOLVED = 0.8

# Points on the curve df(κ). Using 800 instead changes an effective rank by less than 0.1 %.
GRID, GRID_ERROR = 200, 0.001

# The leverages of larger units are computed at every so-manieth point and interpolated.
SMALL_UNIT, COARSE = 8, 8

# Of the range in which what is not resolved lies: the largest standard error. A triangle's is 0.20
# to 0.24 of it; the largest ones are those of flat spectra, whose intervals hold with less.
WIDEST = 0.2245

# Penalties at which the moves of κ are computed, for intervals only.
KAPPA_POINTS = 12

# Leverages are below 1. Where the size of a unit is estimated, its leverage may come out higher.
MOST_LEVERAGE, MOST_ESTIMATED = 1 - 1e-9, 0.9

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)

Interval = tuple[float, float]
_UNKNOWN = (np.nan, np.nan)


@dataclass(frozen=True)
class CorrectedScore:
    """Diversity of the population that a dataset was sampled from.

    Attributes:
        score: `sqrt(ER/D · PR/D)`, in [0, 1]; NaN if there are too few sampling units.
        low: lower end of the 95 % interval of the score, in [0, `score`], or NaN.
        high: upper end, in [`score`, 1], or NaN.
        effective_rank: in [1, D], or NaN.
        participation_ratio: in [1, `effective_rank`], or NaN.
        n: number of rows, copies included.
        n_units: effective number of sampling units, 1/Σw² of their shares w; 0 if there are none.
        effective_rank_interval: 95 % interval, or NaN.
        participation_ratio_interval: 95 % interval, or NaN.
    """

    score: float
    low: float
    high: float
    effective_rank: float
    participation_ratio: float
    n: int
    n_units: float = 0.0
    effective_rank_interval: Interval = _UNKNOWN
    participation_ratio_interval: Interval = _UNKNOWN

    @property
    def too_few(self) -> bool:
        """Whether there were too few sampling units for an estimate."""
        return bool(np.isnan(self.score))

    @classmethod
    def unknown(cls, n: int, n_units: float = 0.0) -> "CorrectedScore":
        """What is known of `n` rows that are too few for an estimate."""
        return cls(np.nan, np.nan, np.nan, np.nan, np.nan, n, n_units)


def corrected_score(
    embeddings: NDArray[Any],
    *,
    sampling_unit: Literal["near-duplicates", "row"] = "near-duplicates",
) -> CorrectedScore:
    """The size-corrected diversity score of a matrix of embeddings.

    The result is bit-identical for any order of the rows. Equal rows are always one sampling unit.

    Args:
        embeddings: shape (N, D), N ≥ 2, any real dtype, rows of any length.
        sampling_unit: what counts as one piece of evidence: "near-duplicates" (rows at a cosine
            similarity of 0.90 or more), or "row". For "row", angles play no part: shifting all rows
            changes nothing, and nothing is asked about how alike they are.

    Returns:
        The score with its 95 % interval, effective rank and participation ratio; NaN with fewer
        than 50 sampling units.

    Raises:
        ValueError: not a matrix, NaN or infinity in it, fewer than 2 rows, or another sampling
            unit.

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
    if sampling_unit not in ("near-duplicates", "row"):
        raise ValueError(f"sampling_unit must be near-duplicates or row; got {sampling_unit!r}")
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
    contents, first, counts = np.unique(keys, return_index=True, return_counts=True)
    heavy = np.flatnonzero((counts >= HEAVY_SHARE * len(rows)) & ~np.isin(contents, sample.keys))
    if len(heavy):  # exactly, since no block has all of them
        shifted = shift.apply(rows[first[heavy]])
        sample = replace(sample, heavy=Kept(contents[heavy], shifted, counts[heavy]))
    if sampling_unit == "row":  # has no need of an origin, so that shifting rows changes nothing
        return corrected(sample, units_of(sample, "row"), origin=None)
    kept = first[np.searchsorted(contents, sample.everything.keys)]
    # Similarity is one of the rows as they were before they were shifted.
    origin = shift.apply(np.zeros((1, rows.shape[1])))[0]
    return corrected(sample, near_duplicate_units(rows[kept]), origin=origin)


def corrected(
    sample: Sample, units: Units | None = None, *, origin: FloatArray | float | None = 0.0
) -> CorrectedScore:
    """The size-corrected diversity score of a dataset, from its moments and sample.

    Args:
        sample: moments of all rows, and some or all of the distinct ones.
        units: the sampling unit of each kept row, heavy ones last, shape (k,), integers from 0 on;
            None means `units_of(sample)`: as the source says, else near-duplicates.
        origin: where 0 is, as seen from the rows: their angles say how alike they are. None if
            they have no origin.

    Returns:
        The score with its 95 % interval, effective rank and participation ratio; NaN with fewer
        than 50 sampling units (1/Σw² of their shares w of the dataset), or than up to 250 if all
        are alike. A unit that is much larger than the others is taken for a part of the population,
        as far as `known_share` says.

    References:
        Silverstein, "Strong convergence of the empirical distribution of eigenvalues of
        large dimensional random matrices", J. Multivariate Analysis 55, 1995.
        El Karoui, "Spectrum estimation for large dimensional covariance matrices using random
        matrix theory", Annals of Statistics 36, 2008.
        Jaeckel, "The infinitesimal jackknife", Bell Laboratories, 1972.
        Robbins, "Estimating the total probability of the unobserved outcomes of an experiment",
        Annals of Mathematical Statistics 39, 1968.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> halves = [Sample.of(rng.standard_normal((100, 64))) for _ in range(2)]
        >>> both = corrected(halves[0] + halves[1])
        >>> both.n, both.low <= both.score <= both.high
        (200, True)
        >>> rows = rng.standard_normal((100, 64))
        >>> twice = Sample.of(np.concatenate([rows, 1.01 * rows]))
        >>> [round(corrected(each).n_units) for each in (Sample.of(rows), twice)]
        [100, 100]
    """
    n, dimension = sample.moments.n, sample.moments.dimension
    units = units_of(sample) if units is None else units
    data = _spectral(sample, units)
    about = None if origin is None else sample.moments.about(origin)
    alike = 0.0 if about is None or data is None else _alike(sample, about, data)
    enough = ENOUGH_UNITS * (ENOUGH_IF_ALIKE / ENOUGH_UNITS) ** alike
    if data is None or round(data.n_units, 9) < round(enough, 9):
        return CorrectedScore.unknown(n, 0.0 if data is None else data.n_units)
    ratio = _log_participation_ratio(data)
    if ratio is None:
        return CorrectedScore.unknown(n, data.n_units)
    entropy = _entropy(data)
    if about is not None and alike and np.isfinite(about.outer).all():
        another = _with_another(sample, units, about, data)
        ratio, entropy = (
            each.with_more_above(alike * max(more - each.value, 0.0))
            for each, more in zip((ratio, entropy), another, strict=True)
        )
    both = _Estimate(
        (entropy.value + ratio.value) / 2 - np.log(dimension),
        (entropy.influence + ratio.influence) / 2,
        (entropy.by_keeping + ratio.by_keeping) / 2,
        (entropy.below + ratio.below) / 2,
        (entropy.above + ratio.above) / 2,
    )
    er = float(np.clip(np.exp(entropy.value), 1.0, dimension))
    pr = float(np.clip(np.exp(ratio.value), 1.0, er))
    score = min(float(np.sqrt(er * pr)) / dimension, 1.0)
    low, high = _interval(data, both, score, 0.0, 1.0)
    return CorrectedScore(
        score,
        low,
        high,
        er,
        pr,
        n,
        data.n_units,
        _interval(data, entropy, er, 1.0, dimension),
        _interval(data, ratio, pr, 1.0, dimension),
    )


@dataclass(frozen=True, eq=False)
class _Spectral:
    """Spectrum and rows of a dataset whose total variance is scaled to 1.

    A row's share of the dataset is split in two: what is known to be a part of the population, and
    what was drawn from it. Sums over all drawn rows are estimated from the kept ones; if all
    distinct rows were kept, they are exact. Rows are k of the sample, heavy ones last.

    Attributes:
        eigenvalues: ℓ, shape (D,): eigenvalues of the covariance with 1/n; they sum to 1.
        along: shape (k, D): coordinates of the centred rows along the axes.
        components: a, shape (k, D): the squares of these.
        units: sampling unit of each row, shape (k,).
        known: share of the dataset of each row that is known, shape (k,).
        shares: p, shape (k,): share of the dataset of each row that was drawn.
        drawn: share of the dataset that was drawn.
        times: how many drawn rows each kept one stands for, shape (k,): one, if all were kept or
            if it is heavy; else as many times more as there are.
        kept: share of the distinct rows that was kept, as far as can be told.
        n_known: how many units are known; not an integer where some are in part.
        n_units: (Σw)²/Σw² of the drawn shares w of the units; the number of units if all are
            equally large.
        n: number of rows, copies included.
    """

    eigenvalues: FloatArray
    along: FloatArray
    components: FloatArray
    units: Units
    known: FloatArray
    shares: FloatArray
    drawn: float
    times: FloatArray
    kept: float
    n_known: float
    n_units: float
    n: int

    def over_rows(self, values: FloatArray) -> float:
        """Σ (share · value) over all distinct rows."""
        return float(self.known @ values) + self.over_drawn(values)

    def over_drawn(self, values: FloatArray) -> float:
        """The same, of what was drawn."""
        return float((self.times * self.shares) @ values)


@dataclass(frozen=True, eq=False)
class _Estimate:
    """An estimate with its sources of error.

    Attributes:
        value: the estimate.
        influence: ψ, shape (k,): the estimate moves by ε·p·ψ if a row's weight grows by 1 + ε.
        by_keeping: shape (k,): by so much it moves if another row like this one had been kept,
            while all rows are the same.
        below: standard error, downwards, of what no influence shows: the extrapolated part.
        above: the same, upwards; and for images that are like no other and were not drawn.
    """

    value: float
    influence: FloatArray
    by_keeping: FloatArray
    below: float = 0.0
    above: float = 0.0

    def with_more_above(self, error: float) -> "_Estimate":
        """The same with one more source of error, upwards."""
        return replace(self, above=float(np.hypot(self.above, error)))


def _alike(sample: Sample, about: Moments, data: _Spectral) -> float:
    """How far what was drawn is nearly one image, in [0, 1]; not counting what is known."""
    rows = sample.everything.rows + (about.mean - sample.moments.mean)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = (about.mean - data.known @ rows) / data.drawn
        squares = float(np.trace(about.outer)) / about.n
        squares = (squares - float(data.known @ np.sum(rows**2, axis=1))) / data.drawn
    if not 0 < squares < np.inf:
        return 1.0
    spread = 1 - float(mean @ mean) / squares
    return float(np.clip((NOT_ALIKE - spread) / (NOT_ALIKE - ALIKE), 0.0, 1.0))


def _with_another(
    sample: Sample, units: Units, about: Moments, data: _Spectral
) -> tuple[float, float]:
    """The logarithms of PR and ER if there were one more unit, which is like none of the others.

    If 200 images are of one film, nothing in them tells that every hundredth image of the
    population is something else. One could have been: so far are the estimates to be trusted.

    Args:
        sample: the dataset.
        units: of the kept rows.
        about: moments of the dataset as seen from its origin.
        data: what is known of it.
    """
    with one_blas_thread():
        unlike = np.linalg.eigh(about.outer)[1][:, 0]
    row = sample.moments.mean - about.mean + unlike * np.sqrt(np.trace(about.outer) / about.n)
    size = max(round(data.n / data.n_units), 1)  # as many images as others have
    kept = sample.everything
    more = Sample(
        sample.moments + Moments(size, row * size, np.outer(row, row) * size),
        np.append(kept.keys, kept.keys[-1]),  # nobody looks at keys from here on
        np.vstack([kept.rows, row]),
        np.append(kept.counts, size * data.kept),
        len(kept.rows) + 1,
    )
    found = _spectral(more, np.append(units, units.max() + 1))
    ratio = None if found is None else _log_participation_ratio(found)
    if found is None or ratio is None:
        return -np.inf, -np.inf
    return ratio.value, _entropy(found).value


def _spectral(sample: Sample, units: Units) -> _Spectral | None:
    """Spectrum and rows, or None if there is no variance or nothing was drawn."""
    moments = sample.moments
    covariance = moments.covariance() * ((moments.n - 1) / moments.n)
    variance = float(np.trace(covariance))
    second_moment = float(np.trace(moments.outer)) / moments.n
    if variance <= np.finfo(np.float64).eps * moments.dimension * second_moment:
        return None
    all_kept = sample.everything
    counts = all_kept.counts.astype(np.float64)
    heavy = np.full(len(counts), sample.complete) | (counts >= HEAVY_SHARE * moments.n)
    stands_for = _times(counts, heavy, float(moments.n))
    of_unit = known_share(counts, units, stands_for)
    known = of_unit[units] * counts * stands_for / moments.n
    shares = (1 - of_unit[units]) * counts / moments.n
    drawn = 1 - float(known.sum())
    if shares.sum() <= 0 or drawn <= 0:
        return None
    times = _times(shares, heavy, drawn)
    with one_blas_thread():
        eigenvalues, axes = np.linalg.eigh(covariance / variance)
        along = ((all_kept.rows - moments.mean) @ axes) / np.sqrt(variance)
    return _Spectral(
        eigenvalues=np.clip(eigenvalues, 0.0, None),
        along=along,
        components=along**2,
        units=units,
        known=known,
        shares=shares,
        drawn=drawn,
        times=times,
        kept=1.0 / float(times.max()),
        n_known=float(of_unit.sum()),
        n_units=drawn**2 / squares_of_sums(shares, units, times),
        n=moments.n,
    )


def _times(values: FloatArray, whole: NDArray[np.bool_], total: float) -> FloatArray:
    """How many times each value counts if all of them are to sum up to `total`: once if whole."""
    rest = float(values[~whole].sum())
    missing = total - float(values[whole].sum())
    return np.where(whole, 1.0, max(missing / rest, 1.0) if rest > 0 else 1.0)


def _log_participation_ratio(data: _Spectral) -> _Estimate | None:
    """The logarithm of PR, from unbiased (tr Σ)² and tr Σ²; None if one of them is not positive.

    Pairs of rows of one unit are removed from tr S². For single rows, numerator and denominator
    are unbiased for any distribution of the rows.
    """
    n = data.n_units
    lengths = data.components.sum(axis=1)
    own = _within_units(data, lengths)
    if data.known.any():
        return _ratio_with_known_rows(data, lengths, own)
    trace = n / (n - 1)
    square = trace**2 * float(data.eigenvalues @ data.eigenvalues)
    fourth = n**3 / (n - 1) * data.over_drawn(own)
    scale = (n - 1) / (n * (n - 2) * (n - 3))
    above = scale * (2 * square + (n**2 - 3 * n + 1) * trace**2 - fourth)
    below = scale * ((n - 1) * (n - 2) * square + trace**2 - fourth)
    if above <= 0 or below <= 0:
        return None
    influence = 2 * lengths - 2 * (data.components @ data.eigenvalues - own) / below
    by_fourth = scale * n**3 / (n - 1) * (1 / below - 1 / above)
    return _Estimate(float(np.log(above / below)), influence, by_fourth * data.shares * own)


def _within_units(data: _Spectral, lengths: FloatArray) -> FloatArray:
    """Σ p (x·y)² over the drawn rows y of each row's own unit, itself among them, shape (k,)."""
    own: FloatArray = data.shares * lengths**2
    for rows in members_of(data.units):
        with one_blas_thread():
            products = (data.along[rows] @ data.along[rows].T) ** 2
        np.fill_diagonal(products, 0.0)
        own[rows] += products @ (data.times * data.shares)[rows]
    return own


def _ratio_with_known_rows(
    data: _Spectral, lengths: FloatArray, own: FloatArray
) -> _Estimate | None:
    """The same with known rows: pairs are removed only from drawn ones; first order in 1/n."""
    n, at = data.n_units, np.flatnonzero(data.known)
    weights, rows = data.known[at], data.along[at]
    with one_blas_thread():
        products = (rows @ rows.T) ** 2
    among_known = float(weights @ products @ weights)
    known_and_all = float(weights @ data.components[at] @ data.eigenvalues)
    square = float(data.eigenvalues @ data.eigenvalues)
    among_drawn = square - 2 * known_and_all + among_known
    unbiased = (among_drawn - data.over_drawn(own)) / (1 - 1 / n)
    below = among_known + 2 * (known_and_all - among_known) + unbiased
    centre = weights @ rows / data.drawn
    within = data.over_drawn(lengths) / data.drawn - float(centre @ centre)
    trace = 1 + data.drawn**2 * within / n
    if below <= 0:
        return None
    away = own * data.shares / (data.shares + data.known)
    influence = 2 * lengths - 2 * (data.components @ data.eigenvalues - away) / below
    by_keeping = data.shares * own / (below * (1 - 1 / n))
    return _Estimate(float(np.log(trace**2 / below)), influence, by_keeping)


def _entropy(data: _Spectral) -> _Estimate:
    """The logarithm of ER, from the degrees of freedom at each ridge penalty.

    With df(κ) = Σ λ/(λ+κ) of the *population*, its entropy is ∫₀^∞ df(κ) − 1/(1+κ) dκ. The
    sample has the same degrees of freedom, Σ ℓ/(ℓ+z) = df(κ), at a smaller penalty z. The κ that
    belongs to z follows from leave-one-out prediction: with the leverage h of a row, which is
    h/(1−h) when the row is left out, κ = z · mean(h/(1−h)) / mean(h).
    """
    ell, dimension = data.eigenvalues, data.components.shape[1]
    z = _penalties(ell, RESOLVED * (data.n_units - 1) + data.n_known)
    resolvent = 1.0 / (ell[:, None] + z)
    with one_blas_thread():
        freedom, at = ell @ resolvent, data.components @ resolvent
        of_rows = _leverages(data, resolvent, z)
    # What is known is not left out.
    leverage, left_out, _ = data.times @ of_rows + data.known @ at
    kappa = z * left_out / leverage

    log_kappa = np.log(kappa)
    integrand = (freedom - 1 / (1 + kappa)) * kappa
    steps = np.diff(log_kappa)
    widths = np.zeros_like(kappa)
    widths[:-1] += steps / 2
    widths[1:] += steps / 2
    start, first = float(kappa[0]), float(freedom[0])
    slope = -float(np.gradient(freedom[:3], log_kappa[:3], edge_order=2)[0])
    head, below, above = _unresolved(start, first, slope, dimension)
    # Beyond the grid df(κ) is 1/κ − Σλ²/κ².
    beyond = np.log1p(1 / kappa[-1]) - 1 / kappa[-1] + freedom[-1]
    value = head - np.log1p(start) + float(integrand @ widths) + float(beyond)

    by_freedom = kappa * widths
    by_log_kappa = (freedom - 1 / (1 + kappa) ** 2) * kappa * widths
    between = (integrand[:-1] + integrand[1:]) / 2
    by_log_kappa[1:] += between
    by_log_kappa[:-1] -= between
    step = 1e-4
    more, *_ = _unresolved(start, first * (1 + step), slope * (1 + step), dimension)
    by_freedom[0] += (more - head) / (first * step)
    by_log_kappa[0] += head - start / (1 + start)
    by_eigenvalue = resolvent**2 @ (z * by_freedom)
    influence = data.components @ (by_eigenvalue - float(ell @ by_eigenvalue))
    influence += _through_kappa(data, resolvent, z, of_rows, by_log_kappa)
    by_keeping = of_rows[1] @ (by_log_kappa / left_out) - of_rows[0] @ (by_log_kappa / leverage)
    below, above = (float(np.hypot(each, GRID_ERROR)) for each in (below, above))
    return _Estimate(value, influence, by_keeping, below, above)


def _leverages(data: _Spectral, resolvent: FloatArray, z: FloatArray) -> FloatArray:
    """h, h/(1−h) and h/(1−h)² of each drawn row at each penalty, shape (3, k, GRID).

    A unit is left out as a whole: its h are the eigenvalues of X(S+z)⁻¹Xᵀ/n, and each of its rows
    has a part of their sum. If only some of its rows were kept, those that are missing are taken to
    be like them.
    """
    larger = times_larger(data.units, data.kept)
    larger[data.units[data.times == 1]] = 1.0
    odds = larger[data.units] * data.shares
    # p/(1−p) instead of p, since the mean is also computed without the unit.
    odds /= np.maximum(1 - np.bincount(data.units, odds)[data.units], 1 / len(odds))
    most = MOST_LEVERAGE if data.kept == 1 else MOST_ESTIMATED
    found = _three(odds[:, None] * (data.components @ resolvent), most)
    for rows in members_of(data.units):
        if not data.shares[rows].any():  # all of it is known
            continue
        step = 1 if len(rows) <= SMALL_UNIT else COARSE
        points = np.r_[0 : len(z) - 1 : step, len(z) - 1]
        weighted = np.sqrt(odds[rows])[:, None] * data.along[rows]
        products = (weighted * resolvent.T[points, None, :]) @ weighted.T
        sums = _three(np.linalg.eigvalsh(products), most).sum(axis=-1)
        if step > 1:
            logs = np.log(np.maximum(sums, 1e-300))
            sums = np.exp([np.interp(np.log(z), np.log(z[points]), each) for each in logs])
        parts = data.shares[rows] / data.shares[rows].sum()
        found[:, rows] = sums[:, None, :] * parts[:, None]
    of_rows: FloatArray = found / larger[data.units][:, None]
    return of_rows


def _three(leverage: FloatArray, most: float) -> FloatArray:
    h = np.clip(leverage, 0.0, most)
    left_out = h / (1 - h)
    return np.stack([h, left_out, left_out / (1 - h)])


def _through_kappa(
    data: _Spectral,
    resolvent: FloatArray,
    z: FloatArray,
    of_rows: FloatArray,
    by_log_kappa: FloatArray,
) -> FloatArray:
    """How the entropy moves, as κ does, when a row gains weight, shape (k,).

    The row's own leverage grows; those of all others shrink, the more, the more they are like it.

    Args:
        data: spectrum and rows.
        resolvent: 1/(ℓ+z), shape (D, GRID).
        z: penalties, shape (GRID,).
        of_rows: as `_leverages` returns them.
        by_log_kappa: derivative of the entropy by each ln κ, shape (GRID,).
    """
    points = np.linspace(0, len(z) - 1, KAPPA_POINTS).round().astype(int)
    hats = np.array([np.interp(np.log(z), np.log(z[points]), each) for each in np.eye(len(points))])
    # Single precision does, since errors need no more.
    along, squares = data.along.astype(np.float32), data.components
    own, lengths = data.shares + data.known, squares.sum(axis=1)
    influence = np.zeros(len(own))
    for point, weight in zip(points, hats @ by_log_kappa, strict=True):
        ridge = resolvent[:, point]
        with one_blas_thread():
            products = (along * ridge.astype(np.float32)) @ along.T
            products *= products
            q, curved = squares @ ridge, squares @ ridge**2
        known = data.known * q
        # ln κ is ln z + ln Σ h/(1−h) − ln Σ h; the slope of the former by h is 1/(1−h)².
        for value, slope, sign in ((of_rows[1], of_rows[2], 1.0), (of_rows[0], of_rows[0], -1.0)):
            total = float(data.times @ value[:, point]) + float(known.sum())
            drawn = slope[:, point]
            by_row = (data.times * drawn + known) / np.maximum(q, 1e-300)  # a row may be the mean
            with one_blas_thread():
                shrinks = products @ by_row.astype(np.float32)
            scaling = z[point] * float(by_row @ curved)
            influence += (
                weight * sign / total * ((drawn + known) / own - shrinks - lengths * scaling)
            )
    return influence


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


def _unresolved(
    kappa: float, freedom: float, slope: float, dimension: int
) -> tuple[float, float, float]:
    """∫ df from 0 to the smallest resolved κ, and its standard errors downwards and upwards.

    Two facts bound the integral: df is convex in κ, so it lies above its tangent, and by the
    Cauchy-Schwarz inequality ln(D/df − 1) grows no faster than ln κ. The estimate extrapolates
    with the slope of ln(D/df − 1) in ln κ, which is exact for a flat spectrum (slope 1) and for
    one of low rank (slope 0). The errors are those of a triangular distribution between the bounds
    whose mode is the estimate: downwards its standard deviation, up to WIDEST of the range, upwards
    the root mean square of what lies above the mode. The upper bound is mostly the closer one.

    Args:
        kappa: the smallest resolved κ.
        freedom: df at kappa, in (0, D].
        slope: −d df / d ln κ at kappa, in [0, df].
        dimension: D.
    """
    odds = dimension / freedom - 1
    if odds < 1e-9:
        return kappa * freedom, 0.0, 0.0
    power = float(np.clip(slope / freedom * dimension / (dimension - freedom), 0.0, 1.0))
    # Substitute t⁴, t in [0, 1], for κ, since the curve may be steep at 0.
    t = (_NODES + 1) / 2
    heights = dimension / (1 + odds * t ** (4 * power))
    integral = kappa * float(2 * t**3 * heights @ _NODE_WEIGHTS)
    most = kappa * dimension * np.log1p(odds) / odds
    least = kappa * (freedom + slope / 2)
    down, up = max(integral - least, 0.0), max(float(most) - integral, 0.0)
    deviation = np.sqrt((down**2 + down * up + up**2) / 18)
    return integral, min(deviation, WIDEST * (down + up)), up / np.sqrt(6)


def _interval(
    data: _Spectral, estimate: _Estimate, value: float, least: float, most: float
) -> Interval:
    """95 % interval of exp(estimate), which is reported as `value`, within its range.

    By the infinitesimal jackknife over sampling units. Where few of them carry most of the
    variance, it is itself little known, which Satterthwaite's degrees of freedom say.
    """
    n = data.n_units
    influence = estimate.influence - data.over_rows(estimate.influence)
    variance = squares_of_sums(data.shares * influence, data.units, data.times) * n / (n - 1)
    variance += float(data.known @ influence**2) / data.n
    # Another sample of the same rows would say something else.
    chosen = estimate.by_keeping - data.shares * (data.times @ estimate.by_keeping) / data.drawn
    variance += float((data.times * (data.times - 1)) @ chosen**2)
    carried = np.bincount(data.units, data.times * data.shares * influence) ** 2
    surplus = float(carried @ carried) / max(float(carried.sum()) ** 2, 1e-300) - 1 / len(carried)
    freedom = min(max(2 / max(surplus, 1e-9), 2.0), n - 1)
    errors = float(special.stdtrit(freedom, (1 + LEVEL) / 2))
    down = errors * float(np.sqrt(variance + estimate.below**2))
    up = errors * float(np.sqrt(variance + estimate.above**2))
    return (
        float(np.clip(np.exp(estimate.value - down), least, value)),
        float(np.clip(np.exp(min(estimate.value + up, 700.0)), value, most)),
    )


def score_influences(sample: Sample) -> tuple[float, FloatArray] | None:
    """The logarithm of the corrected score, and what each sampled row would change about it.

    The influence of a row is judged by the other sampling units: none vouches for its own
    direction. In-sample influences, which suffice for the interval, favour whatever has many rows,
    and so mislead a search for the weights of a mixture whose parts differ in size.

    Returns:
        ln(score), not clipped to what a score can be, and ψ, shape (k,): ln(score) of the
        *population* moves by about ε·p·ψ if a row with the share p of the dataset gets 1 + ε times
        its weight. The weighted mean of ψ is 0. None if there are too few sampling units or if
        there is no variance.

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
    data = _spectral(sample, units_of(sample))
    if data is None or round(data.n_units, 9) < ENOUGH_UNITS:
        return None
    ratio = _log_participation_ratio(data)
    if ratio is None:
        return None
    ell, dimension = data.eigenvalues, data.components.shape[1]
    z = _penalties(ell, RESOLVED * (data.n_units - 1) + data.n_known)
    resolvent = 1.0 / (ell[:, None] + z)
    with one_blas_thread():
        within = data.components @ resolvent  # xᵀ(S+z)⁻¹x
        freedom = ell @ resolvent
    odds = data.shares / np.maximum(
        1.0 - np.bincount(data.units, data.shares)[data.units], 1.0 / len(data.shares)
    )
    # Rows of a unit are about parallel, so that its leverage is the sum of theirs.
    leverage = odds[:, None] * within
    for rows in members_of(data.units):
        leverage[rows] = leverage[rows].sum(axis=0)
    left_out = within / (1 - np.minimum(leverage, MOST_LEVERAGE))
    shares = data.times * data.shares + data.known
    kappa = z * (shares @ left_out) / (shares @ within)
    # xᵀ(Σ+κ)⁻¹x of the population. Its integral over κ, made finite, is −xᵀ(ln Σ)x, and the
    # entropy −tr(Σ ln Σ) is the mean of that over the rows.
    whitened = left_out * (z / kappa)
    lengths = data.components.sum(axis=1)
    log_kappa = np.log(kappa)
    middle = (whitened - lengths[:, None] / (1 + kappa)) * kappa
    slope = -float(np.gradient(freedom[:3], log_kappa[:3], edge_order=2)[0])
    head, *_ = _unresolved(float(kappa[0]), float(freedom[0]), slope, dimension)
    surprise = whitened[:, 0] * head / freedom[0] - lengths * np.log1p(kappa[0])
    surprise += np.trapezoid(middle, log_kappa, axis=1)
    surprise += lengths * (np.log1p(1 / kappa[-1]) - 1 / kappa[-1]) + whitened[:, -1]
    influence = (surprise - lengths * data.over_rows(surprise) + ratio.influence) / 2
    value = (_entropy(data).value + ratio.value) / 2 - np.log(dimension)
    return float(value), influence - data.over_rows(influence)
