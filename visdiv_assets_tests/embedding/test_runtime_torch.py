"""The torch road: the same numbers from both of Meta's formats and from plain torchvision."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visdiv_assets.embedding.model import FusedSSCD
from visdiv_assets.embedding.runtime_torch import (
    TorchRuntime,
    _doubt,
    _FromPixels,
    _load,
    _say_that_the_cpu_embeds,
    _Worker,
    resolve_devices,
)
from visdiv_assets.embedding.weights import find_weights
from visdiv_assets.errors import VisdivError
from visdiv_assets_tests.embedding.reference import preprocess


@pytest.fixture(scope="module")
def runtime(checkpoints):
    weights = find_weights(str(checkpoints["torchvision"]))
    return TorchRuntime(weights, devices=["cpu"], batch_size=2)


@pytest.fixture(scope="module")
def vectors(runtime, pixels):
    return runtime.embed(pixels[:2])


@pytest.fixture(scope="module")
def scripted(checkpoints):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the format is deprecated, and people need not hear of it
        return TorchRuntime(find_weights(str(checkpoints["torchscript"])), batch_size=2)


@pytest.mark.parametrize("kind", ["runtime", "scripted"])
def test_both_formats_give_what_plain_torchvision_gives(kind, request, reference, photos, pixels):
    runtime = request.getfixturevalue(kind)
    with torch.inference_mode():
        expected = reference(preprocess(photos[:2])).numpy()
    ours = runtime.embed(pixels[:2])
    assert runtime.dimension == 512
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_torchscript_gives_the_same_bits_in_every_call(checkpoints, pixels):
    # Its executor rewrites the graph in the first calls.
    runtime = TorchRuntime(find_weights(str(checkpoints["torchscript"])), batch_size=1)
    first, *others = (runtime.embed(pixels[:1]) for _ in range(4))
    assert all(np.array_equal(first, other) for other in others)


def test_a_vector_does_not_depend_on_the_batch_size(checkpoints, vectors, pixels):
    weights = find_weights(str(checkpoints["torchvision"]))
    alone = TorchRuntime(weights, batch_size=1).embed(pixels[:1])
    np.testing.assert_allclose(alone, vectors[:1], rtol=0, atol=1e-6)


def test_a_vector_does_not_depend_on_the_other_images_of_its_batch(runtime, vectors, pixels):
    assert np.array_equal(runtime.embed(pixels[:1]), vectors[:1])
    assert np.array_equal(runtime.embed(pixels[[0, 5]])[:1], vectors[:1])


@pytest.fixture(scope="module")
def both(checkpoints):
    """The same device twice, as if it were two."""
    weights = find_weights(str(checkpoints["torchvision"]))
    return TorchRuntime(weights, devices=["cpu", "cpu"], batch_size=2)


def embed_at_once(runtime, batches):
    with ThreadPoolExecutor(runtime.calls_at_once) as threads:
        return list(threads.map(runtime.embed, batches))


def test_two_devices_give_the_same_bits_as_one_and_in_order(both, runtime, pixels):
    batches = [pixels[:2], pixels[2:4], pixels[4:5]]
    assert (runtime.calls_at_once, both.calls_at_once) == (1, 2)
    at_once = embed_at_once(both, batches)
    for ours, expected in zip(at_once, map(runtime.embed, batches), strict=True):
        assert np.array_equal(ours, expected)


def test_a_fast_device_does_not_wait_for_a_slow_one(both, pixels, monkeypatch):
    slow, fast = both._workers
    enough, by_fast = threading.Event(), []

    def embed_slowly(batch):
        assert enough.wait(60)
        return np.zeros((1, 512), dtype=np.float32)

    def embed_fast(batch):
        by_fast.append(batch)
        if len(by_fast) == 2:
            enough.set()
        return np.ones((1, 512), dtype=np.float32)

    monkeypatch.setattr(slow, "embed", embed_slowly)
    monkeypatch.setattr(fast, "embed", embed_fast)
    vectors = embed_at_once(both, [pixels[:1]] * 3)
    assert len(by_fast) == 2
    assert sum(vector[0, 0] for vector in vectors) == 2


def failing(*args, **options):
    raise RuntimeError("CUDA error: an illegal memory access\nCompile with `TORCH_USE_CUDA_DSA`")


@pytest.fixture
def two(checkpoints):
    """As `both`, for tests that break it."""
    return TorchRuntime(
        find_weights(str(checkpoints["torchvision"])), devices=["cpu", "cpu"], batch_size=2
    )


def test_when_all_devices_have_failed_the_failure_is_told(two, pixels, monkeypatch):
    monkeypatch.setattr(_FromPixels, "forward", failing)
    for _ in range(2):
        with pytest.raises(VisdivError, match=r"^cpu failed: RuntimeError: CUDA error: an [^\n]*$"):
            embed_at_once(two, [pixels[:1]] * 5)


def test_when_one_device_of_two_fails_the_other_embeds_its_images(
    two, vectors, pixels, monkeypatch, caplog
):
    broken = two._workers[0]
    monkeypatch.setattr(broken, "embed", failing)
    for embedded in embed_at_once(two, [pixels[:2]] * 5):
        assert np.array_equal(embedded, vectors)
    (record,) = caplog.records
    assert record.message.startswith("cpu is left out, cpu goes on: cpu failed: RuntimeError: CUDA")
    assert "\n" not in record.message


def test_a_device_that_does_not_start_is_left_out(
    checkpoints, vectors, pixels, monkeypatch, caplog
):
    start, started = _Worker.__init__, []

    def starting(self, model, *args, **options):
        started.append(model)
        if model is started[0]:
            failing()
        start(self, model, *args, **options)

    monkeypatch.setattr(_Worker, "__init__", starting)
    weights = find_weights(str(checkpoints["torchvision"]))
    runtime = TorchRuntime(weights, devices=["cpu", "cpu"], batch_size=2)
    assert runtime.calls_at_once == 1
    assert np.array_equal(runtime.embed(pixels[:2]), vectors)
    assert [record.message[:32] for record in caplog.records] == [
        "cpu is left out, cpu goes on: Ru"
    ]


def test_a_device_is_trusted_if_its_vectors_are_those_of_the_cpu():
    expected = np.eye(3, 8, dtype=np.float32)
    assert _doubt(expected, expected[:1], expected) == ""
    other = expected[[0, 1, 0]]
    assert "a cosine of 0.0000 with those of the CPU" in _doubt(other, other[:1], expected)
    assert "a cosine of nan" in _doubt(expected * np.nan, expected[:1], expected)
    assert "depends on the images beside it" in _doubt(expected, expected[1:2], expected)


@pytest.mark.parametrize(("wanted", "fitting", "found"), [(8, 3, 2), (3, 1, 1)])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    wanted, fitting, found, checkpoints, vectors, pixels, monkeypatch, caplog
):
    model = _FromPixels.forward

    def forward(self, images):
        if len(images) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return model(self, images)

    monkeypatch.setattr(_FromPixels, "forward", forward)
    weights = find_weights(str(checkpoints["torchvision"]))
    runtime = TorchRuntime(weights, devices=["cpu"], batch_size=wanted)
    assert runtime.batch_size == found
    np.testing.assert_allclose(runtime.embed(pixels[:1]), vectors[:1], rtol=0, atol=2e-6)
    tried = [record.message for record in caplog.records]
    smaller = wanted // 2
    assert tried[0] == (
        f"batches of {wanted} images do not fit into the memory of cpu; trying {smaller}"
    )
    assert len(tried) == {8: 2, 3: 1}[wanted]


def test_too_little_memory_for_a_single_image_is_an_error(checkpoints, monkeypatch):
    def forward(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(_FromPixels, "forward", forward)
    with pytest.raises(VisdivError, match=r"does not run with PyTorch .* CUDA out of memory"):
        TorchRuntime(find_weights(str(checkpoints["torchvision"])), batch_size=2)


def test_too_little_memory_to_record_is_not_taken_for_a_graph_that_fails(runtime, monkeypatch):
    def graph():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    with pytest.raises(torch.OutOfMemoryError):  # so the batch is halved
        runtime._workers[0]._record()


@pytest.fixture(scope="module")
def for_a_gpu(checkpoints):
    """The model as it is loaded for a GPU, on the CPU."""
    weights = find_weights(str(checkpoints["torchvision"]))
    return lambda: _load(weights, torch.float32, torch.device("cuda:0")).model


def test_fused_convolutions_give_what_the_layers_give_one_by_one(
    for_a_gpu, vectors, pixels, monkeypatch
):
    def convolved(images, weight, bias, *geometry):
        return torch.conv2d(images, weight, bias, *geometry).relu_()

    def added(images, weight, addend, factor, bias, *geometry):
        return torch.conv2d(images, weight, bias, *geometry).add_(addend, alpha=factor).relu_()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolved)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", added)
    fused = _Worker(_FromPixels(for_a_gpu(), torch.float32, torch.device("cpu")), 2, graph=False)
    assert isinstance(fused.model.model, FusedSSCD)
    np.testing.assert_allclose(fused.embed(pixels[:2]), vectors, rtol=0, atol=1e-6)


def test_where_convolutions_cannot_be_fused_they_are_not_and_a_line_says_so(
    for_a_gpu, vectors, pixels, caplog
):
    model = _FromPixels(for_a_gpu(), torch.float32, torch.device("cpu"))
    plain = _Worker(model, 2, graph=False)
    np.testing.assert_allclose(plain.embed(pixels[:2]), vectors, rtol=0, atol=1e-6)
    (record,) = caplog.records
    assert record.message.startswith("cpu runs without fused convolutions, which is slower: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_work_cannot_be_recorded_the_model_runs_without_and_says_so(runtime, caplog):
    assert runtime._workers[0]._record() is None
    (record,) = caplog.records
    assert record.message.startswith("cpu runs without a CUDA graph, which is slower: ")
    assert "\n" not in record.message


def test_pixels_may_be_a_tensor(runtime, vectors, pixels):
    runtime.embed(pixels[2:4])
    assert np.array_equal(runtime.embed(torch.from_numpy(pixels[:1])), vectors[:1])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_vectors(precision, checkpoints, vectors, pixels):
    weights = find_weights(str(checkpoints["torchvision"]))
    half = TorchRuntime(weights, precision=precision, batch_size=1).embed(pixels[:1])
    assert half.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)
    assert np.sum(half * vectors[:1]) >= {"bf16": 0.99, "fp16": 0.9999}[precision]
    assert not np.array_equal(half, vectors[:1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_named(device, checkpoints):
    with pytest.raises(
        VisdivError, match=f"the device {device} does not exist: .* no CUDA devices"
    ):
        TorchRuntime(find_weights(str(checkpoints["torchvision"])), devices=["cpu", device])


def test_without_a_gpu_auto_says_once_that_the_cpu_embeds(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _say_that_the_cpu_embeds.cache_clear()
    for _ in range(2):
        resolve_devices(["auto"])
    resolve_devices(["cpu"])
    (record,) = caplog.records
    assert record.message.endswith("finds no CUDA device, so the model runs on the CPU")


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
    [
        (Means(), "does not return one unit vector per image"),
        (Tokens(), "does not run with PyTorch"),
    ],
)
def test_torchscript_of_something_else_is_refused(module, reason, tmp_path):
    path = tmp_path / "other.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))
    with pytest.raises(VisdivError, match=reason) as caught:
        TorchRuntime(find_weights(str(path)), batch_size=1)
    assert "\n" not in str(caught.value)
