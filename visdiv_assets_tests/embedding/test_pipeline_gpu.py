"""The pipeline with JPEGs that are decoded a batch at a time, here by libjpeg on the CPU."""

import numpy as np
import pytest
import torch
from PIL import Image

from visdiv_assets.embedding import gpu_decode
from visdiv_assets.embedding.gpu_decode import GpuDecoder
from visdiv_assets.embedding.pipeline import embed_stream
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_images

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


class GpuEmbedder(FakeEmbedder):
    """The fake, with a decoder."""

    decoding = Decoding(jpeg_on_gpu=True)
    gpu_decoder = GpuDecoder(torch.device("cpu"), decoding)

    def embed_encoded(self, images, otherwise):
        squares, flat, failed = self.gpu_decoder.decode_all(images, otherwise)
        given = zip(self.embed(squares.numpy()), flat, strict=True)
        return [failed.get(at, each) for at, each in enumerate(given)]


def outcomes(folder, embedder):
    ids = sorted(path.name for path in folder.iterdir())
    found = {each.at: each for each in embed_stream(DirectorySource(folder), ids, embedder)}
    return {ids[at]: outcome for at, outcome in found.items()}


@pytest.fixture
def folder(tmp_path):
    for at, path in enumerate(sorted(write_images(tmp_path, 9).iterdir())):
        if at % 3:
            Image.open(path).resize((64, 48)).save(path.with_suffix(".jpg"))
            path.unlink()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return tmp_path


def test_jpegs_for_the_gpu_and_others_keep_their_places(folder):
    by_gpu, by_cpu = outcomes(folder, GpuEmbedder()), outcomes(folder, FakeEmbedder())
    assert list(by_gpu) == list(by_cpu)
    assert by_gpu.pop("broken.jpg").failure == by_cpu.pop("broken.jpg").failure
    for name, outcome in by_gpu.items():
        assert outcome.content_key == by_cpu[name].content_key
        np.testing.assert_allclose(outcome.vector, by_cpu[name].vector, rtol=0, atol=2e-3)


def test_what_the_gpu_fails_at_is_decoded_as_ever(folder, monkeypatch):
    expected = outcomes(folder, FakeEmbedder())

    def failing(buffers, **options):
        raise RuntimeError("Failed to decode batch: 5")

    monkeypatch.setattr(gpu_decode, "decode_jpeg", failing)
    cut = folder / "cut.jpg"
    whole = (folder / "001.jpg").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    found = outcomes(folder, GpuEmbedder())
    for name, outcome in expected.items():
        assert np.array_equal(found[name].vector, outcome.vector)
        assert found[name].failure == outcome.failure


def test_flat_pictures_are_told_from_the_gpu_too(folder):
    for suffix in ("jpg", "png"):
        Image.new("RGB", (64, 48), "navy").save(folder / f"flat_{suffix}.{suffix}")
    found = outcomes(folder, GpuEmbedder())
    assert {name for name, each in found.items() if each.flat} == {"flat_jpg.jpg", "flat_png.png"}
