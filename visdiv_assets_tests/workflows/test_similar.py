"""The images most like an image are found, wherever it comes from."""

import io

import pytest
from PIL import Image

from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.errors import VisdivError
from visdiv_assets.store.store import Store
from visdiv_assets.workflows.similar import query_from, query_in, similar_images
from visdiv_assets_tests.conftest import PHOTOS
from visdiv_assets_tests.embedding.fakes import FakeEmbedder
from visdiv_assets_tests.workflows.conftest import double, noise


def test_images_like_one_of_the_dataset_are_found_without_itself(birds):
    evaluation = birds.evaluate("birds")
    query = query_in(evaluation, birds.store, "000.png")
    found = similar_images(evaluation, birds.store, query, 3)
    assert [(each.image_id, each.exact) for each in found[:2]] == [
        ("copy of 000.png", True),
        ("large of 000.png", False),
    ]
    assert len(found) == 3
    everything = similar_images(evaluation, birds.store, query, 73)
    assert len({each.image_id for each in everything}) == 73
    similarities = [each.similarity for each in everything]
    assert similarities == sorted(similarities, reverse=True)


def test_images_like_one_from_outside_are_found(birds):
    evaluation = birds.evaluate("birds")
    picture = io.BytesIO()
    double(noise(5)).save(picture, "BMP")
    embedder = FakeEmbedder(batch_size=1)
    query = query_from(picture.getvalue(), evaluation, birds.store, lambda: embedder)
    [first] = similar_images(evaluation, birds.store, query, 1)
    assert (first.image_id, first.exact) == ("005.png", False)
    assert embedder.batches == [1]


def test_the_very_bytes_of_an_image_need_no_model(birds):
    evaluation = birds.evaluate("birds")
    data = birds.path("birds", "005.png").read_bytes()
    query = query_from(data, evaluation, birds.store, lambda: pytest.fail("a model was opened"))
    [first] = similar_images(evaluation, birds.store, query, 1)
    assert first == ("005.png", 1.0, True)


def test_an_embedder_of_another_model_is_refused(birds):
    evaluation = birds.evaluate("birds")
    with pytest.raises(VisdivError, match="embedded with fake, but the settings now name another"):
        query_from(b"other bytes", evaluation, birds.store, lambda: FakeEmbedder("another"))


def test_what_is_no_image_is_refused(birds):
    evaluation = birds.evaluate("birds")
    with pytest.raises(VisdivError, match="cannot be decoded: not an image in a known format"):
        query_from(b"no picture", evaluation, birds.store, FakeEmbedder)


def test_an_image_that_could_not_be_embedded_is_like_nothing(birds):
    birds.path("birds", "broken.png").write_bytes(b"no picture")
    evaluation = birds.evaluate("birds")
    with pytest.raises(VisdivError, match=r"broken\.png of birds could not be embedded"):
        query_in(evaluation, birds.store, "broken.png")
    assert query_in(evaluation, birds.store, "no such") is None


@pytest.mark.parametrize("k", [-1, 0, 74])
def test_as_many_similar_images_as_there_are_not_are_refused(birds, k):
    evaluation = birds.evaluate("birds")
    query = query_in(evaluation, birds.store, "000.png")
    with pytest.raises(VisdivError, match=f"between 1 and 73, the number of other .*; got {k}"):
        similar_images(evaluation, birds.store, query, k)


def test_a_photograph_is_found_by_a_smaller_and_worse_copy_of_it(demo):
    picture = io.BytesIO()
    with Image.open(PHOTOS / "city3.jpg") as photograph:
        photograph.reduce(2).save(picture, "JPEG", quality=40)
    store = Store(demo.root)
    query = query_from(
        picture.getvalue(), demo.evaluation, store, lambda: SSCDEmbedder(ONNX_CHECKPOINT)
    )
    first, second = similar_images(demo.evaluation, store, query, 2)
    assert first.image_id == "city3.jpg"
    assert first.similarity > 0.75 > second.similarity
