"""What a backbone of less precision changes: as its export measured it, and measured again on images that are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import ConfigError, InputError, ParityError
from hqtl_common.manifest import FP32, PrecisionChange
from hqtl_common.preprocess import suffixes_of
from hqtl_common.records import InferenceBatch
from hqtl_common.stages import Stage
from training.console import progress_bar, warn
from training.data import ImageDataset, load_dataset
from training.decode import decode_batches
from training.precision import Speed, check_drop, compare_logits, measure_speed

__all__ = ["PrecisionReport", "check_precision"]

_BATCH = 16


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """Of one bundle.

    Args:
        name: ``fp16`` or ``int8``.
        changes: On which images → what changes; those of the export first.
        speed: On this machine.
        refused: Why the images that were given speak against the bundle, None if they do not.
    """

    name: str
    changes: dict[str, PrecisionChange]
    speed: Speed
    refused: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "changes": {where: change.model_dump() for where, change in self.changes.items()},
            "images_per_second": {self.name: self.speed.reduced, "fp32": self.speed.fp32},
            "times_as_fast": self.speed.ratio,
            "refused": self.refused,
        }


def check_precision(path: Path, data: Path | None = None) -> PrecisionReport | None:
    """Compare the backbone of a bundle with the one in float32 that it was made from; None where it is that one.

    Args:
        path: The bundle.
        data: Labelled images to compare on, one folder per class of the bundle.

    Raises:
        BundleError: The bundle cannot be used.
        ConfigError: Images for a bundle in float32.
        InputError: The folder cannot be used.
    """
    bundle = ModelBundle.load(path)
    info = bundle.manifest.precision
    if info is None:
        if data is not None:
            raise ConfigError("the backbone of the bundle computes in fp32, so that there is nothing to compare: use hqtl-train evaluate")
        return None
    changes = {f"the run's {name} split, at its export": change for name, change in info.changes.items()}
    refused = None
    if data is not None:
        changes[str(data)] = change = _measure(bundle, data)
        try:
            check_drop(change, info.max_accuracy_drop, info.name)
        except ParityError as error:
            refused = str(error)
    return PrecisionReport(info.name, changes, measure_speed(bundle), refused)


def _measure(bundle: ModelBundle, folder: Path) -> PrecisionChange:
    dataset = load_dataset(folder, suffixes_of(bundle.preprocess))
    truth = _truth(bundle, dataset)
    logits: dict[str, list[NDArray[np.float64]]] = {"reduced": [], "fp32": []}
    kept: list[int] = []
    paths, fp32 = [sample.path for sample in dataset.samples], Stage(bundle.backbone_fp32, FP32)
    with HybridClassifier(bundle) as classifier, progress_bar("comparing", len(paths), "images") as advance:
        for batch in decode_batches(paths, bundle.preprocess, _BATCH):
            if batch.positions:
                logits["reduced"].append(_logits(classifier, classifier.extract(batch.pixels)))
                logits["fp32"].append(_logits(classifier, fp32(batch.pixels)))
            kept += batch.positions
            for position, message in batch.errors.items():
                warn(f"left out {dataset.samples[position].relative}: {message}")
            advance(len(batch.positions) + len(batch.errors))
    if not kept:
        raise InputError(f"no image in {str(folder)!r} can be used")
    applied = bundle.manifest.applied_to("statevector", None, noise_free=True)
    positive = bundle.labels.index(bundle.manifest.positive_label)
    reduced, exact = (np.concatenate(parts) for parts in logits.values())
    return compare_logits(reduced, exact, truth[kept], applied.temperature, applied.threshold, positive)


def _logits(classifier: HybridClassifier, features: NDArray[np.float32]) -> NDArray[np.float64]:
    answer = classifier.run(InferenceBatch(features=features))
    assert answer.logits is not None
    return answer.logits


def _truth(bundle: ModelBundle, dataset: ImageDataset) -> NDArray[np.intp]:
    if unknown := set(dataset.labels) - set(bundle.labels):
        raise InputError(f"the bundle has no class {sorted(unknown)[0]!r}; its classes are {', '.join(bundle.labels)}")
    return np.array([bundle.labels.index(dataset.labels[sample.label]) for sample in dataset.samples], dtype=np.intp)
