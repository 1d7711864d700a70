"""Contents of a dataset: which rows it is made of, how often, and what they add up to."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visdiv_assets.spectral import sample as sample_module
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.store import contents as module
from visdiv_assets.store.contents import Contents, split
from visdiv_assets_tests.spectral.test_moments import same_bits
from visdiv_assets_tests.store.test_store import index_of, key

images = st.lists(st.integers(1, 40), max_size=60)


@pytest.fixture(scope="module")
def store(make_home):
    """Forty rows in segments of 15, on the grid."""
    with tempfile.TemporaryDirectory() as folder:
        store = make_home(Path(folder)).store()
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


@given(images.filter(lambda numbers: any(number <= 40 for number in numbers)))
def test_moments_are_those_of_every_row_as_often_as_it_occurs(store, numbers):
    contents = contents_of(store, numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_ROWS", 6)
        moments, _ = contents.moments(store, "model")
    assert same_bits(moments, plain_moments(store, contents))
    assert moments.n == sum(number <= 40 for number in numbers)


def test_of_no_rows_there_are_no_moments(store):
    assert contents_of(store, []).moments(store, "model") == (None, 0.0)


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


def test_what_is_much_of_a_dataset_is_in_the_sample_whatever_its_key(store):
    numbers = [*range(1, 41), *[7, 23] * 9]
    contents = contents_of(store, numbers)
    moments, _ = contents.moments(store, "model")
    rows = contents.read(store, "model", np.arange(len(contents)))
    with pytest.MonkeyPatch.context() as patch:
        for where in (module, sample_module):
            patch.setattr(where, "HEAVY_SHARE", 0.1)
        patch.setattr(module, "CAPACITY", 2)
        drawn = contents.sample(store, "model", moments)
        expected = Sample.of(rows, contents.counts, contents.keys, capacity=2)
    assert drawn.heavy.counts.tolist() == [10, 10]
    for ours, known in zip(drawn.everything, expected.everything, strict=True):
        assert ours is known is None or ours.tolist() == known.tolist()


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
    at_once = contents_of(store, together)
    assert union.counts.tolist() == at_once.counts.tolist()
    assert sorted(union.keys.tolist()) == sorted(at_once.keys.tolist())
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
