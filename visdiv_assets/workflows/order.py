"""Whether a dataset's images are in an order: next to each other by name, they are alike.

Here: reading neighbours from the store, and what is said of them.
Not here: the test (`spectral/order.py`).
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.spectral.order import Order, adjacent, measure_order
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation

# Columns of an index.
SEGMENT, ROW = "segment", "row"


def order_of(evaluation: Evaluation, store: Store) -> Order | None:
    """How alike images are that are next to each other by name.

    At most 2,048 rows are read, whatever the number of images. Copies of one content that are next
    to each other count as one image.

    Args:
        evaluation: whose images.
        store: holds their embeddings.

    Returns:
        None of a random sample, whose images are not next to each other, and of few images.

    Raises:
        VisdivError: index or embeddings are gone.
    """
    if evaluation.is_sample:
        return None
    index = store.read_index(*evaluation.where, (SEGMENT, ROW))
    placed = index.table.filter(pc.is_valid(index.table[ROW]))
    segments = placed[SEGMENT].combine_chunks()
    if isinstance(segments, pa.ChunkedArray):  # no rows
        return None
    codes, rows = segments.indices.to_numpy(), placed[ROW].to_numpy()
    new = np.r_[True, (np.diff(codes) != 0) | (np.diff(rows) != 0)]
    codes, rows = codes[new], rows[new]
    names, firsts = segments.dictionary.to_pylist(), adjacent(len(rows))
    pairs = np.stack([firsts, firsts + 1])
    vectors: NDArray[np.float16] | None = None
    for code in np.unique(codes[pairs]).tolist():
        stored = store.rows(evaluation.model_id, names[code])
        if vectors is None:
            vectors = np.empty((*pairs.shape, stored.shape[1]), dtype=np.float16)
        here = codes[pairs] == code
        vectors[here] = stored[rows[pairs[here]]]
    return None if vectors is None else measure_order(*vectors)


def told(order: Order | None) -> str:
    """A warning in one paragraph where images are in an order that matters, else nothing.

    Example:
        >>> told(Order(neighbours=0.61, by_chance=0.08, p_value=0.0005)).split(". ")[0]
        'Images next to each other by name are much more alike (0.61) than others (0.08)'
        >>> told(Order(neighbours=0.09, by_chance=0.08, p_value=0.0005))
        ''
    """
    if order is None or not order.ordered:
        return ""
    return (
        f"Images next to each other by name are much more alike ({order.neighbours:.2f}) than "
        f"others ({order.by_chance:.2f}). If this is the beginning of a longer list, it is no "
        "sample of it; and if they are clips or albums, say so with `sampling_unit`."
    )
