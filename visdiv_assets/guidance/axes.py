"""The contrasts that dominate a dataset: its leading axes and their ends, described in words.

Here: leading eigenvectors from moments, the rows at their two ends, the slices that an axis
separates, the component that all images share, and sentences about them. Not here: pictures and
names of images, where rows come from (`workflows/axes.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.corrected import ENOUGH_UNITS
from visdiv_assets.spectral.moments import BLOCK_ROWS, FloatArray, Moments
from visdiv_assets.spectral.score import RATINGS, TOO_FEW
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio
from visdiv_assets.spectral.threads import one_blas_thread

SIDES = ("A", "B")

# An axis dominates if it alone puts the best rating out of reach.
BEST_SCORE = RATINGS[0].score_from

# Slices explain an axis if they account for at least this share of its variance.
MOSTLY_BETWEEN = 0.5

# SSCD finds that 213 unrelated photographs have 3 % in common; icons on white have 15 %.
MUCH_SHARED = 0.10

# Images at an end always resemble each other somewhat, just because they lie there. For unrelated
# images, the mean cosine stays below this.
ALIKE = 0.25


class Rows(Protocol):
    """Embeddings read in blocks: a matrix, or `store.rows.DatasetRows`."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, wanted: slice, /) -> NDArray[Any]:
        """The rows of a slice, shape (n, D)."""


@dataclass(frozen=True, eq=False)
class End:
    """One end of an axis.

    Attributes:
        rows: numbers of the outermost rows, farthest first, shape (k,).
        positions: their distance from the mean, in standard deviations along the axis, shape
            (k,), > 0.
        likeness: mean cosine similarity of any two of these rows, in [−1, 1]; NaN for one row.
        beyond: share of all rows on this side of the mean, in [0, 1].
    """

    rows: NDArray[np.int64]
    positions: FloatArray
    likeness: float
    beyond: float


@dataclass(frozen=True)
class PlacedSlice:
    """The position of a slice along an axis.

    Attributes:
        name: name of the slice.
        share: share of the images, in (0, 1].
        position: position of its mean, in standard deviations; positive towards side A.
    """

    name: str
    share: float
    position: float


@dataclass(frozen=True, eq=False)
class Axis:
    """A direction along which a dataset varies.

    Attributes:
        number: 1 for the axis with the largest variance.
        share: share of all variance, in (0, 1].
        direction: unit vector, shape (D,), its largest coordinate positive; it points to side A,
            and side B is opposite.
        ends: sides A and B.
        between: share of the variance along the axis that lies between slices rather than within
            them, in [0, 1], corrected for chance; 0 without slices.
        slices: the slices, those that matter most along the axis first.
    """

    number: int
    share: float
    direction: FloatArray
    ends: tuple[End, End]
    between: float
    slices: tuple[PlacedSlice, ...]

    def slice_at(self, side: str) -> PlacedSlice | None:
        """The slice that accounts for most of a side, if slices explain this axis; else None."""
        if self.between < MOSTLY_BETWEEN:
            return None
        sign = 1 if side == SIDES[0] else -1
        return next((each for each in self.slices if sign * each.position > 0), None)


@dataclass(frozen=True, eq=False)
class Axes:
    """The leading axes of a dataset.

    Attributes:
        n: number of images, copies included.
        n_distinct: number of distinct rows.
        dimension: D.
        shared: ‖x̄‖² over the mean of ‖x‖², in [0, 1]: how much all images have in common.
        axes: largest variance first; empty if nothing varies.
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
    """The leading axes of a dataset, and the rows at their ends.

    Rows are read once, in blocks. Of rows that are equally far out, the first ones are taken.

    Args:
        moments: moments of all images, copies included; n ≥ 2.
        rows: shape (N, D), the distinct rows.
        slices: moments of the slices that make up the dataset, by name.
        count: number of axes, at least 1.
        per_end: number of rows at each end, at least 1.

    Raises:
        ValueError: fewer than 2 images, rows of another dimension, or `count` or `per_end` < 1.

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
        raise ValueError("count and per_end must be at least 1")
    covariance = moments.covariance()
    variance = float(np.trace(covariance))
    power = float(np.trace(moments.outer)) / moments.n
    shared = float(moments.mean @ moments.mean) / power if power > 0 else 0.0
    found = Axes(moments.n, len(rows), moments.dimension, min(shared, 1.0), ())
    # As in `spectral.spectrum`, rounding errors do not count as variance.
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
    """The outermost rows along each column of `scaled`, on both sides."""
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
    """The k rows with the largest positions in a stream of rows."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._positions, self._numbers = np.empty(0), np.empty(0, dtype=np.int64)
        self._rows: FloatArray | None = None

    def take(self, positions: FloatArray, start: int, block: FloatArray) -> None:
        best = np.argsort(-positions, kind="stable")[: self._k]
        merged = np.concatenate([self._positions, positions[best]])
        # A stable sort, so that earlier rows come first.
        order = np.argsort(-merged, kind="stable")[: self._k]
        rows = block[best] if self._rows is None else np.concatenate([self._rows, block[best]])
        self._numbers = np.concatenate([self._numbers, start + best])[order]
        self._positions, self._rows = merged[order], rows[order]

    def end(self, beyond: float) -> End:
        """The end, with only those rows that are on this side of the mean."""
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
    """The share of the variance along an axis that lies between slices, and their positions.

    With K slices, chance alone explains (K − 1)/(n − 1); this is corrected as in adjusted R².
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
    """The highest possible score of a dataset whose leading axes have these shares of variance.

    It is reached if all other variance is spread evenly over all other directions.

    Args:
        shares: shares of the leading axes, in (0, 1], with a sum of at most 1.
        dimension: D, larger than the number of shares.

    Example:
        >>> round(ceiling([0.5], 512), 3), round(ceiling([0.069], 512), 2)
        (0.026, 0.5)
    """
    rest = max(1 - math.fsum(shares), 0.0)
    others = dimension - len(shares)
    spectrum = np.array([*shares, *([rest / others] * others)])
    return math.sqrt(effective_rank(spectrum) * participation_ratio(spectrum)) / dimension


