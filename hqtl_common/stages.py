"""The classical stages of a bundle as ONNX Runtime sessions: array in, array out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hqtl_common.errors import BundleFormatError, ConfigError, ShapeError

__all__ = ["Stage", "available_cores"]

_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


class Stage:
    """One ONNX model with one input (B, …) and one output (B, …); safe to call from several threads.

    Args:
        model: The serialised ONNX model. Bytes and not a path: what was hashed is what runs.
        name: Name used in messages.
        threads: Threads of ONNX Runtime (default: the cores this process may use).
        providers: ONNX Runtime's execution providers in order of preference.

    Raises:
        BundleFormatError: ONNX Runtime cannot load the model, or it has another number of inputs or outputs.
        ConfigError: A provider is not part of the installed ONNX Runtime.
    """

    def __init__(
        self, model: bytes, name: str, *, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        missing = [provider for provider in providers if provider not in onnxruntime.get_available_providers()]
        if missing:
            raise ConfigError(f"ONNX Runtime has no {', '.join(missing)}; it has {', '.join(onnxruntime.get_available_providers())}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.name = name
        try:
            self._ort_session = onnxruntime.InferenceSession(model, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleFormatError(f"ONNX Runtime cannot load {name}: {error}") from error
        inputs, outputs = self._ort_session.get_inputs(), self._ort_session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type not in _DTYPES:
            raise BundleFormatError(f"{name} must have one float input and one output; it has {len(inputs)} and {len(outputs)}")
        self._input, self._output = inputs[0].name, outputs[0].name
        self._dtype = _DTYPES[inputs[0].type]
        self.input_shape: tuple[int, ...] = tuple(inputs[0].shape[1:])
        self.output_shape: tuple[int, ...] = tuple(outputs[0].shape[1:])

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Run the stage on (B, *input_shape); an empty batch gives an empty answer.

        Raises:
            ShapeError: Another shape.
        """
        if batch.ndim != len(self.input_shape) + 1 or batch.shape[1:] != self.input_shape:
            raise ShapeError(f"{self.name} expects the shape (B, {', '.join(map(str, self.input_shape))}); got {batch.shape}")
        if not len(batch):
            return np.zeros((0, *self.output_shape), dtype=self._dtype)
        outputs = self._ort_session.run([self._output], {self._input: np.ascontiguousarray(batch, dtype=self._dtype)})
        answer: NDArray[Any] = outputs[0]
        return answer


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
