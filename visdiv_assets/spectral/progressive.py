"""How many images to sample until a score is precise enough.

Here: sizes of growing samples, and when to stop. Not here: drawing and embedding them.
"""

from collections.abc import Iterator

from visdiv_assets.spectral.corrected import CorrectedScore

FIRST_SIZE = 500
GROWTH = 1.5


def sample_sizes(total: int) -> Iterator[int]:
    """Sizes of growing samples, up to `total`.

    Each size is 1.5 times the last, so at most 50 % more images are used than necessary.

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
    """Whether half the width of the 95 % interval is at most `precision`.

    Example:
        >>> precise_enough(CorrectedScore(0.40, 0.392, 0.409, 250.0, 168.0, 3000), 0.01)
        True
    """
    return not measured.too_few and (measured.high - measured.low) / 2 <= precision
