"""Matrices for the tests of the mathematics."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from visdiv_assets.store.segments import to_grid

seeds = st.integers(0, 2**32 - 1)


def power_law(n, dimension, *, exponent=1.0, seed=0):
    """Unit vectors with the spectrum λᵢ ~ i^−exponent, as descriptors of real images have it."""
    scales = np.arange(1, dimension + 1) ** (-exponent / 2)
    rows = np.random.default_rng(seed).standard_normal((n, dimension)) * scales
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rotation(dimension, seed):
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))[0]


@st.composite
def grid_rows(draw, min_rows=2):
    """Rows as the store keeps them: float16 on its grid, in [-1, 1]."""
    shape = draw(st.tuples(st.integers(min_rows, 30), st.integers(1, 8)))
    entries = st.floats(-1, 1, width=32)
    return to_grid(draw(hnp.arrays(np.float32, shape, elements=entries)))


@st.composite
def matrices(draw):
    """Matrices of any real dtype, size, rank, scale and distance from the origin."""
    n, dimension = draw(st.integers(2, 60)), draw(st.integers(1, 24))
    rank = draw(st.integers(1, dimension))
    rng = np.random.default_rng(draw(seeds))
    rows = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, dimension))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e2]))
    offset = draw(st.sampled_from([0.0, 1.0, -1e3])) * rng.standard_normal(dimension)
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    return (rows * scale + offset).astype(dtype)
