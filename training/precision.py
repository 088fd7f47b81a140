"""Backbones that compute with less precision: how they are made, what they change, and how much faster they are here.

``int8``: static quantisation to QDQ form (Wu et al. 2020, arXiv:2004.09602), weights per channel, the ranges of the activations
from training images; it gains where the processor multiplies bytes (VNNI). ``fp16`` is for graphics cards: on a processor
ONNX Runtime computes it as float32. There is no bfloat16: ONNX Runtime has no convolution of it.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import decide, softmax
from hqtl_common.errors import ParityError
from hqtl_common.manifest import PrecisionChange
from hqtl_common.stages import Stage

__all__ = ["FULL", "PRECISIONS", "Speed", "check_drop", "compare_logits", "measure_speed", "reduce_backbone"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FULL = "fp32"
PRECISIONS = (FULL, "fp16", "int8")
_BATCH, _REPEATS = 8, 5


@dataclass(frozen=True, slots=True)
class Speed:
    """Images per second of the backbone alone, in batches of eight on all cores of this machine."""

    fp32: float
    reduced: float

    @property
    def ratio(self) -> float:
        """How many times as fast the reduced backbone is."""
        return self.reduced / self.fp32


def reduce_backbone(backbone: bytes, precision: str, batches: Iterable[F32] = ()) -> tuple[bytes, str]:
    """A backbone of the same input and output that computes with less precision, and how it was made.

    Args:
        backbone: ONNX model in float32.
        precision: ``fp16`` or ``int8``.
        batches: Pixels (B, 3, S, S) of training images, for int8.
    """
    model = onnx.load_model_from_string(backbone)
    with _quiet():
        reduced, method = _to_fp16(model) if precision == "fp16" else _to_int8(model, batches)
    for part in (reduced, reduced.graph, *reduced.graph.node, *reduced.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    data: bytes = reduced.SerializeToString(deterministic=True)
    return data, method


def compare_logits(
    reduced: F64, fp32: F64, truth: NDArray[np.intp], temperature: float, threshold: float | None, positive: int
) -> PrecisionChange:
    """What changes on images.

    Args:
        reduced: (B, C) logits by the reduced backbone.
        fp32: (B, C) logits by the one it was made from.
        truth: (B,) positions of the true classes.
        temperature: Divisor of the logits.
        threshold: Probability from which the positive label is given; None with more than two classes.
        positive: Position of the positive label.
    """
    after, before = softmax(reduced / temperature), softmax(fp32 / temperature)
    labels, labels_fp32 = decide(after, positive, threshold), decide(before, positive, threshold)
    return PrecisionChange(
        num_images=len(truth),
        accuracy=_short(float((labels == truth).mean())),
        accuracy_fp32=_short(float((labels_fp32 == truth).mean())),
        changed_labels=int((labels != labels_fp32).sum()),
        max_change=_short(float(np.abs(after - before).max())),
    )


def check_drop(change: PrecisionChange, max_drop: float, name: str) -> None:
    """Refuse a backbone that loses more accuracy than is accepted; one image more is never too many.

    Raises:
        ParityError: It does.
    """
    lost = round((change.accuracy_fp32 - change.accuracy) * change.num_images)
    if lost > max(1, int(max_drop * change.num_images)):
        raise ParityError(
            f"{name} would be right on {lost} of {change.num_images} images fewer than fp32 (accuracy {change.accuracy:.3f}, fp32 "
            f"{change.accuracy_fp32:.3f}), more than a drop of {max_drop:g}: keep fp32, or accept it with --max-accuracy-drop"
        )


def measure_speed(bundle: ModelBundle) -> Speed:
    """The backbone of a bundle beside the one in float32, in turns; the median of the repeats counts."""
    pixels = np.random.default_rng(0).normal(size=(_BATCH, *bundle.preprocess.pixels_shape)).astype(np.float32)
    stages = {"fp32": Stage(bundle.backbone_fp32, "fp32"), "reduced": Stage(bundle.read("backbone.onnx"), "reduced")}
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for repeat in range(1 + _REPEATS):
        for name, stage in stages.items():
            started = time.perf_counter()
            stage(pixels)
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    return Speed(**{name: _BATCH / statistics.median(values) for name, values in seconds.items()})


def _to_fp16(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True), "weights and activations in float16, input and output in float32"


def _to_int8(model: onnx.ModelProto, batches: Iterable[F32]) -> tuple[onnx.ModelProto, str]:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    reader = _Reader(model.graph.input[0].name, batches)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "int8.onnx")
        quantize_static(
            model,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            calibrate_method=CalibrationMethod.MinMax,
            activation_type=QuantType.QUInt8,  # with weights of the other kind the fastest on x86-64
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return onnx.load(target), f"static QDQ, weights per channel, ranges from {reader.count} training images"


class _Reader:
    """Gives the quantiser its images; see ``onnxruntime.quantization.CalibrationDataReader``."""

    def __init__(self, name: str, batches: Iterable[F32]) -> None:
        self._name, self._batches = name, iter(batches)
        self.count = 0

    def get_next(self) -> dict[str, Any] | None:
        pixels = next(self._batches, None)
        if pixels is None:
            return None
        self.count += len(pixels)
        return {self._name: pixels}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converters warn of what does not concern us: of a missing preparation, and of weights too small for float16."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
