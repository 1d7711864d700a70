"""`SSCDEmbedder`: images in, unit vectors out, with any runtime.

Here: the object that knows weights, device, precision, batch size and the model id.
Not here: the store (`store/`), and skipping images that were embedded before (`incremental.py`).
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.embedding.pipeline import embed_stream
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, Pixels
from visdiv_assets.embedding.runtime import Runtime, Vectors
from visdiv_assets.embedding.runtimes import (
    check_gpus,
    device_names,
    load_runtime,
    resolve_precision,
    runtime_name,
    valid_devices,
)
from visdiv_assets.embedding.weights import DEFAULT_CHECKPOINT, OnDownload, Weights, find_weights
from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source

if TYPE_CHECKING:
    from visdiv_assets.embedding.gpu_decode import GpuDecoder

logger = logging.getLogger(__name__)


class SSCDEmbedder:
    """Turns images into SSCD descriptors.

    The constructor finds and hashes the weights, so errors appear early and `model_id` is known.
    The model is loaded with the first image, so a run in which everything is cached costs nothing.

    Args:
        weights: `auto` (the official weights if cached, else the installed int8 ONNX model, else
            a download), the path of a file, a URL, or the name of a published checkpoint.
        device: `auto` (all GPUs that the weights can use, else the CPU), `cpu`, `cuda`, `cuda:1`,
            or a list of devices that share the batches.
        batch_size: images per model call; None uses the device's default.
        precision: `auto` (fp16 on GPUs, else that of the weights), `fp32`, `bf16`, `fp16` or
            `int8`, if the weights support it.
        decoding: how images are decoded; None means as FineVision does it.
        on_download: called with the progress when weights are downloaded.

    Raises:
        VisdivError: weights are missing or invalid, or do not support the device or precision.

    References:
        Pizzi et al., "A self-supervised descriptor for image copy detection", CVPR 2022.

    Example:
        >>> embedder = SSCDEmbedder()                                  # doctest: +SKIP
        >>> embedder.extract("photos/").shape                          # doctest: +SKIP
        (213, 512)
    """

    def __init__(
        self,
        weights: str | Path = "auto",
        device: str | Sequence[str] = "auto",
        batch_size: int | None = None,
        precision: str = "auto",
        *,
        decoding: Decoding | None = None,
        on_download: OnDownload | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be positive; got {batch_size}")
        names = valid_devices(device)
        if weights == "auto" and any(name.startswith("cuda") for name in names):
            check_gpus(names)  # before weights are downloaded for one that is not there
            weights = DEFAULT_CHECKPOINT  # the installed int8 model runs on the CPU only
        self.weights: Weights = find_weights(str(weights), on_download=on_download)
        self._devices = device_names(self.weights, device)
        self.precision = resolve_precision(self.weights, precision, self._devices)
        self._batch_size = batch_size
        self.decoding = decoding or Decoding()
        if self.decoding.jpeg_on_gpu and self.weights.format == "onnx":
            raise VisdivError(
                f"{self.weights.checkpoint} runs on the CPU only, so JPEGs cannot be decoded on a "
                "GPU for it; set decode to cpu, or weights to an official checkpoint"
            )

    @property
    def model_id(self) -> str:
        """Checkpoint, weights digest, runtime and precision, preprocessing; also a folder name.

        Vectors with different model ids never mix.
        """
        digest = self.weights.sha256[:12]
        runtime = runtime_name(self.weights, self.precision)
        return f"{self.weights.checkpoint}.{digest}.{runtime}.{self.decoding.name}"

    @cached_property
    def runtime(self) -> Runtime:
        """The model, which is loaded on first use."""
        return load_runtime(
            self.weights,
            device=self._devices,
            precision=self.precision,
            batch_size=self._batch_size,
        )

    @property
    def dimension(self) -> int:
        """D; loads the model."""
        return self.runtime.dimension

    @property
    def batch_size(self) -> int:
        """Images per model call; loads the model."""
        return self.runtime.batch_size

    @property
    def calls_at_once(self) -> int:
        """Number of concurrent `embed` calls that keep the model busy; loads the model."""
        return self.runtime.calls_at_once

    def embed(self, pixels: Pixels | Sequence[Pixels]) -> Vectors:
        """Descriptors of decoded images.

        Args:
            pixels: B images of shape (320, 320, 3), uint8, B ≤ batch size; in a sequence, or in one
                array.

        Returns:
            shape (B, D), float32, L2 norm 1.
        """
        return self.runtime.embed(pixels)

    @cached_property
    def gpu_decoder(self) -> "GpuDecoder | None":
        """The decoder of JPEGs on the first GPU, if the settings ask for it.

        Raises:
            VisdivError: there is no GPU, or it cannot decode JPEG.
        """
        if not self.decoding.jpeg_on_gpu:
            return None
        from visdiv_assets.embedding.gpu_decode import GpuDecoder
        from visdiv_assets.embedding.runtime_torch import TorchRuntime

        assert isinstance(self.runtime, TorchRuntime)  # ONNX Runtime does not decode on GPUs
        device = self.runtime.devices[0]
        if device.type != "cuda":
            raise VisdivError("decode is set to gpu, but PyTorch finds no GPU; set decode to cpu")
        return GpuDecoder(device, self.decoding)

    def embed_encoded(
        self, images: Sequence[Pixels | bytes], otherwise: Callable[[bytes], Pixels]
    ) -> list[tuple[NDArray[np.float32], bool] | DecodeError]:
        """Descriptors of images, some of which are JPEGs for `gpu_decoder`, and which are flat.

        Args:
            images: at most `batch_size`; pixels of shape (320, 320, 3), or encoded bytes.
            otherwise: decodes the images that the GPU cannot decode.
        """
        if self.gpu_decoder is None:
            raise ValueError("only an embedder that decodes on a GPU accepts encoded images")
        squares, flat, failed = self.gpu_decoder.decode_all(images, otherwise)
        given = zip(self.runtime.embed(squares), flat, strict=True)
        return [failed.get(at, each) for at, each in enumerate(given)]

    def extract(self, path: str | Path) -> Vectors:
        """Descriptors of all images of a source, in the order of their ids.

        Images that cannot be decoded are left out with a warning; `visdiv score` and the Dagster
        assets list them one by one. Nothing is stored.

        Args:
            path: a folder, which is searched recursively, or any other source.

        Returns:
            shape (N, D), float32, L2 norm 1; N is the number of decodable images.

        Raises:
            VisdivError: there is no such source, or it contains no decodable image.
        """
        source = open_source(str(path))
        image_ids = list_images(source).table["image_id"].to_pylist()
        outcomes = embed_stream(source, image_ids, self)
        found = {each.at: each.vector for each in outcomes if each.vector is not None}
        vectors = [found[at] for at in sorted(found)]
        if len(vectors) < len(image_ids):
            failed = len(image_ids) - len(vectors)
            logger.warning("%d of %d images cannot be embedded", failed, len(image_ids))
        if not vectors:
            raise VisdivError(
                f"none of the {counted(len(image_ids), 'image')} in {path} can be decoded"
            )
        return np.stack(vectors)
