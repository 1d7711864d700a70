"""Which names count as images, what patterns change about it, and what is told of the rest."""

import tarfile
import zipfile

import pillow_heif
import pytest
from PIL import Image

from visdiv_assets.embedding.decoding import FORMATS, HEIF
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.names import SYSTEM_FOLDERS, ImageNames, LeftOut, left_out_of
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.source import IMAGE_EXTENSIONS, read_one

# Multi-picture files are JPEGs, and Pillow opens them as such.
ALSO_READ = {"MPO"}

NAMES = [
    "a.jpg",
    "b.jp2",
    "noext_1",
    "noext_2",
    "w.jpg.1",
    "c.jxl",
    "c.txt",
    ".hidden.jpg",
    ".cache/d.jpg",
    "deep/e.dat",
    "deep/f.jpg",
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
    "deep/@eaDir/f.jpg/SYNOPHOTO_THUMB_XL.jpg",
]
TAKEN = ["a.jpg", "b.jp2", "deep/f.jpg"]


def folder(root, names):
    for name in names:
        path = root / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(root / "set"), ""


def zip_file(root, names):
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return str(root / "x.zip"), "x.zip#"


def tar_file(root, names):
    uri, _ = folder(root, names)
    with tarfile.open(root / "x.tar", "w") as archive:
        for name in names:
            archive.add(f"{uri}/{name}", name)
    return str(root / "x.tar"), "x.tar#"


KINDS = pytest.mark.parametrize("kind", [folder, zip_file, tar_file])


def source_of(tmp_path, kind, names=NAMES, **patterns):
    uri, within = kind(tmp_path, names)
    return open_source(SourceSettings(uri=uri, **patterns)), within


def listed(tmp_path, kind, names=NAMES, **patterns):
    source, within = source_of(tmp_path, kind, names, **patterns)
    return sorted(item.image_id.removeprefix(within) for item in source.items())


def test_every_format_that_is_decoded_is_known_by_each_of_its_extensions():
    Image.init()
    pillow_heif.register_heif_opener()
    opened = {*FORMATS, HEIF, *ALSO_READ}
    registered = {each for each, form in Image.registered_extensions().items() if form in opened}
    assert registered == IMAGE_EXTENSIONS


@KINDS
def test_what_is_left_out_for_its_name_is_counted_by_extension(tmp_path, kind):
    source, within = source_of(tmp_path, kind)
    ids = list_images(source).table["image_id"].to_pylist()
    assert [each.removeprefix(within) for each in ids] == TAKEN
    left_out = left_out_of(source)
    others = {"": 2, ".1": 1, ".jxl": 1, ".dat": 1}
    if kind is not tar_file:  # in which it describes images
        others[".txt"] = 1
    assert left_out.extensions == others
    assert (left_out.hidden, left_out.folders) == (1, {".cache": 1, "@eaDir": 2})
    assert "2 without extension" in str(left_out)
    assert "3 folders left out, hidden or of the system: 2 × @eaDir, 1 × .cache" in str(left_out)


def test_nothing_is_told_where_nothing_is_left_out(tmp_path):
    source, _ = source_of(tmp_path, folder, ["a.jpg"])
    assert len(list(source.items())) == 1
    assert str(left_out_of(source)) == ""


def test_what_is_left_out_does_not_change_the_fingerprint_of_a_folder(tmp_path):
    source, _ = source_of(tmp_path, folder, ["a.jpg"])
    before = list_images(source).fingerprint
    source, _ = source_of(tmp_path, folder, ["a.jxl", "b", ".c", "@eaDir/a.jpg"])
    assert list_images(source).fingerprint == before


@KINDS
@pytest.mark.parametrize(
    ("include", "brought"),
    [
        (["noext_*"], ["noext_1", "noext_2"]),
        (["noext_1"], ["noext_1"]),
        (["*.jxl"], ["c.jxl"]),
        (["*.jpg.*"], ["w.jpg.1"]),
        (["*.{jxl,1}"], ["c.jxl", "w.jpg.1"]),
        (["**/*.dat", "a.*"], ["a.jpg", "deep/e.dat"]),
        ([".hidden.jpg"], [".hidden.jpg"]),
        ([".*"], [".hidden.jpg"]),
        ([".cache/**"], [".cache/d.jpg"]),
        (["@eaDir/**"], ["@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg"]),
        (["deep/@*/**"], ["deep/@eaDir/f.jpg/SYNOPHOTO_THUMB_XL.jpg"]),
    ],
)
def test_include_can_bring_in_anything(tmp_path, kind, include, brought):
    assert listed(tmp_path, kind, include=include) == brought


@pytest.mark.parametrize("kind", [zip_file, tar_file])
def test_patterns_match_image_ids_of_archives_as_well_as_names_in_them(tmp_path, kind):
    within = f"x.{kind.__name__[:3]}#"
    patterns = {"include": [f"{within}*/**", "noext_*"], "exclude": [f"{within}@eaDir"]}
    assert listed(tmp_path, kind, **patterns) == ["deep/f.jpg", "noext_1", "noext_2"]


