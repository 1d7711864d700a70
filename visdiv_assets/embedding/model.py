"""SSCD as a torch module: ResNet-50 trunk, GeM pooling, linear head, L2 norm.

Here: the architecture and loading its weights. Not here: devices, batches, precision.
"""

import itertools
import warnings
import zipfile
from pathlib import Path

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
