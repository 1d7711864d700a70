"""The images of a dataset that are most like an image: one of its own, or any other.

Here: queries and their answers. Not here: drawing them (`sheets.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.pipeline import Embedder
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, Pixels
from visdiv_assets.errors import VisdivError
from visdiv_assets.similarity.pairs import nearest
from visdiv_assets.store.index import content_key
from visdiv_assets.store.segments import to_grid
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.workflows.catalogue import Catalogue, rows_of


class Neighbour(NamedTuple):
    """An image that is like another: its id, cosine similarity, whether it has the same bytes."""

    image_id: str
    similarity: float
    exact: bool


class Query(NamedTuple):
    """What to look for: a vector of shape (D,), the content key in hex, and the image's own id."""

    vector: NDArray[np.float16]
    content_key: str
    image_id: str | None = None


def query_in(evaluation: Evaluation, store: Store, image_id: str) -> Query | None:
    """An image of a dataset as a query; None where it has no image of that id.

    Raises:
        VisdivError: there is such an image, but it could not be embedded.
    """
    index, rows = rows_of(evaluation, store)
    place = pc.index(index.table["image_id"], image_id).as_py()
    if place < 0:
        return None
    row = Catalogue(index, rows).row_of(place)
    if row is None:
        raise VisdivError(f"{image_id} of {evaluation.dataset} could not be embedded")
    return Query(rows[np.array([row])][0], rows.keys[row : row + 1].tobytes().hex(), image_id)


def query_from(
    data: bytes, evaluation: Evaluation, store: Store, open_embedder: Callable[[], Embedder]
) -> Query:
    """An encoded image from outside as a query; embedded unless the dataset has its very bytes.

    Raises:
        VisdivError: it cannot be decoded, or the embedder is not the one of the dataset.
    """
    key = content_key(data)
    _, rows = rows_of(evaluation, store)
    known = np.flatnonzero(rows.keys == np.array(key, dtype=rows.keys.dtype))
    if len(known):
        return Query(rows[known][0], key.hex())
    embedder = open_embedder()
    if embedder.model_id != evaluation.model_id:
        raise VisdivError(
            f"{evaluation.dataset} was embedded with {evaluation.model_id}, but the settings now "
            f"name {embedder.model_id}; run `visdiv score {evaluation.dataset}` to embed it again"
        )
    vectors = embedder.embed([decoded(data, embedder.decoding)])
    return Query(to_grid(vectors)[0], key.hex())


def decoded(data: bytes, decoding: Decoding) -> Pixels:
    """The pixels of an encoded image from outside.

    Raises:
        VisdivError: it cannot be decoded.
    """
    try:
        with Decoders(decoding, 1) as decoders:
            return decoders.decode(data)
    except DecodeError as error:
        raise VisdivError(f"the image cannot be decoded: {error.reason}") from None


def similar_images(evaluation: Evaluation, store: Store, query: Query, k: int) -> list[Neighbour]:
    """The images of a dataset that are most like another, the most similar first.

    Args:
        evaluation: whose images.
        store: holds their embeddings.
        query: what to look for; it is not among the images that are found.
        k: how many, at most as many as there are.

    Raises:
        VisdivError: k is not between 1 and the number of images.
    """
    index, rows = rows_of(evaluation, store)
    most = index.n_images - (query.image_id is not None)
    if not 1 <= k <= most:
        others = "images" if query.image_id is None else "other images"
        raise VisdivError(
            f"k must be between 1 and {most}, the number of {others} in {evaluation.dataset}; "
            f"got {k}"
        )
    catalogue = Catalogue(index, rows)
    places, similarities = nearest(rows, query.vector[None], min(k + 1, len(rows)))
    found: list[Neighbour] = []
    for row, similarity in zip(places[0].tolist(), similarities[0].tolist(), strict=True):
        exact = rows.keys[row : row + 1].tobytes().hex() == query.content_key
        own = catalogue.images[catalogue.offsets[row] : catalogue.offsets[row + 1]]
        for image_id in catalogue.ids.take(pa.array(own[: k + 1])).to_pylist():
            if image_id != query.image_id:
                found.append(Neighbour(image_id, similarity, exact))
    return found[:k]
