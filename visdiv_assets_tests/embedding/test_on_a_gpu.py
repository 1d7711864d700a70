"""What only a GPU can show; each is skipped, and says so, where PyTorch finds none."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.gpu_decode import GpuDecoder
from visdiv_assets.embedding.model import FusedSSCD
from visdiv_assets.embedding.pipeline import embed_stream
from visdiv_assets.embedding.preprocess import Decoding, decode_image
from visdiv_assets.embedding.runtime_torch import TorchRuntime
from visdiv_assets.embedding.weights import find_weights
from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.directory import DirectorySource

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
]

TWICE = """
import hashlib, sys
import numpy as np
from visdiv_assets.embedding.runtime_torch import TorchRuntime
from visdiv_assets.embedding.weights import find_weights
runtime = TorchRuntime(find_weights(sys.argv[1]), devices=["cuda:0"], precision="fp16")
pixels = np.load(sys.argv[2])
found = {hashlib.sha256(runtime.embed(pixels).tobytes()).hexdigest() for _ in range(20)}
print(*found)
"""


@pytest.fixture(scope="module")
def weights(checkpoints):
    return find_weights(str(checkpoints["torchvision"]))


@pytest.fixture(scope="module")
def runtime(weights):
    return TorchRuntime(weights, devices=["cuda:0"], precision="fp16")


@pytest.fixture(scope="module")
def exact(weights, pixels):
    """Vectors of the CPU, in float32."""
    return TorchRuntime(weights, devices=["cpu"]).embed(pixels)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_vectors_are_those_of_the_cpu(precision, weights, pixels, exact, caplog):
    runtime = TorchRuntime(weights, devices=["cuda:0"], precision=precision)
    assert isinstance(runtime._workers[0].model.model, FusedSSCD)
    assert all(worker._graph for worker in runtime._workers)
    assert caplog.records == []
    least = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.99}[precision]
    assert np.sum(runtime.embed(pixels) * exact, axis=1).min() >= least


def test_vectors_are_the_same_to_the_last_bit_however_they_are_made(weights, runtime, pixels):
    vectors = runtime.embed(pixels)
    for worker in runtime._workers:
        assert np.array_equal(worker.embed(pixels), vectors)
    assert np.array_equal(np.concatenate([runtime.embed(each[None]) for each in pixels]), vectors)
    assert np.array_equal(runtime.embed([*pixels]), vectors)
    assert np.array_equal(runtime.embed(torch.from_numpy(pixels).cuda()), vectors)
    eager = TorchRuntime(weights, devices=["cuda:0"], precision="fp16", cuda_graphs=False)
    assert np.array_equal(eager.embed(pixels), vectors)


def test_several_processes_share_a_gpu(weights, pixels, tmp_path):
    np.save(tmp_path / "pixels.npy", pixels)
    command = [sys.executable, "-c", TWICE, str(weights.path), str(tmp_path / "pixels.npy")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate()[0] for process in processes}
    assert len(found) == 1
    assert len(found.pop().split()) == 1


def test_the_switches_of_a_program_are_as_they_were(weights, pixels):
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    before = cudnn.conv.fp32_precision, cuda.matmul.fp32_precision, cudnn.deterministic
    TorchRuntime(weights, devices=["cuda:0"], precision="fp32").embed(pixels)
    assert (
        cudnn.conv.fp32_precision,
        cuda.matmul.fp32_precision,
        cudnn.deterministic,
    ) == before


def test_batches_are_halved_until_they_fit_into_memory(weights, runtime, pixels, caplog):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    small = torch.cuda.memory_reserved(0) + 3 * 2**30
    torch.cuda.set_per_process_memory_fraction(small / total, 0)
    try:
        halved = TorchRuntime(weights, devices=["cuda:0"], precision="fp16", batch_size=4096)
        assert 1 < halved.batch_size < 4096
        assert all(worker._graph for worker in halved._workers)
        assert {record.message[:10] for record in caplog.records} == {"batches of"}
        cosines = np.sum(halved.embed(pixels) * runtime.embed(pixels), axis=1)
        assert cosines.min() > 0.9999
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


def test_a_gpu_with_wrong_vectors_is_refused_or_left_out(
    weights, pixels, exact, monkeypatch, caplog
):
    forward = FusedSSCD.forward
    monkeypatch.setattr(
        FusedSSCD, "forward", lambda model, images: forward(model, images).roll(1, 1)
    )
    with pytest.raises(
        VisdivError, match=r"cuda:0 cannot be used: its vectors have a cosine of -?0"
    ):
        TorchRuntime(weights, devices=["cuda:0"], precision="fp16")
    both = TorchRuntime(weights, devices=["cuda:0", "cpu"])
    np.testing.assert_allclose(both.embed(pixels), exact, rtol=0, atol=1e-6)
    assert caplog.records[-1].message.startswith("cuda:0 is left out, cpu goes on: its vectors ")


def test_when_a_gpu_fails_the_others_go_on(weights, pixels, exact, monkeypatch, caplog):
    both = TorchRuntime(weights, devices=["cuda:0", "cpu"])

    def failing(*args):
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

    for worker in both._workers:
        if worker.device.type == "cuda":
            monkeypatch.setattr(worker, "embed", failing)
    for _ in range(3):
        assert np.sum(both.embed(pixels) * exact, axis=1).min() > 0.99999
    (record,) = caplog.records
    assert record.message.startswith("cuda:0 is left out, cpu goes on: cuda:0 failed: Accelerator")


def test_a_torchscript_model_runs_without_graphs(checkpoints, pixels, exact):
    scripted = find_weights(str(checkpoints["torchscript"]))
    vectors = TorchRuntime(scripted, devices=["cuda:0"]).embed(pixels)
    assert np.sum(vectors * exact, axis=1).min() > 0.99999


def test_jpegs_decoded_on_the_gpu_are_nearly_those_of_libjpeg(photos, pixels):
    squares, left = GpuDecoder(torch.device("cuda:0"), Decoding()).decode(
        [path.read_bytes() for path in photos]
    )
    assert left == []
    difference = np.abs(squares.cpu().numpy().astype(int) - pixels)
    assert difference.mean() < 0.5
    assert difference.max() <= 40


def test_the_pipeline_decodes_and_embeds_on_the_gpu(weights, photos, tmp_path):
    for number, path in enumerate(photos * 40):  # several batches, of many sizes
        data = path.read_bytes()
        (tmp_path / f"{number:04}.jpg").write_bytes(data[:-2] + number.to_bytes(2) + data[-2:])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    source = DirectorySource(tmp_path)
    ids = sorted(path.name for path in tmp_path.iterdir())
    found = {}
    for decoding in (Decoding(), Decoding(jpeg_on_gpu=True)):
        embedder = SSCDEmbedder(str(weights.path), "cuda:0", decoding=decoding)
        outcomes = sorted(embed_stream(source, ids, embedder), key=lambda outcome: outcome.at)
        assert [bool(outcome.failure) for outcome in outcomes] == [False] * 320 + [True]
        found[decoding.jpeg_on_gpu] = np.stack([each.vector for each in outcomes[:320]])
    assert np.sum(found[False] * found[True], axis=1).min() > 0.98
    for vectors in found.values():  # the same pictures 40 times, in two threads
        assert all(np.array_equal(each, vectors[:8]) for each in vectors.reshape(40, 8, -1))


def test_resizing_on_the_gpu_differs_from_pillows_by_rounding_only(photos, pixels):
    """With libjpeg's pixels: a GPU rounds once, Pillow after each direction."""
    from PIL import Image

    from visdiv_assets.embedding.gpu_decode import _fill

    squares = torch.zeros((8, 320, 320, 3), dtype=torch.uint8, device="cuda:0")
    images = {
        at: torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
        .permute(2, 0, 1)
        .cuda()
        for at, path in enumerate(photos)
    }
    assert _fill(squares, images) == {*range(8)}
    difference = np.abs(squares.cpu().numpy().astype(int) - pixels)
    assert difference.max() <= 1
    assert difference.mean() < 0.16
    assert np.array_equal(decode_image(photos[0].read_bytes()), pixels[0])
