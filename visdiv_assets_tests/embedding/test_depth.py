"""Grey of every depth looks like the same picture in 8 bits; content in alpha is shown."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, features

from visdiv_assets.embedding.decoding import FLAT, Decoding, decode_square
from visdiv_assets.embedding.depth import range_of
from visdiv_assets.embedding.preprocess import decode_image

# Pytest drops the filter that the module under test sets for good.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

# From black to white, so that a picture's own range is that of 8 bits.
GREY = np.linspace(0, 255, 64 * 48).round().astype(np.uint8).reshape(48, 64)
HEIGHT, WIDTH = GREY.shape
ON_GREEN = Decoding(alpha_background="#00ff00")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def of(samples, kind="TIFF", **options):
    return encoded(Image.fromarray(samples), kind, **options)


GREY_8 = of(GREY, "PNG")


def tiff(samples, bits, *more, sample_format=1, white_is_zero=False):
    """A TIFF that is stored as the samples are, in their byte order; `more` are short tags."""
    order = ">" if getattr(samples, "dtype", np.dtype("u1")).byteorder == ">" else "<"
    stored = samples if isinstance(samples, bytes) else samples.tobytes()
    tags = dict(
        [
            *((256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, int(not white_is_zero))),
            *((273, None), (277, 1), (278, HEIGHT), (279, len(stored)), (339, sample_format)),
            *more,
        ]
    )
    start = 8 + 2 + 12 * len(tags) + 4
    directory = b"".join(
        struct.pack(order + "HHII", tag, 4, 1, start if value is None else value)
        for tag, value in sorted(tags.items())
    )
    head = b"II*\0" if order == "<" else b"MM\0*"
    counts = struct.pack(order + "I", 8) + struct.pack(order + "H", len(tags))
    return head + counts + directory + bytes(4) + stored


def packed_12_bits(samples):
    """Two samples in three bytes."""
    pairs = samples.astype(np.uint32).reshape(-1, 2)
    together = pairs[:, 0] << 12 | pairs[:, 1]
    return np.stack([together >> 16, together >> 8, together], 1).astype(np.uint8).tobytes()


def jpeg_2000(bits):
    """A JPEG 2000 of any depth, which Pillow cannot write.

    The samples are written as 16 bits, and the file is then said to have fewer; half the range is
    taken off before coding (ITU-T T.800, annex G), which makes up for another half of the range.
    """
    samples = (GREY.astype(np.uint32) * (2**bits - 1) + 127) // 255 + 2**15 - 2 ** (bits - 1)
    data = bytearray(of(samples.astype(np.uint16), "JPEG2000", no_jp2=True))
    at = data.find(b"\xff\x51") + 40
    assert data[at] == 15
    data[at] = bits - 1
    return bytes(data)


def pgm(maxval):
    samples = np.rint(GREY / 255 * maxval).astype(">u2")
    return b"P5\n%d %d\n%d\n" % (WIDTH, HEIGHT, maxval) + samples.tobytes()


def plain_pgm(maxval):
    samples = np.rint(GREY / 255 * maxval).astype(int).ravel()
    return b"P2\n%d %d\n%d\n" % (WIDTH, HEIGHT, maxval) + b" ".join(
        b"%d" % each for each in samples
    )


U16 = GREY.astype(np.uint16) * 257
U12 = GREY.astype(np.uint16) * 16 + GREY // 16
F = (GREY / 255).astype(np.float32)
I32 = GREY.astype(np.int32)

DEEP = {
    "16-bit PNG": lambda: of(U16, "PNG"),
    "16-bit TIFF": lambda: of(U16),
    "16-bit TIFF in LZW": lambda: of(U16, compression="tiff_lzw"),
    "16-bit TIFF, most significant byte first": lambda: tiff(U16.astype(">u2"), 16),
    "16-bit TIFF whose white is 0": lambda: tiff(65_535 - U16, 16, white_is_zero=True),
    "16-bit TIFF with sign": lambda: tiff(
        (U16.astype(np.int32) - 32_768).astype("<i2"), 16, sample_format=2
    ),
    "12-bit TIFF": lambda: tiff(packed_12_bits(U12), 12),
    "12 of 16 bits, by SMaxSampleValue": lambda: tiff(U12, 16, (340, 0), (341, 4095)),
    "12 of 16 bits, by MaxSampleValue": lambda: tiff(U12, 16, (280, 0), (281, 4095)),
    "16-bit PGM": lambda: pgm(65_535),
    "12-bit PGM": lambda: pgm(4095),
    "10-bit PGM": lambda: pgm(1023),
    "PGM of an odd depth": lambda: pgm(999 * 40),
    "12-bit PGM in digits": lambda: plain_pgm(4095),
    "16-bit JPEG 2000": lambda: of(U16, "JPEG2000"),
    "12-bit JPEG 2000": lambda: jpeg_2000(12),
    "10-bit JPEG 2000": lambda: jpeg_2000(10),
    "8 bits in an int32 TIFF": lambda: of(I32),
    "16 bits in an int32 TIFF": lambda: of(I32 * 257),
    "int32 TIFF from the lowest to the highest": lambda: tiff(
        (GREY.astype(np.int64) * 16_843_009 - 2**31).astype("<i4"), 32, sample_format=2
    ),
    "uint32 TIFF": lambda: tiff(GREY.astype("<u4") * 16_843_009, 32),
    "float TIFF from 0 to 1": lambda: of(F),
    "float TIFF from 0 to 1, most significant byte first": lambda: tiff(
        F.astype(">f4"), 32, sample_format=3
    ),
    "float TIFF from 0 to 1 whose white is 0": lambda: tiff(
        1 - F, 32, sample_format=3, white_is_zero=True
    ),
    "float TIFF from 0 to 255": lambda: of(F * 255),
    "float TIFF from 0 to 65535": lambda: of(F * 65_535),
    "float TIFF of degrees": lambda: of(F * 40 - 10),
    "float TIFF of tiny numbers": lambda: of(F * np.float32(1e-5)),
    "float TIFF of huge numbers": lambda: of(F * np.float32(3e38)),
    "PFM": lambda: b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + np.ascontiguousarray(F[::-1]).tobytes(),
}


def off_by(data, other=GREY_8):
    return np.abs(decode_image(data).astype(int) - decode_image(other)).max()


@pytest.mark.parametrize("kind", DEEP)
def test_grey_of_any_depth_looks_like_8_bits(kind):
    assert off_by(DEEP[kind]()) <= 1


@pytest.mark.parametrize("kind", ["16-bit PNG", "16-bit TIFF", "float TIFF from 0 to 1"])
def test_8_bits_in_more_are_the_same_pixels(kind):
    assert off_by(DEEP[kind]()) == 0


def test_a_large_picture_is_scaled_like_a_small_one():
    large = np.tile(GREY, (8, 8))
    assert off_by(of(large.astype(np.uint16) * 257), of(large, "PNG")) == 0


def test_a_dark_picture_of_16_bits_stays_dark():
    dark = GREY // 4
    assert off_by(of(dark.astype(np.uint16) * 257, "PNG"), of(dark, "PNG")) == 0


def test_a_dark_picture_of_fractions_stays_dark():
    assert decode_image(of(F / 4)).max() in (63, 64)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_spoil_only_their_own_places(wrong):
    holed = F.copy()
    holed[0, :5] = wrong
    assert np.abs(decode_image(of(holed))[40:].astype(int) - decode_image(of(F))[40:]).max() == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_picture_without_any_number_is_flat(wrong):
    assert decode_square(of(np.full_like(F, wrong)), Decoding()).flat


@given(arrays.arrays(np.float32, (4, 5), elements=st.floats(width=32)))
def test_any_floats_are_decoded(samples):
    assert decode_image(of(samples)).shape == (320, 320, 3)


@given(arrays.arrays(np.int32, (4, 5)))
def test_whole_numbers_that_differ_never_become_one_colour(samples):
    square = decode_square(of(samples), Decoding())
    assert square.flat == (samples.min() == samples.max())


@given(st.floats(-1e300, 1e300), st.floats(0, 1e300))
def test_a_range_holds_all_samples(lowest, extent):
    black, white = range_of(lowest, lowest + extent)
    assert black <= lowest
    assert white >= lowest + extent


def test_a_colour_that_is_transparent_shows_the_background_in_16_bits():
    data = bytearray(of(U16, "PNG"))
    content = b"tRNS" + struct.pack(">H", int(U16[0, 0]))
    data[33:33] = struct.pack(">I", 2) + content + struct.pack(">I", zlib.crc32(content))
    assert tuple(decode_image(bytes(data), ON_GREEN)[0, 0]) == (0, 255, 0)
    assert tuple(decode_image(bytes(data))[0, 0]) == (0, 0, 0)


def test_16_bits_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif.tobytes()}
    upright = Decoding(exif_orientation=True)
    turned = decode_image(of(U16, "PNG", **options), upright)
    assert np.array_equal(turned, decode_image(of(GREY, "PNG", **options), upright))
    assert not np.array_equal(turned, decode_image(of(U16, "PNG", **options)))


# --- content in alpha ---


def only_in_alpha(colour, mode="RGBA"):
    image = Image.new("RGBA", (WIDTH, HEIGHT), (colour, colour, colour, 0))
    image.putalpha(Image.fromarray(GREY))
    return image.convert(mode)


def palette_of_one_colour(colour):
    image = Image.fromarray(GREY).convert("P")
    image.putpalette([colour] * 768)
    return image


ALPHA = {
    **{
        f"{kind} of {colour}": (
            lambda kind=kind, colour=colour: encoded(only_in_alpha(colour), kind)
        )
        for kind, colour in itertools.product(
            ("PNG", "TIFF", "TGA", "WEBP", "ICO", "JPEG2000", "SGI"), (0, 255)
        )
    },
    "LA": lambda: encoded(only_in_alpha(0, "LA")),
    "LA of 255": lambda: encoded(only_in_alpha(255, "LA")),
    "palette with alpha": lambda: encoded(palette_of_one_colour(9), transparency=bytes(range(256))),
    "palette with a transparent colour": lambda: encoded(
        palette_of_one_colour(9), "GIF", transparency=int(GREY[30, 30])
    ),
}


@pytest.mark.parametrize("kind", ALPHA)
def test_content_in_alpha_is_shown(kind):
    square = decode_square(ALPHA[kind](), Decoding())
    assert not square.flat
    assert square.changed


def test_dark_content_in_alpha_lies_on_white_and_light_content_on_black():
    assert off_by(encoded(only_in_alpha(0)), of(255 - GREY, "PNG")) <= 1
    assert off_by(encoded(only_in_alpha(255)), GREY_8) <= 1


@pytest.mark.parametrize("colour", ["#ffffff", "#000000", "#fefefe"])
def test_content_of_the_colour_of_the_background_is_shown(colour):
    content = int(colour[1:3], 16)
    square = decode_square(encoded(only_in_alpha(content)), Decoding(alpha_background=colour))
    assert not square.flat
    assert square.changed


def test_colours_below_alpha_are_kept_where_they_show_something():
    image = Image.merge("RGBA", [*[Image.fromarray(GREY)] * 3, Image.fromarray(255 - GREY)])
    square = decode_square(encoded(image), Decoding())
    assert not square.changed
    assert off_by(encoded(image)) == 0


# --- flat ---

FLATS = {
    "one colour": (Image.new("RGB", (9, 9), (1, 200, 77)), True),
    "one transparent colour": (Image.new("RGBA", (9, 9), (1, 200, 77, 0)), True),
    "half transparent all over": (Image.new("RGBA", (9, 9), (1, 200, 77, 128)), True),
    "a difference of 2": (Image.fromarray(np.repeat([[7, 9]], 2, 0).astype(np.uint8)), True),
    "a difference of 3": (Image.fromarray(np.repeat([[7, 10]], 2, 0).astype(np.uint8)), False),
}


@pytest.mark.parametrize("kind", FLATS)
def test_what_shows_nothing_is_flat(kind):
    image, flat = FLATS[kind]
    assert decode_square(encoded(image), Decoding()).flat == flat


# --- what older versions would have made of it ---


def older_square(data, decoding):
    """The rule up to version 0.2.0, kept for comparison."""
    with Image.open(io.BytesIO(data)) as image:
        if decoding.alpha_background and image.has_transparency_data:
            ground = Image.new("RGBA", image.size, decoding.alpha_background)
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(rgb.resize((320, 320), Image.Resampling.BILINEAR))


def bands(mode):
    count = len(Image.new(mode, (1, 1)).getbands())
    return Image.merge(mode, [Image.fromarray(np.roll(GREY, 7 * at, 1)) for at in range(count)])


WRITABLE = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"),
    "WEBP": ("L", "LA", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "YCbCr", "I;16"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TGA": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "RGBA", "I", "I;16", "F"),
    "SGI": ("L", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "ICO": ("L", "LA", "P", "RGB", "RGBA"),
}


def picture(mode):
    if mode in ("L", "P"):
        return Image.fromarray(GREY).convert(mode)
    if mode == "1":
        return Image.fromarray(GREY > 127)
    if mode == "I;16":
        return Image.fromarray(U16)
    if mode in ("I", "F"):
        return Image.fromarray(I32 * 3).convert(mode)
    return bands(mode).convert(mode) if mode != "PA" else bands("LA").convert("PA")


SEEN = [(kind, mode) for kind, modes in WRITABLE.items() for mode in modes]


@pytest.mark.parametrize("decoding", [Decoding(), ON_GREEN], ids=["as stored", "on green"])
@pytest.mark.parametrize(("kind", "mode"), SEEN)
def test_unchanged_pictures_have_the_pixels_of_older_versions(kind, mode, decoding):
    data = encoded(picture(mode), kind)
    square = decode_square(data, decoding)
    same = np.array_equal(np.asarray(square.image), older_square(data, decoding))
    assert same or square.changed
    assert square.changed == (mode in ("I", "I;16", "F"))


@pytest.mark.parametrize("kind", [*DEEP, *ALPHA])
def test_pictures_with_other_pixels_than_in_older_versions_are_changed(kind):
    data = {**DEEP, **ALPHA}[kind]()
    square = decode_square(data, Decoding())
    same = np.array_equal(np.asarray(square.image), older_square(data, Decoding()))
    assert same or square.changed


PIXELS = st.integers(0, 3) | st.integers(0, 255)
MODES = st.sampled_from(["L", "LA", "RGB", "RGBA"])


@given(MODES, st.data(), st.sampled_from([Decoding(), Decoding(alpha_background="#000000")]))
def test_any_pixels_that_are_unchanged_are_those_of_older_versions(mode, data, decoding):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (3, 4, channels) if channels > 1 else (3, 4)
    samples = data.draw(arrays.arrays(np.uint8, shape, elements=PIXELS))
    image = encoded(Image.fromarray(samples, mode))
    square = decode_square(image, decoding)
    assert square.changed or np.array_equal(np.asarray(square.image), older_square(image, decoding))
    spread = np.ptp(np.asarray(square.image).reshape(-1, 3).astype(int), axis=0)
    assert square.flat == (spread <= FLAT).all()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_content_in_alpha_of_avif_is_shown():
    assert not decode_square(encoded(only_in_alpha(0), "AVIF"), Decoding()).flat


def test_heic_of_16_bits_and_content_in_alpha_of_heic_are_shown():
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    for image in (heif.from_bytes("I;16", (WIDTH, HEIGHT), U16.tobytes()), only_in_alpha(255)):
        buffer = io.BytesIO()
        (heif.from_pillow(image) if isinstance(image, Image.Image) else image).save(
            buffer, quality=-1
        )
        assert off_by(buffer.getvalue()) <= 3
