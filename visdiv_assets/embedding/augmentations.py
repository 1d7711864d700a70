"""A catalogue of standard augmentations, applied to decoded images.

Here: the augmentations, seeded by each image's content. Not here: choosing and embedding images
(`workflows/augment.py`), judging the effect (`guidance/augmentation.py`).

All of them act on the decoded 320 × 320 square that the model sees, so crops and rotations apply
to the resized image. Importing this module does not import torch.
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
    """One augmentation.

    Attributes:
        name: short name for commands and tables.
        what: description, with its parameters.
        make: returns the torchvision transform; called with `transforms.v2`.
        mixes: whether it mixes two images.
    """

    name: str
    what: str
    make: Callable[[Any], Any]
    mixes: bool = False


# Parameters are torchvision's defaults or those of its training recipes, unless the name says mild
# or strong. Each augmentation is applied with probability 1, to measure its full effect.
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

    A name also selects all names that start with it and a dash: `crop` selects `crop-mild`.

    Raises:
        VisdivError: an unknown name, or no name at all.

    Example:
        >>> [each.name for each in chosen(["mixup", "flip"])]
        ['flip', 'flip-vertical', 'mixup']
    """
    wanted = [name.strip() for name in names if name.strip()]
    if not wanted:
        raise VisdivError(f"name at least one augmentation: {', '.join(NAMES)}")
    for name in wanted:
        if not any(_is_meant(each, name) for each in NAMES):
            raise VisdivError(f"there is no augmentation {name!r}; choose from {', '.join(NAMES)}")
    return tuple(each for each in CATALOGUE if any(_is_meant(each.name, name) for name in wanted))


def _is_meant(each: str, name: str) -> bool:
    return each == name or each.startswith(f"{name}-")


def augment(
    augmentation: Augmentation, pixels: Sequence[Pixels], keys: Sequence[bytes]
) -> Iterator[Pixels]:
    """An augmented copy of each image.

    The random seed is derived from the image's content and the augmentation, so the copy of an
    image does not depend on other images. Augmentations that mix pair images 0 and 1, 2 and 3, …
    (see `pairs`).

    Args:
        augmentation: one from the catalogue.
        pixels: images of shape (320, 320, 3), uint8; at least 2 if the augmentation mixes.
        keys: the content key of each image.

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
    """The pair that each of n images belongs to; if n is odd, the last three form one group.

    Example:
        >>> pairs(5).tolist()
        [0, 0, 1, 1, 1]
    """
    return np.minimum(np.arange(n) // 2, max(n // 2 - 1, 0))


def _partner(group: NDArray[np.int64], at: int) -> int:
    """The next image of its group, cyclically."""
    members = np.flatnonzero(group == group[at])
    return int(members[(np.searchsorted(members, at) + 1) % len(members)])


def _mixed(transform: Any, image: Pixels, other: Pixels) -> "torch.Tensor":
    import torch

    batch = torch.stack([_tensor(image), _tensor(other)]).float()
    made, _ = transform(batch, torch.tensor([0, 1]))
    first: torch.Tensor = made[0].round().to(torch.uint8)
    return first


def _jpeg(image: "torch.Tensor") -> "torch.Tensor":
    """Uses Pillow, because torchvision's codecs are deprecated."""
    import torch

    encoded = io.BytesIO()
    quality = int(torch.randint(10, 51, ()))
    Image.fromarray(_pixels(image)).save(encoded, "JPEG", quality=quality)
    with Image.open(encoded) as decoded:
        return _tensor(np.asarray(decoded))


def _tensor(image: Pixels) -> "torch.Tensor":
    import torch

    # Copied: decoded pixels are read-only, which torch does not support.
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).copy())


def _float() -> "torch.dtype":
    import torch

    return torch.float32


def _pixels(made: "torch.Tensor") -> Pixels:
    if made.is_floating_point():
        made = (made * 255).round().byte()
    return np.ascontiguousarray(made.numpy().transpose(1, 2, 0))
