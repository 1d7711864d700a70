"""Units of work: parts of a manifest that machines embed independently of each other.

Here: where to cut, ids, shares. Not here: embedding one (`incremental.py`), where plans are kept
(`store/plans.py`).
"""

import hashlib
import itertools
import re
from collections.abc import Sequence

import pyarrow as pa

from visdiv_assets.errors import VisdivError

UNIT_IMAGES = 20_000
MOST_SHARES = 1_000_000

# Where workers take units as they go: so many for each, so that all end at about the same time,
# and none that is hardly worth handing out.
UNITS_A_WORKER, FEWEST_IMAGES = 4, 256


def cut(files: Sequence[str], most: int) -> list[range]:
    """Rows that go together, in order.

    Args:
        files: for each image, the file that holds it and others, or "" if it is a file of its own.
            Images of one file follow each other.
        most: images in a unit. Images of one file stay together, even if they are more.

    Example:
        >>> cut(["", "", "", "", ""], 2)
        [range(0, 2), range(2, 4), range(4, 5)]
        >>> cut(["a", "a", "b", "b", "b", "c"], 3)
        [range(0, 2), range(2, 5), range(5, 6)]
    """
    units, start, at = [], 0, 0
    for file, group in itertools.groupby(files):
        together = len([*group])
        for size in [together] if file else [1] * together:
            if at > start and at + size - start > most:
                units.append(range(start, at))
                start = at
            at += size
    return [*units, range(start, at)] if at > start else units


def unit_images(n_left: int, workers: int) -> int:
    """How many images a unit has, if so many are left and workers take units as they go.

    Example:
        >>> unit_images(1000, 2), unit_images(100_000, 2), unit_images(10_000_000, 2)
        (256, 12500, 20000)
    """
    return min(max(-(-n_left // (UNITS_A_WORKER * workers)), FEWEST_IMAGES), UNIT_IMAGES)


def unit_id(model_id: str, images: pa.Table) -> str:
    """Hash of what a unit is: a model, and the ids, sizes and versions of images.

    Args:
        model_id: the model.
        images: with the columns of a manifest.
    """
    digest = hashlib.blake2b(model_id.encode(), digest_size=16)
    for row in images.select(["image_id", "size", "version"]).to_pylist():
        digest.update(repr(tuple(row.values())).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def share(text: str, n_units: int) -> range:
    """The numbers of the units that `3/64`, the third of 64 shares, stands for.

    Raises:
        VisdivError: that is no share.

    Example:
        >>> list(share("2/3", 8))
        [1, 4, 7]
    """
    found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of <= MOST_SHARES:
        raise VisdivError(f"{text!r} is no share of the units; for the third of 64, write 3/64")
    return range(number - 1, n_units, of)
