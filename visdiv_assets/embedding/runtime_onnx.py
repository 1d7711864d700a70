"""SSCD quantised to int8, through ONNX Runtime on the CPU.

Here: running a model that maps uint8 pixels (B, H, W, 3) to unit vectors (B, D).
Not here: finding the model file.

Each CPU processes its own images. If CPUs shared an image, all of them would wait for the slowest
one after each of its seventy layers, and on a machine that also decodes, one is always delayed.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.preprocess import Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.errors import VisdivError

# Two images share the overhead of a call and of reading the weights; more overflow the caches.
IMAGES_A_CALL = 2


class OnnxRuntime:
    """An ONNX model on the CPU. Vectors are bit-identical for any batch size and thread count."""

    calls_at_once = 2  # CPUs start the next batch while the last images of one are running

    def __init__(self, path: Path, *, batch_size: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime's exceptions have no common base class except Exception.
            reason = " ".join(str(error).split())[:200]
            raise VisdivError(f"{path} cannot be loaded by ONNX Runtime: {reason}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or inputs[0].shape[3:] != [3]:
            raise VisdivError(f"{path} does not accept uint8 images of shape (B, H, W, 3)")
        if len(outputs) != 1 or [type(size) for size in outputs[0].shape[1:]] != [int]:
            raise VisdivError(f"{path} does not return vectors of a fixed dimension")
        self._input = inputs[0].name
        self.dimension = int(outputs[0].shape[-1])
        cpus = usable_cpus()
        self.batch_size = batch_size or max(8, IMAGES_A_CALL * cpus)
        self._threads = ThreadPoolExecutor(cpus, thread_name_prefix="onnx")
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU"

    def embed(self, pixels: Pixels | Sequence[Pixels]) -> Vectors:
        """B images of shape (H, W, 3), uint8 → (B, D) float32, L2 norm 1."""
        starts = range(0, len(pixels), IMAGES_A_CALL)
        parts = [pixels[start : start + IMAGES_A_CALL] for start in starts]
        return np.concatenate(list(self._threads.map(self._run, parts)))

    def _run(self, pixels: Pixels | Sequence[Pixels]) -> Vectors:
        vectors = self._session.run(None, {self._input: np.asarray(pixels)})[0]
        return np.asarray(vectors, dtype=np.float32)