@pytest.mark.parametrize("include", ["**", "**/*"])
@pytest.mark.parametrize("kind", [folder, zip_file])
def test_two_stars_stand_for_every_file_that_is_not_hidden(tmp_path, kind, include):
    uri, within = kind(tmp_path, NAMES)
    source = open_source(SourceSettings(uri=uri, include=[include]))
    hidden = [name for name in NAMES if name.startswith(".") or "@eaDir" in name]
    names = [item.image_id.removeprefix(within) for item in source.items()]
    assert sorted(names) == sorted(set(NAMES) - set(hidden))


@KINDS
@pytest.mark.parametrize("include", ["deep/**", "deep/*", "deep/", "d*/*.*"])
def test_a_pattern_that_chooses_a_folder_takes_its_images_only(tmp_path, kind, include):
    assert listed(tmp_path, kind, include=[include]) == ["deep/f.jpg"]


def test_a_pattern_that_says_part_of_a_name_does_not_take_files_that_describe_images(tmp_path):
    names = ["img_1.jpg", "img_1.txt", "img_1.xmp"]
    assert listed(tmp_path, folder, names, include=["img_*"]) == ["img_1.jpg"]


@pytest.mark.parametrize("end", ["*", "**", "**/*"])
def test_wildcards_at_the_end_of_a_path_stand_for_images(tmp_path, end):
    uri, _ = folder(tmp_path, ["a.jpg", "a.txt"])
    assert [item.image_id for item in open_source(f"{uri}/{end}").items()] == ["a.jpg"]


@pytest.mark.parametrize(("end", "taken"), [("*.jxl", ["c.jxl"]), ("n*", ["noext_1", "noext_2"])])
def test_globs_at_the_end_of_a_path_can_bring_in_anything(tmp_path, end, taken):
    uri, _ = folder(tmp_path, NAMES)
    assert sorted(item.image_id for item in open_source(f"{uri}/{end}").items()) == taken


def test_what_is_brought_in_is_read(tmp_path):
    source, _ = source_of(tmp_path, zip_file, include=["noext_*"])
    assert read_one(source, "x.zip#noext_2") == b"noext_2"


@KINDS
@pytest.mark.parametrize("name", [*sorted(SYSTEM_FOLDERS), ".thumbnails", ".@__thumb", ".Trashes"])
def test_folders_of_systems_are_left_out_as_hidden_ones_are(tmp_path, kind, name):
    names = ["a.jpg", f"{name}/b.jpg", f"deep/{name.upper()}/c.jpg"]
    source, within = source_of(tmp_path, kind, names)
    assert [item.image_id for item in source.items()] == [f"{within}a.jpg"]
    assert left_out_of(source).folders.total() == 2


@KINDS
@pytest.mark.parametrize("exclude", ["deep", "deep/", "deep/**", "**/deep", "d*", "**/deep/**"])
def test_excluding_a_folder_excludes_what_is_in_it(tmp_path, kind, exclude):
    names = ["a.jpg", "deep/b.jpg", "deep/er/c.jpg"]
    assert listed(tmp_path, kind, names, exclude=[exclude]) == ["a.jpg"]


@KINDS
def test_excluding_the_files_of_a_folder_leaves_those_below_it(tmp_path, kind):
    names = ["deep/b.jpg", "deep/er/c.jpg"]
    assert listed(tmp_path, kind, names, exclude=["deep/*"]) == ["deep/er/c.jpg"]


@KINDS
def test_where_patterns_leave_nothing_it_says_how_much_they_left_out(tmp_path, kind):
    source, _ = source_of(tmp_path, kind, ["a.jpg", "b.jpg"], exclude=["*.jpg"])
    with pytest.raises(VisdivError, match=r"\(2 left out by include and exclude\)"):
        list(source.items())


def test_a_list_of_which_patterns_leave_nothing_says_how_much_they_left_out(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    settings = SourceSettings(uri=f"{tmp_path}/list.txt", exclude=["*.jpg"])
    with pytest.raises(VisdivError, match=r"names no images \(2 left out by include and exclude"):
        list(open_source(settings).items())


def test_an_archive_listed_by_an_older_version_is_listed_anew(tmp_path, monkeypatch):
    source, _ = source_of(tmp_path, zip_file)
    before = source.fingerprint()
    monkeypatch.setattr("visdiv_assets.sources.names.IMAGE_EXTENSIONS", {".jpg"})
    assert source.fingerprint() != before


def test_odd_names_and_endless_kinds_are_told_in_one_short_line():
    left_out = LeftOut()
    for at in range(5000):
        left_out.count_file(f"frame.{at}")
        left_out.count_folder(f"{at}/.{at}")
    left_out.count_file("a.\nb")
    left_out.count_folder(".\udcff")
    assert len(left_out.extensions) <= 1002
    assert left_out.files == 5001
    assert len(str(left_out)) < 300
    str(left_out).encode()


def test_a_pattern_that_stands_for_too_many_names_is_an_error():
    with pytest.raises(VisdivError, match="invalid pattern in include or exclude"):
        ImageNames(["{1..9999999}"])
