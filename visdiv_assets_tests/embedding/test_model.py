"""The architecture, and loading files that hold it, or do not."""

import pickle

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from visdiv_assets.embedding.model import (
    GeneralizedMeanPool,
    fold_batch_norms,
    load_sscd,
    load_torchscript,
)
from visdiv_assets.errors import VisdivError
from visdiv_assets_tests.embedding.reference import preprocess


class Code:
    """Pickled, this is an order to call `print` on loading."""

    def __reduce__(self):
        return print, ("code in a weight file was run",)


def refusal(load, path):
    """The message of the error that a file provokes, which is one line and names the file."""
    with pytest.raises(VisdivError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) - len(str(path)) < 300
    return message


def test_a_state_dict_gives_the_model_that_plain_torchvision_gives(checkpoints, reference, photos):
    images = preprocess(photos[:2])
    with torch.inference_mode():
        ours, theirs = load_sscd(checkpoints["torchvision"])(images), reference(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_random_model_of_these_tests_tells_photographs_apart(reference, photos):
    with torch.inference_mode():
        vectors = reference(preprocess(photos[:4], side=160))
    cosines = (vectors @ vectors.T)[~torch.eye(4, dtype=torch.bool)]
    assert cosines.abs().max() < 0.9


def test_folded_batch_norms_leave_convolutions_alone_and_change_vectors_by_rounding(
    checkpoints, photos
):
    images = preprocess(photos[:2], side=160)
    model = load_sscd(checkpoints["torchvision"])
    with torch.inference_mode():
        as_trained = model(images)
    fold_batch_norms(model)
    with torch.inference_mode():
        folded = model(images)
    kinds = [type(module) for module in model.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.Conv2d) == 53
    torch.testing.assert_close(folded, as_trained, rtol=0, atol=2e-6)


def test_a_head_of_1024_gives_vectors_of_1024(reference, big_files):
    state = reference.state_dict()
    state["backbone.fc.weight"] = state["backbone.fc.weight"].repeat(2, 1)
    state["backbone.fc.bias"] = state["backbone.fc.bias"].repeat(2)
    torch.save(state, big_files / "large.pt")
    with torch.inference_mode():
        vectors = load_sscd(big_files / "large.pt")(torch.zeros(1, 3, 64, 64))
    assert vectors.shape == (1, 1024)
    assert vectors.norm() == pytest.approx(1)


def test_gem_pooling_is_the_cube_root_of_the_mean_cube():
    features = torch.tensor([1.0, 2.0, 3.0, -4.0]).reshape(1, 1, 2, 2)
    expected = ((1 + 8 + 27 + 0) / 4) ** (1 / 3)
    assert GeneralizedMeanPool()(features).item() == pytest.approx(expected)


def test_gem_pooling_keeps_small_values_in_half_precision():
    features = torch.full((1, 1, 2, 2), 1e-4, dtype=torch.float16)
    pooled = GeneralizedMeanPool()(features)
    assert pooled.dtype == torch.float16
    assert pooled.item() == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("legacy", [True, False], ids=["pickle", "archive"])
def test_code_in_a_weight_file_is_refused_and_not_run(legacy, tmp_path, capsys):
    path = tmp_path / "sscd.pt"
    content = {"backbone.fc.weight": Code()}
    if legacy:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    assert "never loaded" in refusal(load_sscd, path)
    assert capsys.readouterr().out == ""


def test_the_refusal_of_code_does_not_advise_to_run_it(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "weights_only" not in refusal(load_sscd, tmp_path / "module.pt")


@pytest.mark.parametrize("load", [load_sscd, load_torchscript])
@pytest.mark.parametrize(
    "content", [b"", b"hello there, I am a text\n", b"PK\x03\x04", b"\x80\x02"]
)
def test_a_file_that_is_no_model_is_refused(load, content, tmp_path):
    path = tmp_path / "sscd.pt"
    path.write_bytes(content)
    refusal(load, path)


@pytest.mark.parametrize(
    ("load", "kind"), [(load_sscd, "torchvision"), (load_torchscript, "torchscript")]
)
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_truncated_model_is_refused(load, kind, kept, checkpoints, big_files):
    path = big_files / "sscd.pt"
    content = checkpoints[kind].read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refusal(load, path)


def test_a_state_dict_is_not_torchscript(checkpoints):
    refusal(load_torchscript, checkpoints["torchvision"])


@pytest.mark.parametrize(
    "content",
    [
        {
            f"backbone.{name}": tensor
            for name, tensor in resnet18(num_classes=512).state_dict().items()
        },
        {"backbone.fc.weight": torch.zeros(512, 2048)},
        {"backbone.fc.weight": torch.zeros(512, 2048), 3: torch.zeros(1)},
        {"backbone.fc.weight": torch.zeros(2048)},
        {"backbone.fc.weight": "a text"},
        [torch.zeros(512, 2048)],
        torch.zeros(512, 2048),
    ],
    ids=["resnet18", "head only", "odd names", "flat head", "text", "list", "tensor"],
)
def test_weights_of_another_model_are_refused(content, big_files):
    path = big_files / "other.pt"
    torch.save(content, path)
    assert "is not an SSCD ResNet-50" in refusal(load_sscd, path)
