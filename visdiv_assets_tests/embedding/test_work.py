"""Cutting into units of work: nothing is left out, files stay whole, units are not too large."""

import itertools

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.embedding.work import cut, share, unit_id
from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.manifest import SCHEMA


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(1, 9))), st.integers(1, 7)
)
def test_units_are_all_images_in_order_and_files_stay_whole(groups, most):
    groups = [(f"{file}{at}" if file else "", n) for at, (file, n) in enumerate(groups)]
    files = [file for file, n in groups for _ in range(n)]
    units = cut(files, most)
    assert [*itertools.chain.from_iterable(units)] == [*range(len(files))]
    assert all(units)
    for unit in units:
        if unit.stop < len(files) and files[unit.stop]:
            assert files[unit.stop - 1] != files[unit.stop]
        assert len(unit) <= most or len({files[at] for at in unit}) == 1
    for unit, following in itertools.pairwise(units):  # as few units as that allows
        first = files[following[0]]
        n = sum(file == first for file in files) if first else 1
        assert len(unit) + n > most


@given(st.integers(0, 50), st.integers(1, 12))
def test_shares_are_all_units_once(n_units, of):
    shares = [share(f"{number}/{of}", n_units) for number in range(1, of + 1)]
    assert sorted(itertools.chain(*shares)) == [*range(n_units)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "text", ["", "3", "0/3", "4/3", "-1/3", "1/0", "a/b", "1/3/5", "１/３", "1/99999999"]
)
def test_what_is_no_share_is_refused(text):
    with pytest.raises(VisdivError, match="is no share of the units; for the third of 64, write"):
        share(text, 10)


def images(*rows):
    columns = zip(*rows, strict=True)
    return pa.table([*map(pa.array, columns), pa.nulls(len(rows))], names=SCHEMA.names).cast(SCHEMA)


def test_a_unit_is_named_by_its_model_and_images():
    units = [
        ("model", images(("a.jpg", 3, "v1"), ("b.jpg", 4, "v1"))),
        ("other", images(("a.jpg", 3, "v1"), ("b.jpg", 4, "v1"))),
        ("model", images(("a.jpg", 3, "v1"), ("b.jpg", 5, "v1"))),
        ("model", images(("a.jpg", 3, "v1"), ("b.jpg", 4, "v2"))),
        ("model", images(("a.jpg", 3, "v1"), ("c.jpg", 4, "v1"))),
        ("model", images(("a.jpg", 3, "v1"))),
    ]
    ids = [unit_id(*unit) for unit in units]
    assert len(set(ids)) == len(ids)
    assert ids == [unit_id(*unit) for unit in units]
