"""The contrasts that dominate a dataset: its leading axes, what lies at their ends, in words.

Here: leading eigen-directions from moments, the rows at their two ends, the slices that an axis
tells apart, the component that all images share, and sentences that say so. Not here: pictures and
names of images, where rows come from (`advice.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.corrected import ENOUGH_ROWS
from visdiv_assets.spectral.moments import BLOCK_ROWS, FloatArray, Moments
from visdiv_assets.spectral.score import RATINGS, TOO_FEW
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio
from visdiv_assets.spectral.threads import one_blas_thread

SIDES = ("A", "B")

# An axis dominates when, because of it alone, the best rating is out of reach.
BEST_SCORE = RATINGS[0].score_from

# Below this, what the slices explain is less than what they leave open.
MOSTLY_BETWEEN = 0.5

# Of 213 unrelated photographs SSCD finds 3 % in common; of icons, all on white, 15 %.
MUCH_SHARED = 0.10

# Images at an end resemble each other more than any two do, if by no more than that they lie
# there; for unrelated ones that is less than this.
ALIKE = 0.25


class Rows(Protocol):
    """Embeddings read in blocks: a matrix, or `embedding.rows.DatasetRows`."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, wanted: slice, /) -> NDArray[Any]:
        """The rows of a slice, shape (n, D)."""


@dataclass(frozen=True, eq=False)
class End:
    """One end of an axis.

    Attributes:
        rows: numbers of the rows farthest out, the farthest first, shape (k,).
        positions: how far out each is, in standard deviations along the axis, shape (k,), > 0.
        likeness: mean cosine between any two of these rows, in [−1, 1]; NaN for a single one.
        beyond: share of all rows that lie on this side of the mean, in [0, 1].
    """

    rows: NDArray[np.int64]
    positions: FloatArray
    likeness: float
    beyond: float


@dataclass(frozen=True)
class PlacedSlice:
    """Where a slice lies along an axis.

    Attributes:
        name: of the slice.
        share: of the images, in (0, 1].
        position: of its mean, in standard deviations; positive towards side A.
    """

    name: str
    share: float
    position: float


@dataclass(frozen=True, eq=False)
class Axis:
    """A direction along which a dataset varies.

    Attributes:
        number: 1 for the one with the largest variance.
        share: of all variance, in (0, 1].
        direction: unit vector, shape (D,), its largest coordinate positive; side A is where it
            points to, side B is opposite.
        ends: sides A and B.
        between: share of the variance along the axis that lies between slices rather than within
            them, in [0, 1], corrected for what chance explains; 0 without slices.
        slices: those that matter most along the axis, first.
    """

    number: int
    share: float
    direction: FloatArray
    ends: tuple[End, End]
    between: float
    slices: tuple[PlacedSlice, ...]

    def slice_at(self, side: str) -> PlacedSlice | None:
        """The slice that accounts for most of a side, if slices make this axis; else None."""
        if self.between < MOSTLY_BETWEEN:
            return None
        sign = 1 if side == SIDES[0] else -1
        return next((each for each in self.slices if sign * each.position > 0), None)


@dataclass(frozen=True, eq=False)
class Axes:
    """The leading axes of a dataset.

    Attributes:
        n: images, copies included.
        n_distinct: different rows among them.
        dimension: D.
        shared: ‖x̄‖² over the mean of ‖x‖², in [0, 1]: how much of an image all have in common.
        axes: the largest first; none where nothing varies.
    """

    n: int
    n_distinct: int
    dimension: int
    shared: float
    axes: tuple[Axis, ...]


