"""Clusters hold what belongs together, say how far they reach, and divide as promised."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.similarity import clusters
from visdiv_assets.similarity.clusters import (
    Components,
    cover,
    extent_of,
    groups_of,
    keep_order,
)
from visdiv_assets.similarity.pairs import similar_components


def chain(count, degrees):
    """Unit vectors in the plane, each so many degrees from the one before."""
    angles = np.radians(degrees) * np.arange(count)
    return np.column_stack([np.cos(angles), np.sin(angles)])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def similarity(rows):
    points = unit(rows.astype(np.float64))
    return (points @ points.T).astype(np.float32)


COUNT = 30
EDGES = st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1)), max_size=40)
ROWS = st.builds(
    lambda seed, count, dim: np.random.default_rng(seed).standard_normal((count, dim)),
    st.integers(0, 999),
    st.integers(1, 60),
    st.integers(2, 6),
)


def reachable(edges, start):
    found, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        near = {b for a, b in edges if a == node} | {a for a, b in edges if b == node}
        waiting += near - found
        found |= near
    return found


@given(EDGES, st.integers(1, 7))
def test_two_nodes_share_a_component_where_a_path_leads_from_one_to_the_other(edges, block):
    graph = Components(COUNT)
    for at in range(0, len(edges), block):
        graph.join(np.array(edges[at : at + block], dtype=np.int64).reshape(-1, 2))
    labels = graph.labels()
    for node in range(COUNT):
        assert set(np.flatnonzero(labels == labels[node])) == reachable(edges, node)
    assert graph.count == labels.max() + 1


@given(EDGES)
def test_components_do_not_depend_on_how_often_edges_are_merged(edges):
    pairs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    at_once, again_and_again = Components(COUNT), Components(COUNT)
    at_once.join(pairs)
    for pair in pairs:
        again_and_again.join(pair[None])
        assert again_and_again.count <= COUNT  # merges
    assert np.array_equal(at_once.labels(), again_and_again.labels())


def test_edges_are_merged_before_too_many_of_them_wait(monkeypatch):
    monkeypatch.setattr(clusters, "WAITING_EDGES", 10)
    graph = Components(1000)
    for start in range(999):
        graph.join(np.array([[start, start + 1]]))
        assert graph._n_waiting < 10
    assert graph.count == 1


@given(ROWS)
def test_the_medoid_is_the_most_similar_to_all_and_the_diameter_the_least_similar_pair(rows):
    members = np.arange(len(rows))[::-1]
    extent = extent_of(rows, members)
    all_pairs = similarity(rows[members])
    assert all_pairs[extent.medoid].mean() == pytest.approx(all_pairs.mean(axis=1).max(), abs=1e-6)
    assert np.allclose(extent.to_medoid, all_pairs[extent.medoid], atol=1e-6)
    assert extent.smallest == pytest.approx(all_pairs.min(), abs=1e-6)


def test_of_a_pair_the_first_is_the_medoid():
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert extent_of(rng.standard_normal((2, 16)), np.arange(2)).medoid == 0


def test_a_chain_shows_in_its_diameter():
    rows = chain(10, degrees=15)
    assert similarity(rows)[0, 1] > 0.96
    assert extent_of(rows, np.arange(10)).smallest == pytest.approx(np.cos(np.radians(135)))


@given(ROWS)
def test_of_a_large_cluster_medoid_is_exact_and_the_diameter_that_of_some_pair(rows):
    members = np.arange(len(rows))
    exact = extent_of(rows, members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "EXACT_MEMBERS", 0)
        patch.setattr(clusters, "BLOCK_ROWS", 7)
        large = extent_of(rows, members)
    assert large.medoid == exact.medoid
    assert np.allclose(large.to_medoid, exact.to_medoid, atol=1e-6)
    assert exact.smallest - 1e-6 <= large.smallest <= exact.to_medoid.min() + 1e-6
    assert np.isclose(similarity(rows), large.smallest, atol=1e-6).any()


def test_the_diameter_of_a_long_chain_is_found_from_its_middle():
    rows = chain(2001, degrees=0.05)
    assert len(rows) > clusters.EXACT_MEMBERS
    extent = extent_of(rows, np.arange(2001))
    assert extent.medoid == 1000
    assert extent.smallest == pytest.approx(np.cos(np.radians(100)), abs=1e-6)


@given(ROWS, st.floats(0, 1), st.randoms(use_true_random=False))
def test_every_member_of_a_group_is_similar_enough_to_the_one_that_began_it(rows, threshold, rng):
    members = np.array(rng.sample(range(len(rows)), len(rows)))
    near = similarity(rows) >= np.float32(threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "BLOCK_CENTRES", 4)
        patch.setattr(clusters, "BLOCK_ROWS", 9)
        groups = cover(rows, members, threshold)
    assert sorted(np.concatenate(groups).tolist()) == sorted(members.tolist())
    place = {row: at for at, row in enumerate(members.tolist())}
    for first, *others in groups:
        assert all(near[first, each] and place[first] < place[each] for each in others)
    firsts = [group[0] for group in groups]
    assert not any(near[a, b] for a, b in itertools.combinations(firsts, 2))
    assert [place[first] for first in firsts] == sorted(place[first] for first in firsts)


def test_a_group_takes_what_is_near_even_where_a_later_one_would_be_nearer():
    rows = chain(4, degrees=20)
    groups = cover(rows, np.array([0, 2, 1, 3]), threshold=0.9)
    assert [group.tolist() for group in groups] == [[0, 1], [2, 3]]


def test_a_row_of_zeros_is_a_group_of_its_own():
    rows = np.zeros((3, 4))
    assert [group.tolist() for group in cover(rows, np.arange(3), threshold=0.5)] == [[0], [1], [2]]


@given(ROWS, st.floats(0, 1), st.randoms(use_true_random=False))
def test_every_row_that_may_go_is_similar_enough_to_the_one_kept_for_it(rows, threshold, rng):
    near = similarity(rows) >= np.float32(threshold)
    rank = np.array(rng.sample(range(len(rows)), len(rows)))
    labels = similar_components(rows, [threshold]).labels[threshold]
    groups = groups_of(rows, labels, rank, threshold)
    going = [row for group in groups for row in group[1:]]
    kept = sorted(set(range(len(rows))) - set(going))
    assert len(going) == len(set(going))
    for first, *others in groups:
        assert others
        assert all(near[first, each] and rank[first] < rank[each] for each in others)
    assert not near[np.ix_(kept, kept)][~np.eye(len(kept), dtype=bool)].any()


def test_of_a_whole_component_one_is_kept_whatever_it_resembles():
    rows = chain(5, degrees=30)
    labels = similar_components(rows, [0.8]).labels[0.8]
    whole = groups_of(rows, labels, np.arange(5), 0.8, split=False)
    assert [group.tolist() for group in whole] == [[0, 1, 2, 3, 4]]
    divided = groups_of(rows, labels, np.arange(5), 0.8)
    assert [group.tolist() for group in divided] == [[0, 1], [2, 3]]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_the_largest_picture_is_kept_then_the_least_compressed_then_the_first_by_name(images):
    pixels = np.array([each[0] for each in images], dtype=np.int64)
    sizes = np.array([each[1] for each in images], dtype=np.int64)
    by_rule = sorted(range(len(images)), key=lambda at: (-pixels[at], -sizes[at], at))
    assert keep_order(pixels, sizes).tolist() == by_rule
