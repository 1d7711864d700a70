"""Which runtime, device and precision a setting means for given weights."""

from pathlib import Path

import pytest
import torch

from visdiv_assets.embedding import runtimes
from visdiv_assets.embedding.runtimes import (
    device_names,
    load_runtime,
    resolve_precision,
    runtime_name,
)
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT, Weights, find_weights
from visdiv_assets.errors import VisdivError

FORMATS = ("torchvision", "torchscript", "onnx")


def weights(kind):
    return Weights("sscd_test", Path("sscd_test.pt"), kind, "0" * 64)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("torchvision", "torch-fp32"), ("torchscript", "torch-fp32"), ("onnx", "onnx-int8")],
)
def test_each_format_has_a_precision_of_its_own(kind, name):
    assert runtime_name(weights(kind), resolve_precision(weights(kind), "auto")) == name


@pytest.mark.parametrize(
    ("kind", "devices", "precision"),
    [
        ("torchvision", ["cuda"], "fp16"),
        ("torchvision", ["cuda:0", "cuda:1"], "fp16"),
        ("torchvision", ["cpu", "cuda:0"], "fp32"),
        ("torchvision", ["cpu"], "fp32"),
        ("torchscript", ["cuda"], "fp32"),
    ],
)
def test_on_gpus_alone_a_state_dict_runs_in_float16(kind, devices, precision):
    assert resolve_precision(weights(kind), "auto", devices) == precision
    assert resolve_precision(weights(kind), "fp32", devices) == "fp32"


@pytest.mark.parametrize(("available", "precision"), [(True, "fp16"), (False, "fp32")])
def test_automatic_devices_run_in_float16_where_there_is_a_gpu(available, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_precision(weights("torchvision"), "auto", ["auto"]) == precision
    assert resolve_precision(weights("onnx"), "auto", ["auto"]) == "int8"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_state_dict_runs_in_every_floating_point_precision(precision):
    assert resolve_precision(weights("torchvision"), precision) == precision


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("torchvision", "int8"),
        ("torchvision", "fp64"),
        ("torchscript", "bf16"),
        ("torchscript", "int8"),
        ("onnx", "fp32"),
    ],
)
def test_a_precision_that_weights_do_not_have_is_refused(kind, precision):
    with pytest.raises(VisdivError, match=f"runs in .*, not in {precision}"):
        resolve_precision(weights(kind), precision)


@pytest.mark.parametrize("kind", FORMATS)
def test_one_device_or_several_may_be_named(kind):
    assert device_names(weights(kind), "cpu") == ["cpu"]
    assert device_names(weights(kind), ("cpu", "cpu")) == ["cpu", "cpu"]
    assert device_names(weights(kind), "auto") == ["auto"]
    assert device_names(weights(kind), ["auto"]) == ["auto"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "device", ["potato", "", "cuda:", "cuda:-1", "cuda:x", "CPU", "mps", "meta"]
)
def test_nonsense_is_not_a_device(kind, device):
    for setting in (device, ["cpu", device]):
        with pytest.raises(VisdivError, match=f"'{device}' is not a device; use"):
            device_names(weights(kind), setting)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_list_of_devices_is_refused(kind):
    with pytest.raises(VisdivError, match="the list of devices is empty"):
        device_names(weights(kind), [])


@pytest.mark.parametrize("kind", FORMATS)
def test_auto_stands_alone(kind):
    with pytest.raises(VisdivError, match="auto cannot be combined with others"):
        device_names(weights(kind), ["auto", "cpu"])


@pytest.mark.parametrize("device", ["cuda", "cuda:1", ["cpu", "cuda:0"]])
def test_the_quantised_model_is_refused_on_a_gpu(device):
    with pytest.raises(VisdivError, match=r"runs on the CPU only; .* sscd_disc_mixup"):
        device_names(weights("onnx"), device)


def test_an_onnx_file_without_onnx_runtime_says_what_to_install(without_onnx):
    with pytest.raises(VisdivError, match=r"pip install 'visdiv_assets\[onnx\]'"):
        load_runtime(weights("onnx"), device="cpu", precision="int8", batch_size=None)


@pytest.mark.parametrize(
    ("device", "found", "lines"),
    [("auto", "nvidia0", 1), ("auto", "tty0", 0), ("cpu", "nvidia0", 0)],
)
def test_a_gpu_that_the_weights_at_hand_cannot_use_is_told_in_one_line(
    device, found, lines, tmp_path, monkeypatch, caplog
):
    (tmp_path / found).touch()
    monkeypatch.setattr(runtimes, "DEVICES", tmp_path)
    installed = find_weights(ONNX_CHECKPOINT)
    load_runtime(installed, device=device, precision="int8", batch_size=None)
    assert len(caplog.messages) == lines
    assert all("set weights to sscd_disc_mixup" in line for line in caplog.messages)
