"""The torch road: the same numbers from both of Meta's formats and from plain torchvision."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visdiv_assets.embedding.runtime_torch import TorchRuntime, resolve_devices
from visdiv_assets.embedding.weights import find_weights
from visdiv_assets.errors import VisdivError
from visdiv_assets_tests.embedding.reference import preprocess


@pytest.fixture(scope="module")
def runtime(checkpoints):
    return TorchRuntime(find_weights(str(checkpoints["torchvision"])), batch_size=2)


@pytest.fixture(scope="module")
def vectors(runtime, pixels):
    return runtime.embed(pixels[:2])


@pytest.mark.parametrize("kind", ["torchvision", "torchscript"])
def test_both_formats_give_what_plain_torchvision_gives(
    kind, checkpoints, reference, photos, pixels
):
    runtime = TorchRuntime(find_weights(str(checkpoints[kind])), batch_size=2)
    with torch.inference_mode():
        expected = reference(preprocess(photos[:2])).numpy()
    ours = runtime.embed(pixels[:2])
    assert runtime.dimension == 512
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_torchscript_loads_without_a_word_about_its_deprecation(checkpoints):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchRuntime(find_weights(str(checkpoints["torchscript"])), batch_size=1)


def test_torchscript_gives_the_same_bits_in_every_call(checkpoints, pixels):
    # Its executor rewrites the graph in the first calls.
    runtime = TorchRuntime(find_weights(str(checkpoints["torchscript"])), batch_size=1)
    first, *others = (runtime.embed(pixels[:1]) for _ in range(4))
    assert all(np.array_equal(first, other) for other in others)


def test_a_vector_does_not_depend_on_the_batch_size(checkpoints, vectors, pixels):
    weights = find_weights(str(checkpoints["torchvision"]))
    for batch_size in (1, 3):
        alone = TorchRuntime(weights, batch_size=batch_size).embed(pixels[:1])
        np.testing.assert_allclose(alone, vectors[:1], rtol=0, atol=1e-6)


def test_a_vector_does_not_depend_on_the_other_images_of_its_batch(runtime, vectors, pixels):
    assert np.array_equal(runtime.embed(pixels[:1]), vectors[:1])
    assert np.array_equal(runtime.embed(pixels[[0, 5]])[:1], vectors[:1])


def test_two_devices_give_the_same_bits_as_one(checkpoints, vectors, pixels):
    weights = find_weights(str(checkpoints["torchvision"]))
    both = TorchRuntime(weights, devices=["cpu", "cpu"], batch_size=4)
    shared = both.embed(pixels[[0, 1, 0]])
    assert np.array_equal(shared, vectors[[0, 1, 0]])


def test_more_devices_than_images_in_a_batch_is_no_problem(checkpoints, vectors, pixels):
    weights = find_weights(str(checkpoints["torchvision"]))
    both = TorchRuntime(weights, devices=["cpu", "cpu"], batch_size=1)
    np.testing.assert_allclose(both.embed(pixels[:1]), vectors[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_vectors(precision, checkpoints, vectors, pixels):
    weights = find_weights(str(checkpoints["torchvision"]))
    half = TorchRuntime(weights, precision=precision, batch_size=2).embed(pixels[:2])
    assert half.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)
    cosines = np.sum(half * vectors, axis=1)
    assert (cosines >= 0.99).all()
    assert not np.array_equal(half, vectors)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_named(device, checkpoints):
    with pytest.raises(VisdivError, match=f"the device {device} is not there: .* no CUDA devices"):
        TorchRuntime(find_weights(str(checkpoints["torchvision"])), devices=["cpu", device])


@pytest.mark.parametrize(
    ("gpus", "names"), [(0, ["cpu"]), (1, ["cuda:0"]), (3, ["cuda:0", "cuda:1", "cuda:2"])]
)
def test_auto_means_every_gpu_or_else_the_cpu(gpus, names, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert [str(device) for device in resolve_devices(["auto"])] == names


class Means(nn.Module):
    """No unit vectors."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class Tokens(nn.Module):
    """Nothing that takes images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 7)


@pytest.mark.parametrize(
    ("module", "reason"),
    [(Means(), "does not give one unit vector per image"), (Tokens(), "does not run with PyTorch")],
)
def test_torchscript_of_something_else_is_refused(module, reason, tmp_path):
    path = tmp_path / "other.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))
    with pytest.raises(VisdivError, match=reason) as caught:
        TorchRuntime(find_weights(str(path)), batch_size=1)
    assert "\n" not in str(caught.value)
