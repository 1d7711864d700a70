"""SSCD as a torch module: ResNet-50 trunk, GeM pooling, linear head, L2 norm.

Here: the architecture and loading its weights. Not here: devices, batches, precision.
"""

import itertools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet50

from visdiv_assets.errors import VisdivError

TRUNK_CHANNELS = 2048


class GeneralizedMeanPool(nn.Module):
    """GeM pooling: `(mean(max(x, ε)ᵖ))^(1/p)` over height and width.

    Args:
        p: 1 is average pooling, ∞ is maximum pooling; SSCD uses 3.
        eps: lower clamp; computed in float32, since εᵖ = 1e-18 underflows in float16.

    References:
        Radenović et al., "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2018.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = p
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C)."""
        powers = features.float().clamp(min=self.eps).pow(self.p)
        return powers.mean(dim=(2, 3)).pow(1.0 / self.p).to(features.dtype)


class SSCD(nn.Module):
    """Images → unit vectors: (N, 3, H, W), normalised as for ImageNet → (N, D), L2 norm 1.

    Module names are those of Meta's checkpoints (`backbone.…`), so the checkpoints load directly.

    References:
        Pizzi et al., "A self-supervised descriptor for image copy detection", CVPR 2022.
    """

    def __init__(self, dimension: int = 512) -> None:
        super().__init__()
        self.backbone = resnet50(weights=None, num_classes=dimension)
        self.backbone.avgpool = GeneralizedMeanPool()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, D) unit vectors."""
        return F.normalize(self.backbone(images).float())


def load_sscd(path: Path) -> SSCD:
    """Build the model for a `.torchvision.pt` state dict and load it, without running its code.

    Raises:
        VisdivError: the file is damaged, or is not the state dict of an SSCD ResNet-50.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged pickle may raise anything: UnpicklingError, RuntimeError, EOFError, KeyError.
        # PyTorch's message is left out, because it tells users to turn the protection off.
        raise VisdivError(
            f"{path} cannot be loaded as a state dict: it is damaged, or contains objects other "
            "than tensors, which are never loaded"
        ) from error
    head = state.get("backbone.fc.weight") if isinstance(state, dict) else None
    if not isinstance(head, Tensor) or head.ndim != 2 or head.shape[1] != TRUNK_CHANNELS:
        raise VisdivError(
            f"{path} is not an SSCD ResNet-50: it has no backbone.fc.weight of shape "
            f"(D, {TRUNK_CHANNELS})"
        )
    model = SSCD(dimension=head.shape[0])
    try:
        model.load_state_dict(state)
    except Exception as error:
        # RuntimeError for missing names and wrong shapes, others for names that are not strings.
        raise VisdivError(f"{path} is not an SSCD ResNet-50: {_line(error)}") from error
    return model.eval()


def fold_batch_norms(model: SSCD) -> None:
    """Fold every batch norm into the convolution before it, in place.

    With fixed statistics, a batch norm is a factor and an offset per channel, which the weights
    and the bias of the convolution can absorb. Vectors change only by rounding, about 1e-6 in
    float32. Fold in float32, before any cast.

    References:
        Jacob et al., "Quantization and training of neural networks for efficient
        integer-arithmetic-only inference", CVPR 2018, section 3.2.
    """
    for module in model.modules():
        # ResNet registers its layers in execution order.
        for (before, conv), (after, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())


class FusedSSCD(nn.Module):
    """A folded SSCD whose convolutions end with bias, addition and ReLU, for NVIDIA GPUs.

    There, the model is limited by memory, not by arithmetic. As single kernels, additions and ReLUs
    read and write every activation again, which takes longer than all convolutions.

    Args:
        model: an SSCD after `fold_batch_norms`; its weights are shared, and it gives the same
            vectors but for rounding. The bias of each shortcut moves to the convolution that it is
            added to.

    References:
        NVIDIA, cuDNN developer guide, "Graph API", runtime fusion of convolution and pointwise
        operations.
    """

    def __init__(self, model: SSCD) -> None:
        super().__init__()
        self.plain = model
        for block in self._blocks():
            if block.downsample is not None and block.downsample[0].bias is not None:
                block.conv3.bias.data += block.downsample[0].bias.data
                block.downsample[0].bias = None

    def _blocks(self) -> Iterator[Any]:
        net = self.plain.backbone
        return itertools.chain(net.layer1, net.layer2, net.layer3, net.layer4)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, D) unit vectors.

        Raises:
            RuntimeError: the images are not on an NVIDIA GPU, or its cuDNN has no such kernels.
        """
        net = self.plain.backbone
        features = net.maxpool(_convolved(net.conv1, images))
        for block in self._blocks():
            shortcut = features if block.downsample is None else block.downsample(features)
            features = _convolved(block.conv2, _convolved(block.conv1, features))
            features = _convolved(block.conv3, features, shortcut)
        return F.normalize(net.fc(net.avgpool(features)).float())


def _convolved(conv: nn.Conv2d, images: Tensor, addend: Tensor | None = None) -> Tensor:
    """ReLU of the convolution, with an addend if there is one."""
    assert not isinstance(conv.padding, str)
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if addend is None:
        return torch.cudnn_convolution_relu(images, conv.weight, conv.bias, *geometry)
    return torch.cudnn_convolution_add_relu(images, conv.weight, addend, 1.0, conv.bias, *geometry)


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load Meta's `.torchscript.pt`.

    Raises:
        VisdivError: the file is damaged or not TorchScript.
    """
    if not zipfile.is_zipfile(path):
        raise VisdivError(f"{path} is not a TorchScript file")
    try:
        with warnings.catch_warnings():
            # Deprecated since PyTorch 2.11; users cannot act on the warning.
            warnings.simplefilter("ignore")
            model: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu"
            )
    except (RuntimeError, ValueError) as error:
        raise VisdivError(f"{path} cannot be loaded as TorchScript: {_line(error)}") from error
    model.eval()
    return model


def _line(error: Exception) -> str:
    """The start of PyTorch's message; the rest lists every tensor."""
    return " ".join(str(error).split())[:200]
