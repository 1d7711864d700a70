"""SSCD quantised to int8, through ONNX Runtime on the CPU.

Here: running a model that takes uint8 pixels (B, H, W, 3) and gives unit vectors (B, D).
Not here: finding the model file.

Each CPU works on images of its own. Had they one image in common, all would wait after each of its
seventy layers for the one that was held up last, and on a machine that also decodes, one always is.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.preprocess import Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.errors import VisdivError

# Two share the cost of a call's start and of reading the weights; more leave the caches.
IMAGES_A_CALL = 2


class OnnxRuntime:
    """An ONNX model on the CPU. Bit-equal vectors whatever the batch size and thread count."""

    calls_at_once = 2  # while the last images of one batch are at work, CPUs begin with the next

    def __init__(self, path: Path, *, batch_size: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            reason = " ".join(str(error).split())[:200]
            raise VisdivError(f"{path} cannot be loaded by ONNX Runtime: {reason}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or inputs[0].shape[3:] != [3]:
            raise VisdivError(f"{path} does not take images as uint8 of shape (B, H, W, 3)")
        if len(outputs) != 1 or [type(size) for size in outputs[0].shape[1:]] != [int]:
            raise VisdivError(f"{path} does not give vectors of a fixed dimension")
        self._input = inputs[0].name
        self.dimension = int(outputs[0].shape[-1])
        cpus = usable_cpus()
        self.batch_size = batch_size or max(8, IMAGES_A_CALL * cpus)
        self._threads = ThreadPoolExecutor(cpus, thread_name_prefix="onnx")
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU"

    def embed(self, pixels: Pixels) -> Vectors:
        """(B, H, W, 3) uint8 → (B, D) float32, L2 norm 1."""
        starts = range(0, len(pixels), IMAGES_A_CALL)
        parts = [pixels[start : start + IMAGES_A_CALL] for start in starts]
        return np.concatenate(list(self._threads.map(self._run, parts)))

    def _run(self, pixels: Pixels) -> Vectors:
        vectors = self._session.run(None, {self._input: pixels})[0]
        return np.asarray(vectors, dtype=np.float32)
