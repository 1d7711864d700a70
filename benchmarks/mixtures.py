"""How far below the optimum the weights are that `visdiv mix` finds, if the parts differ in size.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.mixtures

Parts are drawn from populations whose true score at any weights is known: made-up ones have a known
covariance; of real rows, what all of them say is taken for the truth. The optimum is the best of a
fine grid. Beside it: equal weights, and climbing the plain score, with corrected scores as judges
of what was found. Prints a table and writes it into docs/guidance.md, between its markers. Takes
a few minutes on one core.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.corrected_score import ICONS, Rows, score_of
from visdiv_assets.guidance.mixtures import best_mixture, mix_samples, mixture_score
from visdiv_assets.spectral.corrected import corrected
from visdiv_assets.spectral.sample import Sample

PAGE = Path(__file__).parents[1] / "docs" / "guidance.md"
BEGIN, END = "<!-- mixtures: begin -->", "<!-- mixtures: end -->"

DIMENSION, DRAWS = 256, 6
INDEX = np.arange(1.0, DIMENSION + 1)
TICKS = {2: 100, 3: 25}

Ticks = tuple[int, ...]


@dataclass(frozen=True)
class Population:
    """Where the rows of a part come from: `draw` gives some, the covariance is the truth."""

    draw: Callable[[int, np.random.Generator], Rows]
    covariance: Rows


@dataclass(frozen=True)
class Case:
    """Parts of some sizes, and the true score of their mixtures."""

    name: str
    sizes: tuple[int, ...]
    draw: Callable[[np.random.Generator], list[Rows]]
    truth: Callable[[Rows], float]


def normal(spectrum: Rows, seed: int) -> Population:
    """Rows of norm 1 in the mean, with a spectrum along axes that are turned at random."""
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((DIMENSION, DIMENSION)))[0]
    root = turn * np.sqrt(spectrum / spectrum.sum())
    return Population(lambda n, rng: rng.standard_normal((n, DIMENSION)) @ root.T, root @ root.T)


def some_axes(first: int, last: int, exponent: float = 0.0) -> Population:
    """A power law on some axes that are the same for all populations."""
    chosen = np.arange(first, last)
    spectrum = np.zeros(DIMENSION)
    spectrum[chosen] = INDEX[: last - first] ** -exponent
    spectrum /= spectrum.sum()
    return Population(
        lambda n, rng: rng.standard_normal((n, DIMENSION)) * np.sqrt(spectrum), np.diag(spectrum)
    )


def made_up(
    name: str, sizes: Sequence[int], populations: Sequence[Population], copies: int = 1
) -> Case:
    """Parts from known populations; of the last one, each row with `copies` near-copies."""

    def draw(rng: np.random.Generator) -> list[Rows]:
        parts = [each.draw(n, rng) for n, each in zip(sizes[:-1], populations[:-1], strict=True)]
        last = np.repeat(populations[-1].draw(sizes[-1] // copies, rng), copies, axis=0)
        if copies > 1:  # at a cosine of about 0.98 to each other
            lengths = np.linalg.norm(last, axis=1, keepdims=True)
            last += 0.14 * lengths * rng.standard_normal(last.shape) / np.sqrt(DIMENSION)
        return [*parts, last]

    def truth(weights: Rows) -> float:
        covariance = np.tensordot(weights, [each.covariance for each in populations], axes=1)
        return score_of(np.clip(np.linalg.eigvalsh(covariance), 0, None))

    return Case(name, tuple(sizes), draw, truth)


def icons(sizes: tuple[int, int]) -> Case:
    """Real rows: the two halves of the icons along their first axis, the spread half first."""
    rows = np.load(ICONS).astype(np.float64)
    first = np.linalg.eigh(np.cov(rows.T))[1][:, -1]
    order = np.argsort(rows @ first)
    halves = np.array_split(rows[order], 2)
    whole = [Sample.of(half, capacity=len(half)) for half in halves]
    known = np.array([len(half) for half in halves])

    def draw(rng: np.random.Generator) -> list[Rows]:
        return [
            half[rng.choice(len(half), n, replace=False)]
            for n, half in zip(sizes, halves, strict=True)
        ]

    return Case(
        "icons: two halves of them",
        sizes,
        draw,
        lambda weights: corrected(mix_samples(whole, weights, known)).score,
    )


def cases() -> Iterator[Case]:
    """All of them."""
    photographs, screenshots = some_axes(0, 192, 0.5), some_axes(192, 256)
    yield made_up("photographs, screenshots", (100, 2000), (photographs, screenshots))
    yield made_up("photographs, screenshots", (40, 2000), (photographs, screenshots))
    yield made_up("photographs, screenshots", (1000, 2000), (photographs, screenshots))
    yield made_up("rank 150, rank 50", (100, 2000), (some_axes(0, 150), some_axes(100, 150)))
    yield made_up(
        "power laws ½ and 1", (100, 2000), (normal(INDEX**-0.5, 1), normal(INDEX**-1.0, 2))
    )
    yield made_up("two power laws 1", (100, 2000), (normal(INDEX**-1.0, 3), normal(INDEX**-1.0, 4)))
    yield made_up(
        "three kinds of pictures",
        (60, 300, 2000),
        (some_axes(0, 120, 0.5), some_axes(100, 200, 0.5), some_axes(200, 256)),
    )
    yield icons((100, 2000))
    yield made_up(
        "photographs, near-copies of 100 screenshots",
        (100, 2000),
        (photographs, screenshots),
        copies=20,
    )


def by_plain_score(samples: Sequence[Sample]) -> Rows:
    """What climbing the plain score over the grid finds, as the corrected score judges it."""
    count, parts = len(samples), [each.moments for each in samples]
    ticks, known = TICKS[count], dict[Ticks, float]()

    def height(at: Ticks) -> float:
        if at not in known:
            known[at] = mixture_score(parts, np.array(at) / ticks)
        return known[at]

    def climb(at: Ticks) -> Ticks:
        while True:
            best = max([at, *around(at)], key=height)
            if best == at:
                return at
            at = best

    even = np.full(count, 1 / count)
    ends = [climb(nearest(start, ticks)) for start in (even, *(0.2 * even + 0.8 * np.eye(count)))]
    ends += [nearest(corner, ticks) for corner in np.eye(count)]
    weights = [np.array(end) / ticks for end in dict.fromkeys(ends)]
    return max(
        weights, key=lambda each: float(np.nan_to_num(corrected(mix_samples(samples, each)).score))
    )


def nearest(weights: Rows, ticks: int) -> Ticks:
    """A point of the grid near some weights."""
    rounded = np.floor(weights * ticks + 1e-9).astype(int)
    rounded[0] += ticks - rounded.sum()
    return tuple(rounded.tolist())


def around(at: Ticks) -> Iterator[Ticks]:
    """The neighbours on the grid: one tick goes from one part to another."""
    for giver, taker in itertools.permutations(range(len(at)), 2):
        if at[giver]:
            moved = list(at)
            moved[giver] -= 1
            moved[taker] += 1
            yield tuple(moved)


def grid(count: int) -> Iterator[Rows]:
    """All weights on the grid."""
    ticks = TICKS[count]
    for some in itertools.product(range(ticks + 1), repeat=count - 1):
        if sum(some) <= ticks:
            yield np.array([*some, ticks - sum(some)]) / ticks


def percent(losses: Sequence[float]) -> str:
    """Mean and worst."""
    return f"{np.mean(losses):.1%} | {np.max(losses):.1%}"


HEAD = [
    "| parts | images | best share of the first | found | at worst | by plain score | at worst "
    "| equal |",
    "|---|---|--:|--:|--:|--:|--:|--:|",
]


def line(case: Case, draws: int) -> str:
    """One line of the table."""
    count = len(case.sizes)
    points = list(grid(count))
    heights = [case.truth(point) for point in points]
    best, highest = points[int(np.argmax(heights))], max(heights)
    found, plain, seconds = list[float](), list[float](), list[float]()
    for seed in range(draws):
        samples = [Sample.of(rows) for rows in case.draw(np.random.default_rng([seed, count]))]
        begin = time.perf_counter()
        plan = best_mixture([str(at) for at in range(count)], samples)
        seconds.append(time.perf_counter() - begin)
        found.append(1 - case.truth(plan.weights) / highest)
        plain.append(1 - case.truth(by_plain_score(samples)) / highest)
    even = 1 - case.truth(np.full(count, 1 / count)) / highest
    text = (
        f"| {case.name} | {', '.join(f'{n:,}' for n in case.sizes)} | {best[0]:.0%} "
        f"| {percent(found)} | {percent(plain)} | {even:.1%} |"
    )
    print(text, f"{np.median(seconds):.1f} s", flush=True)
    return text


def main() -> None:
    """Measure, print, and put the table into the page."""
    print("\n".join(HEAD))
    measured = "\n".join([*HEAD, *(line(case, DRAWS) for case in cases())])
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
