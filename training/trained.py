"""A finished run as a model: its best values, its backbone, and the features of its splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hqtl_common.errors import ConfigError, InputError
from training.backbones import Backbone, load_backbone
from training.config import FitConfig
from training.data import SPLIT_NAMES
from training.finetune import load_tuned
from training.model import HybridModel, build_model
from training.prepare import compute_features, pick_device, read_source
from training.runs import RunFolder

__all__ = ["SplitFeatures", "TrainedRun", "load_run", "split_features"]


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """The best model of a run.

    Args:
        config: Options of the run.
        data: What ``data.json`` holds.
        result: What ``result.json`` holds.
        backbone: The network whose features the model was trained on.
        model: With the best epoch's values, its head exact.
        predictions: What ``predictions.json`` holds, None in runs from before it existed.
    """

    config: FitConfig
    data: dict[str, Any]
    result: dict[str, Any]
    backbone: Backbone
    model: HybridModel
    predictions: dict[str, Any] | None = None

    @torch.no_grad()
    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Features (B, F) → logits (B, C) with the exact head."""
        logits: NDArray[np.float64] = self.model(torch.from_numpy(features)).numpy()
        return logits


@dataclass(frozen=True, slots=True)
class SplitFeatures:
    """Features (B, F) float32 and labels (B,) of one split."""

    features: NDArray[np.float32]
    truth: NDArray[np.intp]


def load_run(path: Path) -> TrainedRun:
    """The best model of a finished run, and its backbone.

    Args:
        path: The run folder.

    Raises:
        InputError: Not a run, or one that has not finished.
        ConfigError: The weights of the backbone cannot be had or changed since the run.
    """
    run = RunFolder(path)
    config, data, result, checkpoint = run.config(), run.data(), run.result(), run.load_checkpoint()
    if data is None or result is None or checkpoint is None:
        raise InputError(f"the run {str(path)!r} has not finished; finish it with: hqtl-train fit --resume {path}")
    backbone = load_backbone(config.backbone, config.weights, config.data_seed, config.preprocess_spec)
    if backbone.digest != data["backbone_sha256"]:
        raise ConfigError(f"the weights {config.weights!r} of {config.backbone} changed since the run; restore them or train again")
    if config.unfreeze is not None:
        backbone = load_tuned(path, config, backbone)
    model = build_model(backbone.feature_width, len(data["labels"]), config.head_spec, state=checkpoint.part("best"))
    return TrainedRun(config, data, result, backbone, model.eval(), run.predictions())


def split_features(run: TrainedRun, cache_folder: Path, device: str = "auto") -> dict[str, SplitFeatures]:
    """Features of the run's own splits, from the cache where it has them.

    Args:
        run: The run.
        cache_folder: Where features are cached.
        device: torch's device for the backbone.

    Raises:
        InputError: The images of the run are not there any more, or were changed.
    """
    source = read_source(run.config.data, run.config.preprocess_spec)
    if source.digest != run.data["data_sha256"]:
        raise InputError(f"the images in {str(run.config.data)!r} were changed since the run")
    places = {sample.relative: index for index, sample in enumerate(source.dataset.samples)}
    table = compute_features(source, run.backbone, run.config.preprocess_spec, cache_folder, pick_device(device))
    truth = np.array([sample.label for sample in source.dataset.samples], dtype=np.intp)
    chosen = {name: [places[path] for path in run.data["split"][name]] for name in SPLIT_NAMES}
    return {name: SplitFeatures(table.features[indices], truth[indices]) for name, indices in chosen.items()}
