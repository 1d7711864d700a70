"""Moments: exact on the store's grid, whatever the order, the partition and the threads."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from visdiv_assets.sources.manifest import SCHEMA, Manifest
from visdiv_assets.spectral.moments import BLOCK_ROWS, Moments, check_embeddings
from visdiv_assets.spectral.score import diversity
from visdiv_assets.store.index import INDEX_SCHEMA, KEY_BYTES, EmbeddingIndex
from visdiv_assets.store.segments import GRID, SEGMENT_ROWS, to_grid
from visdiv_assets.store.store import Store
from visdiv_assets_tests.spectral.matrices import grid_rows, matrices, power_law

ROOT = Path(__file__).parents[2]


def same_bits(a: Moments, b: Moments) -> bool:
    return (a.n, a.total.tobytes(), a.outer.tobytes()) == (
        b.n,
        b.total.tobytes(),
        b.outer.tobytes(),
    )


@given(matrices())
def test_moments_are_count_sum_and_sum_of_outer_products(rows):
    moments = Moments.of(rows)
    exact = rows.astype(np.float64)
    assert moments.n == len(rows)
    np.testing.assert_allclose(moments.total, exact.sum(axis=0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(
        moments.outer, np.einsum("ni,nj->ij", exact, exact), rtol=1e-12, atol=1e-6
    )


@given(matrices())
def test_the_covariance_is_exactly_symmetric(rows):
    covariance = Moments.of(rows).covariance()
    assert np.array_equal(covariance, covariance.T)


@given(grid_rows())
def test_on_the_grid_every_sum_is_exact(rows):
    integers = (rows.astype(np.float64) / GRID).astype(np.int64)
    moments = Moments.of(rows)
    assert np.array_equal(moments.total / GRID, integers.sum(axis=0))
    assert np.array_equal(moments.outer / GRID**2, integers.T @ integers)


@given(grid_rows(), st.data())
def test_on_the_grid_no_order_and_no_partition_costs_a_bit(rows, data):
    whole = Moments.of(rows)
    shuffled = rows[data.draw(st.permutations(range(len(rows))))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    parts = [Moments.of(part) for part in np.split(shuffled, cuts)]
    merged = Moments.sum(data.draw(st.permutations(parts)))
    assert same_bits(merged, whole)
    scored, expected = diversity(merged), diversity(whole)
    assert scored.spectrum.tobytes() == expected.spectrum.tobytes()
    assert (scored.score, scored.effective_rank, scored.participation_ratio) == (
        expected.score,
        expected.effective_rank,
        expected.participation_ratio,
    )


@given(grid_rows(), st.data())
def test_a_count_is_the_same_as_repeated_rows(rows, data):
    counts = data.draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows)))
    assert same_bits(
        Moments.of(rows, np.array(counts)), Moments.of(np.repeat(rows, counts, axis=0))
    )


@given(grid_rows(), st.data())
def test_what_is_added_can_be_taken_away_without_a_trace(rows, data):
    cut = data.draw(st.integers(0, len(rows)))
    a, b = Moments.of(rows[:cut]), Moments.of(rows[cut:])
    assert same_bits(a + b - b, a)


def test_no_number_of_threads_costs_a_bit():
    rows = to_grid(power_law(3_000, 256).astype(np.float32))
    results = []
    for threads in (1, 2, 1):
        with threadpool_limits(threads):
            moments = Moments.of(rows)
            results.append((moments.outer.tobytes(), diversity(moments).spectrum.tobytes()))
    assert len(set(results)) == 1


def test_sums_stay_exact_until_a_coordinate_holds_two_to_the_23():
    whole, smallest = np.array([[1.0]]), np.array([[GRID]])
    below = Moments.of(whole, np.array([2**23 - 1])) + Moments.of(smallest)
    assert below.outer.item() - (2**23 - 1) == GRID**2
    above = Moments.of(whole, np.array([2**23])) + Moments.of(smallest)
    assert above.outer.item() == 2**23


def test_a_hundred_million_rows_like_the_demo_photographs_would_be_added_up_exactly(demo):
    moments = Moments.of(demo.rows)
    largest = np.diag(moments.outer).max() / moments.n
    assert 2**23 / largest > 5e8


def test_rows_of_many_blocks_are_all_counted():
    rows = to_grid(power_law(2 * BLOCK_ROWS + 7, 3).astype(np.float32))
    counts = np.arange(len(rows)) % 3
    expected = np.repeat(rows, counts, axis=0).astype(np.float64)
    moments = Moments.of(rows, counts)
    assert moments.n == counts.sum()
    assert np.array_equal(moments.outer, expected.T @ expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(3), "shape (N, D); got 1 dimension(s), shape (3,)"),
        (np.zeros((2, 3, 4)), "got 3 dimension(s)"),
        (np.array([[1.0, np.nan], [0, 0]]), "NaN or infinity (first in row 0)"),
        (np.array([[1.0, 0], [0, -np.inf]], np.float16), "NaN or infinity (first in row 1)"),
        (np.zeros((2, 3), complex), "real numbers; got dtype complex128"),
        (np.zeros((2, 3), object), "real numbers; got dtype object"),
        (np.zeros((2, 3), bool), "real numbers; got dtype bool"),
        (np.zeros((2, 3), "m8[s]"), "real numbers; got dtype timedelta64[s]"),
        (np.zeros((2, 0)), "dimension 0"),
    ],
)
def test_anything_but_a_finite_real_matrix_is_refused_with_the_reason(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Moments.of(rows)


def test_the_first_bad_row_is_named_in_any_block():
    rows = np.zeros((BLOCK_ROWS + 10, 2), np.float32)
    rows[BLOCK_ROWS + 3, 1] = np.nan
    with pytest.raises(ValueError, match=f"first in row {BLOCK_ROWS + 3}"):
        check_embeddings(rows)


def test_an_unexpected_dimension_is_named():
    with pytest.raises(ValueError, match="dimension 512; got 3"):
        check_embeddings(np.zeros((2, 3)), dimension=512)


@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [1, -1], [0.5, 1.0], [[1], [1]]])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="counts must"):
        Moments.of(np.zeros((2, 3)), np.array(counts))


def test_moments_of_different_dimensions_do_not_mix():
    with pytest.raises(ValueError, match="cannot combine moments of dimension 2 and 3"):
        Moments.zero(2) + Moments.zero(3)


def test_no_more_can_be_taken_away_than_there_is():
    one = Moments.of(np.ones((1, 2)))
    with pytest.raises(ValueError, match="cannot subtract 1 vectors from 0"):
        Moments.zero(2) - one


def test_nothing_has_no_sum_no_mean_and_no_covariance():
    with pytest.raises(ValueError, match="no moments"):
        Moments.sum([])
    with pytest.raises(ValueError, match="at least 1 vector"):
        _ = Moments.zero(2).mean
    with pytest.raises(ValueError, match="at least 2 vectors; got 1"):
        Moments.of(np.ones((1, 2))).covariance()


# A process of its own: ru_maxrss would include that of the process that started it.
ADD_UP = """
import sys
from visdiv_assets.store.store import Store
from visdiv_assets.workflows.moments import accumulate_moments