def find_axes(
    moments: Moments,
    rows: Rows,
    slices: Mapping[str, Moments] | None = None,
    *,
    count: int = 5,
    per_end: int = 8,
) -> Axes:
    """The leading axes of a dataset, and what lies at their ends.

    Rows are read once, in blocks; of rows equally far out, the first ones are taken.

    Args:
        moments: of all images, copies included; n ≥ 2.
        rows: shape (N, D), the distinct ones.
        slices: moments of the parts that make up the whole, by name.
        count: axes to find, at least 1.
        per_end: rows to name at each end, at least 1.

    Raises:
        ValueError: fewer than 2 images, rows of another dimension, or nothing asked for.

    Example:
        >>> import numpy as np
        >>> x = np.array([[2.0, 0.1], [-2.0, 0.1], [1.0, -0.1], [-1.0, -0.1]])
        >>> [first] = find_axes(Moments.of(x), x, count=1, per_end=2).axes
        >>> [end.rows.tolist() for end in first.ends]
        [[0, 2], [1, 3]]
        >>> round(first.share, 3)
        0.996
    """
    if count < 1 or per_end < 1:
        raise ValueError("at least 1 axis and 1 row at each end must be asked for")
    covariance = moments.covariance()
    variance = float(np.trace(covariance))
    power = float(np.trace(moments.outer)) / moments.n
    shared = float(moments.mean @ moments.mean) / power if power > 0 else 0.0
    found = Axes(moments.n, len(rows), moments.dimension, min(shared, 1.0), ())
    # As in `spectral.spectrum`: rounding is no variance.
    if variance <= np.finfo(np.float64).eps * moments.dimension * power:
        return found
    with one_blas_thread():
        values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    real = values > 1e-12 * variance
    values, vectors = values[real], vectors[:, real]
    largest = np.argmax(np.abs(vectors), axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(len(values))])
    spread = np.sqrt(values * (moments.n - 1) / moments.n)
    ends = _ends(rows, moments.mean, vectors / spread, per_end)
    axes = []
    for at in range(len(values)):
        between, placed = _between(moments, slices or {}, vectors[:, at] / spread[at])
        axes.append(
            Axis(at + 1, float(values[at]) / variance, vectors[:, at], ends[at], between, placed)
        )
    return Axes(found.n, found.n_distinct, found.dimension, found.shared, tuple(axes))


def _ends(rows: Rows, mean: FloatArray, scaled: FloatArray, per_end: int) -> list[tuple[End, End]]:
    """The rows farthest out along each column of `scaled`, on both sides."""
    n_axes = scaled.shape[1]
    kept = [[_Farthest(per_end) for _ in SIDES] for _ in range(n_axes)]
    on_side_a = np.zeros(n_axes, dtype=np.int64)
    with one_blas_thread():
        for start in range(0, len(rows), BLOCK_ROWS):
            block = np.asarray(rows[start : start + BLOCK_ROWS], dtype=np.float64)
            if block.ndim != 2 or block.shape[1] != len(mean):
                raise ValueError(f"rows must have dimension {len(mean)}; got shape {block.shape}")
            positions = (block - mean) @ scaled
            on_side_a += (positions > 0).sum(axis=0)
            for at, (side_a, side_b) in enumerate(kept):
                side_a.take(positions[:, at], start, block)
                side_b.take(-positions[:, at], start, block)
    shares = on_side_a / max(len(rows), 1)
    return [
        (side_a.end(float(share)), side_b.end(1 - float(share)))
        for (side_a, side_b), share in zip(kept, shares, strict=True)
    ]


