"""`SSCDEmbedder` as people call it, and the model ids that keep vectors apart."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from visdiv_assets.embedding.decoding import PREPROCESSING
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.preprocess import decode_image
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.errors import VisdivError


@pytest.fixture(scope="module")
def embedder():
    return SSCDEmbedder(ONNX_CHECKPOINT, batch_size=2)


@pytest.fixture
def folder(tmp_path, photos):
    """Three photographs, named so that their order is not that in which folders are walked."""
    folder = tmp_path / "images"
    for name, photo in zip(("b/1.jpg", "a.jpg", "b/0.jpg"), photos, strict=False):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(photo, folder / name)
    return folder


@pytest.fixture
def weight_file(tmp_path):
    """Makes a file that passes for weights until it is loaded."""

    def make(name, number=0.0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            torch.save({"number": number}, file)
        return path

    return make


def test_extract_gives_one_vector_per_image_in_the_order_of_relative_paths(
    embedder, folder, photos
):
    vectors = embedder.extract(folder)
    in_order = [photos[1], photos[2], photos[0]]
    alone = [embedder.embed(decode_image(path.read_bytes())[None])[0] for path in in_order]
    assert vectors.shape == (3, 512)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, alone)


def test_extract_leaves_out_what_cannot_be_decoded_and_says_so(embedder, folder, caplog):
    whole = embedder.extract(folder)
    (folder / "aa.jpg").write_text("no photograph")
    (folder / "notes.txt").write_text("no image by its name")
    assert np.array_equal(embedder.extract(str(folder)), whole)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 4 images cannot be embedded"
    ]


def test_extract_refuses_a_folder_of_nothing_but_damaged_images(embedder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(VisdivError, match=r"none of the 1 image in .* can be decoded"):
        embedder.extract(tmp_path)


def test_extract_refuses_an_empty_folder_and_none_at_all(embedder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VisdivError, match=r"no image files in .* \(it is empty\)"):
        embedder.extract(tmp_path / "empty")
    with pytest.raises(VisdivError, match=r"no such file or directory: .*nowhere"):
        embedder.extract(tmp_path / "nowhere")


def test_the_torch_road_extracts_too(checkpoints, folder):
    embedder = SSCDEmbedder(checkpoints["torchvision"], device="cpu", batch_size=2)
    vectors = embedder.extract(folder)
    assert vectors.shape == (3, embedder.dimension) == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_the_quantised_model_needs_no_torch(photos):
    script = (
        "import sys; from pathlib import Path\n"
        "from visdiv_assets.embedding.embedder import SSCDEmbedder\n"
        "from visdiv_assets.embedding.preprocess import decode_image\n"
        "embedder = SSCDEmbedder()\n"
        "print(embedder.model_id, 'torch' in sys.modules)\n"
        "vectors = embedder.embed(decode_image(Path(sys.argv[1]).read_bytes())[None])\n"
        "print(vectors.shape, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, photos[0]], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"{SSCDEmbedder(ONNX_CHECKPOINT).model_id} False",
        "(1, 512) False",
    ]


def test_a_model_id_tells_checkpoint_digest_runtime_and_preprocessing(embedder):
    digest = embedder.weights.sha256[:12]
    assert embedder.model_id == f"sscd_disc_mixup_int8.{digest}.onnx-int8.{PREPROCESSING}"


def test_the_same_file_anywhere_has_the_same_model_id(weight_file):
    first, second = weight_file("a/sscd.pt"), weight_file("b/sscd.pt")
    assert SSCDEmbedder(first).model_id == SSCDEmbedder(second).model_id


def test_other_weights_have_another_model_id(weight_file):
    first, second = weight_file("a/sscd.pt", 1.0), weight_file("b/sscd.pt", 2.0)
    assert SSCDEmbedder(first).model_id != SSCDEmbedder(second).model_id


def test_each_precision_has_a_model_id_of_its_own(weight_file):
    path = weight_file("sscd.pt")
    ids = {SSCDEmbedder(path, precision=name).model_id for name in ("fp32", "bf16", "fp16")}
    assert len(ids) == 3
    assert SSCDEmbedder(path).model_id == SSCDEmbedder(path, precision="fp32").model_id


def test_batch_size_and_device_do_not_change_the_model_id(weight_file):
    path = weight_file("sscd.pt")
    other = SSCDEmbedder(path, device=["cpu", "cpu"], batch_size=3)
    assert other.model_id == SSCDEmbedder(path).model_id


@pytest.mark.parametrize("name", ["Grüße aus ../ .pt", ".pt", f"{'x' * 240}.pt", "a b:c*?.x.pt"])
def test_a_model_id_is_fit_for_a_folder_whatever_the_file_is_called(name, weight_file):
    model_id = SSCDEmbedder(weight_file(name)).model_id
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{1,199}", model_id)


def test_wrong_settings_show_before_any_image_is_looked_at(weight_file):
    path = weight_file("sscd.pt")
    with pytest.raises(VisdivError, match="not in int8"):
        SSCDEmbedder(path, precision="int8")
    with pytest.raises(VisdivError, match="'potato' is not a device"):
        SSCDEmbedder(path, device="potato")
    with pytest.raises(VisdivError, match="the list of devices is empty"):
        SSCDEmbedder(path, device=[])
    with pytest.raises(VisdivError, match="runs on the CPU only"):
        SSCDEmbedder(ONNX_CHECKPOINT, device="cuda")
    with pytest.raises(ValueError, match="batch_size must be positive; got 0"):
        SSCDEmbedder(path, batch_size=0)


def test_auto_on_a_gpu_means_the_official_weights_which_can_run_there(monkeypatch):
    asked = []

    def find(spec, **_):
        asked.append(spec)
        raise VisdivError("stop here")

    monkeypatch.setattr("visdiv_assets.embedding.embedder.find_weights", find)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "auto", "cuda", ["cuda:0", "cuda:1"]):
        with pytest.raises(VisdivError, match="stop here"):
            SSCDEmbedder(device=device)
    assert asked == ["auto", "auto", "sscd_disc_mixup", "sscd_disc_mixup"]
