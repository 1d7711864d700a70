"""Datasets ranked by score, and which differences are more than chance.

Here: what `visdiv compare` and the asset `dataset_leaderboard` share. Not here: the comparison of
scores and the published ones (`guidance/comparison.py`).
"""

from collections.abc import Sequence

from visdiv_assets.guidance.comparison import Difference, Scored, compare
from visdiv_assets.warehouse.records import Evaluation


def leaderboard(evaluations: Sequence[Evaluation]) -> tuple[list[Evaluation], list[Difference]]:
    """Evaluations by corrected score, the highest first, and which differences are sure."""
    ranked = sorted(evaluations, key=lambda each: -(each.corrected_score or 0.0))
    scored = [
        Scored(each.dataset, each.corrected_score, each.corrected_low, each.corrected_high)
        for each in ranked
        if each.corrected_score is not None
        and each.corrected_low is not None
        and each.corrected_high is not None
    ]
    return ranked, compare(scored)
