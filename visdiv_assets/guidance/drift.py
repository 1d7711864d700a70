"""How far apart two sets of embeddings are, and whether that is more than chance.

Here: distances of centroids, Gaussians and subspaces, and their size by chance.
Not here: which sets to compare, verdicts.
"""

from dataclasses import dataclass

import numpy as np

from visdiv_assets.spectral.moments import FloatArray, Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.threads import one_blas_thread

# Leading directions whose subspaces are compared.
LEADING = 10

# With 19 shuffles, a distance exceeds all of them by chance with a probability of 5 %.
SHUFFLES = 19

# Rows of each side that the shuffles use.
ROWS_SHUFFLED = 400


@dataclass(frozen=True, eq=False)
class Drift:
    """The distance of two sets of embeddings.

    Attributes:
        centroid: distance of the means, ≥ 0; unit vectors are at most 2 apart.
        frechet: squared Fréchet distance of the two Gaussians, ≥ 0.
        angles: principal angles between the leading subspaces, degrees, ascending, in [0, 90].
        sampled: Fréchet distance between the sampled rows that the shuffles use.
        by_chance: the largest Fréchet distance of any shuffle of those rows.
    """

    centroid: float
    frechet: float
    angles: FloatArray
    sampled: float
    by_chance: float

    @property
    def large(self) -> bool:
        """Whether it is larger than in every shuffle, which happens by chance 1 time in 20."""
        return self.sampled > self.by_chance


def measure_drift(before: Sample, now: Sample) -> Drift:
    """Distances between two sets, and between random halves of both together.

    Args:
        before: one set, with at least 2 rows.
        now: the other, of the same dimension.

    Returns:
        distances from all moments; the shuffles need rows, so they use the samples.

    References:
        Dowson & Landau, "The Fréchet distance between multivariate normal distributions", 1982;
        Björck & Golub, "Numerical methods for computing angles between linear subspaces", 1973.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.standard_normal((400, 8))
        >>> same = measure_drift(Sample.of(rows[:200]), Sample.of(rows[200:]))
        >>> moved = measure_drift(Sample.of(rows[:200]), Sample.of(rows[200:] + 0.5))
        >>> same.large, moved.large
        (False, True)
    """
    one, other = _drawn(before), _drawn(now)
    sampled = _frechet_of_rows(one, other)
    pool = np.concatenate([one, other])
    rng = np.random.default_rng(0)  # the same shuffles every time
    by_chance = 0.0
    for _ in range(SHUFFLES):
        order = rng.permutation(len(pool))
        first, second = pool[order[: len(one)]], pool[order[len(one) :]]
        by_chance = max(by_chance, _frechet_of_rows(first, second))
    return Drift(
        centroid=float(np.linalg.norm(before.moments.mean - now.moments.mean)),
        frechet=frechet_distance(before.moments, now.moments),
        angles=principal_angles(before.moments, now.moments),
        sampled=sampled,
        by_chance=by_chance,
    )


def _drawn(sample: Sample) -> FloatArray:
    """Rows for the shuffles, with copies in proportion; random, since keys are random."""
    ends = np.cumsum(sample.counts[:ROWS_SHUFFLED])
    size = min(int(ends[-1]), ROWS_SHUFFLED)
    places = (np.arange(size) + 0.5) * (ends[-1] / size)
    drawn: FloatArray = sample.rows[np.searchsorted(ends, places, side="right")]
    return drawn


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


def _frechet_of_rows(one: FloatArray, other: FloatArray) -> float:
    """As `frechet_distance`, but faster if there are fewer rows than dimensions."""
    a, b = one - one.mean(axis=0), other - other.mean(axis=0)
    a, b = a / np.sqrt(max(len(a) - 1, 1)), b / np.sqrt(max(len(b) - 1, 1))
    with one_blas_thread():
        overlap = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    apart = float(np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2))
    return apart + float(np.sum(a * a) + np.sum(b * b)) - 2 * overlap


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
