"""Tables in pieces: the same whatever the size of the pieces, and never all in memory."""

import gc
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources import manifest, pieces
from visdiv_assets.sources.manifest import SCHEMA, Manifest, list_images
from visdiv_assets.sources.pieces import Gathering, Pieces, Reader
from visdiv_assets.sources.source import Item
from visdiv_assets_tests.sources.test_manifest import ListSource

IDS = pa.schema([("image_id", pa.large_string()), ("at", pa.int64())])

items = st.lists(
    st.builds(
        Item,
        st.text(st.sampled_from("ab#é/"), max_size=3),
        st.none() | st.integers(0, 3),
        st.sampled_from(["", "v"]),
        st.none() | st.fixed_dictionaries({"label": st.text(max_size=2)}),
    ),
    max_size=40,
)


class LastCounts(ListSource):
    last_counts = True


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def table(ids: Sequence[str]) -> pa.Table:
    return pa.table([ids, range(len(ids))], schema=IDS)


def listed_in_parts(source: ListSource, rows: int, joined: int) -> Manifest:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "BATCH_ITEMS", rows)
        patch.setattr(manifest, "BATCHES_SORTED", 2)
        patch.setattr(pieces, "PIECE_ROWS", 2 * rows)
        patch.setattr(pieces, "MOST_JOINED", joined)
        listed = list_images(source)
        assert all(len(piece) <= 2 * rows for piece in listed.pieces())
        return Manifest(listed.table, listed.fingerprint, listed.notes)


@given(items, st.integers(1, 8), st.integers(2, 4), st.booleans())
def test_a_list_that_is_sorted_in_parts_is_the_list_sorted_at_once(few, rows, joined, last):
    source = (LastCounts if last else ListSource)(few)
    at_once, in_parts = list_images(source), listed_in_parts(source, rows, joined)
    assert in_parts.table.equals(at_once.table)
    assert in_parts.fingerprint == at_once.fingerprint
    assert in_parts.notes == at_once.notes
    assert at_once.table["image_id"].to_pylist() == sorted({item.image_id for item in few})


def test_pieces_are_in_a_temporary_file_that_goes_with_them(temporary, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ROWS", 3)
    gathering = Gathering(IDS.with_metadata({"made": "here"}))
    gathering.add(table(["a", "b"]))
    assert [*temporary.iterdir()] == []
    gathering.add(table(["c", "d", "e"]))
    gathered = gathering.pieces()
    del gathering
    assert [piece["image_id"].to_pylist() for piece in gathered(["image_id"])] == [
        ["a", "b", "c"],
        ["d", "e"],
    ]
    assert gathered.table().schema.metadata == {b"made": b"here"}
    assert len([*temporary.iterdir()]) == 1
    del gathered
    assert [*temporary.iterdir()] == []


def test_what_fits_in_memory_needs_no_file(temporary):
    gathering = Gathering(IDS)
    gathering.add(table(["a", "b"]))
    assert gathering.pieces().table().equals(table(["a", "b"]))
    assert [*temporary.iterdir()] == []


def test_temporary_files_that_cannot_be_written_are_told(temporary, monkeypatch):
    gathering = Gathering(IDS, in_file=True)
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "gone"))
    with pytest.raises(VisdivError, match=r"cannot write temporary files to .*gone.*TMPDIR"):
        gathering.add(table(["a"]))


@given(
    st.lists(st.integers(0, 99), unique=True, max_size=30).map(sorted),
    st.lists(st.integers(0, 99), max_size=6).map(sorted),
    st.integers(1, 9),
)
def test_a_reader_gives_each_row_once_with_the_first_id_that_is_not_before_it(numbers, asked, rows):
    reader = Reader(Pieces.of(table([f"{each:02}" for each in numbers])), rows)
    given_rows, before = [], -1
    for last in asked:
        expected = [f"{each:02}" for each in numbers if before < each <= last]
        assert reader.up_to(f"{last:02}")["image_id"].to_pylist() == expected
        before = last
        given_rows += expected
    given_rows += reader.up_to(None)["image_id"].to_pylist()
    assert given_rows == [f"{each:02}" for each in numbers]
    assert reader.is_over


def test_a_sample_of_pieces_is_that_of_the_whole():
    whole = Manifest.of(pa.table([list("abcdefgh"), [1] * 8, [""] * 8, [None] * 8], schema=SCHEMA))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_ROWS", 3)
        drawn = whole.sample(pa.array([0, 2, 3, 7]).to_numpy())
        assert drawn.table["image_id"].to_pylist() == ["a", "c", "d", "h"]
    assert drawn.fingerprint == f"{whole.fingerprint}.sample4"
    assert whole.total_bytes == 8


def test_an_interrupted_listing_leaves_no_file(temporary, monkeypatch):
    monkeypatch.setattr(manifest, "BATCH_ITEMS", 1)

    class Interrupted(ListSource):
        def items(self):
            yield from super().items()
            assert len([*temporary.iterdir()]) == 2
            raise KeyboardInterrupt

    per_file = manifest.BATCHES_SORTED
    with pytest.raises(KeyboardInterrupt):
        list_images(Interrupted([Item(str(number), 1, "") for number in range(3 * per_file + 1)]))
    gc.collect()  # the traceback refers to it
    assert [*temporary.iterdir()] == []
