"""The ONNX road, with the real quantised model."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from visdiv_assets.embedding import runtime_onnx
from visdiv_assets.embedding.preprocess import decode_image
from visdiv_assets.embedding.runtime_onnx import OnnxRuntime
from visdiv_assets.embedding.weights import installed_onnx_model
from visdiv_assets.errors import VisdivError

UINT8, FLOAT = 2, 1  # ONNX's numbers for element types


@pytest.fixture(scope="module")
def runtime():
    return OnnxRuntime(installed_onnx_model())


@pytest.fixture(scope="module")
def vectors(runtime, pixels):
    return runtime.embed(pixels)


def test_vectors_are_float32_of_dimension_512_and_length_1(runtime, vectors):
    assert runtime.dimension == 512
    assert vectors.shape == (8, 512)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_vector_is_the_same_to_the_last_bit_in_any_batch(batch_size, vectors, pixels):
    runtime = OnnxRuntime(installed_onnx_model(), batch_size=batch_size)
    assert runtime.batch_size == batch_size
    starts = range(0, len(pixels), batch_size)
    pieces = [runtime.embed(pixels[start : start + batch_size]) for start in starts]
    assert np.array_equal(np.concatenate(pieces), vectors)


@pytest.mark.parametrize("cpus", [1, 2, 5])
def test_a_vector_is_the_same_to_the_last_bit_on_any_number_of_cpus(
    cpus, vectors, pixels, monkeypatch
):
    monkeypatch.setattr(runtime_onnx, "usable_cpus", lambda: cpus)
    runtime = OnnxRuntime(installed_onnx_model())
    assert np.array_equal(runtime.embed(pixels), vectors)
    with ThreadPoolExecutor(2) as threads:  # as the pipeline calls it
        first, second = threads.map(runtime.embed, [pixels[:5], pixels[5:]])
    assert np.array_equal(np.concatenate([first, second]), vectors)


def test_a_vector_is_the_same_to_the_last_bit_as_of_a_plain_session(vectors, pixels):
    session = onnxruntime.InferenceSession(installed_onnx_model())
    assert np.array_equal(session.run(None, {"image": pixels})[0], vectors)


def test_a_vector_is_the_same_to_the_last_bit_in_any_order(runtime, vectors, pixels):
    assert np.array_equal(runtime.embed(pixels[::-1])[::-1], vectors)


def test_smaller_copies_are_near_and_other_photographs_are_far(runtime, vectors, photos):
    copies = []
    for path in photos:
        with Image.open(path) as photo:
            copy = io.BytesIO()
            smaller = photo.resize((photo.width * 3 // 4, photo.height * 3 // 4))
            smaller.save(copy, "JPEG", quality=80)
        copies.append(decode_image(copy.getvalue()))
    cosines = vectors @ runtime.embed(np.stack(copies)).T
    assert cosines.diagonal().min() > 0.9
    assert cosines[~np.eye(len(photos), dtype=bool)].max() < 0.5


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_damaged_model_is_refused(kept, tmp_path):
    content = installed_onnx_model().read_bytes()
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content[: int(len(content) * kept)] or b"a text")
    with pytest.raises(VisdivError, match="cannot be loaded by ONNX Runtime") as caught:
        OnnxRuntime(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("element", "shape", "reason"),
    [
        (FLOAT, (1, 32, 32, 3), "does not accept uint8 images"),
        (UINT8, (1, 3, 32, 32), "does not accept uint8 images"),
        (UINT8, (), "does not accept uint8 images"),
        (UINT8, (1, 32, 32, 3), "does not return vectors of a fixed dimension"),
    ],
)
def test_a_model_of_something_else_is_refused(element, shape, reason, tmp_path):
    path = tmp_path / "identity.onnx"
    path.write_bytes(identity_model(element, shape))
    with pytest.raises(VisdivError, match=reason):
        OnnxRuntime(path)


def identity_model(element, shape):
    """An ONNX file whose output is its input, in protobuf's wire format."""

    def number(field, value):
        return bytes([field << 3, value])

    def message(field, content):
        return bytes([field << 3 | 2, len(content)]) + content

    dimensions = b"".join(message(1, number(1, size)) for size in shape)
    tensor = message(1, number(1, element) + message(2, dimensions))
    node = message(1, b"x") + message(2, b"y") + message(4, b"Identity")
    graph = message(1, node) + message(2, b"identity")
    graph += message(11, message(1, b"x") + message(2, tensor))
    graph += message(12, message(1, b"y") + message(2, tensor))
    return number(1, 8) + message(8, number(2, 17)) + message(7, graph)
