"""SSCD a second time, from Meta's description and plain torchvision, sharing no code with ours."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import resnet50


class GeM(nn.Module):
    """Generalised mean over height and width, with p = 3."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)


class Reference(nn.Module):
    """What facebookresearch/sscd-copy-detection calls `Model("TV_RESNET50", dimension, 3)`."""

    def __init__(self, dimension: int = 512) -> None:
        super().__init__()
        self.backbone = resnet50(num_classes=dimension)
        self.backbone.avgpool = GeM()

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.backbone(images))


def preprocess(paths: Sequence[Path], side: int = 320) -> Tensor:
    """Images as FineVision gives them to SSCD: (N, 3, side, side)."""
    steps = transforms.Compose(
        [
            transforms.Resize((side, side)),
            transforms.ToTensor(),
            transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    return torch.stack([steps(Image.open(path).convert("RGB")) for path in paths])


def random_reference(examples: Tensor) -> Reference:
    """A model with seeded random weights that tells images apart.

    Batch norms take the statistics of the examples, so that activations neither vanish nor
    explode in 50 layers. Each block adds little to what it was given, since deep random layers
    blow up rounding errors as trained ones do not. The last bias takes away what all examples
    have in common, without which all descriptors would point the same way.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Reference()
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                scale = 0.25 if name.endswith("bn3") else 1.0
                nn.init.uniform_(module.weight, 0.5 * scale, 1.5 * scale)
                nn.init.normal_(module.bias, std=0.1)
                module.momentum = None  # the running statistics become those of all batches seen
        model.train()
        model(examples)
        model.eval()
        model.backbone.fc.bias -= model.backbone(examples).mean(dim=0)
    return model
