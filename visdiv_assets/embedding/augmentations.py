"""A catalogue of standard augmentations, and how they are applied to decoded images.

Here: what is applied, seeded by each image's content. Not here: which images, embedding them
(`advice.py`), what is concluded (`guidance/augmentation.py`).

All act on the decoded square of 320 × 320, as the model sees it: a crop is cut out of the squashed
image, and a rotation turns that. Importing this module imports no torch.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visdiv_assets.embedding.preprocess import IMAGE_SIDE, Pixels
from visdiv_assets.errors import VisdivError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Augmentation:
    """A way of making another image of an image.

    Attributes:
        name: short, for commands and tables.
        what: says what it does, with its parameters.
        make: the transform of torchvision, with its parameters; called with `transforms.v2`.
        mixes: whether it takes two images.
    """

    name: str
    what: str
    make: Callable[[Any], Any]
    mixes: bool = False


# Parameters are torchvision's defaults or those of its training recipes, unless `what` says
# mild or strong; each is applied to every image, since what is measured is what it makes of them.
CATALOGUE = (
    Augmentation("flip", "mirrored left to right", lambda v2: v2.RandomHorizontalFlip(1)),
    Augmentation("flip-vertical", "upside down, mirrored", lambda v2: v2.RandomVerticalFlip(1)),
    Augmentation(
        "crop-mild",
        "random crop of 60 to 100 % of the area, resized",
        lambda v2: v2.RandomResizedCrop(IMAGE_SIDE, scale=(0.6, 1.0)),
    ),
    Augmentation(
        "crop",
        "random crop of 8 to 100 % of the area, resized",
        lambda v2: v2.RandomResizedCrop(IMAGE_SIDE),
    ),
    Augmentation(
        "colour-mild",
        "brightness, contrast, saturation ± 20 %, hue ± 2 %",
        lambda v2: v2.ColorJitter(0.2, 0.2, 0.2, 0.02),
    ),
    Augmentation(
        "colour",
        "brightness, contrast, saturation ± 80 %, hue ± 20 %",
        lambda v2: v2.ColorJitter(0.8, 0.8, 0.8, 0.2),
    ),
    Augmentation("grey", "without colour", lambda v2: v2.Grayscale(3)),
    Augmentation(
        "blur",
        "Gaussian blur, σ from 1 to 3 pixels",
        lambda v2: v2.GaussianBlur(19, (1.0, 3.0)),
    ),
    Augmentation(
        "noise",
        "Gaussian noise, σ of 10 % of full scale",
        lambda v2: v2.Compose([v2.ToDtype(_float(), scale=True), v2.GaussianNoise(sigma=0.1)]),
    ),
    Augmentation("rotate-mild", "turned by up to 15°", lambda v2: v2.RandomRotation(15)),
    Augmentation("rotate-90", "turned by 90°", lambda v2: v2.RandomRotation((90, 90))),
    Augmentation(
        "perspective",
        "seen from the side",
        lambda v2: v2.RandomPerspective(distortion_scale=0.5, p=1),
    ),
    Augmentation("erase", "a rectangle of 2 to 33 % blackened", lambda v2: v2.RandomErasing(p=1)),
    Augmentation("jpeg", "JPEG of quality 10 to 50", lambda v2: v2.Lambda(_jpeg)),
    Augmentation("posterize", "2 bits a channel", lambda v2: v2.RandomPosterize(2, p=1)),
    Augmentation("solarize", "bright parts inverted", lambda v2: v2.RandomSolarize(128, p=1)),
    Augmentation("randaugment", "RandAugment, two of 14 kinds", lambda v2: v2.RandAugment()),
    Augmentation(
        "trivialaugment", "TrivialAugment, one of 14 kinds", lambda v2: v2.TrivialAugmentWide()
    ),
    Augmentation("mixup", "blended with another image", lambda v2: v2.MixUp(num_classes=2), True),
    Augmentation(
        "cutmix", "a rectangle from another image", lambda v2: v2.CutMix(num_classes=2), True
    ),
)

NAMES = tuple(each.name for each in CATALOGUE)


def chosen(names: Iterable[str]) -> tuple[Augmentation, ...]:
    """Augmentations by name, in the order of the catalogue.

    A name stands for all that begin with it and a dash, too: `crop` for `crop-mild` as well.

    Raises:
        VisdivError: there is none of that name, or no name at all.

    Example:
        >>> [each.name for each in chosen(["mixup", "flip"])]
        ['flip', 'flip-vertical', 'mixup']
    """
    wanted = [name.strip() for name in names if name.strip()]
    if not wanted:
        raise VisdivError(f"name at least one augmentation of: {', '.join(NAMES)}")
    for name in wanted:
        if not any(_is_meant(each, name) for each in NAMES):
            raise VisdivError(f"there is no augmentation {name!r}; there are: {', '.join(NAMES)}")
    return tuple(each for each in CATALOGUE if any(_is_meant(each.name, name) for name in wanted))


def _is_meant(each: str, name: str) -> bool:
    return each == name or each.startswith(f"{name}-")


def augment(
    augmentation: Augmentation, pixels: Sequence[Pixels], keys: Sequence[bytes]
) -> Iterator[Pixels]:
    """A copy of each image.

    What is random is seeded by the image's content and the augmentation, so that an image has the
    same copy whatever stands beside it. Mixing ones pair images: 0 and 1, 2 and 3, … (see `pairs`).

    Args:
        augmentation: one of the catalogue.
        pixels: images of shape (320, 320, 3), uint8; for a mixing one, at least 2.
        keys: the content key of each.

    Yields:
        images of the same shape and type, in the same order.
    """
    import torch
    from torchvision.transforms import v2

    transform = augmentation.make(v2)
    group = pairs(len(pixels))
    for at, (image, key) in enumerate(zip(pixels, keys, strict=True)):
        digest = hashlib.blake2b(key + augmentation.name.encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest) >> 1)
            if augmentation.mixes:
                made = _mixed(transform, image, pixels[_partner(group, at)])
            else:
                made = transform(_tensor(image))
        yield _pixels(made)


def pairs(n: int) -> NDArray[np.int64]:
    """Which pair each of n images is in, for those that mix two; of an odd number, three are one.

    Example:
        >>> pairs(5).tolist()
        [0, 0, 1, 1, 1]
    """
    return np.minimum(np.arange(n) // 2, max(n // 2 - 1, 0))


def _partner(group: NDArray[np.int64], at: int) -> int:
    """The next one of its pair, around."""
    members = np.flatnonzero(group == group[at])
    return int(members[(np.searchsorted(members, at) + 1) % len(members)])


def _mixed(transform: Any, image: Pixels, other: Pixels) -> "torch.Tensor":
    import torch

    batch = torch.stack([_tensor(image), _tensor(other)]).float()
    made, _ = transform(batch, torch.tensor([0, 1]))
    first: torch.Tensor = made[0].round().to(torch.uint8)
    return first


def _jpeg(image: "torch.Tensor") -> "torch.Tensor":
    """By Pillow, since torchvision's codecs are on their way out."""
    import torch

    encoded = io.BytesIO()
    quality = int(torch.randint(10, 51, ()))
    Image.fromarray(_pixels(image)).save(encoded, "JPEG", quality=quality)
    with Image.open(encoded) as decoded:
        return _tensor(np.asarray(decoded))


def _tensor(image: Pixels) -> "torch.Tensor":
    import torch

    # Copied: decoded pixels are read-only, which torch does not know.
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).copy())


def _float() -> "torch.dtype":
    import torch

    return torch.float32


def _pixels(made: "torch.Tensor") -> Pixels:
    if made.is_floating_point():
        made = (made * 255).round().byte()
    return np.ascontiguousarray(made.numpy().transpose(1, 2, 0))
