"""Sampling units: what counts as one piece of evidence about the population.

Here: which rows belong to one unit. Not here: what follows for an estimate (`corrected.py`), the
sample itself (`sample.py`).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from visdiv_assets.spectral.moments import FloatArray
from visdiv_assets.spectral.threads import one_blas_thread

# Rows at least this similar are one picture that was collected twice: a copy in another size, the
# next frame of a burst. Photographs that merely show the same thing are below.
NEAR_DUPLICATE = 0.90


def near_duplicate_units(rows: FloatArray) -> NDArray[np.int64]:
    """Rows that are connected by cosine similarities of at least 0.90.

    Args:
        rows: shape (k, D), float64; a row of zeros is a unit of its own.

    Returns:
        the unit of each row, shape (k,), int64, numbered from 0 in order of their first rows.

    Example:
        >>> import numpy as np
        >>> near_duplicate_units(np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 0.5]])).tolist()
        [0, 1, 0]
    """
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    with one_blas_thread():
        unit = rows / np.where(norms > 0, norms, 1.0)
        alike = unit @ unit.T >= NEAR_DUPLICATE
    _, labels = connected_components(csr_array(alike), directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return np.asarray(order[inverse], dtype=np.int64)
