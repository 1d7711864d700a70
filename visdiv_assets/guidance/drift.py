"""How far apart two sets of embeddings are, and whether what came or went is of another kind.

Here: what came, went and stayed between two samples, a test of each, and distances of centroids,
Gaussians and subspaces.
Not here: which sets to compare (`workflows/drift.py`), verdicts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.errors import counted
from visdiv_assets.spectral.moments import FloatArray, Moments
from visdiv_assets.spectral.sample import HEAVY_SHARE, Kept, Sample
from visdiv_assets.spectral.sampling import Units, near_duplicate_units, numbered
from visdiv_assets.spectral.threads import one_blas_thread

# Leading directions whose subspaces are compared.
LEADING = 10

# Where nothing has drifted, it is found to be more than chance this often.
LEVEL = 0.05

# With 4 tests at once, a single one must reach 0.0125; 199 shuffles go down to 0.005.
SHUFFLES = 199

# Fewer sampling units do not tell what kind they are of.
FEWEST = 5

# Directions are scaled to one spread, unless they have less than about 3 times the mean variance.
# A smaller factor finds noise in the pixels better and a few pictures of another kind worse.
RIDGE = 3.0

_STAYED, _CAME, _WENT = 0, 1, 2


@dataclass(frozen=True)
class Side:
    """What came, or what went.

    Attributes:
        images: how many, copies included; an estimate unless `Drift.exact`.
        units: sampling units of it that were compared.
        p: probability of a difference as large where there is no drift, in (0, 1]; None if there
            are too few units.
    """

    images: int
    units: int
    p: float | None


@dataclass(frozen=True, eq=False)
class Drift:
    """The distance of two sets of embeddings.

    Attributes:
        centroid: distance of the means, ≥ 0; unit vectors are at most 2 apart.
        frechet: squared Fréchet distance of the two Gaussians, ≥ 0.
        angles: principal angles between the leading subspaces, degrees, ascending, in [0, 90].
        came: what is only in the later set.
        went: what is only in the earlier set.
        stayed: images of the later set that did not come, copies included.
        exact: whether the numbers of images are exact, not estimated from samples.
        tests: how many tests were made; if nothing stayed, what came and went are one.
    """

    centroid: float
    frechet: float
    angles: FloatArray
    came: Side
    went: Side
    stayed: int
    exact: bool
    tests: int

    @property
    def p(self) -> float | None:
        """The smaller probability, times the number of tests (Bonferroni); None without any."""
        found = [side.p for side in (self.came, self.went) if side.p is not None]
        return min(1.0, self.tests * min(found)) if found else None

    @property
    def large(self) -> bool:
        """Whether it is more than chance explains; 1 time in 20 without any drift."""
        return is_large(self.p)

    def finding(self, comparisons: int = 1) -> str:
        """What was found, in words.

        Args:
            comparisons: how many sets this one is compared with.
        """
        if not self.came.images and not self.went.images:
            return "no image came or went"
        told = [] if self.p is None else [in_words(self.p, comparisons)]
        units = "which count as" if self.exact else "of which the samples have"
        few = [
            counted(side.images, f"{what} image")
            + ("" if side.units == side.images else f", {units} {side.units:,}")
            for side, what in ((self.came, "new"), (self.went, "removed"))
            if side.images and side.p is None
        ]
        return "; ".join([*told, *(f"cannot tell from {each}" for each in few)])


def is_large(p: float | None, comparisons: int = 1) -> bool:
    """Whether the smallest of several p-values is more than chance, by Bonferroni's correction.

    Example:
        >>> is_large(0.03), is_large(0.03, comparisons=2), is_large(None)
        (True, False, False)
    """
    return p is not None and p * comparisons <= LEVEL


def in_words(p: float, comparisons: int = 1) -> str:
    """As `is_large`, for people."""
    return "more than chance" if is_large(p, comparisons) else "no more than chance"


def measure_drift(before: Sample, now: Sample) -> Drift:
    """Distances between two sets, and whether what came or went is of another kind.

    Contents are known by their keys, so each came, went or stayed; where a sample is not complete,
    this is known of the keys up to its largest one. Sampling units are what both samples say, else
    near-duplicates. What came is tested against all that was there before, and what went against
    all that is there now, by shuffling units. More copies of a content that was there before are
    nothing new.

    The row with the smallest key tells whether its unit came, went or stayed. Keys are random, so
    without drift any unit may be any of these, whether images came one by one or in clips. If every
    unit that lies in two groups stayed, large units would, and single images would come and go.

    Args:
        before: one set, with at least 2 rows.
        now: the other, of the same dimension; equal contents have equal keys.

    Returns:
        distances from all moments; all else from the samples.

    References:
        Székely & Rizzo, "Testing for equal distributions in high dimension", InterStat, 2004 (the
        energy distance); Chen et al., "A regularized Hotelling's T² test for pathway analysis in
        proteomic studies", JASA 106, 2011 (scaled directions); Dowson & Landau, "The Fréchet
        distance between multivariate normal distributions", 1982; Björck & Golub, "Numerical
        methods for computing angles between linear subspaces", 1973.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).standard_normal((440, 64))
        >>> rows[420:, 0] += 3.0
        >>> first, second, third = (Sample.of(rows[:n]) for n in (400, 420, 440))
        >>> measure_drift(first, second).finding(), measure_drift(second, third).finding()
        ('no more than chance', 'more than chance')
        >>> measure_drift(first, Sample.of(rows[:403])).finding()
        'cannot tell from 3 new images'
    """
    keys, rows, units, n_before, n_now = _side_by_side(before, now)
    groups = np.select([n_before == 0, n_now == 0], [_CAME, _WENT], _STAYED)
    rows, groups = _one_row_each(rows, units, groups)
    p_came, p_went = _p_values(rows, groups)
    tests = sum(p is not None for p in (p_came, p_went))
    n_came, n_went = _only_in(now, before, keys), _only_in(before, now, keys)
    return Drift(
        centroid=float(np.linalg.norm(before.moments.mean - now.moments.mean)),
        frechet=frechet_distance(before.moments, now.moments),
        angles=principal_angles(before.moments, now.moments),
        came=Side(n_came, int(np.sum(groups == _CAME)), p_came),
        went=Side(n_went, int(np.sum(groups == _WENT)), p_went),
        stayed=now.moments.n - n_came,
        exact=before.complete and now.complete,
        tests=tests if np.any(groups == _STAYED) else min(tests, 1),
    )


def _only_in(one: Sample, other: Sample, keys: NDArray[np.uint64]) -> int:
    """How many images of a set the other does not have.

    Heavy contents are counted as they are, whatever their keys; all others as far as both samples
    know them.

    Args:
        one: the set.
        other: the other one.
        keys: of the contents that both samples know of.
    """
    kept = [each.everything for each in (one, other)]
    heavy = [
        rows.keys[rows.counts >= HEAVY_SHARE * each.moments.n]
        for rows, each in zip(kept, (one, other), strict=True)
    ]
    exact = np.union1d(*heavy)
    rest = np.setdiff1d(keys, exact)
    only = [np.maximum(_times(kept[0], of) - _times(kept[1], of), 0).sum() for of in (exact, rest)]
    known = _times(kept[0], rest).sum()
    scale = (one.moments.n - _times(kept[0], exact).sum()) / known if known else 0.0
    return round(float(only[0] + scale * only[1]))


def _times(kept: Kept, keys: NDArray[np.uint64]) -> NDArray[Any]:
    """How often each content occurs, as far as it was kept."""
    order = np.argsort(kept.keys)
    at = np.searchsorted(kept.keys[order], keys).clip(max=max(len(order) - 1, 0))
    found = order[at]
    return np.where(kept.keys[found] == keys, kept.counts[found], 0)


def _side_by_side(
    before: Sample, now: Sample
) -> tuple[NDArray[np.uint64], FloatArray, Units, NDArray[Any], NDArray[Any]]:
    """The rows of either sample by key, with keys and units, and how often each set has them.

    Beyond the largest key of a sample that is not complete, nobody knows what the set has, so rows
    end there; but not if the sets have nothing in common up to there. They are different then, or
    of so different sizes that nobody knows.
    """
    keys, first = np.unique(np.concatenate([before.keys, now.keys]), return_index=True)
    rows = np.concatenate([before.rows, now.rows])[first]
    times = []
    for each in (before, now):
        counts = np.zeros(len(keys), each.counts.dtype)
        counts[np.searchsorted(keys, each.keys)] = each.counts
        times.append(counts)
    ends = [each.keys[-1] for each in (before, now) if not each.complete]
    known = int(np.searchsorted(keys, min(ends), side="right")) if ends else len(keys)
    if not np.any((times[0][:known] > 0) & (times[1][:known] > 0)):
        known = len(keys)
    told = [each.units for each in (before, now) if each.units is not None]
    units = numbered(np.concatenate(told)[first][:known]) if len(told) == 2 else None
    if units is None:
        units = near_duplicate_units(rows[:known])
    return keys[:known], rows[:known], units, times[0][:known], times[1][:known]


def _one_row_each(
    rows: FloatArray, units: Units, groups: NDArray[np.int64]
) -> tuple[FloatArray, NDArray[np.int64]]:
    """A row for each sampling unit, and its group: those of its first row.

    Args:
        rows: shape (k, D), in an order that is random.
        units: of each row, shape (k,).
        groups: of each row, shape (k,).
    """
    _, first = np.unique(units, return_index=True)
    of_units = groups[first]
    n_came, n_went, n_stayed = (
        np.bincount(units, weights=groups == group) for group in (_CAME, _WENT, _STAYED)
    )
    if n_stayed.any():  # else files were stored anew, or two sets have pictures in common
        # As many files that came as went: the same pictures, compressed anew.
        of_units[(n_came == n_went) & (n_came > 0) & (n_stayed == 0)] = _STAYED
    return rows[first], of_units


def _p_values(rows: FloatArray, groups: NDArray[np.int64]) -> list[float | None]:
    """How probable differences of what came, and of what went, from all others are by chance.

    None where there are too few units.
    """
    distances: FloatArray | None = None
    found: list[float | None] = []
    for group in (_CAME, _WENT):
        chosen = groups == group
        if min(np.sum(chosen), np.sum(~chosen)) < FEWEST:
            found.append(None)
            continue
        distances = _distances(rows) if distances is None else distances
        found.append(_by_chance(distances, chosen))
    return found


def _distances(rows: FloatArray) -> FloatArray:
    """Distances of rows after scaling their directions to one spread, shape (k, k).

    Some of many directions decide what kind a picture is of. Unscaled, those of the largest spread
    would drown them.
    """
    centred = rows - rows.mean(axis=0)
    with one_blas_thread():
        values, axes = np.linalg.eigh(centred.T @ centred / len(rows))
        spread = float(values.mean())
        if not spread > 0:
            return np.zeros((len(rows), len(rows)))
        scaled = centred @ (axes / np.sqrt(np.clip(values, 0, None) + RIDGE * spread))
        products = scaled @ scaled.T
    squares = np.diag(products)
    distances: FloatArray = np.sqrt(np.clip(squares[:, None] + squares - 2 * products, 0, None))
    np.fill_diagonal(distances, 0.0)
    return distances


def _by_chance(distances: FloatArray, chosen: NDArray[np.bool_]) -> float:
    """How probable an energy distance as large as that of the chosen rows from the others is.

    Args:
        distances: shape (k, k).
        chosen: shape (k,), with some True and some False.

    Returns:
        the share of shuffles, the given order among them, that are as far apart, in (0, 1].
    """
    rng = np.random.default_rng(0)  # the same shuffles every time
    shuffled = rng.permuted(np.tile(chosen, (SHUFFLES, 1)), axis=1)
    every = np.concatenate([chosen[None], shuffled])
    weights = np.where(every, 1 / chosen.sum(), -1 / (~chosen).sum())
    with one_blas_thread():
        energies = -np.sum((weights @ distances) * weights, axis=1)
    as_far = energies >= energies[0] - 1e-12  # shuffles may be equal but for rounding
    return float(as_far.mean())


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Fréchet distance of two Gaussians, `‖μ−ν‖² + tr(S + T − 2(S½TS½)½)`, ≥ 0.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(frechet_distance(Moments.of(rows), Moments.of(rows + 3.0)), 9)
        18.0
    """
    s, t = one.covariance(), other.covariance()
    with one_blas_thread():
        values, axes = np.linalg.eigh(s)
        # S½TS½ has the eigenvalues of the same product in S's own axes.
        root = axes * np.sqrt(np.clip(values, 0, None))
        cross = np.linalg.eigvalsh(root.T @ t @ root)
    apart = float(np.sum((one.mean - other.mean) ** 2))
    overlap = float(np.sqrt(np.clip(cross, 0, None)).sum())
    return max(apart + float(np.trace(s) + np.trace(t)) - 2 * overlap, 0.0)


def principal_angles(one: Moments, other: Moments, leading: int = LEADING) -> FloatArray:
    """Angles between the subspaces of the leading directions of two sets.

    Returns:
        min(`leading`, D) angles in degrees, ascending, in [0, 90].

    Example:
        >>> import numpy as np
        >>> flat = Moments.of(np.array([[1.0, 0.0], [-1.0, 0.0]]))
        >>> steep = Moments.of(np.array([[0.0, 1.0], [0.0, -1.0]]))
        >>> principal_angles(flat, steep, leading=1).tolist()
        [90.0]
    """
    leading = min(leading, one.dimension)
    with one_blas_thread():
        first = np.linalg.eigh(one.covariance())[1][:, -leading:]
        second = np.linalg.eigh(other.covariance())[1][:, -leading:]
        cosines = np.linalg.svd(first.T @ second, compute_uv=False)
    angles: FloatArray = np.degrees(np.arccos(np.clip(cosines, 0, 1)))
    return np.sort(angles)
