"""Texts, profiles and other data beside the pixels are no reason to lose a picture."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.decoding import Decoding
from visdiv_assets.embedding.metadata import without_metadata
from visdiv_assets.embedding.preprocess import DecodeError, decode_image

# Pytest drops the filter that the module under test sets for good.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
UPRIGHT = Decoding(exif_orientation=True)
LONG = b'{"prompt": "a picture of a cat"}, ' * 80_000  # 2.7 MB
DAMAGED_EXIF = b"Exif\0\0MM\0*\xff\xff\xff\xff"


def encoded(kind, image=PICTURE, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG, JPEG, TIFF = (encoded(kind) for kind in ("PNG", "JPEG", "TIFF"))


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(*chunks):
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg(*segments):
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def tiff(**tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, (kind, value) in tags.items():
        info.tagtype[int(name[1:])] = kind
        info[int(name[1:])] = value
    return encoded("TIFF", tiffinfo=info)


def tiff_with_damaged(tag, field, value):
    """A TIFF whose entry for a tag has another type, count or place."""
    data = bytearray(encoded("TIFF", description="d" * 100, dpi=(72, 72), software="s" * 50))
    first = int.from_bytes(data[4:8], "little")
    at = data.index(tag.to_bytes(2, "little"), first)
    offset, size = {"type": (2, 2), "count": (4, 4), "place": (8, 4)}[field]
    data[at + offset : at + offset + size] = value.to_bytes(size, "little")
    return bytes(data)


def bomb(size):
    squeeze = zlib.compressobj(9)
    piece = bytes(2**24)
    return b"".join(squeeze.compress(piece) for _ in range(size // len(piece))) + squeeze.flush()


HARMLESS = {
    "long zTXt": lambda: png(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG))),
    "long iTXt": lambda: png(chunk(b"iTXt", b"workflow\0\0\0\0\0" + LONG)),
    "long packed iTXt": lambda: png(chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LONG))),
    "long XMP": lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG))),
    "many texts": lambda: png(*[chunk(b"tEXt", b"k\0" + b"x" * 900_000)] * 80),
    "large colour profile": lambda: png(
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(os.urandom(1_500_000)))
    ),
    "text that unpacks to a gigabyte": lambda: png(chunk(b"zTXt", b"a\0\0" + bomb(2**30))),
    "text with a wrong checksum": lambda: png(chunk(b"tEXt", b"a\0bcd", checksum=0)),
    "text packed in an unknown way": lambda: png(chunk(b"zTXt", b"a\0\7xx")),
    "profile packed in an unknown way": lambda: png(chunk(b"iCCP", b"a\0\7xx")),
    "damaged eXIf": lambda: png(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")),
    "EXIF text that is none": lambda: png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz")),
    **{
        f"{name} of one byte": (lambda name=name: png(chunk(name.encode(), b"\1")))
        for name in ("pHYs", "gAMA", "cHRM", "sRGB", "iCCP", "tIME", "sBIT", "bKGD", "acTL", "fcTL")
    },
    "JFIF that is too short": lambda: jpeg(segment(0xE0, b"JFIF\0")),
    "Adobe segment that is too short": lambda: jpeg(segment(0xEE, b"Adobe")),
    "damaged EXIF in JPEG": lambda: jpeg(segment(0xE1, DAMAGED_EXIF)),
    "megabytes of EXIF": lambda: jpeg(*[segment(0xE1, b"Exif\0\0" + os.urandom(60_000))] * 50),
    "colour profile of 3 MB": lambda: jpeg(
        *(
            segment(0xE2, b"ICC_PROFILE\0" + bytes([at, 50]) + os.urandom(60_000))
            for at in range(50)
        )
    ),
    "profile without a number": lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0")),
    "noise in place of other pictures": lambda: jpeg(segment(0xE2, b"MPF\0" + os.urandom(90))),
    "other pictures that are not there": lambda: jpeg(
        segment(
            0xE2,
            b"MPF\0II*\0\x08\0\0\0\2\0"
            + struct.pack("<HHI4s", 0xB000, 7, 4, b"0100")
            + struct.pack("<HHII", 0xB001, 4, 1, 9)
            + bytes(4),
        )
    ),
    "cut Photoshop data": lambda: jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed")),
    "long comments": lambda: jpeg(*[segment(0xFE, b"\xff" * 60_000)] * 50),
    "resolution in words": lambda: tiff(t282=(2, "abc"), t283=(2, "abc"), t296=(3, 3)),
    "rubbish for a profile in TIFF": lambda: tiff(t34675=(7, b"rubbish")),
    "large private tag": lambda: tiff(t65000=(7, bytes(20_000_000))),
    **{
        f"TIFF tag {tag} with a wrong {field}": (
            lambda tag=tag, field=field, value=value: tiff_with_damaged(tag, field, value)
        )
        for tag in (270, 282, 305)
        for field, value in (("type", 99), ("count", 2**31 - 1), ("place", 2**32 - 16))
    },
}


@pytest.fixture(scope="module")
def decoders():
    """Real decoder processes, which have Pillow's own limits lifted."""
    with Decoders(Decoding(), 1) as as_stored, Decoders(UPRIGHT, 1) as upright:
        yield as_stored, upright


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_picture_is_not_lost_for_its_metadata(kind, decoders):
    data = HARMLESS[kind]()
    plain = {b"\x89P": PNG, b"\xff\xd8": JPEG, b"II": TIFF}[data[:2]]
    for each in decoders:
        picture = each.picture(data)
        assert np.array_equal(picture.pixels, decode_image(plain))
        assert (picture.flat, picture.changed) == (False, False)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000", "GIF"])
