"""Images of a dataset can be looked at again by their ids."""

import io

import pytest
from PIL import Image

from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.pictures import Size, pictures_of, sizes_of
from visdiv_assets.embedding.preprocess import DecodeError, Decoding
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets_tests.embedding.fakes import write_images


def test_pictures_come_in_order_with_their_sizes_and_without_what_is_broken(tmp_path):
    folder = write_images(tmp_path, 4)
    (folder / "001.png").write_bytes(b"no picture")
    (folder / "002.png").unlink()
    ids = ["003.png", "000.png", "001.png", "002.png", "000.png"]
    found = list(pictures_of(DirectorySource(folder), ids, Decoding()))
    assert [name for name, _, _ in found] == ["000.png", "003.png"]
    for name, size, picture in found:
        assert size == (folder / name).stat().st_size
        assert (picture.width, picture.height) == (8, 8)
        assert picture.pixels.shape == (320, 320, 3)


def test_sizes_are_told_of_any_number_of_images_with_progress(tmp_path):
    folder = write_images(tmp_path, 40)
    (folder / "001.png").write_bytes(b"no picture")
    told = []
    ids = [f"{at:03}.png" for at in range(40)]
    sizes = sizes_of(
        DirectorySource(folder), ids, Decoding(), lambda done, total: told.append((done, total))
    )
    assert told == [(done, 40) for done in range(1, 41)]
    assert sizes == {
        name: Size(8, 8, (folder / name).stat().st_size) for name in ids if name != "001.png"
    }


def encoded(kind, size=(60, 40)):
    """An image of noise that says that it was turned."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = Image.effect_noise(size, 50).convert("RGB")
    if kind == "GIF":
        image = image.convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6
    to = io.BytesIO()
    image.save(to, kind, **({"exif": exif} if kind in TURNED else {}))
    return to.getvalue()


TURNED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
FORMATS = (*TURNED, "BMP", "DIB", "GIF", "ICO", "JPEG2000", "PCX", "PPM", "QOI", "SGI", "TGA")


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_header_tells_the_size_that_decoding_tells(kind, upright):
    data = encoded(kind)
    with Decoders(Decoding(exif_orientation=upright), 1) as decoders:
        picture = decoders.picture(data)
        assert decoders.size(data) == (picture.width, picture.height)


def test_sizes_come_from_headers_without_decoding_a_pixel(tmp_path):
    data = bytearray(encoded("PNG"))
    begin = data.index(b"IDAT") + 4
    data[begin : begin + 20] = bytes(20)
    (tmp_path / "damaged.png").write_bytes(data)
    source = DirectorySource(tmp_path)
    assert not list(pictures_of(source, ["damaged.png"], Decoding()))
    assert sizes_of(source, ["damaged.png"], Decoding()) == {
        "damaged.png": Size(60, 40, len(data)),
    }


def test_a_size_beyond_the_limit_is_refused_as_decoding_refuses_it():
    with Decoders(Decoding(max_pixels=100), 1) as decoders:
        for ask in (decoders.picture, decoders.size):
            with pytest.raises(DecodeError, match="60 × 40 pixels exceed the limit"):
                ask(encoded("PNG"))
