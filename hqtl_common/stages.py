"""The classical stages of a bundle as ONNX Runtime sessions: array in, array out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hqtl_common.errors import BundleFormatError, ConfigError, ShapeError
from hqtl_common.providers import CPU, PROVIDERS, check_provider_names

__all__ = ["Stage", "available_cores"]

_NEEDS = {
    "cuda": "onnxruntime-gpu in place of onnxruntime, and the CUDA and cuDNN libraries of its release",
    "tensorrt": "onnxruntime-gpu in place of onnxruntime, and the CUDA, cuDNN and TensorRT libraries of its release",
}
_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


class Stage:
    """One ONNX model with one input (B, …) and one output (B, …); safe to call from several threads.

    Args:
        model: The serialised ONNX model. Bytes and not a path: what was hashed is what runs.
        name: Name used in messages.
        threads: Threads of ONNX Runtime (default: the cores this process may use).
        providers: Where it computes, see :data:`hqtl_common.providers.PROVIDERS`; the preferred one first.
        max_batch: Rows of the largest batch that TensorRT prepares for.

    Raises:
        BundleFormatError: ONNX Runtime cannot load the model, or it has another number of inputs or outputs.
        ConfigError: A provider is unknown, not part of the installed ONNX Runtime, or does not start.
    """

    def __init__(self, model: bytes, name: str, *, threads: int | None = None, providers: Sequence[str] = CPU, max_batch: int = 32) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # between two calls the cores are somebody else's
        self.name, self.providers = name, tuple(providers)
        self._ort_session = _open_session(model, name, options, providers, max_batch)
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


def _open_session(
    model: bytes, name: str, options: onnxruntime.SessionOptions, providers: Sequence[str], max_batch: int
) -> onnxruntime.InferenceSession:
    """A session that computes where it was told to; what the first provider cannot compute goes to the next, and at last to the processor.

    Left alone, ONNX Runtime goes on with the processor where a graphics card cannot be used, and says so on standard output at most.
    """
    check_provider_names(providers)
    available = onnxruntime.get_available_providers()
    for provider in providers:
        if PROVIDERS[provider] not in available:
            raise ConfigError(
                f"the installed ONNX Runtime has no {PROVIDERS[provider]} (it has {', '.join(available)}): "
                f"install {_NEEDS.get(provider, 'onnxruntime')}, or leave out the provider {provider!r}"
            )
    chosen = [(PROVIDERS[provider], _options_of(provider, model, name, max_batch)) for provider in providers]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        if tuple(providers) == CPU or not _loads(model, options):
            raise BundleFormatError(f"ONNX Runtime cannot load {name}: {error}") from error
        raise _not_started(providers, " ".join(str(error).split())) from error
    if missing := [provider for provider in providers if PROVIDERS[provider] not in session.get_providers()]:
        raise _not_started(missing, "its own lines on standard error say why")
    return session


def _loads(model: bytes, options: onnxruntime.SessionOptions) -> bool:
    """Whether the processor could run the model, so that the fault lies with the providers."""
    try:
        onnxruntime.InferenceSession(model, options, providers=[PROVIDERS["cpu"]], enable_fallback=0)
    except Exception:
        return False
    return True


def _not_started(providers: Sequence[str], reason: str) -> ConfigError:
    needs = _NEEDS.get(providers[0], "its libraries")
    return ConfigError(f"ONNX Runtime could not start {', '.join(providers)}: {reason}; needed are a device that works, {needs}")


def _options_of(provider: str, model: bytes, name: str, max_batch: int) -> dict[str, Any]:
    if provider == "cuda":
        # Full float32, so that it stays within the tolerance of verify; and no search for the best algorithm at each new size of a batch.
        return {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    return _tensorrt_profile(model, name, max_batch) if provider == "tensorrt" else {}


def _tensorrt_profile(model: bytes, name: str, max_batch: int) -> dict[str, str]:
    """One engine for every batch up to the largest; otherwise one is built, for minutes, whenever a batch has another size."""
    import onnx

    try:
        (value,) = onnx.load_model_from_string(model).graph.input
    except Exception as error:  # protobuf's DecodeError has no public stable base
        raise BundleFormatError(f"{name} is not an ONNX model of one input: {error}") from error
    rest = [str(dimension.dim_value) for dimension in value.type.tensor_type.shape.dim[1:]]
    shapes = {"min": 1, "opt": max_batch, "max": max_batch}
    return {f"trt_profile_{kind}_shapes": f"{value.name}:{'x'.join([str(rows), *rest])}" for kind, rows in shapes.items()}
