"""The store on disk: what is committed, what is found again, and the grid that rows lie on."""

import io
import os
import threading
import time
import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.manifest import METADATA, SCHEMA, TEXT, Manifest
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.spectral.score import DiversityCalculator
from visdiv_assets.store import segments
from visdiv_assets.store.contents import Contents
from visdiv_assets.store.index import INDEX_SCHEMA, JUDGE, KEY_BYTES, EmbeddingIndex, to_keys
from visdiv_assets.store.segments import GRID, to_grid
from visdiv_assets.store.store import Store
from visdiv_assets_tests.store.homes import new_home

# Keys of few different bytes, so that many end in zeros and many share a beginning.
content_keys = st.lists(st.sampled_from([0, 1, 127, 255]), min_size=KEY_BYTES, max_size=KEY_BYTES)
content_keys = content_keys.map(bytes).filter(any)


@pytest.fixture
def store(place):
    return place.store()


def vector(number):
    return np.array([number * GRID, -0.5], dtype=np.float32)


def key(number):
    return number.to_bytes(KEY_BYTES, "little")  # ends in zeros


def write_segments(store, *sizes, model_id="model"):
    """Segments of these sizes; row and key of each are made of its number, from 1."""
    number = 0
    for size in sizes:
        with store.segment_writer(model_id) as writer:
            for _ in range(size):
                number += 1
                writer.add(key(number), vector(number))


def as_keys(keys):
    return np.array(keys, dtype=f"S{KEY_BYTES}")


def index_of(store, keys, model_id="model"):
    """An index of one image for each key, with rows where the store has them."""
    known = store.key_index(model_id)
    segment, row = known.find(as_keys(keys))
    gone = row < 0
    names = pa.DictionaryArray.from_arrays(
        pa.array(segment, mask=gone), pa.array(known.segments, pa.string())
    )
    n = len(keys)
    columns = [
        pa.array([f"{at}.png" for at in range(n)], pa.string()),
        pa.array([1] * n, pa.int64()),
        pa.array(["v"] * n, pa.string()),
        pa.array(keys, pa.binary(KEY_BYTES)),
        names,
        pa.array(row, mask=gone),
        pa.array(["lost" if lost else None for lost in gone], pa.string()),
        pa.array(["" if lost else None for lost in gone], pa.string()),
        pa.array([False] * n, pa.bool_()),
    ]
    return EmbeddingIndex(pa.table(columns, schema=INDEX_SCHEMA))


# --- the grid ---


@given(hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-1, 1, width=32)))
def test_rounding_to_the_grid_moves_an_entry_by_half_a_step_of_grid_and_float16(vectors):
    on_grid = to_grid(vectors)
    assert on_grid.dtype == np.float16
    steps = on_grid.astype(np.float64) / GRID
    assert np.array_equal(steps, np.round(steps))
    moved = np.abs(on_grid.astype(np.float64) - vectors)
    large = np.abs(vectors) >= 1 / 16
    assert (moved <= GRID / 2 + large * np.abs(vectors) * 2.0**-11).all()
    assert np.array_equal(to_grid(on_grid.astype(np.float32)), on_grid)


def test_rounding_to_the_grid_moves_the_score_of_real_embeddings_by_less_than_a_millionth(demo):
    assert demo.vectors.dtype == np.float32
    score = DiversityCalculator().calculate
    moved = np.linalg.norm(to_grid(demo.vectors).astype(np.float64) - demo.vectors, axis=1)
    assert moved.max() < 4e-4
    assert score(to_grid(demo.vectors)) == pytest.approx(score(demo.vectors), abs=1e-6)


# --- segments ---


def test_a_segment_is_a_memory_mapped_float16_matrix_beside_its_keys(store, place):
    write_segments(store, 3)
    [name] = store.segment_names("model")
    rows = store.rows("model", name)
    assert isinstance(rows, np.memmap)
    assert rows.dtype == np.float16
    assert np.array_equal(rows, to_grid(np.stack([vector(n) for n in (1, 2, 3)])))
    keys = pq.read_table((place.root / f"embeddings/model/{name}.parquet").open("rb"))[
        "content_key"
    ]
    assert keys.to_pylist() == [key(1), key(2), key(3)]
    assert store.model_ids() == ["model"]


