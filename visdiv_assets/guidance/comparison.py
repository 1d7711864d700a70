"""Which differences between corrected scores are larger than chance.

Here: the decision, and published scores to compare with. Not here: computing scores.
"""

import csv
import importlib.resources
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

# A 95 % interval reaches this many standard errors to each side.
REACH = 1.96
LEVEL = 0.05

# Scores below this count as this, since 0 has no logarithm.
FLOOR = 1e-12


@dataclass(frozen=True)
class Scored:
    """A dataset's corrected score with its 95 % interval, 0 ≤ `low` ≤ `score` ≤ `high`."""

    name: str
    score: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Standard error of ln(score)."""
        return math.log(max(self.high, FLOOR) / max(self.low, FLOOR)) / (2 * REACH)


@dataclass(frozen=True)
class Difference:
    """The difference of two datasets: `first` scores higher; `sure` if by more than chance."""

    first: str
    second: str
    ratio: float
    p_value: float
    sure: bool


def compare(scored: Sequence[Scored]) -> list[Difference]:
    """Every pair of datasets, most significant difference first.

    Scores are compared on a logarithmic scale by a two-sided z-test. With several pairs, Holm's
    procedure keeps the probability of even one false positive below 5 %.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> pair = [Scored("a", 0.40, 0.38, 0.42), Scored("b", 0.30, 0.29, 0.31)]
        >>> [(each.first, each.second, each.sure) for each in compare(pair)]
        [('a', 'b', True)]
    """
    differences = []
    for one, other in itertools.combinations(scored, 2):
        high, low = (one, other) if one.score >= other.score else (other, one)
        ratio = max(high.score, FLOOR) / max(low.score, FLOOR)
        error = math.hypot(high.error, low.error)
        if error > 0:
            p_value = math.erfc(math.log(ratio) / error / math.sqrt(2))
        else:
            p_value = 0.0 if ratio > 1 else 1.0
        differences.append((p_value, high.name, low.name, ratio))
    differences.sort()
    found, sure = [], True
    for rank, (p_value, first, second, ratio) in enumerate(differences):
        sure = sure and p_value <= LEVEL / (len(differences) - rank)
        found.append(Difference(first, second, ratio, p_value, sure))
    return found


@dataclass(frozen=True)
class Published:
    """A plain score of a whole dataset that others have published."""

    name: str
    n_images: int
    score: float
    source: str


def published_scores() -> list[Published]:
    """Published scores, highest first, of FineVision and visual-diversity-evaluation."""
    text = (importlib.resources.files("visdiv_assets.guidance") / "published.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    scores = [
        Published(row["dataset"], int(row["images"]), float(row["diversity_score"]), row["source"])
        for row in rows
    ]
    return sorted(scores, key=lambda each: -each.score)
