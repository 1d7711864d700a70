"""What channels-last, folded batch norms and bfloat16 gain on a CPU, and what they cost.

    .venv/bin/python -m benchmarks.torch_cpu [--repeats 5]

Images/s of the model alone, on photographs decoded already, all variants in turn in each repeat,
medians; and the smallest cosine to what the model as published gives. The weights are the official
ones where they are cached, else random. Takes about two minutes on two cores.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.gpu import machine, photographs, weights_at_hand
from visdiv_assets.embedding.model import load_sscd
from visdiv_assets.embedding.preprocess import Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.embedding.runtime_torch import IMAGENET_MEAN, IMAGENET_STD, TorchRuntime
from visdiv_assets.embedding.weights import Weights

BATCH = 8


def as_published(weights: Weights) -> Callable[[Pixels], Vectors]:
    """The model as it is loaded: batch norms, float32, channels first."""
    model = load_sscd(weights.path)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))

    @torch.inference_mode()
    def embed(pixels: Pixels) -> Vectors:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)
        vectors: Vectors = model(images.contiguous()).numpy()
        return vectors

    return embed


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repeats", type=int, default=5)
    repeats = arguments.parse_args().repeats
    pixels = photographs(count=2 * BATCH)
    batches = [pixels[:BATCH], pixels[BATCH:]]
    with TemporaryDirectory() as folder:
        weights = weights_at_hand(Path(folder))
        variants = {"as published": as_published(weights)}
        for precision in ("fp32", "bf16"):
            runtime = TorchRuntime(weights, devices=["cpu"], precision=precision, batch_size=BATCH)
            variants[f"folded, channels-last, {precision}"] = runtime.embed
    vectors = {name: np.concatenate([*map(embed, batches)]) for name, embed in variants.items()}
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, embed in variants.items():
            begin = time.perf_counter()
            for batch in batches:
                embed(batch)
            rates[name].append(len(pixels) / (time.perf_counter() - begin))

    published = vectors["as published"]
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{weights.checkpoint}; {machine('cpu')}, {capability}")
    print(f"{'':28}  images/s    gain  smallest cosine")
    for name, found in rates.items():
        gain = statistics.median(
            ours / theirs for ours, theirs in zip(found, rates["as published"], strict=True)
        )
        cosine = np.sum(vectors[name] * published, axis=1).min()
        print(f"{name:28}  {statistics.median(found):8.1f}  {gain:5.2f} ×  {cosine:.6f}")


if __name__ == "__main__":
    main()
