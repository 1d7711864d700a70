"""The FineVision visual-diversity score and its ratings.

Here: `sqrt(ER/D · PR/D)` from moments or from a matrix of embeddings, and the rating of a score.
Not here: corrections for few images, intervals, making embeddings.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.moments import BLOCK_ROWS, FloatArray, Moments, Shift, check_embeddings
from visdiv_assets.spectral.spectrum import (
    effective_rank,
    participation_ratio,
    spectrum,
)


@dataclass(frozen=True)
class Rating:
    """A rating from a lowest score on: its `name`, 1 to 5 `stars`, and what it `means`."""

    score_from: float
    stars: int
    name: str
    means: str


RATINGS = (
    Rating(0.50, 5, "Very Good", "FineVision-level diversity"),
    Rating(0.40, 4, "Good", "Suitable for MLLM training"),
    Rating(0.30, 3, "Normal", "Augmentation recommended"),
    Rating(0.20, 2, "Low", "Strong bias suspected"),
    Rating(0.00, 1, "Very Low", "Severe redundancy"),
)

# The rating of a set that is too small for an estimate.
TOO_FEW = "too few to tell"


def rate(score: float) -> Rating:
    """The rating of a score in [0, 1].

    Raises:
        ValueError: the score is outside [0, 1].

    Example:
        >>> rate(0.458).name, rate(0.458).stars
        ('Good', 4)
    """
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"a diversity score lies in [0, 1]; got {score}")
    return next(rating for rating in RATINGS if score >= rating.score_from)


def diversity_score(effective_rank: float, participation_ratio: float, dimension: int) -> float:
    """`sqrt(ER/D · PR/D)`, in [0, 1].

    Raises:
        ValueError: D < 1, or ER or PR outside [0, D].

    References:
        FineVision (HuggingFaceM4), section "How diverse are the datasets?".

    Example:
        >>> round(diversity_score(359.22, 182.52, 512), 3)
        0.5
    """
    if dimension < 1:
        raise ValueError(f"the dimension must be positive; got {dimension}")
    for value in (effective_rank, participation_ratio):
        if not 0 <= value <= dimension:
            raise ValueError(f"ER and PR lie between 0 and the dimension, {dimension}; got {value}")
    return float(np.sqrt(effective_rank / dimension * participation_ratio / dimension))


@dataclass(frozen=True, eq=False)
class Diversity:
    """The plain (uncorrected) diversity of a set of embeddings, with its components.

    Attributes:
        n: number of embeddings.
        dimension: D.
        spectrum: eigenvalues λ of the covariance, descending, shape (D,).
        effective_rank: in [1, D]; 0 without variance.
        participation_ratio: in [1, D]; 0 without variance.
        score: `sqrt(ER/D · PR/D)`, in [0, 1].
    """

    n: int
    dimension: int
    spectrum: FloatArray
    effective_rank: float
    participation_ratio: float
    score: float

    @property
    def rating(self) -> Rating:
        """The rating of the score."""
        return rate(self.score)


def diversity(moments: Moments) -> Diversity:
    """The diversity of the vectors that the moments summarise.

    Raises:
        ValueError: fewer than 2 vectors.
    """
    eigenvalues = spectrum(moments)
    er = effective_rank(eigenvalues)
    pr = participation_ratio(eigenvalues)
    score = diversity_score(er, pr, moments.dimension)
    return Diversity(moments.n, moments.dimension, eigenvalues, er, pr, score)


def get_diversity_components(embeddings: NDArray[Any]) -> tuple[float, float]:
    """Effective rank and participation ratio of a matrix of embeddings.

    Args:
        embeddings: shape (N, D), N ≥ 2, any real dtype.

    Returns:
        `(effective_rank, participation_ratio)`, each in [1, D], or 0 without variance.

    Raises:
        ValueError: not a matrix, NaN or infinity in it, or fewer than 2 rows.

    Example:
        >>> import numpy as np
        >>> er, pr = get_diversity_components(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
        >>> round(er, 12), round(pr, 12)
        (2.0, 2.0)
    """
    moments, _ = _moments_to_score(embeddings)
    measured = diversity(moments)
    return measured.effective_rank, measured.participation_ratio


class DiversityCalculator:
    """Diversity score of a matrix of embeddings.

    Args:
        dimension: the D that every matrix must have; None allows any.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> embeddings = rng.standard_normal((20_000, 8)).astype(np.float32)
        >>> round(DiversityCalculator().calculate(embeddings), 2)
        1.0
        >>> DiversityCalculator().calculate(np.ones((5, 8)))
        0.0
    """

    def __init__(self, dimension: int | None = None) -> None:
        self.dimension = dimension

    def calculate(self, embeddings: NDArray[Any]) -> float:
        """The plain diversity score, in [0, 1].

        Args:
            embeddings: shape (N, D), N ≥ 2, any real dtype; never copied as a whole.

        Raises:
            ValueError: not a matrix, a wrong dimension, NaN or infinity in it, or fewer than
                2 rows. The message says which.
        """
        moments, _ = _moments_to_score(embeddings, self.dimension)
        return diversity(moments).score

    def measure(self, embeddings: NDArray[Any]) -> Diversity:
        """Score, effective rank, participation ratio and spectrum.

        Raises:
            ValueError: as `calculate` does, or the eigenvalues exceed float64 or vanish in it.
        """
        moments, shift = _moments_to_score(embeddings, self.dimension)
        measured = diversity(moments)
        with np.errstate(over="ignore"):
            eigenvalues = np.ldexp(measured.spectrum, -2 * shift.power)
        if not np.isfinite(eigenvalues).all() or bool(measured.score) != bool(eigenvalues.any()):
            raise ValueError("the variance of these embeddings leaves float64; scale them first")
        return replace(measured, spectrum=eigenvalues)


def _moments_to_score(
    embeddings: NDArray[Any], dimension: int | None = None
) -> tuple[Moments, Shift]:
    rows = np.asarray(embeddings)
    check_embeddings(rows, dimension=dimension)
    if len(rows) < 2:
        raise ValueError(f"a diversity score needs at least 2 embeddings; got {len(rows)}")
    shift = Shift.of(rows)
    moments = Moments.sum(
        Moments.of(shift.apply(rows[start : start + BLOCK_ROWS]))
        for start in range(0, len(rows), BLOCK_ROWS)
    )
    return moments, shift
