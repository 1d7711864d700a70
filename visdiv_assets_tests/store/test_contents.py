"""Contents of a dataset: what came and went, and moments that follow it without losing a bit."""

import tempfile
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.store import contents as module
from visdiv_assets.store.contents import Accumulator, Contents, split
from visdiv_assets.store.store import Store, to_grid
from visdiv_assets_tests.spectral.test_moments import same_bits
from visdiv_assets_tests.store.test_store import index_of, key

images = st.lists(st.integers(1, 40), max_size=60)


@pytest.fixture(scope="module")
def store():
    """Forty rows in segments of 15, on the grid."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        rng = np.random.default_rng(0)
        for start in range(1, 41, 15):
            with store.segment_writer("model") as writer:
                for number in range(start, min(start + 15, 41)):
                    writer.add(key(number), rng.uniform(-1, 1, 8).astype(np.float32))
        yield store


def contents_of(store, numbers):
    return Contents.of(index_of(store, [key(number) for number in numbers]))


def plain_moments(store, contents):
    """Every row as often as it occurs, in float64."""
    blocks = [np.repeat(rows, counts, axis=0) for rows, counts in contents.blocks(store, "model")]
    return Moments.of(np.concatenate(blocks))


@given(images, images)
def test_before_minus_what_went_plus_what_came_is_now(store, before, now):
    then, after = contents_of(store, before), contents_of(store, now)
    came, went = after.minus(then)
    gained = Counter(now) - Counter(before)
    assert int(came.counts.sum()) == gained.total()
    assert int(went.counts.sum()) == (Counter(before) - Counter(now)).total()
    if not before or not now:
        return
    moments, _ = then.moments(store, "model")
    for part, sign in ((came, 1), (went, -1)):
        change, _ = part.moments(store, "model")
        if change is not None:
            moments = moments + change if sign > 0 else moments - change
    assert same_bits(moments, plain_moments(store, after))


@settings(max_examples=30)
@given(images.filter(bool))
def test_the_sample_is_that_of_all_rows_with_their_keys(store, numbers):
    contents = contents_of(store, numbers)
    moments, _ = contents.moments(store, "model")
    drawn = contents.sample(store, "model", moments)
    rows = contents.read(store, "model", np.arange(len(contents)))
    expected = Sample.of(rows, contents.counts, contents.keys)
    assert drawn.keys.tolist() == expected.keys.tolist()
    assert drawn.counts.tolist() == expected.counts.tolist()
    assert drawn.rows.tobytes() == expected.rows.tobytes()


@given(images.filter(bool))
def test_integers_and_float64_give_the_same_moments_and_copies_count(store, numbers):
    contents = contents_of(store, numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "integers_pay", lambda rows: True)
        integer, error = contents.moments(store, "model")
        patch.setattr(module, "integers_pay", lambda rows: False)
        double, same_error = contents.moments(store, "model")
    assert same_bits(integer, double)
    assert same_bits(integer, plain_moments(store, contents))
    assert error == pytest.approx(same_error, abs=1e-6)


def test_a_row_near_an_axis_among_others_costs_no_bit_on_the_integer_road(tmp_path, monkeypatch):
    rows = np.concatenate([np.eye(8), np.full((8, 8), 0.25)]).astype(np.float32)
    store = Store(tmp_path)
    with store.segment_writer("model") as writer:
        for number, row in enumerate(rows, start=1):
            writer.add(key(number), row)
    monkeypatch.setattr(module, "integers_pay", lambda rows: True)
    monkeypatch.setattr(module, "BLOCK_ROWS", 6)
    moments, _ = contents_of(store, range(1, 17)).moments(store, "model")
    assert same_bits(moments, Moments.of(to_grid(rows)))


@given(st.lists(st.tuples(st.integers(1, 45), st.integers(0, 3)), max_size=40))
def test_parts_hold_what_is_theirs_and_only_that(store, images):
    index = index_of(store, [key(number) for number, _ in images])
    codes = np.array([code for _, code in images], dtype=np.int64)
    for code, part in enumerate(split(index.table, codes, 4)):
        own = Counter(number for number, its in images if its == code and number <= 40)
        assert sorted(part.counts.tolist()) == sorted(own.values())


def checksum_of(store, numbers):
    return tuple(contents_of(store, numbers).checksum().tolist())


def test_the_checksum_tells_contents_apart_by_rows_and_counts(store):
    different = [], [1], [2], [1, 1], [1, 2], [1, 16], [16], [1, 1, 2], [1, 2, 2]
    assert len({checksum_of(store, numbers) for numbers in different}) == len(different)
    assert checksum_of(store, [1, 2, 1]) == checksum_of(store, [2, 1, 1])


@given(st.lists(images, max_size=5))
def test_a_union_counts_what_each_part_counts(store, parts):
    together = [number for part in parts for number in part]
    union = Contents.union([contents_of(store, part) for part in parts])
    missing, more = contents_of(store, together).minus(union)
    assert not len(missing)
    assert not len(more)
    checksums = [contents_of(store, part).checksum() for part in parts]
    assert union.checksum().tolist() == sum(checksums, np.zeros(2, np.uint64)).tolist()


@given(st.lists(images, min_size=1, max_size=5), st.integers(1, 50))
def test_the_rows_with_the_smallest_keys_can_be_drawn_piece_by_piece(store, parts, count):
    drawn = contents_of(store, [])
    for part in parts:
        drawn = Contents.union([drawn, contents_of(store, part).smallest(count)]).smallest(count)
    at_once = Contents.union([contents_of(store, part) for part in parts]).smallest(count)
    assert drawn.segments == at_once.segments
    for ours, expected in zip(
        (drawn.places, drawn.counts, drawn.keys),
        (at_once.places, at_once.counts, at_once.keys),
        strict=True,
    ):
        assert ours.tolist() == expected.tolist()


@settings(max_examples=30)
@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), images), max_size=5),
    st.booleans(),
    st.integers(1, 4),
)
def test_pieces_add_up_to_the_moments_of_their_parts(store, pieces, integers, cpus):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "integers_pay", lambda rows: integers)
        patch.setattr(module, "usable_cpus", lambda: cpus)
        with closing(Accumulator(store, "model", 0)) as accumulator:
            for piece in pieces:
                parts = {part: contents_of(store, numbers) for part, numbers in piece.items()}
                accumulator.add(parts)
            for part in "abc":
                whole = Contents.union([contents_of(store, p.get(part, [])) for p in pieces])
                if len(whole):
                    assert same_bits(accumulator.moments(part), plain_moments(store, whole))
                else:
                    assert accumulator.moments(part) is None


def test_what_goes_wrong_in_a_thread_is_raised(store, monkeypatch):
    contents = contents_of(store, range(1, 41))
    monkeypatch.setattr(module, "integers_pay", lambda rows: True)
    gone = Store(store.root / "gone")
    with closing(Accumulator(gone, "model", 40)) as accumulator:
        accumulator.add({"": contents})
        with pytest.raises(FileNotFoundError):
            accumulator.moments("")
