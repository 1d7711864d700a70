"""Bias, spread and coverage of the corrected score, and what it costs.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.corrected_score

Prints the tables and writes them into docs/corrected-score.md, between its markers. Made-up
populations have a known spectrum; of the real one, what all rows say is taken for the truth.
Takes a few minutes on one core.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.spectral.corrected import corrected
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import diversity
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "corrected-score.md"
ICONS = ROOT / "visdiv_assets_tests" / "data" / "embeddings_icons.npy"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

DIMENSION, DRAWS, ICON_DRAWS = 512, 40, 100
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


def line(name: str, draw: Draw, truth: float, n: int, draws: int) -> str:
    """One line of a table."""
    found = np.empty((draws, 6))
    for number in range(draws):
        sample = Sample.of(draw(n, np.random.default_rng([n, number])))
        plain = diversity(sample.moments)
        begin = time.perf_counter()
        measured = corrected(sample)
        found[number] = (
            plain.score / truth,
            measured.score / truth,
            measured.low <= truth <= measured.high,
            measured.low / truth,
            measured.high / truth,
            time.perf_counter() - begin,
        )
    plain_bias, mean, covered, low, high, seconds = found.mean(axis=0)
    text = (
        f"| {name} | {truth:.3f} | {n:,} | {plain_bias - 1:+.1%} | {mean - 1:+.1%} "
        f"| {found[:, 1].std(ddof=1):.1%} | {low:.2f} to {high:.2f} | {covered:.0%} |"
    )
    print(text, f"{1000 * seconds:.0f} ms", flush=True)
    return text


HEAD = [
    "| population | true score | n | plain | corrected | spread | 95 % interval ÷ truth | covers |",
    "|---|---|---|---|---|---|---|---|",
]


def tables() -> str:
    """All tables, as markdown."""
    lines = ["### Real rows", "", *HEAD]
    print("\n".join(HEAD))
    icons = np.load(ICONS)
    whole = corrected(Sample.of(icons)).score

    def some_icons(n: int, rng: np.random.Generator) -> Rows:
        return icons[rng.choice(len(icons), n, replace=False)]

    lines += [line("icons", some_icons, whole, n, ICON_DRAWS) for n in ICON_SIZES]

    lines += ["", "### Normal rows with a known spectrum", "", *HEAD]
    for name, spectrum in SPECTRA.items():
        lines += [line(name, gaussian(spectrum), score_of(spectrum), n, DRAWS) for n in SIZES]

    lines += ["", "### The same, 40 % of the rows copies of others", "", *HEAD]
    for name in ("flat", "power law, exponent 1", "spiked: 20 axes × 20", "rank 50"):
        draw, truth = with_copies(gaussian(SPECTRA[name])), score_of(SPECTRA[name])
        lines += [line(name, draw, truth, n, DRAWS) for n in SIZES if n >= 200]

    lines += ["", "### Rows that are not normal", "", *HEAD]
    spectrum = SPECTRA["power law, exponent 1"]
    name = "heavy tails, exponent 1"
    lines += [line(name, heavy_tailed(spectrum), score_of(spectrum), n, DRAWS) for n in SIZES]
    for clusters in (20, 200, 1000):
        draw, truth = clustered(clusters, clusters)
        lines += [line(f"{clusters:,} clusters", draw, truth, n, DRAWS) for n in SIZES]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and put the tables into the page."""
    measured = tables()
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
