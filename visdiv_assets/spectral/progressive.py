"""How many images to look at until a score is known well enough.

Here: sizes of ever larger samples, and when to stop. Not here: drawing and embedding them.
"""

from collections.abc import Iterator

from visdiv_assets.spectral.corrected import CorrectedScore

FIRST_SIZE = 500
GROWTH = 1.5


def sample_sizes(total: int) -> Iterator[int]:
    """Sizes of ever larger samples, up to everything.

    Growing by half costs at most half more images than the smallest size that would have done.

    Example:
        >>> list(sample_sizes(2000))
        [500, 750, 1125, 1687, 2000]
    """
    size = float(FIRST_SIZE)
    while size < total:
        yield int(size)
        size *= GROWTH
    yield total


def precise_enough(measured: CorrectedScore, precision: float) -> bool:
    """Whether half the width of the 95 % interval is no more than `precision`.

    Example:
        >>> precise_enough(CorrectedScore(0.40, 0.392, 0.409, 250.0, 168.0, 3000), 0.01)
        True
    """
    return not measured.too_few and (measured.high - measured.low) / 2 <= precision
