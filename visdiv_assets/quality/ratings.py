"""Ratings of a score that is an estimate: stars, what they mean, and how a score can be read.

Here: when there are stars, a range of them, and the sentences beside a score. Not here: the limits
of the ratings (`spectral/score.py`), tables and pictures.
"""

from dataclasses import dataclass

from visdiv_assets.errors import counted
from visdiv_assets.spectral.score import RATINGS, TOO_FEW, Rating, rate

# Stars compare datasets; below this many sampling units an interval spans several of them.
ENOUGH_FOR_STARS = 100

# Real sets of different pictures spread by 0.7 to 0.97; half of a set being one picture leaves 0.6.
NEARLY_ONE = 0.5

# Few sampling units that hold this many images each are no small set: they are a large one that
# repeats itself.
MANY_TIMES = 10

NEARLY_ONE_IMAGE = "nearly one image"
FEW_MANY_TIMES = "few images, many times"
TOO_FEW_FOR_STARS = "too few for stars"


@dataclass(frozen=True)
class Reading:
    """A corrected score with its 95 % interval; all None where it cannot be told."""

    score: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Rated:
    """The rating of an estimate.

    Attributes:
        name: of the rating, "Normal to Good" where the interval spans several, or why there
            is none.
        stars: of the score, 1 to 5; 0 if there are none.
        least: stars at the lower end of the interval.
        most: stars at the upper end.
    """

    name: str
    stars: int = 0
    least: int = 0
    most: int = 0

    @property
    def text(self) -> str:
        """The stars, or from how many to how many; empty if there are none.

        Example:
            >>> Rated("Normal to Good", 4, 3, 4).text, Rated("Good", 4, 4, 4).text
            ('★★★ to ★★★★', '★★★★☆')
        """
        if not self.stars:
            return ""
        if self.least != self.most:
            return f"{'★' * self.least} to {'★' * self.most}"
        return "★" * self.stars + "☆" * (len(RATINGS) - self.stars)


def rated(reading: Reading, n_units: float, spread: float, n_images: int) -> Rated:
    """The rating of a corrected score.

    Args:
        reading: the score and its interval.
        n_units: effective number of sampling units.
        spread: 1 − ‖mean‖² of the embeddings.
        n_images: images.

    Example:
        >>> rated(Reading(0.46, 0.38, 0.48), n_units=400, spread=0.8, n_images=400).name
        'Normal to Good'
        >>> rated(Reading(0.49, 0.47, 0.51), n_units=400, spread=0.02, n_images=400).name
        'nearly one image'
        >>> rated(Reading(None, None, None), n_units=3, spread=0.6, n_images=300).name
        'few images, many times'
    """
    if spread < NEARLY_ONE:
        return Rated(NEARLY_ONE_IMAGE)
    if reading.score is None or reading.low is None or reading.high is None:
        return Rated(FEW_MANY_TIMES if is_many_times(n_images, n_units) else TOO_FEW)
    if n_units < ENOUGH_FOR_STARS:
        return Rated(TOO_FEW_FOR_STARS)
    low, at, high = rate(reading.low), rate(reading.score), rate(reading.high)
    name = at.name if low == high else f"{low.name} to {high.name}"
    return Rated(name, at.stars, low.stars, high.stars)


def is_many_times(n_images: int, n_units: float) -> bool:
    """Whether images are few ones many times over, which no larger number of them would cure."""
    return n_images >= MANY_TIMES * max(n_units, 1.0)


def meaning(corrected: float, plain: float, n_images: int) -> str:
    """What a rating says of the images themselves, which may be too few to show what it promises.

    Example:
        >>> meaning(0.79, 0.287, 213)
        'the place these 213 images come from; they hold 36 % of that'
        >>> meaning(0.45, 0.44, 90_000)
        'Suitable for MLLM training'
    """
    rating: Rating = rate(corrected)
    if plain >= rating.score_from:
        return rating.means
    images = counted(n_images, "image")
    return f"the place these {images} come from; they hold {100 * plain / corrected:.0f} % of that"


def two_readings(unit: str, by_unit: Reading, other: Reading) -> str:
    """A sentence where it matters what counts as one piece of evidence; else nothing.

    Args:
        unit: the sampling unit: near-duplicates, row, folder or `column NAME`.
        by_unit: the score with this unit.
        other: with near-duplicates if the unit is a row, else with rows.

    Example:
        >>> two_readings("near-duplicates", Reading(0.80, 0.77, 0.83), Reading(0.47, 0.46, 0.48))
        '0.47 as it is; 0.80 if near-copies are accidents of collecting'
        >>> two_readings("near-duplicates", Reading(0.80, 0.77, 0.83), Reading(0.79, 0.76, 0.82))
        ''
    """
    if not _apart(by_unit, other):
        return ""
    rows, units = (by_unit, other) if unit == "row" else (other, by_unit)
    return f"{_told(rows)} as it is; {_told(units)} if {_if(unit)}"


def _apart(one: Reading, other: Reading) -> bool:
    if one.score is None or other.score is None:
        return one.score is not other.score
    return (one.low or 0.0) > (other.high or 0.0) or (other.low or 0.0) > (one.high or 0.0)


def _told(reading: Reading) -> str:
    if reading.score is None:
        return TOO_FEW
    return f"{reading.score:.2f}" if reading.score >= 0.1 else f"{reading.score:.2g}"


def _if(unit: str) -> str:
    if unit == "folder":
        return "a folder is one piece of evidence"
    if unit.startswith("column "):
        return f"what has one {unit.removeprefix('column ')} is one piece of evidence"
    return "near-copies are accidents of collecting"
