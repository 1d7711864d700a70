"""SSCD quantised to int8, through ONNX Runtime on the CPU.

Here: running a model that takes uint8 pixels (B, H, W, 3) and gives unit vectors (B, D).
Not here: finding the model file.
"""

from pathlib import Path

import numpy as np
import onnxruntime

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.preprocess import Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.errors import VisdivError


class OnnxRuntime:
    """An ONNX model on the CPU. Bit-equal vectors whatever the batch size and thread count."""

    def __init__(self, path: Path, *, batch_size: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cpus()
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
        self.batch_size = batch_size or 8
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU"

    def embed(self, pixels: Pixels) -> Vectors:
        """(B, H, W, 3) uint8 → (B, D) float32, L2 norm 1."""
        vectors = self._session.run(None, {self._input: pixels})[0]
        return np.asarray(vectors, dtype=np.float32)