def test_damaged_metadata_of_other_formats_change_nothing(kind, decoders):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    options = {
        "WEBP": {"exif": DAMAGED_EXIF, "xmp": b"\xff<", "icc_profile": os.urandom(2_000_000)},
        "AVIF": {"xmp": b"\xff<tiff:Orientation>x"},
        "JPEG2000": {"comment": b"\xff" * 60_000},
        "GIF": {"comment": b"\xff" * 3_000_000},
    }[kind]
    for each in decoders:
        assert np.array_equal(each.decode(encoded(kind, **options)), decode_image(encoded(kind)))


def test_heic_with_damaged_exif_data_is_decoded(decoders):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    buffer = io.BytesIO()
    heif.from_pillow(PICTURE).save(buffer, exif=DAMAGED_EXIF)
    for each in decoders:
        assert each.picture(buffer.getvalue()).width == 90


def test_orientation_is_found_beside_broken_metadata():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image(encoded("PNG", exif=exif), UPRIGHT)
    data = encoded("PNG", exif=exif)
    data = data[:33] + chunk(b"tEXt", b"a\0bcd", checksum=0) + data[33:]
    assert np.array_equal(decode_image(data, UPRIGHT), turned)
    assert not np.array_equal(turned, decode_image(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_half_a_picture_stays_a_failure_with_and_without_metadata(kind, share):
    whole = {"PNG": png(chunk(b"tEXt", b"a\0bcd", 0)), "JPEG": jpeg(segment(0xE0, b"JFIF\0"))}[kind]
    with pytest.raises(DecodeError):
        decode_image(whole[: int(len(whole) * share)])


def test_decoding_in_this_process_leaves_the_limits_of_pillow_alone():
    before = PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS
    decode_image(png(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG))))
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS)


STARTS = [b"", PNG[:33], JPEG[:30], TIFF[:8], b"MM\0*\0\0\0\x08"]


@given(st.sampled_from(STARTS), st.binary())
def test_anything_can_be_asked_for_its_pixels_alone(start, data):
    assert len(without_metadata(start + data)) <= len(start + data)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "RGB", "P", "RGBA", "I;16")),
        *(("JPEG", mode) for mode in ("1", "L", "RGB", "CMYK")),
        *(("TIFF", mode) for mode in ("1", "L", "RGB", "CMYK", "P", "RGBA", "I;16")),
    ],
)
def test_without_metadata_the_pixels_are_the_same(kind, mode):
    image = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)
    image = image if mode == "I;16" else PICTURE.convert(mode)
    data = encoded(kind, image, dpi=(72, 72))
    bare = without_metadata(data)
    assert np.array_equal(decode_image(bare), decode_image(data))
    if kind != "JPEG":
        with Image.open(io.BytesIO(bare)) as image:
            assert "dpi" not in image.info or image.info["dpi"] == (1, 1)
