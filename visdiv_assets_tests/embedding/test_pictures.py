"""Images of a dataset can be looked at again by their ids."""

from visdiv_assets.embedding.pictures import Size, pictures_of, sizes_of
from visdiv_assets.embedding.preprocess import Decoding
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