def until(holds):
    """Wait for what another thread is about to do."""
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about in a minute")


def test_a_segment_is_committed_when_it_is_full(store, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 2)
    with store.segment_writer("model") as writer:
        for number, expected in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]:
            writer.add(key(number), vector(number))
            until(lambda expected=expected: len(store.segment_names("model")) == expected)
    assert len(store.segment_names("model")) == 3
    assert len(store.key_index("model")) == 5


def test_a_segment_is_committed_when_its_rows_have_waited_long(store, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_SECONDS", 0.0)
    with store.segment_writer("model") as writer:
        writer.add(key(1), vector(1))
        until(lambda: len(store.key_index("model")) == 1)


def test_rows_are_taken_while_a_segment_is_written(store, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 2)
    taken, writing = threading.Event(), segments.writing

    def write_once_taken(table):
        assert taken.wait(60)
        return writing(table)

    monkeypatch.setattr(segments, "writing", write_once_taken)
    with store.segment_writer("model") as writer:
        for number in (1, 2, 3):
            writer.add(key(number), vector(number))
        taken.set()
    assert len(store.key_index("model")) == 3


def test_a_segment_that_cannot_be_written_ends_the_run_and_is_tried_once_more_on_the_way_out(
    store, monkeypatch
):
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 2)
    writing, failures = segments.writing, [OSError(28, "No space left on device")]

    def write_at_second_try(table):
        if failures:
            raise failures.pop()
        return writing(table)

    monkeypatch.setattr(segments, "writing", write_at_second_try)

    def run():
        with store.segment_writer("model") as writer:
            for number in range(1, 6):
                writer.add(key(number), vector(number))

    with pytest.raises(OSError, match="No space left"):
        run()
    known = store.key_index("model")
    assert key(1) in known
    assert key(3) in known


