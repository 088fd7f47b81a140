"""A finished run → a bundle."""

from __future__ import annotations

import datetime
import math
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hqtl_common
from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import ConfigError, InputError, ParityError
from hqtl_common.manifest import FAMILIARITY, FP32, BackboneInfo, FamiliarityInfo, Manifest, SplitInfo
from hqtl_common.records import InferenceBatch
from hqtl_common.stages import Stage
from training.calibrate import calibrate_run
from training.calibration import ThresholdRule
from training.card import model_card
from training.console import warn
from training.familiarity import LEVEL, Reference, build_reference
from training.features import default_cache_folder
from training.onnx_export import OPSET, fold_batch_norm, to_onnx
from training.precision import FULL, PRECISIONS
from training.reduced import ReducedRun, reduce_run
from training.trained import SplitFeatures, TrainedRun, load_run, split_features

__all__ = ["LOGIT_TOLERANCE", "MAX_DROP", "Fused", "check_target", "export_run"]

LOGIT_TOLERANCE = 1e-4  # |Δlogit| between torch and ONNX Runtime
MAX_DROP = 0.01  # of the accuracy, for a faster backbone
_METRICS = ("val", "test", "logistic_regression", "twins", "mcnemar")
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "onnx", "pennylane", "qiskit")


class Fused(nn.Module):
    """Pixels (B, 3, S, S) float32 → logits (B, C) float64 through the exact head, as one module."""

    def __init__(self, backbone: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.model = backbone, model

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.model(self.backbone(pixels))
        return logits


def export_run(
    path: Path,
    target: Path,
    *,
    fused: bool = False,
    rule: ThresholdRule | None = None,
    level: float = LEVEL,
    precision: str = FULL,
    max_accuracy_drop: float = MAX_DROP,
    cache_folder: Path | None = None,
    device: str = "auto",
) -> ModelBundle:
    """Write the best model of a run as a bundle, and check that it computes what torch computes.

    Temperature, threshold and the familiarity of images come from the run's own images. Where these are gone or changed, the
    bundle is written without a reference for familiarity, and calibrated by the answers that the run kept. With less precision
    everything is taken from the answers of the backbone that will run; the one in float32 stays in the bundle beside it.

    Args:
        path: The run folder.
        target: The bundle's folder, to be made.
        fused: Add ``model.onnx``, pixels → logits in one graph.
        rule: How the threshold is chosen (default: even odds).
        level: An image is called unfamiliar up to this familiarity.
        precision: What the backbone computes with, one of :data:`training.precision.PRECISIONS`.
        max_accuracy_drop: The loss of accuracy on the validation split that is accepted for it.
        cache_folder: Where features are cached (default: the user's cache).
        device: torch's device for features that are not cached.

    Raises:
        InputError: Not a finished run.
        ConfigError: The weights of the backbone changed, ``target`` is not empty, the threshold cannot be chosen as asked,
            the images that less precision needs are gone, or SOURCE_DATE_EPOCH is no time.
        ParityError: ONNX Runtime gives other logits than torch, or less precision costs too much accuracy; nothing is written.
    """
    check_target(target)
    _check_options(fused, level, precision)
    run, rule = load_run(path), rule or ThresholdRule()
    cache = cache_folder or default_cache_folder()
    splits = _splits(run, cache, device)
    if precision != FULL and not splits:
        raise ConfigError(f"{precision} is measured on the run's own images; bring {str(run.config.data)!r} back, or export in {FULL}")
    files = _onnx_files(run, fused=fused)
    reduced = None if precision == FULL else _reduce(run, files, precision)
    answered = splits if reduced is None else reduced.splits  # by the backbone that will run
    calibration = calibrate_run(run, rule, cache, device, answered, anew=reduced is not None)
    if rule.chosen and not calibration:
        raise ConfigError(f"a threshold is chosen on the run's own images; bring {str(run.config.data)!r} back, or leave the rule out")
    for note in dict.fromkeys(note for entry in calibration for note in entry.notes):
        warn(note)
    manifest = _manifest(run).model_copy(update={"calibration": calibration})
    if answered:
        reference = _reference(answered, level)
        manifest = manifest.model_copy(update={"familiarity": _described(reference, answered)})
        files[FAMILIARITY] = reference.model
    if reduced is not None:
        manifest = manifest.model_copy(update={"precision": reduced.describe(run, manifest, splits, max_accuracy_drop)})
    return _write(run, target, manifest, files)


def _check_options(fused: bool, level: float, precision: str) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"the level of familiarity must lie between 0 and 1; got {level}")
    if precision not in PRECISIONS:
        raise ConfigError(f"the precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if fused and precision != FULL:
        raise ConfigError(f"model.onnx holds the backbone in float32: leave out --fuse, or --precision {precision}")


def _reduce(run: TrainedRun, files: dict[str, bytes], precision: str) -> ReducedRun:
    """The reduced backbone takes the place of the one in ``files``, which stays beside it."""
    reduced = reduce_run(run, files["backbone.onnx"], precision)
    files[FP32], files["backbone.onnx"] = files["backbone.onnx"], reduced.backbone
    return reduced


def _write(run: TrainedRun, target: Path, manifest: Manifest, files: dict[str, bytes]) -> ModelBundle:
    files["MODEL_CARD.md"] = model_card(manifest).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as trial:
        bundle = ModelBundle.save(Path(trial) / target.name, manifest, run.model.head.weights.detach().numpy(), files)
        _check_against_torch(bundle, Fused(run.backbone.network, run.model))
        bundle.path.replace(target)
    return ModelBundle.load(target)


def check_target(target: Path) -> None:
    """Refuse a place for a bundle where something is already, before any work is done.

    Raises:
        ConfigError: ``target`` exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{str(target)!r} exists already; give another folder or remove it first")


def _splits(run: TrainedRun, cache_folder: Path, device: str) -> dict[str, SplitFeatures]:
    try:
        return split_features(run, cache_folder, device)
    except InputError as error:
        warn(f"the bundle cannot tell unfamiliar images: {error}")
        return {}


def _reference(splits: dict[str, SplitFeatures], level: float) -> Reference:
    reference = build_reference(splits["train"].features, splits["val"].features, level)
    needed = math.ceil(1 / level - 1e-9) - 1
    if reference.info.num_held_out < needed:
        warn(
            f"no image will be called unfamiliar: at the level {level:g} it takes {needed} validation images, "
            f"and there are {reference.info.num_held_out}; use more, or a higher --familiarity-level"
        )
    return reference


def _described(reference: Reference, splits: dict[str, SplitFeatures]) -> FamiliarityInfo:
    """With the share of flagged images in the test split; the validation split is what an image is compared with."""
    return reference.info.model_copy(update={"flagged": {"test": float(f"{reference.flagged(splits['test'].features):.6g}")}})


def _onnx_files(run: TrainedRun, *, fused: bool) -> dict[str, bytes]:
    model, width = run.model, run.backbone.feature_width
    folded = fold_batch_norm(run.backbone.network)
    pixels = torch.zeros(2, *run.config.preprocess_spec.pixels_shape)
    expvals = torch.zeros(2, model.head.spec.num_qubits, dtype=torch.float64)
    files = {
        "backbone.onnx": to_onnx(folded, pixels, "pixels", "features", keep_names=True),
        "pre_net.onnx": to_onnx(model.pre_net, torch.zeros(2, width), "features", "angles"),
        "post_net.onnx": to_onnx(model.post_net, expvals, "expvals", "logits"),
    }
    if fused:
        files["model.onnx"] = to_onnx(Fused(folded, model).eval(), pixels, "pixels", "logits")
    return files


def _manifest(run: TrainedRun) -> Manifest:
    config, data, result, backbone = run.config, run.data, run.result, run.backbone
    training = config.training_record() | {
        "data_sha256": data["data_sha256"],
        "leaked": data.get("leaked", 0),
        "diff_method": result["diff_method"],
        "shots": result["shots"],
        "epochs_done": result["epochs"],
        "best_epoch": result["best_epoch"],
        "parameter_sets": result["parameter_sets"],
        "jobs": result["jobs"],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }
    return Manifest(
        created=_source_date(),
        hqtl_version=hqtl_common.__version__,
        labels=tuple(data["labels"]),
        positive_label=result["positive"],
        preprocess=config.preprocess_spec.to_dict(),
        head=config.head_spec.to_dict(),
        backbone=BackboneInfo(
            name=backbone.name, weights=backbone.weights, weights_sha256=backbone.digest, feature_width=backbone.feature_width
        ),
        metrics={name: result[name] for name in _METRICS if name in result},
        split=SplitInfo(
            recipe=config.split_recipe, seed=config.data_seed, group_by=config.group_by, sha256=data["split_sha256"], counts=data["counts"]
        ),
        training=training,
        onnx={"opset": OPSET, "exporter": f"torch {version('torch')}"},
    )


def _source_date() -> str | None:
    """The time that reproducible builds set, or None: a clock in the manifest would make every export differ."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        return None if epoch is None else datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(f"SOURCE_DATE_EPOCH must be seconds since 1970; got {epoch!r}") from error


@torch.no_grad()
def _check_against_torch(bundle: ModelBundle, reference: nn.Module) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, *bundle.preprocess.pixels_shape)).astype(np.float32)
    expected = reference.eval()(torch.from_numpy(pixels)).numpy()
    features = Stage(bundle.backbone_fp32, "the backbone in float32")(pixels)
    with HybridClassifier(bundle) as classifier:
        answers: dict[str, Any] = {"the stages": classifier.run(InferenceBatch(features=features)).logits}
    if "model.onnx" in bundle.manifest.files:
        answers["model.onnx"] = Stage(bundle.read("model.onnx"), "model.onnx")(pixels)
    for name, logits in answers.items():
        difference = float(np.abs(logits - expected).max())
        if not difference <= LOGIT_TOLERANCE:
            raise ParityError(f"{name} in ONNX Runtime would give logits that differ from torch's by {difference:.2g}; nothing was written")
