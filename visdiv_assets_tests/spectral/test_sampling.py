"""Which rows belong to one sampling unit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.spectral.sampling import members_of, numbered


@given(st.lists(st.integers(0, 9), max_size=40))
def test_members_of_a_unit_are_all_that_share_its_label(labels):
    found = members_of(numbered(np.array(labels, dtype=np.int64)))
    assert all(len(members) > 1 for members in found)
    shared = {label for label in labels if labels.count(label) > 1}
    assert len(found) == len(shared)
    for members in found:
        [label] = {labels[at] for at in members}
        assert members.tolist() == [at for at, each in enumerate(labels) if each == label]
    firsts = [members[0] for members in found]
    assert firsts == sorted(firsts)
