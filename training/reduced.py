"""The reduced backbone of a run: calibrated on its training images, and the features that it gives on all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import InputError
from hqtl_common.manifest import Manifest, PrecisionInfo
from hqtl_common.stages import Stage
from training.console import Advance, progress_bar
from training.data import SPLIT_NAMES, Sample
from training.decode import decode_batches
from training.precision import check_drop, compare_logits, reduce_backbone
from training.prepare import read_source
from training.trained import SplitFeatures, TrainedRun

__all__ = ["ReducedRun", "reduce_run"]

F32 = NDArray[np.float32]

_NUM_CALIBRATION = 128
_BATCH = 16


@dataclass(frozen=True, slots=True)
class ReducedRun:
    """A reduced backbone on the images of its run.

    Args:
        precision: What it computes with.
        backbone: As ONNX.
        method: How it was made.
        splits: Its features of the run's own splits.
    """

    precision: Literal["fp16", "int8"]
    backbone: bytes
    method: str
    splits: dict[str, SplitFeatures]

    def describe(self, run: TrainedRun, manifest: Manifest, fp32: dict[str, SplitFeatures], max_drop: float) -> PrecisionInfo:
        """What the manifest says of it.

        Args:
            run: The run.
            manifest: With the calibration in effect.
            fp32: Features by the backbone in float32.
            max_drop: The loss of accuracy on the validation split that is accepted.

        Raises:
            ParityError: It loses more.
        """
        applied = manifest.applied_to("statevector", None, noise_free=True)
        positive = manifest.labels.index(manifest.positive_label)
        changes = {}
        for name in ("val", "test"):
            logits, logits_fp32 = (run.logits(splits[name].features) for splits in (self.splits, fp32))
            changes[name] = compare_logits(logits, logits_fp32, fp32[name].truth, applied.temperature, applied.threshold, positive)
        check_drop(changes["val"], max_drop, self.precision)
        return PrecisionInfo(name=self.precision, method=self.method, max_accuracy_drop=max_drop, changes=changes)


def reduce_run(run: TrainedRun, backbone: bytes, precision: str) -> ReducedRun:
    """The reduced backbone of a run.

    Args:
        run: The run, whose images must be there.
        backbone: Its backbone as ONNX in float32.
        precision: ``fp16`` or ``int8``.

    Raises:
        InputError: An image of the run cannot be read any more.
    """
    source = read_source(run.config.data, run.config.preprocess_spec)
    samples = {sample.relative: sample for sample in source.dataset.samples}
    splits = {name: [samples[path] for path in run.data["split"][name]] for name in SPLIT_NAMES}
    train = splits["train"]
    chosen = [train[k] for k in np.linspace(0, len(train) - 1, min(_NUM_CALIBRATION, len(train))).round().astype(int)]
    reduced, method = reduce_backbone(backbone, precision, _pixels(run, chosen))
    stage = Stage(reduced, "backbone.onnx")
    with progress_bar(f"features in {precision}", sum(map(len, splits.values())), "images") as advance:
        found = {name: _features(run, stage, part, advance) for name, part in splits.items()}
    return ReducedRun("fp16" if precision == "fp16" else "int8", reduced, method, found)


def _features(run: TrainedRun, stage: Stage, samples: list[Sample], advance: Advance) -> SplitFeatures:
    parts = []
    for pixels in _pixels(run, samples):
        parts.append(stage(pixels))
        advance(len(pixels))
    return SplitFeatures(np.concatenate(parts), np.array([sample.label for sample in samples], dtype=np.intp))


def _pixels(run: TrainedRun, samples: list[Sample]) -> Iterator[F32]:
    for batch in decode_batches([sample.path for sample in samples], run.config.preprocess_spec, _BATCH):
        for position, message in batch.errors.items():
            raise InputError(f"{samples[position].relative} of the run cannot be read any more: {message}")
        yield batch.pixels
