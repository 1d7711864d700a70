"""Decoding: to the last bit what torchvision does, and nothing but `DecodeError` where it fails."""

import io
import struct
import sys
import types
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, features
from torchvision import transforms

from visdiv_assets.embedding.decoding import (
    HEIF,
    IMAGE_SIDE,
    DecodeError,
    Decoding,
)
from visdiv_assets.embedding.preprocess import decode_image

# Pytest drops the filter that the module under test sets for good.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP")


def noise(height=60, width=90, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_torchvision_does(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(transforms.Resize((320, 320))(image.convert("RGB")))


SAMPLES = {kind: encoded(Image.fromarray(noise()), kind) for kind in FORMATS}


def test_photographs_become_what_torchvision_makes_of_them(photos):
    for path in photos:
        data = path.read_bytes()
        assert np.array_equal(decode_image(data), as_torchvision_does(data))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (320, 320), (319, 321), (1000, 400)])
def test_any_size_becomes_what_torchvision_makes_of_it(size):
    data = encoded(Image.fromarray(noise(*size)))
    assert np.array_equal(decode_image(data), as_torchvision_does(data))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(noise()[:, :, 0])),
        encoded(Image.fromarray(noise()[:, :, 0] > 127)),
        encoded(Image.fromarray(noise(channels=4))),
        encoded(Image.fromarray(noise()).quantize(16)),
        encoded(Image.fromarray(noise()).quantize(16), transparency=3),
        encoded(Image.fromarray(noise()).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(noise()), "JPEG2000"),
        *SAMPLES.values(),
    ],
    ids=[
        *("grey", "one bit", "RGBA", "palette", "transparent palette", "CMYK"),
        *("JPEG2000", *FORMATS),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(data):
    pixels = decode_image(data)
    assert pixels.shape == (IMAGE_SIDE, IMAGE_SIDE, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, as_torchvision_does(data))


def test_an_animation_gives_its_first_frame():
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    pixels = decode_image(encoded(red, "GIF", save_all=True, append_images=[blue]))
    assert (pixels == (255, 0, 0)).all()


# --- kinds of images that are easily got wrong ---


def animation(kind, mode="RGB", **options):
    frames = [Image.new(mode, (20, 20), colour) for colour in ("red", "blue", "lime")]
    first, *others = frames
    return encoded(first, kind, save_all=True, append_images=others, duration=10, **options)


def bands(mode):
    """Noise in the bands of a mode that RGB does not convert to."""
    count = len(Image.new(mode, (1, 1)).getbands())
    return Image.merge(mode, [Image.fromarray(noise()[:, :, at % 3]) for at in range(count)])


def palette(transparency):
    return encoded(Image.fromarray(noise()).quantize(8), "PNG", transparency=transparency)


KINDS = {
    "LAB": lambda: encoded(bands("LAB"), "TIFF"),
    "YCbCr": lambda: encoded(bands("YCbCr"), "TIFF"),
    "CMYK JPEG": lambda: encoded(bands("CMYK"), "JPEG"),
    "CMYK TIFF": lambda: encoded(bands("CMYK"), "TIFF"),
    "grey and alpha": lambda: encoded(bands("LA")),
    "palette with a transparent colour": lambda: palette(3),
    "palette with alpha": lambda: palette(bytes([0, 50, 100, 150, 200, 250, 255, 0])),
    "transparent white": lambda: encoded(Image.new("RGBA", (9, 9), (255, 255, 255, 0))),
    "transparent GIF": lambda: encoded(Image.fromarray(noise()).quantize(8), "GIF", transparency=2),
    "animated GIF": lambda: animation("GIF"),
    "animated WebP": lambda: animation("WEBP", lossless=True),
    "animated PNG": lambda: animation("PNG"),
    "animated PNG with an image of its own": lambda: animation("PNG", default_image=True),
    "pages of a TIFF": lambda: animation("TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_what_pillow_makes_rgb_of(kind):
    data = KINDS[kind]()
    assert np.array_equal(decode_image(data), as_torchvision_does(data))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_counts(kind):
    pixels = decode_image(animation(kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_decoded():
    data = encoded(Image.fromarray(noise()), "AVIF")
    assert np.array_equal(decode_image(data), as_torchvision_does(data))
    assert (decode_image(animation("AVIF"))[:, :, 0] > 200).all()


def test_heic_is_decoded_where_the_codec_is_installed():
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    buffer = io.BytesIO()
    heif.from_pillow(Image.fromarray(noise())).save(buffer, quality=90)
    data = buffer.getvalue()
    assert data[4:8] == b"ftyp"
    decode_image(data)
    assert HEIF in Image.OPEN
    assert np.array_equal(decode_image(data), as_torchvision_does(data))


# --- settings ---

ORIENTATION = 0x0112


def turned(orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(Image.fromarray(noise()), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright_only_if_asked(orientation, kind):
    data = turned(orientation, kind)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        expected = np.asarray(transforms.Resize((320, 320))(upright))
    assert np.array_equal(decode_image(data), as_torchvision_does(data))
    assert np.array_equal(decode_image(data, Decoding(exif_orientation=True)), expected)
    turned_anyway = kind == "TIFF"  # by Pillow itself
    unchanged = np.array_equal(expected, as_torchvision_does(data))
    assert unchanged == (orientation == 1 or turned_anyway)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_is_none_changes_nothing(orientation):
    data = turned(orientation)
    upright = decode_image(data, Decoding(exif_orientation=True))
    assert np.array_equal(upright, as_torchvision_does(data))


def test_damaged_exif_data_are_no_reason_to_lose_an_image():
    data = encoded(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1")
    upright = decode_image(data, Decoding(exif_orientation=True))
    assert np.array_equal(upright, decode_image(data))


ON_GREEN = Decoding(alpha_background="#00fF00")


def test_what_is_transparent_shows_the_background_only_if_asked():
    red = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    red.paste((255, 0, 0, 255), (0, 0, 10, 20))
    red.putpixel((19, 19), (0, 0, 0, 0))  # else it would be of one colour
    data = encoded(red)
    assert (decode_image(data)[:280, :280] == (255, 0, 0)).all()
    pixels = decode_image(data, ON_GREEN)
    assert (pixels[:, :150] == (255, 0, 0)).all()
    assert (pixels[:, 170:] == (0, 255, 0)).all()


def test_what_is_half_transparent_is_mixed_with_the_background():
    data = encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 128)))
    assert (decode_image(data, ON_GREEN) == (128, 127, 0)).all()


@pytest.mark.parametrize(
    "kind", ["grey and alpha", "palette with a transparent colour", "palette with alpha"]
)
def test_transparency_of_every_kind_shows_the_background(kind):
    data = KINDS[kind]()
    with Image.open(io.BytesIO(data)) as image:
        rgba = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "#00ff00"), rgba).convert("RGB")
    expected = np.asarray(transforms.Resize((320, 320))(expected))
    assert np.array_equal(decode_image(data, ON_GREEN), expected)
    assert not np.array_equal(expected, decode_image(data))


@pytest.mark.parametrize("kind", ["CMYK JPEG", "animated WebP", "LAB"])
def test_a_background_changes_nothing_of_what_is_opaque(kind):
    data = KINDS[kind]()
    assert np.array_equal(decode_image(data, ON_GREEN), decode_image(data))


NAMES = {
    Decoding(): "rgb-squash320-bilinear-depth",
    Decoding(exif_orientation=True): "rgb-squash320-bilinear-depth-upright",
    Decoding(alpha_background="#FFFFFF"): "rgb-squash320-bilinear-depth-onffffff",
    Decoding(True, "#00ff0A"): "rgb-squash320-bilinear-depth-upright-on00ff0a",
    Decoding(jpeg_on_gpu=True): "rgb-squash320-bilinear-depth-nvjpeg",
}


@pytest.mark.parametrize("decoding", NAMES, ids=NAMES.get)
def test_steps_have_a_name_and_limits_have_none(decoding):
    assert decoding.name == NAMES[decoding]
    limited = replace(decoding, max_pixels=7, max_seconds=0.5)
    assert limited.name == decoding.name


@pytest.mark.parametrize("decoding", NAMES, ids=NAMES.get)
def test_the_older_name_is_the_same_without_the_new_step(decoding):
    assert decoding.older_name == NAMES[decoding].replace("-depth", "")


def test_different_limits_judge_differently_but_patience_does_not():
    assert Decoding(max_pixels=10).judge != Decoding().judge
    assert Decoding(exif_orientation=True).judge != Decoding().judge
    assert Decoding(max_seconds=1).judge == Decoding().judge


@pytest.mark.parametrize("library", ["libjpeg_turbo", "zlib", "libtiff", "webp", "avif"])
def test_another_version_of_a_codec_judges_differently(library, monkeypatch):
    before = Decoding().judge
    version = features.version
    monkeypatch.setattr(features, "version", lambda of: "0.1" if of == library else version(of))
    assert Decoding().judge != before


def test_a_heic_codec_that_came_or_went_judges_differently(monkeypatch):
    before = Decoding().judge
    other = types.ModuleType("pillow_heif")
    other.__version__, other.libheif_version = "0.1", lambda: "0.2"
    monkeypatch.setitem(sys.modules, "pillow_heif", other)
    assert Decoding().judge != before
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "heif-none" in Decoding().judge


def test_an_image_as_large_as_the_limit_is_decoded_and_a_larger_one_is_not():
    data = encoded(Image.fromarray(noise(60, 90)))
    assert decode_image(data, Decoding(max_pixels=5400)).shape == (320, 320, 3)
    with pytest.raises(DecodeError, match="90 × 60 pixels exceed the limit"):
        decode_image(data, Decoding(max_pixels=5399))


# --- what is refused ---


def png_without_pixels(width, height):
    """A PNG file that says how large it is, and ends where its pixels should begin."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0" * 5000, "not an image in a known format"),
        ("Grüße, this is a text\n".encode(), "not an image in a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image in a known format"),
        (SAMPLES["JPEG"][: len(SAMPLES["JPEG"]) // 2], "truncated"),
        (SAMPLES["PNG"][: len(SAMPLES["PNG"]) // 2], "truncated"),
        (SAMPLES["JPEG"][:3], "not an image in a known format"),
        (png_without_pixels(64, 64), "truncated"),
        (png_without_pixels(100_000, 100_000), "decompression bomb"),
    ],
    ids=[
        *("nothing", "zeros", "text", "SVG", "half a JPEG", "half a PNG", "start of a JPEG"),
        *("PNG without pixels", "enormous PNG"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_a_reason(data, reason):
    with pytest.raises(DecodeError, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


def test_too_many_pixels_are_refused_even_if_pillow_is_told_to_take_them(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DecodeError, match="100000 × 100000 pixels exceed the limit"):
        decode_image(png_without_pixels(100_000, 100_000))


def test_decoding_in_threads_leaves_the_warnings_of_others_alone():
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_image, [SAMPLES["JPEG"]] * 300))
    assert list(warnings.filters) == before


def decodes_or_is_refused(data):
    try:
        pixels = decode_image(data)
    except DecodeError:
        return
    assert pixels.shape == (IMAGE_SIDE, IMAGE_SIDE, 3)
    assert pixels.dtype == np.uint8


@given(st.sampled_from([b"", *(sample[:16] for sample in SAMPLES.values())]), st.binary())
def test_arbitrary_bytes_decode_or_are_refused(start, data):
    decodes_or_is_refused(start + data)


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
def test_flipped_bytes_decode_or_are_refused(kind, data):
    mutated = bytearray(SAMPLES[kind])
    # Half of the damage goes to the header, which is a small part of the file.
    place = st.one_of(st.integers(0, 63), st.integers(0, len(mutated) - 1))
    for at in data.draw(st.lists(place, min_size=1, max_size=4)):
        mutated[at] ^= data.draw(st.integers(1, 255))
    decodes_or_is_refused(bytes(mutated))


def test_postscript_is_not_handed_to_an_interpreter():
    with pytest.raises(DecodeError, match="not an image in a known format"):
        decode_image(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
        )
