"""How good the measured effects of augmentations are, where the truth is known.

    .venv/bin/python -m benchmarks.augmentation_guidance [DRAWS]

Draws images and copies from normal populations whose covariances are known, and prints, as a
table in markdown, the true change of the score, the mean of the measured ones, their standard
deviation, the mean standard error behind the intervals, and how often an interval holds the
truth. Takes about five seconds a draw and size.
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.guidance.augmentation import augmentation_effect
from visdiv_assets.spectral.moments import FloatArray
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio

DIMENSION = 128
SIZES = (120, 400)
T_19 = 2.093  # an interval's half width in standard errors

SPREAD = np.arange(1.0, DIMENSION + 1) ** -0.25
FADED = SPREAD * np.arange(1.0, DIMENSION + 1) ** -0.5
TURN = np.linalg.qr(np.random.default_rng(1).standard_normal((DIMENSION, DIMENSION)))[0]
TURNED = (SPREAD * TURN.T).T
SHIFT = np.full(DIMENSION, 2.0 / DIMENSION**0.5)

Pairs = tuple[FloatArray, FloatArray, NDArray[np.int64] | None]


def cases() -> Iterator[tuple[str, FloatArray, Callable[[np.random.Generator, int], Pairs]]]:
    """Name, covariance of the mixture, and how images and copies are drawn."""
    own = np.diag(SPREAD**2)

    def drawn(rng: np.random.Generator, n: int) -> FloatArray:
        return rng.standard_normal((n, DIMENSION)) * SPREAD

    def copies(
        make: Callable[[np.random.Generator, FloatArray], FloatArray],
    ) -> Callable[[np.random.Generator, int], Pairs]:
        def draw(rng: np.random.Generator, n: int) -> Pairs:
            x = drawn(rng, n)
            return x, make(rng, x), None

        return draw

    def mixed(rng: np.random.Generator, n: int) -> Pairs:
        x = drawn(rng, n)
        return x, (x + x.reshape(-1, 2, DIMENSION)[:, ::-1].reshape(x.shape)) / 2, np.arange(n) // 2

    yield "the image itself", own, copies(lambda rng, x: x)
    yield "another image", own, copies(lambda rng, x: drawn(rng, len(x)))
    yield (
        "half another image (cosine 0.7)",
        own,
        copies(lambda rng, x: (x + drawn(rng, len(x))) / 2**0.5),
    )
    yield "mean of two images (mix-up)", own * 0.75, mixed
    yield (
        "some noise",
        own + 0.02 * np.eye(DIMENSION),
        copies(lambda rng, x: x + 0.2 * rng.standard_normal(x.shape)),
    )
    yield (
        "much noise",
        own + 0.5 * np.eye(DIMENSION),
        copies(lambda rng, x: x + rng.standard_normal(x.shape)),
    )
    yield (
        "new directions",
        (own + TURN.T @ np.diag(FADED**2) @ TURN) / 2,
        copies(lambda rng, x: rng.standard_normal(x.shape) * FADED @ TURN),
    )
    yield "moved as a whole", own + np.outer(SHIFT, SHIFT) / 4, copies(lambda rng, x: x + SHIFT)
    yield (
        "fewer directions",
        (own + np.diag(FADED**2)) / 2,
        copies(lambda rng, x: x / SPREAD * FADED),
    )


def log_score(covariance: FloatArray) -> float:
    """Logarithm of the score of a population, up to a constant."""
    eigenvalues = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    return float(np.log(effective_rank(eigenvalues) * participation_ratio(eigenvalues)) / 2)


def main() -> None:
    """Measure and print."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    print("| copies are | n | true change | measured | spread | standard error | covers |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, mixture, draw in cases():
        truth = log_score(mixture) - log_score(np.diag(SPREAD**2))
        for n in SIZES:
            found, errors, held = [], [], 0
            for seed in range(draws):
                x, y, groups = draw(np.random.default_rng(seed), n)
                effect = augmentation_effect(x, y, groups)
                if np.isnan(effect.change):
                    continue
                found.append(np.log1p(effect.change))
                errors.append(np.log1p(effect.high) - np.log1p(effect.low))
                held += effect.low - 1e-12 <= np.expm1(truth) <= effect.high + 1e-12
            if not found:
                continue
            print(
                f"| {name} | {n} | {truth * 100:+.1f} % | {np.mean(found) * 100:+.1f} % "
                f"| {np.std(found) * 100:.2f} % | {np.mean(errors) / 2 / T_19 * 100:.2f} % "
                f"| {held / len(found):.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