def test_rows_are_committed_on_the_way_out_of_an_error(store):
    def interrupted():
        with store.segment_writer("model") as writer:
            writer.add(key(1), vector(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert key(1) in store.key_index("model")


def test_no_rows_leave_no_segment(store):
    with store.segment_writer("model"):
        pass
    assert store.segment_names("model") == []
    assert store.model_ids() == []
    assert len(store.key_index("model")) == 0
    assert key(1) not in store.key_index("model")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_segments(store, 1)
    assert list((store.root / "embeddings/model").iterdir()) == []


def test_vectors_are_written_before_the_keys_that_commit_them(tmp_path, monkeypatch):
    store, written = Store(tmp_path / "store"), []

    def full_after_the_first(descriptor):
        written.append(descriptor)
        if len(written) % 2 == 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_after_the_first)
    with pytest.raises(OSError, match="No space left"):
        write_segments(store, 2)
    [vectors] = (store.root / "embeddings/model").iterdir()
    assert vectors.suffix == ".npy"
    assert store.segment_names("model") == []
    assert len(store.key_index("model")) == 0


@pytest.mark.parametrize("size", [0, 1, 5, 6, 10, 60, 128, 129, 131, 133])
def test_a_segment_cut_short_anywhere_is_left_out_and_said_so(store, place, size, caplog):
    write_segments(store, 1, 2)
    path = next(
        path
        for path in place.root.glob("embeddings/model/*.npy")
        if len(np.load(io.BytesIO(path.read_bytes()))) == 1 + (size > 131)
    )
    path.write_bytes(path.read_bytes()[:size])
    assert len(store.key_index("model")) == (1 if size > 131 else 2)
    assert f"segment {path.stem} of model is damaged" in caplog.text


def test_a_segment_with_more_keys_than_rows_is_left_out(store):
    write_segments(store, 2)
    [name] = store.segment_names("model")
    rows = to_grid(vector(1)[None])
    store.objects.write(f"embeddings/model/{name}.npy", lambda file: np.save(file, rows))
    assert len(store.key_index("model")) == 0


def test_keys_that_two_writers_committed_are_found_in_one_segment(store):
    for numbers in (range(1, 101), range(100, 0, -1)):
        with store.segment_writer("model") as writer:
            for number in numbers:
                writer.add(key(number), vector(number))
    known = store.key_index("model")
    segment, _ = known.find(as_keys([key(number) for number in range(1, 101)]))
    assert len(known) == 200
    assert set(segment) == {0}


@given(st.lists(st.lists(content_keys, max_size=6), max_size=4), st.lists(content_keys))
def test_every_key_is_found_in_the_first_segment_that_has_it(make_home, segments, others):
    with new_home(make_home) as home:
        store = home.store()
        for keys in segments:
            with store.segment_writer("model") as writer:
                for number, one in enumerate(dict.fromkeys(keys)):
                    writer.add(one, vector(number))
        expected = {}
        for name in store.segment_names("model"):
            keys, _ = store.segment_keys("model", name)
            for row, one in enumerate(bytes(each).ljust(KEY_BYTES, b"\0") for each in keys):
                expected.setdefault(one, (name, row))
        known = store.key_index("model")
        asked = [*expected, *others]
        found = [
            (known.segments[segment], row) if segment >= 0 else None
            for segment, row in zip(*known.find(as_keys(asked)), strict=True)
        ]
        assert found == [expected.get(one) for one in asked]
        assert [one in known for one in asked] == [one in expected for one in asked]


# --- manifests, indexes, moments ---


def manifest(*names):
    columns = [names, [1] * len(names), ["v"] * len(names), [None] * len(names)]
    return Manifest.of(pa.table(columns, schema=SCHEMA))


def as_older_versions_wrote(table):
    """The table with texts that have offsets of 32 bits."""
    short = {TEXT: pa.string(), METADATA: pa.map_(pa.string(), pa.string())}
    fields = []
    for field in table.schema:
        [*changed] = [new for old, new in short.items() if field.type == old]
        fields.append(field.with_type(*changed) if changed else field)
    return table.cast(pa.schema(fields, table.schema.metadata))


def test_a_manifest_of_an_older_version_is_read_with_the_types_of_now(store):
    columns = [["b", "a"], [1, 2], ["v", "w"], [[("label", "cat")], None]]
    written = Manifest.of(pa.table(columns, schema=SCHEMA))
    older = as_older_versions_wrote(written.table)
    assert older.schema != SCHEMA
    store.write_manifest("dataset", Manifest(older, written.fingerprint))
    read = store.read_manifest("dataset", written.fingerprint)
    assert read.table.schema == SCHEMA
    assert read.table.equals(written.table)
    assert Manifest.of(read.table).fingerprint == written.fingerprint
    [piece] = read.pieces(["image_id", "metadata"])
    assert piece.equals(written.table.select(["image_id", "metadata"]))


def test_an_index_of_an_older_version_is_read_with_the_types_of_now(store):
    write_segments(store, 2)
    index = index_of(store, [key(1), key(2), key(3)])
    table = index.table.replace_schema_metadata({JUDGE: b"decoder"})
    store.write_index("dataset", "model", "f1", EmbeddingIndex(as_older_versions_wrote(table)))
    read = store.read_index("dataset", "model", "f1")
    assert read.table.schema == INDEX_SCHEMA
    assert read.table.equals(table)
    assert read.judge == "decoder"


def slices_for(count, dimension):
    """Samples of 1,024 rows each."""
    rows = to_grid(np.random.default_rng(0).uniform(-1, 1, (1024, dimension)).astype(np.float32))
    sample = Sample.of(rows)
    return {str(number): sample for number in range(count)}


def test_slices_are_written_as_numpy_would_write_them_at_once(store, place, tmp_path):
    slices = slices_for(3, 16)
    slices["b"] = Sample.of(np.eye(16))
    store.write_slices("dataset", "model", "f1", slices)
    parts = list(slices.values())
    with (tmp_path / "expected").open("wb") as file:
        np.savez(
            file,
            names=np.array(list(slices)),
            n=np.array([part.moments.n for part in parts]),
            total=np.stack([part.moments.total for part in parts]),
            outer=np.stack([part.moments.outer for part in parts]),
            sizes=np.array([len(part.keys) for part in parts]),
            sample_keys=np.concatenate([part.keys for part in parts]),
            sample_rows=np.concatenate([part.rows for part in parts]).astype(np.float16),
            sample_counts=np.concatenate([part.counts for part in parts]),
        )
    written = place.root / "moments/dataset/model/f1.slices"
    assert written.read_bytes() == (tmp_path / "expected").read_bytes()


def test_writing_slices_takes_no_memory_for_each_slice(tmp_path):
    store = Store(tmp_path)
    slices = slices_for(40, 128)
    tracemalloc.start()
    store.write_slices("dataset", "model", "f1", slices)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    all_rows = sum(part.rows.nbytes for part in slices.values())
    assert peak < all_rows / 20  # of 40 slices


def test_the_manifest_named_last_is_the_latest(store):
    first, second = manifest("a.png"), manifest("a.png", "b.png")
    for listed in (first, second):
        store.write_manifest("dataset", listed)
    for listed in (first, second, first):
        store.name_latest("dataset", listed.fingerprint)
        latest = store.latest_manifest("dataset")
        assert latest.fingerprint == listed.fingerprint
        assert latest.table.equals(listed.table)


def test_an_index_comes_back_as_it_was_written(store):
    write_segments(store, 2)
    index = index_of(store, [key(1), key(2), key(3)])
    store.write_index("dataset", "model", "f1", index)
    read = store.read_index("dataset", "model", "f1")
    assert read.table.to_pylist() == index.table.to_pylist()
    assert (read.n_images, read.n_failed, read.failures()) == (2, 1, [("2.png", "lost")])


def test_the_newest_index_is_found_whatever_model_and_manifest_it_is_of(store):
    assert store.earlier_indexes("dataset") == []
    write_segments(store, 3)
    for number, of in enumerate([("a", "f2"), ("b", "f1"), ("a", "f1")], start=1):
        store.write_index("dataset", *of, index_of(store, [key(1)] * number))
        [newest] = store.earlier_indexes("dataset")
        assert len(newest.table) == number


def test_moments_come_back_to_the_last_bit(store):
    rows = to_grid(np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32))
    sample = Sample.of(rows)
    moments = sample.moments
    store.write_moments("dataset", "model", "f1", sample)
    back = store.read_sample("dataset", "model", "f1")
    assert back.rows.tobytes() == sample.rows.tobytes()
    assert (back.keys.tolist(), back.counts.tolist()) == (
        sample.keys.tolist(),
        sample.counts.tolist(),
    )
    read = store.read_moments("dataset", "model", "f1")
    assert read.n == 5
    assert read.total.tobytes() == moments.total.tobytes()
    assert read.outer.tobytes() == moments.outer.tobytes()