store = Store(sys.argv[1])
fingerprint = store.latest_fingerprint("dataset")
moments = accumulate_moments("dataset", "model", fingerprint, store).moments
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(moments.n, int(status["VmHWM"].split()[0]) * 1024)
"""


def write_store(store: Store, n: int) -> None:
    """What a run leaves of n images in four folders; all segments hold the same vectors."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((SEGMENT_ROWS, 512), np.float32)
    rows = to_grid(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    keys = rng.integers(0, 256, (n, KEY_BYTES), np.uint8)
    key_type = pa.binary(KEY_BYTES)
    names = [f"{number:04}" for number in range(-(-n // SEGMENT_ROWS))]
    folder = store.root / "embeddings/model"
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        own = keys[number * SEGMENT_ROWS :][:SEGMENT_ROWS]
        column = pa.Array.from_buffers(key_type, len(own), [None, pa.py_buffer(own.tobytes())])
        np.save(folder / f"{name}.npy", rows[: len(own)])
        pq.write_table(pa.table({"content_key": column}), folder / f"{name}.parquet")
    at = np.arange(n, dtype=np.int32)
    columns = {
        "image_id": pa.array([f"{number % 4}/{number}.jpg" for number in range(n)]),
        "content_key": pa.Array.from_buffers(key_type, n, [None, pa.py_buffer(keys.tobytes())]),
        "segment": pa.DictionaryArray.from_arrays(at // SEGMENT_ROWS, pa.array(names)),
        "row": pa.array(at % SEGMENT_ROWS),
    }

    def table(schema: pa.Schema) -> pa.Table:
        filled = [columns.get(each.name, pa.nulls(n, each.type)) for each in schema]
        return pa.table(filled, schema=schema)

    store.write_manifest("dataset", Manifest(table(SCHEMA), "fingerprint"))
    store.name_latest("dataset", "fingerprint")
    store.write_index("dataset", "model", "fingerprint", EmbeddingIndex(table(INDEX_SCHEMA)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_rows_of_the_store_stream_through_less_than_a_gigabyte(tmp_path):
    """With their sample and their slices, as an evaluation adds them up."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as root:
        write_store(Store(root), 1_000_000)
        command = [sys.executable, "-c", ADD_UP, root]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    n, peak = map(int, done.stdout.split())
    print(f"{peak / 1e6:.0f} MB at most")
    assert n == 1_000_000
    assert peak < 1e9
