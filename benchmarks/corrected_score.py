"""Bias, spread and coverage of the corrected score, and what it costs.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.corrected_score

Prints the tables and writes them into docs/corrected-score.md, between its markers. Made-up
populations have a known spectrum; of the real one, what all rows say is taken for the truth.
A line has 40 draws; if its intervals hold in fewer than 93 % of these, or are more than 1.3 times
as wide as needed, it is measured with 200.
Takes about an hour on two cores.
"""

import multiprocessing
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.corrected import corrected
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.sampling import units_of
from visdiv_assets.spectral.score import diversity
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "corrected-score.md"
ICONS = ROOT / "visdiv_assets_tests" / "data" / "embeddings_icons.npy"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

DIMENSION, DRAWS, ICON_DRAWS = 512, 40, 100
MORE_DRAWS, HOLDS, NARROW = 200, 0.93, 1.3
# What is too few to tell counts in the spread, down to so many units.
FEWEST_UNITS = 5.0
SIZES = (60, 100, 200, 400, 800, 1600, 6400)
ICON_SIZES = (60, 100, 200, 400, 800, 1600)

Rows = NDArray[np.floating]
Draw = Callable[[int, np.random.Generator], Rows]

INDEX = np.arange(1.0, DIMENSION + 1)


def rank(r: int) -> Rows:
    """A flat spectrum on r axes."""
    return np.r_[np.ones(r), np.zeros(DIMENSION - r)]


SPECTRA = {
    "flat": np.ones(DIMENSION),
    "power law, exponent ½": INDEX**-0.5,
    "power law, exponent 1": INDEX**-1.0,
    "power law, exponent 1½": INDEX**-1.5,
    "spiked: 5 axes × 100": np.where(INDEX <= 5, 100.0, 1.0),
    "spiked: 20 axes × 20": np.where(INDEX <= 20, 20.0, 1.0),
    "rank 50": rank(50),
    "rank 200": rank(200),
}


def score_of(spectrum: Rows) -> float:
    """The score of a known spectrum."""
    product = effective_rank(spectrum) * participation_ratio(spectrum)
    return min(float(np.sqrt(product)) / len(spectrum), 1.0)


def gaussian(spectrum: Rows) -> Draw:
    """Rows with independent normal coordinates."""
    return lambda n, rng: rng.standard_normal((n, len(spectrum))) * np.sqrt(spectrum)