def test_what_was_never_made_is_named(store):
    with pytest.raises(VisdivError, match="dataset has never been evaluated"):
        store.latest_manifest("dataset")
    with pytest.raises(VisdivError, match="dataset have not been embedded with model"):
        store.read_index("dataset", "model", "f1")
    with pytest.raises(VisdivError, match=r"moments of dataset have not been computed for model"):
        store.read_moments("dataset", "model", "f1")


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 40))
def test_each_row_of_an_index_is_handed_out_once_with_its_count(make_home, numbers, row_group):
    with new_home(make_home) as home:
        store = home.store()
        write_segments(store, 3, 1, 5, 1)
        index = index_of(store, [key(number) for number in numbers])
        file = io.BytesIO()
        pq.write_table(index.table, file, row_group_size=row_group)  # as large indexes have many
        counted = Counter()
        for rows, counts in Contents.of(EmbeddingIndex(pq.read_table(file))).blocks(store, "model"):
            for row, count in zip(rows, counts, strict=True):
                counted[round(float(row[0]) / GRID)] += int(count)
        assert counted == Counter(number for number in numbers if number <= 10)


def test_the_fingerprint_of_contents_depends_on_contents_and_their_number_only(store):
    write_segments(store, 2, 2)
    one = index_of(store, [key(1), key(2), key(2), key(9)]).content_fingerprint()
    same = index_of(store, [key(2), key(1), key(2)]).content_fingerprint()
    fewer = index_of(store, [key(1), key(2)]).content_fingerprint()
    assert one == same != fewer


