"""Names: which files they stand for, which lead out of their folder, and what they may show."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import secrets_in, without_secrets
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.places import LocalPlace, find_files, open_place
from visdiv_assets.sources.uris import scheme_of, split_uri

# --- folder and name ---


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/data/photos.zip", ("/data", "photos.zip")),
        ("photos.zip", (".", "photos.zip")),
        ("*/photos.zip", (".", "*/photos.zip")),
        ("s3://photos.zip", ("s3://photos.zip", "")),
        ("/photos.zip", ("/", "photos.zip")),
        ("data/photos.zip", ("data", "photos.zip")),
        ("/data/*/deep/*.tar", ("/data", "*/deep/*.tar")),
        ("/data/{a,b}/x.tar", ("/data", "{a,b}/x.tar")),
        ("/data/photos/", ("/data/photos", "")),
        ("s3://bucket", ("s3://bucket", "")),
        ("s3://bucket/", ("s3://bucket", "")),
        ("s3://bucket/*.tar", ("s3://bucket", "*.tar")),
        ("s3://bucket/hf/*/train-*.parquet", ("s3://bucket/hf", "*/train-*.parquet")),
        ("s3://buck[et/x.tar", ("s3://buck[et", "x.tar")),
        ("https://host/deep/{00..99}.tar", ("https://host/deep", "{00..99}.tar")),
    ],
)
def test_a_uri_is_split_where_its_globs_begin(uri, expected):
    assert split_uri(uri) == expected


def test_a_bare_name_is_a_file_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_source("photos.zip").uri == f"{tmp_path}/photos.zip"


@given(st.text("ab*{[?/:.", max_size=20))
def test_nothing_of_a_path_is_lost_in_splitting_it(path):
    folder, name = split_uri(f"/data/{path}")
    assert f"{folder.rstrip('/')}/{name}" == f"/data/{path}" or "//" in f"/{path}"


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("S3://bucket/x", "s3"),
        ("https://host", "https"),
        ("/data/a://b", ""),
        ("C:/photos", ""),
        ("1s3://bucket", ""),
        ("", ""),
    ],
)
def test_a_scheme_stands_at_the_very_start(uri, scheme):
    assert scheme_of(uri) == scheme


# --- globs and braces ---


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return LocalPlace(folder)


def found(place, pattern):
    return [file.name for file in find_files(place, pattern)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", ["a1.tar", "a2.tar", "b1.tar"]),
        ("a?.tar", ["a1.tar", "a2.tar"]),
        ("[ab]1.tar", ["a1.tar", "b1.tar"]),
        ("**/*.tar", ["a1.tar", "a2.tar", "b1.tar", "deep/er/d1.tar"]),
        ("deep/*/*.tar", ["deep/er/d1.tar"]),
        ("{a1,b1}.tar", ["a1.tar", "b1.tar"]),
        ("{a,b}1.tar", ["a1.tar", "b1.tar"]),
        ("{a*,deep/er/*}.tar", ["a1.tar", "a2.tar", "deep/er/d1.tar"]),
        ("a{1..2}.tar", ["a1.tar", "a2.tar"]),
        ("a1.tar", ["a1.tar"]),
    ],
)
def test_globs_and_braces_stand_for_files(tmp_path, pattern, expected):
    place = files(tmp_path, "a1.tar", "a2.tar", "b1.tar", "deep/er/d1.tar", "c.txt")
    assert found(place, pattern) == expected


def test_zeros_in_braces_stay(tmp_path):
    place = files(tmp_path, *(f"{number:03}.tar" for number in range(12)))
    assert found(place, "{000..011}.tar") == [f"{number:03}.tar" for number in range(12)]


def test_a_file_that_braces_name_and_that_is_missing_is_an_error(tmp_path):
    place = files(tmp_path, "00.tar", "02.tar")
    with pytest.raises(VisdivError, match=r"no such file: .*/01\.tar$"):
        found(place, "{00..02}.tar")


def test_a_glob_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(VisdivError, match=r"no files in .* match \*\.tar"):
        found(files(tmp_path, "a.zip"), "*.tar")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "x.tar").mkdir()
    with pytest.raises(VisdivError, match="not a file"):
        found(LocalPlace(tmp_path), "x.tar")
    with pytest.raises(VisdivError, match="no files in"):
        found(LocalPlace(tmp_path), "*.tar")


@pytest.mark.parametrize("name", ["a{1}.tar", "[x].zip", "what?.tar", "{0..9}.tar", "*.tar"])
def test_a_file_that_is_really_called_so_wins_over_the_pattern(tmp_path, name):
    place = files(tmp_path, name, "a1.tar", "x.zip", "whats.tar", "0.tar")
    assert found(place, name) == [name]


@pytest.mark.parametrize("pattern", ["{0..99999999}.tar", "{0..9999}{0..9999}.tar"])
def test_braces_that_stand_for_too_much_are_refused(tmp_path, pattern):
    with pytest.raises(VisdivError, match="expands to more than 1,000,000 files"):
        found(files(tmp_path, "0.tar"), pattern)


def test_a_pattern_of_images_that_stands_for_too_much_is_refused(tmp_path):
    with pytest.raises(VisdivError, match=r"invalid pattern in include or exclude .*limit"):
        open_source(f"{tmp_path}/{{0..9999999}}.jpg")


def test_patterns_do_not_lead_out(tmp_path):
    files(tmp_path, "secret.tar")
    place = files(tmp_path / "inside", "a.tar")
    for pattern in ("../*.tar", "{..,.}/secret.tar", "*/../../secret.tar"):
        with pytest.raises(VisdivError):
            found(place, pattern)


# --- names that lead out ---


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        "a/../../x",
        "/etc/passwd",
        "//etc/passwd",
        "/",
        "a\0b",
        "\0",
        "a/../../inside-not/x",
    ],
)
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    place = files(tmp_path / "inside", "a/b")
    files(tmp_path, "x", "inside-not/x")
    for use in (place.info, place.read, place.open):
        with pytest.raises(OSError, match="leads outside"):
            use(name)


@pytest.mark.parametrize(
    "name", ["a", "deep/a", "..a", "a..", "...", "deep/../b", "./b", " ", "a\nb", "-", "~", "$HOME"]
)
def test_a_name_that_stays_inside_is_read(tmp_path, name):
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_bytes(b"content")
    place = LocalPlace(tmp_path)
    assert place.read(name) == b"content"
    assert place.info(name).size == 7


@given(st.lists(st.sampled_from(["..", ".", "a", "", "~", "etc"]), max_size=8), st.booleans())
def test_no_path_leads_out(parts, rooted):
    place = LocalPlace("/data/photos")
    try:
        path = place.path("/" * rooted + "/".join(parts))
    except OSError:
        return
    assert os.path.commonpath([path, place.root]) == str(place.root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a file"):
        LocalPlace(tmp_path).read("pipe")


# --- what names may show ---


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:word@host/photos.zip?sig=abc#frag", "https://host/photos.zip"),
        ("https://host?sig=abc", "https://host/"),
        ("https://word@host/x", "https://host/x"),
        ("https://me:w@rd@host/x", "https://host/x"),
        ("https://me:wo/rd@host/x", "https://host/x"),
        ("https://me:wo?rd@host/x", "https://host/x"),
        ("https://me:wo#rd@host/x", "https://host/x"),
        ("https://host/photos@2x.zip", "https://host/photos@2x.zip"),
        ("https://host:8080/photos@2x.zip", "https://host:8080/photos@2x.zip"),
        ("https://[::1]:80/photos@2x.zip", "https://[::1]:80/photos@2x.zip"),
        ("https://[::1]/photos@2x.zip", "https://[::1]/photos@2x.zip"),
        ("s3://key:word@bucket/x", "s3://bucket/x"),
        ("s3://bucket/is it?#1.jpg", "s3://bucket/is it?#1.jpg"),
        ("/data/me:word@host", "/data/me:word@host"),
    ],
)
def test_what_is_shown_of_a_uri(uri, shown):
    assert without_secrets(uri).rstrip("/") == shown.rstrip("/")


LETTERS = st.text("SECRT0123:!$&*()+=%-_.~", min_size=1)


@given(
    st.sampled_from(["http", "https", "HTTPS", "s3"]),
    LETTERS.map(lambda text: f"SECRET{text}"),
    LETTERS.map(lambda text: f"SECRET{text}"),
)
def test_nothing_secret_of_a_uri_is_shown(scheme, login, query):
    query = "" if scheme == "s3" else f"?sig={query}"
    assert "SECRET" not in without_secrets(f"{scheme}://me:{login}@host/x.zip{query}")


def test_secrets_are_known_as_written_and_as_meant():
    secrets = secrets_in(
        "https://me:wo%2Frd@host/x.zip?sig=a%2Bb", {"secret_access_key": "k", "region": "eu"}
    )
    assert {"me", "wo%2Frd", "wo/rd", "sig=a%2Bb", "sig=a+b", "k"} <= set(secrets)
    assert "eu" not in secrets


@pytest.mark.parametrize("option", ["endpoint", "region"])
def test_what_an_error_may_say_is_no_secret(option):
    assert secrets_in("s3://bucket", {option: "told", "allow_http": "true"}) == []


@pytest.mark.parametrize(
    "uri", ["https://[::1/x.zip", "s3://[bucket/x.zip", "s3:///x.zip", "s3://", "https://"]
)
def test_a_uri_that_is_none_is_refused(uri):
    with pytest.raises(VisdivError):
        list(open_source(uri).items())


def test_an_unknown_option_is_refused_without_its_value():
    with pytest.raises(VisdivError) as caught:
        open_place("s3://bucket", {"no_such_option": "TOPSECRET"})
    assert "TOPSECRET" not in str(caught.value)