def with_copies(draw: Draw) -> Draw:
    """The same, but 40 % of the rows are copies of others."""

    def drawn(n: int, rng: np.random.Generator) -> Rows:
        rows = draw(n - n * 4 // 10, rng)
        return np.concatenate([rows, rows[rng.integers(len(rows), size=n * 4 // 10)]])

    return drawn


def heavy_tailed(spectrum: Rows) -> Draw:
    """Student's t with 6 degrees of freedom: rows of very different length."""

    def drawn(n: int, rng: np.random.Generator) -> Rows:
        return gaussian(spectrum)(n, rng) / np.sqrt(rng.chisquare(6, (n, 1)) / 6)

    return drawn


def clustered(clusters: int, seed: int) -> tuple[Draw, float]:
    """Unit vectors around cluster centres of different weight and spread, and their score."""
    rng = np.random.default_rng(seed)
    scales = np.sqrt(INDEX**-0.7 / np.sum(INDEX**-0.7))
    centres = rng.standard_normal((clusters, DIMENSION)) * scales
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    weights = rng.dirichlet(np.full(clusters, 0.7))
    spreads = 0.7 * np.exp(0.5 * rng.standard_normal(clusters))

    def drawn(n: int, rng: np.random.Generator) -> Rows:
        cluster = rng.choice(clusters, n, p=weights)
        noise = rng.standard_normal((n, DIMENSION)) * scales
        rows = centres[cluster] + spreads[cluster, None] * noise
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    many = drawn(200_000, rng)
    return drawn, score_of(np.linalg.eigvalsh(np.cov(many.T)))


def unit(rows: Rows) -> Rows:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def alike(rows: Rows, cosine: float, rng: np.random.Generator) -> Rows:
    """Rows that have this cosine similarity with their own of `rows`, which are of length 1."""
    noise = rng.standard_normal(rows.shape)
    noise -= np.sum(noise * rows, axis=1, keepdims=True) * rows
    return cosine * rows + np.sqrt(1 - cosine**2) * unit(noise)


SHAPE = np.sqrt(INDEX**-0.7 / np.sum(INDEX**-0.7))


def pictures(n: int, rng: np.random.Generator) -> Rows:
    """Independent pictures of 1,000 kinds, none a near-duplicate of another."""
    made = np.random.default_rng(1000)
    centres = unit(made.standard_normal((1000, DIMENSION)) * SHAPE)
    kinds = rng.choice(1000, n, p=made.dirichlet(np.full(1000, 0.7)))
    return unit(centres[kinds] + 0.8 * rng.standard_normal((n, DIMENSION)) * SHAPE)


def copied(share: float, cosine: float) -> Draw:
    """Pictures of which a share has one near-copy; n counts the pictures."""

    def drawn(n: int, rng: np.random.Generator) -> Rows:
        rows = pictures(n, rng)
        return np.concatenate([rows, alike(rows[: round(n * share)], cosine, rng)])

    return drawn


def clips(frames: int | None, cosine: float) -> Draw:
    """Clips of so many frames each, or of 1 to about 20; n counts the clips."""

    def drawn(n: int, rng: np.random.Generator) -> Rows:
        lengths = np.full(n, frames) if frames else rng.geometric(0.25, n)
        return alike(np.repeat(pictures(n, rng), lengths, axis=0), cosine, rng)

    return drawn


def with_one(share: float, cosine: float) -> Draw:
    """A share of the rows is one picture, with noise."""
    one = pictures(1, np.random.default_rng(77))

    def drawn(n: int, rng: np.random.Generator) -> Rows:
        rows, inside = pictures(n, rng), rng.random(n) < share
        rows[inside] = alike(np.repeat(one, inside.sum(), axis=0), cosine, rng)
        return rows

    return drawn


def with_film(share: float) -> Draw:
    """A share of the rows is frames of one film of six scenes, about 0.7 alike."""
    scenes = pictures(6, np.random.default_rng(9))
    scenes = unit(0.5 * scenes + 1.6 * scenes.mean(axis=0))

    def drawn(n: int, rng: np.random.Generator) -> Rows:
        rows, inside = pictures(n, rng), rng.random(n) < share
        rows[inside] = alike(scenes[rng.integers(6, size=inside.sum())], 0.9, rng)
        return rows

    return drawn


def zipf(classes: int, exponent: float, cosine: float) -> Draw:
    """Classes as large as Zipf's law says, whose pictures are that similar to their centre."""
    centres = pictures(classes, np.random.default_rng(3))
    shares = np.arange(1.0, classes + 1) ** -exponent

    def drawn(n: int, rng: np.random.Generator) -> Rows:
        return alike(centres[rng.choice(classes, n, p=shares / shares.sum())], cosine, rng)

    return drawn


DEPENDENT: dict[str, Draw] = {
    "independent pictures": pictures,
    "5 % have a near-copy at 0.95": copied(0.05, 0.95),
    "20 % have a near-copy at 0.95": copied(0.20, 0.95),
    "50 % have a near-copy at 0.95": copied(0.50, 0.95),
    "each in two sizes, 0.99": clips(2, 0.99),
    "clips of 5 frames, 0.95": clips(5, 0.95),
    "clips of 1 to 20 frames, 0.95": clips(None, 0.95),
    "half is one picture": with_one(0.5, 0.99),
    "99 % is one picture": with_one(0.99, 0.99),
    "97 % is frames of one film": with_film(0.97),
    "99 % is frames of one film": with_film(0.99),
    "100 classes by Zipf's law": zipf(100, 1.0, 0.8),
    "300 classes, exponent 1.2": zipf(300, 1.2, 0.7),
}
DEPENDENT_SIZES = (50, 100, 200, 400, 800, 1600)


def settled(measure: Callable[[int], tuple[str, bool]]) -> str:
    """A line, with more draws if fewer leave open whether its intervals are as they should be."""
    text, is_clear = measure(DRAWS)
    return text if is_clear else measure(MORE_DRAWS)[0]


def dependent_line(
    name: str, draw: Draw, truth: float, n: int, draws: int = DRAWS
) -> tuple[str, bool]:
    """One line of the table of what is no independent draw, and whether its intervals are clear."""
    found, now = np.full((draws, 4), np.nan), np.full(draws, np.nan)
    for number in range(draws):
        sample = Sample.of(draw(n, np.random.default_rng([n, number])))
        measured = corrected(sample)
        with mock.patch("visdiv_assets.spectral.corrected.ENOUGH_UNITS", FEWEST_UNITS):
            found[number, 3] = corrected(sample).score / truth
        if not measured.too_few:
            covered = measured.low <= truth <= measured.high
            width = (measured.high - measured.low) / truth
            found[number, :3] = measured.score / truth, covered, width
        now[number] = corrected(sample, units_of(sample, "row")).score / truth
    told = ~np.isnan(found[:, 0])
    by_rows = f"{np.nanmean(now) - 1:+.1%}" if not np.isnan(now).all() else ""
    text = f"| {name} | {truth:.3f} | {n:,} | {by_rows} | {told.mean():.0%} |"
    if told.sum() < 2:
        return f"{text} | | | |", True
    score, covered, width, _ = found[told].T
    spread = float(np.nanstd(found[:, 3], ddof=1))
    rmse = float(np.sqrt(np.mean((score - 1) ** 2)))
    ratio = float(width.mean()) / (2 * 1.96 * spread)
    text += f" {score.mean() - 1:+.1%} | {rmse:.1%} | {covered.mean():.0%} | {ratio:.1f} |"
    return text, bool(covered.mean() >= HOLDS and ratio <= NARROW)


DEPENDENT_HEAD = [
    "| images | true score | n | by rows | told | bias | RMSE | covers | width ÷ needed |",
    "|---|---|---|---|---|---|---|---|---|",
]


def line(name: str, draw: Draw, truth: float, n: int, draws: int) -> tuple[str, bool]:
    """One line of a table, and whether its intervals held often enough."""
    found = np.empty((draws, 5))
    for number in range(draws):
        sample = Sample.of(draw(n, np.random.default_rng([n, number])))
        plain = diversity(sample.moments)
        # These rows are independent, however alike those of few directions are.
        measured = corrected(sample, units_of(sample, "row"))
        found[number] = (
            plain.score / truth,
            measured.score / truth,
            measured.low <= truth <= measured.high,
            measured.low / truth,
            measured.high / truth,
        )
    plain_bias, mean, covered, low, high = found.mean(axis=0)
    text = (
        f"| {name} | {truth:.3f} | {n:,} | {plain_bias - 1:+.1%} | {mean - 1:+.1%} "
        f"| {found[:, 1].std(ddof=1):.1%} | {low:.2f} to {high:.2f} | {covered:.0%} |"
    )
    return text, bool(covered >= HOLDS)


HEAD = [
    "| population | true score | n | plain | corrected | spread | 95 % interval ÷ truth | covers |",
    "|---|---|---|---|---|---|---|---|",
]

Line = Callable[[], str]


def to_measure() -> list[str | Line]:
    """The lines of all tables: as they are, or how to measure them."""
    icons = np.load(ICONS)
    all_icons = Sample.of(icons)
    whole = corrected(all_icons, units_of(all_icons, "row")).score

    def some_icons(n: int, rng: np.random.Generator) -> Rows:
        return icons[rng.choice(len(icons), n, replace=False)]

    def lines(name: str, draw: Draw, truth: float, sizes: Iterable[int]) -> list[Line]:
        return [partial(settled, partial(line, name, draw, truth, n)) for n in sizes]

    real = [partial(line_of_icons, some_icons, whole, n) for n in ICON_SIZES]
    table: list[str | Line] = ["### Real rows", "", *HEAD, *real]
    table += ["", "### Normal rows with a known spectrum", "", *HEAD]
    for name, spectrum in SPECTRA.items():
        table += lines(name, gaussian(spectrum), score_of(spectrum), SIZES)

    table += ["", "### The same, 40 % of the rows copies of others", "", *HEAD]
    for name in ("flat", "power law, exponent 1", "spiked: 20 axes × 20", "rank 50"):
        draw, truth = with_copies(gaussian(SPECTRA[name])), score_of(SPECTRA[name])
        table += lines(name, draw, truth, [n for n in SIZES if n >= 200])

    table += ["", "### Rows that are not normal", "", *HEAD]
    spectrum = SPECTRA["power law, exponent 1"]
    table += lines("heavy tails, exponent 1", heavy_tailed(spectrum), score_of(spectrum), SIZES)
    for clusters in (20, 200, 1000):
        table += lines(f"{clusters:,} clusters", *clustered(clusters, clusters), SIZES)

    table += ["", "### Images that are no independent draws", "", *DEPENDENT_HEAD]
    for name, draw in DEPENDENT.items():
        many = draw(60_000, np.random.default_rng(0))
        truth = score_of(np.linalg.eigvalsh(np.cov(many.T)))
        table += [
            partial(settled, partial(dependent_line, name, draw, truth, n)) for n in DEPENDENT_SIZES
        ]
    return table


def line_of_icons(draw: Draw, truth: float, n: int) -> str:
    """A line of the real rows."""
    return line("icons", draw, truth, n, ICON_DRAWS)[0]


_table: list[str | Line] = []


def _measured(at: int) -> str:
    each = _table[at]
    return each if isinstance(each, str) else each()


def tables() -> str:
    """All tables, as markdown, printed as they grow; on all CPUs."""
    _table[:] = to_measure()
    lines = []
    with multiprocessing.get_context("fork").Pool() as pool:  # what is drawn cannot be pickled
        for text in pool.imap(_measured, range(len(_table)), chunksize=1):
            print(text, flush=True)
            lines.append(text)
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and put the tables into the page."""
    measured = tables()
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
