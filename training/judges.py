"""Answers of a run or of a bundle to labelled images, with the head on any backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hqtl_common.adaptive import DecisionRule, ShotPlan, evaluate_adaptively
from hqtl_common.backends.base import Backend
from hqtl_common.bundle import ModelBundle
from hqtl_common.calibration import Applied, choose_calibration
from hqtl_common.classifier import HybridClassifier, is_noise_free
from hqtl_common.records import ExecutionRecord, InferenceBatch
from hqtl_common.specs import PreprocessSpec
from training.calibrate import calibrate_run
from training.calibration import ThresholdRule
from training.console import progress_bar, warn
from training.decode import decode_batches
from training.features import BATCH_SIZE
from training.prepare import SourceData, compute_features, pick_device
from training.trained import load_run

__all__ = ["Answers", "BundleJudge", "Judge", "RunJudge"]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers for the usable ones of N images.

    Args:
        positions: (k,) which images could be used.
        logits: (k, C), not yet divided by the temperature.
        applied: Temperature and threshold.
        execution: What ran the head.
        errors: Position → why an image cannot be used.
        unfamiliar: (k,) images unlike the training images; None where that is not known.
    """

    positions: list[int]
    logits: NDArray[np.float64]
    applied: Applied
    execution: ExecutionRecord
    errors: dict[int, str]
    unfamiliar: NDArray[np.bool_] | None = None


class Judge(Protocol):
    """A model that answers.

    ``recipe`` is how its data was divided: recipe, grouping, seed.
    """

    labels: list[str]
    positive: str
    spec: PreprocessSpec
    recipe: tuple[str, str, int]
    data_sha256: str
    split_sha256: str

    def answer(self, source: SourceData, backend: Backend, max_shots: int | None) -> Answers:
        """Answers for all images of ``source``."""
        ...


class RunJudge:
    """Answers through torch, features from the cache, calibrated as its export would be.

    Args:
        path: The run folder.
        cache_folder: Where features are cached.
        device: torch's device for the backbone.
        verbose: Say more.

    Raises:
        InputError: Not a finished run.
        ConfigError: The weights of the backbone changed.
    """

    def __init__(self, path: Path, cache_folder: Path, device: str, verbose: bool) -> None:
        self._run = load_run(path)
        config = self._run.config
        self._cache_folder, self._device, self._verbose = cache_folder, device, verbose
        self.labels: list[str] = self._run.data["labels"]
        self.spec = config.preprocess_spec
        self.positive: str = self._run.result["positive"]
        self.recipe = (config.split_recipe, config.group_by, config.data_seed)
        self.data_sha256: str = self._run.data["data_sha256"]
        self.split_sha256: str = self._run.data["split_sha256"]

    @torch.no_grad()
    def answer(self, source: SourceData, backend: Backend, max_shots: int | None) -> Answers:
        """See :class:`Judge`."""
        device = pick_device(self._device)
        table = compute_features(source, self._run.backbone, self.spec, self._cache_folder, device, verbose=self._verbose)
        positions = [i for i in range(len(source.hashes)) if i not in table.errors]
        model, applied = self._run.model, self._applied(backend)
        angles = model.pre_net(torch.from_numpy(table.features[positions])).numpy()
        weights = model.head.weights.numpy()
        if max_shots is None:
            answer = backend.run(model.head.spec, weights, angles)
        else:
            weight, bias = (part.numpy() / applied.temperature for part in (model.post_net.weight.T, model.post_net.bias))
            rule = DecisionRule.of(weight, bias, self.labels.index(self.positive), applied.threshold)
            answer = evaluate_adaptively(backend, model.head.spec, weights, angles, rule, ShotPlan.of(backend, max_shots)).answer
        logits = model.post_net(torch.from_numpy(answer.expvals)).numpy()
        return Answers(positions, logits, applied, answer.record, table.errors)

    def _applied(self, backend: Backend) -> Applied:
        entries = calibrate_run(self._run, ThresholdRule(), self._cache_folder, self._device)
        found, name = choose_calibration(entries, backend.name, backend.shots, noise_free=is_noise_free(backend.name))
        threshold = 0.5 if len(self.labels) == 2 else None
        return Applied(1.0, threshold, name) if found is None else Applied(found.temperature, found.threshold, name)


class BundleJudge:
    """Answers through the exported stages, as the service and the folder scoring give them.

    Args:
        path: The bundle.

    Raises:
        BundleError: It cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.bundle = ModelBundle.load(path)
        manifest = self.bundle.manifest
        self.labels: list[str] = list(manifest.labels)
        self.spec = self.bundle.preprocess
        self.positive = manifest.positive_label
        self.recipe = (manifest.split.recipe, manifest.split.group_by, manifest.split.seed)
        self.data_sha256: str = manifest.training.get("data_sha256", "")
        self.split_sha256: str = manifest.split.sha256

    def answer(self, source: SourceData, backend: Backend, max_shots: int | None) -> Answers:
        """See :class:`Judge`."""
        paths = [sample.path for sample in source.dataset.samples]
        parts: list[InferenceBatch] = []
        positions: list[int] = []
        errors: dict[int, str] = {}
        with HybridClassifier(self.bundle, backend) as classifier, progress_bar("features", len(paths), "images") as advance:
            for batch in decode_batches(paths, self.bundle.preprocess, BATCH_SIZE):
                parts.append(classifier.featurize(InferenceBatch(pixels=batch.pixels)))
                positions += batch.positions
                errors |= batch.errors
                advance(len(batch.positions) + len(batch.errors))
            found = classifier.run(_joined(parts), max_shots=max_shots)
        for position, message in errors.items():
            warn(f"left out {source.dataset.samples[position].relative}: {message}")
        assert found.logits is not None
        assert found.temperature is not None
        assert found.calibration is not None
        assert found.execution is not None
        applied = Applied(found.temperature, found.threshold, found.calibration)
        return Answers(positions, found.logits, applied, found.execution, errors, found.unfamiliar)


def _joined(parts: list[InferenceBatch]) -> InferenceBatch:
    """Angles and familiarity of all parts; pixels and features are let go."""
    angles = [part.angles for part in parts if part.angles is not None]
    known = [part.familiarity for part in parts if part.familiarity is not None]
    return InferenceBatch(angles=np.concatenate(angles), familiarity=np.concatenate(known) if known else None)
