"""How each slice of a dataset affects the diversity of the whole.

Here: names of slices, and scores without a slice or with it twice. Not here: moments of slices.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from visdiv_assets.spectral.corrected import CorrectedScore, corrected
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import diversity

# A slice's moments and sample take 6 MB, so further slices are merged into one.
MOST_SLICES = 40
OTHERS = "(others)"
NAMELESS = "(none)"


@dataclass(frozen=True)
class Slice:
    """A slice of a dataset.

    Attributes:
        name: name of the slice.
        n: number of images in it.
        share: share of all images, in (0, 1].
        corrected: its own size-corrected score.
        left_out: change of the dataset's plain score if the slice were left out; NaN if fewer
            than 2 images would be left.
        doubled: change of the dataset's plain score if each image of the slice counted twice.
    """

    name: str
    n: int
    share: float
    corrected: CorrectedScore
    left_out: float
    doubled: float


def judge_slices(parts: Mapping[str, Sample]) -> list[Slice]:
    """The effect of each slice on the whole dataset, largest slice first.

    The changes follow from moments alone: those of the whole minus, or plus, those of the slice.

    Args:
        parts: the slices by name, at least one, with at least 2 images in total.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> many, one = rng.standard_normal((200, 8)), np.tile(rng.standard_normal(8), (100, 1))
        >>> found = judge_slices({"many": Sample.of(many), "one": Sample.of(one)})
        >>> [(each.name, each.left_out > 0, each.doubled > 0) for each in found]
        [('many', False, True), ('one', True, False)]
    """
    whole = Moments.sum(part.moments for part in parts.values())
    score = diversity(whole).score
    slices = []
    for name, part in parts.items():
        rest = whole - part.moments
        slices.append(
            Slice(
                name=name,
                n=part.moments.n,
                share=part.moments.n / whole.n,
                corrected=_judge(part),
                left_out=diversity(rest).score - score if rest.n >= 2 else math.nan,
                doubled=diversity(whole + part.moments).score - score,
            )
        )
    return sorted(slices, key=lambda each: (-each.n, each.name))


def _judge(part: Sample) -> CorrectedScore:
    if part.moments.n < 2:
        return CorrectedScore.unknown(part.moments.n)
    return corrected(part)


def by_folder(image_ids: Iterable[str]) -> list[str]:
    """The folder of each image: the part of its id before the last slash.

    Images inside larger files belong to their file, and to a folder in it if there is one.

    Example:
        >>> by_folder(["cats/a.jpg", "b.jpg", "shard.tar#0001.jpg"])
        ['cats', '(none)', 'shard.tar']
    """
    return [_folder(image_id) for image_id in image_ids]


def _folder(image_id: str) -> str:
    file, mark, member = image_id.partition("#")
    if not mark:
        return file.rpartition("/")[0] or NAMELESS
    folder = member.rpartition("/")[0]
    return f"{file}#{folder}" if folder else file


def by_column(metadata: Iterable[Mapping[str, str] | None], column: str) -> list[str]:
    """The value that each image has in a column of its source.

    Example:
        >>> by_column([{"label": "cat"}, None], "label")
        ['cat', '(none)']
    """
    return [(each or {}).get(column) or NAMELESS for each in metadata]


def slices_of(counts: Mapping[str, int]) -> tuple[list[str], dict[str, int]]:
    """The slices, largest first, and the slice that each name belongs to.

    If there are too many, the smallest ones are merged into the last slice.

    Args:
        counts: number of images with each name.

    Example:
        >>> slices_of({"a": 1, "b": 2})
        (['b', 'a'], {'a': 1, 'b': 0})
    """
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    kept = [name for name, _ in ordered]
    if len(kept) > MOST_SLICES:
        kept = [*kept[: MOST_SLICES - 1], OTHERS]
    code = {name: at for at, name in enumerate(kept)}
    return kept, {name: code.get(name, len(kept) - 1) for name in counts}
