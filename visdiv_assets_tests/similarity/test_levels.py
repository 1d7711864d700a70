"""Components at several thresholds are those of all pairs, and alike rows are hardly compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from visdiv_assets.similarity import clusters, exact, ivf, levels
from visdiv_assets.similarity.clusters import Components
from visdiv_assets.similarity.pairs import similar_components, similar_pairs

ICONS = Path(__file__).parents[1] / "data" / "embeddings_icons.npy"

# Rows with few directions, so that many are alike and many are equal.
FEW = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 24), st.integers(1, 3)), elements=st.integers(-2, 3)
)
THRESHOLDS = st.lists(st.sampled_from([0.0, 0.5, 0.75, 0.9, 0.95, 1.0]), min_size=1, max_size=4)


@contextmanager
def tiny_blocks(**sizes: int) -> Iterator[None]:
    """Every way through the code is taken by some rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "ROWS_PER_PIVOT", 4)
        patch.setattr(levels, "BLOCK_ROWS", 5)
        patch.setattr(clusters, "WAITING_EDGES", 3)
        for name, size in {"CHUNK": 8, "BLOCK": 4, "TILE": 2, "DENSE": 2, **sizes}.items():
            patch.setattr(exact, name, size)
        yield


def of_all_pairs(rows, threshold):
    """The components by the definition."""
    graph = Components(len(rows))
    graph.join(similar_pairs(rows, threshold).pairs)
    return graph.labels().tolist()


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@given(rows=FEW, thresholds=THRESHOLDS)
def test_components_at_any_thresholds_are_those_of_all_pairs(device, rows, thresholds):
    expected = {each: of_all_pairs(rows, each) for each in thresholds}
    with tiny_blocks():
        found = similar_components(rows, thresholds, device=device)
    assert {level: labels.tolist() for level, labels in found.labels.items()} == expected


def alike(count, cosine, groups=1, seed=0):
    """Rows in shuffled groups, of about that similarity inside a group."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, 64)) / 8
    noise = rng.standard_normal((count, 64)) / 8
    return cosine**0.5 * centres[rng.integers(groups, size=count)] + (1 - cosine) ** 0.5 * noise


N = 1500

KINDS = {
    "alike": alike(N, 0.99),
    "equal": np.ones((N, 4)),
    "in groups": alike(N, 0.99, groups=7),
    "alike between thresholds": alike(N, 0.93),
    "alike and different": np.concatenate([alike(N // 2, 0.99), alike(N // 2, 0.5, seed=1)]),
    "icons": np.load(ICONS)[:N],
}


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("kind", KINDS)
def test_components_of_alike_rows_are_those_of_all_pairs(kind, device):
    found = similar_components(KINDS[kind], [0.95, 0.75, 0.9], device=device)
    for threshold in (0.75, 0.9, 0.95):
        assert found.labels[threshold].tolist() == of_all_pairs(KINDS[kind], threshold)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_sketch_changes_no_component(kind, monkeypatch):
    monkeypatch.setattr("visdiv_assets.similarity.pairs.SKETCH_FROM_PAIRS", 0)
    found = similar_components(KINDS[kind], [0.75, 0.9, 0.95])
    for threshold in (0.75, 0.9, 0.95):
        assert found.labels[threshold].tolist() == of_all_pairs(KINDS[kind], threshold)


@pytest.mark.parametrize("method", ["exact", "index"])
@pytest.mark.parametrize("kind", [each for each in KINDS if each != "icons"])
def test_of_alike_rows_hardly_any_pair_is_looked_at(kind, method):
    found = similar_components(KINDS[kind], [0.75, 0.9, 0.95], method=method)
    assert found.pairs < N * (N - 1) / 2 / 200


def test_rows_that_are_joined_at_each_threshold_are_not_multiplied(monkeypatch):
    def fail(*_):
        raise AssertionError("a product was computed")

    monkeypatch.setattr(exact.Cpu, "candidates", fail)
    assert similar_components(KINDS["equal"], [0.75, 0.9]).pairs == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_joins_nothing_else_and_hardly_less(kind, monkeypatch):
    monkeypatch.setattr(ivf, "LARGE", 100)
    found = similar_components(KINDS[kind], [0.75, 0.9, 0.95], method="index")
    for threshold in (0.75, 0.9, 0.95):
        due = np.array(of_all_pairs(KINDS[kind], threshold))
        labels = found.labels[threshold]
        assert len(np.unique(np.stack([labels, due]), axis=1).T) == labels.max() + 1
        assert N - labels.max() >= 0.98 * (N - due.max())


def test_components_by_an_index_of_several_shards_are_hardly_less(monkeypatch):
    monkeypatch.setattr(ivf, "LARGE", 100)
    monkeypatch.setattr(ivf, "SHARD", 1300 * 17)
    rows = KINDS["alike and different"]
    found = similar_components(rows, [0.75, 0.95], method="index")
    assert found.labels[0.95].tolist() == of_all_pairs(rows, 0.95)


def best(pairs, similarities, column):
    """For each row of a column, its greatest similarity and the first row that has it."""
    found = {}
    for pair, similarity in zip(pairs.tolist(), similarities.tolist(), strict=True):
        key = (-similarity, pair[1 - column])
        found[pair[column]] = min(found.get(pair[column], key), key)
    return found


@given(FEW, FEW, st.sampled_from([0.5, 0.75, 1.0]))
def test_the_strongest_pairs_hold_the_most_similar_of_each_row(rows, others, threshold):
    others = np.resize(others, (len(others), rows.shape[1]))
    every = similar_pairs(rows, threshold, others=others)
    with tiny_blocks(DENSE=0):
        found = similar_pairs(rows, threshold, others=others, strongest=True)
    assert best(found.pairs, found.similarities, 0) == best(every.pairs, every.similarities, 0)
    of_others = best(found.pairs, found.similarities, 1)
    expected = best(every.pairs, every.similarities, 1)
    assert {row: -key[0] for row, key in of_others.items()} == {
        row: -key[0] for row, key in expected.items()
    }


def test_of_alike_sets_only_the_strongest_pairs_are_given():
    rows, others = alike(2000, 0.99), alike(2100, 0.99)
    found = similar_pairs(rows, 0.75, others=others, strongest=True)
    assert found.count < 10 * (2000 + 2100)