@given(st.lists(content_keys, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_keys_leave_arrow_whole_from_any_slice_and_chunk(keys, start, cut):
    array = pa.array(keys, pa.binary(KEY_BYTES))
    chunked = pa.chunked_array([array[:cut], array[cut:]], pa.binary(KEY_BYTES))[start:]
    assert to_keys(chunked).tobytes() == b"".join(keys[start:])


def test_no_chunks_give_no_keys():
    assert len(to_keys(pa.chunked_array([], pa.binary(KEY_BYTES)))) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), unique=True, max_size=20))
def test_keys_that_begin_alike_are_told_apart(make_home, halves):
    made = [bytes([head]) * 8 + bytes([tail]) * 8 for head, tail in halves]
    with new_home(make_home) as home:
        store = home.store()
        with store.segment_writer("model") as writer:
            for each in made:
                writer.add(each, vector(1))
        known = store.key_index("model")
        asked = [bytes([head]) * 8 + bytes([tail]) * 8 for head in range(4) for tail in range(6)]
        _, row = known.find(as_keys(asked))
        assert row.tolist() == [made.index(each) if each in made else -1 for each in asked]


# --- names ---

UNSAFE = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/x",
    "a\\b",
    "a\0b",
    ".hidden",
    "a\nb",
    "\udce9",
    "x" * 300,
]


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_may_lead_elsewhere_is_refused_everywhere(store, place, name):
    sample = Sample.of(np.zeros((2, 3), dtype=np.float32))
    listed = Manifest(SCHEMA.empty_table(), "f1")
    uses = [
        lambda: store.write_manifest(name, listed),
        lambda: store.write_manifest("dataset", Manifest(SCHEMA.empty_table(), name)),
        lambda: store.latest_fingerprint(name),
        lambda: store.read_manifest("dataset", name),
        lambda: store.segment_names(name),
        lambda: store.rows("model", name),
        lambda: store.segment_writer(name),
        lambda: store.earlier_indexes(name),
        lambda: store.read_index("dataset", "model", name),
        lambda: store.read_index("dataset", name, "f1"),
        lambda: store.write_moments("dataset", "model", name, sample),
        lambda: store.write_slices(name, "model", "f1", {"a": sample}),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="cannot hold the name"):
            use()
    assert not place.root.exists()


def test_names_of_datasets_and_models_that_lead_nowhere_are_kept(store):
    for name in ("birds", "Große Vögel 2024", "a..b", "-", "sscd_disc_mixup.0123.onnx-int8.rgb"):
        store.write_manifest(name, Manifest(SCHEMA.empty_table(), "f1"))
        store.name_latest(name, "f1")
        assert store.latest_fingerprint(name) == "f1"


@pytest.mark.parametrize("fingerprint", ["1a-33a64df5", '1a-5f3"-gzip', "5f3:1a b"])
def test_a_safe_fingerprint_of_an_older_version_is_read(store, fingerprint):
    store.write_manifest("dataset", Manifest(SCHEMA.empty_table(), fingerprint))
    store.name_latest("dataset", fingerprint)
    assert store.latest_fingerprint("dataset") == fingerprint


@pytest.mark.parametrize("fingerprint", ['1a-W/"abc', "1a-x/../../../victim", "", "\xe9"])
def test_an_unsafe_fingerprint_of_an_older_version_counts_as_never_evaluated(store, fingerprint):
    content = fingerprint.encode()
    store.objects.write("manifests/dataset/latest", lambda file: file.write(content))
    assert store.latest_fingerprint("dataset") is None
    with pytest.raises(VisdivError, match="never been evaluated"):
        store.latest_manifest("dataset")


def test_a_picture_takes_the_place_of_the_one_before(store, place):
    for png in (b"the first", b"the second"):
        shown = store.write_picture("birds", "core_set", png)
    assert shown == f"{store.uri}/pictures/birds/core_set.png"
    [path] = place.root.glob("pictures/birds/*")
    assert path.read_bytes() == b"the second"
