"""Lists as other tools write them: every image is taken, and what is no image is told."""

import csv
import io
import json
import threading
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.entries import Entry, Tally, entries, readings
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.workflows.evaluate import list_dataset
from visdiv_assets_tests.sources.servers import http_server

NAMES = [f"images/val/{number}.jpg" for number in range(4)]


@pytest.fixture
def folder(tmp_path):
    """A folder with four files, which hold their names."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def listed(path, **options):
    """Images by id with their content, their metadata, and what is told."""
    source = open_source(SourceSettings(uri=str(path), **options))
    manifest = list_images(source)
    ids = manifest.table["image_id"].to_pylist()
    reads = {ids[at]: data for at, data in source.read_all(ids)}
    metadata = [dict(each or ()) for each in manifest.table["metadata"].to_pylist()]
    return reads, metadata, "; ".join(manifest.notes)


def holds_the_four(reads):
    return sorted(reads) == NAMES and all(reads[name] == name.encode() for name in NAMES)


def lines(pattern, end="\n"):
    return "".join(pattern.format(name, at) + end for at, name in enumerate(NAMES))


def rows(*shapes):
    return "".join(json.dumps(shape(name)) + "\n" for name in NAMES for shape in shapes)


TEXTS = {
    "plain.txt": lines("{}"),
    "label.txt": lines("{} {}"),  # timm, Caffe, MMClassification
    "labels.txt": lines("{} {} 0 -1"),
    "tab.txt": lines("{}\t{}"),
    "semicolon.txt": lines("{};{}"),
    "bar.txt": lines("{} | {}"),
    "comma.txt": lines("{},{}"),
    "mxnet.lst": lines("{1}\t7.0\t{0}"),
    "comments.txt": "# my list\n\n" + lines("{}") + "   # the end\n",
    "spaces.txt": lines("  {} "),
    "quotes.txt": lines('"{}"'),
    "single_quotes.txt": lines("'{}'"),
    "windows.txt": lines("{}", "\r\n").replace("/", "\\"),
    "windows_label.txt": lines("{} {}", "\r\n").replace("/", "\\"),
    "dot.txt": lines("./{}"),
    "upper.txt": lines("{}").replace(".jpg", ".JPG"),
    "windows.csv": "file_name,label\r\n" + lines("{},{}", "\r\n").replace("/", "\\"),
    "one_column.csv": lines("{}"),
    "one_column.tsv": lines("{}"),
    "no_header.csv": lines("{},{}"),
    "no_header_last.csv": lines("{1},{0}"),
    "no_header.tsv": lines("{}\t{}"),
    "semicolon.csv": "file_name;label\n" + lines("{};{}"),
    "semicolon_no_header.csv": lines("{};{}"),
    "tab.csv": "label\tpath\n" + lines("{1}\t{0}"),
    "bar.csv": "path|label\n" + lines("{}|{}"),
    "comma.tsv": "path,label\n" + lines("{},{}"),
    "spaced.csv": "file_name, label\n" + lines("{}, {}"),
    "spaced_first.csv": "label, file_name\n" + lines("{1}, {0}"),
    "comment.csv": "# made by hand\npath,label\n" + lines("{},{}"),
    "hash_header.csv": "#id,path\n" + lines("{1},{0}"),
    "unknown_name.csv": ",image_id,width\n" + lines("{1},{0},10"),
    "pandas.csv": ",filename,label\n" + lines("{1},{0},10"),
    "class_name.csv": "name,relative\n" + lines("cat,{}"),
    "capitals.csv": " Filename ,Label\n" + lines("{},{}"),
    "long.csv": "file_name,mask\n" + lines("{}," + "0123456789" * 20_000),
    "blank.csv": "path,label\n\n" + lines("{},{}\n\n"),
    "quoted.csv": "path,caption\n" + lines('"{}","a ""dog"", and\na cat"'),
    "hugging_face.jsonl": rows(lambda name: {"file_name": name, "text": "x"}),
    "hugging_face.ndjson": rows(lambda name: {"file_name": name}),
    "lines.json": rows(lambda name: {"file_name": name}),
    "strings.jsonl": rows(lambda name: name),
    "vlm.jsonl": rows(lambda name: {"messages": [], "images": [name]}),
    "objects.jsonl": rows(lambda name: {"image": {"path": name, "bytes": None}}),
    "windows.jsonl": rows(lambda name: {"image": name.replace("/", "\\")}),
    "array.jsonl": json.dumps([{"image": name} for name in NAMES], indent=1),
    "llava.json": json.dumps([{"id": 1, "image": name, "conversations": []} for name in NAMES]),
    "llava_multi.json": json.dumps([{"image": NAMES[:2]}, {"image": NAMES[2:]}]),
    "objects.json": json.dumps([{"images": [{"file_name": name} for name in NAMES]}]),
    "pairs.json": json.dumps({"labels": [[name, at] for at, name in enumerate(NAMES)]}),
    "fiftyone.json": json.dumps({"samples": [{"filepath": name} for name in NAMES]}),
    "coco.json": json.dumps({"images": [{"id": 1, "file_name": name} for name in NAMES]}),
    "coco_path.json": json.dumps(
        {"images": [{"path": "/elsewhere/x.jpg", "file_name": name} for name in NAMES]}
    ),
    "coco_windows.json": json.dumps(
        {"images": [{"file_name": name.replace("/", "\\")} for name in NAMES]}
    ),
    "coco_strings.json": json.dumps({"images": NAMES}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_list_of_another_tool_gives_its_images(folder, name):
    reads, _, _ = listed(write(folder / name, TEXTS[name]))
    assert holds_the_four(reads)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    "name", ["plain.txt", "semicolon.csv", "hugging_face.jsonl", "coco.json", "llava.json"]
)
def test_a_list_in_another_encoding_gives_its_images(folder, name, encoding):
    reads, _, _ = listed(write(folder / name, TEXTS[name], encoding))
    assert holds_the_four(reads)


@pytest.mark.parametrize("name", ["absolute.txt", "absolute.csv"])
@pytest.mark.parametrize("scheme", ["", "file://", "file://localhost"])
def test_absolute_paths_and_file_uris_below_the_root_are_read(folder, name, scheme):
    (folder / "a b.jpg").write_text("spaced")
    written = "a%20b.jpg" if scheme else "a b.jpg"
    text = "\n".join(f"{scheme}{folder}/{each}" for each in [*NAMES, written])
    reads, _, _ = listed(write(folder / name, text + "\n"))
    assert reads.pop("a b.jpg") == b"spaced"
    assert holds_the_four(reads)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_accents_are_found_however_they_are_composed(tmp_path, forms):
    on_disk, in_list = (unicodedata.normalize(form, "café.jpg") for form in forms)
    (tmp_path / on_disk).write_text("x")
    reads, _, told = listed(write(tmp_path / "list.txt", in_list))
    assert reads == {on_disk: b"x"}
    assert "accents" in told


def test_a_list_in_latin_1_has_its_labels_and_finds_its_files(tmp_path):
    (tmp_path / "café.jpg").write_text("x")
    path = write(tmp_path / "list.csv", "path,label\ncafé.jpg,Führerschein\n", "latin-1")
    reads, metadata, told = listed(path)
    assert (reads, metadata) == ({"café.jpg": b"x"}, [{"label": "Führerschein"}])
    assert "not UTF-8" in told


def test_a_name_that_exists_as_it_is_written_wins(tmp_path):
    odd = ["#1.jpg", " a.jpg", "a.jpg 7", '"q.jpg"', "b\\c.jpg", "x;y.jpg"]
    for name in odd:
        (tmp_path / name).write_text(name)
    reads, metadata, told = listed(write(tmp_path / "list.txt", "\n".join(odd)))
    assert {name: data.decode() for name, data in reads.items()} == {name: name for name in odd}
    assert (metadata, told) == ([{}] * 6, "")


def test_what_stands_beside_a_path_in_a_line_is_its_label(folder):
    _, metadata, _ = listed(write(folder / "list.txt", TEXTS["labels.txt"]))
    assert metadata == [{"label": f"{at} 0 -1"} for at in range(4)]


# --- what is told ---


def test_entries_without_an_image_are_told(folder):
    text = rows(lambda name: {"id": 1, "image": name}, lambda name: {"id": 2, "text": "no image"})
    reads, _, told = listed(write(folder / "list.jsonl", text))
    assert holds_the_four(reads)
    assert told == "entries without an image: 4"


def test_rows_without_a_path_are_told(folder):
    text = "path,label\n" + lines("{},{}") + ",no path\nlabel only\n"
    (folder / "label only").write_text("")
    reads, _, told = listed(write(folder / "list.csv", text))
    assert len(reads) == 5
    assert told == "entries without an image: 1"


def test_images_that_are_written_into_a_list_are_told(folder):
    text = rows(lambda name: {"image": name}, lambda _: {"image": "data:image/png;base64,AAAA"})
    reads, _, told = listed(write(folder / "list.jsonl", text))
    assert holds_the_four(reads)
    assert told.startswith("images written into the list itself (data:), which are not read: 4")


def test_an_image_that_is_named_twice_is_told(folder):
    reads, _, told = listed(write(folder / "list.txt", lines("{}") + lines("./{}")))
    assert holds_the_four(reads)
    assert told == "entries with the name of an earlier one, which count once: 4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,mask\n{0},masks/x.png\n", "from 'image'; 'mask' may hold paths, too"),
        ("{0}\n{1}\n", "no header"),
        ("path;label\n{0};1\n", "separated by a semicolon"),
        ("odd\n{0}\n", "its first line, 'odd', is taken for the name of its column"),
    ],
)
def test_how_a_table_was_read_is_told(folder, text, expected):
    _, _, told = listed(write(folder / "list.csv", text.format(*NAMES)))
    assert expected in told


def test_what_is_told_reaches_whoever_lists_a_dataset(folder, tmp_path, caplog):
    path = write(folder / "list.csv", TEXTS["one_column.csv"])
    list_dataset("birds", open_source(str(path)), Store(tmp_path / "store"))
    assert f"{path}: it has no header" in caplog.text


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.csv", "a,b\n1,2\n", r"set `column` to one of 'a', 'b'"),
        ("x.jsonl", '{"a": 1, "b": 2}\n', r"set `column` to one of 'a', 'b'"),
        ("x.jsonl", '{"path": "a.jpg"}\n{"path"', "its line 2 is not JSON"),
        ("x.csv", 'path,label\nimages/val/0.jpg,"x\nimages/val/1.jpg,y\n', "never closed"),
        ("x.json", '{"a": 1, "b": []}', "it has the keys 'a', 'b'"),
        ("x.json", '{"images": []}', "names no images"),
        ("x.json", '{"shardlist": [{"url": "0.tar"}]}', "lists the archives"),
        ("x.txt", "00.tar\n01.tar\n", "it lists archives"),
        ("x.csv", "url\nshards/00.tar.gz\n", "it lists archives"),
    ],
)
def test_a_list_that_does_not_say_where_its_images_are_is_refused(folder, name, text, expected):
    with pytest.raises(VisdivError, match=expected):
        listed(write(folder / name, text))


@pytest.mark.parametrize("name", ["hugging_face.jsonl", "semicolon.csv", "coco.json"])
def test_a_column_that_does_not_exist_is_refused_with_those_that_do(folder, name):
    with pytest.raises(VisdivError, match=r"there is no column 'nope'; there are .*'file_name'"):
        listed(write(folder / name, TEXTS[name]), column="nope")


def test_columns_without_a_header_are_numbered(folder):
    reads, _, _ = listed(write(folder / "x.csv", lines("masks/{1}.png,{0}")), column="1")
    assert holds_the_four(reads)


@pytest.mark.parametrize(
    ("written", "looked_for", "hint"),
    [
        ("gone.jpg", "as {0}/lists/gone.jpg", "set `root` to the folder"),
        ("images/val/0.jpg", "as {0}/lists/images/val/0.jpg", "set `root` to the folder"),
        ("/elsewhere/0.jpg", "below {0}/lists", "set `root` to a folder above"),
        ("../images/val/0.jpg", "as {0}/lists/../images", "set `root` to a folder above"),
        ("C:\\data\\0.jpg", "as {0}/lists/C:", "Windows drives"),
        ("img_0001", "as {0}/lists/img_0001", "`column`"),
    ],
)
def test_a_list_of_nothing_that_exists_says_where_it_looked(folder, written, looked_for, hint):
    path = write(folder / "lists/list.txt", f"{written}\n{written}x\n")
    with pytest.raises(VisdivError) as caught:
        listed(path)
    assert "none of the 2 files that it names exists" in str(caught.value)
    assert repr(written) in str(caught.value)
    assert looked_for.format(folder) in str(caught.value)
    assert hint in str(caught.value)


# --- where lists are ---


@pytest.mark.parametrize("odd", ["[2024] x", "{a,b}", "what?", "a*b", "[x"])
@pytest.mark.parametrize("name", ["list.txt", "deep/[1].csv"])
def test_a_list_below_a_folder_with_signs_of_globs_in_its_name_is_read(tmp_path, odd, name):
    (tmp_path / "x").mkdir()
    for each in NAMES:
        write((tmp_path / odd / name).parent / each, each)
    reads, _, _ = listed(write(tmp_path / odd / name, "\n".join(NAMES)))
    assert holds_the_four(reads)


def test_remote_paths_are_taken_for_what_is_likeliest(folder):
    for name in ("label.txt", "windows.txt", "quotes.txt", "no_header.csv", "vlm.jsonl"):
        write(folder / name, TEXTS[name])
    with http_server(folder) as address:
        for name in ("label.txt", "windows.txt", "quotes.txt", "no_header.csv", "vlm.jsonl"):
            reads, _, _ = listed(f"{address}/{name}")
            assert holds_the_four(reads), name


# --- long fields ---


def test_csv_in_the_rest_of_the_process_keeps_its_limit(folder):
    path = write(folder / "long.csv", TEXTS["long.csv"])
    usual, seen = csv.field_size_limit(), set()
    errors = []

    def read():
        try:
            for _ in open_source(str(path)).items():
                seen.add(csv.field_size_limit())
        except VisdivError as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert csv.field_size_limit() == usual


# --- any entry ---


@given(st.text(), st.booleans(), st.booleans())
def test_an_entry_may_mean_first_what_it_says(written, is_line, local):
    found = list(readings(Entry(written, {}, is_line), local=local))
    assert [path for path, *_ in found][:1] == ([written] if written else [])
    assert len({path for path, *_ in found}) == len(found)


@given(
    st.lists(
        st.text("ab é;,|\t\"'#", min_size=1).map(lambda name: f"{name}x.jpg"),
        min_size=1,
        unique=True,
    )
)
def test_csv_as_python_writes_it_comes_back(names):
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(["path", "label"])
    writer.writerows([name, "x"] for name in names)
    tally = Tally()
    file = io.BytesIO(content.getvalue().encode())
    assert [each.written for each in entries(file, "x.csv", None, tally)] == names
    assert tally.notes() == []
