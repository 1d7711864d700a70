"""One small picture of each format, and whether this installation decodes it.

Here: trying codecs by using them. Not here: decoding (`decoding.py`); printing.
"""

import base64
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.decoding import CODEC_MISSING
from visdiv_assets.embedding.preprocess import IMAGE_SIDE, DecodeError, Pixels

OPTIONAL = frozenset({"HEIC"})  # an extra of this package

# Eight columns from black to white, 8 × 8, as the format writes them; zlib and base64.
# fmt: off
SAMPLES = {
    "JPEG": (
        "eNr7f+P/AwYBLzdPNwZGRgYGRiBk+H+bwZmBg42NnY2Vg52dnZOTg4tHhJeHm5tHUkiYX0RWSl5OVkpGRkFFT11B"
        "SUdZRkbDXFPHwNDExERe3dLWwshGz9jE6P8BBm4OBiBkZBRk+H+EQQRkMgpgBIqKCzAwo4mzuzT+vwXSxsBgzyAk"
        "nPj/JgCEVxlR"
    ),
    "PNG": (
        "eNrrDPBz5+WS4mJgYOD19HAJAtIcIAwiGB6mPAwHUmKeLo4hFbeSUwICQ0EwMamB6ZMEg6srIz/bxU2nQSo9Xf1c"
        "1jklNAEAg2ATNQ=="
    ),
    "AVIF": (
        "eNpjYGCQSSupLEgsy0xjAAIQnZuZZpibmQjiv8xNLUlkgADFjJScIiiboSAzuYQBDfAVZJbkglmMQCyXmZOfDOK4"
        "gPiMEFFGXiCtAMQamZl5aXC1UkBOKhOUl1hmYOicn5MPtisjs6CoAEh7ZhYk5wNpkcziglSofRxQDLS3IhOsGcTj"
        "SSwzdG5kkAEJCCfn5xTlJedUAM3lZWBrAAqJZxbkwnwEdBYLI1MzC8g9uSmJJUIMXBwSHPszG9qaA4yExNsUWyYB"
        "7fIIMb/U+/NEY/wZAL5ZNkM="
    ),
    "BMP": "eNpz8m1jgAA3INYAYg4oZgSTDAwOQHyED4JZGCD49u3bDA0NDQzm5uZgNcxMTIyMFNAA+FMIhw==",
    "DIB": "eNrTYGBg4IBiRjDJwOAAxEf4IJiFAYJv377N0NDQwGBubg5Ww8zExMhIAQ0ARrgHLA==",
    "GIF": (
        "eNpz93SzME/kYOBgaGRguH37dkNDg7m5OQMDgw4QM4DEGTgUGdg5BAQUGBqamTilXCw2PHBk4JQ1Cvlh8Mipg1c/"
        "qkZCgMEaADj8EAw="
    ),
    "ICO": (
        "eNpjYGAEQg4OBiBQYAgGkmJA3Bng587LJcUFZPJ6ergEAWmQCg4OJiDpnat5B0hJebo4hlTMSU5JSAgIDAwMDXVV"
        "nilR0HBQk5HB6Aczr8mM2w4gQz1d/VzWOSU0AQDeORQb"
    ),
    "JPEG 2000": (
        "eNr77/8/kEGTAQQ4oBgGUPmM7IyM/4MYeEBMBmYWFgbG/zEMvA4OHh4BEPQ/hUGVgdG5KDWxJDVFIalSwb8gNc8r"
        "wNVdoSy1qDgzP0/BSM9Uz+T/BAYusIGaQBMmH7/Cwnr6/AEOpsPHb3Ew8PxPPH/4FSuDkhRHbP3/mwBPmiXj"
    ),
    "PCX": "eNrjYmJkZAACdiBMAUJc4D8OwMDIxMDIwAGE5AF+NAgAI/0ZWQ==",
    "PPM": "eNoLMOWyULDgMjI15WJQ8cydtO32f3JpAFwwIbA=",
    "QOI": (
        "eNorzM9MY2Bg4ABhZsYD/1RUVP55enr+y83N/Tdp0qR/27Zt+3"
        "f79u1/////rxe0kWCW51IzJZFmgABGAKFgHCk="
    ),
    "SGI": "eNpjvMXAyMDEwAGEjAwQ8J9hFIwcoOKZO2nb7f/k0gAh6SHP",
    "TGA": "eNpjYOBmgAEOMGRnUPHMnbTt9n8KGTBTQ4JCXcM8gz39/XQj3Dx9XPUYANl0JSc=",
    "TIFF": (
        "eNrz9NRi0GJgYGhgYGmZnOWZc7v+wIIJGS5a3OwtBx5+uDHFSJm7w3nRxRUtLJwMDIzMDIxAtRxAzIjEZkJiM0PZ"
        "rEDMBmWDsCAjC1yNGJJ6cai4EhDLIKkHAQCDsRER"
    ),
    "WebP": (
        "eNoL8nRzc2BgYAh3dQoIC7DwMQGy9dkPMDLYKwgoHPkgn+mkMOFQYhSIqPrHqZa56q3Eqhd/mVpuunElS56OOPe/"
        "mk3wL3+OPAANlBmK"
    ),
    "HEIC": (
        "eNpjYGCQSSupLMhIzaxgAILczDRDEDs3MzGNgYGxLDe1JJEBAhQzUnKKoGyGgszkEgY0oJSZk58MYrg4MDACIRAw"
        "zoLQQKAJxMqZmXlpYB5IVBTISWWC8jLKkg1BTL6CzJJcuJJvmQVFBUD6WmZBcj6QLgQqc2Zk4QAy5/8AKZL7wPDn"
        "zw8gk585AahD3IGRh/H/f5ACZrAKZqCSXUwOiUA5NSdGRlSJA00sYtGrdmXPZgLxjUAEk0ASUCmbC+PB4oOdQPOF"
        "k/NzivKScyqAorwMbA1AIZHM4oJUqKccoFgjOScR5E4OqLvB9P///08AaSYYDfFdRSbYcyAVEpkFubDQBQYYayMT"
        "M2sLkG2Ym5IICl1VDcZ1S9QVDzxlS7shI3SvpqooWaDHesG3Dx8bF+y4f1VKo6upIq8MAFsMXZs="
    ),
}
# fmt: on