class _Farthest:
    """The k rows with the largest positions of those that streamed by."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._positions, self._numbers = np.empty(0), np.empty(0, dtype=np.int64)
        self._rows: FloatArray | None = None

    def take(self, positions: FloatArray, start: int, block: FloatArray) -> None:
        best = np.argsort(-positions, kind="stable")[: self._k]
        merged = np.concatenate([self._positions, positions[best]])
        # Stable, and earlier rows stand first.
        order = np.argsort(-merged, kind="stable")[: self._k]
        rows = block[best] if self._rows is None else np.concatenate([self._rows, block[best]])
        self._numbers = np.concatenate([self._numbers, start + best])[order]
        self._positions, self._rows = merged[order], rows[order]

    def end(self, beyond: float) -> End:
        """Only rows that are on this side at all."""
        out = self._positions > 0
        rows = np.empty((0, 1)) if self._rows is None else self._rows[out]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        whole = (rows / np.maximum(lengths, 1e-12)).sum(axis=0)
        k = len(rows)
        likeness = (float(whole @ whole) - k) / (k * (k - 1)) if k > 1 else math.nan
        return End(self._numbers[out], self._positions[out], likeness, beyond)


def _between(
    whole: Moments, slices: Mapping[str, Moments], scaled: FloatArray
) -> tuple[float, tuple[PlacedSlice, ...]]:
    """How much of the variance along an axis lies between slices, and where each slice lies.

    Chance alone explains (K − 1)/(n − 1) with K slices; that is taken out, as in adjusted R².
    """
    placed = [
        PlacedSlice(name, part.n / whole.n, float((part.mean - whole.mean) @ scaled))
        for name, part in slices.items()
        if part.n
    ]
    if len(placed) < 2 or whole.n <= len(placed):
        return 0.0, ()
    placed.sort(key=lambda each: (-each.share * each.position**2, each.name))
    explained = sum(each.share * each.position**2 for each in placed)
    adjusted = 1 - (1 - explained) * (whole.n - 1) / (whole.n - len(placed))
    return float(np.clip(adjusted, 0.0, 1.0)), tuple(placed)


def ceiling(shares: Sequence[float], dimension: int) -> float:
    """The highest score that a dataset can have whose leading axes hold these shares.

    That is when all other variance is spread evenly over all other directions.

    Args:
        shares: of the leading axes, in (0, 1], their sum no more than 1.
        dimension: D, more than there are shares.

    Example:
        >>> round(ceiling([0.5], 512), 3), round(ceiling([0.069], 512), 2)
        (0.026, 0.5)
    """
    rest = max(1 - math.fsum(shares), 0.0)
    others = dimension - len(shares)
    spectrum = np.array([*shares, *([rest / others] * others)])
    return math.sqrt(effective_rank(spectrum) * participation_ratio(spectrum)) / dimension


def describe(found: Axes) -> list[str]:
    """What the axes mean, in sentences for someone without linear algebra.

    They speak of row 1A, which shows the images at side A of the first axis, and so on.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.standard_normal((300, 64))
        >>> rows[:150, 0] += 20
        >>> describe(find_axes(Moments.of(rows), rows))[0]
        '62 % of all variation is one contrast: images like those in row 1A against images like
        those in row 1B.'
    """
    if found.n_distinct < ENOUGH_ROWS:
        return [
            f"{found.n_distinct} different images are {TOO_FEW} what dominates them; "
            f"it takes {ENOUGH_ROWS}."
        ]
    if not found.axes:
        return ["All images are the same to the model; there is nothing that varies."]
    said: list[str] = []
    dominating = [
        axis for axis in found.axes if ceiling([axis.share], found.dimension) < BEST_SCORE
    ]
    for axis in dominating:
        said += _describe_axis(axis, found.dimension)
    shares = [axis.share for axis in found.axes]
    if dominating:
        said.append(
            "If such a difference is not what the dataset is for, vary it (other backgrounds, "
            "places, cameras), or thin out the side that repeats."
        )
    else:
        said.append(
            f"No single contrast dominates: the largest holds {shares[0] * 100:.1f} % of all "
            f"variation, with which a score of up to {ceiling(shares[:1], found.dimension):.2f} is "
            "possible."
        )
        together = ceiling(shares, found.dimension)
        if len(shares) > 1 and together < BEST_SCORE:
            said.append(
                f"The first {len(shares)} together hold {_percent(sum(shares))} and keep the score "
                f"below {_rounded_up(together)}."
            )
    said.append(_describe_shared(found.shared, everywhere=not dominating))
    return said


def _describe_axis(axis: Axis, dimension: int) -> list[str]:
    a, b = (f"{axis.number}{side}" for side in SIDES)
    how_much = f"{_percent(axis.share)} of all variation is"
    if axis.number > 1:
        how_much = f"Another {_percent(axis.share)} is"
    said = [
        f"{how_much} one contrast: images like those in row {a} against images like those in "
        f"row {b}."
    ]
    likeness = [end.likeness for end in axis.ends]
    alike = [each >= ALIKE for each in likeness]
    if all(alike):
        said.append("The images in each of the two rows resemble one another: two groups.")
    elif any(alike):
        at = alike.index(True)
        one, other = (a, b) if at == 0 else (b, a)
        said.append(
            f"Those in row {one} resemble one another (mean cosine {likeness[at]:.2f}), those in "
            f"row {other} do not ({likeness[1 - at]:.2f}): look at what repeats in row {one}. "
            f"{_percent(axis.ends[at].beyond)} of the images are on its side."
        )
    placed = [(name, axis.slice_at(side)) for name, side in zip((a, b), SIDES, strict=True)]
    if named := [(name, each) for name, each in placed if each is not None]:
        where = " and ".join(
            f"{each.name} ({_percent(each.share)} of the images) is at the end of row {name}"
            for name, each in named
        )
        said.append(f"{_percent(axis.between)} of it is a difference between slices: {where}.")
    said.append(
        f"By itself it keeps the score below {_rounded_up(ceiling([axis.share], dimension))}, "
        "however different the images are otherwise."
    )
    return said


def _describe_shared(shared: float, *, everywhere: bool) -> str:
    if shared < MUCH_SHARED:
        return f"All images share next to nothing: {shared * 100:.1f} % of what the model sees."
    if everywhere:
        return (
            f"All images share {_percent(shared)} of what the model sees: a background, a frame, "
            "a style. The score does not count what all have in common."
        )
    return (
        f"Two images have {_percent(shared)} of what the model sees in common, on average over "
        "all pairs; the contrasts above are part of the reason."
    )


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _rounded_up(score: float) -> str:
    return f"{math.ceil(score * 100) / 100:.2f}"
