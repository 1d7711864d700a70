"""Images in Arrow and Parquet, whatever types a library chose for them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source

IMAGES = [bytes([65 + number]) * 100 for number in range(3)]
CELLS = [{"bytes": data, "path": f"{at}.jpg"} for at, data in enumerate(IMAGES)]


def struct(binary, text):
    return pa.struct([("bytes", binary), ("path", text)])


COLUMNS = {
    "binary": pa.array(IMAGES, pa.binary()),
    "large": pa.array(IMAGES, pa.large_binary()),
    "view": pa.array(IMAGES, pa.binary_view()),  # polars
    "fixed": pa.array(IMAGES, pa.binary(100)),
    "dictionary": pa.array(IMAGES).dictionary_encode(),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), pa.array(IMAGES)),
    "struct": pa.array(CELLS, struct(pa.binary(), pa.string())),
    "struct of large": pa.array(CELLS, struct(pa.large_binary(), pa.large_string())),
    "struct of views": pa.array(CELLS, struct(pa.binary_view(), pa.string_view())),
    "struct of dictionaries": pa.StructArray.from_arrays(
        [pa.array(IMAGES).dictionary_encode(), pa.array(["a", "b", "a"]).dictionary_encode()],
        ["bytes", "path"],
    ),
    "struct of bytes only": pa.array([{"bytes": data} for data in IMAGES]),
    "struct with another name": pa.array([{"data": data, "width": 3} for data in IMAGES]),
    "list": pa.array([[data] for data in IMAGES]),
    "large list": pa.array([[data] for data in IMAGES], pa.large_list(pa.binary())),
    "list of fixed size": pa.array([[data] for data in IMAGES], pa.list_(pa.binary(), 1)),
    "view of lists": pa.array([[data] for data in IMAGES], pa.list_view(pa.binary())),
    "list of views": pa.array([[data] for data in IMAGES], pa.list_(pa.binary_view())),
    "list of structs": pa.array([[cell] for cell in CELLS]),
    "list of structs of views": pa.array(
        [[cell] for cell in CELLS], pa.large_list(struct(pa.binary_view(), pa.string_view()))
    ),
    "list of lists": pa.array([[[data]] for data in IMAGES]),
}


def write(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    new = pa.ipc.new_file if path.name.startswith("file") else pa.ipc.new_stream
    with new(path, table.schema) as file:
        file.write_table(table)
    return path


def read(path, **options):
    source = open_source(SourceSettings(uri=str(path), **options))
    manifest = list_images(source)
    ids = manifest.table["image_id"].to_pylist()
    reads = {ids[at].partition("#")[2]: data for at, data in source.read_all(ids)}
    return reads, manifest


@pytest.mark.parametrize("name", ["x.parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_images_of_every_type_are_read(tmp_path, kind, name):
    labels = pa.array(["cat", None, "dog"], pa.string_view())
    try:
        path = write(tmp_path / name, pa.table({"image": COLUMNS[kind], "label": labels}))
    except pa.ArrowNotImplementedError:
        pytest.skip("Arrow does not write this type to Parquet")
    reads, manifest = read(path)
    assert sorted(reads.values()) == IMAGES
    assert manifest.table["metadata"].to_pylist() == [[("label", "cat")], None, [("label", "dog")]]
    assert manifest.notes == ()


@pytest.mark.parametrize("name", ["x.parquet", "file.arrow"])
@pytest.mark.parametrize("empty", [None, []])
def test_rows_without_an_image_are_told(tmp_path, name, empty):
    cells = pa.array([[IMAGES[0]], empty, [IMAGES[1], None], empty])
    reads, manifest = read(write(tmp_path / name, pa.table({"image": cells})))
    assert reads == {"0.0": IMAGES[0], "2.0": IMAGES[1]}
    assert manifest.notes == ("rows without an image: 2", "empty places in lists of images: 1")


@pytest.mark.parametrize("name", ["x.parquet", "file.arrow"])
def test_a_row_with_a_path_and_no_bytes_is_a_failure(tmp_path, name):
    cells = [CELLS[0], {"bytes": None, "path": "1.jpg"}]
    reads, _ = read(write(tmp_path / name, pa.table({"image": cells})))
    assert reads["0"] == IMAGES[0]
    assert "no image bytes" in str(reads["1"])


@pytest.mark.parametrize("name", ["x.parquet", "file.arrow"])
def test_a_table_of_nothing_but_empty_rows_is_refused_with_their_number(tmp_path, name):
    path = write(tmp_path / name, pa.table({"image": pa.array([None, None], pa.binary())}))
    with pytest.raises(VisdivError, match="rows without an image: 2"):
        read(path)


@pytest.mark.parametrize(
    "column", [["a.jpg", "b.jpg"], [{"path": "a.jpg"}, {"path": "b.jpg"}]], ids=["text", "struct"]
)
def test_a_table_of_paths_is_refused_with_a_hint(tmp_path, column):
    path = write(tmp_path / "x.parquet", pa.table({"image": column}))
    with pytest.raises(VisdivError, match="'image' holds paths, which only lists are read for"):
        read(path)


def test_hashes_are_not_images(tmp_path):
    hashes = pa.array([b"x" * 32] * 3, pa.binary(32))
    reads, _ = read(write(tmp_path / "x.parquet", pa.table({"sha": hashes, "content": IMAGES})))
    assert sorted(reads.values()) == IMAGES


def test_the_usual_struct_comes_before_other_bytes(tmp_path):
    others = [{"data": b"no"} for _ in CELLS]
    table = pa.table({"a": others, "b": [b"no"] * 3, "c": CELLS, "d": others})
    reads, _ = read(write(tmp_path / "x.parquet", table))
    assert sorted(reads.values()) == IMAGES


def test_a_table_below_a_folder_with_signs_of_globs_in_its_name_is_read(tmp_path):
    folder = tmp_path / "[2024] x" / "{a}"
    folder.mkdir(parents=True)
    for number, data in enumerate(IMAGES):
        write(folder / f"part-{number}.parquet", pa.table({"image": [data]}))
    for pattern in ("part-*.parquet", "part-{0..2}.parquet", "*.parquet"):
        source = open_source(str(folder / pattern))
        ids = list_images(source).table["image_id"].to_pylist()
        assert [data for _, data in source.read_all(ids)] == IMAGES