class Codec(NamedTuple):
    """A format, and what came of decoding its sample."""

    name: str
    state: str  # "ok", "missing" or "broken"
    reason: str  # why it is not ok, and what to do; "" if it is

    @property
    def is_fine(self) -> bool:
        """Whether it is ok, or missing and optional."""
        return self.state == "ok" or (self.state == "missing" and self.name in OPTIONAL)


def sample(name: str) -> bytes:
    """The encoded picture of a format in `SAMPLES`.

    Example:
        >>> sample("GIF")[:6]
        b'GIF87a'
    """
    return zlib.decompress(base64.b64decode(SAMPLES[name]))


def examine_codecs(decoders: Decoders) -> Iterator[Codec]:
    """Decode the sample of each format.

    Raises:
        VisdivError: no decoder process can be started.
    """
    for name in SAMPLES:
        try:
            pixels = decoders.decode(sample(name))
        except DecodeError as error:
            state = "missing" if error.exception == CODEC_MISSING else "broken"
            yield Codec(name, state, error.reason)
        else:
            right = _is_right(pixels)
            yield Codec(name, *(("ok", "") if right else ("broken", "its pixels are wrong")))


def _is_right(pixels: Pixels) -> bool:
    third = IMAGE_SIDE // 3
    dark, light = pixels[:, :third], pixels[:, -third:]
    return bool(np.mean(dark) < 64 and np.mean(light) > 160)
