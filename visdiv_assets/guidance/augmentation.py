"""What an augmentation would add to the diversity of a dataset, and whether SSCD can see it.

Here: the change of the corrected score, with an interval, from embeddings of images and of their
augmented copies; which changes are more than chance; the advice in words. Not here: augmenting and
embedding (`embedding/augmentations.py`, `workflows/augment.py`).

`docs/guidance.md` explains the measurement and its accuracy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from visdiv_assets.guidance.comparison import LEVEL
from visdiv_assets.spectral.corrected import ENOUGH_UNITS, corrected
from visdiv_assets.spectral.moments import FloatArray, check_embeddings
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import TOO_FEW

# Number of random choices between image and copy. They come in complementary pairs, each of which
# uses both, so more of them would narrow an interval by only a few per cent.
DRAWS = 4

# Groups of images that the jackknife leaves out in turn.
GROUPS = 20

# With one group left out, there must still be enough rows for a corrected score.
ENOUGH_IMAGES = ENOUGH_UNITS + ENOUGH_UNITS // (GROUPS - 1) + 1

# FineVision counts two images as the same above this cosine similarity.
SAME_IMAGE = 0.95


@dataclass(frozen=True)
class Effect:
    """What adding an augmented copy of each image does to the corrected score.

    Attributes:
        change: relative change of the score: 0.05 is 5 % more; NaN if there are too few images.
        low: lower end of the 95 % interval of `change`, or NaN.
        high: upper end, or NaN.
        p_value: probability of a change this large by chance alone, or NaN.
        similarity: mean cosine similarity of an image and its copy, in [−1, 1].
        n: number of images with a copy each.
    """

    change: float
    low: float
    high: float
    p_value: float
    similarity: float
    n: int

    @property
    def unseen(self) -> bool:
        """Whether SSCD sees copy and image as the same, so that no score can tell."""
        return self.similarity >= SAME_IMAGE


def augmentation_effect(
    originals: NDArray[Any],
    augmented: NDArray[Any],
    groups: NDArray[np.integer[Any]] | None = None,
) -> Effect:
    """The change of the corrected score when an augmented copy of each image is added.

    Originals and their copies are not 2n independent rows, so the corrected score of their union
    would be wrong, and far too low for copies that resemble their originals. Instead, a coin toss
    selects either the image or its copy: n independent draws from a population that is half
    originals and half copies, scored exactly like the n originals. The change of ln(score) is the
    mean over DRAWS such choices, each used with its complement. The interval is a delete-a-group
    jackknife over images, which leaves out an image, its copy and its coin tosses together.

    Args:
        originals: shape (n, D), distinct images.
        augmented: shape (n, D), their copies, in the same order.
        groups: shape (n,): images whose copies were mixed from each other (mix-up) share a number,
            and each choice takes one image per group; None means that each image is its own group.

    Raises:
        ValueError: the matrices are not finite or do not match each other.

    References:
        Kott, "The delete-a-group jackknife", Journal of Official Statistics 17, 2001.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.standard_normal((200, 64)) * np.linspace(0.1, 1, 64)
        >>> augmentation_effect(rows, rows).change
        0.0
        >>> turned = augmentation_effect(rows, rows[:, ::-1])
        >>> 0 < turned.low < turned.change < turned.high
        True
    """
    x, y = np.asarray(originals, np.float64), np.asarray(augmented, np.float64)
    for rows in (x, y):
        check_embeddings(rows)
    if x.shape != y.shape:
        raise ValueError(f"each image needs exactly one copy; got shapes {x.shape} and {y.shape}")
    names = np.arange(len(x)) if groups is None else np.asarray(groups)
    if names.shape != (len(x),):
        raise ValueError(f"groups must have shape ({len(x)},); got {names.shape}")
    _, code = np.unique(names, return_inverse=True)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    similarity = float(np.mean(np.sum(x * y, axis=1) / np.maximum(lengths, 1e-12)))

    choices = _choices(code, alone=groups is None)
    units = int(code.max()) + 1 if len(code) else 0
    change = _change(x, y, choices, np.ones(units, dtype=bool))
    left_out = np.array(
        [_change(x, y, choices, np.arange(units) % GROUPS != group) for group in range(GROUPS)]
    )
    error = math.sqrt((GROUPS - 1) / GROUPS * float(np.sum((left_out - left_out.mean()) ** 2)))
    if math.isnan(change) or math.isnan(error):
        return Effect(math.nan, math.nan, math.nan, math.nan, similarity, len(x))
    reach = float(special.stdtrit(GROUPS - 1, 1 - LEVEL / 2)) * error
    if error > 0:
        p_value = 2 * float(special.stdtr(GROUPS - 1, -abs(change) / error))
    else:
        p_value = 1.0 if change == 0 else 0.0
    low, high = math.expm1(change - reach), math.expm1(change + reach)
    return Effect(math.expm1(change), low, high, p_value, similarity, len(x))


class _Choice(NamedTuple):
    """One image of each group, and which of them use their copies; shapes (groups,)."""

    members: NDArray[np.int64]
    copies: NDArray[np.bool_]


def _choices(code: NDArray[np.integer[Any]], *, alone: bool) -> list[_Choice]:
    """The random choices, with a fixed seed."""
    rng = np.random.default_rng(0)
    choices = []
    for _ in range(DRAWS // 2):
        order = np.arange(len(code)) if alone else rng.permutation(len(code))
        members = order[np.unique(code[order], return_index=True)[1]]
        coins = rng.random(len(members)) < 0.5
        choices += [_Choice(members, coins), _Choice(members, ~coins)]
    return choices


def _change(
    x: FloatArray, y: FloatArray, choices: Sequence[_Choice], kept: NDArray[np.bool_]
) -> float:
    """The mean change of ln(score) over the groups that are kept."""
    changes: list[float] = []
    judged: dict[bytes, float] = {}
    for members, copies in choices:
        chosen, heads = members[kept], copies[kept]
        key = chosen.tobytes()
        if key not in judged:
            judged[key] = _log_score(x[chosen])
        changes.append(_log_score(np.where(heads[:, None], y[chosen], x[chosen])) - judged[key])
    return float(np.mean(changes))


def _log_score(rows: FloatArray) -> float:
    """Logarithm of the corrected score, or NaN; equal rows count as different images."""
    if len(rows) < ENOUGH_UNITS:
        return math.nan
    sample = Sample.of(rows, keys=np.arange(len(rows), dtype=np.uint64), capacity=len(rows))
    fair = corrected(sample, np.arange(len(rows)), origin=None)
    return math.log(fair.score) if fair.score > 0 else math.nan


def more_than_chance(effects: Mapping[str, Effect]) -> set[str]:
    """The names of the augmentations whose change is more than chance.

    By Holm's procedure, the probability of even one false positive is below 5 %.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> effects = {p: Effect(0.1, 0.0, 0.2, p, 0.5, 200) for p in (0.001, 0.03, 0.04)}
        >>> sorted(more_than_chance(effects)), sorted(more_than_chance({0.04: effects[0.04]}))
        ([0.001], [0.04])
    """
    told = {name: each for name, each in effects.items() if not math.isnan(each.p_value)}
    found: set[str] = set()
    for rank, name in enumerate(sorted(told, key=lambda name: told[name].p_value)):
        if told[name].p_value > LEVEL / (len(told) - rank):
            break
        found.add(name)
    return found


def verdict(effect: Effect, *, sure: bool) -> str:
    """An effect in a few words; `sure` says whether it is more than chance.

    Example:
        >>> verdict(Effect(0.1, 0.0, 0.2, 0.001, 0.5, 200), sure=True)
        'adds'
        >>> verdict(Effect(0.1, 0.0, 0.2, 0.001, 0.97, 200), sure=True)
        'hardly seen'
    """
    if math.isnan(effect.change):
        return TOO_FEW
    if effect.unseen:
        return "hardly seen"
    if not sure:
        return "may be chance"
    return "adds" if effect.change > 0 else "takes away"


def advise(effects: Mapping[str, Effect]) -> list[str]:
    """Advice about augmentations, in sentences.

    Example:
        >>> advise({"crop": Effect(0.1, 0.05, 0.15, 0.001, 0.5, 200)})
        ['These add diversity to this dataset, largest effect first: crop (+10 %).']
    """
    sure = more_than_chance(effects)
    by_verdict: dict[str, list[str]] = {}
    for name in sorted(effects, key=lambda name: -effects[name].change):
        effect = effects[name]
        said = f"{name} ({effect.change:+.0%})".replace("%", " %")
        by_verdict.setdefault(verdict(effect, sure=name in sure), []).append(said)
    return [
        f"{sentence}: {', '.join(by_verdict[word])}."
        for word, sentence in {
            "adds": "These add diversity to this dataset, largest effect first",
            "may be chance": "The change by these may be chance; more images would tell",
            "takes away": "These make the dataset less diverse, because their copies resemble each "
            "other more than the originals do",
            "hardly seen": "SSCD hardly tells these copies from the originals; they may still help "
            "a model, but the score cannot tell",
            TOO_FEW: "Too few images to tell",
        }.items()
        if word in by_verdict
    ]