def describe(found: Axes) -> list[str]:
    """What the axes mean, in sentences without linear algebra.

    "Row 1A" is the row of images at side A of the first axis, and so on.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.standard_normal((300, 64))
        >>> rows[:150, 0] += 20
        >>> describe(find_axes(Moments.of(rows), rows))[0]
        '62 % of all variation is one contrast: images like those in row 1A against images like
        those in row 1B.'
    """
    if found.n_distinct < ENOUGH_UNITS:
        return [
            f"{found.n_distinct} distinct images are {TOO_FEW} what dominates them; "
            f"at least {ENOUGH_UNITS} are needed."
        ]
    if not found.axes:
        return ["The model sees all images as the same; nothing varies."]
    said: list[str] = []
    dominating = [
        axis for axis in found.axes if ceiling([axis.share], found.dimension) < BEST_SCORE
    ]
    for axis in dominating:
        said += _describe_axis(axis, found.dimension)
    shares = [axis.share for axis in found.axes]
    if dominating:
        said.append(
            "If a contrast is not what the dataset is about, vary it (other backgrounds, places, "
            "cameras), or remove images from the side that repeats."
        )
    else:
        said.append(
            f"No single contrast dominates: the largest accounts for {shares[0] * 100:.1f} % of "
            "all variation, which allows a score of up to "
            f"{ceiling(shares[:1], found.dimension):.2f}."
        )
        together = ceiling(shares, found.dimension)
        if len(shares) > 1 and together < BEST_SCORE:
            said.append(
                f"The first {len(shares)} together account for {_percent(sum(shares))} and keep "
                f"the score below {_rounded_up(together)}."
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
        said.append("The images in each of the two rows resemble each other: two groups.")
    elif any(alike):
        at = alike.index(True)
        one, other = (a, b) if at == 0 else (b, a)
        said.append(
            f"Those in row {one} resemble each other (mean cosine {likeness[at]:.2f}), those in "
            f"row {other} do not ({likeness[1 - at]:.2f}): look for what repeats in row {one}. "
            f"{_percent(axis.ends[at].beyond)} of the images are on that side."
        )
    placed = [(name, axis.slice_at(side)) for name, side in zip((a, b), SIDES, strict=True)]
    if named := [(name, each) for name, each in placed if each is not None]:
        where = " and ".join(
            f"{each.name} ({_percent(each.share)} of the images) is at the end of row {name}"
            for name, each in named
        )
        said.append(f"{_percent(axis.between)} of it is a difference between slices: {where}.")
    said.append(
        f"On its own, it keeps the score below {_rounded_up(ceiling([axis.share], dimension))}, "
        "however different the images are otherwise."
    )
    return said


def _describe_shared(shared: float, *, everywhere: bool) -> str:
    if shared < MUCH_SHARED:
        return f"All images share next to nothing: {shared * 100:.1f} % of what the model sees."
    if everywhere:
        return (
            f"All images share {_percent(shared)} of what the model sees: a background, a frame, "
            "a style. The score ignores what all images have in common."
        )
    return (
        f"Two images have {_percent(shared)} of what the model sees in common, on average over "
        "all pairs; the contrasts above are part of the reason."
    )


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _rounded_up(score: float) -> str:
    return f"{math.ceil(score * 100) / 100:.2f}"
